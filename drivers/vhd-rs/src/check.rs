//! The strict list: what `vhd-util check` finds wrong with an image, one fault at a time.
//!
//! It reads pieces, not an [`crate::Opened`]: a damaged image is its daily bread. With
//! [`Parents::Ignore`] it never touches the file system, so the simulator can use it.
use crate::batmap;
use crate::error::{VhdError, errno::EINVAL};
use crate::footer::{DiskType, FOOTER_BYTES, Footer, FooterFault};
use crate::header::{HEADER_BYTES, Header, HeaderFault};
use crate::present::Present;
use crate::{bat, batmap_read, believe, check_bat, check_parent, open};
use image::Storage;
use std::path::{Path, PathBuf};

/// How far a time stamp may lie in the future, in seconds (corpus D17).
pub const SKEW_MAX: u32 = 1800;

/// What is done about parents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parents {
    /// Nothing; the file system is left alone.
    #[default]
    Ignore,
    /// The parent must be there and be the right one.
    Direct,
    /// All ancestors are checked like the image itself.
    All,
}

/// What to check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// A missing or bad trailing footer is no fault.
    pub ignore_footer: bool,
    /// The unique ids of parents are not compared.
    pub ignore_uuids: bool,
    /// Time stamps in the future are no fault.
    pub ignore_times: bool,
    /// Parents.
    pub parents: Parents,
    /// All data under clear bits must be zeros.
    pub bitmaps: bool,
    /// Blocks are not tested for overlap.
    pub ignore_overlap: bool,
    /// Sectors that are present are counted.
    pub stats: bool,
    /// The present time, seconds since 2000.
    pub now: u32,
}

/// What was found in one image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The image.
    pub name: PathBuf,
    /// The first fault, as a line without its end, and its errno.
    pub fault: Option<(String, i32)>,
    /// Whether it is a fixed disk, of which little can be said.
    pub fixed: bool,
    /// The sectors it holds, if they were asked for.
    pub present: Present,
    /// The ancestors, nearest first, if they were asked for.
    pub parents: Vec<Report>,
}

impl Report {
    /// Whether nothing is wrong with the image and the ancestors that were checked.
    pub fn is_valid(&self) -> bool {
        self.fault.is_none() && self.parents.iter().all(Report::is_valid)
    }
}

/// A fault: its line and its errno.
pub(crate) type Fault = (String, i32);

pub(crate) fn invalid(text: impl Into<String>) -> Fault {
    (text.into(), EINVAL)
}

/// The pieces that every part of the list looks at.
pub(crate) struct Subject<'a> {
    pub storage: &'a dyn Storage,
    pub name: &'a Path,
    pub o: &'a CheckOptions,
    pub footer: Footer,
    pub header: Header,
    pub used: Vec<u32>,
    pub file_bytes: u64,
    /// Bytes before the trailing footer, or of the whole file if that is missing and may be.
    pub limit: u64,
    pub end_of_headers: u64,
}

/// Checks an image.
///
/// ```
/// use std::os::unix::fs::FileExt;
/// use vhd_rs::{CheckOptions, check, files};
///
/// let dir = tempfile::tempdir()?;
/// let name = dir.path().join("disk.vhd");
/// files::create(&name, 10 << 20, None, false)?;
/// let file = std::fs::File::options().read(true).write(true).open(&name)?;
/// let options = CheckOptions { now: files::now(), ..CheckOptions::default() };
/// assert!(check(&file, &name, &options)?.is_valid());
///
/// file.write_all_at(b"?", 3072)?; // the cookie of the trailing footer
/// let (fault, errno) = check(&file, &name, &options)?.fault.unwrap();
/// assert_eq!((fault.as_str(), errno), ("primary footer invalid: invalid cookie", 22));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// Only those of reading at all; what is wrong with the image is in the report.
pub fn check(storage: &dyn Storage, name: &Path, o: &CheckOptions) -> Result<Report, VhdError> {
    let mut report = Report { name: name.into(), ..Report::default() };
    if let Err(fault) = check_image(storage, name, o, &mut report) {
        report.fault = Some(fault);
    }
    if o.parents == Parents::All && report.fault.is_none() {
        check_parent::ancestors(storage, o, &mut report);
    }
    Ok(report)
}

