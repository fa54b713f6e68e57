//! Block devices of this kernel: `/dev/ublkbN`, served by the process itself (Linux 6.0 and later).
//!
//! ```text
//!   kernel ─► FETCH of a tag ends ─► take ─► engine ─► complete ─► COMMIT_AND_FETCH, one call a turn ─► kernel
//!                  data of writes is there                data of reads is taken here
//! ```
//! A tag is a slot is a buffer, for as long as the device lives: the kernel copies data of writes
//! into the tag's slot before we see the request, and data of reads out of it when we answer. So a
//! request needs no system call and no copy of ours; the price is a slot of 64 KiB a tag, taken
//! beside the disk's others (docs/devices.md). The kernel cuts longer requests, by the device's
//! limits.
//!
//! What a FETCH gave is never read from the mapped table twice. Nothing here allocates, blocks or
//! logs once the device is started.
pub mod abi;
pub mod device;
mod orphans;
mod sys;

use std::collections::VecDeque;
use std::io;

use image::Span;

pub use self::device::{Added, DeviceError, Shape, block_path};
pub use self::sys::Ring;

use self::abi::{IoDesc, op};
use crate::note::Note;
use crate::{Frontend, Mode};
use request::{Outcome, Owner, Request, SlotId, Slots, Source, Verb};

/// Tags of a device, over all its queues.
pub const TAGS_MAX: u16 = 64;

/// The kernel's side, or what stands in for it.
pub trait Commands {
    /// Queues FETCH (no answer) or COMMIT_AND_FETCH of a tag, by its place among all tags, with its
    /// buffer. The buffer is the kernel's until the command is over.
    fn queue(&mut self, place: u16, answer: Option<i32>, buffer: &mut [u8]);
    /// Hands what is queued to the kernel.
    ///
    /// # Errors
    /// Those of io_uring_enter.
    fn submit(&mut self) -> io::Result<()>;
    /// The same for the first FETCH of all tags, with which the kernel learns whose device it is.
    ///
    /// # Errors
    /// Those of io_uring_enter.
    fn begin(&mut self) -> io::Result<()> {
        self.submit()
    }
    /// The next command that is over: its place, and 0 if there is a request.
    fn pop(&mut self) -> Option<(u16, i32)>;
    /// Whether `pop` gives nothing.
    fn is_empty(&mut self) -> bool;
    /// The request of a tag whose command is over.
    fn request(&self, place: u16) -> IoDesc;
}

/// Where a tag is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// With the kernel.
    Fetching,
    /// Its request waits, while the disk is paused.
    Waiting,
    /// Its request is in the engine.
    Busy,
    /// The kernel gives no more requests.
    Ended,
}

#[derive(Clone, Copy, Debug)]
struct Tag {
    slot: SlotId,
    state: State,
    /// Of its request.
    desc: IoDesc,
}

/// What was counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests: read, write, flush, discard, zeros, others.
    pub requests: [u64; 6],
    /// Answers with an error.
    pub errors: u64,
    /// Calls of the kernel that handed over answers.
    pub submits: u64,
}

/// One block device.
pub struct Ublk<C> {
    commands: C,
    tags: Vec<Tag>,
    /// Tags whose requests wait, in their order.
    line: VecDeque<u16>,
    mode: Mode,
    queued: bool,
    busy: u16,
    ended: u16,
    counters: Counters,
    failed: Option<io::Error>,
}

impl<C: Commands> Ublk<C> {
    /// Takes a slot for each tag and waits for requests; `None` if there are not that many slots.
    ///
    /// # Errors
    /// When the kernel does not take the commands.
    pub fn start(commands: C, tags: u16, slots: &mut dyn Slots) -> io::Result<Option<Ublk<C>>> {
        let bytes = slots.slot_bytes_max();
        let mut device = Ublk {
            commands,
            tags: Vec::with_capacity(tags.into()),
            line: VecDeque::with_capacity(tags.into()),
            mode: Mode::Serving,
            queued: false,
            busy: 0,
            ended: 0,
            counters: Counters::default(),
            failed: None,
        };
        for _ in 0..tags {
            let Some(slot) = slots.reserve(bytes) else {
                device.release(slots);
                return Ok(None);
            };
            device.tags.push(Tag { slot, state: State::Fetching, desc: IoDesc::default() });
        }
        for place in 0..tags {
            device.fetch(slots, place, None);
        }
        device.queued = false;
        device.commands.begin()?;
        // What the kernel refuses is over at once.
        device.gather();
        Ok(Some(device))
    }

    /// The kernel's side.
    pub fn commands(&self) -> &C {
        &self.commands
    }

    /// Whether the kernel has no command of ours any more.
    pub fn has_ended(&self) -> bool {
        usize::from(self.ended) == self.tags.len()
    }

    /// Whether the kernel has given up some tag.
    pub fn is_ending(&self) -> bool {
        self.ended > 0
    }

