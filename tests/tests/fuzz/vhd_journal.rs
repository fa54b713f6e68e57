//! The journal of a resize, read by `revert`: entries that name any place of the image.
use crate::sparse::Sparse;
use image::{MemStorage, Storage};
use std::path::Path;
use tests::fuzz::{Target, outcome};
use tests::rig::vhdgen::Gen;
use vhd_rs::journal::Journal;
use vhd_rs::modify::Point;
use vhd_rs::{resize, revert};

const HEADER_BYTES: usize = 512;
const ENTRY_BYTES: usize = 32;
const MIB: u64 = 1 << 20;

const JOURNAL: Target = Target {
    name: "vhd-journal",
    bytes_max: 8 << 10,
    memory_max: 24 << 20,
    seeds,
    words: &[b"vjournal", &[0xaa, 0xaa, 0x12, 0x34, 0x43, 0x21, 0xaa, 0xaa], &[0, 0, 2, 0]],
    seal,
    run,
};

#[test]
fn vhd_journal() {
    JOURNAL.check(20_000);
}

/// A small image that a resize has a lot to do with.
fn image() -> Vec<u8> {
    thread_local! {
        static IMAGE: Vec<u8> = {
            let dir = tempfile::tempdir().expect("a folder");
            let path = dir.path().join("a.vhd");
            Gen::child(10 * MIB, "p.vhd", [7; 16]).write(&path);
            std::fs::read(path).expect("an image")
        };
    }
    IMAGE.with(Clone::clone)
}

/// Journals of a resize that is stopped at each of its points.
fn seeds() -> Vec<Vec<u8>> {
    use Point::{ResizeBegin, ResizeDataMoved, ResizeEnd, ResizeMetadataMoved};
    let mut seeds = vec![Vec::new()];
    for stop in [ResizeBegin, ResizeDataMoved, ResizeMetadataMoved, ResizeEnd] {
        let (image, journal) = (MemStorage::new(image(), false), MemStorage::default());
        let seen = std::cell::RefCell::new(Vec::new());
        let at = |point| {
            if point == stop {
                let length = journal.len().expect("a length") as usize;
                let mut bytes = vec![0; length];
                journal.read_exact_at(0, &mut bytes).expect("a journal");
                *seen.borrow_mut() = bytes;
            }
        };
        let name = Path::new("/nonexistent/t.vhd");
        let growth = resize::Growth::plan(&image, name, 2048 * MIB).expect("a plan");
        let growth = growth.expect("something to do");
        growth.run(&image, &journal, Path::new("/nonexistent/j"), &at).expect("a resize");
        seeds.push(seen.into_inner());
    }
    seeds
}

/// Right checksums of all entries in a row.
fn seal(journal: &mut [u8]) {
    let mut at = HEADER_BYTES;
    while let Some(head) = journal.get(at..at + ENTRY_BYTES) {
        let size = u32::from_be_bytes([head[12], head[13], head[14], head[15]]) as usize;
        let Some(entry) = journal.get_mut(at..at + ENTRY_BYTES + size) else { return };
        entry[24..28].fill(0);
        let sum = entry.iter().fold(0_u32, |sum, b| sum.wrapping_add(u32::from(*b)));
        entry[24..28].copy_from_slice(&(!sum).to_be_bytes());
        at += ENTRY_BYTES + size;
    }
}

fn run(bytes: &[u8]) -> u64 {
    let image = image();
    let name = Path::new("/nonexistent/t.vhd");
    let journal = Sparse::new(bytes, 0, false);
    let journal_name = Path::new("/nonexistent/j");
    let storage = Sparse::new(&image, 4 * MIB, false);
    let entries = Journal::open(&journal, journal_name).and_then(|journal| {
        let mut kinds = Vec::new();
        journal.entries(|entry| {
            assert!(entry.bytes.len() <= bytes.len());
            kinds.push(entry.kind);
            Ok(())
        })?;
        kinds.dedup();
        kinds.truncate(4);
        Ok(format!("{kinds:?}"))
    });
    let reverted = revert::revert(&storage, name, &journal, journal_name);
    if let Err(e) = &reverted {
        assert!(e.errno() > 0 && e.errno() < 256, "{e:?}");
    }
    let text = |e: &vhd_rs::VhdError| e.to_string();
    outcome(&format!("{:?}{:?}", entries.map_err(|e| text(&e)), reverted.map_err(|e| text(&e))))
}
