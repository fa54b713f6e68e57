//! The text dump of an image's metadata: what `read -p` prints and `check` shows of a bad image.
use crate::options::Term;
use image::Storage;
use std::path::Path;
use vhd_rs::geometry::Geometry;
use vhd_rs::locator::{self, Locator};
use vhd_rs::open::{BatmapState, OpenOptions, Opened, locator_path, open};
use vhd_rs::{DiskType, Footer, Header, chain, footer};

/// Numbers in the dump: decimal or, with `-x`, hexadecimal.
#[derive(Clone, Copy)]
pub(crate) struct Numbers {
    pub(crate) hex: bool,
}

impl Numbers {
    /// As `%llu` or `%#llx` prints it; the latter writes zero without a prefix.
    pub(crate) fn text(self, n: u64) -> String {
        if self.hex && n != 0 { format!("{n:#x}") } else { n.to_string() }
    }

    fn megabytes(self, bytes: u64) -> String {
        format!("{} MB ({} Bytes)", self.text(bytes >> 20), self.text(bytes))
    }
}

/// Dumps an image that opens.
pub(crate) fn image(storage: &dyn Storage, o: &Opened, n: Numbers, term: &mut Term) {
    term.say(&footer_text(&o.footer, n));
    let Some(header) = &o.header else { return };
    term.say(&header_text(header, n));
    if o.kind == DiskType::Differencing {
        term.say(&locators_text(storage, header, n));
    }
    term.say(&batmap_text(&o.batmap, n));
}

/// Dumps as much as there is of an image, whatever its state.
pub(crate) fn any(name: &Path, term: &mut Term) {
    let n = Numbers { hex: false };
    let Ok(file) = chain::open_file(name, false) else { return };
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    match open(&file, name, &options) {
        Ok(opened) => image(&file, &opened, n, term),
        Err(_) => headers(&file, n, term),
    }
}

/// Footer and header as they are, of an image that does not open.
pub(crate) fn headers(file: &dyn Storage, n: Numbers, term: &mut Term) {
    let mut bytes = [0; footer::FOOTER_BYTES];
    let at = file.len().map_or(0, |len| len.saturating_sub(512));
    let whole = file.len().is_ok_and(|len| len >= 512);
    let _ = if whole { file.read_at(at, &mut bytes) } else { Ok(0) };
    let footer = Footer::decode(&bytes);
    term.say(&footer_text(&footer, n));
    let mut bytes = [0; vhd_rs::header::HEADER_BYTES];
    let readable = whole && i64::try_from(footer.data_offset).is_ok();
    let _ = if readable { file.read_at(footer.data_offset, &mut bytes) } else { Ok(0) };
    term.say(&header_text(&Header::decode(&bytes), n));
}

/// Text up to the first NUL.
fn chars(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    show::line(bytes.get(..end).unwrap_or(bytes)).into_owned()
}

fn line(out: &mut String, label: &str, value: &str) {
    out.push_str(&format!("{label:<20}: {value}\n"));
}

fn version(v: u32) -> String {
    format!("Major: {}, Minor: {}", v >> 16, v & 0xffff)
}

fn sum_text(stored: u32, computed: u32) -> String {
    let verdict = if stored == computed { "Good!" } else { "Bad!" };
    format!("{stored:#x}|{computed:#x} ({verdict})")
}

fn uuid_text(id: &[u8; 16]) -> String {
    let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
    let part = |range: std::ops::Range<usize>| hex.get(range).unwrap_or_default().to_string();
    [part(0..8), part(8..12), part(12..16), part(16..20), part(20..32)].join("-")
}

fn footer_text(f: &Footer, n: Numbers) -> String {
    let mut out = String::from("VHD Footer Summary:\n-------------------\n");
    let temporary = if f.features & 1 != 0 { "<TEMP> " } else { "" };
    let reserved = if f.features & 2 != 0 { "<RESV>" } else { "" };
    line(&mut out, "Cookie", &chars(&f.cookie));
    line(&mut out, "Features", &format!("({:#010x}) {temporary}{reserved}", f.features));
    line(&mut out, "File format version", &version(f.version));
    line(&mut out, "Data offset", &n.text(f.data_offset));
    line(&mut out, "Timestamp", &time_text(f.timestamp));
    line(&mut out, "Creator Application", &format!("'{}'", chars(&f.creator)));
    line(&mut out, "Creator version", &version(f.creator_version));
    let os = match f.creator_os {
        0x5769_326B => "Windows",
        0x4D61_6320 => "Macintosh",
        _ => "Unknown!",
    };
    line(&mut out, "Creator OS", os);
    line(&mut out, "Original disk size", &n.megabytes(f.original_bytes));
    line(&mut out, "Current disk size", &n.megabytes(f.current_bytes));
    let Geometry { cylinders, heads, sectors } = f.geometry;
    let [c, h, s] = [u64::from(cylinders), u64::from(heads), u64::from(sectors)].map(|v| n.text(v));
    line(&mut out, "Geometry", &format!("Cyl: {c}, Hds: {h}, Sctrs: {s}"));
    line(&mut out, "", &format!("= {}", n.megabytes(f.geometry.bytes())));
    let kind = match f.kind {
        DiskType::None => "None",
        DiskType::Fixed => "Fixed hard disk",
        DiskType::Dynamic => "Dynamic hard disk",
        DiskType::Differencing => "Differencing hard disk",
        DiskType::Other(_) => "Unknown type!",
    };
    line(&mut out, "Disk type", kind);
    line(&mut out, "Checksum", &sum_text(f.checksum, f.computed_checksum()));
    line(&mut out, "UUID", &uuid_text(&f.uuid));
    line(&mut out, "Saved state", if f.saved == 0 { "No" } else { "Yes" });
    line(&mut out, "Hidden", &i8::from_be_bytes([f.hidden]).to_string());
    out.push('\n');
    out
}

