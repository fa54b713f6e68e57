//! Bad input to `open` and `create`: the exit code of the original, one sentence, and nothing left
//! behind.
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use tests::both_engines;
use tests::rig::places::{SmallFileSystem, root};
use tests::rig::vhdgen::Gen;
use tests::rig::{Engine, MIB, Rig, files, programs, run, tool};

use super::refused::{refused, refused_with, strerror};

both_engines! {
    fn what_is_not_there(rig) {
        refused(rig, &rig.name("aio", "none.img"), 2, &["none.img", "No such file"]);
        refused(rig, &rig.name("vhd", "none.vhd"), 2, &["none.vhd", "No such file"]);
        refused(rig, "aio:", 2, &["No such file"]);
        std::os::unix::fs::symlink("nowhere", rig.path("dangling")).unwrap();
        refused(rig, &rig.name("aio", "dangling"), 2, &["dangling"]);
    }

    fn what_is_not_a_disk(rig) {
        std::fs::create_dir(rig.path("d")).unwrap();
        refused(rig, &rig.name("aio", "d"), 21, &["/d", "directory"]);
        refused(rig, &rig.name("vhd", "d"), 21, &["/d", "directory"]);
        let fifo = rig.path("fifo");
        run(Command::new(tool("mkfifo")).arg(&fifo), b"").ok();
        // Opening it would wait for a writer for ever.
        refused_with(rig, &rig.name("aio", "fifo"), &[], 22, &["fifo", "neither"]);
        refused(rig, "aio:/dev/null", 22, &["/dev/null", "neither"]);
        std::fs::write(rig.path("short"), [1; 511]).unwrap();
        refused(rig, &rig.name("aio", "short"), 22, &["short", "511"]);
        std::fs::write(rig.path("empty"), []).unwrap();
        // The original serves 8 GiB of nothing.
        refused(rig, &rig.name("aio", "empty"), 22, &["empty", "0 bytes"]);
        files::sparse(&rig.path("raw.img"), 10 * MIB);
        refused(rig, &rig.name("vhd", "raw.img"), 22, &["raw.img", "footer"]);
    }

    fn what_has_the_wrong_type(rig) {
        files::sparse(&rig.path("a.raw"), MIB);
        refused(rig, &rig.name("bogus", "a.raw"), 2, &["bogus", "unknown"]);
        refused(rig, &rig.name("qcow2", "a.raw"), 22, &["a.raw", "is no qcow2 image"]);
        refused(rig, &rig.path("a.raw").display().to_string(), 22, &["a.raw", "type"]);
        refused(rig, &rig.name("sync", "a.raw"), 38, &["sync"]);
        refused(rig, &rig.name(&"t".repeat(32), "a.raw"), 36, &["ttt"]);
    }

    /// control-socket.md: the field has 256 bytes; 255 are taken, and more are refused before
    /// anything is. A script that sends both outputs to one place gets the original's line and
    /// nothing else.
    fn a_refusal_in_a_script(rig) {
        let create = |more: &str| {
            let mut shell = rig.command(&tool("sh"));
            shell.arg("-c").arg(format!("{} create -a aio:/none {more}", programs().tap_ctl.display()));
            let outcome = run(&mut shell, b"");
            assert_eq!(outcome.code, 2, "{outcome:?}");
            outcome
        };
        assert_eq!(create("2>&1").out, "No such file or directory\n");
        assert!(create("").err.contains("cannot open /none"));
        assert!(create(">/dev/null").err.contains("cannot open /none"));
    }

    fn a_long_path(rig) {
        let name = |length: usize| {
            let base = format!("{}/", rig.work().display());
            format!("aio:{base}{}", "x".repeat(length - 4 - base.len()))
        };
        let at_most = name(255);
        files::sparse(at_most.strip_prefix("aio:").unwrap().as_ref(), MIB);
        let served = rig.serve(&at_most, &[]);
        rig.tap_ctl(&["list"]).ok().mentions(&at_most);
        served.destroy();
        for length in [256, 300] {
            let outcome = rig.try_serve(&name(length), &[]).err().expect("refused");
            assert_eq!(outcome.exits(36).err.trim_end(), strerror(36));
            rig.assert_nothing_left();
        }
    }

    fn a_wrong_pid_or_minor(rig) {
        files::sparse(&rig.path("a.raw"), MIB);
        let image = rig.name("aio", "a.raw");
        let served = rig.serve(&image, &[]);
        let pid = served.pid.to_string();
        let args = |command: &str, pid: &str, minor: &str| -> Vec<String> {
            let mut words = vec![command, "-p", pid, "-m", minor];
            words.extend(["-a", &image].into_iter().filter(|_| command == "open"));
            words.into_iter().map(String::from).collect()
        };
        for command in ["attach", "open", "close", "pause", "unpause", "detach", "stats"] {
            rig.tap_ctl(&args(command, "1", "0")).exits(2);
        }
        for (command, code) in [("attach", 22), ("open", 22), ("close", 19), ("pause", 19),
                                ("unpause", 19), ("detach", 22), ("stats", 19)] {
            let outcome = rig.tap_ctl(&args(command, &pid, "9"));
            assert_eq!(outcome.code, code, "{outcome:?}");
        }
        served.client().expect(0, MIB, 0);
        served.destroy();
        rig.assert_nothing_left();
    }

    /// A file without permission to write is served read-only if asked so, and never silently.
    fn a_file_that_may_not_be_written(rig) {
        if !root("a read-only file system") {
            return;
        }
        let _small = SmallFileSystem::mount(&rig.path("m"), 8 * MIB);
        files::sparse(&rig.path("m/a.raw"), MIB);
        Gen::new(2 * MIB).full(0, 0x5a).write(&rig.path("m/a.vhd"));
        let mut remount = Command::new(tool("mount"));
        run(remount.args(["-o", "remount,ro"]).arg(rig.path("m")), b"").ok();
        for (kind, name) in [("aio", "m/a.raw"), ("vhd", "m/a.vhd")] {
            refused_with(rig, &rig.name(kind, name), &[], 30, &[name, "Read-only"]);
            let served = rig.serve(&rig.name(kind, name), &["-R"]);
            let mut disk = served.client();
            assert_eq!(disk.flags & 2, 2, "read-only is told");
            assert!(disk.fill(0, 512, 1).is_err());
            served.destroy();
        }
    }

    /// A read-only disk refuses every kind of change and goes on.
    fn a_read_only_disk(rig) {
        use tests::rig::nbd::Verb;
        let image = Gen::new(4 * MIB).full(0, 0x5a);
        image.write(&rig.path("a.vhd"));
        let before = std::fs::read(rig.path("a.vhd")).unwrap();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &["-R"]);
        let mut disk = served.client();
        for verb in [Verb::Trim, Verb::Zero] {
            assert!(disk.command(verb, 0, 0, 512).is_err(), "{verb:?}");
        }
        assert_eq!(disk.fill(0, 512, 1), Err(1));
        disk.expect(0, 2 * MIB, 0x5a);
        disk.expect(2 * MIB, 2 * MIB, 0);
        served.pause();
        served.unpause(&[]);
        assert!(disk.fill(0, 512, 1).is_err(), "still read-only after a pause");
        served.destroy();
        assert!(std::fs::read(rig.path("a.vhd")).unwrap() == before);
    }

    /// No space for the sockets and markers.
    fn a_run_directory_without_space(rig) {
        if !root("a small file system for the run directory") {
            return;
        }
        files::sparse(&rig.path("a.raw"), MIB);
        let folder = rig.path("m");
        let _small = SmallFileSystem::mount(&folder, MIB);
        let mut mount = Command::new(tool("mount"));
        run(mount.args(["-o", "remount,nr_inodes=16"]).arg(&folder), b"").ok();
        // Every inode: then nothing can be made.
        let made = (0..1000).take_while(|i| File::create(folder.join(format!("x{i}"))).is_ok());
        assert!(made.count() < 100, "the file system is never full");
        for words in [&["allocate"][..], &["spawn"], &["create", "-a", &rig.name("aio", "a.raw")]] {
            let mut command = rig.command(&programs().tap_ctl);
            let outcome = run(command.env("TAPDISK_RUN_DIR", &folder).args(words), b"");
            assert_eq!(outcome.code, 28, "{outcome:?}");
            assert!(outcome.err.ends_with(&format!("{}\n", strerror(28))), "{outcome:?}");
        }
        let left = std::fs::read_dir(&folder).unwrap().flatten().map(|entry| entry.file_name());
        let left: Vec<_> = left.filter(|name| !name.to_string_lossy().starts_with('x')).collect();
        assert!(left.is_empty(), "{left:?}");
    }

    /// Files of another user, as an ordinary user would see them.
    fn no_permission(rig) {
        if !root("running as another user") {
            return;
        }
        files::sparse(&rig.path("a.raw"), MIB);
        let open = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        open(&rig.path("a.raw"), 0o600);
        let outcome = as_nobody(rig, &rig.name("aio", "a.raw"));
        assert_eq!(outcome.code, 13, "{outcome:?}");
        assert!(outcome.err.ends_with(&format!("{}\n", strerror(13))), "{outcome:?}");
    }

    /// Almost no memory may be locked: served all the same, and said.
    fn little_lockable_memory(rig) {
        if !root("running as another user with a small RLIMIT_MEMLOCK") {
            return;
        }
        files::sparse(&rig.path("a.raw"), MIB);
        let all = std::fs::Permissions::from_mode(0o666);
        std::fs::set_permissions(rig.path("a.raw"), all).unwrap();
        let outcome = as_nobody(rig, &rig.name("aio", "a.raw"));
        assert!(outcome.code == 0 || outcome.code == 12, "{outcome:?}");
        if outcome.code == 12 {
            assert!(outcome.err.contains("memlock") || outcome.err.contains("lock"), "{outcome:?}");
        }
    }
}

