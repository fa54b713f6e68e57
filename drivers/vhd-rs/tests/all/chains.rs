//! Chains on the file system: corpus group F and snapshots.

use crate::common::{Block, build};
use std::path::{Path, PathBuf};
use vhd_rs::chain::{Chain, depth};
use vhd_rs::files::{SnapshotOptions, create, snapshot};
use vhd_rs::{CheckOptions, Parents, VhdError, check};

fn read(path: &Path, sector: u64) -> Result<u8, VhdError> {
    let chain = Chain::open(path)?;
    let mut buf = [0; 512];
    chain.read(sector, &mut buf)?;
    assert!(buf.iter().all(|b| *b == buf[0]));
    Ok(buf[0])
}

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Dir {
        Dir(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }
    fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }
}

#[test]
fn a_set_bit_masks_the_layers_below_and_a_clear_one_does_not() {
    let d = Dir::new();
    let some = |s: &[(u32, u8)]| [(1, Block::Some(s.to_vec()))];
    d.put("p.vhd", &build(10, &some(&[(1, 0x31), (2, 0x31)]), None));
    let c = d.put("c.vhd", &build(10, &some(&[(2, 0x33), (3, 0)]), Some("./p.vhd")));
    let got: Vec<u8> = (4096..4100).map(|s| read(&c, s).unwrap()).collect();
    assert_eq!(got, [0, 0x31, 0x33, 0]);
    assert_eq!(read(&c, 20480).unwrap_err().errno(), 34, "past the end");
    let file = std::fs::File::open(&c).unwrap();
    let o = CheckOptions { parents: Parents::All, now: u32::MAX, ..CheckOptions::default() };
    let report = check(&file, &c, &o).unwrap();
    assert!(report.is_valid(), "{report:?}");
    assert_eq!(report.parents.len(), 1);
}

#[test]
fn a_dangling_entry_is_an_error_and_never_zeros() {
    let d = Dir::new();
    let mut bytes = build(10, &[(0, Block::Full)], None);
    crate::common::poke(&mut bytes, 1540, &(1_u32 << 20).to_be_bytes());
    let path = d.put("x.vhd", &bytes);
    assert_eq!(read(&path, 0).unwrap(), 0x5a);
    assert_eq!(read(&path, 4096).unwrap_err().errno(), 5);
}

#[test]
fn a_cycle_ends_with_eloop() {
    let d = Dir::new();
    let a = d.put("a.vhd", &build(10, &[], Some("./b.vhd")));
    d.put("b.vhd", &build(10, &[], Some("./a.vhd")));
    assert_eq!(depth(&a, false).unwrap_err().errno(), 40);
    assert_eq!(read(&a, 0).unwrap_err().errno(), 40);
    let o = SnapshotOptions::default();
    assert_eq!(snapshot(&d.path("c.vhd"), &a, &o).unwrap_err().errno(), 40);
    assert!(!d.path("c.vhd").exists());
}

#[test]
fn snapshots_skip_empty_parents_unless_told_otherwise() {
    let d = Dir::new();
    let [a, b, c, e] = ["a.vhd", "b.vhd", "c.vhd", "e.vhd"].map(|n| d.path(n));
    create(&a, 10 << 20, None, false).unwrap();
    let o = SnapshotOptions::default();
    snapshot(&b, &a, &o).unwrap();
    snapshot(&c, &b, &o).unwrap();
    snapshot(&e, &b, &SnapshotOptions { exact: true, ..o }).unwrap();
    assert_eq!((depth(&c, false).unwrap(), depth(&e, false).unwrap()), (2, 3));
    let deep = SnapshotOptions { exact: true, depth_max: Some(3), ..o };
    let refused = snapshot(&d.path("f.vhd"), &e, &deep).unwrap_err();
    assert_eq!(refused.errno(), 28);
    assert!(refused.to_string().contains("current depth: 3, limit: 3"));
}

#[test]
fn a_snapshot_onto_its_own_ancestor_is_refused_and_harms_nothing() {
    let d = Dir::new();
    let p = d.put("p.vhd", &build(10, &[(0, Block::Full)], None));
    let c = d.path("c.vhd");
    let exact = SnapshotOptions { exact: true, ..SnapshotOptions::default() };
    snapshot(&c, &p, &exact).unwrap();
    let keep = std::fs::read(&p).unwrap();
    std::os::unix::fs::symlink(&p, d.path("link.vhd")).unwrap();
    for (name, parent) in [(&p, &p), (&p, &c), (&d.path("link.vhd"), &c)] {
        assert_eq!(snapshot(name, parent, &exact).unwrap_err().errno(), 22);
    }
    assert!(std::fs::read(&p).unwrap() == keep);
}

#[test]
fn a_raw_parent_gives_its_exact_size_and_zeros_beyond() {
    let d = Dir::new();
    let raw = d.put("raw.img", &vec![0x77; (3 << 20) + 512]);
    let c = d.path("c.vhd");
    let o = SnapshotOptions { raw: true, ..SnapshotOptions::default() };
    snapshot(&c, &raw, &o).unwrap();
    let chain = Chain::open(&c).unwrap();
    assert_eq!((chain.sectors(), chain.layers.len()), (6145, 2));
    assert_eq!(read(&c, 6144).unwrap(), 0x77);
    std::fs::write(&raw, [0x77; 512]).unwrap();
    assert_eq!(read(&c, 1).unwrap(), 0);
}

#[test]
fn paths_beyond_ascii_are_stored_and_found() {
    let d = Dir::new();
    std::fs::create_dir(d.path("größe")).unwrap();
    let p = d.path("größe/ż.vhd");
    create(&p, 2 << 20, None, false).unwrap();
    let c = d.path("c.vhd");
    snapshot(&c, &p, &SnapshotOptions::default()).unwrap();
    assert_eq!(depth(&c, false).unwrap(), 2);
}

#[test]
fn too_little_room_leaves_nothing_behind() {
    let d = Dir::new();
    let p = d.path("p.vhd");
    create(&p, 10 << 20, None, false).unwrap();
    let o = SnapshotOptions { room_bytes: Some(4 << 20), ..SnapshotOptions::default() };
    assert_eq!(snapshot(&d.path("c.vhd"), &p, &o).unwrap_err().errno(), 22);
    assert!(!d.path("c.vhd").exists());
}
