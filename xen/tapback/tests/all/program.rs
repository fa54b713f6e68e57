//! The program itself: options, the background, signals.

use std::path::Path;
use std::process::{Command, Output};
use xenstore_fake::Fake;

fn tapback(run: &Path, store: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tapback"));
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
    let end = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while pidfile.exists() {
        assert!(std::time::Instant::now() < end, "the pid file stays");
        std::thread::yield_now();
    }
}
