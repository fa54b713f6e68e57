//! A whole VHD: what every command and the driver do with an image of a stranger's.
//!
//! An input is six bytes that say what is done, and an image; a tail of zeros follows it, so that
//! blocks have room without long inputs.
use crate::sparse::Sparse;
use image::blocking::{Layer, Writer, read};
use image::{SECTOR_BYTES, Span, Storage};
use std::path::Path;
use tests::fuzz::{Target, outcome};
use tests::rig::vhdgen::Gen;
use vhd_rs::batmap::{BatmapHeader, KeyHash};
use vhd_rs::driver::Vhd;
use vhd_rs::scan::{self, Look};
use vhd_rs::{CheckOptions, Footer, Header, OpenOptions, Opened, VhdError};
use vhd_rs::{check, closing, edit, fill, heal, key, modify, open, resize, resolve_parent};

/// Bytes before the image.
const ORDER: usize = 6;
/// Zeros that one step of the order's second byte adds.
const ZEROS: u64 = 32 << 10;

const IMAGE: Target = Target {
    name: "vhd-image",
    bytes_max: ORDER + (12 << 10),
    memory_max: 24 << 20,
    seeds,
    words: &[
        b"conectix",
        b"cxsparse",
        b"tdbatmap",
        b"tap\0",
        b"v_poison",
        &[0xff; 4],
        &[0, 0, 0, 15],
    ],
    seal,
    run,
};

#[test]
fn vhd_image() {
    IMAGE.check(40_000);
}

fn name() -> &'static Path {
    Path::new("/nonexistent/t.vhd")
}

/// Each operation on small images: empty, with blocks, a child, of another tool, fixed.
fn seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.vhd");
    let small = |mut image: Gen| {
        image.block_bytes = 64 << 10;
        image
    };
    let images = [
        Gen::new(10 << 20),
        small(Gen::new(256 << 10).sectors(1, &[(0, 1), (127, 2)])),
        small(Gen::new(256 << 10).full(3, 5)),
        Gen::child(10 << 20, "p.vhd", [7; 16]),
        Gen::new(4 << 20).foreign(b"win "),
    ];
    let mut seeds = Vec::new();
    for (n, image) in images.into_iter().enumerate() {
        image.write(&path);
        let mut bytes = std::fs::read(&path).expect("an image");
        bytes.truncate(8 << 10);
        for order in 0..OPERATIONS.len() as u8 {
            let tail = if n == 1 || n == 2 { 4 } else { 0 };
            seeds.push([&[order, tail, 0, n as u8, 9, 0x5a], &bytes[..]].concat());
        }
    }
    seeds
}

/// Right checksums at every place where a structure is looked for.
fn seal(input: &mut [u8]) {
    if let Some(image) = input.get_mut(ORDER..) {
        sealed(image);
    }
}

/// The same for an image.
pub fn sealed(image: &mut [u8]) {
    if image.len() < 1536 {
        return;
    }
    let end = image.len() - 512;
    for at in [0, end] {
        if at == 0 || image[at..].starts_with(b"conectix") {
            let sealed = Footer::decode(&image[at..at + 512]).encode();
            image[at..at + 512].copy_from_slice(&sealed);
        }
    }
    let header = Header::decode(&image[512..1536]);
    image[512..1536].copy_from_slice(&header.encode());
    let disk = Footer::decode(image).current_bytes;
    let map_at = header.batmap_at().and_then(|at| usize::try_from(at).ok());
    let Some(raw) = map_at.and_then(|at| image.get(at..at.checked_add(512)?)) else { return };
    let mut map = BatmapHeader::decode(raw);
    let bits = usize::try_from(map.map_offset).ok().and_then(|at| image.get(at..));
    let length = 512 * map.map_sectors.min(64) as usize;
    let bits = bits.map(|bits| &bits[..bits.len().min(length)]).unwrap_or_default();
    map.checksum = map.checksum_of(bits, disk, header.block_bytes);
    let at = map_at.unwrap_or(0);
    image[at..at + 512].copy_from_slice(&map.encode());
}

/// What is done, where, how much, and with which byte.
struct Order {
    at: u64,
    count: u32,
    fill: u8,
}

/// What happened, in words.
type Told = Result<String, VhdError>;

