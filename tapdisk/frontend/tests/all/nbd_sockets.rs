//! The four sockets: names, modes, stale files, descriptors passed through them.

use std::io::{IoSlice, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::nbd_support::client::cmd;
use crate::nbd_support::{Bench, Client, export};
use frontend::Frontend;
use frontend::nbd::{CLIENTS_MAX, NbdServer, Notice, Paths};
use mio::Token;

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("nbd-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A bench whose server has its sockets.
fn listening(folder: &Folder) -> (Bench, Paths) {
    let mut bench = Bench::new();
    let paths = Paths::in_folder(&folder.0, 123, 4);
    bench.server =
        NbdServer::new(bench.poll.registry(), &paths, Token(100), export()).expect("sockets");
    (bench, paths)
}

fn dial(path: &Path) -> Client {
    Client::new(UnixStream::connect(path).unwrap())
}

/// One message with descriptors, as tap-ctl's users send it.
fn pass(path: &Path, text: &[u8], fds: &[i32]) -> UnixStream {
    let stream = UnixStream::connect(path).unwrap();
    let mut control = [0u64; 16];
    let bytes = size_of_val(fds) as u32;
    // SAFETY: the control buffer is large and aligned enough for one header and these descriptors,
    // and everything the message names outlives the call.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        let mut part = IoSlice::new(text);
        message.msg_iov = std::ptr::from_mut(&mut part).cast();
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
        std::ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(header).cast(), fds.len());
        assert_eq!(libc::sendmsg(stream.as_raw_fd(), &message, 0), text.len() as isize);
    }
    stream
}

#[test]
fn the_sockets_have_the_originals_names_and_go_at_close() {
    let folder = Folder::new("names");
    let (mut bench, _) = listening(&folder);
    let names = ["nbd-old123.4", "nbd123.4", "nbdserver-new123.4", "nbdserver123.4"];
    assert_eq!(folder.names(), names);
    bench.server.hang_up(&mut bench.memory);
    assert_eq!(folder.names(), [""; 0]);
}

#[test]
fn stale_sockets_are_replaced_and_other_files_are_not() {
    let folder = Folder::new("stale");
    let path = folder.0.join("nbd123.4");
    drop(UnixListener::bind(&path).unwrap());
    assert!(std::fs::metadata(&path).unwrap().file_type().is_socket());
    let (mut bench, paths) = listening(&folder);
    dial(&paths.nbd).greeting(&mut bench);
    bench.server.hang_up(&mut bench.memory);

    std::fs::write(folder.0.join("nbdserver123.4"), "precious").unwrap();
    let error = NbdServer::new(bench.poll.registry(), &paths, Token(200), export()).unwrap_err();
    assert_eq!(error.errno(), libc::EADDRINUSE);
    assert!(error.to_string().contains("nbdserver123.4"), "{error}");
    assert_eq!(folder.names(), ["nbdserver123.4"], "nothing is left behind");
}

#[test]
fn a_path_that_is_too_long_is_refused_with_a_sentence() {
    let folder = Folder::new("long");
    let bench = Bench::new();
    let long = folder.0.join("x".repeat(108));
    let paths = Paths::in_folder(&long, 1, 1);
    let error = NbdServer::new(bench.poll.registry(), &paths, Token(200), export()).unwrap_err();
    assert_eq!(error.errno(), libc::ENAMETOOLONG);
    assert!(error.to_string().contains("at most 107"), "{error}");
}

#[test]
fn both_listeners_greet_newstyle_and_differ_after_disc() {
    let folder = Folder::new("styles");
    let (mut bench, paths) = listening(&folder);
    let mut new = dial(&paths.nbd);
    let mut old = dial(&paths.nbd_old);
    new.negotiate(&mut bench);
    old.negotiate(&mut bench);
    new.request(&mut bench, cmd::DISC, 0, 0, 0);
    old.request(&mut bench, cmd::DISC, 0, 0, 0);
    // A moment to close, for clients that would take a greeting for a broken reply.
    new.assert_silent(&mut bench);
    assert_eq!(bench.server.tick_within(), Some(Duration::from_millis(50)));
    let now = Instant::now();
    bench.server.tick(now);
    new.assert_silent(&mut bench);
    bench.server.tick(now + Duration::from_millis(50));
    new.greeting(&mut bench);
    assert_eq!(old.recv(&mut bench, 152)[8..16], 0x0000_4202_8186_1253u64.to_be_bytes());
    assert_eq!(bench.server.tick_within(), None);
    // Whoever speaks first after DISC stays; whoever closes goes without a word.
    let (mut stays, mut goes) = (dial(&paths.nbd), dial(&paths.nbd));
    for client in [&mut stays, &mut goes] {
        client.negotiate(&mut bench);
        client.request(&mut bench, cmd::DISC, 0, 0, 0);
    }
    goes.socket.shutdown(std::net::Shutdown::Write).unwrap();
    goes.assert_closed(&mut bench);
    stays.send(&mut bench, &[0, 0, 0, 3]);
    stays.greeting(&mut bench);
}