fn check_image(
    storage: &dyn Storage,
    name: &Path,
    o: &CheckOptions,
    report: &mut Report,
) -> Result<(), Fault> {
    let file_bytes = storage.len().map_err(|e| io_fault("reading", name, &e))?;
    let (footer, limit) = footers(storage, name, o, file_bytes)?;
    if footer.poisoned() || (footer.by_tap() && footer.creator_version == 1) {
        return Err(invalid(format!("error opening {}: -{EINVAL}", show::path(name))));
    }
    if footer.current_bytes < 512 {
        let bytes = footer.current_bytes;
        return Err(invalid(format!("invalid current size: a disk of {bytes} bytes")));
    }
    if footer.kind == DiskType::Fixed {
        report.fixed = true;
        return whole(&footer, limit);
    }
    let header = header_of(storage, name, &footer, file_bytes)?;
    relation(&header, &footer, o)?;
    let at = footer.data_offset;
    let table = bat::read(storage, name, &header, at, footer.current_bytes);
    let used = match table {
        Ok(table) => table.used,
        Err(e) => return Err((format!("error reading bat: -{}", e.errno()), e.errno())),
    };
    let mut s =
        Subject { storage, name, o, footer, header, used, file_bytes, limit, end_of_headers: 0 };
    // Where the headers end depends on the batmap, but faults of blocks are reported first.
    let batmap = batmap_of(&mut s);
    check_bat::blocks(&s)?;
    batmap?;
    report.present = check_bat::bitmaps(&s)?;
    check_parent::locators(&s)
}

/// A fixed image must have all its bytes before the footer: what is missing, nobody has.
fn whole(footer: &Footer, limit: u64) -> Result<(), Fault> {
    if footer.current_bytes > limit {
        let bytes = footer.current_bytes;
        return Err(invalid(format!("data missing: {limit} bytes of {bytes} before the footer")));
    }
    Ok(())
}

pub(crate) fn io_fault(doing: &str, name: &Path, e: &std::io::Error) -> Fault {
    let errno = e.raw_os_error().unwrap_or(crate::error::errno::EIO);
    (format!("error {doing} {}: -{errno}", show::path(name)), errno)
}

/// Both footers, and where the data must end. The trailing one is believed unless it may be
/// missing.
fn footers(
    storage: &dyn Storage,
    name: &Path,
    o: &CheckOptions,
    file_bytes: u64,
) -> Result<(Footer, u64), Fault> {
    // What is not there is zeros: a text, an empty file or a stump is no footer.
    let read = |at: u64, bytes: usize| {
        let mut buf = [0; FOOTER_BYTES];
        let part = buf.get_mut(..bytes).unwrap_or_default();
        storage.read_at(at, part).map_err(|e| io_fault("reading", name, &e))?;
        Ok(buf)
    };
    // 511 bytes: images made before Virtual PC 2004.
    let short = file_bytes % 512 == 511;
    let at = file_bytes.saturating_sub(if short { 511 } else { 512 });
    let primary = read(at, if short { 511 } else { 512 })?;
    let fault = footer_fault(&Footer::decode(&primary), o);
    let primary_ok = fault.is_none();
    if let (Some(why), false) = (fault, o.ignore_footer) {
        return Err(invalid(format!("primary footer invalid: {why}")));
    }
    let footer = Footer::decode(&primary);
    let mut backup = read(0, FOOTER_BYTES)?;
    // A fixed disk has no copy: byte 0 is its guest's, unless the footer does not even fit the
    // file.
    let fixed = primary_ok && footer.kind == DiskType::Fixed;
    let dynamic = || Footer::parse(&backup).is_ok_and(|copy| copy.kind.is_dynamic());
    if fixed && (believe::fits(&footer, at, storage.is_device()) || !dynamic()) {
        return Ok((footer, at));
    }
    if let Some(why) = footer_fault(&Footer::decode(&backup), o) {
        return Err(invalid(format!("backup footer invalid: {why}")));
    }
    if short {
        backup[FOOTER_BYTES - 1] = 0;
    }
    if primary != backup && !o.ignore_footer {
        return Err(invalid("primary and backup footers do not match"));
    }
    let believed = primary_ok && !fixed;
    if believed { Ok((footer, at)) } else { Ok((Footer::decode(&backup), file_bytes)) }
}

/// The first thing wrong with a footer, in the order of the original.
pub fn footer_fault(f: &Footer, o: &CheckOptions) -> Option<&'static str> {
    match Footer::parse(&f.raw()) {
        Err(FooterFault::Cookie) => return Some("invalid cookie"),
        Err(FooterFault::Checksum) => return Some("invalid checksum"),
        Ok(_) => {}
    }
    let dynamic = f.kind.is_dynamic();
    let place_ok =
        if dynamic { f.data_offset.is_multiple_of(512) } else { f.data_offset == u64::MAX };
    let tests = [
        (f.features & 2 == 0, "invalid 'reserved' feature"),
        (f.features & !3 != 0, "invalid extra features"),
        (f.version != 0x0001_0000, "invalid file format version"),
        (!place_ok, "invalid data offset"),
        (in_future(f.timestamp, o), "creation time in future"),
        (
            f.by_tap() && f.creator_version > crate::footer::TAP_VERSION,
            "unsupported tap creator version",
        ),
        (f.geometry.bytes() > f.current_bytes, "geometry too large"),
        (!dynamic && f.kind != DiskType::Fixed, "invalid type"),
        (f.saved > 1, "invalid 'saved' state"),
        (f.hidden > 1, "invalid 'hidden' state"),
        (f.reserved.iter().any(|b| *b != 0), "invalid 'reserved' bits"),
        (f.uuid == [0; 16], "invalid (NULL) uuid"),
    ];
    tests.iter().find(|(wrong, _)| *wrong).map(|(_, why)| *why)
}

