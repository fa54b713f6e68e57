//! Writing one image, a request at a time, in the crash order of the daemon's engine.
//!
//! ```text
//!   ask ─► (load, grow) ─► data ∥ along ─► barrier? ─► landed 1 ─► write ─► landed 2 … ─► free ─► finish
//! ```
//! After a failed operation nothing that was cached is believed any more; the driver itself
//! remembers what it may have left half done and mends it with the next change, or in
//! [`Writer::close`].
use std::io;

use super::{Cache, alone, run};
use crate::{
    Action, Image, MetaList, Plan, Run, SECTOR_BYTES, Span, Stop, Storage, Want, end_place,
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
/// #             Ok(Plan { action: Action::Write, byte: s.start * 512, count: s.count,
/// #                 along: MetaList::EMPTY, pins: MetaList::EMPTY, free: None, barrier: false,
/// #                 token: [0; 2] })
/// #         }
/// #         fn landed(&mut self, _: &mut dyn Meta, _: &Plan, _: u8) -> MetaList { MetaList::EMPTY }
/// #         fn finish(&mut self, _: &mut dyn Meta, _: &Plan, _: bool) {}
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
}

impl<'a> Writer<'a> {
    /// A writer over an open image and its file.
    ///
    /// # Errors
    /// Those of learning the length of the file.
    pub fn new(image: &'a mut dyn Image, storage: &'a dyn Storage) -> io::Result<Writer<'a>> {
        let end = image.end_sector().map_or(0, |_| SECTOR_BYTES);
        let grown = storage.len()?.saturating_sub(end);
        let cache = Cache { grown, durable: u64::MAX, ..Cache::default() };
        Ok(Writer { image, storage, cache, barriers: false })
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
            left = left.get(plan.count as usize * 512..).unwrap_or_default();
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
        let done = self.carry_out(&plan, data);
        self.image.finish(&mut self.cache, &plan, done.is_ok());
        if done.is_err() {
            // What the disk holds is not known.
            self.cache.pieces.clear();
        }
        done.map(|()| plan)
    }

    fn plan(&mut self, span: Span, want: Want) -> io::Result<Plan> {
        loop {
            match self.image.plan(&mut self.cache, span, want) {
                Ok(plan) => return Ok(plan),
                Err(Stop::Load(r)) => self.cache.load(self.storage, r)?,
                Err(Stop::Grow { end, step }) => self.grow(end, step)?,
                Err(Stop::Flush { .. }) => self.settle()?,
                Err(Stop::Fail { errno: code, .. }) => return Err(errno(code)),
                Err(stop @ Stop::Wait) => alone(stop),
            }
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

    /// The crash order: what nothing points at yet, then what points at it, frees last.
    fn carry_out(&mut self, plan: &Plan, data: Option<&[u8]>) -> io::Result<()> {
        let bytes = u64::from(plan.count) * SECTOR_BYTES;
        match (plan.action, data) {
            (Action::Write, Some(data)) => {
                let data = data.get(..bytes as usize).expect("a plan covers what was asked");
                self.storage.write_at(plan.byte, data)?;
            }
            (Action::Write, None) => unreachable!("only writes plan to write"),
            (Action::Zero { punch }, _) => self.storage.zero_at(plan.byte, bytes, punch)?,
            (Action::Discard | Action::Nothing, _) => {}
        }
        self.put(plan.along)?;
        if plan.barrier && self.barriers {
            self.storage.sync()?;
        }
        for phase in 1.. {
            let list = self.image.landed(&mut self.cache, plan, phase);
            if list.is_empty() {
                break;
            }
            self.put(list)?;
        }
        match plan.free {
            Some((at, bytes)) => self.storage.zero_at(at, u64::from(bytes), true),
            None => Ok(()),
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
