//! The guest of a ring-driven world: what it asked, what it may be answered, and what the model
//! learns of it. It looks at a ring only when it was notified, as a driver does.
use std::collections::{BTreeMap, BTreeSet};

use xen::fake::{Access, Answer, FrontRing, Guest, entry, indirect_entry};
use xen::{Layout, Segment, op, status};

use super::model::{Ended, Model, fill, parse};
use super::rng::Rng;

/// Requests that are not answered at most.
const ASKED_MAX: usize = 40;

/// A request.
#[derive(Debug)]
pub struct Asked {
    operation: u8,
    sector: u64,
    count: u64,
    start: u64,
    value: u64,
    segments: Vec<Segment>,
    /// A page of it is not granted.
    pub spoiled: bool,
}

/// The guest.
pub struct RingGuest {
    /// Its memory and event channels.
    pub guest: Guest,
    /// One ring a queue.
    pub rings: Vec<FrontRing>,
    /// Requests that wait for their answers.
    pub asked: BTreeMap<u64, Asked>,
    /// Values of barriers' data.
    pub barriers: BTreeSet<u64>,
    /// What a discarded sector may hold.
    pub discarded: u64,
    pages: Vec<u32>,
    value: u64,
}

impl RingGuest {
    /// One that has no rings yet; its values are above `value`.
    pub fn new(value: u64, discarded: u64) -> RingGuest {
        RingGuest {
            guest: Guest::new(),
            rings: Vec::new(),
            asked: BTreeMap::new(),
            barriers: BTreeSet::new(),
            discarded,
            pages: Vec::new(),
            value,
        }
    }

    /// The last value it wrote.
    pub fn value(&self) -> u64 {
        self.value
    }

    /// Whether it may ask more.
    pub fn has_room(&self) -> bool {
        self.asked.len() < ASKED_MAX
    }

    /// Puts a request into a ring by chance. It is shown later.
    pub fn ask(&mut self, rng: &mut Rng, model: &mut Model, sectors: u64, spot: Option<u64>) {
        let queue = rng.below(self.rings.len() as u64) as usize;
        if self.rings[queue].room() == 0 || !self.has_room() {
            return;
        }
        self.value += 1;
        let (id, value) = (self.value, self.value);
        let operation = match rng.below(20) {
            0..=8 => op::WRITE,
            9..=14 => op::READ,
            15 | 16 => op::WRITE_BARRIER,
            17 => op::DISCARD,
            _ => op::FLUSH_DISKCACHE,
        };
        let segments = self.segments(rng, operation);
        let data: u64 = segments.iter().filter_map(|s| s.sectors()).map(u64::from).sum();
        let count = if operation == op::DISCARD { 1 + rng.below(200) } else { data };
        let near = spot.filter(|spot| spot + 16 + count <= sectors && !rng.one_in(4));
        let (first, end) = near.map_or((0, sectors - count + 1), |spot| (spot, spot + 16));
        let sector = if count == 0 { 0 } else { first + rng.below(end - first) };
        let range = sector..sector + count;
        let mut start = model.tick();
        match operation {
            op::WRITE | op::WRITE_BARRIER => {
                self.fill(&segments, sector, value);
                model.begin(range, value);
                start = model.time;
            }
            op::DISCARD => {
                model.begin(range, self.discarded);
                start = model.time;
            }
            _ => {}
        }
        if operation == op::WRITE_BARRIER {
            self.barriers.insert(value);
        }
        let plain = operation == op::READ || operation == op::WRITE;
        let spoiled = plain && rng.one_in(60);
        if spoiled {
            let segment = &segments[rng.below(segments.len() as u64) as usize];
            self.guest.allow(segment.gref, Access::None);
        }
        let bytes = self.bytes(rng, operation, (id, sector, count), &segments);
        self.rings[queue].put(&bytes);
        let asked = Asked { operation, sector, count, start, value, segments, spoiled };
        self.asked.insert(id, asked);
    }

    fn segments(&mut self, rng: &mut Rng, operation: u8) -> Vec<Segment> {
        let n = match operation {
            op::FLUSH_DISKCACHE | op::DISCARD => 0,
            op::WRITE_BARRIER => rng.below(4),
            _ if rng.one_in(5) => 12 + rng.below(20),
            _ => 1 + rng.below(11),
        };
        let whole = rng.one_in(2);
        let segment = |gref, rng: &mut Rng| {
            let first = if whole { 0 } else { rng.below(8) as u8 };
            let last = if whole { 7 } else { first + rng.below(u64::from(8 - first)) as u8 };
            Segment { gref, first, last, pad: 0 }
        };
        (0..n).map(|_| segment(self.page(), rng)).collect()
    }

