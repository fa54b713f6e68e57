//! What stands beside the images of a disk: the changed-block log (I29), the local cache (I31),
//! encryption (I18), a mirror and a standby.
use std::fs;

use tests::both_engines;
use tests::rig::nbd::Verb;
use tests::rig::places::{SmallFileSystem, root};
use tests::rig::vhdgen::{Gen, id};
use tests::rig::{MIB, Rig, files};

use super::refused::refused_with;

const KIB: u64 = 1 << 10;

/// A log as `cbt-util create` makes it.
fn log(rig: &Rig, name: &str, disk: u64) {
    let blocks = disk.div_ceil(64 * KIB);
    files::sparse(&rig.path(name), 48 + blocks.div_ceil(8));
    files::poke(&rig.path(name), 40, &disk.to_le_bytes());
}

/// The marked blocks of a log.
fn marked(rig: &Rig, name: &str) -> Vec<usize> {
    let bytes = fs::read(rig.path(name)).unwrap();
    let set = |block: &usize| bytes[48 + block / 8] & 1 << (block % 8) != 0;
    (0..(bytes.len() - 48) * 8).filter(set).collect()
}

fn path(rig: &Rig, name: &str) -> String {
    rig.path(name).display().to_string()
}

/// A full parent, with an empty child.
fn family(rig: &Rig) -> Vec<u8> {
    Gen::new(10 * MIB).id(1).full(0, 0x5a).write(&rig.path("p.vhd"));
    Gen::child(10 * MIB, "p.vhd", id(1)).id(2).write(&rig.path("c.vhd"));
    fs::read(rig.path("p.vhd")).unwrap()
}

fn is_whole(rig: &Rig, name: &str) {
    rig.vhd_util(&["check", "-n", name]).ok();
}

