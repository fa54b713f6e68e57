//! qcow2 images: any bytes are checked, repaired, mapped, made larger and given another parent.
use ::qcow2::create::Options;
use ::qcow2::edit::set_backing;
use ::qcow2::head::{Head, open_any};
use ::qcow2::header::Backing;
use ::qcow2::layout::Shape;
use ::qcow2::map::Map;
use ::qcow2::resize::grow;
use ::qcow2::snapshots::snapshots;
use ::qcow2::{Error, Qcow2, What, check, create, open, ready, repair};
use image::MemStorage;
use image::blocking::Writer;
use std::path::Path;
use tests::fuzz::{Target, as_it_is, outcome};

/// Bytes that say what is done, before the image.
const ORDER: usize = 4;
/// Extents of a map that are looked at.
const EXTENTS_MAX: usize = 10_000;

const OFFLINE: Target = Target {
    name: "qcow2-offline",
    bytes_max: ORDER + (48 << 10),
    // A table of 32 MiB is read as such and taken apart, and made anew when it grows.
    memory_max: 256 << 20,
    seeds,
    words: &[
        &[0x80, 0, 0, 0, 0, 0, 2, 0],
        &[0x40, 0, 0, 0, 0, 0, 4, 0],
        &[0xff; 8],
        &[0xe2, 0x79, 0x2a, 0xca, 0, 0, 0, 5],
        &[0x23, 0x85, 0x28, 0x75, 0, 0, 0, 24],
    ],
    seal: as_it_is,
    run,
};

#[test]
fn qcow2_offline() {
    OFFLINE.check(3_000);
}

fn name() -> &'static Path {
    Path::new("/sr/x.qcow2")
}

/// A small image with data in it.
fn image(cluster_bits: u32, refcount_order: u32, extended: bool) -> Vec<u8> {
    let storage = MemStorage::new(Vec::new(), false);
    let shape = Shape { cluster_bits, refcount_order, extended };
    create(&storage, name(), &Options { shape, ..Options::new(256 << 10) }).expect("made");
    let opened = open(&storage, name()).expect("an image");
    let mut image = Qcow2::to_write(ready(&storage, name(), opened).expect("it may be written"));
    let mut writer = Writer::new(&mut image, &storage).expect("memory");
    for sector in [0, 20, 300] {
        writer.write(sector, &[7; 1024]).expect("written");
    }
    writer.close().expect("closed");
    storage.into_inner()
}

fn seeds() -> Vec<Vec<u8>> {
    let images = [image(9, 4, false), image(9, 0, false), image(10, 6, false), image(9, 3, false)];
    let orders = 0..7u8;
    orders
        .flat_map(|what| images.iter().map(move |i| [&[what, 0, 4, 0], &i[..]].concat()))
        .collect()
}

fn run(input: &[u8]) -> u64 {
    let Some((&[what, device, a, b], bytes)) = input.split_first_chunk::<ORDER>() else { return 0 };
    let storage = MemStorage::new(bytes.to_vec(), device % 2 == 1);
    let more = u64::from(u16::from_be_bytes([a, b])) << 12;
    let told = match what % 7 {
        0 => check(&storage, name(), &mut |_| ()).map(|report| format!("{}", report.is_clean())),
        1 => mended(&storage, What::All),
        2 => mended(&storage, What::Leaks),
        3 => mapped(&storage),
        4 => {
            let backing = Backing { name: vec![b'p'; usize::from(a)], format: Some(b"raw".into()) };
            set_backing(&storage, name(), Some(&backing)).map(|()| {
                let now = Head::read(&storage, name()).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(now.header.backing, Some(backing), "it is there");
                "renamed".to_owned()
            })
        }
        5 => larger(&storage, more),
        _ => Head::read(&storage, name()).and_then(|head| {
            snapshots(&storage, name(), &head).map(|(all, _)| format!("{}", all.is_empty()))
        }),
    };
    outcome(&told.unwrap_or_else(|error| error.to_string()))
}

/// What a repair calls clean is clean.
fn mended(storage: &MemStorage, what: What) -> Result<String, Error> {
    let report = repair(storage, name(), what, &mut |_| ())?;
    let after = check(storage, name(), &mut |_| ()).expect("it can be checked still");
    assert_eq!(report.is_clean(), after.is_clean(), "{report:?} {after:?}");
    assert!(after.leaks <= report.leaks, "{report:?} {after:?}");
    Ok(format!("{}", report.is_clean()))
}

fn mapped(storage: &MemStorage) -> Result<String, Error> {
    let opened = open_any(storage, name())?;
    let mut map = Map::new(storage, name(), &opened);
    let mut at = 0;
    for _ in 0..EXTENTS_MAX {
        if at >= opened.header.size / 512 * 512 {
            break;
        }
        let extent = map.at(at)?;
        assert!(extent.bytes > 0 && extent.start == at, "it goes on: {extent:?}");
        at += extent.bytes;
    }
    Ok("mapped".into())
}

/// A larger image has no more corruptions. Leaks it may: counts behind the end of a file are not
/// looked at before it is longer.
fn larger(storage: &MemStorage, more: u64) -> Result<String, Error> {
    let head = Head::read(storage, name())?;
    let clean = check(storage, name(), &mut |_| ()).is_ok_and(|report| report.is_clean());
    let bytes = (head.header.size / 512 * 512).saturating_add(more);
    grow(storage, name(), bytes, more)?;
    let after = check(storage, name(), &mut |_| ()).expect("it can be checked still");
    assert!(!clean || after.corruptions == 0, "{after:?}");
    assert_eq!(Head::read(storage, name()).expect("it is one still").header.size, bytes);
    Ok("larger".into())
}
