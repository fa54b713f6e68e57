//! The rules of the house that a machine can check: where `unsafe` may be, who may depend on whom,
//! what the data path may know; where links and citations lead (`house/docs.rs`).
#[path = "house/docs.rs"]
mod docs;
#[path = "house/law.rs"]
mod law;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The files that contain unsafe code, no more and no fewer (ARCHITECTURE.md, "Where things are").
const UNSAFE: &[&str] = &[
    "drivers/cbt/src/map.rs",
    "drivers/cli/src/process.rs",
    "drivers/vhd-rs/src/secret.rs",
    "tap-ctl/src/sys.rs",
    "tapdisk/disk/src/aio.rs",
    "tapdisk/disk/src/align/unit.rs",
    "tapdisk/disk/src/files.rs",
    "tapdisk/disk/src/worker.rs",
    "tapdisk/disk/src/remote/sys.rs",
    "tapdisk/disk/src/uring.rs",
    "tapdisk/frontend/src/blkif/memory.rs",
    "tapdisk/frontend/src/blktap/sys.rs",
    "tapdisk/frontend/src/nbd/sys.rs",
    "tapdisk/frontend/src/ublk/sys.rs",
    "tapdisk/host/src/arena.rs",
    "tapdisk/host/src/socket.rs",
    "tapdisk/host/src/sys.rs",
    "tapdisk/src/process/detach.rs",
    "tapdisk/src/sealed.rs",
    "tapdisk/src/signals.rs",
    "xen/tapback/src/sys.rs",
    "xen/xen/src/devices.rs",
    // The unsafe trait that names the caller's memory, and its implementation in tests.
    "xen/xen/src/lib.rs",
    "xen/xen/src/fake/mod.rs",
    // Of tests: files opened by hand, an entry of a ring.
    "tapdisk/disk/src/aio/tests.rs",
    "tapdisk/disk/src/uring/tests.rs",
    "tapdisk/host/src/uring_bounds/tests.rs",
];

/// What each crate may depend on inside the workspace.
const EDGES: &[(&str, &[&str])] = &[
    ("cbt", &["image", "show"]),
    ("cbt-util", &["cbt", "cli", "show"]),
    ("cli", &["show"]),
    ("image", &[]),
    ("qcow2", &["image", "show"]),
    ("qemu-img", &["cli", "image", "qcow2", "raw", "show", "vhd-rs"]),
    ("raw", &["image"]),
    ("show", &[]),
    ("td-util", &["cli", "image", "show", "vhd-rs"]),
    ("vhd-rs", &["image", "show"]),
    ("vhd-util", &["cli", "image", "show", "vhd-rs"]),
    ("tap-ctl", &["show"]),
    // The way of a request, from below: what the kernel gives, what a request is, who reads and
    // writes files, who plans, where requests come from. Engine, disk engines and frontends do not
    // know each other; none of them knows a format or a message.
    ("host", &["show"]),
    ("request", &["host", "image"]),
    ("nbd-proto", &[]),
    ("engine", &["host", "image", "request"]),
    ("disk", &["host", "nbd-proto", "request"]),
    ("frontend", &["host", "image", "nbd-proto", "request", "show", "xen"]),
    (
        "tapdisk",
        &[
            "cbt",
            "disk",
            "engine",
            "frontend",
            "host",
            "image",
            "nbd-proto",
            "qcow2",
            "raw",
            "request",
            "show",
            "tap-ctl",
            "vhd-rs",
            "xen",
        ],
    ),
    (
        "tests",
        &[
            "cbt",
            "disk",
            "engine",
            "frontend",
            "host",
            "image",
            "qcow2",
            "raw",
            "request",
            "tap-ctl",
            "tapdisk",
            "test-support",
            "vhd-rs",
            "xen",
            "xen-sys",
            "xenstore-rs",
        ],
    ),
    // What tests of all crates share; programs have it as a dev-dependency alone.
    ("test-support", &[]),
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
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("a manifest");
    let members = manifest.split("members = [").nth(1).and_then(|rest| rest.split(']').next());
    let members = members.expect("the list of members");
    let dirs = members.split(',').map(|dir| dir.trim().trim_matches('"')).filter(|d| !d.is_empty());
    let name = |dir: &str| dir.rsplit('/').next().expect("a name").to_string();
    dirs.map(|dir| (name(dir), root().join(dir))).collect()
}

