//! Writing one image, a request at a time, in the crash order of the daemon's engine.
//!
//! ```text
//!   ask ─► (load, grow) ─► data ∥ along ─► flush? ─► landed 1 ─► write ─► … ─► free ─► finish
//! ```
//! After a failed operation nothing that was cached is believed any more; the driver itself
//! remembers what it may have left half done and mends it with the next change, or in
//! [`Writer::close`].
use std::io;

use super::{Cache, Data, Layer, alone, fetch, read, run};
use crate::{
    Action, Fill, Image, MetaList, Order, Place, Plan, Run, SECTOR_BYTES, Span, Stop, Storage,
    Want, bytes_of, end_place,
};

/// Pieces of metadata that are kept from request to request.
const PIECES_MAX: usize = 4096;
/// Bytes a file is made longer at once, as a hole: its end is on the disk before blocks go below
/// it.
const AHEAD_BYTES: u64 = 32 << 20;

/// An image that is written by one process with nothing else in flight.
///
/// ```
/// # use image::{Image, MemStorage, Span, blocking::{Layer, Writer, read}};
/// # fn disk() -> impl Image { raw_like::Raw }
/// # mod raw_like {
/// #     use image::*;
/// #     pub struct Raw;
/// #     impl Image for Raw {
/// #         fn sectors(&self) -> u64 { 8 }
/// #         fn map(&self, _: &dyn Meta, s: Span) -> Result<Run, Stop> {
/// #             Ok(Run { place: Place::At { byte: s.start * 512 }, count: s.count })
/// #         }
/// #         fn plan(&mut self, _: &mut dyn Meta, s: Span, _: Want) -> Result<Plan, Stop> {
/// #             Ok(Plan::of(Action::Write, s.start * 512, s.count))
/// #         }
/// #         fn landed(&mut self, _: &mut dyn Meta, _: &Plan, _: u8) -> Step { Step::NONE }
/// #         fn finish(&mut self, _: &mut dyn Meta, _: &Plan, _: bool) -> bool { false }
/// #     }
/// # }
/// let storage = MemStorage::new(vec![0; 4096], false);
/// let mut image = disk(); // any driver: raw::Raw, vhd_rs::driver::Vhd
/// let mut writer = Writer::new(&mut image, &storage)?;
/// writer.write(3, &[7; 1024])?;
/// writer.close()?;
///
/// let mut back = [0; 1024];
/// let chain = [Layer { image: &image, storage: &storage }];
/// read(&chain, Span { start: 3, count: 2 }, &mut back)?;
/// assert_eq!(back, [7; 1024]);
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Writer<'a> {
    image: &'a mut dyn Image,
    storage: &'a dyn Storage,
    cache: Cache,
    barriers: bool,
    /// The images below, the nearest first.
    below: Vec<Layer<'a>>,
}