/// `tap-ctl create` and, when that works, `destroy`, as a user without rights and with 64 KiB to
/// lock.
fn as_nobody(rig: &Rig, image: &str) -> tests::rig::Outcome {
    // The programs must be where that user can reach them. Copied by a process of its own: a file
    // that this one has open for writing may be open in a child of another test as well, and then
    // it cannot be run (ETXTBSY).
    let bin = rig.path("bin");
    std::fs::create_dir(&bin).unwrap();
    for program in [&programs().tap_ctl, &programs().tapdisk] {
        run(Command::new("cp").arg(program).arg(&bin), b"").ok();
    }
    let home = rig.work().parent().unwrap().to_owned();
    for folder in [&home, &rig.work(), &bin] {
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let run_dir = rig.path("nobody");
    std::fs::create_dir(&run_dir).unwrap();
    std::os::unix::fs::chown(&run_dir, Some(65534), Some(65534)).unwrap();
    let script = "ulimit -l 64; t=$0/tap-ctl; $t create -a \"$1\" || exit
        p=$($t list -m 0 | sed 's/pid=\\([0-9]*\\) .*/\\1/'); exec $t destroy -p $p -m 0";
    let mut shell = rig.command(&tool("setpriv"));
    shell.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", script]);
    shell.arg(&bin).arg(image).env("TAPDISK_RUN_DIR", &run_dir).env("TAPDISK_LOG_DIR", &run_dir);
    run(shell.env("TAPDISK_PROGRAM", bin.join("tapdisk")), b"")
}

/// Somebody at a terminal is told what may have been meant; a script sees what the original prints.
#[test]
fn slips_of_the_finger_are_named_on_a_terminal_alone() {
    let rig = Rig::new(Engine::Uring);
    let seen = rig.tap_ctl_on_terminal(&["craete"]);
    let says = "tap-ctl: there is no command craete; did you mean create?";
    assert!(seen.out.contains(says) || seen.err.contains(says), "{seen:?}");
    let seen = rig.tap_ctl_on_terminal(&["list", "--jsno"]);
    let says = "list: did you mean --json?";
    assert!(seen.out.contains(says) || seen.err.contains(says), "{seen:?}");
    let script = rig.tap_ctl(&["craete"]).ok();
    assert!(
        script.err.is_empty() && script.out.starts_with("usage: tap-ctl COMMAND"),
        "{script:?}"
    );
    let script = rig.tap_ctl(&["list", "--jsno"]).exits(libc::EINVAL);
    assert!(!script.err.contains("did you mean"), "{script:?}");
}
