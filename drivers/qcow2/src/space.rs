//! Room for clusters in the file: where new ones go, and what becomes of those that go.
//!
//! ```text
//!   taken ─► unpointed ─► dead ─(a flush)─► counted down, hole ─► free ─► taken
//! ```
//! New clusters go first to free ones of this session, then behind all that was ever counted, then
//! to what a walk through the counts finds. A count goes down when a flush has brought to the
//! medium that nothing points there any more; until those who began before are over, a cluster is
//! not used again. Counts go down without waiting for such readers: those may wait for the count.
use std::collections::VecDeque;

use image::{Meta, Stop};

use crate::bug::Bug;
use crate::tables::Tables;
use crate::users::{Gone, USERS_MAX, Why};

/// Runs of clusters that are remembered as free; others are found again by a walk.
const FREE_MAX: usize = 1024;
/// Runs of clusters whose counts wait to go down, before others that would have to are put off.
const DEAD_MAX: usize = 1024;

/// Free clusters of the file.
#[derive(Clone, Copy, Debug)]
struct Free {
    host: u64,
    count: u64,
    /// The number of the newest request when they became free.
    since: u64,
}

/// Where a cluster goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// The first.
    pub host: u64,
    /// Side by side in the file and in one piece of counts.
    pub count: u64,
    /// Nothing was ever written there.
    pub blank: bool,
}

/// Why there is none just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRoom {
    /// This count block has to be made first.
    Block(u64),
    /// Something else.
    Stop(Stop),
}

/// What is known of the room in the file.
#[derive(Debug)]
pub struct Space {
    cluster: u64,
    /// The first cluster behind all that were ever counted.
    next: u64,
    /// The first one that cannot be used: the end of a device, or of what can be counted.
    limit: u64,
    device: bool,
    free: Vec<Free>,
    dead: VecDeque<(Gone, u64)>,
    /// Those whose counts are on their way down, and holes made in their place.
    going: Gone,
    /// Where the walk through the counts is, and how many it passed without a free one.
    cursor: u64,
    passed: u64,
    /// Nothing is counted down: others read there.
    keeps_dead: bool,
    /// Counts may be too high on the disk: something was left for the next to repair.
    leaks: bool,
    bug: Bug,
}

impl Space {
    /// Of a file whose counted clusters end before `next`; `limit`: clusters that it can have.
    pub fn new(cluster: u64, next: u64, limit: u64, device: bool) -> Space {
        Space {
            cluster,
            next,
            limit,
            device,
            free: Vec::with_capacity(FREE_MAX + 1),
            dead: VecDeque::with_capacity(DEAD_MAX + USERS_MAX),
            going: Gone::NONE,
            cursor: 0,
            passed: 0,
            keeps_dead: false,
            leaks: false,
            bug: Bug::None,
        }
    }

    /// Plants a bug.
    #[cfg(any(debug_assertions, feature = "canary"))]
    pub fn plant(&mut self, bug: Bug) {
        self.bug = bug;
    }

    fn has(&self, bug: Bug) -> bool {
        cfg!(any(debug_assertions, feature = "canary")) && self.bug == bug
    }

    /// The byte before which all is that was ever counted.
    pub fn end(&self) -> u64 {
        self.next * self.cluster
    }

    /// Whether a cluster was ever counted.
    pub fn counted(&self, host: u64) -> bool {
        host < self.next
    }

    /// Something could not be given back.
    pub fn leak(&mut self) {
        self.leaks = true;
    }

    /// Whether counts may be too high on the disk.
    pub fn leaks(&self) -> bool {
        self.leaks || !self.dead.is_empty()
    }

    // ---- taking --------------------------------------------------------------------------------

    /// Room for so many clusters side by side, or for fewer. Nothing is taken yet.
    pub fn room(&mut self, tables: &Tables, meta: &dyn Meta, count: u64) -> Result<Room, NoRoom> {
        let in_piece = |host: u64| tables.piece_counts() - host % tables.piece_counts();
        let oldest = if self.has(Bug::UsedAgainAtOnce) { u64::MAX } else { meta.oldest() };
        let free = self.free.iter().filter(|free| free.since < oldest).min_by_key(|free| free.host);
        if let Some(Free { host, count: there, .. }) = free.copied() {
            let count = count.min(there).min(in_piece(host));
            return Ok(Room { host, count, blank: false });
        }
        if self.next < self.limit {
            if tables.count_piece(self.next).is_none() {
                return Err(NoRoom::Block(tables.block_of(self.next)));
            }
            return self.behind(meta, count.min(in_piece(self.next))).map_err(NoRoom::Stop);
        }
        self.walk(tables, meta).map_err(NoRoom::Stop)
    }

    /// Behind all that were ever counted: also for a count block, which counts itself.
    pub fn behind(&self, meta: &dyn Meta, count: u64) -> Result<Room, Stop> {
        let count = count.min(self.limit - self.next);
        if count == 0 {
            return Err(FULL);
        }
        let (byte, end) = (self.end(), self.end() + count * self.cluster);
        if !self.device && end > meta.grown() {
            return Err(Stop::Grow { end, step: self.cluster });
        }
        let blank = (!self.device && byte >= meta.blank_from()) || self.has(Bug::AllBlank);
        Ok(Room { host: self.next, count, blank })
    }