impl<'a> Writer<'a> {
    /// A writer over an open image and its file.
    ///
    /// # Errors
    /// Those of learning the length of the file.
    pub fn new(image: &'a mut dyn Image, storage: &'a dyn Storage) -> io::Result<Writer<'a>> {
        let end = image.end_sector().map_or(0, |_| SECTOR_BYTES);
        let grown = storage.len()?.saturating_sub(end);
        let cache = Cache { grown, durable: u64::MAX, fills: true, ..Cache::default() };
        Ok(Writer { image, storage, cache, barriers: false, below: Vec::new() })
    }

    /// The images below it, the nearest first: a format of large units copies from them what a
    /// change leaves of its unit. Without them they count as zeros.
    pub fn over(mut self, below: Vec<Layer<'a>>) -> Writer<'a> {
        self.below = below;
        self
    }

    /// Flushes between data and the metadata that points at it, and before places are used again,
    /// for
    /// storage with a volatile cache. Without it a crash of the host in the middle may leave
    /// anything.
    pub fn with_barriers(mut self, on: bool) -> Writer<'a> {
        self.barriers = on;
        self.cache.durable = if on { 0 } else { u64::MAX };
        self
    }

    /// Size of the image in sectors.
    pub fn sectors(&self) -> u64 {
        self.image.sectors()
    }

    /// Where the first sectors of a span are.
    ///
    /// # Errors
    /// Those of the file; EIO where the driver says that the image is corrupt.
    pub fn map(&mut self, span: Span) -> io::Result<Run> {
        self.begin();
        run(self.image, self.storage, &mut self.cache, span)
    }

    /// Writes whole sectors from `sector` on. Those before the one that failed may be written.
    ///
    /// # Errors
    /// Those of the file; ENOSPC where the image cannot grow; ERANGE beyond its end.
    pub fn write(&mut self, sector: u64, data: &[u8]) -> io::Result<()> {
        assert!(data.len().is_multiple_of(512), "whole sectors are written");
        let mut left = data;
        let count = u32::try_from(data.len() / 512).map_err(|_| errno(ERANGE))?;
        let mut span = Span { start: sector, count };
        while span.count > 0 {
            let plan = self.change(span, Want::Write, Some(left))?;
            left = left.get(bytes_of(plan.count)..).unwrap_or_default();
            span = span.skip(plan.count);
        }
        Ok(())
    }

    /// Makes sectors read as zeros. `below_zero` says that they do so in all layers below, so that
    /// blocks may be given back; `keep` keeps their space.
    ///
    /// # Errors
    /// As for [`Writer::write`].
    pub fn zero(&mut self, mut span: Span, below_zero: bool, keep: bool) -> io::Result<()> {
        while span.count > 0 {
            let plan = self.change(span, Want::Zero { below_zero, keep }, None)?;
            span = span.skip(plan.count);
        }
        Ok(())
    }

    /// Waits until everything that was written is on the disk.
    ///
    /// # Errors
    /// Those of the file.
    pub fn flush(&mut self) -> io::Result<()> {
        self.storage.sync()
    }

    /// What is over is on the medium.
    fn settle(&mut self) -> io::Result<()> {
        self.storage.sync()?;
        self.cache.now += 1;
        self.cache.durable = self.cache.now;
        Ok(())
    }

    /// Does the last writes of the image (footer, batmap) and flushes.
    ///
    /// # Errors
    /// Those of the file.
    pub fn close(self) -> io::Result<()> {
        self.image.closing().apply(self.storage)?;
        self.storage.sync()
    }

    /// Does what the driver has put off ([`Image::keep_places`]).
    ///
    /// # Errors
    /// Those of the file.
    pub fn catch_up(&mut self) -> io::Result<()> {
        self.image.keep_places(false);
        self.settle()?;
        self.chores()
    }

    /// A new request: everything older is over.
    fn begin(&mut self) {
        self.cache.now += 1;
        if self.cache.pieces.len() > PIECES_MAX {
            self.cache.pieces.clear();
        }
    }

    fn change(&mut self, span: Span, want: Want, data: Option<&[u8]>) -> io::Result<Plan> {
        if span.end() > self.image.sectors() {
            return Err(errno(ERANGE));
        }
        self.begin();
        let plan = self.plan(span, want)?;
        let (chores, done) = self.carry_out(&plan, span, data);
        done?;
        if chores {
            // What is not needed yet may fail: whoever needs it is told then.
            let _ = self.chores();
        }
        Ok(plan)
    }

    fn plan(&mut self, span: Span, want: Want) -> io::Result<Plan> {
        loop {
            match self.image.plan(&mut self.cache, span, want) {
                Ok(plan) => return Ok(plan),
                Err(Stop::Chore) => self.chores()?,
                Err(stop) => self.heed(stop)?,
            }
        }
    }

    /// The driver's own plans, up to one that fails.
    fn chores(&mut self) -> io::Result<()> {
        loop {
            self.begin();
            match self.image.chore(&mut self.cache) {
                Ok(None) => return Ok(()),
                Ok(Some(plan)) => self.carry_out(&plan, Span::default(), None).1?,
                Err(stop) => self.heed(stop)?,
            }
        }
    }

    /// Does what has to happen first.
    fn heed(&mut self, stop: Stop) -> io::Result<()> {
        match stop {
            Stop::Load(r) => self.cache.load(self.storage, r),
            Stop::Grow { end, step } => self.grow(end, step),
            Stop::Flush { .. } => self.settle(),
            Stop::Fail { errno: code, .. } => Err(errno(code)),
            stop @ (Stop::Wait | Stop::Copy | Stop::Chore) => alone(stop),
        }
    }

    /// The file's end moves with its end sector in one write.
    fn grow(&mut self, end: u64, step: u64) -> io::Result<()> {
        let Some(sector) = self.image.end_sector() else {
            self.storage.set_len(end)?;
            self.cache.grown = end;
            return Ok(());
        };
        let mut at = end_place(end, step, AHEAD_BYTES);
        if self.storage.write_at(at, &sector).is_err() {
            at = end_place(end, step, 0);
            self.storage.write_at(at, &sector)?;
        }
        self.storage.sync()?;
        self.cache.grown = at;
        Ok(())
    }

    /// A plan from its first step to its end; whether the driver has chores then.
    fn carry_out(
        &mut self,
        plan: &Plan,
        span: Span,
        data: Option<&[u8]>,
    ) -> (bool, io::Result<()>) {
        let done = self.steps(plan, span, data);
        let chores = self.image.finish(&mut self.cache, plan, done.is_ok());
        if done.is_err() {
            // What the disk holds is not known.
            self.cache.pieces.clear();
        }
        (chores, done)
    }

    /// The crash order: what nothing points at yet, then what points at it, frees last.
    fn steps(&mut self, plan: &Plan, span: Span, data: Option<&[u8]>) -> io::Result<()> {
        let bytes = bytes_of(plan.count);
        let data = || {
            let data = data.and_then(|data| data.get(..bytes));
            data.expect("a plan covers what was asked, and only writes plan to write")
        };
        match (plan.action, plan.fill) {
            (Action::Write, None) => self.storage.write_at(plan.byte, data())?,
            (Action::Write, Some(fill)) => self.fill(fill, span.first(plan.count), Some(data()))?,
            (Action::Zero { punch }, None) => {
                self.storage.zero_at(plan.byte, bytes as u64, punch)?
            }
            (Action::Zero { .. }, Some(fill)) => self.fill(fill, span.first(plan.count), None)?,
            (Action::Discard | Action::Nothing, _) => {}
        }
        self.put(plan.along)?;
        self.order(plan.order)?;
        for number in 1.. {
            let step = self.image.landed(&mut self.cache, plan, number);
            if step.writes.is_empty() {
                break;
            }
            self.put(step.writes)?;
            self.order(step.order)?;
        }
        match plan.free {
            Some(range) => self.storage.zero_at(range.at, u64::from(range.bytes), true),
            None => Ok(()),
        }
    }

    /// Writes a whole unit: a part of it anew (zeros without data), the rest as it reads now.
    fn fill(&mut self, fill: Fill, part: Span, data: Option<&[u8]>) -> io::Result<()> {
        let mut unit = vec![0; fill.span.bytes()];
        let skip = fill.span.before(part.start);
        let (head, rest) = unit.split_at_mut(bytes_of(skip));
        let (middle, tail) = rest.split_at_mut(part.bytes());
        self.copy(fill.head, fill.span.start, head)?;
        if let Some(data) = data {
            middle.copy_from_slice(data);
        }
        self.copy(fill.tail, part.end(), tail)?;
        self.storage.write_at(fill.byte, &unit)
    }

    /// Reads sectors that are copied.
    fn copy(&self, place: Place, sector: u64, buf: &mut [u8]) -> io::Result<()> {
        let count = (buf.len() / 512) as u32;
        let data = match place {
            _ if count == 0 => return Ok(()),
            Place::At { byte } => Data::At(byte),
            Place::Packed(packed) => Data::Packed(packed),
            Place::Zero => {
                buf.fill(0);
                return Ok(());
            }
            Place::Below => return read(&self.below, Span { start: sector, count }, buf),
        };
        fetch(self.image, self.storage, data, buf)
    }

    fn order(&self, order: Order) -> io::Result<()> {
        match order {
            Order::Flush => self.storage.sync(),
            Order::Policy if self.barriers => self.storage.sync(),
            Order::Policy | Order::Any => Ok(()),
        }
    }

    fn put(&self, list: MetaList) -> io::Result<()> {
        list.iter().try_for_each(|r| {
            let bytes = self.cache.pieces.get(&r.at).expect("what is written is cached");
            self.storage.write_at(r.at, bytes)
        })
    }
}

const ERANGE: i32 = 34;

fn errno(code: i32) -> io::Error {
    io::Error::from_raw_os_error(code)
}
