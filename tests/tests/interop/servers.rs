//! Other people's NBD servers as images: nbdkit and qemu-nbd, on both disk engines. Random work is
//! compared with a shadow, through our daemon and then from the server's side.
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tests::both_engines;
use tests::rig::nbd::{NO_HOLE, Verb};
use tests::rig::{MIB, Rig, files, qemu_io, tool};
use tests::sim::rng::Rng;

/// Of every disk here.
const SIZE: u64 = 16 * MIB;
/// NBD_ENOSPC
const ENOSPC: u32 = 28;

/// A server that is ended when this goes.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    /// Starts a program and waits until it listens.
    #[track_caller]
    fn start(mut command: Command, listens: impl Fn() -> bool) -> Server {
        let mut child =
            command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().expect("the server starts");
        let end = Instant::now() + Duration::from_secs(20);
        while !listens() {
            assert!(child.try_wait().expect("a child").is_none(), "{command:?} has ended");
            assert!(Instant::now() < end, "{command:?} does not listen");
            std::thread::yield_now();
        }
        Server { child, socket: PathBuf::new() }
    }

    #[track_caller]
    fn at(socket: PathBuf, command: Command) -> Server {
        // What an earlier one left.
        let _ = std::fs::remove_file(&socket);
        let mut server = Server::start(command, || UnixStream::connect(&socket).is_ok());
        server.socket = socket;
        server
    }

    /// nbdkit with a plugin and its arguments.
    #[track_caller]
    fn nbdkit(rig: &Rig, args: &[&str]) -> Server {
        let socket = rig.path("nbdkit.sock");
        let mut command = Command::new(tool("nbdkit"));
        command.args(["-f", "--exit-with-parent", "-U"]).arg(&socket).args(args);
        Server::at(socket, command)
    }

    /// qemu-nbd with an image and options.
    #[track_caller]
    fn qemu(rig: &Rig, args: &[&str]) -> Server {
        let socket = rig.path("qemu.sock");
        let mut command = Command::new(tool("qemu-nbd"));
        command.current_dir(rig.work()).args(["-t", "-e", "8", "-k"]).arg(&socket).args(args);
        Server::at(socket, command)
    }

    fn name(&self) -> String {
        format!("nbd:{}", self.socket.display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Random work on an empty image, with a pause in the middle, compared with a shadow: through our
/// daemon, and through a second one after it.
fn work(rig: &Rig, image: &str) {
    let served = rig.serve(image, &[]);
    let mut disk = served.client();
    assert_eq!(disk.size, SIZE, "{image}");
    let mut shadow = vec![0; usize::try_from(SIZE).expect("a small disk")];
    let mut rng = Rng::new(7);
    for step in 0..300u32 {
        let at = rng.below(SIZE / 512) * 512;
        let bytes = ((1 + rng.below(400)) * 512).min(SIZE - at);
        let part = &mut shadow[usize::try_from(at).expect("inside")..][..bytes as usize];
        match rng.below(8) {
            0..=3 => {
                disk.fill(at, bytes, step as u8).unwrap();
                part.fill(step as u8);
            }
            4 => {
                let flags = if rng.one_in(2) { NO_HOLE } else { 0 };
                disk.command(Verb::Zero, flags, at, bytes).unwrap();
                part.fill(0);
            }
            5 => disk.flush().unwrap(),
            _ => assert!(disk.read(at, bytes as u32).unwrap() == part, "{image}: step {step}"),
        }
        if step == 150 {
            served.pause();
            served.unpause(&[]);
        }
    }
    assert!(disk.dump() == shadow, "{image}: all of it");
    drop(disk);
    served.destroy();
    let served = rig.serve(image, &["-R"]);
    assert!(served.client().dump() == shadow, "{image}: by another one");
    served.destroy();
}

/// Exit code of an image that is refused.
#[track_caller]
fn refused(rig: &Rig, image: &str) -> i32 {
    rig.try_serve(image, &[]).err().expect("it is refused").code
}

both_engines! {
    fn nbdkit_of_every_style(rig) {
        let styles: [&[&str]; 3] = [&[], &["--mask-handshake=0"], &["--mask-handshake=1"]];
        for style in styles {
            let server = Server::nbdkit(rig, &[style, &["memory", "16M"]].concat());
            work(rig, &server.name());
        }
    }

    /// In oldstyle nbdkit announces flush, trim and zeroes and then refuses them with EINVAL
    /// (1.32).
    fn nbdkit_in_oldstyle(rig) {
        let server = Server::nbdkit(rig, &["-o", "memory", "16M"]);
        let served = rig.serve(&server.name(), &[]);
        let mut disk = served.client();
        disk.fill(0, MIB, 1).unwrap();
        served.pause();
        served.unpause(&[]);
        disk.command(Verb::Zero, 0, 4096, 4096).expect("zeros are written by hand");
        disk.command(Verb::Trim, 0, 65536, 65536).expect("a trim is advice");
        disk.expect(0, 4096, 1);
        disk.expect(4096, 4096, 0);
        disk.expect(8192, 4096, 1);
    }

    /// Each refuses what it has not agreed to.
    fn nbdkit_with_blocks_and_limits_of_its_own(rig) {
        for blocks in [
            &["blocksize-minimum=4096"][..],
            &["blocksize-minimum=1024", "blocksize-maximum=20480"],
            &["blocksize-minimum=1", "blocksize-maximum=4096"],
        ] {
            let filter = ["--filter=blocksize-policy", "memory", "16M", "blocksize-error-policy=error"];
            let server = Server::nbdkit(rig, &[&filter, blocks].concat());
            work(rig, &server.name());
        }
    }

    fn nbdkit_without_zeroes_or_flush(rig) {
        for filter in [&["--filter=nozero"][..], &["--filter=nozero", "--filter=fua"]] {
            let more: &[&str] = if filter.len() > 1 { &["fuamode=discard"] } else { &[] };
            let server = Server::nbdkit(rig, &[filter, &["memory", "16M"], more].concat());
            work(rig, &server.name());
        }
    }

    fn nbdkit_over_tcp_and_late(rig) {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let address = port.to_string();
        let mut command = Command::new(tool("nbdkit"));
        command.args(["-f", "--exit-with-parent", "-i", "127.0.0.1", "-p"]);
        command.arg(port.port().to_string());
        command.args(["--filter=delay", "memory", "16M", "rdelay=2ms", "wdelay=1ms"]);
        let _server = Server::start(command, || std::net::TcpStream::connect(port).is_ok());
        work(rig, &format!("nbd:{address}"));
    }

    /// The server's error is that request's alone.
    fn nbdkit_that_is_full(rig) {
        let full = ["error-pwrite=ENOSPC", "error-pwrite-rate=100%"];
        let on = format!("error-file={}", rig.path("full").display());
        let args = [&["--filter=error", "memory", "16M", &on][..], &full].concat();
        let server = Server::nbdkit(rig, &args);
        let served = rig.serve(&server.name(), &[]);
        let mut disk = served.client();
        disk.fill(0, 4096, 1).unwrap();
        files::sparse(&rig.path("full"), 0);
        assert_eq!(disk.fill(0, 4096, 2), Err(ENOSPC));
        disk.expect(0, 4096, 1);
        std::fs::remove_file(rig.path("full")).unwrap();
        disk.fill(0, 4096, 3).unwrap();
        disk.expect(0, 4096, 3);
        assert_eq!(served.stats()["images"][0]["fail"], serde_json::json!([0, 8]));
        served.destroy();
    }

    fn qemu_with_an_export_name(rig) {
        files::sparse(&rig.path("q.raw"), SIZE);
        let server = Server::qemu(rig, &["-f", "raw", "-x", "disk", "q.raw"]);
        assert_eq!(refused(rig, &server.name()), 1);
        assert_eq!(refused(rig, &format!("{}:exportname=d", server.name())), 1);
        work(rig, &format!("{}:exportname=disk", server.name()));
        let served = rig.serve(&format!("{}:exportname=disk", server.name()), &[]);
        served.client().fill(MIB, 65536, 0x5a).unwrap();
        served.client().flush().unwrap();
        drop(served);
        qemu_io("raw", &rig.path("q.raw").display().to_string(), &["read -P 0x5a 1M 64k"]);
    }

    fn qemu_for_reading(rig) {
        files::sparse(&rig.path("q.raw"), SIZE);
        let server = Server::qemu(rig, &["-f", "raw", "-r", "q.raw"]);
        assert_eq!(refused(rig, &server.name()), libc::EROFS);
        let served = rig.serve(&server.name(), &["-R"]);
        served.client().expect(0, MIB, 0);
        served.destroy();
    }

    /// What is discarded gives its space back on the server.
    fn qemu_gives_space_back(rig) {
        files::sparse(&rig.path("q.raw"), SIZE);
        let server = Server::qemu(rig, &["-f", "raw", "--discard=unmap", "q.raw"]);
        let served = rig.serve(&server.name(), &[]);
        let mut disk = served.client();
        for verb in [Verb::Trim, Verb::Zero] {
            disk.fill(0, 8 * MIB, 1).unwrap();
            disk.flush().unwrap();
            let before = files::disk_usage(&rig.path("q.raw"));
            disk.command(verb, 0, 0, 8 * MIB).unwrap();
            let after = files::disk_usage(&rig.path("q.raw"));
            assert!(after + 7 * MIB < before, "{verb:?}: {before} to {after}");
        }
        served.destroy();
    }

    /// A VHD of ours over the disk of another tapdisk, which a third party's client reads.
    fn a_leaf_over_the_tapdisk_of_its_parent(rig) {
        rig.vhd_util(&["create", "-n", "p.vhd", "-s", "16"]).ok();
        rig.vhd_util(&["snapshot", "-n", "c.vhd", "-p", "p.vhd"]).ok();
        let parent = rig.serve(&rig.name("vhd", "p.vhd"), &[]);
        parent.client().fill(0, MIB, 0x11).unwrap();
        let minor = parent.minor.to_string();
        let leaf = rig.serve(&rig.name("vhd", "c.vhd"), &["-e", &minor]);
        leaf.client().fill(65536, 65536, 0x22).unwrap();
        let view = ["read -P 0x11 0 64k", "read -P 0x22 64k 64k", "read -P 0x11 128k 896k"];
        qemu_io("raw", &leaf.uri(), &view);
        let stats = leaf.stats();
        assert_eq!(stats["images"][1]["driver"]["name"], "nbd");
        assert!(stats["images"][1]["hits"][0].as_u64().unwrap() > 0);
        leaf.destroy();
        parent.destroy();
    }
}
