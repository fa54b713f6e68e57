//! Chains: F01, F02, F04, F05, F07, I04, I05, I07, I08, I13, I28; raw parents; the longest chain.
use std::fs;

use tests::both_engines;
use tests::rig::vhdgen::{Gen, id, poke_header};
use tests::rig::{MIB, Rig, files};

use super::refused::refused;

/// Three levels with one sector from each, and where they begin.
fn family(rig: &Rig) -> u64 {
    let all = [(1, 0x31), (2, 0x31), (3, 0x31)];
    Gen::new(10 * MIB).id(1).sectors(1, &all).write(&rig.path("g.vhd"));
    let p = Gen::child(10 * MIB, "g.vhd", id(1)).id(2);
    p.sectors(1, &[(2, 0x32), (3, 0x32)]).write(&rig.path("p.vhd"));
    let c = Gen::child(10 * MIB, "p.vhd", id(2)).id(3);
    c.sectors(1, &[(3, 0x33)]).write(&rig.path("c.vhd"));
    2 * MIB
}

fn keep(rig: &Rig, names: &[&str]) -> Vec<Vec<u8>> {
    names.iter().map(|name| fs::read(rig.path(name)).unwrap()).collect()
}

both_engines! {
    /// I04, F01: each sector comes from the highest level that has it; parents are never written.
    fn sectors_of_three_levels(rig) {
        let at = family(rig);
        let before = keep(rig, &["g.vhd", "p.vhd"]);
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &[]);
        let mut disk = served.client();
        for (sector, byte) in [(0, 0), (1, 0x31), (2, 0x32), (3, 0x33), (4, 0)] {
            disk.expect(at + sector * 512, 512, byte);
        }
        // Zeros are data: they hide the parent.
        disk.fill(at + 512, 512, 0).unwrap();
        disk.expect(at, 1024, 0);
        disk.expect(at + 1024, 512, 0x32);
        served.destroy();
        assert!(before == keep(rig, &["g.vhd", "p.vhd"]));
        let extents = rig.vhd_util(&["read", "-n", "c.vhd", "-e", "0", "-c", "20480"]);
        extents.ok().says("4097 1\n4099 1");
    }

    /// F02.
    fn a_set_bit_over_zeros_hides_the_parent(rig) {
        Gen::new(10 * MIB).id(1).sectors(0, &[(0, 0x31)]).write(&rig.path("p.vhd"));
        Gen::child(10 * MIB, "p.vhd", id(1)).sectors(0, &[(0, 0)]).write(&rig.path("c.vhd"));
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &[]);
        served.client().expect(0, 512, 0);
    }

    /// I05: a request over the parent's end is divided, not failed.
    fn a_child_larger_than_its_parent(rig) {
        Gen::new(4 * MIB).id(1).sectors(1, &[(4095, 0x31)]).write(&rig.path("p.vhd"));
        Gen::child(10 * MIB, "p.vhd", id(1)).write(&rig.path("c.vhd"));
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &[]);
        let mut disk = served.client();
        assert_eq!(disk.size, 10 * MIB);
        let over = disk.read(4 * MIB - 1024, 2048).unwrap();
        assert!(over[..512] == [0; 512] && over[512..1024] == [0x31; 512]);
        assert!(over[1024..] == [0; 1024]);
        disk.expect(4 * MIB, 6 * MIB, 0);
        disk.fill(3 * MIB, 2 * MIB, 9).unwrap();
        disk.expect(3 * MIB, 2 * MIB, 9);
        disk.expect(5 * MIB, 5 * MIB, 0);
        served.destroy();
        rig.vhd_util(&["check", "-n", "c.vhd", "-p"]).ok();
    }

    /// A raw parent that ends in the middle of the child's block.
    fn a_raw_parent_shorter_than_the_child(rig) {
        fs::write(rig.path("raw.img"), vec![0x77; (3 << 20) + 512]).unwrap();
        let snapshot = ["snapshot", "-n", "c.vhd", "-p", "raw.img", "-m"];
        rig.vhd_util(&snapshot).ok();
        let before = keep(rig, &["raw.img"]);
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &[]);
        let mut disk = served.client();
        assert_eq!(disk.size, 3 * MIB + 512);
        disk.expect(0, 3 * MIB + 512, 0x77);
        disk.fill(3 * MIB, 512, 0x78).unwrap();
        disk.expect(3 * MIB, 512, 0x78);
        disk.expect(2 * MIB, MIB, 0x77);
        served.destroy();
        // The parent shrinks: what is missing reads as zeros.
        fs::OpenOptions::new().write(true).open(rig.path("raw.img")).unwrap().set_len(MIB).unwrap();
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &["-R"]);
        served.client().expect(0, MIB, 0x77);
        served.client().expect(MIB, 2 * MIB, 0);
        served.client().expect(3 * MIB, 512, 0x78);
        served.destroy();
        assert!(fs::read(rig.path("raw.img")).unwrap() == before[0][..1 << 20]);
    }

    /// I28: closing one child must not close the parent of the other.
    fn two_children_of_one_parent_in_one_process(rig) {
        Gen::new(10 * MIB).id(1).sectors(0, &[(0, 0x31)]).write(&rig.path("p.vhd"));
        Gen::child(10 * MIB, "p.vhd", id(1)).id(2).write(&rig.path("c.vhd"));
        Gen::child(10 * MIB, "p.vhd", id(1)).id(3).write(&rig.path("d.vhd"));
        let before = keep(rig, &["p.vhd"]);
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &[]);
        let mut first = served.client();
        let pid = served.pid.to_string();
        rig.tap_ctl(&["allocate"]).ok();
        rig.tap_ctl(&["attach", "-p", &pid, "-m", "1"]).ok();
        rig.tap_ctl(&["open", "-p", &pid, "-m", "1", "-a", &rig.name("vhd", "d.vhd")]).ok();
        let socket = rig.run_dir().join(format!("nbd{pid}.1"));
        let mut second = tests::rig::nbd::Client::connect(&socket);
        second.expect(0, 512, 0x31);
        second.fill(0, 512, 0x41).unwrap();
        first.expect(0, 512, 0x31);
        for command in ["close", "detach"] {
            rig.tap_ctl(&[command, "-p", &pid, "-m", "1"]).ok();
        }
        rig.tap_ctl(&["free", "-m", "1"]).ok();
        first.expect(0, 512, 0x31);
        first.fill(512, 512, 0x42).unwrap();
        first.expect(512, 512, 0x42);
        served.destroy();
        assert!(before == keep(rig, &["p.vhd"]));
        rig.assert_nothing_left();
    }

    /// I13 without coalesce: while paused, the middle of the chain is folded into its parent by
    /// hand and the leaf named its grandparent's child. The disk looks the same.
    fn a_chain_made_shorter_under_a_pause(rig) {
        let at = family(rig);
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &[]);
        let mut disk = served.client();
        let before = disk.dump();
        served.pause();
        let merged = [(1, 0x31), (2, 0x32), (3, 0x32)];
        Gen::new(10 * MIB).id(1).sectors(1, &merged).write(&rig.path("g.vhd"));
        let c = Gen::child(10 * MIB, "g.vhd", id(1)).id(3);
        c.sectors(1, &[(3, 0x33)]).write(&rig.path("c.vhd"));
        fs::remove_file(rig.path("p.vhd")).unwrap();
        served.unpause(&[]);
        assert!(disk.dump() == before);
        disk.expect(at + 1024, 512, 0x32);
        assert_eq!(served.stats()["images"].as_array().unwrap().len(), 2);
        served.destroy();
        rig.vhd_util(&["query", "-n", "c.vhd", "-d"]).ok().says("chain depth: 2");
    }

    /// A parent may be larger than its child; what is beyond is not seen.
    fn a_parent_larger_than_its_child(rig) {
        Gen::new(10 * MIB).id(1).full(1, 0x31).full(4, 0x32).write(&rig.path("p.vhd"));
        Gen::child(4 * MIB, "p.vhd", id(1)).id(2).write(&rig.path("c.vhd"));
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &[]);
        let mut disk = served.client();
        assert_eq!(disk.size, 4 * MIB);
        disk.expect(2 * MIB, 2 * MIB, 0x31);
        assert_eq!(disk.read(4 * MIB, 512), Err(22));
    }

    /// Levels may have blocks of different sizes.
    fn blocks_of_different_sizes_in_one_chain(rig) {
        let mut p = Gen::new(10 * MIB).id(1).full(3, 0x31);
        (p.block_bytes, p.creator) = (512 << 10, (*b"win ", 0x000a_0000));
        p.write(&rig.path("p.vhd"));
        Gen::child(10 * MIB, "p.vhd", id(1)).sectors(0, &[(3072, 0x41)]).write(&rig.path("c.vhd"));
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &[]);
        let mut disk = served.client();
        disk.expect(3 * MIB / 2, 512, 0x41);
        disk.expect(3 * MIB / 2 + 512, MIB / 2 - 512, 0x31);
        disk.expect(0, 3 * MIB / 2, 0);
        disk.fill(MIB, MIB, 0x51).unwrap();
        disk.expect(MIB, MIB, 0x51);
    }

    /// drivers.md §5.1: at least 128 images are served.
    fn a_chain_of_128_images(rig) {
        long_chain(rig, 128);
        let served = rig.serve(&rig.name("vhd", "127.vhd"), &[]);
        let mut disk = served.client();
        for level in [0u8, 1, 63, 126, 127] {
            disk.expect(u64::from(level) * 512, 512, level + 1);
        }
        disk.fill(0, 512, 0xaa).unwrap();
        served.pause();
        served.unpause(&[]);
        disk.expect(0, 512, 0xaa);
        disk.expect(512, 512, 2);
        served.destroy();
    }

    /// One more is refused with ELOOP and a sentence that names the image too many.
    fn a_chain_of_129_images(rig) {
        long_chain(rig, 129);
        refused(rig, &rig.name("vhd", "128.vhd"), 40, &["0.vhd", "128"]);
    }

    /// F04, I07.
    fn a_parent_with_another_id(rig) {
        Gen::new(10 * MIB).id(9).write(&rig.path("p.vhd"));
        Gen::child(10 * MIB, "p.vhd", id(1)).full(0, 1).write(&rig.path("c.vhd"));
        refused(rig, &rig.name("vhd", "c.vhd"), 22, &["p.vhd", "c.vhd", "id"]);
    }

    /// I07: also if every sector of the leaf is there.
    fn a_missing_parent(rig) {
        Gen::child(2 * MIB, "p.vhd", id(1)).full(0, 1).write(&rig.path("c.vhd"));
        refused(rig, &rig.name("vhd", "c.vhd"), 2, &["c.vhd", "parent"]);
    }

    /// F05, I08.
    fn parents_in_a_circle(rig) {
        Gen::child(10 * MIB, "b.vhd", id(2)).id(1).write(&rig.path("a.vhd"));
        Gen::child(10 * MIB, "a.vhd", id(1)).id(2).write(&rig.path("b.vhd"));
        refused(rig, &rig.name("vhd", "a.vhd"), 40, &["a.vhd", "ancestor"]);
    }

    /// The same, through names that differ every time.
    fn parents_in_a_circle_of_links(rig) {
        Gen::child(10 * MIB, "l.vhd", id(1)).id(1).write(&rig.path("a.vhd"));
        std::os::unix::fs::symlink("a.vhd", rig.path("l.vhd")).unwrap();
        refused(rig, &rig.name("vhd", "a.vhd"), 40, &["ancestor"]);
        // Another file, but the same disk by its id.
        fs::remove_file(rig.path("l.vhd")).unwrap();
        Gen::new(10 * MIB).id(1).write(&rig.path("l.vhd"));
        refused(rig, &rig.name("vhd", "a.vhd"), 40, &["ancestor"]);
    }

    /// A parent that is broken is named, not its child.
    fn a_broken_parent(rig) {
        Gen::new(10 * MIB).id(1).write(&rig.path("p.vhd"));
        poke_header(&rig.path("p.vhd"), 24, &[0, 2, 0, 0]);
        Gen::child(10 * MIB, "p.vhd", id(1)).write(&rig.path("c.vhd"));
        refused(rig, &rig.name("vhd", "c.vhd"), 22, &["p.vhd", "version"]);
    }

    /// A child whose header says that its parent is raw, and finds a file that is too short to be a
    /// disk.
    fn an_empty_raw_parent(rig) {
        files::sparse(&rig.path("p.raw"), 511);
        let mut c = Gen::child(10 * MIB, "p.raw", [0; 16]);
        c.batmap = false;
        c.write(&rig.path("c.vhd"));
        refused(rig, &rig.name("vhd", "c.vhd"), 22, &["p.raw"]);
    }
}

/// `n` images `0.vhd` … of which each has one sector.
fn long_chain(rig: &Rig, n: u8) {
    for i in 0..n {
        let image = match i {
            0 => Gen::new(2 * MIB),
            _ => Gen::child(2 * MIB, &format!("{}.vhd", i - 1), id(i)),
        };
        image.id(i + 1).sectors(0, &[(u32::from(i), i + 1)]).write(&rig.path(&format!("{i}.vhd")));
    }
}
