//! Keys of encrypted images: given as a file or on standard input, refused when they do not fit.

use crate::common::folder;
use std::io::Write;
use std::process::Stdio;
use test_support::Folder;

const KEY: [u8; 64] = [0x42; 64];

/// A plain disk with data, an encrypted copy of it, and an encrypted child of that: with the plain
/// disk's bytes.
fn encrypted() -> (Folder, Vec<u8>) {
    let d = folder();
    d.put("key", &KEY);
    d.put("wrong", &[0x43; 64]);
    d.put("short", &[0x42; 31]);
    let mut disk = vec![0; 6 << 20];
    for (sector, bytes) in disk.chunks_mut(512).enumerate().filter(|(s, _)| s % 5 == 0 && *s < 5000)
    {
        bytes.fill((sector % 250 + 1) as u8);
    }
    d.put("disk.raw", &disk);
    d.ok("convert -n disk.raw -f raw -N plain.vhd -O vhd");
    d.ok("copy -n plain.vhd -N secret.vhd -k key");
    d.ok("snapshot -n leaf.vhd -p secret.vhd");
    (d, disk)
}

#[test]
fn read_shows_the_disk_to_who_has_the_key_and_nothing_to_others() {
    let (d, disk) = encrypted();
    for image in ["secret.vhd", "leaf.vhd"] {
        let (code, out, _) = d.bytes(&format!("read -n {image} -r 0 -c 12288 -k key"));
        assert!(code == 0 && out == disk, "{image}");
        let (code, out, _) = d.bytes(&format!("read -n {image} -R 2565 -c 9 -k key"));
        assert_eq!((code, out.as_slice()), (0, &disk[2565..2574]));
        let (code, out, err) = d.bytes(&format!("read -n {image} -r 0 -c 8"));
        assert_eq!((code, out.len()), (22, 0));
        assert!(err.contains("encrypted; its key is needed"), "{err}");
        assert_eq!(d.run(&format!("read -n {image} -r 0 -k wrong")).0, 126);
    }
    assert_eq!(d.run("read -n secret.vhd -r 0 -k short").0, 1);
    assert_eq!(d.run("read -n secret.vhd -r 0 -k nokey").0, 2);
    let (code, _, err) = d.run("read -n plain.vhd -r 0 -k key");
    assert!(code == 22 && err.contains("not encrypted"), "{err}");
    // What needs no data needs no key.
    assert_eq!(d.run("read -n secret.vhd -b 0").0, 0);
}

#[test]
fn a_key_comes_from_standard_input_too() {
    let (d, disk) = encrypted();
    let mut command = d.command("read -n leaf.vhd -r 0 -c 64 -E");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&KEY).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success() && out.stdout == disk[..64 * 512]);
    assert_eq!(d.run("read -n leaf.vhd -r 0 -E -k key").0, 1);
    assert_eq!(d.run("read -n leaf.vhd -r 0 -E").0, 1, "an empty one is no key");
}

#[test]
fn convert_makes_a_plain_image_of_an_encrypted_chain() {
    let (d, disk) = encrypted();
    d.ok("convert -n leaf.vhd -N out.raw -O raw -k key");
    assert!(d.get("out.raw") == disk);
    d.ok("convert -n leaf.vhd -N out.vhd -O vhd -k key");
    assert!(d.bytes("read -n out.vhd -r 0 -c 12288").1 == disk);
    assert_eq!(d.ok("key -p -n out.vhd"), "none\n");
    for (key, errno) in [("", 22), ("-k wrong", 126), ("-k short", 1)] {
        assert_eq!(d.run(&format!("convert -n leaf.vhd -N no.raw -O raw {key}")).0, errno);
        assert!(!d.path().join("no.raw").exists());
    }
}

#[test]
fn fill_encrypts_what_it_brings_in() {
    let (d, disk) = encrypted();
    let keep = d.get("leaf.vhd");
    assert_eq!(d.run("fill -n leaf.vhd").0, 22);
    assert_eq!(d.run("fill -n leaf.vhd -k wrong").0, 126);
    assert!(d.get("leaf.vhd") == keep, "nothing was touched");
    d.ok("fill -n leaf.vhd -k key");
    assert_eq!(d.ok("query -n leaf.vhd -a"), "3\n");
    assert!(d.bytes("read -n leaf.vhd -r 0 -c 12288 -k key").1 == disk);
    // Its own now, and not as the disk shows it.
    let stored = d.bytes("read -n leaf.vhd -d 0").1;
    assert!(stored[..512] != disk[..512] && stored[512..1024] != [0; 512]);
    assert_eq!(d.ok("check -n leaf.vhd"), "leaf.vhd is valid\n");
}

#[test]
fn an_image_without_batmap_has_its_key_hash_in_an_attribute() {
    let d = folder();
    d.put("key", &KEY);
    // As version 1.1 of the tools made them: without a batmap.
    d.ok("create -n old.vhd -s 6");
    let mut old = d.get("old.vhd");
    old[32..36].copy_from_slice(&[0, 1, 0, 1]);
    old[2048..2056].fill(0);
    let end = old.len() - 512;
    for at in [0, end] {
        old[at + 32..at + 36].copy_from_slice(&[0, 1, 0, 1]);
        old[at + 64..at + 68].fill(0);
        let sum: u32 = old[at..at + 512].iter().map(|b| u32::from(*b)).sum();
        old[at + 64..at + 68].copy_from_slice(&(!sum).to_be_bytes());
    }
    d.put("old.vhd", &old);
    assert_eq!(d.json("info -n old.vhd --json").1["batmap"], "absent");
    assert_eq!(d.ok("key -p -n old.vhd"), "none\n");
    let hash = d.ok("key -C -k key");
    let hash = hash.trim();
    d.ok(&format!("key -s -n old.vhd -H {hash}"));
    assert_eq!(d.ok("key -p -n old.vhd"), format!("{} {hash}\n", "00".repeat(32)));
    assert!(d.get("old.vhd") == old, "not a byte of the image changed");
    assert!(d.ok("scan -M old.vhd").contains(&format!("keyhash={hash} ")));
    // And it counts: the data is refused without the key, and a child has the hash in its batmap.
    assert_eq!(d.run("read -n old.vhd -r 0").0, 22);
    assert_eq!(d.ok("read -n old.vhd -r 0 -k key"), "\0".repeat(512));
    d.ok("snapshot -e -n child.vhd -p old.vhd");
    assert!(d.ok("key -p -n child.vhd").contains(hash));
}
