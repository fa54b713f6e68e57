//! Coalesce while the chain is in use, as storage managers do it: an inner image under a running
//! disk, then its children get another parent during a pause; a leaf during a pause.
use tests::both_engines;

use super::writer::{Writer, verify};

/// Sectors that are written: 16 MiB.
const SECTORS: u64 = 32 << 10;
/// Acknowledged writes between two events.
const WRITES: u64 = 300;

both_engines! {
    /// 0 ◄ 1 ◄ 2 ◄ leaf: 2 goes into 1 and 1 into 0 while the leaf is written, and at last the leaf
    /// into 0.
    fn a_chain_coalesces_under_a_writer(rig) {
        rig.vhd_util(&["create", "-n", "0.vhd", "-s", "20"]).ok();
        let served = rig.serve(&rig.name("vhd", "0.vhd"), &[]);
        let writer = Writer::start(&served.socket(), SECTORS, 1);
        for (parent, leaf) in [("0.vhd", "1.vhd"), ("1.vhd", "2.vhd"), ("2.vhd", "leaf.vhd")] {
            writer.wait_for(WRITES);
            served.pause();
            rig.vhd_util(&["snapshot", "-n", leaf, "-p", parent]).ok();
            rig.vhd_util(&["set", "-n", parent, "-f", "hidden", "-v", "1"]).ok();
            served.unpause(&["-a", &rig.name("vhd", leaf)]);
        }
        for (upper, lower) in [("2.vhd", "1.vhd"), ("1.vhd", "0.vhd")] {
            writer.wait_for(WRITES);
            rig.vhd_util(&["coalesce", "--debug", "-n", upper]).ok().mentions("Coalesced ");
            writer.wait_for(WRITES);
            served.pause();
            rig.vhd_util(&["modify", "--debug", "-n", "leaf.vhd", "-p", lower]).ok();
            std::fs::remove_file(rig.path(upper)).expect("it is not needed any more");
            served.unpause(&[]);
        }
        writer.wait_for(WRITES);
        served.pause();
        rig.vhd_util(&["coalesce", "--debug", "-n", "leaf.vhd"]).ok().mentions("Coalesced ");
        rig.vhd_util(&["set", "-n", "0.vhd", "-f", "hidden", "-v", "0"]).ok();
        served.unpause(&["-a", &rig.name("vhd", "0.vhd")]);
        writer.wait_for(WRITES);
        let written = writer.finish();
        assert!(verify(&mut served.client(), &written) > WRITES);
        served.destroy();
        rig.vhd_util(&["check", "-n", "0.vhd"]).ok();
        rig.vhd_util(&["query", "-n", "0.vhd", "-d"]).ok().says("chain depth: 1");
        rig.assert_nothing_left();
    }

    /// A leaf that is being written is left alone, by coalesce and by what moves blocks.
    fn an_image_in_use_is_refused(rig) {
        rig.vhd_util(&["create", "-n", "0.vhd", "-s", "20"]).ok();
        rig.vhd_util(&["snapshot", "-n", "leaf.vhd", "-p", "0.vhd"]).ok();
        let before = std::fs::read(rig.path("0.vhd")).expect("a file");
        let served = rig.serve(&rig.name("vhd", "leaf.vhd"), &[]);
        served.client().fill(0, 1 << 20, 7).expect("a write");
        rig.vhd_util(&["coalesce", "-n", "leaf.vhd"]).exits(16).says("error coalescing: -16");
        rig.vhd_util(&["convert", "-n", "leaf.vhd", "-N", "flat.raw", "-O", "raw"]).exits(16);
        // The parent is only read; but its blocks must stay where the daemon knows them.
        rig.vhd_util(&["compact", "-n", "0.vhd"]).exits(16);
        assert_eq!(std::fs::read(rig.path("0.vhd")).expect("a file"), before);
        served.destroy();
        rig.vhd_util(&["coalesce", "-n", "leaf.vhd"]).ok().says("Coalesced 2048 sectors");
        rig.vhd_util(&["compact", "-n", "0.vhd"]).ok();
    }
}
