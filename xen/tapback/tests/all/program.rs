//! The program itself: options, the background, signals.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use test_support::{program, until};
use xenstore_fake::Fake;

fn tapback(run: &Path, store: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(program!("tapback"));
    command.env("XENSTORED_PATH", store).env("TAPDISK_RUN_DIR", run).args(words);
    command.output().expect("it can be started")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn without_xen_it_says_so_and_ends() {
    let dir = tempfile::tempdir().expect("a directory");
    for words in [&["-d"][..], &[]] {
        let output = tapback(dir.path(), &dir.path().join("nothing"), words);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(
            said.starts_with("tapback: there is no xenstore here, is this Xen? Tried"),
            "{said}"
        );
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

/// A tapback that waits, after its first words.
fn waiting(run: &Path, store: &Path) -> (std::process::Child, impl BufRead + use<>) {
    let mut command = Command::new(program!("tapback"));
    command.env("XENSTORED_PATH", store).env("TAPDISK_RUN_DIR", run).args(["-d", "--wait"]);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("it can be started");
    let mut words = BufReader::new(child.stderr.take().expect("piped"));
    let mut first = String::new();
    words.read_line(&mut first).expect("readable");
    assert!(first.contains("there is no xenstore here"), "{first}");
    assert!(first.trim_end().ends_with("; waiting for it"), "{first}");
    (child, words)
}

#[test]
fn with_wait_it_serves_when_a_late_xenstore_has_come() {
    let fake = Fake::start();
    let dir = tempfile::tempdir().expect("a directory");
    let store = dir.path().join("store");
    let (mut child, _words) = waiting(dir.path(), &store);
    std::os::unix::fs::symlink(fake.socket(0), &store).expect("a name for it");
    fake.wait_clients("no watch", |usage| usage.watches.len() == 2);
    tap_ctl::sys::terminate(i32::try_from(child.id()).expect("a pid")).expect("our own");
    assert!(child.wait().expect("ended").success());
}

#[test]
fn with_wait_it_ends_when_told_to() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut child, mut words) = waiting(dir.path(), &dir.path().join("nothing"));
    tap_ctl::sys::terminate(i32::try_from(child.id()).expect("a pid")).expect("our own");
    assert!(child.wait().expect("ended").success());
    let mut rest = String::new();
    words.read_to_string(&mut rest).expect("readable");
    assert_eq!(rest, "");
}

#[test]
fn wrong_usage_is_explained() {
    let dir = tempfile::tempdir().expect("a directory");
    let output = tapback(dir.path(), dir.path(), &["--bogus"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("usage: tapback [-d|--debug]"));
    let help = tapback(dir.path(), dir.path(), &["--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("-n, --name NAME"));
}

#[test]
fn it_goes_to_the_background_when_it_serves_and_ends_at_sigterm() {
    let fake = Fake::start();
    let dir = tempfile::tempdir().expect("a directory");
    let pidfile = dir.path().join("tapback.pid");
    let name = pidfile.to_str().expect("text");
    let output = tapback(dir.path(), &fake.socket(0), &["-p", name]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fake.usage().watches, ["@releaseDomain", "backend/vbd3"]);
    let second = tapback(dir.path(), &fake.socket(0), &[]);
    assert_eq!(second.status.code(), Some(1));
    let said = text(&second.stderr);
    assert!(said.contains("another tapback serves vbd3 already"), "{said}");
    let pid: i32 = std::fs::read_to_string(&pidfile).expect("there").trim().parse().expect("a pid");
    tap_ctl::sys::terminate(pid).expect("our own");
    fake.wait_clients("no connection", |usage| usage.connections == 0);
    until("the pid file goes", || !pidfile.exists());
}
