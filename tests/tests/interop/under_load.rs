//! Pauses, snapshots and crashes while a writer is at work: no acknowledged write is lost.
use tests::both_engines;
use tests::rig::Rig;

use super::writer::{OF_PARENTS, Sectors, Writer, verify};

/// Sectors that are written: 16 MiB.
const SECTORS: u64 = 32 << 10;
/// Acknowledged writes between two events.
const WRITES: u64 = 300;

/// Adds what a later writer wrote. Where nothing of that was acknowledged, what was there before
/// may be there still.
fn merge(all: &mut Sectors, later: Sectors) {
    for (sector, (last, sent)) in later {
        let known = all.entry(sector).or_default();
        match last {
            0 => known.1.extend(sent),
            _ => *known = (last, sent),
        }
    }
}

/// Kills the daemon three times while it writes into `name`; each time it is opened again.
fn killed_while_writing(rig: &Rig, kind: &str, name: &str) {
    let mut all = Sectors::new();
    for round in 0..3 {
        let served = rig.serve(&rig.name(kind, name), &[]);
        verify(&mut served.client(), &all);
        let writer = Writer::start(&served.socket(), SECTORS, 100 + round);
        writer.wait_for(WRITES);
        served.crash();
        // It finds out by itself that the server is gone.
        merge(&mut all, writer.finish());
        if kind == "vhd" {
            rig.vhd_util(&["check", "-n", name, "-i"]).ok();
        }
    }
    let served = rig.serve(&rig.name(kind, name), &[]);
    assert!(verify(&mut served.client(), &all) > WRITES);
    served.destroy();
    if kind == "vhd" {
        rig.vhd_util(&["check", "-n", name]).ok();
    }
    rig.assert_nothing_left();
}

both_engines! {
    /// SM's snapshot: pause, snapshot, unpause with the new leaf; six levels in the end.
    fn snapshots_under_a_writer(rig) {
        rig.vhd_util(&["create", "-n", "0.vhd", "-s", "20"]).ok();
        let served = rig.serve(&rig.name("vhd", "0.vhd"), &[]);
        let writer = Writer::start(&served.socket(), SECTORS, 1);
        for level in 1..=5 {
            writer.wait_for(WRITES);
            served.pause();
            let (parent, leaf) = (format!("{}.vhd", level - 1), format!("{level}.vhd"));
            rig.vhd_util(&["check", "-n", &parent]).ok();
            rig.vhd_util(&["snapshot", "-n", &leaf, "-p", &parent]).ok();
            served.unpause(&["-a", &rig.name("vhd", &leaf)]);
        }
        writer.wait_for(WRITES);
        let written = writer.finish();
        verify(&mut served.client(), &written);
        served.destroy();
        rig.vhd_util(&["check", "-n", "5.vhd", "-p"]).ok();
        rig.vhd_util(&["query", "-n", "5.vhd", "-d"]).ok().says("chain depth: 6");
        let served = rig.serve(&rig.name("vhd", "5.vhd"), &["-R"]);
        assert!(verify(&mut served.client(), &written) > WRITES);
        served.destroy();
        rig.assert_nothing_left();
    }

    /// Pauses that change nothing, one after the other.
    fn pauses_under_a_writer(rig) {
        for (kind, name) in [("vhd", "a.vhd"), ("aio", "a.raw")] {
            rig.vhd_util(&["create", "-n", "a.vhd", "-s", "20"]).ok();
            tests::rig::files::sparse(&rig.path("a.raw"), 20 << 20);
            let served = rig.serve(&rig.name(kind, name), &[]);
            let writer = Writer::start(&served.socket(), SECTORS, 2);
            for _ in 0..10 {
                writer.wait_for(WRITES / 10);
                served.pause();
                served.unpause(&[]);
            }
            let written = writer.finish();
            verify(&mut served.client(), &written);
            served.destroy();
        }
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok();
    }

    fn a_vhd_is_killed_while_writing(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "20"]).ok();
        killed_while_writing(rig, "vhd", "a.vhd");
    }

    fn a_child_is_killed_while_writing(rig) {
        rig.vhd_util(&["create", "-n", "p.vhd", "-s", "20"]).ok();
        let served = rig.serve(&rig.name("vhd", "p.vhd"), &[]);
        served.client().fill(1 << 20, 4 << 20, OF_PARENTS).unwrap();
        served.destroy();
        rig.vhd_util(&["snapshot", "-n", "c.vhd", "-p", "p.vhd"]).ok();
        killed_while_writing(rig, "vhd", "c.vhd");
    }

    fn a_raw_image_is_killed_while_writing(rig) {
        tests::rig::files::sparse(&rig.path("a.raw"), 20 << 20);
        killed_while_writing(rig, "aio", "a.raw");
    }

    /// A close with clients at work: they are hung up, and what they were told is there.
    fn closed_while_writing(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "20"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let writer = Writer::start(&served.socket(), SECTORS, 3);
        writer.wait_for(WRITES);
        served.destroy();
        let written = writer.finish();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &["-R"]);
        verify(&mut served.client(), &written);
        served.destroy();
        rig.assert_nothing_left();
    }
}