both_engines! {
    /// I29: blocks of 64 KiB that were written, zeroed or discarded; reads set nothing.
    fn changed_blocks_are_marked(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        log(rig, "a.log", 10 * MIB);
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &["-C", &path(rig, "a.log")]);
        let mut disk = served.client();
        disk.fill(0, 512, 1).unwrap();
        disk.fill(655_360, 512, 1).unwrap();
        disk.fill(1_048_064, 1024, 1).unwrap();
        disk.read(4 * MIB, 1 << 20).unwrap();
        assert_eq!(marked(rig, "a.log"), [0, 10, 15, 16]);
        disk.command(Verb::Zero, 0, 64 * KIB * 30 + 512, 512).unwrap();
        disk.command(Verb::Trim, 0, 64 * KIB * 40, 2 * 64 * KIB).unwrap();
        assert_eq!(marked(rig, "a.log"), [0, 10, 15, 16, 30, 40, 41]);
        // Nothing is forgotten when the process dies.
        served.crash();
        assert_eq!(marked(rig, "a.log"), [0, 10, 15, 16, 30, 40, 41]);
        assert_eq!(files::bytes_at(&rig.path("a.log"), 0, 40), [0; 40], "the header is untouched");
    }

    /// operations.md §12.9: the log of a resume replaces the one before; without one nothing is
    /// marked.
    fn a_resume_brings_its_own_log(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        log(rig, "1.log", 10 * MIB);
        log(rig, "2.log", 10 * MIB);
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &["-C", &path(rig, "1.log")]);
        let mut disk = served.client();
        disk.fill(65 * 64 * KIB, 512, 1).unwrap();
        served.pause();
        served.unpause(&["-c", &path(rig, "2.log")]);
        disk.fill(2 * 64 * KIB, 512, 2).unwrap();
        served.pause();
        served.unpause(&[]);
        disk.fill(3 * 64 * KIB, 512, 3).unwrap();
        assert!(served.stats()["images"][0]["driver"]["name"] == "vhd");
        served.destroy();
        assert_eq!((marked(rig, "1.log"), marked(rig, "2.log")), (vec![65], vec![2]));
    }

    /// A log that cannot record the whole disk would lose changes.
    fn a_log_that_does_not_fit_is_refused(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        let image = rig.name("vhd", "a.vhd");
        log(rig, "small.log", 9 * MIB);
        log(rig, "cut.log", 10 * MIB);
        let cut = fs::File::options().write(true).open(rig.path("cut.log")).unwrap();
        cut.set_len(48 + 19).unwrap();
        fs::write(rig.path("stub.log"), [0; 20]).unwrap();
        for (name, errno) in [("small.log", 22), ("cut.log", 22), ("stub.log", 22), ("no.log", 1)] {
            refused_with(rig, &image, &["-C", &path(rig, name)], errno, &[name]);
        }
    }

    /// I31: what is read from the parent is kept in the leaf, and nothing changes for the reader.
    fn what_is_read_from_the_parent_is_kept_in_the_leaf(rig) {
        let parent = family(rig);
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &["-r"]);
        let mut disk = served.client();
        disk.expect(0, 64 * KIB, 0x5a);
        disk.expect(4 * MIB, 64 * KIB, 0);
        disk.expect(0, 64 * KIB, 0x5a);
        served.pause();
        served.unpause(&[]);
        disk.expect(0, 64 * KIB, 0x5a);
        let stats = served.stats();
        assert_eq!(stats["images"][1]["driver"]["name"], "lc");
        assert_eq!(stats["images"][0]["hits"][0], 128, "the leaf has it now: {stats}");
        assert_eq!(stats["images"][2]["hits"][0], 0, "the parent is not asked: {stats}");
        served.destroy();
        rig.vhd_util(&["query", "-n", "c.vhd", "-a"]).ok().says("1");
        assert!(fs::read(rig.path("p.vhd")).unwrap() == parent, "the parent is untouched");
        is_whole(rig, "c.vhd");
    }

    /// What a guest writes stays, whatever is read around it at the same time.
    fn a_write_wins_over_what_is_kept(rig) {
        family(rig);
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &["-r"]);
        let (mut reader, mut writer) = (served.client(), served.client());
        for round in 0..64_u64 {
            let at = round * 16 * KIB;
            let ask = reader.send(Verb::Read, 0, at, 16 << 10, &[]);
            writer.fill(at + 4 * KIB, 4 * KIB, 0x77).unwrap();
            let reply = reader.receive();
            assert_eq!(reply.cookie, ask);
            writer.expect(at + 4 * KIB, 4 * KIB, 0x77);
        }
        served.pause();
        served.unpause(&[]);
        for round in 0..64_u64 {
            let at = round * 16 * KIB;
            writer.expect(at, 4 * KIB, 0x5a);
            writer.expect(at + 4 * KIB, 4 * KIB, 0x77);
            writer.expect(at + 8 * KIB, 8 * KIB, 0x5a);
        }
        served.destroy();
        is_whole(rig, "c.vhd");
    }

    /// Caching stops where the leaf's file system ends; reading goes on.
    fn a_full_local_cache_only_reads(rig) {
        if !root("a small file system for a full local cache") {
            return;
        }
        let _small = SmallFileSystem::mount(&rig.path("m"), 3 * MIB);
        let full = Gen::new(10 * MIB).id(1).full(0, 0x5a).full(1, 0x5b).full(2, 0x5c).full(3, 0x5d);
        full.write(&rig.path("p.vhd"));
        Gen::child(10 * MIB, &path(rig, "p.vhd"), id(1)).id(2).write(&rig.path("m/c.vhd"));
        let served = rig.serve(&rig.name("vhd", "m/c.vhd"), &["-r"]);
        let mut disk = served.client();
        for _ in 0..2 {
            for (block, byte) in [0x5a, 0x5b, 0x5c, 0x5d].into_iter().enumerate() {
                disk.expect(block as u64 * 2 * MIB, 2 * MIB, byte);
            }
        }
        served.destroy();
        is_whole(rig, "m/c.vhd");
    }

    /// I18 and the original's own images: plain text for who has the key, and noise in the file.
    fn an_encrypted_image_with_its_key(rig) {
        for (name, bytes, at, byte) in
            [("encrypted-256", 32, 0, 0x41), ("encrypted-512", 64, 2048 * 512, 0x43)]
        {
            let file = format!("{name}.vhd");
            files::unpack(&format!("{file}.gz"), &rig.path(&file));
            let key: Vec<u8> = (0..bytes).collect();
            let image = rig.name("vhd", &file);
            let served = rig.serve_with_key(&image, &key).expect("the right key");
            let mut disk = served.client();
            disk.expect(at, 512, byte);
            disk.fill(4 * MIB + 512, 96 * KIB, 0x99).unwrap();
            disk.command(Verb::Zero, 0, 4 * MIB + 4096, 8192).unwrap();
            disk.expect(4 * MIB + 512, 3584, 0x99);
            disk.expect(4 * MIB + 4096, 8192, 0);
            disk.expect(4 * MIB + 12288, 84 * KIB + 512, 0x99);
            disk.expect(6 * MIB, MIB, 0);
            // The key is kept over a pause.
            served.pause();
            served.unpause(&[]);
            disk.expect(4 * MIB + 4096, 8192, 0);
            disk.expect(at, 512, byte);
            served.destroy();
            is_whole(rig, &file);
            let raw = fs::read(rig.path(&file)).unwrap();
            let plain = raw.chunks_exact(512).any(|s| s.iter().all(|b| [0x99, byte].contains(b)));
            assert!(!plain, "{name}: plain text in the file");
        }
    }

    /// An image without batmap has the hash of its key in an extended attribute, as the original
    /// keeps it.
    fn the_key_hash_of_the_attribute_counts(rig) {
        Gen::new(10 * MIB).id(1).foreign(b"vpc ").write(&rig.path("old.vhd"));
        let key: Vec<u8> = (0..64).collect();
        fs::write(rig.path("key"), &key).unwrap();
        let hash = rig.vhd_util(&["key", "-C", "-k", "key"]).ok().out;
        rig.vhd_util(&["key", "-s", "-n", "old.vhd", "-H", hash.trim()]).ok();
        let name = rig.name("vhd", "old.vhd");
        refused_with(rig, &name, &[], 22, &["old.vhd", "encrypted"]);
        let refused = rig.serve_with_key(&name, &[7; 64]).map(|_| ());
        assert_eq!(refused.expect_err("another key").code, 126);
        let served = rig.serve_with_key(&name, &key).expect("the right key");
        let mut disk = served.client();
        disk.fill(MIB, 64 * KIB, 0x59).unwrap();
        disk.expect(MIB, 64 * KIB, 0x59);
        served.destroy();
        let read = ["read", "-n", "old.vhd", "-r", "2048", "-k", "key"];
        rig.vhd_util(&read).ok().says(&"Y".repeat(512));
        let raw = fs::read(rig.path("old.vhd")).unwrap();
        let plain = raw.chunks_exact(512).any(|s| s.iter().all(|b| *b == 0x59));
        assert!(!plain, "plain text in the file");
    }

    /// A snapshot of an encrypted disk, and a wrong key, none, or one too many.
    fn keys_that_do_not_fit_are_refused(rig) {
        files::unpack("encrypted-512.vhd.gz", &rig.path("e.vhd"));
        rig.vhd_util(&["create", "-n", "plain.vhd", "-s", "10"]).ok();
        rig.vhd_util(&["snapshot", "-n", "kid.vhd", "-p", "e.vhd"]).ok();
        let right: Vec<u8> = (0..64).collect();
        for (image, key, errno) in
            [("e.vhd", [7; 64], 126), ("kid.vhd", [7; 64], 126), ("plain.vhd", [7; 64], 22)]
        {
            let refused = rig.serve_with_key(&rig.name("vhd", image), &key).map(|_| ());
            assert_eq!(refused.expect_err("a key that does not fit").code, errno, "{image}");
        }
        refused_with(rig, &rig.name("vhd", "kid.vhd"), &[], 22, &["kid.vhd", "encrypted"]);
        let served = rig.serve_with_key(&rig.name("vhd", "kid.vhd"), &right).expect("the right key");
        let mut disk = served.client();
        disk.expect(2048 * 512, 512, 0x43);
        disk.fill(2048 * 512 + 512, 512, 0x44).unwrap();
        disk.expect(2048 * 512, 512, 0x43);
        served.destroy();
        is_whole(rig, "kid.vhd");
        assert!(!rig.log().contains(&"07".repeat(8)), "no key in the log");
    }

    /// Every write goes to both, also after a pause; reads of what only the mirror has come from
    /// there.
    fn a_mirror_gets_every_write(rig) {
        family(rig);
        rig.vhd_util(&["create", "-n", "m.vhd", "-s", "10"]).ok();
        let served = rig.serve(&rig.name("vhd", "c.vhd"), &["-2", &rig.name("vhd", "m.vhd")]);
        let mut disk = served.client();
        disk.fill(3 * MIB, 3 * MIB, 0x61).unwrap();
        disk.command(Verb::Zero, 0, 4 * MIB, 64 * KIB).unwrap();
        disk.flush().unwrap();
        served.pause();
        served.unpause(&[]);
        disk.fill(8 * MIB, 512, 0x62).unwrap();
        disk.expect(0, 2 * MIB, 0x5a);
        disk.expect(4 * MIB, 64 * KIB, 0);
        let stats = served.stats();
        assert_eq!(stats["images"][1]["hits"][1], stats["images"][0]["hits"][1], "{stats}");
        assert_eq!(stats["nbd_mirror_failed"], 0);
        served.pause();
        served.unpause(&["-2", "null"]);
        disk.fill(9 * MIB, 512, 0x63).unwrap();
        served.destroy();
        for name in ["c.vhd", "m.vhd"] {
            is_whole(rig, name);
        }
        let served = rig.serve(&rig.name("vhd", "m.vhd"), &["-R"]);
        let mut mirror = served.client();
        mirror.expect(3 * MIB, MIB, 0x61);
        mirror.expect(4 * MIB, 64 * KIB, 0);
        mirror.expect(4 * MIB + 64 * KIB, 2 * MIB - 64 * KIB, 0x61);
        mirror.expect(8 * MIB, 512, 0x62);
        mirror.expect(9 * MIB, 512, 0);
        served.destroy();
    }

    /// operations.md §12.6.
    fn a_secondary_that_does_not_fit_is_refused(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        rig.vhd_util(&["create", "-n", "b.vhd", "-s", "12"]).ok();
        files::sparse(&rig.path("r.img"), 10 * MIB);
        let image = rig.name("vhd", "a.vhd");
        let (b, raw) = (rig.name("vhd", "b.vhd"), rig.name("aio", "r.img"));
        let gone = rig.name("vhd", "no.vhd");
        refused_with(rig, &image, &["-2", &b], 22, &["b.vhd", "same size"]);
        refused_with(rig, &image, &["-2", &gone], 2, &["no.vhd"]);
        refused_with(rig, &image, &["-2", &raw, "-s"], 22, &["r.img", "take over"]);
        refused_with(rig, &image, &["-2", "nothing"], 22, &["nothing"]);
    }

    /// A mirror that is not there does not keep the disk from being served; statistics tell.
    fn a_remote_mirror_that_is_not_there_is_done_without(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        let remote = format!("nbd:{}", path(rig, "nobody.sock"));
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &["-2", &remote]);
        let mut disk = served.client();
        disk.fill(0, 512, 1).unwrap();
        disk.expect(0, 512, 1);
        assert_eq!(served.stats()["nbd_mirror_failed"], 1);
        served.destroy();
    }

    /// A disk mirrored into another tapdisk, which dies: no write is lost or fails, the statistics
    /// tell.
    fn a_remote_mirror_that_dies_is_left_behind(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        rig.vhd_util(&["create", "-n", "b.vhd", "-s", "10"]).ok();
        let far = rig.serve(&rig.name("vhd", "b.vhd"), &[]);
        let remote = format!("nbd:{}", far.socket().display());
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &["-2", &remote]);
        let mut disk = served.client();
        disk.fill(MIB, 64 * KIB, 0x71).unwrap();
        far.client().expect(MIB, 64 * KIB, 0x71);
        assert_eq!(served.stats()["images"].as_array().unwrap().len(), 2);
        let asked: Vec<u64> = (0..8)
            .map(|i| disk.send(Verb::Write, 0, i * 4096, 4096, &[0x72; 4096]))
            .collect();
        far.crash();
        for _ in &asked {
            assert_eq!(disk.receive().result, Ok(()), "the guest is not disturbed");
        }
        disk.fill(2 * MIB, 512, 0x73).unwrap();
        disk.expect(0, 8 * 4096, 0x72);
        let stats = served.stats();
        assert_eq!(stats["nbd_mirror_failed"], 1, "{stats}");
        assert_eq!(stats["images"].as_array().unwrap().len(), 1, "{stats}");
        // It is not tried again, and the flag stays.
        served.pause();
        served.unpause(&[]);
        assert_eq!(served.stats()["nbd_mirror_failed"], 1);
        served.destroy();
        is_whole(rig, "a.vhd");
    }

    /// A leaf that runs out of space hands over: no write fails, nothing is lost, a file tells
    /// management.
    fn a_standby_takes_over_when_the_leaf_is_full(rig) {
        takes_over(rig, &["-s"]);
    }

    /// operations.md §12.8: so does a mirror.
    fn a_mirror_takes_over_when_the_leaf_is_full(rig) {
        takes_over(rig, &[]);
    }
}

