//! Real clients: libnbd's nbdinfo, nbdcopy and Python binding, and qemu's tools. Each one that is
//! not installed is said to be skipped.

use std::process::Command;

use crate::nbd_support::loads::Daemon;
use crate::nbd_support::{SECTORS, export};
use frontend::nbd::Export;

/// Output of a program; `None`, said aloud, if it is not installed.
fn run(program: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(args).output() {
        Ok(output) => output,
        Err(e) => {
            println!("SKIPPED: {program}: {e}");
            return None;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{text}{errors}", output.status);
    Some(text)
}

#[test]
fn nbdinfo_sees_every_feature() {
    let daemon = Daemon::start("info", export(), |_| {});
    let Some(text) = run("nbdinfo", &[&daemon.uri()]) else { return };
    for line in [
        "protocol: newstyle-fixed without TLS, using structured packets",
        "export-size: 67108864",
        "can_cache: true",
        "can_df: true",
        "can_fast_zero: true",
        "can_flush: true",
        "can_fua: true",
        "can_multi_conn: true",
        "can_trim: true",
        "can_zero: true",
        "is_read_only: false",
        "block_size_minimum: 512",
        "block_size_preferred: 4096",
        "block_size_maximum: 33554432",
        "base:allocation",
    ] {
        assert!(text.contains(line), "{line} missing in\n{text}");
    }
    let list = run("nbdinfo", &["--list", &daemon.uri()]).unwrap();
    assert!(list.contains("export=\"tapdisk_client\""), "{list}");
}

#[test]
fn a_read_only_disk_of_4096_byte_sectors_says_so() {
    let export = Export { sector_size: 4096, read_only: true, ..export() };
    let daemon = Daemon::start("ro4k", export, |_| {});
    let Some(text) = run("nbdinfo", &[&daemon.uri()]) else { return };
    for line in ["is_read_only: true", "block_size_minimum: 4096", "export-size: 67108864"] {
        assert!(text.contains(line), "{line} missing in\n{text}");
    }
}

#[test]
fn block_status_is_seen_by_both() {
    let daemon = Daemon::start("map", export(), |memory| memory.disk[1 << 20..2 << 20].fill(7));
    if let Some(text) = run("nbdinfo", &["--map", &daemon.uri()]) {
        let words: Vec<_> = text.split_whitespace().collect();
        assert_eq!(words[..4], ["0", "1048576", "3", "hole,zero"], "{text}");
        assert_eq!(words[4..8], ["1048576", "1048576", "0", "data"], "{text}");
        assert_eq!(words[8..12], ["2097152", "65011712", "3", "hole,zero"], "{text}");
    }
    if let Some(text) = run("qemu-img", &["map", "--output=json", &daemon.uri()]) {
        assert!(text.contains("\"start\": 1048576, \"length\": 1048576"), "{text}");
    }
}

#[test]
fn qemu_io_writes_reads_zeroes_discards_and_flushes() {
    let daemon = Daemon::start("qemu", export(), |_| {});
    let script = [
        "write -P 0x11 0 4k",
        "write -f -P 0x22 1M 3M",
        "write -P 0x33 512 512",
        "read -P 0x11 0 512",
        "read -P 0x33 512 512",
        "read -P 0x11 1k 3k",
        "read -P 0x22 1M 3M",
        "write -z 2M 64k",
        "write -z -u 3M 64k",
        "discard 3500k 4k",
        "flush",
        "read -P 0 2M 64k",
        "read -P 0 3M 64k",
        "read -P 0x22 2112k 960k",
        "write -P 0x44 32M 32M",
        "read -P 0x44 32M 32M",
    ];
    let mut args = vec!["-f", "raw"];
    script.iter().for_each(|line| args.extend(["-c", line]));
    let uri = daemon.uri();
    args.push(&uri);
    if let Some(text) = run("qemu-io", &args) {
        assert!(!text.contains("verification failed") && !text.contains("error"), "{text}");
    }
}

#[test]
fn nbdcopy_moves_a_whole_disk_both_ways() {
    let mut source = Daemon::start("from", export(), |memory| {
        memory.pattern();
        memory.disk[8 << 20..24 << 20].fill(0);
        memory.order = crate::nbd_support::engine::Order::Random;
    });
    let target = Daemon::start("to", export(), |_| {});
    if run("nbdcopy", &[&source.uri(), &target.uri()]).is_none() {
        return;
    }
    if let Some(text) = run("qemu-img", &["compare", &source.uri(), &target.uri()]) {
        assert!(text.contains("identical"), "{text}");
    }
    let counters = source.stop();
    assert_eq!(counters.errors, 0);
    assert_eq!(counters.dropped, 0);
    assert!(counters.bytes_read >= (SECTORS * 512) - (16 << 20));
}

#[test]
fn fio_verifies_what_it_wrote_at_depth_32() {
    if !run("fio", &["--enghelp"]).is_some_and(|text| text.contains("nbd")) {
        println!("SKIPPED: fio has no nbd engine");
        return;
    }
    let mut daemon = Daemon::start("fio", export(), |memory| {
        memory.order = crate::nbd_support::engine::Order::Random;
    });
    let uri = format!("--uri={}", daemon.uri());
    // The state of the verification would be left in the working folder.
    let text = run(
        "fio",
        &[
            "--name=verify",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            "--bsrange=512-256k",
            "--blockalign=512",
            "--size=64m",
            "--iodepth=32",
            "--verify=crc32c",
            "--verify_state_save=0",
            "--randseed=7",
        ],
    );
    assert!(text.unwrap().contains("err= 0"));
    assert_eq!(daemon.stop().errors, 0);
}

const PYTHON: &str = r#"
import errno, nbd, sys
def fails(name, f, *args, **kw):
    try: f(*args, **kw)
    except nbd.Error as e: assert e.errnum == getattr(errno, name), (e.errnum, name, args)
    else: assert False, ("should fail", args)
def connect(sr=True):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.set_request_structured_replies(sr)
    h.add_meta_context("base:allocation")
    h.connect_unix(sys.argv[1])
    return h
for sr in (True, False):
    h = connect(sr)
    a, b = bytes(range(256)) * 4096, b"\x5a" * (32 << 20)
    h.pwrite(a, 65536 - 512)
    assert h.pread(len(a), 65536 - 512) == a
    h.pwrite(b, 8 << 20, nbd.CMD_FLAG_FUA)
    assert h.pread(len(b), 8 << 20) == b
    if sr: assert h.pread(65536, 8 << 20, nbd.CMD_FLAG_DF) == b[:65536]
    h.zero(1 << 20, 8 << 20, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FAST_ZERO)
    h.trim(1 << 20, 9 << 20, nbd.CMD_FLAG_FUA)
    assert h.pread(2 << 20, 8 << 20) == bytes(2 << 20)
    h.cache(1 << 20, 0)
    h.flush()
    fails("EINVAL", h.pread, 512, 1) ; fails("EINVAL", h.pread, 100, 0)
    fails("EINVAL", h.pread, 512, h.get_size())
    fails("ENOSPC", h.pwrite, bytes(1024), h.get_size() - 512)
    fails("ENOSPC", h.zero, 1024, h.get_size() - 512)
    fails("EINVAL", h.trim, 1024, h.get_size() - 512)
    fails("EINVAL", h.pread, 33 << 20, 0)
    if sr: fails("EOVERFLOW", h.pread, 65536 + 512, 0, nbd.CMD_FLAG_DF)
    # 64 requests at once, answered in any order
    bufs = [nbd.Buffer(65536) for _ in range(64)]
    cookies = [h.aio_pread(x, 8 * i << 16) for i, x in enumerate(bufs)]
    while h.aio_in_flight(): h.poll(-1)
    for i, c in enumerate(cookies): assert h.aio_command_completed(c)
    assert bytes(bufs[20].to_bytearray()) == h.pread(65536, 160 << 16)
    # flushes cross connections
    g = connect(sr)
    h.pwrite(b"\x77" * 4096, 40960); g.flush(); assert g.pread(4096, 40960) == b"\x77" * 4096
    g.shutdown(); h.shutdown()
print("fine")
"#;

#[test]
fn libnbd_in_python_with_and_without_structured_replies() {
    let daemon = Daemon::start("python", export(), |memory| {
        memory.order = crate::nbd_support::engine::Order::Random;
    });
    let socket = daemon.paths.nbd.display().to_string();
    if run("/usr/bin/python3", &["-c", "import nbd"]).is_none() {
        return;
    }
    let text = run("/usr/bin/python3", &["-c", PYTHON, &socket]).unwrap();
    assert_eq!(text.trim(), "fine");
}
