//! Operations in flight: one table for everybody's, so that short transfers are carried on, what
//! the kernel cannot do now is tried again, and what a file system cannot do at all is done another
//! way, in one place.
use crate::limits::{Limits, ZEROS_BYTES};
use crate::meta::BlockId;
use host::arena::Buf;
use request::SlotId;
use request::disk::{Disk, FileId, Kind, Op, Tag};

/// Who waits for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A request's data.
    Slot(SlotId),
    /// What a request copies, read.
    Copy(SlotId),
    /// A packed unit that a request needs, read.
    Unpack(SlotId),
    /// A zeroing that is to be quick or to fail: nothing is written by hand for it.
    Quick(SlotId),
    /// A request that gives space back; failure does no harm.
    Free(SlotId),
    /// A metadata block being loaded.
    Load(BlockId),
    /// A metadata block being written.
    Meta(BlockId),
    /// The growth of a file.
    Grow(FileId),
    /// The flush of a file.
    Sync(FileId),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    owner: Owner,
    op: Op,
    done: u64,
    since: u64,
    /// When a parked operation is tried again, in µs; 0 if it is with the kernel.
    retry_at: u64,
    /// Zeros are written, because the file cannot be told to be zero.
    by_hand: bool,
    /// Transfers in a row that did not get a whole sector further.
    stalls: u8,
}

impl Entry {
    /// Whether only the last sector of packed bytes is missing, or a part of it.
    fn ends_packed(&self) -> bool {
        matches!(self.owner, Owner::Unpack(_)) && self.done + 512 >= u64::from(self.op.buf.bytes)
    }
}

/// The table.
pub struct Ops {
    entries: Box<[Option<Entry>]>,
    free: Vec<Tag>,
    parked: u32,
    zeros: Buf,
    /// Total time after which an operation that the kernel keeps postponing fails, in µs.
    pub timeout_us: u64,
}

const MICROS: u64 = 1_000_000;
/// Transfers of less than a sector that are tried again; at the end of a file they never get
/// further.
const STALLS_MAX: u8 = 8;

impl Ops {
    /// An empty table for as many as the limits allow.
    pub fn new(limits: &Limits) -> Ops {
        let n = limits.ops();
        Ops {
            entries: vec![None; n as usize].into(),
            free: (0..n).rev().collect(),
            parked: 0,
            zeros: limits.zeros(),
            timeout_us: 120 * MICROS,
        }
    }

    /// How many are at work.
    pub fn in_flight(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Sets an operation going. There is always room: see `limits`.
    // Left to itself the compiler makes calls of it: 30 instructions a request (`make bench-cost`).
    #[inline(always)]
    pub fn push(&mut self, disk: &mut impl Disk, owner: Owner, op: Op, now: u64) {
        let tag = self.free.pop().expect("the limits leave room for every operation");
        self.entries[tag as usize] =
            Some(Entry { owner, op, done: 0, since: now, retry_at: 0, by_hand: false, stalls: 0 });
        disk.push(tag, op);
    }

    /// Takes one result. Gives owner, file, kind and outcome when the operation is over; `None`
    /// when it goes on.
    pub fn done(
        &mut self,
        disk: &mut impl Disk,
        tag: Tag,
        result: Result<u32, i32>,
        now: u64,
    ) -> Option<(Owner, Op, Result<(), i32>)> {
        let e = self.entries[tag as usize].as_mut().expect("a result belongs to an operation");
        let outcome = match result {
            Ok(n) => match advance(e, n) {
                Progress::Done => Ok(()),
                Progress::More => {
                    self.resubmit(disk, tag);
                    return None;
                }
                // Packed bytes may end with the file, inside the last sector; whoever unpacks them
                // sees whether they are all.
                Progress::Stuck if e.ends_packed() => Ok(()),
                Progress::Stuck => Err(libc::EIO),
            },
            Err(libc::EAGAIN | libc::EBUSY | libc::EINTR | libc::ENOMEM)
                if now < e.since + self.timeout_us =>
            {
                let pause = if result == Err(libc::EAGAIN) { MICROS } else { MICROS / 100 };
                e.retry_at = now + pause;
                self.parked += 1;
                return None;
            }
            Err(libc::EOPNOTSUPP | libc::ENOSYS) if by_hand_helps(e) => {
                e.by_hand = true;
                self.resubmit(disk, tag);
                return None;
            }
            // Discarding is advice.
            Err(libc::EOPNOTSUPP | libc::ENOSYS) if matches!(e.op.kind, Kind::Discard { .. }) => {
                Ok(())
            }
            Err(errno) => Err(errno),
        };
        let (owner, op) = (e.owner, e.op);
        self.entries[tag as usize] = None;
        self.free.push(tag);
        Some((owner, op, outcome))
    }

    /// Tries again what was parked and is due. When the next one is due, in µs, or `None`.
    pub fn retry(&mut self, disk: &mut impl Disk, now: u64) -> Option<u64> {
        if self.parked == 0 {
            return None;
        }
        let mut next = None;
        for tag in 0..self.entries.len() {
            let Some(e) = &mut self.entries[tag] else { continue };
            if e.retry_at == 0 {
                continue;
            }
            if e.retry_at > now {
                next = Some(next.map_or(e.retry_at, |n: u64| n.min(e.retry_at)));
                continue;
            }
            e.retry_at = 0;
            self.parked -= 1;
            self.resubmit(disk, tag as Tag);
        }
        next
    }

    /// What is left of an operation, as the next one for the kernel.
    fn resubmit(&self, disk: &mut impl Disk, tag: Tag) {
        let e = self.entries[tag as usize].expect("an operation that goes on exists");
        let at = e.op.at + e.done;
        let op = match e.op.kind {
            Kind::Read | Kind::Write => {
                let done = e.done as u32;
                Op { at, buf: e.op.buf.part(done, e.op.buf.bytes - done), ..e.op }
            }
            Kind::Zero { bytes, .. } if e.by_hand => {
                let n = (bytes - e.done).min(u64::from(ZEROS_BYTES)) as u32;
                Op { kind: Kind::Write, at, buf: self.zeros.part(0, n), ..e.op }
            }
            _ => e.op,
        };
        disk.push(tag, op);
    }
}

enum Progress {
    Done,
    More,
    Stuck,
}

fn advance(e: &mut Entry, n: u32) -> Progress {
    let total = match e.op.kind {
        Kind::Read | Kind::Write => u64::from(e.op.buf.bytes),
        Kind::Zero { bytes, .. } if e.by_hand => bytes,
        _ => return Progress::Done,
    };
    // O_DIRECT goes on from a sector boundary only; a transfer that ends inside one is repeated
    // there.
    let before = e.done;
    e.done = (e.done + u64::from(n)).min(total);
    if e.done == total {
        return Progress::Done;
    }
    e.done -= e.done % 512;
    e.stalls = if e.done > before { 0 } else { e.stalls + 1 };
    // No progress: a read at the end of the file, or a device that takes nothing.
    if n == 0 || e.stalls > STALLS_MAX { Progress::Stuck } else { Progress::More }
}

fn by_hand_helps(e: &Entry) -> bool {
    matches!(e.op.kind, Kind::Zero { .. }) && matches!(e.owner, Owner::Slot(_)) && !e.by_hand
}
