//! Recorded runs of the original's tap-ctl (blktap 4.0.8), replayed against ours: exit code,
//! standard output and standard error of every command, and the run directory in between. Every
//! deliberate difference is in a table, with its reason.
//!
//! Of the recording of `create`, what needs `vhd-util key` and a right key is left out: there `read
//! -r` differs, which gives the original's cipher text (docs/compatibility.md);
//! tests/tests/conformance has the rest.
/// What `ls` shows of the run directory: of a daemon with its name, and of minor 0.
macro_rules! run_dir {
    (no minors) => {
        "drwx------ d ./tapdisk\n"
    };
    (a minor) => {
        concat!(run_dir!(no minors), "-rw------- f ./tapdisk/tapdisk-0\n")
    };
    (attached $pid:literal) => {
        concat!(
            concat!("srw------- s ./ctl", $pid, "\n"),
            concat!("srw------- s ./nbdclient", $pid, "\n"),
            run_dir!(a minor)
        )
    };
    (open $pid:literal) => {
        concat!(
            concat!("srw------- s ./ctl", $pid, "\n"),
            concat!("srw------- s ./nbd-old", $pid, ".0\n"),
            concat!("srw------- s ./nbd", $pid, ".0\n"),
            concat!("srw------- s ./nbdclient", $pid, "\n"),
            concat!("srw------- s ./nbdserver-new", $pid, ".0\n"),
            concat!("srw------- s ./nbdserver", $pid, ".0\n"),
            run_dir!(a minor)
        )
    };
}

mod create;
mod lifecycle;

use tests::rig::Rig;

/// The images that the recordings use.
fn images(rig: &Rig) {
    let sizes =
        [("a.raw", 64 << 20), ("b.raw", 64 << 20), ("odd.raw", 1_000_000), ("empty.raw", 0)];
    for (name, size) in sizes {
        tests::rig::files::sparse(&rig.path(name), size);
    }
    // As `cbt-util create -s 67108864` makes it: a header and a bit for each 64 KiB.
    tests::rig::files::sparse(&rig.path("log.cbt"), 48 + 128);
    tests::rig::files::poke(&rig.path("log.cbt"), 40, &(64_u64 << 20).to_ne_bytes());
    rig.vhd_util(&["create", "-n", "d.vhd", "-s", "64"]).ok();
    rig.vhd_util(&["create", "-n", "fx.vhd", "-s", "8", "-r"]).ok();
    rig.vhd_util(&["snapshot", "-n", "c.vhd", "-p", "d.vhd"]).ok();
    rig.vhd_util(&["snapshot", "-n", "rawkid.vhd", "-p", "b.raw", "-m"]).ok();
}
