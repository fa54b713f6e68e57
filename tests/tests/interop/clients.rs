//! Several clients of one disk; what nbdinfo and block status show of a chain.
use std::thread;

use tests::both_engines;
use tests::rig::nbd::{Extent, FUA, HOLE_AND_ZERO};
use tests::rig::vhdgen::{Gen, id};
use tests::rig::{MIB, Rig, nbdinfo, qemu_io};

/// Extents with equal neighbours joined.
fn joined(extents: &[Extent]) -> Vec<(u64, u32)> {
    let mut all: Vec<(u64, u32)> = Vec::new();
    for extent in extents {
        match all.last_mut() {
            Some(last) if last.1 == extent.status => last.0 += extent.bytes,
            _ => all.push((extent.bytes, extent.status)),
        }
    }
    all
}

/// A chain: block 0 from the grandparent, 1 from the parent, 2 from the child, 3 and 4 from nobody.
fn chain(rig: &Rig) {
    Gen::new(10 * MIB).id(1).full(0, 0x30).write(&rig.path("g.vhd"));
    Gen::child(10 * MIB, "g.vhd", id(1)).id(2).full(1, 0x31).write(&rig.path("p.vhd"));
    Gen::child(10 * MIB, "p.vhd", id(2)).id(3).full(2, 0x32).write(&rig.path("c.vhd"));
}

both_engines! {
    /// Each reads what another was told is written: a flush of one covers all.
    fn clients_at_once(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "16"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let threads: Vec<_> = (0..8u8)
            .map(|n| {
                let mut disk = served.client();
                thread::spawn(move || {
                    let base = u64::from(n) * 2 * MIB;
                    for step in 0..64 {
                        disk.fill(base + step * 32768, 32768, n + 1).unwrap();
                        if step % 16 == 0 {
                            disk.flush().unwrap();
                        }
                    }
                    disk
                })
            })
            .collect();
        let mut disks: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        for disk in &mut disks {
            for n in 0..8u8 {
                disk.expect(u64::from(n) * 2 * MIB, 2 * MIB, n + 1);
            }
        }
        let (first, rest) = disks.split_first_mut().unwrap();
        first.write_with(FUA, 4096, &[0x99; 4096]).unwrap();
        rest.iter_mut().for_each(|disk| disk.expect(4096, 4096, 0x99));
        // One that leaves does not disturb the others.
        disks.pop().unwrap().disconnect();
        disks[0].expect(0, 4096, 1);
        // Ours and qemu's at once.
        qemu_io("raw", &served.uri(), &["read -P 0x99 4096 4096", "write -P 0x98 8192 4096"]);
        disks[0].expect(8192, 4096, 0x98);
        served.destroy();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok();
    }

    fn block_status_of_a_chain(rig) {
        chain(rig);
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &[]);
        let mut disk = served.client();
        let status = disk.block_status(0, 10 << 20).unwrap();
        assert_eq!(joined(&status), [(6 * MIB, 0), (4 * MIB, HOLE_AND_ZERO)]);
        // From within an extent, and to the last sector.
        let status = disk.block_status(5 * MIB + 512, 5 << 20).err();
        assert_eq!(status, Some(22), "beyond the end");
        let status = disk.block_status(5 * MIB + 512, (5 << 20) - 512).unwrap();
        assert_eq!(joined(&status), [(MIB - 512, 0), (4 * MIB, HOLE_AND_ZERO)]);
        let status = disk.block_status(10 * MIB - 512, 512).unwrap();
        assert_eq!(joined(&status), [(512, HOLE_AND_ZERO)]);
        disk.fill(7 * MIB, 512, 0x44).unwrap();
        let status = disk.block_status(6 * MIB, 4 << 20).unwrap();
        assert_eq!(joined(&status).iter().map(|part| part.0).sum::<u64>(), 4 * MIB);
        assert!(status.iter().any(|extent| extent.status == 0), "{status:?}");
    }

    fn nbdinfo_sees_the_disk(rig) {
        chain(rig);
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &[]);
        nbdinfo(&["--size"], &served.uri()).says(&(10 * MIB).to_string());
        let map = nbdinfo(&["--map", "--json"], &served.uri());
        let map: serde_json::Value = serde_json::from_str(&map.out).unwrap();
        let extent = |e: &serde_json::Value| Extent {
            bytes: e["length"].as_u64().unwrap(),
            status: u32::try_from(e["type"].as_u64().unwrap()).unwrap(),
        };
        let extents: Vec<Extent> = map.as_array().unwrap().iter().map(extent).collect();
        assert_eq!(joined(&extents), [(6 * MIB, 0), (4 * MIB, HOLE_AND_ZERO)]);
        for ability in ["flush", "fua", "trim", "zero", "fast-zero", "cache", "multi-conn", "df"] {
            nbdinfo(&["--can", ability], &served.uri());
        }
        served.destroy();
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &["-R"]);
        nbdinfo(&["--is", "read-only"], &served.uri());
        served.destroy();
    }
}
