//! `allocate` and `free` as callers see them (the recorded life cycle, cases 3 to 15).

use crate::common::{Run, Setup};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use tap_ctl::sys::{self, Lock};

#[test]
fn the_recorded_life_cycle() {
    let setup = Setup::new();
    let run = setup.run_dir();
    let marker = |minor| Run::ok(&format!("{}\n", run.marker(minor).display()));
    let absent = Run::failed(2, "No such file or directory");
    assert_eq!(setup.run(&["list"]), Run::ok(""));
    assert_eq!(setup.run(&["free", "-m", "0"]), absent, "before the directory exists");
    assert_eq!(setup.run(&["allocate"]), marker(0));
    assert_eq!(setup.run(&["allocate"]), marker(1));
    assert_eq!(setup.run(&["list"]), Run::ok("minor=0\nminor=1\n"));
    assert_eq!(setup.run(&["free", "-m", "1"]), Run::ok(""));
    assert_eq!(setup.run(&["free", "-m", "1"]), absent, "freed already");
    assert_eq!(setup.run(&["free", "-m", "77"]), absent);
    for none in ["abc", "", " ", "1x", "-"] {
        let refused = setup.run(&["free", "-m", none]);
        assert_eq!(refused.rc, 22, "{none:?} is not minor 0: {refused:?}");
        assert!(refused.stderr.contains("this is no number"), "{refused:?}");
    }
    assert_eq!(setup.run(&["free", "-m", " 0 "]), Run::ok(""));
    assert_eq!(setup.run(&["list"]), Run::ok(""));
    assert_eq!(setup.run(&["allocate", "-d", "name"]), marker(0), "-d is ignored");
}

#[test]
fn modes_are_those_of_the_original() {
    let setup = Setup::new();
    setup.run(&["allocate"]);
    let run = setup.run_dir();
    let mode = |path: &std::path::Path| fs::metadata(path).expect("metadata").mode() & 0o777;
    assert_eq!(mode(run.path()), 0o700);
    assert_eq!(mode(&run.marker_dir()), 0o700);
    assert_eq!(mode(&run.marker(0)), 0o600);
}

#[test]
fn a_minor_in_use_is_eagain() {
    let setup = Setup::new();
    setup.run(&["allocate"]);
    let marker = fs::File::open(setup.run_dir().marker(0)).expect("open");
    sys::flock(&marker, Lock::Try).expect("nobody else");
    let run = setup.run(&["free", "-m", "0"]);
    assert_eq!(run, Run::failed(11, "Resource temporarily unavailable"));
}

#[test]
fn concurrent_allocations_get_different_minors() {
    let setup = Setup::new();
    let mut printed: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| setup.run(&["allocate"]).stdout)).collect();
        threads.into_iter().map(|thread| thread.join().expect("thread")).collect()
    });
    printed.sort_unstable();
    let expected = (0..8).map(|minor| format!("{}\n", setup.run_dir().marker(minor).display()));
    assert_eq!(printed, expected.collect::<Vec<_>>());
}

#[test]
fn strange_names_in_the_directories_are_skipped() {
    let setup = Setup::new();
    setup.run(&["allocate"]);
    let run = setup.run_dir();
    for name in ["tapdisk-", "tapdisk-x", "tapdisk-7x", "other"] {
        fs::write(run.marker_dir().join(name), "").expect("write");
    }
    fs::write(run.path().join("ctl77"), "no socket").expect("write");
    assert_eq!(setup.run(&["list"]), Run::ok("minor=0\n"));
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let setup = Setup::new();
    fs::write(setup.path("run"), "a file").expect("write");
    let run = setup.run(&["allocate"]);
    assert_eq!((run.rc, run.stdout.as_str()), (17, ""), "{}", run.stderr);
    let readable = fs::Permissions::from_mode(0o600);
    fs::set_permissions(setup.path("run"), readable).expect("chmod");
}
