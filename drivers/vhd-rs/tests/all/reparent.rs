//! Changes of parent, end and contents: what is refused leaves the file byte for byte as it was.
use image::Storage;
use std::path::{Path, PathBuf};
use vhd_rs::files::{SnapshotOptions, create, snapshot};
use vhd_rs::lock::{Others, open_to_change};
use vhd_rs::modify::{Point, set_parent, set_physical_size, zero_data};
use vhd_rs::{OpenOptions, VhdError, chain, open, resolve_parent};

const MIB: u64 = 1 << 20;

/// Images `p` and `q`, and a chain `c` over `b` over `p`.
fn images() -> (tempfile::TempDir, impl Fn(&str) -> PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().canonicalize().unwrap();
    let path = move |name: &str| home.join(name);
    let exact = SnapshotOptions { exact: true, ..SnapshotOptions::default() };
    create(&path("p"), 16 * MIB, None, false).unwrap();
    create(&path("q"), 16 * MIB, None, false).unwrap();
    snapshot(&path("b"), &path("p"), &exact).unwrap();
    snapshot(&path("c"), &path("b"), &exact).unwrap();
    (dir, path)
}

fn reparent(child: &Path, parent: &Path, raw: bool) -> Result<(), VhdError> {
    let file = open_to_change(child, Others::Refuse)?;
    set_parent(&file, child, parent, raw, &|_| ())
}

fn parent_of(child: &Path) -> PathBuf {
    let file = chain::open_file(child, false).unwrap();
    resolve_parent(child, &chain::parent_of(&file, child).unwrap().unwrap()).unwrap()
}

#[test]
fn a_new_parent_is_found_through_every_locator() {
    let (_dir, path) = images();
    std::fs::create_dir(path("deep")).unwrap();
    std::fs::rename(path("q"), path("deep/q")).unwrap();
    reparent(&path("c"), &path("deep/../deep/q"), false).unwrap();
    assert_eq!(parent_of(&path("c")), path("deep/q"));
    let file = chain::open_file(&path("c"), false).unwrap();
    let parent = chain::parent_of(&file, &path("c")).unwrap().unwrap();
    assert_eq!(parent.candidates.len(), 3);
    for one in parent.candidates {
        let only = vhd_rs::Parent { uuid: None, candidates: vec![one] };
        assert_eq!(resolve_parent(&path("c"), &only).unwrap(), path("deep/q"));
    }
    let header = open(&file, &path("c"), &OpenOptions::default()).unwrap().header.unwrap();
    assert_eq!(header.parent_name_text(), "q");
}

#[test]
fn circles_strangers_and_long_paths_are_refused_and_change_nothing() {
    let (_dir, path) = images();
    let keep = std::fs::read(path("b")).unwrap();
    let long = path(&"d".repeat(200)).join("d".repeat(100));
    std::fs::create_dir_all(&long).unwrap();
    std::fs::copy(path("q"), long.join("q")).unwrap();
    std::fs::write(path("text"), "no image").unwrap();
    for (parent, raw, errno) in [
        (path("b"), false, 40),
        (path("c"), false, 40),
        (path("none"), false, 2),
        (path("none"), true, 2),
        (path("text"), false, 5),
        (long.join("q"), false, 36),
    ] {
        let e = reparent(&path("b"), &parent, raw).unwrap_err();
        assert_eq!(e.errno(), errno, "{e}");
        assert!(std::fs::read(path("b")).unwrap() == keep, "{} changed it", parent.display());
    }
    assert_eq!(reparent(&path("p"), &path("q"), false).unwrap_err().errno(), 22);
}

#[test]
fn the_points_of_a_reparent_come_in_order() {
    let (_dir, path) = images();
    let seen = std::cell::RefCell::new(Vec::new());
    let file = open_to_change(&path("c"), Others::Refuse).unwrap();
    let at = |point| seen.borrow_mut().push(point);
    set_parent(&file, &path("c"), &path("p"), false, &at).unwrap();
    let want = [Point::ReparentBegin, Point::ReparentLocator, Point::ReparentEnd];
    assert_eq!(seen.into_inner(), want);
}

