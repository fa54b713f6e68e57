//! Repairs that are interrupted, repairs of images that crashed, and images that lie.
mod common;

use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;

use common::{Dice, disk, io as qemu_io, made, poke, ran, run, word, word64};
use image::{MemStorage, Storage};
use qcow2::{Header, Report, What, check, repair};

/// A file that loses power: after so many writes and syncs nothing reaches it, and of what no sync
/// has followed some is lost.
struct Failing {
    below: MemStorage,
    left: Cell<u32>,
    /// Old bytes of writes since the last sync.
    young: RefCell<Vec<(u64, Vec<u8>)>>,
}

impl Failing {
    fn new(bytes: Vec<u8>, writes: u32) -> Failing {
        let below = MemStorage::new(bytes, false);
        Failing { below, left: Cell::new(writes), young: RefCell::default() }
    }

    /// One write or sync, unless the power is gone.
    fn step(&self) -> io::Result<()> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or_else(|| io::Error::other("the power is gone"))?);
        Ok(())
    }

    /// What is found afterwards.
    fn found(self, dice: &mut Dice) -> Vec<u8> {
        for (at, old) in self.young.into_inner().into_iter().rev() {
            if dice.roll(2) == 0 {
                self.below.write_at(at, &old).expect("memory");
            }
        }
        self.below.into_inner()
    }
}

impl Storage for Failing {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.below.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.step()?;
        for (at, sector) in (offset..).step_by(512).zip(buf.chunks(512)) {
            let mut old = vec![0; sector.len()];
            let there = self.below.read_at(at, &mut old)?;
            old[there..].fill(0);
            self.young.borrow_mut().push((at, old));
        }
        self.below.write_at(offset, buf)
    }
    fn len(&self) -> io::Result<u64> {
        self.below.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.below.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.step()?;
        self.young.borrow_mut().clear();
        Ok(())
    }
    fn is_device(&self) -> bool {
        false
    }
}

fn verdict(bytes: &[u8]) -> Report {
    let storage = MemStorage::new(bytes.to_vec(), false);
    check(&storage, Path::new("x"), &mut |_| ()).expect("it can be checked")
}

fn is_dirty(bytes: &[u8]) -> bool {
    Header::read(Path::new("x"), bytes).expect("a header").dirty
}

/// Damages an image in its counts here and there.
fn damaged(dir: &Path, options: &str, dice: &mut Dice, gone: bool) -> Vec<u8> {
    let path = made(dir, "x.qcow2", options, &["write -P 1 0 1M", "write -P 2 5M 900k"]);
    let mut bytes = std::fs::read(&path).expect("an image");
    let header = Header::read(&path, &bytes).expect("a header");
    let block = word64(&bytes, header.table_at) as usize;
    for _ in 0..4 {
        let at = block + dice.roll(400) as usize;
        bytes[at] = [0, 1, 3, 2][dice.roll(4) as usize];
    }
    if gone {
        bytes[header.table_at as usize..][..8].fill(0);
    }
    bytes[79] |= 1;
    bytes
}

#[test]
fn a_repair_that_is_cut_off_costs_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut dice = Dice(77);
    let mut cuts = 0;
    for (round, options) in
        ["cluster_size=4096", "cluster_size=1024,refcount_bits=8", "cluster_size=512", ""]
            .into_iter()
            .cycle()
            .take(12)
            .enumerate()
    {
        let bad = damaged(dir.path(), options, &mut dice, round % 3 == 2);
        let before = verdict(&bad);
        for writes in 0..200 {
            let storage = Failing::new(bad.clone(), writes);
            let done = repair(&storage, Path::new("x"), What::All, &mut |_| ());
            let found = storage.found(&mut dice);
            let after = verdict(&found);
            assert!(after.corruptions <= before.corruptions, "{options}, {writes}: {after:?}");
            assert!(is_dirty(&found) || after.is_clean(), "{options}, {writes}: a mark too early");
            let storage = MemStorage::new(found, false);
            let again = repair(&storage, Path::new("x"), What::All, &mut |_| ());
            assert!(again.expect("it is repaired").is_clean(), "{options}, {writes}");
            assert!(!is_dirty(&storage.into_inner()));
            if done.is_ok() {
                break;
            }
            cuts += 1;
        }
    }
    assert!(cuts > 30, "there were writes to cut off: {cuts}");
}

