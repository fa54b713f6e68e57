//! A tapdisk is killed while it allocates blocks for a guest that forges footers: every time the
//! image is one that `check`, `scan` and qemu accept as it stands, and holds what was acknowledged.
//! `KILLS=n` for long runs, `KILLS_SEED=n` for another course of them.
use std::collections::HashMap;

use tests::both_engines;
use tests::rig::nbd::Verb;
use tests::rig::{MIB, Rig, qemu_img};
use tests::sim::rng::Rng;
use vhd_rs::{DiskType, Footer};

/// New blocks that are asked for in one life, all at once.
const WRITES: u64 = 24;
const BLOCKS: u64 = 1024;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

/// The last 4 KiB of a block: the guest's idea of how its file should end.
fn forged(block: u64, rng: &mut Rng) -> Vec<u8> {
    let kinds = [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing];
    let mut footer =
        Footer::new(kinds[rng.below(3) as usize], MIB * (1 + rng.below(64)), [9; 16], 0);
    footer.data_offset = rng.below(1 << 30) / 512 * 512;
    let mut data = vec![block as u8; 4096 - 512];
    data.extend(footer.encode());
    data
}

/// Nobody finds anything wrong with the image, as it stands.
#[track_caller]
fn is_whole(rig: &Rig) {
    rig.vhd_util(&["check", "-n", "a.vhd"]).ok().says("a.vhd is valid");
    rig.vhd_util(&["query", "-n", "a.vhd", "-v", "-p"]).ok().says("2048\na.vhd has no parent");
    rig.vhd_util(&["scan", "-f", "-m", "a.vhd"]).ok().mentions("vhd=a.vhd capacity=2147483648");
    qemu_img(&rig.work(), &["info", "-f", "vpc", "a.vhd"]).mentions("virtual size: 2 GiB");
}

both_engines! {
    fn killed_while_allocating(rig) {
        let (kills, seed) = (number("KILLS", 8), number("KILLS_SEED", 1));
        let mut rng = Rng::new(seed);
        println!("{kills} kills, seed {seed}");
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "2048"]).ok();
        let mut acknowledged: HashMap<u64, Vec<u8>> = HashMap::new();
        for kill in 0..kills {
            let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
            let mut disk = served.client();
            for (block, data) in acknowledged.drain() {
                let at = (block + 1) * 2 * MIB - 4096;
                assert_eq!(disk.read(at, 4096).unwrap(), data, "kill {kill}");
            }
            if kill * WRITES % BLOCKS + WRITES > BLOCKS {
                // All of it anew, without a file that grows for ever.
                disk.command(Verb::Zero, 0, 0, BLOCKS * 2 * MIB).unwrap();
            }
            let mut sent = HashMap::new();
            for block in (0..WRITES).map(|n| (kill * WRITES + n) % BLOCKS) {
                let data = forged(block, &mut rng);
                let at = (block + 1) * 2 * MIB - 4096;
                sent.insert(disk.send(Verb::Write, 0, at, 4096, &data), (block, data));
            }
            for _ in 0..rng.below(WRITES) {
                let reply = disk.receive();
                assert_eq!(reply.result, Ok(()));
                acknowledged.extend(sent.remove(&reply.cookie));
            }
            served.crash();
            is_whole(rig);
        }
        rig.serve(&rig.name("vhd", "a.vhd"), &[]).destroy();
        is_whole(rig);
        rig.assert_nothing_left();
    }
}