fn in_future(stamp: u32, o: &CheckOptions) -> bool {
    !o.ignore_times && stamp > o.now.saturating_add(SKEW_MAX)
}

fn header_of(
    storage: &dyn Storage,
    name: &Path,
    footer: &Footer,
    file_bytes: u64,
) -> Result<Header, Fault> {
    let mut bytes = [0; HEADER_BYTES];
    if footer.data_offset < file_bytes {
        let failed = |e: &std::io::Error| io_fault("reading header of", name, e);
        storage.read_at(footer.data_offset, &mut bytes).map_err(|e| failed(&e))?;
    }
    let header = Header::decode(&bytes);
    let table = header.table_offset;
    let why = match header.fault() {
        Some(HeaderFault::Cookie) => "invalid cookie",
        Some(HeaderFault::Checksum) => "invalid checksum",
        Some(HeaderFault::Version) => "invalid header version",
        Some(HeaderFault::DataOffset) => "invalid data offset",
        _ if !table.is_multiple_of(512) || table >= file_bytes => "invalid table offset",
        Some(HeaderFault::BlockSize) => "invalid block size",
        _ if header.reserved != 0 || header.reserved_end.iter().any(|b| *b != 0) => {
            "invalid reserved bits"
        }
        Some(HeaderFault::Locator(n)) => {
            return Err(invalid(format!("invalid  platform code for locator {n}")));
        }
        None => return Ok(header),
    };
    Err(invalid(format!("header is invalid: {why}")))
}

/// The fields about a parent must be there for a differencing disk and be empty for others.
fn relation(header: &Header, footer: &Footer, o: &CheckOptions) -> Result<(), Fault> {
    let named = header.parent_name.iter().any(|b| *b != 0);
    let located = header.locators.iter().any(|l| l.code != crate::locator::NONE);
    let tests: &[(bool, &str)] = if footer.kind == DiskType::Differencing {
        &[
            (in_future(header.parent_timestamp, o), "parent creation time in future"),
            (!named, "missing parent name"),
        ]
    } else {
        &[
            (named, "non-null parent name"),
            (located, "non-null parent locators"),
            (header.parent_uuid != [0; 16], "non-null parent uuid"),
            (header.parent_timestamp != 0, "non-null parent timestamp"),
        ]
    };
    match tests.iter().find(|(wrong, _)| *wrong) {
        Some((_, why)) => Err(invalid(format!("differencing header is invalid: {why}"))),
        None => Ok(()),
    }
}

/// Reads the batmap, learns where the headers end, and checks both.
fn batmap_of(s: &mut Subject<'_>) -> Result<(), Fault> {
    let read = batmap_read::batmap_bytes(s.storage, s.name, &s.footer, &s.header, s.file_bytes);
    let read = read.map_err(|e| (format!("error reading batmap: -{}", e.errno()), e.errno()))?;
    let state = read.state(&s.header, s.footer.current_bytes, &s.used);
    s.end_of_headers = open::end_of_headers(&s.footer, &s.header, &state, &s.used, s.file_bytes);
    match state {
        open::BatmapState::Absent => Ok(()),
        open::BatmapState::Damaged { why, .. } => {
            Err(invalid(format!("batmap is invalid: {}", why.text())))
        }
        open::BatmapState::Valid { header_at, header } => {
            if u64::from(header.map_sectors) * 4096 < u64::from(s.header.max_entries) {
                return Err(invalid("batmap is invalid: batmap-BAT size mismatch"));
            }
            if header.map_offset % 512 != 0 || header.map_offset < header_at + 512 {
                return Err(invalid("batmap is invalid: invalid batmap offset"));
            }
            if header.says_nothing() {
                // What a power cut left in the map marks no block.
                return Ok(());
            }
            let map = read.map();
            let wrong = (0..)
                .zip(&s.used)
                .find(|(block, entry)| **entry == bat::UNUSED && batmap::is_full(map, *block));
            match wrong {
                Some((block, _)) => {
                    Err(invalid(format!("batmap shows unallocated block {block} full")))
                }
                None => Ok(()),
            }
        }
    }
}
