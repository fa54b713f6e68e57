//! The rules of the house that a machine can check: where `unsafe` may be, who may depend on whom,
//! what the data path may know; where links and citations lead (`house/docs.rs`).
#[path = "house/docs.rs"]
mod docs;
#[path = "house/law.rs"]
mod law;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files that may contain unsafe code (ARCHITECTURE.md, "Where things are").
const UNSAFE: &[&str] = &[
    "drivers/cbt/src/map.rs",
    "drivers/cli/src/process.rs",
    "drivers/vhd-rs/src/secret.rs",
    "tap-ctl/src/sys.rs",
    "tapdisk/src/pool.rs",
    "tapdisk/src/process",
    "tapdisk/src/sealed.rs",
    "tapdisk/src/signals.rs",
    "tapdisk/src/sys.rs",
    "tapdisk/src/disk/",
    // Of the tests, an entry of a ring.
    "tapdisk/src/uring_bounds/tests.rs",
    "tapdisk/src/socket.rs",
    "tapdisk/src/transport/blkif/memory.rs",
    "tapdisk/src/transport/nbd/sys.rs",
    "xen/tapback/src/sys.rs",
    "tapdisk/src/transport/ublk/sys.rs",
    "tapdisk/src/transport/blktap/sys.rs",
    "xen/xen/src/devices.rs",
    // The unsafe trait that names the caller's memory, and its implementation in tests.
    "xen/xen/src/lib.rs",
    "xen/xen/src/fake/mod.rs",
];

/// What each crate may depend on inside the workspace.
const EDGES: &[(&str, &[&str])] = &[
    ("cbt", &["image", "show"]),
    ("cbt-util", &["cbt", "cli", "show"]),
    ("cli", &["show"]),
    ("image", &[]),
    ("raw", &["image"]),
    ("show", &[]),
    ("td-util", &["cli", "image", "show", "vhd-rs"]),
    ("vhd-rs", &["image", "show"]),
    ("vhd-util", &["cli", "image", "show", "vhd-rs"]),
    ("tap-ctl", &["show"]),
    ("tapdisk", &["cbt", "image", "raw", "show", "tap-ctl", "vhd-rs", "xen"]),
    (
        "tests",
        &["cbt", "image", "raw", "tap-ctl", "tapdisk", "vhd-rs", "xen", "xen-sys", "xenstore-rs"],
    ),
    ("xen", &["xen-sys"]),
    ("xen-sys", &[]),
    ("tapback", &["cli", "show", "tap-ctl", "xenstore-rs"]),
    ("xenstore-fake", &["xenstore-rs"]),
    ("xenstore-rs", &[]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").to_path_buf()
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a readable folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Lines of code of a file, without comments.
fn code(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).expect("a source file");
    text.lines().map(|l| l.split("//").next().unwrap_or("").to_string()).collect()
}

fn crates() -> BTreeMap<String, PathBuf> {
    let dirs = [
        "drivers/cbt",
        "drivers/cbt-util",
        "drivers/cli",
        "drivers/image",
        "drivers/raw",
        "drivers/show",
        "drivers/td-util",
        "drivers/vhd-rs",
        "drivers/vhd-util",
        "tap-ctl",
        "tapdisk",
        "tests",
        "xen/xen",
        "xen/xen-sys",
        "xen/tapback",
        "xen/xenstore-fake",
        "xen/xenstore-rs",
    ];
    let name = |dir: &str| dir.rsplit('/').next().expect("a name").to_string();
    dirs.iter().map(|dir| (name(dir), root().join(dir))).collect()
}

#[test]
fn unsafe_code_is_only_where_it_is_listed() {
    let mut found = Vec::new();
    for dir in crates().values() {
        sources(&dir.join("src"), &mut found);
    }
    assert!(found.len() > 50, "the sources were found");
    for path in found {
        let name = path.strip_prefix(root()).expect("inside").to_string_lossy().into_owned();
        let listed = UNSAFE.iter().any(|u| name.starts_with(u)) || name.starts_with("tests/");
        let uses = code(&path).iter().any(|l| l.contains("unsafe ") && !l.contains("unsafe_"));
        assert!(listed || !uses, "{name} contains unsafe code and is not on the list");
    }
}

#[test]
fn every_unsafe_block_says_why_it_is_sound() {
    let mut found = Vec::new();
    for dir in crates().values() {
        sources(&dir.join("src"), &mut found);
    }
    for path in found {
        let text = fs::read_to_string(&path).expect("a source file");
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate() {
            let code = line.split("//").next().unwrap_or("");
            if !code.contains("unsafe {") && !code.contains("unsafe impl") {
                continue;
            }
            // A comment may stand before the statement that the block is part of.
            let near = &lines[i.saturating_sub(12)..=i];
            let said = near.iter().any(|l| l.contains("SAFETY:"));
            assert!(said, "{}:{}: unsafe without a SAFETY comment", path.display(), i + 1);
        }
    }
}

#[test]
fn crates_depend_only_downwards() {
    let names: Vec<String> = crates().into_keys().collect();
    for (name, dir) in crates() {
        let allowed =
            EDGES.iter().find(|(n, _)| *n == name).expect("every crate has its edges listed").1;
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).expect("a manifest");
        let body = manifest.split("[dependencies]").nth(1).unwrap_or("");
        let body = body.split("\n[").next().unwrap_or("");
        for line in body.lines() {
            let dep = line.split(['.', ' ', '=']).next().unwrap_or("").trim();
            let internal = names.iter().any(|n| n == dep);
            assert!(!internal || allowed.contains(&dep), "{name} must not depend on {dep}");
        }
    }
}

#[test]
fn the_data_path_neither_logs_nor_knows_formats() {
    let dir = root().join("tapdisk/src");
    let check = |part: &str, words: &[&str]| {
        let mut found = Vec::new();
        sources(&dir.join(part), &mut found);
        assert!(!found.is_empty(), "{part} has sources");
        found.retain(|path| !path.ends_with("tests.rs"));
        for path in found {
            for (i, line) in code(&path).iter().enumerate() {
                let bad = words.iter().find(|w| line.contains(**w));
                assert!(bad.is_none(), "{}:{}: {bad:?}", path.display(), i + 1);
            }
        }
    };
    check("engine", &["slog", "println!", "vhd_rs", "raw::", "tap_ctl"]);
    check("disk", &["slog", "println!", "vhd_rs", "raw::", "crate::engine", "tap_ctl"]);
    check(
        "transport",
        &["slog", "println!", "vhd_rs", "raw::", "crate::disk", "crate::engine", "tap_ctl"],
    );
}