#[test]
fn a_silent_connection_is_dropped_after_thirty_seconds() {
    let folder = Folder::new("silent");
    let (mut bench, paths) = listening(&folder);
    let mut client = dial(&paths.nbd);
    client.greeting(&mut bench);
    let now = Instant::now();
    bench.server.tick(now);
    bench.server.tick(now + Duration::from_secs(30));
    client.assert_closed(&mut bench);
}

#[test]
fn passed_descriptors_are_served_in_their_style() {
    let folder = Folder::new("pass");
    let (mut bench, paths) = listening(&folder);
    for round in 0..30 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut client = Client::new(ours);
        let old = round % 2 == 0;
        let path = if old { &paths.server } else { &paths.server_new };
        // Unread text, several descriptors, and a copy of the passed end kept by the sender.
        drop(pass(path, b"vdi", &[theirs.as_raw_fd(), 0, 1]));
        match old {
            true => assert_eq!(&client.recv(&mut bench, 152)[..8], b"NBDMAGIC"),
            false => client.negotiate(&mut bench),
        }
        let cookie = client.request(&mut bench, cmd::FLUSH, 0, 0, 0);
        assert_eq!(client.simple_error(&mut bench, cookie), 0);
        drop(client);
        bench.settle();
        assert_eq!(bench.server.clients(), 0);
        drop(theirs);
    }
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count();
    assert!(open < 100, "{open} descriptors are open");
}

#[test]
fn receivers_survive_everything_that_is_not_a_descriptor() {
    let folder = Folder::new("nothing");
    let (mut bench, paths) = listening(&folder);
    drop(UnixStream::connect(&paths.server).unwrap());
    bench.settle();
    UnixStream::connect(&paths.server).unwrap().write_all(&[7; 20_000]).unwrap();
    bench.settle();
    let nothing = bench.notices();
    assert!(!nothing.is_empty() && nothing.iter().all(|n| *n == Notice::NoDescriptor));
    // A descriptor that is no socket, or that nothing can be registered for.
    let (pipe, _write) = std::io::pipe().unwrap();
    let file = std::fs::File::open("/dev/null").unwrap();
    for fd in [pipe.as_raw_fd(), file.as_raw_fd()] {
        drop(pass(&paths.server_new, b"x", &[fd]));
        bench.settle();
        assert_eq!(bench.server.clients(), 0);
    }
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(pass(&paths.server_new, b"x", &[theirs.as_raw_fd()]));
    Client::new(ours).negotiate(&mut bench);
}

#[test]
fn couriers_come_one_at_a_time_and_have_thirty_seconds() {
    let folder = Folder::new("courier");
    let (mut bench, paths) = listening(&folder);
    let mut first = dial(&paths.server);
    bench.settle();
    dial(&paths.server).assert_closed(&mut bench);
    first.assert_silent(&mut bench);
    let now = Instant::now();
    bench.server.tick(now);
    bench.server.tick(now + Duration::from_secs(30));
    first.assert_closed(&mut bench);
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(pass(&paths.server, b"x", &[theirs.as_raw_fd()]));
    Client::new(ours).recv(&mut bench, 152);
}

#[test]
fn while_suspended_nobody_is_let_in() {
    let folder = Folder::new("suspended");
    let (mut bench, paths) = listening(&folder);
    bench.server.suspend();
    let mut client = dial(&paths.nbd);
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(pass(&paths.server_new, b"x", &[theirs.as_raw_fd()]));
    client.assert_silent(&mut bench);
    assert_eq!(bench.server.clients(), 0);
    bench.server.set_export(export());
    bench.server.resume();
    client.negotiate(&mut bench);
    Client::new(ours).negotiate(&mut bench);
}

#[test]
fn the_seventeenth_client_is_accepted_and_closed() {
    let folder = Folder::new("many");
    let (mut bench, paths) = listening(&folder);
    let mut clients: Vec<_> = (0..CLIENTS_MAX).map(|_| dial(&paths.nbd)).collect();
    clients.iter_mut().for_each(|client| client.greeting(&mut bench));
    dial(&paths.nbd).assert_closed(&mut bench);
    clients.truncate(1);
    bench.settle();
    dial(&paths.nbd).negotiate(&mut bench);
}