    /// Tags in all.
    pub fn tags(&self) -> usize {
        self.tags.len()
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What the kernel said when it did not take our answers; once.
    pub fn take_error(&mut self) -> Option<io::Error> {
        self.failed.take()
    }

    /// Gives the slots back and the kernel's side away. No request is in the engine.
    pub fn end(mut self, slots: &mut dyn Slots) {
        assert!(self.busy == 0, "a device is given up when it is idle");
        self.release(slots);
    }

    fn release(&mut self, slots: &mut dyn Slots) {
        self.tags.drain(..).for_each(|tag| slots.release(tag.slot));
    }

    fn fetch(&mut self, slots: &mut dyn Slots, place: u16, answer: Option<i32>) {
        let tag = &mut self.tags[usize::from(place)];
        tag.state = State::Fetching;
        self.commands.queue(place, answer, slots.buffer_mut(tag.slot));
        self.queued = true;
    }

    fn answer(&mut self, slots: &mut dyn Slots, place: u16, answer: i32) {
        self.counters.errors += u64::from(answer < 0);
        self.fetch(slots, place, Some(answer));
    }

    /// Takes over what the kernel has for us.
    fn gather(&mut self) {
        for _ in 0..self.tags.len() {
            let Some((place, result)) = self.commands.pop() else { return };
            let tag = &mut self.tags[usize::from(place)];
            assert!(tag.state == State::Fetching, "a command is over once");
            if result == abi::RESULT_REQUEST {
                tag.state = State::Waiting;
                tag.desc = self.commands.request(place);
                self.line.push_back(place);
            } else {
                tag.state = State::Ended;
                self.ended += 1;
            }
        }
    }

    fn issue(&mut self, slots: &mut dyn Slots, place: u16) {
        let Tag { slot, desc, .. } = self.tags[usize::from(place)];
        let (kind, wanted) = meaning(&desc, slots.slot_bytes_max());
        self.counters.requests[kind] += 1;
        let (verb, span) = match wanted {
            Ok(wanted) => wanted,
            Err(errno) => return self.answer(slots, place, -errno),
        };
        self.tags[usize::from(place)].state = State::Busy;
        self.busy += 1;
        slots.start(
            slot,
            Request { verb, span, owner: Owner { source: Source::Ublk, cookie: place.into() } },
        );
    }
}

/// What a request is counted as, and what the engine is asked for.
fn meaning(desc: &IoDesc, bytes_max: u32) -> (usize, Result<(Verb, Span), i32>) {
    let span = Span { start: desc.start, count: desc.sectors };
    let fua = desc.op_flags & op::FUA != 0;
    let keep = desc.op_flags & op::NOUNMAP != 0;
    let fits = desc.sectors <= bytes_max / 512;
    let data = |verb| if fits { Ok((verb, span)) } else { Err(libc::EINVAL) };
    match desc.op_flags as u8 {
        op::READ => (0, data(Verb::Read)),
        op::WRITE => (1, data(Verb::Write { fua })),
        op::FLUSH => (2, Ok((Verb::Flush, Span::default()))),
        op::DISCARD => (3, Ok((Verb::Discard { fua }, span))),
        op::WRITE_ZEROES => (4, Ok((Verb::Zero { keep, fast: false, fua }, span))),
        _ => (5, Err(libc::EOPNOTSUPP)),
    }
}

impl<C: Commands> Frontend for Ublk<C> {
    fn take(&mut self, slots: &mut dyn Slots) -> bool {
        self.gather();
        for _ in 0..self.line.len() {
            let Some(place) = self.line.pop_front() else { break };
            match self.mode {
                Mode::Serving => self.issue(slots, place),
                Mode::Refusing => self.answer(slots, place, -libc::EIO),
                Mode::Holding => {
                    self.line.push_front(place);
                    break;
                }
            }
        }
        false
    }

    fn complete(
        &mut self,
        slots: &mut dyn Slots,
        slot: SlotId,
        request: &Request,
        outcome: Outcome,
    ) {
        let place = request.owner.cookie as u16;
        let tag = self.tags[usize::from(place)];
        assert!(tag.slot == slot && tag.state == State::Busy, "a tag has its slot");
        self.busy -= 1;
        slots.reuse(slot);
        let answer = match (outcome, request.verb) {
            (Err(errno), _) => -errno,
            (Ok(_), Verb::Read | Verb::Write { .. }) => (request.span.count * 512) as i32,
            (Ok(_), _) => 0,
        };
        self.answer(slots, place, answer);
    }

    fn kick(&mut self, _slots: &mut dyn Slots) {
        if !std::mem::take(&mut self.queued) {
            return;
        }
        self.counters.submits += 1;
        if let Err(error) = self.commands.submit() {
            // Tried again in the next turn.
            self.queued = true;
            self.failed = Some(error);
        }
    }

    fn idle(&self) -> bool {
        self.busy == 0
    }

    fn pending(&mut self, _: &dyn Slots) -> bool {
        !self.commands.is_empty() || (self.mode != Mode::Holding && !self.line.is_empty())
    }

    fn suspend(&mut self) {
        self.mode = Mode::Holding;
    }

    fn resume(&mut self) {
        self.mode = Mode::Serving;
    }

    fn refuse(&mut self) {
        self.mode = Mode::Refusing;
    }

    fn has_arrived(&mut self, slots: &dyn Slots) -> bool {
        self.pending(slots)
    }

    fn take_note(&mut self) -> Option<Note> {
        let error = self.take_error()?;
        Some(Note::warning(format!("the block device takes no answers: {error}")))
    }
}