#[test]
fn an_image_that_qemu_left_dirty_is_as_good_as_repaired_by_qemu() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path(), "lazy.qcow2", "lazy_refcounts=on", &["write -P 9 0 64k"]);
    let words = ["-c", "write -P 1 3M 4M", "-c", "discard 0 64k", "-c", "flush", "-c", "abort"];
    let words = [&["-f", "qcow2"], &words[..], &[word(&path)]].concat();
    std::process::Command::new("qemu-io").args(words).output().expect("qemu-io");
    assert!(is_dirty(&std::fs::read(&path).expect("an image")), "it crashed");
    let copy = dir.path().join("copy.qcow2");
    std::fs::copy(&path, &copy).expect("copied");
    let file = std::fs::File::options().read(true).write(true).open(&path).expect("an image");
    let report = repair(&file, &path, What::All, &mut |_| ()).expect("it can be repaired");
    assert!(report.is_clean() && report.corruptions_fixed > 0, "{report:?}");
    assert!(!is_dirty(&std::fs::read(&path).expect("an image")));
    run("qemu-img", &["check", word(&path)]);
    run("qemu-img", &["check", "-r", "all", word(&copy)]);
    assert!(disk(&path) == disk(&copy));
    qemu_io(&path, &["read -P 1 3M 4M"]);
}

#[test]
fn leaks_alone_are_repaired_when_that_is_wanted() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path(), "l.qcow2", "", &["write -P 1 0 1M"]);
    let bytes = std::fs::read(&path).expect("an image");
    let block = word64(&bytes, Header::read(&path, &bytes).expect("a header").table_at);
    poke(&path, block + 2 * 30, &[0, 1, 0, 2]);
    poke(&path, block + 2 * 8, &[0, 0]);
    poke(&path, 72, &1u64.to_be_bytes());
    let storage = MemStorage::new(std::fs::read(&path).expect("an image"), false);
    storage.set_len(40 << 16).expect("memory");
    let report = repair(&storage, &path, What::Leaks, &mut |_| ()).expect("it can be repaired");
    assert_eq!((report.leaks_fixed, report.leaks), (2, 0));
    // The count of 0 and the flag of who relies on it.
    assert_eq!((report.corruptions, report.corruptions_fixed), (2, 0));
    let bytes = storage.into_inner();
    assert!(is_dirty(&bytes), "something is left to do");
    let report = verdict(&bytes);
    assert_eq!((report.leaks, report.corruptions), (0, 2));
}

#[test]
fn new_count_blocks_find_a_gap_on_a_device_or_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = made(dir.path(), "d.qcow2", "", &["write -P 1 0 1M"]);
    let mut bytes = std::fs::read(&path).expect("an image");
    let table = Header::read(&path, &bytes).expect("a header").table_at as usize;
    bytes[table..table + 8].fill(0);
    bytes.truncate(bytes.len().next_multiple_of(65536));
    let full = MemStorage::new(bytes.clone(), true);
    let error = repair(&full, &path, What::All, &mut |_| ());
    let error = error.expect_err("the device ends with the image");
    assert!(error.errno() == 28 && error.to_string().contains("make room"), "{error}");
    assert!(full.into_inner() == bytes, "nothing was changed");
    bytes.resize(bytes.len() + (8 << 16), 0xee);
    let device = MemStorage::new(bytes, true);
    assert!(repair(&device, &path, What::All, &mut |_| ()).expect("repaired").is_clean());
    std::fs::write(&path, device.into_inner()).expect("written");
    run("qemu-img", &["check", word(&path)]);
    qemu_io(&path, &["read -P 1 0 1M", "write -P 2 2M 1M"]);
}

#[test]
fn no_bytes_make_it_panic_or_harm_what_can_be_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut dice = Dice(4711);
    let mut repaired = 0;
    for options in ["cluster_size=4096", "extended_l2=on,cluster_size=16384", "cluster_size=512"] {
        let path = made(dir.path(), "h.qcow2", options, &["write -P 7 0 900k", "write -z 2M 1M"]);
        run("qemu-img", &["snapshot", "-c", "s", word(&path)]);
        qemu_io(&path, &["write -P 8 512k 1M"]);
        let good = std::fs::read(&path).expect("an image");
        for round in 0..80 {
            let mut bytes = good.clone();
            for _ in 0..1 + dice.roll(6) {
                let most = [120, bytes.len().min(64 << 10) as u64, bytes.len() as u64];
                let most = most[dice.roll(3) as usize];
                let at = dice.roll(most) as usize;
                let random = dice.roll(256) as u8;
                bytes[at] = [0, 0xff, 1, 0x80, random][dice.roll(5) as usize];
            }
            let storage = MemStorage::new(bytes.clone(), round % 2 == 1);
            let Ok(report) = repair(&storage, &path, What::All, &mut |_| ()) else { continue };
            std::fs::write(&path, &bytes).expect("written");
            let readable = ran("qemu-img", &["convert", "-O", "raw", word(&path), "/dev/null"]);
            let before = (readable.code == 0).then(|| disk(&path));
            std::fs::write(&path, storage.into_inner()).expect("written");
            assert!(before.is_none_or(|before| before == disk(&path)), "{options} {round}");
            if report.is_clean() {
                let said = ran("qemu-img", &["check", word(&path)]);
                // Of extensions that do not fit it opens nothing; SM makes such, and we do.
                let fine = said.code == 0 || said.err.contains("Could not open");
                assert!(fine, "{options} {round}: {report:?} {}", said.err);
                repaired += 1;
            }
        }
    }
    assert!(repaired > 60, "some were repaired: {repaired}");
}
