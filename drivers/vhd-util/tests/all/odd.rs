//! Names that lead to neither a file nor a block device: every command ends at once, with a number
//! and a sentence, and what it would have made is not there.
use crate::common::folder;
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};
use test_support::Folder;

/// Each with `X` for the odd name.
const COMMANDS: &[&str] = &[
    "create -n X -s 4",
    "create -n X -s 4 -r",
    "snapshot -n X -p p.vhd",
    "snapshot -n new -p X",
    "snapshot -n new -p X -m",
    "query -n X -v",
    "query -n X -vspfmdaS",
    "set -n X -f hidden -v 1",
    "repair -n X",
    "repair -n X -b",
    "resize -n X -s 20 -f",
    "resize -n p.vhd -s 4000 -j X",
    "revert -n p.vhd -j X",
    "fill -n X",
    "fill -n X -b",
    "coalesce -n X",
    "coalesce -n leaf.vhd --into X",
    "compact -n X",
    "modify -n kid.vhd -p X",
    "modify -n kid.vhd -p X -m",
    "modify -n X -z",
    "check -n X",
    "check -n X -i",
    "check --json -n X",
    "info -n X",
    "map -n X",
    "read -n X -p",
    "read -n X -r 0",
    "scan X",
    "scan -f X",
    "scan -m X",
    "scan -a -p X",
    "key -C -k X",
    "key -s -n p.vhd -k X",
    "key -c -n p.vhd -k X",
    "key -p -n X",
    "copy -n X -N new",
    "copy -n p.vhd -N X",
    "copy -n p.vhd -N new -k X",
    "convert -n X -N new -O raw",
    "convert -n p.vhd -N X -O raw",
    "convert -n p.vhd -N new -O raw -k X",
    "convert -f raw -n X -N new -O vhd",
];

/// How long nothing takes that does not wait for something, with all the patience of a busy
/// machine.
const SECONDS: &str = "60";
/// What `timeout` ends with.
const TOO_LONG: i32 = 124;

/// Exit code and all that was said.
fn run(d: &Folder, line: &str) -> (i32, String) {
    let out = Command::new("timeout")
        .arg(SECONDS)
        .arg(d.program())
        .args(line.split_whitespace())
        .current_dir(d.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.code().unwrap(), String::from_utf8_lossy(&text).into_owned())
}

fn mkfifo(d: &Folder, name: &str) {
    assert!(Command::new("mkfifo").arg(d.path().join(name)).status().unwrap().success());
}

fn chain() -> Folder {
    let d = folder();
    d.ok("create -n p.vhd -s 16");
    d.ok("snapshot -n kid.vhd -p p.vhd");
    d.ok("snapshot -e -n leaf.vhd -p kid.vhd");
    d
}

#[test]
fn no_command_waits_for_what_is_no_file() {
    let d = chain();
    mkfifo(&d, "pipe");
    let _listener = UnixListener::bind(d.path().join("socket")).unwrap();
    std::fs::create_dir(d.path().join("folder")).unwrap();
    std::os::unix::fs::symlink("pipe", d.path().join("link")).unwrap();
    for odd in ["pipe", "link", "socket", "folder", "/dev/null"] {
        for command in COMMANDS {
            let line = command.replace('X', odd);
            let (code, said) = run(&d, &line);
            assert_ne!(code, TOO_LONG, "{line} waits");
            assert!(code != 0 && code < 128, "{line}: {code}: {said}");
            // A tree has the names that links lead to.
            let named = said.contains(odd) || (odd == "link" && said.contains("pipe"));
            assert!(named, "{line}: {said}");
            assert!(!d.path().join("new").exists(), "{line}");
        }
    }
    assert_eq!(d.ok("check -n leaf.vhd -p").lines().count(), 3, "nothing was changed");
}

#[test]
fn a_pipe_as_parent_is_no_parent() {
    let d = chain();
    std::fs::remove_file(d.path().join("kid.vhd")).unwrap();
    mkfifo(&d, "kid.vhd");
    for line in [
        "query -n leaf.vhd -pd",
        "check -n leaf.vhd -p",
        "coalesce -n leaf.vhd",
        "convert -n leaf.vhd -N new -O raw",
        "read -n leaf.vhd -r 0",
        "map -n leaf.vhd",
        "fill -n leaf.vhd",
        "snapshot -n new -p leaf.vhd",
    ] {
        let (code, said) = run(&d, line);
        assert!(code != 0 && code < 124, "{line}: {code}: {said}");
    }
    for line in ["scan -a leaf.vhd", "scan -p leaf.vhd", "scan -f leaf.vhd"] {
        assert_ne!(run(&d, line).0, TOO_LONG, "{line}");
    }
}

