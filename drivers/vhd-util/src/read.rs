//! `read`: looks into an image. Items are printed in a fixed order; an error stops.
use crate::dump::{self, Numbers};
use crate::keys;
use crate::options::{self, Options, Term};
use image::Storage;
use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use vhd_rs::bat::UNUSED;
use vhd_rs::chain::{self, Chain};
use vhd_rs::open::{BatmapState, OpenOptions, Opened, open};
use vhd_rs::secret::Bytes;
use vhd_rs::{Header, VhdError, batmap, locate};

const USAGE: &str = "options:\n-h          help\n-n          name\n-p          print VHD headers\n\
    -t sec      translate logical sector to VHD location\n-b blk      print bat entry\n\
    -B          print entire bat as a bitmap\n-m blk      print bitmap\n\
    -i sec      test bitmap for logical sector\n\
    -e sec      output extent list of allocated logical sectors\n-a          print batmap\n\
    -j blk      test batmap for block\n-d blk      print data\n-c num      num units\n\
    -r sec      read num sectors at sec\n-R byte     read num bytes at byte\n\
    -x          print in hex\n";
const EINVAL: i32 = 22;
const ERANGE: i32 = 34;
/// Bytes copied to standard output at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// The image and how to print.
struct Subject {
    name: PathBuf,
    file: File,
    opened: Opened,
    header: Header,
    n: Numbers,
    count: u64,
    key: Option<Bytes>,
}

/// What an item prints, or the errno that ends the command.
type Done = Result<(), i32>;

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let letters = "n:pt:b:Bm:i:e:aj:d:c:r:R:xCk:Eh";
    let o = match options::given_no_help("read", letters, args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let Some(name) = o.path('n') else { return term.usage(USAGE) };
    let Some(count) = o.number::<u64>('c').unwrap_or(Some(1)) else { return term.usage(USAGE) };
    let key = match keys::given(&o, term) {
        Ok(key) => key,
        Err(code) => return code,
    };
    let n = Numbers { hex: o.has('x') };
    match look(name, n, count, key, term).and_then(|s| items(&s, &o, term)) {
        Ok(()) => 0,
        Err(errno) => errno,
    }
}

fn look(
    name: PathBuf,
    n: Numbers,
    count: u64,
    key: Option<Bytes>,
    term: &mut Term,
) -> Result<Subject, i32> {
    let shown = show::path(&name).to_string();
    let headers = chain::open_file(&name, false)
        .and_then(|f| locate::headers(&f, &name, 10).map(|h| (h, f.try_clone())));
    if let Err(e) = &headers {
        let errno = e.errno();
        let text = format!(
            "Failed to open {shown}: -{errno}\n\n{shown} appears invalid; dumping headers\n\n"
        );
        term.failed(&text, e);
        if let Ok(file) = chain::open_file(&name, false) {
            dump::headers(&file, n, term);
        }
        return Err(errno);
    }
    let no_bat = |term: &mut Term, e: &VhdError| {
        term.failed(&format!("Failed to get bat for {shown}: -{}\n", e.errno()), e)
    };
    let options = OpenOptions { read_only: true, ..OpenOptions::default() };
    let file = chain::open_file(&name, false).map_err(|e| e.errno())?;
    let opened = open(&file, &name, &options).map_err(|e| no_bat(term, &e))?;
    let Some(header) = opened.header.clone() else {
        let why = "a fixed image has no table of blocks to look into";
        return Err(no_bat(term, &VhdError::request(&name, EINVAL, why)));
    };
    Ok(Subject { name, file, opened, header, n, count, key })
}

fn items(s: &Subject, o: &Options, term: &mut Term) -> Done {
    if o.has('p') {
        dump::image(&s.file, &s.opened, s.n, term);
    }
    type Item = fn(&Subject, u64, &mut Term) -> Done;
    let numbered: [(char, Item); 9] = [
        ('t', translate),
        ('b', entries),
        ('m', bitmaps),
        ('i', bits),
        ('e', extents),
        ('j', batmap_bits),
        ('d', data),
        ('r', sectors),
        ('R', bytes),
    ];
    for (letter, item) in numbered {
        if letter == 'm' && o.has('B') {
            term.bytes(&allocation(s));
        }
        if letter == 'j' && o.has('a') {
            map(s, term)?;
        }
        match o.number::<u64>(letter) {
            Some(Some(at)) => item(s, at, term)?,
            Some(None) => return Err(term.usage(USAGE)),
            None => {}
        }
    }
    Ok(())
}

