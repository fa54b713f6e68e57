//! Flush, discard and zero: what is promised is kept, and space is given back.
use tests::both_engines;
use tests::rig::nbd::{FAST_ZERO, FUA, HOLE_AND_ZERO, NO_HOLE, Verb};
use tests::rig::{MIB, Rig, Served, files};

/// A disk of 16 MiB, full of 0x55, with its kind and name.
fn full<'a>(rig: &'a Rig, kind: &str, name: &str) -> Served<'a> {
    match kind {
        "vhd" => drop(rig.vhd_util(&["create", "-n", name, "-s", "16"]).ok()),
        _ => files::sparse(&rig.path(name), 16 * MIB),
    }
    let served = rig.serve(&rig.name(kind, name), &[]);
    served.client().fill(0, 16 * MIB, 0x55).unwrap();
    served.client().flush().unwrap();
    served
}

/// Takes 8 MiB away in one of two ways; the file must get smaller by at least 7.
fn shrinks(rig: &Rig, kind: &str, verb: Verb) {
    let name = format!("{verb:?}.img");
    let served = full(rig, kind, &name);
    let mut disk = served.client();
    let before = files::disk_usage(&rig.path(&name));
    assert!(before >= 16 * MIB);
    disk.command(verb, 0, 4 * MIB, 8 * MIB).unwrap();
    disk.flush().unwrap();
    let after = files::disk_usage(&rig.path(&name));
    assert!(after + 7 * MIB <= before, "{kind} {verb:?}: {before} bytes, then {after}");
    disk.expect(0, 4 * MIB, 0x55);
    disk.expect(4 * MIB, 8 * MIB, 0);
    disk.expect(12 * MIB, 4 * MIB, 0x55);
    let status = disk.block_status(0, 16 << 20).unwrap();
    let holes = status.iter().filter(|e| e.status == HOLE_AND_ZERO).map(|e| e.bytes).sum::<u64>();
    // A raw image may say that all is data (drivers.md §3: the careful answer is fine).
    assert!(holes == 8 * MIB || kind == "aio" && holes == 0, "{kind} {verb:?}: {status:?}");
    // What was given back can be had again.
    disk.fill(5 * MIB, 2 * MIB, 0x66).unwrap();
    disk.expect(4 * MIB, MIB, 0);
    disk.expect(5 * MIB, 2 * MIB, 0x66);
    served.destroy();
    if kind == "vhd" {
        rig.vhd_util(&["check", "-n", &name]).ok();
    }
    let served = rig.serve(&rig.name(kind, &name), &["-R"]);
    served.client().expect(7 * MIB, 5 * MIB, 0);
    served.client().expect(5 * MIB, 2 * MIB, 0x66);
    served.destroy();
}

