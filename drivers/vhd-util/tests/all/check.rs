//! `check` as recorded of the original: statistics, parents that are not there, what is no image;
//! and what it says to people.
use crate::common::folder;
use std::os::unix::fs::FileExt;
use test_support::Folder;

const SECTOR: u64 = 512;

/// A chain of three of 16 MiB: the base has block 1 full and two sectors of block 0, the middle one
/// of these and another, the leaf all of block 0 and nothing else.
fn chain() -> Folder {
    let d = folder();
    d.ok("create -n base.vhd -s 16");
    d.ok("snapshot -n mid.vhd -p base.vhd");
    d.ok("snapshot -e -n leaf.vhd -p mid.vhd");
    d.ok("fill -n base.vhd -b -f 0 -t 8191");
    bits(&d, "base.vhd", 0, &[0b1100_0000]);
    d.ok("fill -n mid.vhd -b -f 0 -t 0");
    bits(&d, "mid.vhd", 0, &[0b0100_0000, 0b0000_0001]);
    d.ok("fill -n leaf.vhd -b -f 0 -t 0");
    d
}

/// Gives a block a bitmap that begins with these bytes, and takes its mark out of the batmap.
fn bits(d: &Folder, name: &str, block: u64, first: &[u8]) {
    let (_, out, _) = d.run(&format!("read -n {name} -b {block}"));
    let at: u64 = out.trim_end().rsplit(' ').next().unwrap().parse().unwrap();
    let mut bitmap = vec![0; 512];
    bitmap[..first.len()].copy_from_slice(first);
    d.poke(name, at, &bitmap);
    let file = std::fs::File::open(d.path().join(name)).unwrap();
    let mut lba = [0; 4];
    file.read_exact_at(&mut lba, 1536 + 4 * block).unwrap();
    assert_eq!(u64::from(u32::from_be_bytes(lba)) * SECTOR, at);
}

#[test]
fn statistics_go_from_the_base_up_and_compare_with_what_is_below() {
    let d = chain();
    let home = d.path().display().to_string();
    let wanted = format!(
        "{home}/base.vhd: secs allocated: 0x2000 secs written: 0x1002 (50.02%)\n\
         {home}/mid.vhd: secs allocated: 0x1000 secs written: 0x2 (0.05%) \
         secs not in parent: 0x1 (50.00%) secs not in ancestors: 0x1 (50.00%)\n\
         leaf.vhd: secs allocated: 0x1000 secs written: 0x1000 (100.00%) \
         secs not in parent: 0xffe (99.95%) secs not in ancestors: 0xffd (99.93%)\n"
    );
    assert_eq!(d.ok("check -i -p -s -n leaf.vhd"), wanted);
    let alone = "leaf.vhd: secs allocated: 0x1000 secs written: 0x1000 (100.00%)\n";
    assert_eq!(d.ok("check -i -s -n leaf.vhd"), alone);
    let (code, object) = d.json("check -i -p -s --json -n leaf.vhd");
    assert_eq!((code, &object["images"][2]["written_sectors"]), (0, &4098.into()));
}

#[test]
fn bitmaps_and_statistics_are_looked_at_in_one_run() {
    let d = folder();
    d.ok("create -n b.vhd -s 4");
    d.ok("snapshot -n k.vhd -p b.vhd");
    let home = d.path().display().to_string();
    let none = "secs allocated: 0x0 secs written: 0x0 (0.00%)";
    let below = "secs not in parent: 0x0 (0.00%) secs not in ancestors: 0x0 (0.00%)";
    let wanted = format!("{home}/b.vhd: {none}\nk.vhd: {none} {below}\n");
    assert_eq!(d.ok("check -p -b -s -n k.vhd"), wanted);
    // Above a raw image and a fixed one there is nothing to compare with.
    d.put("raw", &[0; 4096]);
    d.ok("snapshot -n r.vhd -p raw -m");
    assert_eq!(d.ok("check -p -s -n r.vhd"), format!("r.vhd: {none}\n"));
    d.ok("create -n f.vhd -s 2 -r");
    d.ok("snapshot -n fk.vhd -p f.vhd");
    assert_eq!(d.ok("check -p -s -n fk.vhd"), format!("fk.vhd: {none}\n"));
}