impl Subject {
    fn per_block(&self) -> u64 {
        u64::from(self.header.block_bytes) / 512
    }

    fn entry(&self, block: u64) -> u32 {
        let block = usize::try_from(block).unwrap_or(usize::MAX);
        self.opened.bat.get(block).copied().unwrap_or(UNUSED)
    }

    /// Blocks `at` and on, if the disk has them all.
    fn blocks(&self, at: u64, term: &mut Term) -> Result<std::ops::Range<u64>, i32> {
        let end = at.saturating_add(self.count);
        if end > self.opened.bat.len() as u64 {
            term.complain(&format!("block {} past end of file\n", self.n.text(end)));
            return Err(ERANGE);
        }
        Ok(at..end)
    }

    fn fits(&self, at: u64) -> bool {
        at.checked_add(self.count).is_some_and(|end| end <= self.opened.sectors)
    }

    fn read(&self, at: u64, bytes: u64) -> Result<Vec<u8>, i32> {
        let mut buf = vec![0; usize::try_from(bytes).map_err(|_| EINVAL)?];
        self.file.read_exact_at(at, &mut buf).map_err(|e| e.raw_os_error().unwrap_or(5))?;
        Ok(buf)
    }

    /// The bitmap of an allocated block; all ones if the batmap says so.
    fn bitmap(&self, block: u64) -> Result<Option<Vec<u8>>, i32> {
        let entry = self.entry(block);
        if entry == UNUSED {
            return Ok(None);
        }
        self.read(u64::from(entry) * 512, self.header.bitmap_bytes()).map(Some)
    }
}

fn translate(s: &Subject, at: u64, term: &mut Term) -> Done {
    if !s.fits(at) {
        let end = s.n.text(at.saturating_add(s.count));
        term.complain(&format!("sector {end} past end of file\n"));
        return Err(ERANGE);
    }
    for sector in at..at + s.count {
        let (block, within) = (sector / s.per_block(), sector % s.per_block());
        let place = match s.entry(block) {
            UNUSED => "not allocated".into(),
            e => s.n.text((u64::from(e) + within) * 512 + s.header.bitmap_bytes()),
        };
        let [sector, block, within] = [sector, block, within].map(|v| s.n.text(v));
        term.say(&format!(
            "logical sector {sector}: block number: {block}, sector offset: {within}, \
             file offset: {place}\n"
        ));
    }
    Ok(())
}

fn entries(s: &Subject, at: u64, term: &mut Term) -> Done {
    for block in s.blocks(at, term)? {
        let place = match s.entry(block) {
            UNUSED => "not allocated".into(),
            e => s.n.text(u64::from(e) * 512),
        };
        term.say(&format!("block: {}: offset: {place}\n", s.n.text(block)));
    }
    Ok(())
}

/// One bit for each whole block of the disk and for a partial last one.
fn allocation(s: &Subject) -> Vec<u8> {
    let mut map = vec![0; s.opened.bat.len().div_ceil(8)];
    for (block, _) in (0..).zip(&s.opened.bat).filter(|(_, e)| **e != UNUSED) {
        batmap::set_full(&mut map, block);
    }
    map
}

fn bitmaps(s: &Subject, at: u64, term: &mut Term) -> Done {
    for block in s.blocks(at, term)? {
        match s.bitmap(block)? {
            Some(bitmap) => term.bytes(&bitmap),
            None => term.say(&format!("block {} not allocated\n", s.n.text(block))),
        }
    }
    Ok(())
}

/// Whether each of `count` sectors from `at` is present.
fn presence(
    s: &Subject,
    at: u64,
    term: &mut Term,
    mut each: impl FnMut(&mut Term, u64, bool),
) -> Done {
    if !s.fits(at) {
        term.say(&format!("sector {} past end of file\n", s.n.text(at)));
        return Err(ERANGE);
    }
    let mut known: Option<(u64, Option<Vec<u8>>)> = None;
    for sector in at..at + s.count {
        let (block, within) = (sector / s.per_block(), sector % s.per_block());
        if known.as_ref().is_none_or(|(b, _)| *b != block) {
            known = Some((block, s.bitmap(block)?));
        }
        let bitmap = known.as_ref().and_then(|(_, b)| b.as_deref()).unwrap_or_default();
        each(term, sector, batmap::is_full(bitmap, u32::try_from(within).unwrap_or(u32::MAX)));
    }
    Ok(())
}