fn header_text(h: &Header, n: Numbers) -> String {
    let mut out = String::from("VHD Header Summary:\n-------------------\n");
    let block = u64::from(h.block_bytes);
    line(&mut out, "Cookie", &chars(&h.cookie));
    line(&mut out, "Data offset (unusd)", &n.text(h.data_offset));
    line(&mut out, "Table offset", &n.text(h.table_offset));
    line(&mut out, "Header version", &format!("{:#010x}", h.version));
    line(&mut out, "Max BAT size", &n.text(u64::from(h.max_entries)));
    line(&mut out, "Block size", &format!("{} ({} MB)", n.text(block), n.text(block >> 20)));
    line(&mut out, "Parent name", &h.parent_name_text());
    line(&mut out, "Parent UUID", &uuid_text(&h.parent_uuid));
    line(&mut out, "Parent timestamp", &time_text(h.parent_timestamp));
    line(&mut out, "Checksum", &sum_text(h.checksum, h.computed_checksum()));
    out.push('\n');
    out
}

fn locators_text(storage: &dyn Storage, h: &Header, n: Numbers) -> String {
    let mut out = String::from("VHD Parent Locators:\n--------------------\n");
    for (slot, l) in h.locators.iter().enumerate().filter(|(_, l)| l.code != locator::NONE) {
        out.push_str(&format!("locator:            : {slot}\n"));
        let Locator { space, length, offset, .. } = *l;
        let path = locator_path(storage, l).map(|p| show::path(&p).to_string());
        for (label, value) in [
            ("code", platform(l.code).to_string()),
            ("data_space", n.text(u64::from(space))),
            ("data_length", n.text(u64::from(length))),
            ("data_offset", n.text(offset)),
            ("decoded name", path.unwrap_or_else(|| "<unable to decode>".into())),
        ] {
            out.push_str(&format!("       {label:<13}: {value}\n"));
        }
        out.push('\n');
    }
    out
}

fn platform(code: u32) -> &'static str {
    match code {
        locator::WI2R => "PLAT_CODE_WI2R",
        locator::WI2K => "PLAT_CODE_WI2K",
        locator::W2RU => "PLAT_CODE_W2RU",
        locator::W2KU => "PLAT_CODE_W2KU",
        locator::MAC => "PLAT_CODE_MAC",
        locator::MACX => "PLAT_CODE_MACX",
        _ => "UNKNOWN",
    }
}

fn batmap_text(state: &BatmapState, n: Numbers) -> String {
    let batmap = match state {
        BatmapState::Absent => return String::new(),
        BatmapState::Damaged { .. } => return "failed to get batmap header\n".into(),
        BatmapState::Valid { header, .. } => header,
    };
    let mut out = String::from("VHD Batmap Summary:\n-------------------\n");
    line(&mut out, "Batmap offset", &n.text(batmap.map_offset));
    line(&mut out, "Batmap size (secs)", &n.text(u64::from(batmap.map_sectors)));
    line(&mut out, "Batmap version", &format!("{:#010x}", batmap.version));
    if let Some(key) = batmap.key_hash() {
        line(&mut out, "Batmap keyhash nonce", &vhd_rs::key::hex(&key.nonce));
        line(&mut out, "Batmap keyhash hash", &vhd_rs::key::hex(&key.hash));
    }
    // Only a batmap whose checksum was found good gets here.
    line(&mut out, "Checksum", &sum_text(batmap.checksum, batmap.checksum));
    out.push('\n');
    out
}

/// `Sun Nov 22 14:05:43 2026`, in UTC: this program does not read time zone files.
fn time_text(since_2000: u32) -> String {
    let seconds = u64::from(since_2000) + footer::EPOCH_2000;
    let (days, rest) = (seconds / 86400, seconds % 86400);
    let (year, month, day) = civil(days);
    // Day 0 was a Thursday.
    let weekday = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"].get((days % 7) as usize);
    let months = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let month = months.get(month * 3..month * 3 + 3).unwrap_or("???");
    let (h, m, s) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{} {month} {day:>2} {h:02}:{m:02}:{s:02} {year}", weekday.unwrap_or(&"???"))
}

/// Year, month from 0 and day of a day number since 1970, by counting.
fn civil(days: u64) -> (u64, usize, u64) {
    let leap = |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
    let (mut year, mut left) = (1970, days);
    while left >= 365 + u64::from(leap(year)) {
        left -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    for (month, length) in
        [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31].into_iter().enumerate()
    {
        if left < length {
            return (year, month, left + 1);
        }
        left -= length;
    }
    (year, 11, 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_ctime() {
        assert_eq!(time_text(0), "Sat Jan  1 00:00:00 2000");
        assert_eq!(time_text(848_671_543), "Sun Nov 22 14:05:43 2026");
        assert_eq!(time_text(5_097_600), "Tue Feb 29 00:00:00 2000");
    }

    #[test]
    fn hexadecimal_zero_has_no_prefix() {
        let n = Numbers { hex: true };
        assert_eq!((n.text(0), n.text(512)), ("0".into(), "0x200".into()));
    }
}
