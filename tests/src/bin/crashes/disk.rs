//! The guest's disk: what is written to it, and what must be read from it.
use std::collections::BTreeMap;
use std::path::Path;

use tests::rig::nbd::{Client, Verb};
use tests::sim::rng::Rng;
use vhd_rs::chain::Chain;
use vhd_rs::{DiskType, Footer};

/// Size of the disk.
pub const SIZE_MIB: u64 = 96;
const PAGE: u64 = 4096;
/// Pages of a block of the image.
const BLOCK: u64 = 512;
/// Blocks that are written, so that the store never runs full.
const BLOCKS: u64 = 36;

/// A change of some pages.
struct Event {
    page: u64,
    pages: u64,
    /// What they hold from then on: made of this number; 0: zeros; `None`: not known.
    stamp: Option<u64>,
    /// Records of the store when it began.
    begun: usize,
}

/// All that was written.
#[derive(Default)]
pub struct Model {
    events: Vec<Event>,
    /// So many events were flushed when the store had so many records.
    flushed: Vec<(usize, usize)>,
    stamp: u64,
}

impl Model {
    /// The pages whose contents are certain after a power cut at a record: flushed, and not changed
    /// since.
    pub fn flushed_at(&self, record: usize) -> BTreeMap<u64, u64> {
        let before = self.flushed.iter().rev().find(|(_, at)| *at <= record);
        let (safe, later) = self.events.split_at(before.map_or(0, |(events, _)| *events));
        let mut pages = certain(safe);
        for event in later.iter().filter(|event| event.begun <= record) {
            pages.retain(|page, _| !(event.page..event.page + event.pages).contains(page));
        }
        pages
    }

    /// The pages whose contents are certain after a kill.
    pub fn answered(&self) -> BTreeMap<u64, u64> {
        certain(&self.events)
    }
}

fn certain(events: &[Event]) -> BTreeMap<u64, u64> {
    let mut pages = BTreeMap::new();
    for event in events {
        for page in event.page..event.page + event.pages {
            match event.stamp {
                Some(stamp) => pages.insert(page, stamp),
                None => pages.remove(&page),
            };
        }
    }
    pages
}

/// What a page holds. Every second one ends with a footer, as if its file did.
fn contents(stamp: u64, page: u64) -> Vec<u8> {
    if stamp == 0 {
        return vec![0; PAGE as usize];
    }
    let word = (stamp << 32 | page).to_le_bytes();
    let mut bytes = word.repeat(PAGE as usize / 8);
    if stamp % 2 == 1 {
        let kinds = [DiskType::Fixed, DiskType::Dynamic, DiskType::Differencing];
        let kind = kinds[stamp as usize / 2 % 3];
        let mut footer = Footer::new(kind, (1 + stamp % 64) << 20, [9; 16], 0);
        footer.data_offset = stamp % 4096 * 512;
        let at = bytes.len() - 512;
        bytes[at..].copy_from_slice(&footer.encode());
    }
    bytes
}

/// Reads an image that nobody has open; how many pages were compared.
///
/// # Errors
/// A page that holds something else.
pub fn compare(image: &Path, expected: &BTreeMap<u64, u64>) -> Result<u64, String> {
    let chain = Chain::open(image).map_err(|e| e.to_string())?;
    let mut bytes = vec![0; PAGE as usize];
    for (page, stamp) in expected {
        chain.read(page * PAGE / 512, &mut bytes).map_err(|e| e.to_string())?;
        if bytes != contents(*stamp, *page) {
            let found = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
            return Err(format!("page {page} holds {found:#x}, not that of stamp {stamp:#x}"));
        }
    }
    Ok(expected.len() as u64)
}

/// A guest at work.
pub struct Writer<'a, R: Fn() -> usize> {
    client: Client,
    model: &'a mut Model,
    rng: &'a mut Rng,
    records: R,
}