fn bits(s: &Subject, at: u64, term: &mut Term) -> Done {
    presence(s, at, term, |term, sector, set| {
        let [block, within] = [sector / s.per_block(), sector % s.per_block()].map(|v| s.n.text(v));
        term.say(&format!("block {block}: sec: {within}: {}\n", u8::from(set)));
    })
}

fn extents(s: &Subject, at: u64, term: &mut Term) -> Done {
    let mut run: Option<(u64, u64)> = None;
    let print = |term: &mut Term, (start, count)| {
        term.say(&format!("{} {}\n", s.n.text(start), s.n.text(count)));
    };
    presence(s, at, term, |term, sector, set| match (set, run) {
        (true, Some((start, count))) => run = Some((start, count + 1)),
        (true, None) => run = Some((sector, 1)),
        (false, Some(whole)) => {
            print(term, whole);
            run = None;
        }
        (false, None) => {}
    })?;
    if let Some(whole) = run {
        print(term, whole);
    }
    Ok(())
}

fn map(s: &Subject, term: &mut Term) -> Done {
    match &s.opened.batmap {
        BatmapState::Valid { header, .. } => {
            let bytes = batmap::summed_bytes(s.opened.footer.current_bytes, s.header.block_bytes);
            term.bytes(&s.read(header.map_offset, bytes as u64)?);
            Ok(())
        }
        BatmapState::Absent | BatmapState::Damaged { .. } => Err(EINVAL),
    }
}

fn batmap_bits(s: &Subject, at: u64, term: &mut Term) -> Done {
    for block in s.blocks(at, term)? {
        let number = u32::try_from(block).unwrap_or(u32::MAX);
        let set = u8::from(batmap::is_full(&s.opened.full, number));
        term.complain(&format!("batmap for block {}: {set}\n", s.n.text(block)));
    }
    Ok(())
}

fn data(s: &Subject, at: u64, term: &mut Term) -> Done {
    for block in s.blocks(at, term)? {
        match s.entry(block) {
            UNUSED => term.say(&format!("block {} not allocated\n", s.n.text(block))),
            e => {
                let start = u64::from(e) * 512 + s.header.bitmap_bytes();
                term.bytes(&s.read(start, u64::from(s.header.block_bytes))?);
            }
        }
    }
    Ok(())
}

fn sectors(s: &Subject, at: u64, term: &mut Term) -> Done {
    let (Some(from), Some(bytes)) = (at.checked_mul(512), s.count.checked_mul(512)) else {
        return Err(ERANGE);
    };
    through(s, from, bytes, term)
}

fn bytes(s: &Subject, at: u64, term: &mut Term) -> Done {
    through(s, at, s.count, term)
}

/// Copies bytes of the disk, read through the whole chain, to standard output.
fn through(s: &Subject, from: u64, bytes: u64, term: &mut Term) -> Done {
    let end = from.checked_add(bytes).filter(|end| *end <= s.opened.sectors * 512);
    let end = end.ok_or(ERANGE)?;
    let failed = |e: &VhdError, term: &mut Term| {
        term.complain(&format!("{e}\n"));
        e.errno()
    };
    let chain = Chain::open(&s.name).and_then(|chain| chain.unlock(s.key.as_deref()));
    let chain = chain.map_err(|e| failed(&e, term))?;
    let mut at = from;
    while at < end {
        let skip = at % 512;
        let wanted = (end - at).min(CHUNK_BYTES);
        let mut buf = vec![0; usize::try_from((skip + wanted).next_multiple_of(512)).unwrap_or(0)];
        chain.read(at / 512, &mut buf).map_err(|e| failed(&e, term))?;
        let wanted_part = buf.iter().skip(skip as usize).take(wanted as usize).copied();
        term.bytes(&wanted_part.collect::<Vec<u8>>());
        if let Some(errno) = term.failed_with() {
            return Err(errno);
        }
        at += wanted;
    }
    Ok(())
}
