//! What requests share: the flush in flight, the growth of a file; and counting.
use super::chain::Chain;
use super::files::{Growth, Todo};
use super::ops::Owner;
use super::sets::SlotSet;
use super::slot::{Cause, State};
use super::{Engine, stats};
use host::arena::Buf;
use request::disk::{Disk, FileId, Kind, Op};
use request::{SlotId, Verb};

impl<D: Disk> Engine<D> {
    pub(super) fn sync(&mut self, id: SlotId) {
        self.table[id].state = State::Syncing;
        self.want_flush(id);
    }

    pub(super) fn want_flush(&mut self, id: SlotId) {
        self.flushing.queued.insert(id);
        self.table[id].pending += 1;
        self.begin_flush();
    }

    /// Wants what was over at `after` on the medium of `file`: by the flush in flight if that will
    /// do.
    pub(super) fn flush_after(&mut self, id: SlotId, file: FileId, after: u64) {
        let flushing = &self.flushing;
        let covers = flushing.parts > 0 && flushing.number > after && self.writes_to(file);
        if covers || self.map.files[usize::from(file.0)].durable > after {
            self.table.progress |= self.flushing.parts == 0;
            return self.retry_later(id);
        }
        self.want_flush(id);
    }

    fn writes_to(&self, file: FileId) -> bool {
        self.flushing.written.contains(&Some(file))
    }

    /// One flush at a time; it covers what completed before it began, so later comers take the next
    /// one. Every file that requests were written to is flushed.
    fn begin_flush(&mut self) {
        if self.flushing.parts > 0 || self.flushing.queued.is_empty() {
            return;
        }
        self.flushing.joined = self.flushing.queued.take();
        self.flushing.outcome = Ok(());
        self.flushing.number = self.table.next_seq();
        for file in self.flushing.written.into_iter().flatten() {
            self.flushing.parts += 1;
            let op = Op { file, kind: Kind::Sync, at: 0, buf: Buf::NONE };
            self.io.push(Owner::Sync(file), op);
        }
    }

    /// One of the files is flushed.
    pub(super) fn flushed(&mut self, file: FileId, outcome: Result<(), i32>) {
        if outcome.is_ok() {
            self.map.files[usize::from(file.0)].durable = self.flushing.number;
        } else if let Err(errno) = outcome
            && self.may_be_left_behind(file)
        {
            self.lose_mirror(file, errno);
            self.flushing.lost = Some((file, errno));
        } else {
            self.flushing.outcome = outcome.map_err(|errno| (file, errno));
        }
        self.flushing.parts -= 1;
        if self.flushing.parts == 0 {
            let joined = self.flushing.joined.take();
            self.fail_unflushed(joined);
            let (file, outcome) = match self.flushing.outcome {
                Ok(()) => (file, Ok(())),
                Err((file, errno)) => (file, Err(errno)),
            };
            self.wake(joined, file, outcome);
            self.begin_flush();
        }
    }

    /// A file was not flushed that the disk goes on without. Who works on it must not let metadata
    /// point at what is not there.
    fn fail_unflushed(&mut self, mut joined: SlotSet) {
        let Some((file, errno)) = self.flushing.lost.take() else { return };
        while let Some(id) = joined.pop() {
            if self.slot(id).target == file && !matches!(self.slot(id).request.verb, Verb::Flush) {
                self.table.fail(id, Cause { file, errno, why: "" });
            }
        }
    }

    /// Gives the files that may grow what they end with.
    pub(super) fn set_ends(&mut self, chain: &Chain) {
        let secondary = chain.secondary().map(|secondary| secondary.file);
        for (which, file) in (0..).zip([Some(chain.top()), secondary]) {
            let Some(file) = file else { continue };
            let layer = &chain.layers[usize::from(file.0)];
            let Some(sector) = layer.image.end_sector() else { continue };
            let page = self.rules.limits.end_page(which);
            let bytes = self.io.disk.arena().slice_mut(page);
            bytes.fill(0);
            bytes[page.bytes as usize - sector.len()..].copy_from_slice(&sector);
            self.map.files[usize::from(file.0)].set_end(page);
        }
    }

    pub(super) fn grow(&mut self, id: SlotId, file: FileId, end: u64, step: u64) {
        match self.map.files[usize::from(file.0)].want(end, step, id) {
            Growth::There => {
                self.table.progress = true;
                return self.retry_later(id);
            }
            Growth::NoSpace => {
                let why = "the file cannot become longer";
                self.table.fail(id, Cause { file, errno: libc::ENOSPC, why });
                return;
            }
            Growth::Waiting => {}
            Growth::Start(todo) => self.grow_on(file, todo),
        }
        self.table[id].pending += 1;
    }

    fn grow_on(&mut self, file: FileId, Todo { kind, at, buf }: Todo) {
        self.io.push(Owner::Grow(file), Op { file, kind, at, buf });
    }

    pub(super) fn grew(&mut self, file: FileId, outcome: Result<(), i32>) {
        match self.map.files[usize::from(file.0)].grew(outcome) {
            Err(todo) => self.grow_on(file, todo),
            Ok((waiters, outcome)) => {
                self.wake(waiters, file, outcome);
            }
        }
    }

    // ---- counting ------------------------------------------------------------------------------

    pub(super) fn hit(&mut self, layer: FileId, dir: usize, count: u32) {
        let chain = self.map.chain.as_mut().expect("a request runs on a chain");
        chain.layers[usize::from(layer.0)].hits[dir] += u64::from(count);
    }

    pub(super) fn count_failure(&mut self, op: &Op) {
        let Some(chain) = &mut self.map.chain else { return };
        let dir = usize::from(op.kind != Kind::Read);
        chain.layers[usize::from(op.file.0)].fails[dir] += u64::from(op.buf.bytes / 512);
    }

    pub(super) fn count(&mut self, id: SlotId) {
        let slot = &self.table[id];
        let (sectors, us) =
            (u64::from(slot.request.span.count), self.io.now.saturating_sub(slot.since));
        let (op, dir) = match slot.request.verb {
            Verb::Read => (0, Some(0)),
            Verb::Write { .. } => (1, Some(1)),
            Verb::Flush => (2, None),
            Verb::Discard { .. } => (3, None),
            Verb::Zero { .. } => (4, None),
            Verb::Status => return,
        };
        let stats = &mut self.stats;
        stats.ops[op] += 1;
        stats.errors += u64::from(slot.error.is_some());
        if let Some(dir) = dir {
            stats.bytes[dir] += sectors * 512;
            stats.ticks_us[dir] += us;
            stats.latency[dir][stats::bucket(us)] += 1;
        }
    }
}
