//! Where requests of a disk come from: all of it, from its attachment to its end. The data path
//! ([`super::DataPath`]) comes and goes with OPEN and CLOSE; rings may be there before, and wait.
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Instant;

use disk::probe::AnyDisk;
use frontend::Frontend;
use frontend::nbd::{Export, NbdServer};
use frontend::ublk::{Ring, Ublk};
use host::sys;
use request::{Outcome, Request, SlotId, Slots, Source};
use slog::{Logger, info, warn};

use super::rings::GuestRings;
use super::tap::TapRing;

/// The frontends of a disk.
#[derive(Default)]
pub struct Frontends {
    /// Its clients; from OPEN to CLOSE.
    pub nbd: Option<NbdServer>,
    /// Rings of guests, if there were any since the disk was opened, or before.
    pub rings: Option<Box<GuestRings>>,
    /// The block device that ublk makes, while there is one.
    pub ublk: Option<Box<Ublk<Ring>>>,
    /// The ring of the kernel module, if the minor is its.
    pub tap: Option<Box<TapRing>>,
    /// Guests' event channels are read by the disk engine, not by the poll.
    reads_events: bool,
    /// Requests of rings that were answered at the last tick.
    answers_told: u64,
}

impl Frontends {
    fn all(&mut self) -> impl Iterator<Item = &mut dyn Frontend> {
        let nbd = self.nbd.as_mut().map(|nbd| nbd as &mut dyn Frontend);
        let rings = self.rings.as_deref_mut().map(|rings| rings as &mut dyn Frontend);
        let ublk = self.ublk.as_deref_mut().map(|device| device as &mut dyn Frontend);
        let tap = self.tap.as_deref_mut().map(|tap| tap as &mut dyn Frontend);
        [nbd, rings, ublk, tap].into_iter().flatten()
    }

    fn all_ref(&self) -> impl Iterator<Item = &dyn Frontend> {
        let nbd = self.nbd.as_ref().map(|nbd| nbd as &dyn Frontend);
        let rings = self.rings.as_deref().map(|rings| rings as &dyn Frontend);
        let ublk = self.ublk.as_deref().map(|device| device as &dyn Frontend);
        let tap = self.tap.as_deref().map(|tap| tap as &dyn Frontend);
        [nbd, rings, ublk, tap].into_iter().flatten()
    }

    fn of(&mut self, source: Source) -> Option<&mut dyn Frontend> {
        match source {
            Source::Nbd => self.nbd.as_mut().map(|nbd| nbd as &mut dyn Frontend),
            Source::Rings => self.rings.as_deref_mut().map(|rings| rings as &mut dyn Frontend),
            Source::Ublk => self.ublk.as_deref_mut().map(|device| device as &mut dyn Frontend),
            Source::Blktap => self.tap.as_deref_mut().map(|tap| tap as &mut dyn Frontend),
        }
    }

    // ---- the sealed part of a turn -------------------------------------------------------------

    /// What time it is, in µs.
    pub fn clock(&mut self, now: u64) {
        self.all().for_each(|frontend| frontend.clock(now));
    }

    /// Takes what has come. True if there is more.
    pub fn take(&mut self, slots: &mut dyn Slots) -> bool {
        self.all().fold(false, |more, frontend| frontend.take(slots) | more)
    }

    /// Hands a finished request back to whoever asked.
    pub fn complete(
        &mut self,
        slots: &mut dyn Slots,
        slot: SlotId,
        request: &Request,
        outcome: Outcome,
    ) {
        let owner = self.of(request.owner.source);
        let owner = owner.expect("a frontend is kept until its requests have come back");
        owner.complete(slots, slot, request, outcome);
    }

    /// Bytes of payload that were copied since the last call, or will be by the next `kick`.
    pub fn take_moved(&mut self) -> usize {
        self.all().map(|frontend| frontend.take_moved()).sum()
    }

    /// Sends answers. True if some frontend has more to do at once.
    pub fn kick(&mut self, slots: &mut dyn Slots) -> bool {
        self.all().fold(false, |pending, frontend| {
            frontend.kick(slots);
            frontend.pending(slots) | pending
        })
    }

