//! qcow2 images that qemu made, served: what qemu reads is what a client reads, and what a client
//! writes is there for qemu. Group J of the corpus.
use std::fs;

use tests::both_engines;
use tests::rig::nbd::{Client, Verb};
use tests::rig::{MIB, Rig, qemu_img, qemu_io, qemu_io_fails};

use super::refused::{refused, refused_with};

const SIZE: u64 = 48 * MIB;

/// Raw below packed and plain clusters below a leaf with zeros and holes.
fn family(rig: &Rig, options: &str) {
    let work = rig.work();
    let data: Vec<u8> = (0..SIZE / 4 / 512).flat_map(|s| [s as u8 | 1; 512]).collect();
    fs::write(rig.path("r.raw"), data).unwrap();
    let create = |file: &str, below: &str, format: &str| {
        let words = ["create", "-q", "-f", "qcow2", "-o", options, "-b", below, "-F", format];
        qemu_img(&work, &[&words[..], &[file, "48M"]].concat());
    };
    create("b.qcow2", "r.raw", "raw");
    let base = rig.path("b.qcow2").display().to_string();
    let mut writes = vec!["write -P 34 1M 3M", "write -P 35 20M 100k"];
    if !options.contains("extended") {
        writes.extend(["write -c -P 51 9M 64k", "write -c -P 52 9502720 64k"]);
    }
    qemu_io("qcow2", &base, &writes);
    create("l.qcow2", "b.qcow2", "qcow2");
    let leaf = rig.path("l.qcow2").display().to_string();
    qemu_io("qcow2", &leaf, &["write -P 68 2M 5k", "write -z 3M 64k", "write -P 69 47M 1M"]);
}

/// Writes, zeros and trims, large and small, at depth 1.
fn changes(disk: &mut Client, model: &mut [u8], seed: u64) {
    let mut dice = seed;
    let mut roll = |sides: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) % sides
    };
    for i in 0..150u64 {
        let longest = [8, 40, 900][roll(3) as usize];
        let bytes = 512 * (1 + roll(longest));
        let mut at = roll((SIZE - bytes) / 512) * 512;
        if roll(3) == 0 {
            at = at / 65536 * 65536;
        }
        let part = &mut model[at as usize..][..bytes as usize];
        match roll(8) {
            0 => {
                part.fill(0);
                disk.command(Verb::Zero, 0, at, bytes).unwrap();
            }
            1 => {
                // What it holds then is for the disk to say.
                disk.command(Verb::Trim, 0, at, bytes).unwrap();
                part.copy_from_slice(&disk.read(at, bytes as u32).unwrap());
            }
            _ => {
                part.fill(1 + (i % 255) as u8);
                disk.write(at, part).unwrap();
            }
        }
    }
    disk.flush().unwrap();
}

/// An image that was closed: qemu finds no fault and no leak in it, and reads what it should hold.
#[track_caller]
fn clean(rig: &Rig, name: &str, model: &[u8]) {
    let work = rig.work();
    qemu_img(&work, &["check", "-q", "-f", "qcow2", name]);
    qemu_img(&work, &["convert", "-f", "qcow2", "-O", "raw", name, "found.raw"]);
    assert!(fs::read(rig.path("found.raw")).unwrap() == model, "{name}: what qemu reads");
    let image = fs::read(rig.path(name)).unwrap();
    assert!(image[7] == 2 || image[79] & 1 == 0, "{name}: it is clean");
}

