//! `spawn` and `create` with a daemon that is a script.

use crate::common::{Run, Setup, send};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use tap_ctl::messages::{ImageInfo, Message, Request, kind};
use test_support::program;

/// A daemon program that is a script, for which no signal is ignored that the tests' caller
/// ignores.
fn program(setup: &Setup, script: &str) -> String {
    let path = setup.path("tapdisk");
    fs::write(&path, format!("#!/usr/bin/env -S --default-signal sh\n{script}\n")).expect("write");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("chmod");
    path.to_str().expect("UTF-8").to_owned()
}

/// Run with that daemon. Another thread's fork may hold the script open for writing for a moment,
/// which is ETXTBSY (26).
fn run(setup: &Setup, args: &[&str], script: &str) -> Run {
    let program = program(setup, script);
    loop {
        let run = setup.run_env(args, &[("TAPDISK_PROGRAM", &program)]);
        if run.rc != 26 {
            return run;
        }
    }
}

/// A process that a scripted daemon can claim to be; it ends when it is told to.
fn stand_in() -> Child {
    // Whoever runs the tests in the background has SIGINT ignored, and cat would inherit that.
    let mut cat = Command::new("env");
    cat.args(["--default-signal=INT", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
    let cat = cat.spawn().expect("cat");
    let name = format!("/proc/{}/comm", cat.id());
    while fs::read_to_string(&name).expect("it runs") != "cat\n" {
        std::thread::yield_now();
    }
    cat
}

#[test]
fn prints_the_pid_alone() {
    let setup = Setup::new();
    let script = "echo \"$TAPDISK_RUN_DIR/ctl4711\"";
    assert_eq!(run(&setup, &["spawn"], script), Run::ok("4711\n"));
}

#[test]
fn forwards_what_the_daemon_says_before_the_errno() {
    let setup = Setup::new();
    let run = run(
        &setup,
        &["spawn"],
        "echo 'tapdisk: cannot lock 4 MiB; raise RLIMIT_MEMLOCK' >&2; exit 12",
    );
    let expected = "tapdisk: cannot lock 4 MiB; raise RLIMIT_MEMLOCK\nCannot allocate memory\n";
    assert_eq!(run, Run { rc: 12, stdout: String::new(), stderr: expected.into() });
}

#[test]
fn no_path_a_signal_and_no_program() {
    let setup = Setup::new();
    assert_eq!(run(&setup, &["spawn"], "exit 0"), Run::failed(1, "Operation not permitted"));
    assert_eq!(run(&setup, &["spawn"], "kill -KILL $$"), Run::failed(4, "Interrupted system call"));
    let absent = setup.run_env(&["spawn"], &[("TAPDISK_PROGRAM", "/nonexistent")]);
    assert_eq!(absent, Run::failed(2, "No such file or directory"));
}

#[test]
fn create_prints_the_marker() {
    let setup = Setup::new();
    let tapdisk = setup.tapdisk(99, 2, |request, stream| match request {
        Request::Open { .. } => {
            send(stream, &Message::with(kind::OPEN_RSP, 0, &ImageInfo::default()))
        }
        other => send(stream, &Message::new(other.reply_kind(), 0)),
    });
    let run = run(&setup, &["create", "-a", "vhd:/x"], "echo \"$TAPDISK_RUN_DIR/ctl99\"");
    assert_eq!(run, Run::ok(&format!("{}\n", setup.run_dir().marker(0).display())));
    let asked = tapdisk.join().expect("thread");
    assert_eq!(asked.iter().map(Request::kind).collect::<Vec<_>>(), [kind::ATTACH, kind::OPEN]);
}

#[test]
fn create_undoes_everything_when_open_fails() {
    let setup = Setup::new();
    let tapdisk = setup.tapdisk(99, 3, |request, stream| match request {
        Request::Open { .. } => send(stream, &Message::error(0, 2)),
        other => send(stream, &Message::new(other.reply_kind(), 0)),
    });
    let run = run(&setup, &["create", "-a", "vhd:/x"], "echo \"$TAPDISK_RUN_DIR/ctl99\"");
    assert_eq!(run, Run::failed(2, "No such file or directory"));
    assert!(!setup.run_dir().marker(0).exists(), "the minor is free again");
    let asked = tapdisk.join().expect("thread");
    let kinds: Vec<u16> = asked.iter().map(Request::kind).collect();
    assert_eq!(kinds, [kind::ATTACH, kind::OPEN, kind::DETACH]);
}

#[test]
fn create_leaves_no_tapdisk_when_attach_fails() {
    let setup = Setup::new();
    let mut stand_in = stand_in();
    let pid = stand_in.id() as i32;
    let tapdisk = setup.tapdisk(pid, 1, |_, stream| send(stream, &Message::error(0, 1)));
    let run =
        run(&setup, &["create", "-a", "vhd:/x"], &format!("echo \"$TAPDISK_RUN_DIR/ctl{pid}\""));
    assert_eq!(run, Run::failed(22, "Invalid argument"));
    let status = stand_in.wait().expect("ends");
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(2), "SIGINT");
    assert!(!setup.run_dir().marker(0).exists());
    tapdisk.join().expect("thread");
}

#[test]
fn create_frees_the_minor_when_spawn_fails() {
    let setup = Setup::new();
    assert_eq!(run(&setup, &["create", "-a", "vhd:/x"], "exit 12").rc, 12);
    assert!(!setup.run_dir().marker(0).exists());
}

#[test]
fn a_caller_who_ignores_his_children_gets_a_daemon_all_the_same() {
    let setup = Setup::new();
    let program = program(&setup, "echo \"$TAPDISK_RUN_DIR/ctl4711\"");
    let mut caller = Command::new("env");
    caller.arg("--ignore-signal=CHLD").arg(program!("tap-ctl")).arg("spawn");
    let out = caller
        .env("TAPDISK_PROGRAM", program)
        .env("TAPDISK_RUN_DIR", setup.run_dir().path())
        .output()
        .expect("ends");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!((out.status.code(), out.stdout.as_slice()), (Some(0), &b"4711\n"[..]), "{said}");
}