#[test]
fn an_interrupted_reparent_can_be_repeated() {
    let (_dir, path) = images();
    std::fs::create_dir(path("deep")).unwrap();
    std::fs::rename(path("q"), path("deep/q")).unwrap();
    let stop = std::panic::catch_unwind(|| {
        let file = open_to_change(&path("c"), Others::Refuse).unwrap();
        let at = |point| assert!(point != Point::ReparentLocator, "stopped here");
        set_parent(&file, &path("c"), &path("deep/q"), false, &at).unwrap();
    });
    assert!(stop.is_err());
    reparent(&path("c"), &path("deep/q"), false).unwrap();
    assert_eq!(parent_of(&path("c")), path("deep/q"));
}

#[test]
fn an_image_that_is_being_written_is_not_changed() {
    let (_dir, path) = images();
    let daemon = std::fs::File::open(path("c")).unwrap();
    rustix::fs::flock(&daemon, rustix::fs::FlockOperation::NonBlockingLockExclusive).unwrap();
    let e = reparent(&path("c"), &path("p"), false).unwrap_err();
    assert_eq!(e.errno(), 16);
    assert!(e.to_string().contains("--ignore-lock"), "{e}");
    let keep = std::fs::read(path("c")).unwrap();
    assert_eq!(create(&path("c"), 16 * MIB, None, false).unwrap_err().errno(), 16);
    assert!(std::fs::read(path("c")).unwrap() == keep, "nor emptied by create");
    open_to_change(&path("c"), Others::Ignore).unwrap();
    // A daemon that only reads, as of a parent, keeps nobody off.
    rustix::fs::flock(&daemon, rustix::fs::FlockOperation::NonBlockingLockShared).unwrap();
    reparent(&path("c"), &path("p"), false).unwrap();
}

#[test]
fn the_end_of_an_image_moves_but_never_into_its_data() {
    let (_dir, path) = images();
    let name = path("p");
    let file = open_to_change(&name, Others::Refuse).unwrap();
    let least = Storage::len(&file).unwrap();
    set_physical_size(&file, &name, least + 4096).unwrap();
    assert_eq!(Storage::len(&file).unwrap(), least + 4096);
    let keep = std::fs::read(&name).unwrap();
    for bytes in [0, 511, least - 512, least + 100] {
        assert_eq!(set_physical_size(&file, &name, bytes).unwrap_err().errno(), 22);
    }
    assert!(std::fs::read(&name).unwrap() == keep);
    set_physical_size(&file, &name, least).unwrap();
    assert_eq!(Storage::len(&file).unwrap(), least + 4096, "nothing is cut off");
}

#[test]
fn an_emptied_image_reads_as_its_parent() {
    let (_dir, path) = images();
    let name = path("p");
    let file = open_to_change(&name, Others::Refuse).unwrap();
    let empty = std::fs::read(&name).unwrap();
    let options = OpenOptions { for_io: true, ..OpenOptions::default() };
    let mut image = vhd_rs::driver::Vhd::new(open(&file, &name, &options).unwrap());
    let mut writer = image::blocking::Writer::new(&mut image, &file).unwrap();
    writer.write(0, &vec![7; 3 << 20]).unwrap();
    writer.close().unwrap();
    assert!(Storage::len(&file).unwrap() > 4 << 20);
    zero_data(&file, &name).unwrap();
    assert!(std::fs::read(&name).unwrap() == empty);
    create(&path("f"), 2 * MIB, None, true).unwrap();
    let fixed = open_to_change(&path("f"), Others::Refuse).unwrap();
    assert_eq!(zero_data(&fixed, &path("f")).unwrap_err().errno(), 38);
}