    /// Whether something has come, without asking the poll.
    pub fn have_arrived(&mut self, slots: &dyn Slots) -> bool {
        self.all().fold(false, |any, frontend| frontend.has_arrived(slots) | any)
    }

    /// Whether no request is in the engine.
    pub fn idle(&self) -> bool {
        self.all_ref().all(|frontend| frontend.idle())
    }

    // ---- the life of a disk --------------------------------------------------------------------

    /// PAUSE: nothing more is taken in.
    pub fn suspend(&mut self) {
        self.all().for_each(|frontend| frontend.suspend());
    }

    /// Goes on, with what is known about the disk now.
    pub fn resume(&mut self, export: Export) {
        if let Some(nbd) = &mut self.nbd {
            nbd.set_export(export);
        }
        self.all().for_each(|frontend| frontend.resume());
    }

    /// The images are somebody else's: nothing is taken in, and NBD clients are greeted.
    pub fn hold(&mut self) {
        self.suspend();
        if let Some(nbd) = &mut self.nbd {
            nbd.hold();
        }
    }

    /// CLOSE: the clients go.
    pub fn hang_up(&mut self, slots: &mut dyn Slots) {
        self.all().for_each(|frontend| frontend.hang_up(slots));
    }

    /// For another program: clients and guests end what they have begun, and begin nothing.
    pub fn finish(&mut self) {
        self.all().for_each(|frontend| frontend.finish());
    }

    /// Whether they have.
    pub fn at_rest(&self) -> bool {
        self.all_ref().all(|frontend| frontend.at_rest())
    }

    /// There is no other program: they go on.
    pub fn go_on(&mut self) {
        self.all().for_each(|frontend| frontend.go_on());
    }

    /// NBD clients that are connected.
    pub fn clients(&self) -> usize {
        self.nbd.as_ref().map_or(0, NbdServer::clients)
    }

    /// Whether nobody uses it just now, and nothing has to be looked after each second.
    pub fn is_calm(&self) -> bool {
        let ticks = |rings: &GuestRings| {
            rings.wants_ticks() || rings.counters().answers != self.answers_told
        };
        self.idle() && self.clients() == 0 && !self.rings.as_deref().is_some_and(ticks)
    }

    /// About once a second.
    pub fn tick(&mut self, now: Instant) {
        if let Some(nbd) = &mut self.nbd {
            nbd.tick(now);
        }
        self.answers_told = self.rings.as_ref().map_or(0, |rings| rings.counters().answers);
    }

    /// Between turns: what they have to say.
    pub fn tell(&mut self, log: &Logger, minor: u16) {
        for frontend in self.all() {
            while let Some(note) = frontend.take_note() {
                match note.warning {
                    true => warn!(log, "minor {minor}: {}", note.text),
                    false => info!(log, "minor {minor}: {}", note.text),
                }
            }
        }
    }

    // ---- event channels ------------------------------------------------------------------------

    /// This disk sleeps for all: its engine reads the event channels of its rings and unmasks them,
    /// in the call that sleeps, if it can. They need not be in the poll then; `poll` takes them
    /// out.
    pub fn read_events(&mut self, disk: &mut AnyDisk, poll: RawFd) {
        let Some(rings) = &mut self.rings else { return };
        let fd = rings.xen().as_fd();
        if !self.reads_events && disk.read_events(fd.as_raw_fd()) {
            self.reads_events = true;
            sys::unwatch(poll, fd);
            rings.xen_mut().put_off_unmasks();
        }
        if !self.reads_events {
            return;
        }
        while let Some(port) = rings.xen_mut().next_unmask() {
            if !disk.acknowledge(port) {
                // A port that is gone needs no unmasking.
                let _ = rings.xen().unmask_now(port);
            }
        }
    }

    /// What the engine was told by guests while it slept.
    pub fn take_events(&mut self, disk: &mut AnyDisk) {
        let Some(rings) = self.rings.as_mut().filter(|_| self.reads_events) else { return };
        let ports = disk.take_events();
        if !ports.is_empty() {
            rings.ports_fired(ports);
        }
    }

    /// The data path is gone, and whoever read the event channels with it.
    pub fn forget_events(&mut self) {
        self.reads_events = false;
    }
}
