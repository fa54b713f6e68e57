//! What each sector may hold: the values that some order of the requests allows.
//!
//! Every write has a value of its own. A value stays possible until a write that began after it was
//! over has succeeded; so requests that overlap in time may land in any order, and a failed one may
//! have landed or not.

/// The value of sectors that read as zeros.
pub const ZERO: u64 = 0;
/// A value that stands for anything (discarded on a device).
pub const ANY: u64 = u64::MAX;

#[derive(Clone, Copy, Debug)]
struct Value {
    value: u64,
    start: Time,
    /// When the write was over; [`NEVER`] while it is at work.
    end: Time,
    /// When a later write replaced it.
    gone: Time,
    /// The later write is on the medium: this one does not come back.
    sunk: bool,
    /// It is on the medium itself (FUA).
    durable: bool,
    /// It may have landed in one image and not in another: it failed, or was advice.
    loose: bool,
}

/// Half as wide as the clock: there are many values, and each write looks at all of its sectors.
type Time = u32;

const NEVER: Time = Time::MAX;

/// A time of a life, which has far fewer events than that.
fn time(time: u64) -> Time {
    let short = Time::try_from(time).expect("a life is short");
    assert!(short < NEVER, "a life is short");
    short
}

impl Value {
    fn new(value: u64, start: Time, end: Time) -> Value {
        Value { value, start, end, gone: NEVER, sunk: false, durable: false, loose: false }
    }
}

/// The model of a disk.
pub struct Model {
    sectors: Vec<Vec<Value>>,
    /// The clock: each event has its own time.
    pub time: u64,
    flushed: u64,
}

impl Model {
    /// A disk whose sectors hold these values.
    pub fn new(values: &[u64]) -> Model {
        let known = |v: &u64| vec![Value::new(*v, 0, 0)];
        Model { sectors: values.iter().map(known).collect(), time: 1, flushed: 0 }
    }

    /// The same for another life: as a new one, in the memory of this one.
    pub fn restart(&mut self, values: &[u64]) {
        assert!(self.sectors.len() == values.len(), "a disk keeps its size");
        for (sector, value) in self.sectors.iter_mut().zip(values) {
            sector.clear();
            sector.push(Value::new(*value, 0, 0));
        }
        (self.time, self.flushed) = (1, 0);
    }

    /// A time of its own.
    pub fn tick(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// A write (or zero) of a range begins now.
    pub fn begin(&mut self, range: std::ops::Range<u64>, value: u64) {
        let start = time(self.tick());
        for s in range {
            self.sectors[s as usize].push(Value::new(value, start, NEVER));
        }
    }

    /// The write that began at `start` is over.
    pub fn end(&mut self, range: std::ops::Range<u64>, start: u64, how: Ended) {
        let (now, start) = (time(self.tick()), time(start));
        let landed = matches!(how, Ended::Done | Ended::Durable);
        for s in range {
            for v in &mut self.sectors[s as usize] {
                if v.start == start {
                    v.end = now;
                    v.durable = how == Ended::Durable;
                    v.loose = !landed;
                } else if landed && v.end < start {
                    v.gone = v.gone.min(now);
                    v.sunk |= how == Ended::Durable;
                }
            }
        }
    }

    /// A flush that began at `start` succeeded.
    pub fn flush(&mut self, start: u64) {
        self.flushed = self.flushed.max(start);
    }

    /// Whether a read that began at `start` may have found `value`.
    pub fn may_read(&self, sector: u64, start: u64, value: u64) -> bool {
        let start = time(start);
        self.sectors[sector as usize]
            .iter()
            .any(|v| v.gone > start && (v.value == value || v.value == ANY))
    }

    /// A read that began at `start` found `value`: what was over before and is not it does not come
    /// back.
    pub fn observe(&mut self, sector: u64, start: u64, value: u64) {
        let (now, start) = (time(self.time), time(start));
        let values = &mut self.sectors[sector as usize];
        // One that is at work may have been read before it is where a kill leaves it; it is asked
        // again.
        // Zeros are many writes' value.
        let over = |v: &Value| v.end < start && !v.loose;
        let mut found = values.iter().filter(|v| v.value == value && v.gone > start);
        if !found.all(over) || values.iter().any(|v| v.value == ANY) {
            return;
        }
        for other in values.iter_mut().filter(|v| v.value != value && v.end < start && !v.loose) {
            other.gone = other.gone.min(now);
        }
    }

    /// Whether a sector may hold anything after a power cut now, if nothing keeps the order in
    /// which a
    /// volatile cache is written back: a change of it is not on the medium for certain.
    pub fn unsettled(&self, sector: u64) -> bool {
        let flushed = time(self.flushed);
        self.sectors[sector as usize]
            .iter()
            .any(|v| v.start > 0 && v.end >= flushed && !v.durable && !v.sunk)
    }

    /// Whether a change of a sector was not over at `time`.
    pub fn changed_since(&self, sector: u64, time: u64) -> bool {
        self.sectors[sector as usize].iter().any(|v| u64::from(v.end) > time)
    }

    /// Whether a sector may ever have held `value`.
    pub fn held(&self, sector: u64, value: u64) -> bool {
        self.sectors[sector as usize].iter().any(|v| v.value == value || v.value == ANY)
    }

    /// Whether `value` may be there after a power cut now.
    pub fn may_survive(&self, sector: u64, value: u64, volatile: bool) -> bool {
        let flushed = time(self.flushed);
        self.sectors[sector as usize].iter().any(|v| {
            let there = v.gone == NEVER || (volatile && v.gone > flushed && !v.sunk);
            there && (v.value == value || v.value == ANY)
        })
    }

    /// For a failure's report.
    pub fn explain(&self, sector: u64) -> String {
        format!("flushed {} of {}: {:?}", self.flushed, self.time, self.sectors[sector as usize])
    }
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an error: it may have landed or not.
    Failed,
    /// A discard: it may have landed or not.
    Advice,
    /// With success.
    Done,
    /// With success, and on the medium (FUA).
    Durable,
}

/// Fills a sector with a value that says where it belongs.
pub fn fill(buf: &mut [u8], sector: u64, value: u64) {
    let pair = pair(sector, value).to_le_bytes();
    let (pairs, _) = buf.as_chunks_mut::<16>();
    pairs.fill(pair);
}

/// The value of a sector; `ANY` if it is none of ours or belongs elsewhere.
pub fn parse(buf: &[u8], sector: u64) -> u64 {
    let value = u64::from_le_bytes(buf[..8].try_into().expect("eight bytes"));
    let pair = pair(sector, value);
    let (pairs, _) = buf.as_chunks::<16>();
    // Without a branch for each: this looks at every byte of every read.
    let differs = |bits, bytes: &[u8; 16]| bits | (u128::from_le_bytes(*bytes) ^ pair);
    if pairs.iter().fold(0, differs) == 0 { value } else { ANY }
}

/// What is repeated all over a sector: its value and where it belongs.
fn pair(sector: u64, value: u64) -> u128 {
    let place = if value == ZERO { 0 } else { sector + 1 };
    u128::from(value) | u128::from(place) << 64
}