    /// The next cluster that counts nothing, by a walk through all counts.
    fn walk(&mut self, tables: &Tables, meta: &dyn Meta) -> Result<Room, Stop> {
        while self.passed < self.next {
            let from = self.cursor % self.next;
            let piece_end = (from / tables.piece_counts() + 1) * tables.piece_counts();
            let end = piece_end.min(self.next);
            if let Some((r, at)) = tables.count_piece(from) {
                let piece = meta.get(r)?;
                let counts = (from..end).zip(at..);
                let found = counts.into_iter().find(|(_, at)| tables.count(piece, *at) == 0);
                let found = found.map(|(host, _)| host);
                if let Some(host) = found {
                    (self.cursor, self.passed) = (host, self.passed + (host - from));
                    if !self.waits(host) && !tables.owns(host) {
                        return Ok(Room { host, count: 1, blank: false });
                    }
                    (self.cursor, self.passed) = (host + 1, self.passed + 1);
                    continue;
                }
            }
            (self.cursor, self.passed) = (end, self.passed + (end - from));
        }
        Err(FULL)
    }

    /// Whether a cluster that counts nothing may still be read by those who began before, or is to
    /// be counted down for one who failed.
    fn waits(&self, host: u64) -> bool {
        let free = |free: &Free| (free.host..free.host + free.count).contains(&host);
        self.going.has(host)
            || self.free.iter().any(free)
            || self.dead.iter().any(|(gone, _)| gone.has(host))
    }

    /// Takes what [`Space::room`] has found.
    pub fn take(&mut self, room: Room) {
        let Room { host, count, .. } = room;
        if host == self.next {
            self.next += count;
            return;
        }
        let Some(i) = self.free.iter().position(|free| free.host == host) else {
            (self.cursor, self.passed) = (host + 1, 0);
            return;
        };
        let free = &mut self.free[i];
        (free.host, free.count) = (free.host + count, free.count - count);
        if free.count == 0 {
            self.free.swap_remove(i);
        }
    }

    // ---- giving back ---------------------------------------------------------------------------

    /// Whether clusters may go now; if not, whether that will change by itself, as counts go down.
    pub fn may_go(&self, meta: &dyn Meta) -> Result<(), bool> {
        match self.dead.len() < DEAD_MAX || self.keeps_dead {
            true => Ok(()),
            false => Err(self.has_place(meta)),
        }
    }

    /// Whether further free clusters can be remembered, or some forgotten, to be found by a walk.
    fn has_place(&self, meta: &dyn Meta) -> bool {
        self.free.len() < FREE_MAX || self.free.iter().any(|free| free.since < meta.oldest())
    }

    /// Nothing points at these clusters any more.
    pub fn go(&mut self, gone: Gone, now: u64) {
        if gone.count > 0 {
            self.dead.push_back((gone, now));
        }
    }

    /// Whether clusters that lose their place stay counted, and as they are. Only for who may
    /// allocate: there is no limit to them.
    pub fn keep_dead(&mut self, keep: bool) {
        self.keeps_dead = keep;
    }

    /// Whether counts wait to go down.
    pub fn has_dead(&self) -> bool {
        !self.dead.is_empty()
    }

    /// The next clusters whose counts may go down: those of one piece.
    pub fn next_dead(&mut self, tables: &Tables, meta: &dyn Meta) -> Result<Option<Gone>, Stop> {
        let Some((gone, since)) = self.dead.front().copied() else { return Ok(None) };
        if !self.has_place(meta) || self.keeps_dead {
            return Ok(None);
        }
        let durable = meta.durable() > since || self.has(Bug::CountBeforeTheEntry);
        if gone.why != Why::Unused && !durable {
            return Err(Stop::Flush { after: since });
        }
        let in_piece = tables.piece_counts() - gone.host % tables.piece_counts();
        Ok(Some(Gone { count: gone.count.min(in_piece), ..gone }))
    }

    /// These, the first of them, are being counted down.
    pub fn going(&mut self, gone: Gone) {
        self.going = gone;
        let (first, _) = self.dead.front_mut().expect("they were found there");
        (first.host, first.count) = (first.host + gone.count, first.count - gone.count);
        if first.count == 0 {
            self.dead.pop_front();
        }
        if self.has(Bug::UsedBeforeTheHole) {
            self.free.push(Free { host: gone.host, count: gone.count, since: 0 });
        }
    }

    /// They count less, on the disk; `free`: nothing.
    pub fn gone(&mut self, free: bool, meta: &dyn Meta) {
        let Gone { host, count, .. } = std::mem::replace(&mut self.going, Gone::NONE);
        if !free || self.has(Bug::UsedBeforeTheHole) {
            return;
        }
        let now = meta.now();
        self.passed = 0;
        if let Some(last) = self.free.last_mut().filter(|last| last.host + last.count == host) {
            (last.count, last.since) = (last.count + count, now);
            return;
        }
        if self.free.len() >= FREE_MAX
            && let Some(over) = self.free.iter().position(|free| free.since < meta.oldest())
        {
            self.free.swap_remove(over);
        }
        self.free.push(Free { host, count, since: now });
    }

    /// Their counts did not go down for certain.
    pub fn stayed(&mut self) {
        self.going = Gone::NONE;
        self.leak();
    }
}

const FULL: Stop = Stop::Fail { errno: ENOSPC, why: "no cluster is free" };
const ENOSPC: i32 = 28;