#[test]
fn unsafe_code_is_only_where_it_is_listed() {
    let mut found = Vec::new();
    for dir in crates().values() {
        sources(&dir.join("src"), &mut found);
    }
    assert!(found.len() > 50, "the sources were found");
    let mut users = Vec::new();
    for path in found {
        let name = path.strip_prefix(root()).expect("inside").to_string_lossy().into_owned();
        let uses = code(&path).iter().any(|l| l.contains("unsafe ") && !l.contains("unsafe_"));
        if uses && !name.starts_with("tests/") {
            users.push(name);
        }
    }
    let mut listed = UNSAFE.to_vec();
    listed.sort_unstable();
    users.sort_unstable();
    assert_eq!(users, listed, "left: files with unsafe code; right: the list");
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

/// Neither logging nor formats nor messages: the crates of the data path do not depend on them. The
/// engine has no unsafe code at all, and the compiler says so.
#[test]
fn the_data_path_neither_logs_nor_knows_formats() {
    for name in ["request", "engine", "disk", "frontend", "nbd-proto"] {
        let dir = &crates()[name];
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).expect("a manifest");
        let body = manifest.split("[dependencies]").nth(1).expect("dependencies");
        let body = body.split("\n[").next().unwrap_or("");
        for word in ["slog", "vhd-rs", "raw", "cbt", "tap-ctl", "tapdisk"] {
            let depends = body.lines().any(|line| line.split(['.', ' ', '=']).next() == Some(word));
            assert!(!depends, "{name} must not know {word}");
        }
        let mut found = Vec::new();
        sources(&dir.join("src"), &mut found);
        assert!(!found.is_empty(), "{name} has sources");
        for path in found.iter().filter(|path| !path.ends_with("tests.rs")) {
            for (at, line) in code(path).iter().enumerate() {
                assert!(!line.contains("print"), "{}:{}: {line}", path.display(), at + 1);
            }
        }
    }
    for name in ["request", "engine", "nbd-proto"] {
        let text = fs::read_to_string(crates()[name].join("src/lib.rs")).expect("a source file");
        assert!(text.contains("#![forbid(unsafe_code)]"), "{name} forbids unsafe code");
    }
}

/// Cargo builds a dependency with the features that the packages of a call ask for. If one crate
/// asks for more than another, whatever stands on that dependency is built once for each of them.
#[test]
fn features_of_foreign_crates_are_the_same_for_all() {
    for (name, dir) in crates() {
        let manifest = fs::read_to_string(dir.join("Cargo.toml")).expect("a manifest");
        let mut asking = manifest.lines().filter(|line| line.contains("features = ["));
        assert_eq!(asking.next(), None, "{name}: say it in the workspace's Cargo.toml");
    }
}

/// Planted bugs are for the simulator: neither `make` nor the packages build a program with them,
/// and `make install` takes none.
#[test]
fn what_is_installed_is_built_without_planted_bugs() {
    let features = |words: &[&str]| {
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let tree = std::process::Command::new(cargo)
            .args(["tree", "--offline", "--workspace", "--prefix", "none", "--format", "{p}: {f}"])
            .args(words)
            .current_dir(root())
            .output()
            .expect("cargo runs");
        assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
        String::from_utf8_lossy(&tree.stdout).into_owned()
    };
    let all = features(&["--features", "tests/canary"]);
    let plain = features(&[]);
    let has = |tree: &str, name: &str| {
        let start = format!("{name} v");
        let mut of_it = tree.lines().filter(|line| line.starts_with(&start)).peekable();
        assert!(of_it.peek().is_some(), "{name} is in the tree");
        of_it.any(|line| line.contains("canary"))
    };
    for name in ["disk", "engine", "vhd-rs"] {
        assert!(has(&all, name), "the simulator plants bugs in {name}");
        assert!(!has(&plain, name), "programs have bugs to plant in {name}");
    }
    for file in ["Makefile", "packaging/portable.sh"] {
        let text = fs::read_to_string(root().join(file)).expect("a readable file");
        let builds: Vec<&str> =
            text.lines().filter(|line| line.contains("build --release")).collect();
        assert!(!builds.is_empty(), "{file} builds programs");
        assert!(!builds.iter().any(|line| line.contains("features")), "{file}: {builds:?}");
    }
    // Builds for debugging have them.
    let manifest = fs::read_to_string(root().join("Cargo.toml")).expect("a manifest");
    assert!(!manifest.contains("debug-assertions"), "a release asserts nothing for debugging");
    let makefile = fs::read_to_string(root().join("Makefile")).expect("a readable file");
    assert!(makefile.contains("--version | grep -Eq 'UNPROTECTED|canary'"), "install looks");
}

/// Hooks of tests are behind the feature, and nowhere else.
#[test]
fn bugs_are_planted_only_behind_the_feature() {
    let mut found = Vec::new();
    for (name, dir) in crates() {
        if name != "tests" && name != "test-support" {
            sources(&dir.join("src"), &mut found);
        }
    }
    let mut hooks = 0;
    for path in found {
        let text = fs::read_to_string(&path).expect("a source file");
        let lines: Vec<&str> = text.lines().collect();
        for (i, line) in lines.iter().enumerate().filter(|(_, line)| line.contains("/ Plants ")) {
            let near = &lines[i..lines.len().min(i + 4)];
            let gated = near.iter().any(|line| line.contains("feature = \"canary\"))]"));
            assert!(gated, "{}:{}: {line}", path.display(), i + 1);
            hooks += 1;
        }
    }
    assert!(hooks >= 6, "hooks are seen: {hooks}");
}