impl<'a, R: Fn() -> usize> Writer<'a, R> {
    /// Over a connection; `records` counts those of the store.
    pub fn new(client: Client, model: &'a mut Model, rng: &'a mut Rng, records: R) -> Self {
        Writer { client, model, rng, records }
    }

    /// The chances.
    pub fn rng(&mut self) -> &mut Rng {
        self.rng
    }

    /// Reads some of what must be there. (All of it was compared when nobody had the image open.)
    ///
    /// # Errors
    /// It is not.
    pub fn check(&mut self) -> Result<(), String> {
        let pages = self.model.answered();
        let some = pages.len() / 100 + 1;
        for (page, stamp) in pages.into_iter().step_by(some) {
            let bytes = self.client.read(page * PAGE, PAGE as u32);
            if bytes.ok() != Some(contents(stamp, page)) {
                return Err(format!("the daemon reads another page {page} than {stamp:#x}"));
            }
        }
        Ok(())
    }

    /// So many changes, one after the other, with flushes between them.
    pub fn write(&mut self, changes: u32) {
        for _ in 0..changes {
            if self.rng.one_in(5) {
                let events = self.model.events.len();
                self.client.flush().expect("a flush");
                self.model.flushed.push((events, (self.records)()));
            }
            let (verb, page, pages, data) = self.change();
            let bytes = (pages * PAGE) as u32;
            self.client.send(verb, 0, page * PAGE, bytes, &data);
            assert_eq!(self.client.receive().result, Ok(()));
        }
    }

    /// So many changes at once, of which a part is answered before this returns.
    pub fn throw(mut self, changes: usize) {
        let mut sent = BTreeMap::new();
        for _ in 0..changes {
            let event = self.model.events.len();
            let (verb, page, pages, data) = self.change();
            let cookie = self.client.send(verb, 0, page * PAGE, (pages * PAGE) as u32, &data);
            sent.insert(cookie, event);
        }
        for _ in 0..self.rng.below(changes as u64) {
            sent.remove(&self.client.receive().cookie);
        }
        // Those of the same pages may be done in any order, and a later one is not known to be
        // over.
        let open: Vec<usize> = sent.into_values().collect();
        let first = self.model.events.len() - changes;
        let unknown: Vec<(u64, u64)> = (first..self.model.events.len())
            .filter(|i| open.contains(i) || self.overlaps(first, *i))
            .map(|i| (self.model.events[i].page, self.model.events[i].pages))
            .collect();
        let begun = (self.records)();
        for (page, pages) in unknown {
            self.model.events.push(Event { page, pages, stamp: None, begun });
        }
    }

    fn overlaps(&self, first: usize, i: usize) -> bool {
        let events = &self.model.events;
        let event = &events[i];
        (first..events.len()).filter(|other| *other != i).any(|other| {
            let other = &events[other];
            event.page < other.page + other.pages && other.page < event.page + event.pages
        })
    }

    /// The next change, which is noted.
    fn change(&mut self) -> (Verb, u64, u64, Vec<u8>) {
        let block = self.rng.below(BLOCKS) * BLOCK;
        self.model.stamp += 1;
        let stamp = self.model.stamp;
        let (verb, page, pages, stamp) = match self.rng.below(8) {
            0 | 1 => (Verb::Write, block, BLOCK, Some(stamp)),
            2 => (Verb::Zero, block, BLOCK, Some(0)),
            3 => (Verb::Trim, block, BLOCK, None),
            // The end of a block, with which a file might end.
            4 => (Verb::Write, block + BLOCK - 1, 1, Some(stamp | 1)),
            _ => {
                let pages = 1 + self.rng.below(16);
                (Verb::Write, block + self.rng.below(BLOCK - pages), pages, Some(stamp))
            }
        };
        let data = match (verb, stamp) {
            (Verb::Write, Some(stamp)) => {
                (page..page + pages).flat_map(|page| contents(stamp, page)).collect()
            }
            _ => Vec::new(),
        };
        self.model.events.push(Event { page, pages, stamp, begun: (self.records)() });
        (verb, page, pages, data)
    }
}