#[test]
fn a_key_comes_through_a_pipe_of_the_shell() {
    let d = chain();
    d.put("file", &[7; 32]);
    let tool = d.program().display();
    let line = format!("{tool} key -C -k file && {tool} key -C -k <(cat file)");
    let out = Command::new("bash").args(["-c", &line]).current_dir(d.path()).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let hashes: Vec<&str> = text.lines().collect();
    assert!(hashes.len() == 2 && hashes[0] == hashes[1] && hashes[0].len() == 64, "{text}");
}

#[test]
fn other_formats_under_the_name_of_a_vhd_are_named() {
    let d = folder();
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    let mut vdi = vec![0; 2048];
    vdi[64..68].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
    for (bytes, word) in [
        ([&b"vhdxfile"[..], &[0; 1024]].concat(), "VHDX"),
        ([&b"QFI\xfb\0\0\0\x03"[..], &[0; 1024]].concat(), "qcow2"),
        ([&b"KDMV"[..], &[0; 1024]].concat(), "VMDK"),
        (vdi, "VDI"),
        (b"\x1f\x8b\x08".to_vec(), "gzip"),
        (tar, "tar"),
        (b"<!DOCTYPE html>".to_vec(), "web page"),
    ] {
        d.put("x.vhd", &bytes);
        for command in [
            "query -n x.vhd -v",
            "info -n x.vhd",
            "read -n x.vhd -p",
            "repair -n x.vhd",
            "coalesce -n x.vhd",
            "snapshot -n new -p x.vhd",
            "check -n x.vhd",
            "scan x.vhd",
            "scan -f x.vhd",
            "convert -n x.vhd -N new -O raw",
            "modify -n x.vhd -z",
        ] {
            let (code, said) = run(&d, command);
            assert_eq!(code, 22, "{word}: {command}: {said}");
            assert!(said.contains(word), "{word}: {command}: {said}");
        }
    }
}

#[test]
fn a_header_that_is_right_and_unsupported_is_named() {
    let d = folder();
    d.ok("create -n good.vhd -s 4");
    // Version 2.0; a block of 4 MiB; something behind the header; a locator of an unknown kind.
    let fields: [(usize, &[u8], &str); 4] = [
        (24, &[0, 2, 0, 0], "2.0"),
        (32, &[0, 64, 0, 0], "4194304"),
        (8, &[0; 8], "header data offset"),
        (576, b"ABCD", "0x41424344"),
    ];
    for (at, bytes, word) in fields {
        let mut image = d.get("good.vhd");
        let header = &mut image[512..1536];
        header[at..at + bytes.len()].copy_from_slice(bytes);
        header[36..40].fill(0);
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[36..40].copy_from_slice(&(!sum).to_be_bytes());
        d.put("x.vhd", &image);
        for command in ["query -n x.vhd -v", "read -n x.vhd -p", "info -n x.vhd", "scan -f x.vhd"] {
            let (code, said) = run(&d, command);
            assert_eq!(code, 22, "{command}: {said}");
            assert!(said.contains(word), "{word}: {command}: {said}");
        }
    }
}

#[test]
fn no_way_makes_a_disk_without_sectors() {
    let d = folder();
    d.put("empty.raw", b"");
    for line in [
        "create -n new -s 0",
        "create -n new -s 0 -r",
        "create -n new -s 0 -S 64",
        "snapshot -n new -p empty.raw -m",
        "convert -f raw -n empty.raw -N new -O vhd",
        "convert -f raw -n empty.raw -N new -O fixed",
    ] {
        let (code, said) = run(&d, line);
        assert_eq!(code, 22, "{line}: {said}");
        let without = said.contains("0 bytes") || said.contains("not even one sector");
        assert!(without, "{line}: {said}");
        assert!(!d.path().join("new").exists(), "{line}");
    }
}