both_engines! {
    fn chains_of_qemu_read_as_qemu_reads_them(rig) {
        for options in ["compat=1.1", "compat=0.10", "extended_l2=on,cluster_size=16k"] {
            family(rig, options);
            let words = ["convert", "-f", "qcow2", "-O", "raw", "l.qcow2", "want.raw"];
            qemu_img(&rig.work(), &words);
            let want = fs::read(rig.path("want.raw")).unwrap();
            let before = fs::read(rig.path("l.qcow2")).unwrap();
            let served = rig.serve(&rig.name("qcow2", "l.qcow2"), &["-R"]);
            let mut disk = served.client();
            assert_eq!(disk.size, SIZE);
            let mut at = 0;
            for piece in want.chunks(300 * 512) {
                let found = disk.read(at, piece.len() as u32).unwrap();
                assert!(found == piece, "{options}: at {at}");
                at += piece.len() as u64;
            }
            // Across a pause, too: everything is opened anew.
            served.pause();
            served.unpause(&[]);
            disk.expect(2 * MIB, 5120, 68);
            assert!(disk.write(0, &[1; 512]).is_err(), "it is read-only");
            served.destroy();
            assert!(before == fs::read(rig.path("l.qcow2")).unwrap(), "nothing was written");
        }
    }

    /// What a user imports: packed by qemu, in clusters of every size; read, and written over.
    fn packed_images_are_read_and_written_over(rig) {
        let data: Vec<u8> = (0..8 * MIB / 512).flat_map(|s| [(s / 3) as u8; 512]).collect();
        fs::write(rig.path("data.raw"), &data).unwrap();
        for size in ["512", "4k", "64k", "512k", "2M"] {
            let (work, options) = (rig.work(), format!("cluster_size={size}"));
            let words = ["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options];
            qemu_img(&work, &[&words[..], &["data.raw", "l.qcow2"]].concat());
            let mut model = data.clone();
            let served = rig.serve(&rig.name("qcow2", "l.qcow2"), &[]);
            let mut disk = served.client();
            assert!(disk.dump() == model, "{size}: as it was packed");
            for i in 0..40u64 {
                let at = (i * 411_648) % (8 * MIB - 65536);
                model[at as usize..][..4096].fill(200 + i as u8);
                disk.write(at, &[200 + i as u8; 4096]).unwrap();
            }
            assert!(disk.dump() == model, "{size}: written over");
            served.destroy();
            clean(rig, "l.qcow2", &model);
        }
    }

    /// Changes of all kinds, over a pause and over a new overlay as a snapshot makes it.
    fn what_a_client_writes_is_there_for_qemu(rig) {
        for options in ["compat=1.1", "compat=0.10", "extended_l2=on,cluster_size=16k"] {
            family(rig, options);
            let work = rig.work();
            qemu_img(&work, &["convert", "-f", "qcow2", "-O", "raw", "l.qcow2", "m.raw"]);
            let mut model = fs::read(rig.path("m.raw")).unwrap();
            let leaf = rig.name("qcow2", "l.qcow2");
            let served = rig.serve(&leaf, &[]);
            changes(&mut served.client(), &mut model, 11);
            served.pause();
            clean(rig, "l.qcow2", &model);
            let below = ["-b", "l.qcow2", "-F", "qcow2", "-o", options, "n.qcow2"];
            qemu_img(&work, &[&["create", "-q", "-f", "qcow2"][..], &below].concat());
            served.unpause(&["-a", &rig.name("qcow2", "n.qcow2")]);
            let base = fs::read(rig.path("l.qcow2")).unwrap();
            let mut disk = served.client();
            changes(&mut disk, &mut model, 12);
            assert!(disk.dump() == model, "{options}: what is read back");
            served.destroy();
            clean(rig, "n.qcow2", &model);
            assert!(base == fs::read(rig.path("l.qcow2")).unwrap(), "a parent is only read");
        }
    }

    /// A tapdisk that was killed leaves what it has acknowledged, and a mark: reading works, and
    /// the next one that writes repairs the counts first.
    fn an_image_that_was_not_closed_is_repaired_by_who_opens_it_next(rig) {
        for options in ["compat=1.1", "extended_l2=on,cluster_size=16k"] {
            family(rig, options);
            let work = rig.work();
            qemu_img(&work, &["convert", "-f", "qcow2", "-O", "raw", "l.qcow2", "m.raw"]);
            let mut model = fs::read(rig.path("m.raw")).unwrap();
            let leaf = rig.name("qcow2", "l.qcow2");
            for seed in 0..4 {
                let served = rig.serve(&leaf, &[]);
                let mut disk = served.client();
                changes(&mut disk, &mut model, seed);
                // On their way when it is killed, where nothing is compared.
                for i in 0..8 {
                    disk.send(Verb::Write, 0, SIZE - MIB + i * 70_656, 65536, &[9; 65536]);
                }
                served.crash();
                let image = fs::read(rig.path("l.qcow2")).unwrap();
                assert_eq!(image[79] & 1, 1, "it is marked");
                let read = rig.serve(&leaf, &["-R"]);
                let found = read.client().dump();
                read.destroy();
                let known = usize::try_from(SIZE - MIB).unwrap();
                assert!(found[..known] == model[..known], "{options}: what was acknowledged");
                assert!(image == fs::read(rig.path("l.qcow2")).unwrap(), "reading repairs nothing");
                model = found;
            }
            rig.serve(&leaf, &[]).destroy();
            clean(rig, "l.qcow2", &model);
        }
    }

    fn what_never_will_be_there_is_refused_by_name(rig) {
        family(rig, "compat=1.1");
        let leaf = rig.name("qcow2", "l.qcow2");
        let work = rig.work();
        qemu_img(&work, &["snapshot", "-c", "one", "l.qcow2"]);
        refused_with(rig, &leaf, &[], libc::EROFS, &["1 internal snapshots", "-R"]);
        qemu_img(&work, &["snapshot", "-d", "one", "l.qcow2"]);
        let image = fs::read(rig.path("l.qcow2")).unwrap();
        let mut corrupt = image.clone();
        corrupt[79] |= 2;
        fs::write(rig.path("l.qcow2"), &corrupt).unwrap();
        refused_with(rig, &leaf, &[], libc::EACCES, &["marked corrupt", "-R"]);
        rig.serve(&leaf, &["-R"]).destroy();
        fs::write(rig.path("l.qcow2"), &image).unwrap();
        let create = |words: &[&str]| qemu_img(&work, &[&["create", "-q"], words].concat());
        create(&["-f", "qcow2", "-o", "compression_type=zstd", "z.qcow2", "1M"]);
        let zstd = rig.name("qcow2", "z.qcow2");
        refused(rig, &zstd, libc::ENOTSUP, &["z.qcow2", "zstd"]);
        create(&["-f", "qcow2", "-o", "data_file=d.raw", "d.qcow2", "1M"]);
        refused(rig, &rig.name("qcow2", "d.qcow2"), libc::ENOTSUP, &["in another file"]);
        let rebase = |name: &str, format: &str| {
            qemu_img(&work, &["rebase", "-u", "-F", format, "-b", name, "l.qcow2"]);
        };
        rebase("json:{\"driver\":\"raw\"}", "raw");
        refused_with(rig, &leaf, &["-R"], libc::ENOTSUP, &["no file or device"]);
        rebase("gone.qcow2", "qcow2");
        refused_with(rig, &leaf, &["-R"], libc::ENOENT, &["gone.qcow2"]);
        rebase("/etc/passwd", "raw");
        refused_with(rig, &leaf, &["-R"], libc::EACCES, &["/etc/passwd"]);
        rebase("l.qcow2", "qcow2");
        refused_with(rig, &leaf, &["-R"], libc::ELOOP, &["l.qcow2"]);
        rebase("b.qcow2", "vpc");
        refused_with(rig, &leaf, &["-R"], libc::ENOTSUP, &["format \"vpc\""]);
    }

    /// QEMU's programs read an image that is served, and do not write it; once it is paused they may.
    fn qemu_reads_an_image_in_use_and_does_not_write_it(rig) {
        family(rig, "compat=1.1");
        let (work, leaf) = (rig.work(), rig.path("l.qcow2").display().to_string());
        let served = rig.serve(&rig.name("qcow2", "l.qcow2"), &[]);
        served.client().write(0, &[9; 512]).unwrap();
        qemu_img(&work, &["info", "--backing-chain", "--output=json", "l.qcow2"]);
        qemu_img(&work, &["map", "--output=json", "l.qcow2"]);
        let (before, io) = (fs::read(&leaf).unwrap(), ["write -P 1 0 64k"]);
        qemu_io_fails("qcow2", &leaf, &io);
        assert!(before == fs::read(&leaf).unwrap(), "nothing was written");
        served.pause();
        qemu_io("qcow2", &leaf, &io);
        served.unpause(&[]);
        served.client().expect(0, 65536, 1);
        served.destroy();
    }

    /// Reserves are taken at open; a disk that needs others is not gone on with, and not lost.
    fn a_disk_that_was_no_qcow2_does_not_become_one(rig) {
        family(rig, "compat=1.1");
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "48"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &["-R"]);
        served.pause();
        let leaf = rig.name("qcow2", "l.qcow2");
        let refused = served.tell("unpause", &["-a", &leaf]);
        let refused = refused.exits(libc::EMEDIUMTYPE);
        assert!(refused.err.contains("open it anew"), "{refused:?}");
        let vhd = rig.name("vhd", "a.vhd");
        served.unpause(&["-a", &vhd]);
        served.client().expect(0, 4096, 0);
        served.destroy();
    }
}