both_engines! {
    fn discard_gives_space_back(rig) {
        shrinks(rig, "aio", Verb::Trim);
        shrinks(rig, "vhd", Verb::Trim);
    }

    fn zero_gives_space_back(rig) {
        shrinks(rig, "aio", Verb::Zero);
        shrinks(rig, "vhd", Verb::Zero);
    }

    /// With NO_HOLE zeros stay allocated: a later write cannot run out of space.
    fn zero_without_holes_keeps_its_space(rig) {
        for kind in ["aio", "vhd"] {
            let name = format!("{kind}.img");
            let served = full(rig, kind, &name);
            let mut disk = served.client();
            let before = files::disk_usage(&rig.path(&name));
            disk.command(Verb::Zero, NO_HOLE, 4 * MIB, 8 * MIB).unwrap();
            disk.expect(4 * MIB, 8 * MIB, 0);
            disk.expect(12 * MIB, 4 * MIB, 0x55);
            assert!(files::disk_usage(&rig.path(&name)) + MIB / 2 >= before, "{kind}");
            served.destroy();
        }
    }

    /// A part of a block, and parts of sectors' worth of it.
    fn zero_of_parts(rig) {
        let served = full(rig, "vhd", "a.vhd");
        let mut disk = served.client();
        disk.command(Verb::Zero, 0, 512, 512).unwrap();
        disk.command(Verb::Zero, FUA, 2 * MIB - 1024, 2048).unwrap();
        disk.expect(0, 512, 0x55);
        disk.expect(512, 512, 0);
        disk.expect(1024, 2 * MIB - 2048, 0x55);
        disk.expect(2 * MIB - 1024, 2048, 0);
        disk.expect(2 * MIB + 1024, 2 * MIB, 0x55);
        served.destroy();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok();
    }

    /// Zeros in a child hide the parent, and a discard never shows it.
    fn zero_and_discard_over_a_parent(rig) {
        full(rig, "vhd", "p.vhd").destroy();
        rig.vhd_util(&["snapshot", "-n", "c.vhd", "-p", "p.vhd"]).ok();
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &[]);
        let mut disk = served.client();
        disk.command(Verb::Zero, 0, 2 * MIB, 4 * MIB).unwrap();
        disk.command(Verb::Zero, 0, 7 * MIB + 512, 512).unwrap();
        disk.fill(8 * MIB, 2 * MIB, 0x66).unwrap();
        disk.command(Verb::Trim, 0, 8 * MIB, 2 * MIB).unwrap();
        disk.expect(0, 2 * MIB, 0x55);
        disk.expect(2 * MIB, 4 * MIB, 0);
        disk.expect(7 * MIB, 512, 0x55);
        disk.expect(7 * MIB + 512, 512, 0);
        let trimmed = disk.read(8 * MIB, 2 << 20).unwrap();
        assert!(trimmed.iter().all(|byte| [0, 0x66].contains(byte)), "the parent shines through");
        served.destroy();
        rig.vhd_util(&["check", "-n", "c.vhd", "-p"]).ok();
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &["-R"]);
        served.client().expect(2 * MIB, 4 * MIB, 0);
        assert!(served.client().read(8 * MIB, 2 << 20).unwrap() == trimmed);
    }

    /// FLUSH, FUA on everything that takes it, CACHE, FAST_ZERO: they succeed.
    fn flush_and_fua(rig) {
        for kind in ["aio", "vhd"] {
            let served = full(rig, kind, &format!("{kind}.img"));
            let mut disk = served.client();
            // FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO are offered.
            for bit in [2, 3, 5, 6, 8, 10, 11] {
                assert!(disk.flags & 1 << bit != 0, "{kind}: flag {bit} of {:#x}", disk.flags);
            }
            disk.write_with(FUA, 512, &[0x11; 512]).unwrap();
            disk.command(Verb::Trim, FUA, 2 * MIB, 2 * MIB).unwrap();
            disk.command(Verb::Zero, FUA, 4 * MIB, 2 * MIB).unwrap();
            disk.command(Verb::Cache, 0, 0, 4 * MIB).unwrap();
            // Either it is fast, or it says so with ENOTSUP.
            let fast = disk.command(Verb::Zero, FAST_ZERO, 6 * MIB, 2 * MIB);
            assert!(matches!(fast, Ok(()) | Err(95)), "{fast:?}");
            disk.flush().unwrap();
            disk.expect(512, 512, 0x11);
            assert!(served.stats()["perf"]["ops"]["flush"].as_u64().unwrap() >= 1);
            served.destroy();
        }
    }

    /// Discards of blocks that were never there neither fail nor make any.
    fn discard_of_nothing(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "16"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        for verb in [Verb::Trim, Verb::Zero] {
            disk.command(verb, 0, 0, 16 * MIB).unwrap();
            disk.command(verb, 0, 512, 512).unwrap();
        }
        disk.expect(0, 16 * MIB, 0);
        served.destroy();
        rig.vhd_util(&["query", "-n", "a.vhd", "-a"]).ok().says("0");
    }
}