#[test]
fn a_parent_that_is_not_there_is_named_as_the_locators_have_it() {
    let d = folder();
    d.ok("create -n p.vhd -s 4");
    d.ok("snapshot -n k.vhd -p p.vhd");
    std::fs::remove_file(d.path().join("p.vhd")).unwrap();
    let (code, out, _) = d.run("check -n k.vhd");
    // The three locators have one path.
    let begin = "error resolving ./p.vhd: -2\ncould not find parent p.vhd\n\
        k.vhd appears invalid; dumping metadata\nVHD Footer Summary:\n";
    assert!(code == 2 && out.starts_with(begin), "{code}: {out}");
}

#[test]
fn what_is_no_image_is_invalid_not_unreadable() {
    let d = folder();
    d.put("empty", b"");
    d.put("text", b"hello\n");
    d.put("stump", &[7; 511]);
    d.put("page", b"<html>404</html>");
    for (name, why) in [
        ("empty", "empty is empty: create the image first"),
        ("text", "text has 6 bytes, too few for a VHD footer"),
        ("stump", "this is not a VHD image"),
        ("page", "page is a web page, not a VHD"),
    ] {
        let (code, out, err) = d.run(&format!("check -n {name}"));
        let begin = "primary footer invalid: invalid cookie\n";
        assert!(code == 22 && out.starts_with(begin), "{name}: {code}: {out}");
        assert!(err.contains(why), "{name}: {err}");
        let (code, out, _) = d.run(&format!("check -i -n {name}"));
        let begin = "backup footer invalid: invalid cookie\n";
        assert!(code == 22 && out.starts_with(begin), "{name}: {code}: {out}");
    }
}

/// What qemu does: it begins its blocks right behind the table, where the batmap lies.
fn spoilt(d: &Folder) {
    d.ok("create -n x.vhd -s 8");
    d.ok("fill -n x.vhd -b");
    let image = d.get("x.vhd");
    let table: Vec<u64> = image[1536..1552]
        .chunks(4)
        .map(|c| u64::from(u32::from_be_bytes(c.try_into().unwrap())))
        .collect();
    let file = std::fs::File::options().write(true).open(d.path().join("x.vhd")).unwrap();
    // Block 0 moves to sector 4; block 2 loses a sector.
    let from = usize::try_from(table[0] * SECTOR).unwrap();
    file.write_all_at(&image[from..from + 512], 2048).unwrap();
    file.write_all_at(&[5; 2 << 20], 2560).unwrap();
    file.write_all_at(&4_u32.to_be_bytes(), 1536).unwrap();
    // Blocks 1 and up stood in the way.
    for (block, byte) in [(1_u64, 6_u8), (2, 7), (3, 8)] {
        let at = (2 << 20) * (block + 1) + 4096 * (block + 1) - 512;
        file.write_all_at(&[0xff; 512], at).unwrap();
        file.write_all_at(&vec![byte; 2 << 20], at + 512).unwrap();
        let lba = u32::try_from(at / SECTOR).unwrap();
        file.write_all_at(&lba.to_be_bytes(), 1536 + 4 * block).unwrap();
    }
    let at = (2_u64 << 20) * 3 + 4096 * 3 - 512;
    file.write_all_at(&[0x7f], at).unwrap();
}