fn takes_over(rig: &Rig, option: &[&str]) {
    if !root("a small file system for a full leaf") {
        return;
    }
    let _small = SmallFileSystem::mount(&rig.path("m"), 5 * MIB);
    let base = Gen::new(20 * MIB).id(1).full(0, 0x5a).full(9, 0x5b);
    base.write(&rig.path("p.vhd"));
    Gen::child(20 * MIB, &path(rig, "p.vhd"), id(1)).id(2).write(&rig.path("m/c.vhd"));
    Gen::child(20 * MIB, "p.vhd", id(1)).id(3).write(&rig.path("s.vhd"));
    let second = rig.name("vhd", "s.vhd");
    let options = [&["-2", second.as_str()], option].concat();
    let served = rig.serve(&rig.name("vhd", "m/c.vhd"), &options);
    let mut disk = served.client();
    for block in 1..9_u64 {
        disk.fill(block * 2 * MIB + 4096, MIB, block as u8).unwrap();
    }
    let check = |disk: &mut tests::rig::nbd::Client| {
        disk.expect(0, 2 * MIB, 0x5a);
        for block in 1..9_u64 {
            disk.expect(block * 2 * MIB, 4096, 0);
            disk.expect(block * 2 * MIB + 4096, MIB, block as u8);
        }
        disk.expect(18 * MIB, 2 * MIB, 0x5b);
    };
    check(&mut disk);
    let stats = served.stats();
    assert!(stats["FIXME_enospc_redirect_count"].as_u64().unwrap() > 0, "{stats}");
    assert!(stats["images"][0]["name"].as_str().unwrap().ends_with("s.vhd"), "{stats}");
    let signal = rig.run_dir().join(format!("tapdisk-enospc{}", served.minor));
    assert!(signal.exists(), "management is told");
    // It stays so over a pause.
    served.pause();
    served.unpause(&[]);
    check(&mut disk);
    disk.fill(2 * MIB, 512, 0x77).unwrap();
    disk.expect(2 * MIB, 512, 0x77);
    served.destroy();
    fs::remove_file(signal).unwrap();
    is_whole(rig, "m/c.vhd");
    is_whole(rig, "s.vhd");
    rig.assert_nothing_left();
}
