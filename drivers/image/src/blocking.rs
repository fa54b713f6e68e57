//! The small blocking executor: runs a driver's answers with plain reads and writes. For the
//! offline tools, and as the second opinion on what the daemon's engine wrote. It allocates and
//! waits as it likes.
//!
//! [`read`] looks through a chain; [`Writer`] changes one image.
use std::collections::HashMap;
use std::io;

use crate::{Image, Meta, MetaRef, Packed, Place, Run, Span, Stop, Storage, bytes_of};

mod merge;
mod writer;
pub use merge::merge;
pub use writer::Writer;

/// One image and its bytes.
pub struct Layer<'a> {
    /// The driver.
    pub image: &'a dyn Image,
    /// Its file.
    pub storage: &'a dyn Storage,
}

/// Reads sectors through a chain, leaf first. `buf` has 512 bytes for each sector of `span`.
///
/// # Errors
/// Those of the files; EIO where a driver says that the image is corrupt.
pub fn read(chain: &[Layer<'_>], span: Span, buf: &mut [u8]) -> io::Result<()> {
    read_with(chain, span, buf, |_, _, _| {})
}

/// The same, and shows each run to `decode` as it was found, to be changed in place: the number of
/// the layer (`None` for zeros that no layer holds), its first sector and its bytes. For images
/// whose data is encrypted.
///
/// # Errors
/// As for [`read`].
pub fn read_with(
    chain: &[Layer<'_>],
    mut span: Span,
    mut buf: &mut [u8],
    mut decode: impl FnMut(Option<usize>, u64, &mut [u8]),
) -> io::Result<()> {
    let mut caches: Vec<Cache> = chain.iter().map(|_| Cache::default()).collect();
    while span.count > 0 {
        let (place, count) = find(chain, &mut caches, span)?;
        let (now, later) = buf.split_at_mut(bytes_of(count));
        match place {
            Some((layer, data)) => fetch(chain[layer].image, chain[layer].storage, data, now)?,
            None => now.fill(0),
        }
        decode(place.map(|(layer, _)| layer), span.start, now);
        buf = later;
        span = span.skip(count);
    }
    Ok(())
}

/// Where data is in a file.
#[derive(Clone, Copy)]
enum Data {
    At(u64),
    Packed(Packed),
}

/// The first run: the layer and where it lies there, or nowhere.
fn find(
    chain: &[Layer<'_>],
    caches: &mut [Cache],
    mut span: Span,
) -> io::Result<(Option<(usize, Data)>, u32)> {
    for (i, layer) in chain.iter().enumerate() {
        let sectors = layer.image.sectors();
        if span.start >= sectors {
            break;
        }
        span = span.first(u32::try_from(sectors - span.start).unwrap_or(u32::MAX));
        let run = run(layer.image, layer.storage, &mut caches[i], span)?;
        match run.place {
            Place::At { byte } => return Ok((Some((i, Data::At(byte))), run.count)),
            Place::Packed(packed) => return Ok((Some((i, Data::Packed(packed))), run.count)),
            Place::Zero => return Ok((None, run.count)),
            Place::Below => span.count = run.count,
        }
    }
    Ok((None, span.count))
}

/// Reads a run.
fn fetch(image: &dyn Image, storage: &dyn Storage, data: Data, buf: &mut [u8]) -> io::Result<()> {
    let packed = match data {
        Data::At(byte) => return storage.read_exact_at(byte, buf),
        Data::Packed(packed) => packed,
    };
    // What is packed last may end with the file.
    let there = storage.len()?.saturating_sub(packed.byte);
    let there = u32::try_from(there).unwrap_or(u32::MAX).min(packed.bytes);
    let mut bytes = vec![0; there as usize];
    storage.read_exact_at(packed.byte, &mut bytes)?;
    let mut unit = vec![0; bytes_of(packed.sectors)];
    let broken = |why| io::Error::new(io::ErrorKind::InvalidData, why);
    image.unpack(&bytes, &mut unit).map_err(broken)?;
    buf.copy_from_slice(&unit[bytes_of(packed.skip)..][..buf.len()]);
    Ok(())
}

/// The first run of a span inside one image.
fn run(image: &dyn Image, storage: &dyn Storage, cache: &mut Cache, span: Span) -> io::Result<Run> {
    loop {
        match image.map(cache, span) {
            Ok(run) => return Ok(run),
            Err(Stop::Load(r)) => cache.load(storage, r)?,
            Err(Stop::Fail { errno, .. }) => return Err(io::Error::from_raw_os_error(errno)),
            Err(stop) => alone(stop),
        }
    }
}

/// A stop that only another request could cause.
fn alone(stop: Stop) -> ! {
    unreachable!("{stop:?} while nobody else is at work")
}

/// What is cached of one image. Between two requests all of it is what the disk holds.
#[derive(Default)]
struct Cache {
    pieces: HashMap<u64, Box<[u8]>>,
    /// Bytes of the file.
    grown: u64,
    /// Number of the request at work.
    now: u64,
    /// What was over before is on the medium.
    durable: u64,
    /// Changes may copy.
    fills: bool,
}

impl Cache {
    fn load(&mut self, storage: &dyn Storage, r: MetaRef) -> io::Result<()> {
        let mut bytes = vec![0; usize::from(r.bytes)];
        storage.read_exact_at(r.at, &mut bytes)?;
        self.pieces.insert(r.at, bytes.into());
        Ok(())
    }
}

impl Meta for Cache {
    fn get(&self, r: MetaRef) -> Result<&[u8], Stop> {
        self.pieces.get(&r.at).map(|b| &b[..]).ok_or(Stop::Load(r))
    }
    fn edit(&mut self, r: MetaRef) -> &mut [u8] {
        self.pieces.get_mut(&r.at).expect("a driver edits what it has pinned")
    }
    fn create(&mut self, r: MetaRef) -> Result<&mut [u8], Stop> {
        let bytes = vec![0; usize::from(r.bytes)].into();
        Ok(self.pieces.entry(r.at).insert_entry(bytes).into_mut())
    }
    fn clean(&self, _: MetaRef) -> bool {
        true
    }
    fn may_fill(&self) -> bool {
        self.fills
    }
    fn grown(&self) -> u64 {
        self.grown
    }
    fn now(&self) -> u64 {
        self.now
    }
    /// One request at a time: what was freed before this one, nobody reads.
    fn oldest(&self) -> u64 {
        self.now
    }
    fn durable(&self) -> u64 {
        self.durable
    }
}