#[test]
fn a_batmap_under_a_block_is_explained_and_repaired() {
    let d = folder();
    spoilt(&d);
    d.run("repair -n x.vhd -b");
    let (_, before, _) = d.bytes("read -n x.vhd -r 0 -c 16384");
    spoilt(&d);
    // Footers are as good as can be, so that the batmap is all that is wrong.
    let (_, out, err) = d.run("check -i -n x.vhd");
    assert!(out.starts_with("batmap is invalid: invalid cookie\n"), "{out}");
    assert!(err.contains("x.vhd: the batmap") && err.contains("vhd-util repair"), "{err}");
    let (code, out, err) = d.run("repair -n x.vhd");
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(err.contains("made anew") && err.contains("marker"), "{err}");
    assert_eq!(d.ok("check -n x.vhd"), "x.vhd is valid\n");
    let marks: Vec<String> = (0..4).map(|n| d.run(&format!("read -n x.vhd -j {n}")).2).collect();
    let wanted: Vec<String> = [1, 1, 0, 1]
        .iter()
        .enumerate()
        .map(|(n, bit)| format!("batmap for block {n}: {bit}\n"))
        .collect();
    assert_eq!(marks, wanted);
    let (code, after, _) = d.bytes("read -n x.vhd -r 0 -c 16384");
    assert!(code == 0 && after == before && after.len() == 8 << 20);
    assert!(after[..2 << 20].iter().all(|b| *b == 5), "the block that moved");
    assert_eq!(d.ok("repair -n x.vhd"), "", "nothing is left to do");
}

/// The real thing: qemu's first block of an image of ours lies upon the batmap.
#[test]
fn what_qemu_wrote_is_there_after_the_repair() {
    let d = folder();
    d.ok("create -n x.vhd -s 64");
    let qemu = |commands: &[&str]| {
        let words = commands.iter().flat_map(|c| ["-c", *c]);
        let mut command = std::process::Command::new("qemu-io");
        command.args(["-f", "vpc"]).args(words).arg("x.vhd").current_dir(d.path());
        let out = match command.output() {
            Ok(out) => out,
            Err(e) => {
                assert!(std::env::var_os("CI").is_none(), "CI must have qemu-io: {e}");
                eprintln!("SKIPPED: qemu-io is not installed");
                return false;
            }
        };
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(out.status.success() && !said.contains("failed"), "{said}");
        true
    };
    if !qemu(&["write -P 7 0 64k", "write -P 8 4M 2M"]) {
        return;
    }
    let (code, out, err) = d.run("check -n x.vhd");
    assert!(code == 22 && out.starts_with("batmap is invalid: invalid cookie\n"), "{code}: {out}");
    assert!(err.contains("vhd-util repair"), "{err}");
    assert_eq!(d.run("repair -n x.vhd").0, 0);
    assert_eq!(d.ok("check -n x.vhd"), "x.vhd is valid\n");
    assert!(qemu(&[
        "read -P 7 0 64k",
        "read -P 0 64k 1984k",
        "read -P 8 4M 2M",
        "read -P 0 6M 58M"
    ]));
}

#[test]
fn a_batmap_whose_sum_is_wrong_keeps_its_marker() {
    let d = folder();
    d.ok("create -n x.vhd -s 8");
    // With marks: the sum of an empty map stands for none, whatever the map holds.
    d.ok("fill -n x.vhd");
    d.ok("set -n x.vhd -f marker -v 7");
    d.poke("x.vhd", 2560, &[0xff]);
    assert_eq!(d.run("check -n x.vhd").0, 22);
    d.ok("repair -n x.vhd");
    assert_eq!(d.ok("check -n x.vhd"), "x.vhd is valid\n");
    assert_eq!(d.ok("query -n x.vhd -m"), "marker: 7\n");
}

#[test]
fn a_disk_without_sectors_is_invalid() {
    let d = folder();
    // An older version, or the original, made one.
    d.ok("create -n x.vhd -s 2");
    let mut image = d.get("x.vhd");
    let end = image.len() - 512;
    for at in [0, end] {
        let footer = &mut image[at..at + 512];
        footer[48..56].fill(0);
        footer[64..68].fill(0);
        footer[56..60].fill(0);
        let sum: u32 = footer.iter().map(|b| u32::from(*b)).sum();
        footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    }
    d.put("x.vhd", &image);
    let (code, said, _) = d.run("check -n x.vhd");
    assert_eq!(code, 22, "{said}");
    assert!(said.starts_with("invalid current size: a disk of 0 bytes\n"), "{said}");
}