    fn page(&mut self) -> u32 {
        let page = self.pages.pop().unwrap_or_else(|| self.guest.grant(Access::Full));
        self.guest.page(page, |bytes| bytes.fill(0xcc));
        page
    }

    fn bytes(
        &self,
        rng: &mut Rng,
        operation: u8,
        (id, sector, count): (u64, u64, u64),
        segments: &[Segment],
    ) -> [u8; 112] {
        let layout = Layout::WIDE;
        let indirect = matches!(operation, op::READ | op::WRITE) && rng.one_in(4);
        if segments.len() > 11 || indirect {
            let list = self.guest.grant(Access::ReadOnly);
            self.guest.page(list, |page| {
                for (raw, segment) in page.chunks_exact_mut(8).zip(segments) {
                    raw.copy_from_slice(&segment.to_bytes());
                }
            });
            return indirect_entry(layout, operation, id, sector, (segments.len() as u16, list));
        }
        let second = if operation == op::DISCARD { 0 } else { segments.len() as u8 };
        let mut bytes = entry(layout, (operation, second), id, sector, segments);
        if operation == op::DISCARD {
            let at = layout.discard_sectors;
            bytes[at..at + 8].copy_from_slice(&count.to_le_bytes());
        }
        bytes
    }

    fn fill(&self, segments: &[Segment], sector: u64, value: u64) {
        for (s, (gref, at)) in (sector..).zip(places(segments)) {
            self.guest.page(gref, |page| fill(&mut page[at..at + 512], s, value));
        }
    }

    /// Shows what was put into a ring.
    pub fn show(&mut self, queue: usize) {
        if self.rings[queue].show() {
            self.guest.notify(self.rings[queue].port());
        }
    }

    /// Looks at the rings that it was notified of. Gives how many requests ended well and badly.
    ///
    /// # Errors
    /// A sentence about an answer that is wrong.
    pub fn hear(
        &mut self,
        model: &mut Model,
        excused: impl Fn(u8) -> bool,
    ) -> Result<[u64; 2], String> {
        let mut ended = [0; 2];
        for queue in 0..self.rings.len() {
            if self.guest.heard(self.rings[queue].port()) == 0 {
                continue;
            }
            while let Some(answer) = self.rings[queue].answer() {
                self.check(answer, model, &excused)?;
                ended[usize::from(answer.status != status::OKAY)] += 1;
            }
        }
        Ok(ended)
    }

    fn check(
        &mut self,
        answer: Answer,
        model: &mut Model,
        excused: &impl Fn(u8) -> bool,
    ) -> Result<(), String> {
        let asked = self.asked.remove(&answer.id).ok_or("an answer nobody asked for")?;
        let range = asked.sector..asked.sector + asked.count;
        let ok = answer.status == status::OKAY;
        if !ok && !asked.spoiled && !excused(asked.operation) {
            return Err(format!("failed without a fault: {answer:?} to {asked:?}"));
        }
        if ok && asked.spoiled {
            return Err(format!("success without a grant: {asked:?}"));
        }
        self.barriers.remove(&asked.value);
        match asked.operation {
            op::READ if ok => self.check_read(&asked, model)?,
            op::READ => {}
            op::FLUSH_DISKCACHE if ok => model.flush(asked.start),
            op::FLUSH_DISKCACHE => {}
            op::DISCARD => model.end(range, asked.start, Ended::Advice),
            _ if !ok => model.end(range, asked.start, Ended::Failed),
            op::WRITE_BARRIER => {
                model.end(range, asked.start, Ended::Durable);
                model.flush(asked.start);
            }
            _ => model.end(range, asked.start, Ended::Done),
        }
        for segment in asked.segments {
            self.guest.allow(segment.gref, Access::Full);
            self.pages.push(segment.gref);
        }
        Ok(())
    }

    fn check_read(&self, asked: &Asked, model: &Model) -> Result<(), String> {
        for (s, (gref, at)) in (asked.sector..).zip(places(&asked.segments)) {
            let value = self.guest.page(gref, |page| parse(&page[at..at + 512], s));
            if !model.may_read(s, asked.start, value) {
                let why = model.explain(s);
                return Err(format!(
                    "read {value:#x} from sector {s} at {}, allowed {why}",
                    asked.start
                ));
            }
        }
        Ok(())
    }
}

/// Page and byte of each sector.
fn places(segments: &[Segment]) -> impl Iterator<Item = (u32, usize)> + '_ {
    let of = |s: &Segment| {
        let gref = s.gref;
        (s.first..=s.last).map(move |sector| (gref, usize::from(sector) * 512))
    };
    segments.iter().flat_map(of)
}