const OPERATIONS: [fn(&Sparse<'_>, &Order) -> Told; 12] = [
    looked_at, checked, read_back, written, zeroed, hidden, repaired, ended, emptied, keyed,
    scanned, filled,
];

fn run(input: &[u8]) -> u64 {
    let Some((&[what, tail, high, low, count, fill], image)) = input.split_first_chunk::<ORDER>()
    else {
        return 0;
    };
    let device = what & 0x80 != 0;
    let storage = Sparse::new(image, u64::from(tail) * ZEROS, device);
    let order =
        Order { at: u64::from(u16::from_be_bytes([high, low])), count: u32::from(count) + 1, fill };
    let which = usize::from(what & 0x7f) % (OPERATIONS.len() + 1);
    let told = match OPERATIONS.get(which) {
        Some(operation) => operation(&storage, &order),
        None => resized(&storage, &order),
    };
    let text = match told {
        Ok(text) => text,
        Err(e) => {
            assert!(e.errno() > 0 && e.errno() < 256, "{e:?}");
            e.to_string()
        }
    };
    outcome(&format!("{which}{device}{text}"))
}

fn for_io(storage: &dyn Storage, read_only: bool) -> Result<Opened, VhdError> {
    let options = OpenOptions { for_io: true, read_only, ..OpenOptions::default() };
    open(storage, name(), &options)
}

fn looked_at(storage: &Sparse<'_>, order: &Order) -> Told {
    let plain = open(storage, name(), &OpenOptions { read_only: true, ..<_>::default() });
    let mut opened = open(storage, name(), &OpenOptions::default())?;
    assert!(plain.is_ok(), "what opens for writing opens for reading");
    if order.fill & 1 == 1 {
        heal(storage, name(), &mut opened, 512)?;
    }
    let done = closing(&opened, &opened.bat, &opened.full);
    let bytes: usize = done.writes.iter().map(|(_, bytes)| bytes.len()).sum();
    assert!(bytes < 1 << 20, "{bytes} bytes at close");
    let parent = opened.parent.as_ref().map(|parent| resolve_parent(name(), parent).is_ok());
    Ok(format!("{:?}{:?}{parent:?}{}", opened.kind, opened.batmap, opened.bad_blocks.len().min(1)))
}

fn checked(storage: &Sparse<'_>, order: &Order) -> Told {
    let options = CheckOptions {
        bitmaps: order.fill & 1 != 0,
        stats: order.fill & 2 != 0,
        ignore_footer: order.fill & 4 != 0,
        ignore_overlap: order.fill & 8 != 0,
        ..CheckOptions::default()
    };
    let report = check(storage, name(), &options)?;
    if report.fault.is_none() {
        assert!(open(storage, name(), &OpenOptions::default()).is_ok(), "valid, but does not open");
    }
    Ok(format!("{:?}", report.fault))
}

/// A span that begins on the disk.
fn span(sectors: u64, order: &Order) -> Option<Span> {
    let start = order.at.checked_rem(sectors)?;
    let count = u32::try_from(sectors - start).unwrap_or(u32::MAX).min(order.count);
    Some(Span { start, count })
}

fn io(e: &std::io::Error) -> String {
    format!("{:?}", e.raw_os_error())
}

fn read_back(storage: &Sparse<'_>, order: &Order) -> Told {
    let image = Vhd::new(for_io(storage, true)?);
    let Some(span) = span(image::Image::sectors(&image), order) else { return Ok("none".into()) };
    let mut bytes = vec![0; span.count as usize * SECTOR_BYTES as usize];
    let done = read(&[Layer { image: &image, storage }], span, &mut bytes);
    Ok(done.map_or_else(|e| io(&e), |()| format!("read {}", bytes.iter().any(|b| *b != 0))))
}

/// What was written is there, now and after the image was closed and opened again.
fn written(storage: &Sparse<'_>, order: &Order) -> Told {
    changed(storage, order, order.fill, |writer, span| {
        writer.write(span.start, &vec![order.fill; span.count as usize * SECTOR_BYTES as usize])
    })
}

fn zeroed(storage: &Sparse<'_>, order: &Order) -> Told {
    changed(storage, order, 0, |writer, span| {
        writer.zero(span, order.fill & 1 == 0, order.fill & 2 == 0)
    })
}

fn changed(
    storage: &Sparse<'_>,
    order: &Order,
    wanted: u8,
    change: impl FnOnce(&mut Writer<'_>, Span) -> std::io::Result<()>,
) -> Told {
    let opened = for_io(storage, false)?;
    // Blocks that lie on each other change each other; that is what `check` is for.
    let sound = opened.bad_blocks.is_empty() && check(storage, name(), &lenient())?.fault.is_none();
    let mut image = Vhd::new(opened);
    let Some(span) = span(image::Image::sectors(&image), order) else { return Ok("none".into()) };
    let mut writer = Writer::new(&mut image, storage).map_err(|e| failed(&e))?;
    if let Err(e) = change(&mut writer, span) {
        return Ok(io(&e));
    }
    writer.close().map_err(|e| failed(&e))?;
    let again = for_io(storage, true);
    if sound {
        let image = Vhd::new(again?);
        let mut bytes = vec![!wanted; span.count as usize * SECTOR_BYTES as usize];
        let done = read(&[Layer { image: &image, storage }], span, &mut bytes);
        assert!(done.is_ok(), "{done:?}");
        assert!(bytes.iter().all(|b| *b == wanted), "what was written is not there");
    }
    Ok(format!("done {sound}"))
}

fn lenient() -> CheckOptions {
    CheckOptions { ignore_footer: true, bitmaps: true, ..CheckOptions::default() }
}

fn failed(e: &std::io::Error) -> VhdError {
    VhdError::io(name(), "work on the image", 0, e)
}

fn hidden(storage: &Sparse<'_>, order: &Order) -> Told {
    edit::set_hidden(storage, name(), order.fill)?;
    let opened = open(storage, name(), &OpenOptions { read_only: true, ..<_>::default() })?;
    assert_eq!(opened.footer.hidden, order.fill);
    Ok("hidden".into())
}

fn repaired(storage: &Sparse<'_>, order: &Order) -> Told {
    edit::repair(storage, name(), order.fill & 1 == 1, [7; 16])?;
    let opened = open(storage, name(), &OpenOptions::default())?;
    assert_ne!(opened.footer.uuid, [0; 16]);
    Ok(format!("{:?}", opened.footer_found))
}

fn ended(storage: &Sparse<'_>, order: &Order) -> Told {
    modify::set_physical_size(storage, name(), order.at * SECTOR_BYTES)?;
    Ok("ended".into())
}

fn emptied(storage: &Sparse<'_>, _: &Order) -> Told {
    modify::zero_data(storage, name())?;
    let opened = open(storage, name(), &OpenOptions::default())?;
    assert!(opened.bat.iter().all(|entry| *entry == u32::MAX));
    Ok("emptied".into())
}

fn keyed(storage: &Sparse<'_>, order: &Order) -> Told {
    let hash = KeyHash { nonce: [order.fill; 32], hash: [1; 32] };
    key::set_hash(storage, name(), &hash)?;
    let opened = open(storage, name(), &OpenOptions::default())?;
    assert_eq!(opened.key_hash, Some(hash));
    Ok("keyed".into())
}

fn scanned(storage: &Sparse<'_>, order: &Order) -> Told {
    let look = if order.fill & 1 == 0 { Look::Fast } else { Look::Full };
    let parent = scan::parent_of(storage, name(), look).is_some();
    let mut facts = scan::facts(storage, name(), look).map_err(|fault| fault.error)?;
    scan::add_marks(&mut facts, storage, name(), look);
    assert!(!parent || facts.parent.is_some(), "a parent that comes and goes");
    Ok(format!("{}{}", facts.parent.is_some(), facts.key_hash.is_some()))
}

/// The image is as good as it was, if both of its footers were.
fn filled(storage: &Sparse<'_>, order: &Order) -> Told {
    let strict = CheckOptions { bitmaps: true, ..CheckOptions::default() };
    let sound = check(storage, name(), &strict)?.fault.is_none();
    fill::mark(storage, name(), Some(order.at..=order.at + u64::from(order.count)))?;
    if sound {
        let fault = check(storage, name(), &strict)?.fault;
        assert!(fault.is_none(), "sound before, now {fault:?}");
    }
    Ok(format!("filled {sound}"))
}

fn resized(storage: &Sparse<'_>, order: &Order) -> Told {
    // Up to 16 GiB: a table takes memory by the size that is asked for.
    let bytes = (order.at * u64::from(order.fill.max(1))) << 10;
    if order.count & 1 == 1 {
        resize::fast(storage, name(), bytes)?;
        return Ok("larger".into());
    }
    let Some(growth) = resize::Growth::plan(storage, name(), bytes)? else {
        return Ok("room enough".into());
    };
    let journal = Sparse::new(&[], 0, false);
    growth.run(storage, &journal, Path::new("/nonexistent/j"), &|_| ())?;
    let opened = open(storage, name(), &OpenOptions::default())?;
    assert!(opened.footer.current_bytes >= bytes);
    Ok("grown".into())
}
