//! Parents that a daemon opens, and those that it refuses. The same rules for the tools are in the
//! corpus's tests.
use std::fs;

use tests::both_engines;
use tests::rig::vhdgen::{Gen, id};
use tests::rig::{MIB, Rig, run};

use super::refused::refused;

/// The id of a raw parent.
const RAW: [u8; 16] = [0; 16];

/// An image in the directory `in` that names this parent.
fn child(rig: &Rig, parent: &str, of: [u8; 16]) -> String {
    fs::create_dir_all(rig.path("in")).unwrap();
    Gen::child(4 * MIB, parent, of).id(2).write(&rig.path("in/c.vhd"));
    rig.name("vhd", "in/c.vhd")
}

/// A parent of each kind outside of that directory.
fn others(rig: &Rig) -> String {
    fs::create_dir_all(rig.path("else")).unwrap();
    fs::write(rig.path("else/raw.img"), vec![0x77; 4 << 20]).unwrap();
    Gen::new(4 * MIB).id(1).sectors(0, &[(0, 0x31)]).write(&rig.path("else/p.vhd"));
    rig.work().canonicalize().unwrap().join("else").display().to_string()
}

both_engines! {
    /// A stranger's image shows no file of this machine.
    fn a_parent_elsewhere(rig) {
        let home = others(rig);
        for (parent, of) in [
            (format!("{home}/raw.img"), RAW),
            ("../else/raw.img".into(), RAW),
            ("./../in/.././else/raw.img".into(), RAW),
            ("/etc/passwd".into(), RAW),
            (format!("{home}/p.vhd"), id(1)),
        ] {
            let name = child(rig, &parent, of);
            refused(rig, &name, 13, &["c.vhd", "/etc/tapdisk-rs/parents"]);
        }
    }

    /// What the kernel makes up is not even opened.
    fn a_parent_that_is_no_storage(rig) {
        for parent in ["/proc/self/environ", "/proc/1/mem", "/sys/kernel/notes"] {
            let name = child(rig, parent, RAW);
            refused(rig, &name, 13, &["c.vhd", "no file of a file system for data"]);
        }
        for parent in ["/dev/null", "/dev/tty"] {
            let name = child(rig, parent, RAW);
            refused(rig, &name, libc::ENOENT, &["c.vhd", "parent"]);
        }
    }

    /// In the directory above by an id that fits, below by anything.
    fn a_parent_near_by(rig) {
        Gen::new(4 * MIB).id(1).sectors(0, &[(0, 0x31)]).write(&rig.path("p.vhd"));
        let served = rig.serve(&child(rig, "../p.vhd", id(1)), &[]);
        served.client().expect(0, 512, 0x31);
        served.destroy();
        fs::create_dir_all(rig.path("in/deep")).unwrap();
        fs::write(rig.path("in/deep/raw.img"), vec![0x77; 4 << 20]).unwrap();
        let served = rig.serve(&child(rig, "deep/raw.img", RAW), &[]);
        served.client().expect(0, 512, 0x77);
        served.destroy();
    }

    /// The command that the refusal names is enough.
    fn a_parent_that_was_vouched_for(rig) {
        let home = others(rig);
        let name = child(rig, &format!("{home}/raw.img"), RAW);
        refused(rig, &name, 13, &["vhd-util modify"]);
        if !tests::rig::places::root("trusted attributes") {
            return;
        }
        rig.vhd_util(&["modify", "-n", "in/c.vhd", "-p", "else/raw.img", "-m"]).ok();
        let served = rig.serve(&name, &[]);
        served.client().expect(0, 512, 0x77);
        served.destroy();
    }

    /// A child of the container of a disk, which an id of zeros made look raw.
    fn a_container_as_a_raw_parent(rig) {
        let mut nameless = Gen::new(4 * MIB).full(0, 0x11);
        nameless.uuid = RAW;
        fs::create_dir_all(rig.path("in")).unwrap();
        nameless.write(&rig.path("in/n.vhd"));
        let name = child(rig, "n.vhd", RAW);
        refused(rig, &name, 22, &["n.vhd", "all zeros", "vhd-util repair"]);
    }

    /// Bytes behind the last whole sector of a raw parent are nobody's, as for the tools.
    fn a_raw_parent_with_odd_last_bytes(rig) {
        fs::create_dir_all(rig.path("in")).unwrap();
        fs::write(rig.path("in/raw.img"), vec![0x77; (1 << 20) + 700]).unwrap();
        let served = rig.serve(&child(rig, "raw.img", RAW), &[]);
        served.client().expect(MIB, 512, 0x77);
        served.client().expect(MIB + 512, 512, 0);
        served.destroy();
        let mut convert = rig.command(&tests::rig::programs().vhd_util);
        convert.args(["convert", "-O", "raw", "-N", "flat.raw", "-n", "in/c.vhd"]);
        run(&mut convert, b"").ok();
        let flat = fs::read(rig.path("flat.raw")).unwrap();
        assert!(flat[1 << 20..][..512] == [0x77; 512] && flat[(1 << 20) + 512..][..512] == [0; 512]);
    }

    /// A name with a line break is one line of the log and one row of the list.
    fn a_name_that_would_make_lines(rig) {
        let odd = "a\npid=1 minor=0 state=0 args=vhd:x\u{1b}[2J.raw";
        fs::write(rig.path(odd), vec![0; 1 << 20]).unwrap();
        let served = rig.serve(&rig.name("aio", odd), &[]);
        let list = rig.tap_ctl(&["list"]).ok();
        assert!(!list.out.contains("\npid=1") && !list.out.contains('\u{1b}'), "{list:?}");
        served.stats();
        served.destroy();
        assert!(!rig.log().contains("\npid=1") && !rig.log().contains('\u{1b}'));
    }
}
