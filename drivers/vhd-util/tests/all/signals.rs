//! What ends a command in the middle: signals, and a limit for the size of files. It is said, what
//! was new and not whole is taken away, and what was there loses nothing.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ExitStatus, Stdio};

use crate::common::folder;
use image::blocking::Writer;
use test_support::Folder;
use vhd_rs::driver::Vhd;
use vhd_rs::{OpenOptions, lock, open};

const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;
const EFBIG: i32 = 27;

/// The command in a shell that has set something up: a limit, an ignored signal, a umask; and has
/// nothing ignored that the tests' caller ignores.
fn under(d: &Folder, set_up: &str, line: &str) -> std::process::Command {
    let mut shell = std::process::Command::new("env");
    let command = d.command(line);
    shell.args(["--default-signal", "sh", "-c", &format!("{set_up}; exec \"$0\" \"$@\"")]);
    shell.arg(command.get_program()).args(command.get_args()).current_dir(d.path());
    shell
}

/// A base of 8 MiB, a leaf over it that has every second sector anew, an empty top, and all that
/// they show.
fn family(d: &Folder) -> Vec<u8> {
    let old: Vec<u8> = (0..8 << 20).map(|i: u32| (i >> 9) as u8).collect();
    d.put("base.raw", &old);
    d.ok("convert -n base.raw -f raw -N base.vhd -O vhd");
    d.ok("convert -n base.raw -f raw -N full.vhd -O vhd");
    d.ok("snapshot -n leaf.vhd -p base.vhd");
    let name = d.path().join("leaf.vhd");
    let file = lock::open_to_change(&name, lock::Others::Refuse).unwrap();
    let for_io = OpenOptions { for_io: true, ..OpenOptions::default() };
    let mut leaf = Vhd::new(open(&file, &name, &for_io).unwrap());
    let mut writer = Writer::new(&mut leaf, &file).unwrap();
    let mut all = old;
    for at in (0..16384).step_by(2) {
        let sector = &mut all[at * 512..][..512];
        sector.fill(0xa5 ^ (at >> 1) as u8);
        writer.write(at as u64, sector).unwrap();
    }
    writer.close().unwrap();
    // With its lock: what is being written has no snapshots.
    drop(file);
    d.ok("snapshot -n top.vhd -p leaf.vhd");
    all
}

/// A slow command whose first line of progress has come.
fn begun(d: &Folder, set_up: &str, line: &str) -> (Child, BufReader<impl Read + use<>>) {
    let mut command = under(d, set_up, &format!("{line} --progress=json --rate 4M"));
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut first = String::new();
    said.read_line(&mut first).unwrap();
    assert!(first.starts_with('{'), "{first}");
    (child, said)
}

fn send(child: &Child, signal: &str) {
    let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status();
    assert!(sent.unwrap().success());
}

/// How a command that a signal was sent to ended, and its last line.
fn ended(d: &Folder, set_up: &str, line: &str, signal: &str) -> (ExitStatus, String) {
    let (mut child, said) = begun(d, set_up, line);
    send(&child, signal);
    let last = said.lines().last().unwrap().unwrap();
    (child.wait().unwrap(), last)
}

#[test]
fn a_new_image_that_a_signal_ends_is_taken_away_and_that_is_said() {
    let d = folder();
    family(&d);
    let before = d.get("base.vhd");
    for (signal, number) in [("-TERM", SIGTERM), ("-INT", SIGINT), ("-HUP", 1)] {
        for format in ["raw", "fixed", "vhd"] {
            let line = format!("convert -n base.vhd -N new -O {format}");
            let (status, said) = ended(&d, ":", &line, signal);
            assert_eq!(status.signal(), Some(number), "{said}");
            let name = &signal[1..];
            let begins = format!("vhd-util convert: ended by SIG{name}: the old images are as");
            assert!(said.starts_with(&begins) && said.ends_with("new was not whole: removed"));
            assert!(!d.path().join("new").exists(), "{format}");
        }
    }
    assert_eq!(d.get("base.vhd"), before);
}

#[test]
fn a_coalesce_that_a_signal_ends_says_what_to_do_and_doing_it_helps() {
    let d = folder();
    let want = family(&d);
    for signal in ["-TERM", "-INT"] {
        let (status, said) = ended(&d, ":", "coalesce -n leaf.vhd", signal);
        assert!(status.signal().is_some(), "{said}");
        assert!(said.contains("no data is lost; run the same command again"), "{said}");
        assert_eq!(d.run("convert -n leaf.vhd -N now.raw -O raw").0, 0);
        assert!(d.get("now.raw") == want, "the leaf shows what it did");
        std::fs::remove_file(d.path().join("now.raw")).unwrap();
    }
    d.ok("coalesce -n leaf.vhd");
    d.ok("check -n base.vhd");
    d.ok("convert -n base.vhd -N all.raw -O raw");
    assert!(d.get("all.raw") == want);
}

#[test]
fn a_signal_that_the_caller_ignores_ends_nothing() {
    let d = folder();
    family(&d);
    let set_up = "trap '' INT HUP";
    let (mut child, said) = begun(&d, set_up, "convert -n base.vhd -N new.raw -O raw");
    send(&child, "-INT");
    send(&child, "-HUP");
    assert!(said.lines().all(|line| line.unwrap().starts_with('{')));
    assert!(child.wait().unwrap().success());
    assert!(d.get("new.raw") == d.get("base.raw"));
}

#[test]
fn a_limit_for_files_is_an_error_and_leaves_nothing_half() {
    let d = folder();
    let want = family(&d);
    // 1 MiB in units of 512 bytes.
    let limited = |line: &str| under(&d, "ulimit -f 2048", line).output().unwrap();
    let new = [
        "convert -n leaf.vhd -N new -O fixed",
        "convert -n leaf.vhd -N new -O vhd",
        "convert -n leaf.vhd -N new -O raw",
        "copy -n full.vhd -N new",
        "create -n new -s 8 -r",
    ];
    for line in new {
        let out = limited(line);
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(EFBIG), "{line}: {said}");
        assert!(said.contains("File too large") || said.contains("-27"), "{line}: {said}");
        assert!(!d.path().join("new").exists(), "{line}");
    }
    // What is there already.
    for line in ["fill -n top.vhd", "resize -n full.vhd -s 8000 -j journal"] {
        let out = limited(line);
        assert_eq!(out.status.code(), Some(EFBIG), "{line}: {:?}", out.stderr.escape_ascii());
    }
    d.ok("convert -n top.vhd -N now.raw -O raw");
    assert!(d.get("now.raw") == want);
    d.ok("convert -n full.vhd -N full.raw -O raw");
    assert!(d.get("full.raw") == d.get("base.raw"));
}

#[test]
fn nothing_is_for_everybody_to_write() {
    let d = folder();
    d.put("a.raw", &[1; 4096]);
    for (umask, mode) in [("0", 0o644), ("077", 0o600)] {
        for line in [
            "create -n new -s 4",
            "create -n new -s 4 -r",
            "convert -n a.raw -f raw -N new -O raw",
            "convert -n a.raw -f raw -N new -O vhd",
        ] {
            let out = under(&d, &format!("umask {umask}"), line).output().unwrap();
            assert!(out.status.success(), "{line}: {:?}", out.stderr.escape_ascii());
            let path = d.path().join("new");
            let is = std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            assert_eq!(is, mode, "umask {umask}: {line}");
            std::fs::remove_file(path).unwrap();
        }
    }
}
