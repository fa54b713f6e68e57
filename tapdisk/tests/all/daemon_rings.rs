//! SRING_CONNECT and SRING_DISCONNECT (spec/control-socket.md §5.9–5.10) as far as a host without
//! Xen can show them; tests/vm shows the rest.

use crate::daemon_support::{Daemon, images, until};
use tap_ctl::messages::{Blkif, Message, Request, Text, kind};

fn ring() -> Blkif {
    Blkif {
        domid: 7,
        devid: 51712,
        gref: [8, 9, 10, 11, 12, 13, 14, 15],
        order: 0,
        proto: 3,
        pool: Text::EMPTY,
        port: 5,
        poll_duration: 0,
        poll_idle_threshold: 0,
        queue: 0,
        queues: 0,
    }
}

fn connect(daemon: &Daemon, minor: u16, blkif: Blkif) -> i32 {
    daemon.call(&Request::Connect { minor, blkif }.to_message(), &[]).errno()
}

#[test]
fn what_is_wrong_with_a_message_is_told_in_the_order_of_the_original() {
    let daemon = Daemon::attached();
    assert_eq!(connect(&daemon, 9, Blkif { order: 4, ..ring() }), libc::ENODEV, "no such disk");
    assert_eq!(connect(&daemon, 0, Blkif { order: 4, proto: 9, ..ring() }), libc::EINVAL);
    assert_eq!(connect(&daemon, 0, Blkif { proto: 9, ..ring() }), libc::EPROTONOSUPPORT);
    assert_eq!(connect(&daemon, 0, Blkif { domid: 0x7ff0, ..ring() }), libc::EINVAL);
    assert_eq!(connect(&daemon, 0, Blkif { queue: 4, queues: 4, ..ring() }), libc::EINVAL);
    assert_eq!(connect(&daemon, 0, Blkif { queues: 9, ..ring() }), libc::EINVAL);
    let mut frame = Message::with(kind::XENBLKIF_CONNECT, 0, &ring()).encode();
    frame[56..312].fill(b'x');
    let reply = daemon.call(&Message::decode(&frame), &[]);
    assert_eq!((reply.errno(), reply.message().cookie()), (libc::EINVAL, 0), "the pool");
    let gone = Request::Disconnect { domid: 7, devid: 51712 }.to_message();
    assert_eq!(daemon.call(&gone, &[]).errno(), libc::ENODEV);
}

#[test]
fn without_xen_a_ring_is_refused_with_a_clear_line_and_the_disk_is_served() {
    if std::path::Path::new("/dev/xen/gntdev").exists() {
        // Then it is for tests/vm to try; a domain 7 that grants us pages is not to be expected.
        return;
    }
    let daemon = Daemon::attached();
    let image = images::raw(&daemon.path("disk"), 1 << 20);
    // Before the disk is open and while it is.
    assert_eq!(connect(&daemon, 0, ring()), libc::ENOENT);
    assert_eq!(daemon.open(0, &image), 0);
    assert_eq!(connect(&daemon, 0, ring()), libc::ENOENT);
    daemon.signal(libc::SIGUSR1);
    until("the log", || daemon.log().contains("cannot open /dev/xen/gntdev"));
    let mut client = daemon.nbd(0);
    client.write(0, &[7; 4096]).unwrap();
    assert_eq!(client.read(0, 4096).unwrap(), [7; 4096]);
}
