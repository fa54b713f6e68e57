//! A disk that is served: its engine, its sockets, and its images while they are open; and the
//! turn.
//!
//! ```text
//!   nbd, rings, device: take ─► engine.step ─► complete ─► kick          submit: the server's, once a turn
//! ```
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Token};
use slog::{info, warn};
use tap_ctl::messages::ImageInfo;

use super::rings::GuestRings;
use super::tap::TapRing;
use super::{Env, Opened, socket_paths};
use crate::disk::align::{Aligned, BOUNCE_BYTES, BOUNCES};
use crate::disk::probe::{AnyDisk, choose};
use crate::disk::remote::{Peer, Remote};
use crate::disk::{Disk, FileId};
use crate::engine::chain::{Chain, Layer, Second};
use crate::engine::limits::Limits;
use crate::engine::{Engine, Policy};
use crate::formats::{Images, Kind, LAYERS_MAX, Marks, OpenError};
use crate::memory::Memory;
use crate::pool::{Arena, Locked};
use crate::sys;
use crate::tokens::VBD_TOKENS;
use crate::transport::blktap::BLKTAP_MARK;
use crate::transport::nbd::{Export, NbdServer, Notice};
use crate::transport::ublk::{Ring, UBLK_MARK, Ublk};
use crate::transport::{RINGS_MARK, Request, Transport};

/// Of the tokens of a disk, the one of the NBD servers that it uses.
pub const REMOTE_TOKEN: usize = VBD_TOKENS - 2;
/// Rounds of one turn at most, before control and the other disks have theirs.
const ROUNDS_MAX: u32 = 8;
/// After so many bytes copied from or to clients the disk is given what there is for it.
const MOVED_MAX: usize = 256 << 10;

/// Everything that a request touches.
pub struct Served {
    /// The block device, while there is one. Dropped before the engine's memory.
    pub device: Option<Box<Ublk<Ring>>>,
    /// The ring of the kernel module, if the minor is its.
    pub tap: Option<Box<TapRing>>,
    /// The request engine.
    pub engine: Engine<Aligned<Remote<AnyDisk>>>,
    /// Its clients.
    pub nbd: NbdServer,
    /// Rings of guests, if there were any since the disk was opened.
    pub rings: Option<Box<GuestRings>>,
    /// Guests' event channels are read by the disk engine, not by the poll.
    listens: bool,
    /// Requests of rings that were answered at the last tick.
    answers_told: u64,
    /// Requests of all kinds that had begun or ended then.
    requests_told: u64,
    /// The open images; their drivers are lent to the engine.
    pub images: Option<Images>,
    /// Why this disk engine, for people.
    pub why: String,
    /// How the arena is held.
    pub locked: Locked,
    /// Page faults of the thread when the disk was ready.
    pub faults: (u64, u64),
    /// The last request that failed, for the log.
    failed: Option<(Request, i32)>,
    /// Failures that the log knows of.
    failures_told: u64,
    /// Progress as the watchdog saw it last, and when it began to stand still.
    watched: (u64, u64),
    warned: bool,
    /// What the disk engine said last when it refused a call, and whether the log knows.
    disk_failed: Option<(i32, bool)>,
    /// Memory may be spent on remembering which parent holds what.
    remember: bool,
    /// Management has been told that the secondary took over.
    told_takeover: bool,
}

impl Served {
    /// Makes arena, disk engine and sockets, and serves the images; the sockets may be those that
    /// another program has left.
    ///
    /// # Errors
    /// What cannot be had, with the images, which are the caller's to close.
    pub(super) fn start(
        env: &Env,
        (minor, token): (u16, usize),
        (opened, own_slots): (&Opened, u16),
        images: Images,
        left: Option<NbdServer>,
    ) -> Result<Served, (OpenError, Images)> {
        let mut grant = env.memory.grant();
        if env.memory == Memory::Locked {
            grant.limits = for_chain(grant.limits, images.bitmaps);
        }
        // A tag of a block device has a slot for life, the module's ring a few of its own.
        grant.limits.large += own_slots;
        if let Some(warning) = &grant.warning {
            env.sink.note(&format!("minor {minor}: {warning}"));
        }
        let (disk, why) = match disk(&grant.limits, &images) {
            Ok(disk) => disk,
            Err(error) => return Err((error, images)),
        };
        info!(env.log, "minor {minor}: {why}");
        let (fd, its_token) = (disk.inner_ref().poll_fd(), Token(token + REMOTE_TOKEN));
        let polled = env.registry.register(&mut SourceFd(&fd), its_token, Interest::READABLE);
        if let Err(error) = polled {
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
            let text = format!("NBD servers cannot be polled: {error}");
            return Err((OpenError::new(errno, text), images));
        }
        let locked = disk.arena_ref().locked();
        if let Locked::Refused(errno) = locked {
            let error = std::io::Error::from_raw_os_error(errno);
            env.sink.note(&format!(
                "minor {minor}: its memory is not locked ({error}): under memory pressure it may wait for \
                 itself; raise ulimit -l"
            ));
        }
        let paths = socket_paths(env, minor);
        let export = export(&images);
        let made =
            left.map_or_else(|| NbdServer::new(&env.registry, &paths, Token(token), export), Ok);
        let nbd = match made {
            Ok(nbd) => nbd,
            Err(error) => return Err((OpenError::new(error.errno(), error.to_string()), images)),
        };
        let mut served = Served {
            device: None,
            tap: None,
            engine: Engine::new(disk, grant.limits),
            nbd,
            rings: None,
            listens: false,
            answers_told: 0,
            requests_told: 0,
            images: None,
            why,
            locked,
            faults: (0, 0),
            failed: None,
            failures_told: 0,
            watched: (0, 0),
            warned: false,
            disk_failed: None,
            remember: env.memory == Memory::Locked,
            told_takeover: false,
        };
        match served.put_in(images, opened) {
            Ok(()) => Ok(served),
            Err(failed) => Err(failed),
        }
    }

    /// Puts open images under the engine, and lets clients go on.
    pub(super) fn put_in(
        &mut self,
        mut images: Images,
        opened: &Opened,
    ) -> Result<(), (OpenError, Images)> {
        let infos = match images.infos() {
            Ok(infos) => infos,
            Err(error) => return Err((error, images)),
        };
        let fds: Vec<RawFd> = images.layers.iter().map(|layer| layer.file.raw_fd()).collect();
        let patience = Duration::from_secs(opened.timeout_s.into());
        let disk = self.engine.disk();
        let taken = disk
            .set_alignments(&alignments(&images))
            .and_then(|()| disk.inner().set_remotes(remotes(&images), patience))
            .and_then(|()| disk.set_files(&fds));
        if let Err(error) = taken {
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
            let text = format!("the disk engine does not take the files: {error}");
            return Err((OpenError::new(errno, text), images));
        }
        let chain = chain(&mut images, self.remember);
        let policy = Policy {
            read_only: !images.writable(),
            barriers: barriers(),
            timeout_s: opened.timeout_s,
            sector_size: images.sector_size,
        };
        self.engine.attach(chain, &infos, policy);
        self.engine.set_room(images.has_room());
        self.nbd.resume(export(&images));
        if let Some(rings) = &mut self.rings {
            rings.resume();
        }
        if let Some(device) = &mut self.device {
            device.resume();
        }
        if let Some(tap) = &mut self.tap {
            tap.resume();
        }
        self.told_takeover = false;
        self.images = Some(images);
        self.faults = sys::faults();
        Ok(())
    }

    /// Takes the images out again. Nothing is in flight.
    pub(super) fn take_out(&mut self) -> Option<Images> {
        let mut images = self.images.take()?;
        let chain = self.engine.detach().expect("open images are under the engine");
        for (layer, driver) in images.layers.iter_mut().zip(chain.layers) {
            layer.image = Some(driver.image);
            layer.cipher = driver.cipher;
        }
        // The kernel lets go of the files, so that closing them really closes them.
        let _ = self.engine.disk().set_files(&[]);
        Some(images)
    }

    /// PAUSE: nothing more is taken in.
    pub(super) fn suspend(&mut self) {
        self.nbd.suspend();
        if let Some(rings) = &mut self.rings {
            rings.suspend();
        }
        if let Some(device) = &mut self.device {
            device.suspend();
        }
        if let Some(tap) = &mut self.tap {
            tap.suspend();
        }
    }

    /// For another program: clients and guests end what they have begun, and begin nothing.
    pub(super) fn finish_up(&mut self) {
        self.nbd.finish();
        if let Some(rings) = &mut self.rings {
            rings.finish();
        }
    }

    /// Whether they have.
    pub(super) fn at_rest(&self) -> bool {
        self.nbd.at_rest() && self.rings.as_ref().is_none_or(|rings| rings.at_rest())
    }

    /// There is no other program: they go on.
    pub(super) fn go_on(&mut self) {
        self.nbd.go_on();
        if let Some(rings) = &mut self.rings {
            rings.go_on();
        }
    }

    /// CLOSE: the clients go.
    pub(super) fn hang_up(&mut self) {
        self.nbd.close(&mut self.engine);
        if let Some(rings) = &mut self.rings {
            rings.disconnect_all();
        }
        if let Some(tap) = &mut self.tap {
            tap.suspend();
        }
    }

    /// Whether nobody uses it just now, and nothing has to be looked after each second.
    pub fn is_calm(&self) -> bool {
        let ticks = |rings: &GuestRings| {
            rings.wants_ticks() || rings.counters().answers != self.answers_told
        };
        let ticks = self.rings.as_deref().is_some_and(ticks);
        self.idle() && self.nbd.clients() == 0 && !ticks && self.requests_told == self.requests()
    }

    fn requests(&self) -> u64 {
        let stats = self.engine.stats();
        stats.begun.iter().chain(&stats.ops).sum()
    }

    /// Whether no request is in flight, here or below.
    pub fn idle(&self) -> bool {
        let rings = self.rings.as_ref().is_none_or(|rings| rings.idle());
        let device = self.device.as_ref().is_none_or(|device| device.idle());
        let tap = self.tap.as_ref().is_none_or(|tap| tap.idle());
        self.engine.idle() && self.nbd.idle() && rings && device && tap
    }

    /// Whether a ring has something, without asking the poll.
    pub fn has_arrived(&mut self) -> bool {
        let device = self.device.as_mut().is_some_and(|device| device.pending());
        let tap = self.tap.as_ref().is_some_and(|tap| tap.pending(&self.engine));
        // Its event channels are read by asking.
        device || tap || self.rings.as_mut().is_some_and(|rings| rings.event())
    }

    /// The sealed part of a turn: nothing here allocates, blocks, logs or loops without a bound.
    /// True if there is more to do without waiting.
    pub fn turn(&mut self, now: u64) -> bool {
        let mut more = false;
        if let Some(rings) = &mut self.rings {
            rings.clock(now);
        }
        self.nbd.clock(now);
        let mut moved = 0;
        for _ in 0..ROUNDS_MAX {
            let arrived = self.take();
            let again = self.engine.step(now);
            let finished = self.finish();
            moved += self.nbd.take_moved();
            if moved >= MOVED_MAX {
                // The disk works while the rest is copied.
                moved = 0;
                self.submit();
            }
            let pending = self.kick();
            more = again || self.engine.has_ready() || pending || (arrived && finished);
            if !more {
                break;
            }
        }
        more
    }

    fn take(&mut self) -> bool {
        let mut more = self.nbd.take(&mut self.engine);
        if let Some(rings) = &mut self.rings {
            more |= rings.take(&mut self.engine);
        }
        if let Some(device) = &mut self.device {
            more |= device.take(&mut self.engine);
        }
        if let Some(tap) = &mut self.tap {
            more |= tap.take(&mut self.engine);
        }
        more
    }

    /// True if a transport has more to do at once.
    fn kick(&mut self) -> bool {
        self.nbd.kick(&mut self.engine);
        let mut pending = self.nbd.pending(&self.engine);
        if let Some(rings) = &mut self.rings {
            rings.kick(&mut self.engine);
            pending |= rings.pending(&self.engine);
        }
        if let Some(device) = &mut self.device {
            device.kick(&mut self.engine);
            pending |= device.pending();
        }
        if let Some(tap) = &mut self.tap {
            tap.kick(&mut self.engine);
            pending |= tap.pending(&self.engine);
        }
        pending
    }

    /// Hands finished requests back. Whether there was one.
    fn finish(&mut self) -> bool {
        let mut any = false;
        while let Some((slot, request, outcome)) = self.engine.pop_done() {
            if let Err(errno) = outcome {
                self.failed = Some((request, errno));
            }
            match (&mut self.rings, &mut self.device, &mut self.tap) {
                (Some(rings), ..) if request.mark & RINGS_MARK != 0 => {
                    rings.complete(&mut self.engine, slot, &request, outcome);
                }
                (_, Some(device), _) if request.mark & UBLK_MARK != 0 => {
                    device.complete(&mut self.engine, slot, &request, outcome);
                }
                (.., Some(tap)) if request.mark & BLKTAP_MARK != 0 => {
                    tap.complete(&mut self.engine, slot, &request, outcome);
                }
                _ => self.nbd.complete(&mut self.engine, slot, &request, outcome),
            }
            any = true;
        }
        any
    }

    /// This disk sleeps for all: its engine reads the event channels of its rings and unmasks them,
    /// in the call that sleeps, if it can. They need not be in the poll then; `poll` takes them
    /// out.
    pub fn listen(&mut self, poll: RawFd) {
        let Some(rings) = &mut self.rings else { return };
        let disk = self.engine.disk().inner().inner();
        let fd = rings.xen().as_fd();
        if !self.listens && disk.listen(fd.as_raw_fd()) {
            self.listens = true;
            sys::unwatch(poll, fd);
            rings.xen_mut().put_off_unmasks();
        }
        if !self.listens {
            return;
        }
        while let Some(port) = rings.xen_mut().next_unmask() {
            if !disk.tell(port) {
                // A port that is gone needs no unmasking.
                let _ = rings.xen().unmask_now(port);
            }
        }
    }

    /// What the engine heard of guests while it slept.
    pub fn hear(&mut self) {
        let Some(rings) = self.rings.as_mut().filter(|_| self.listens) else { return };
        let ports = self.engine.disk().inner().inner().take_heard();
        if !ports.is_empty() {
            rings.heard(ports);
        }
    }

    /// Hands operations to the kernel without waiting.
    pub fn submit(&mut self) {
        let result = self.engine.disk().submit();
        self.note_disk(result);
    }

    /// Remembers that the disk engine itself failed, for the log.
    pub fn note_disk(&mut self, result: std::io::Result<()>) {
        let Err(error) = result else { return };
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        if self.disk_failed.is_none_or(|(last, _)| last != errno) {
            self.disk_failed = Some((errno, false));
        }
    }

    /// Between turns: what the data path left for the log.
    pub fn tell(&mut self, env: &Env, minor: u16) {
        if let Some((errno, told @ false)) = &mut self.disk_failed {
            *told = true;
            let error = std::io::Error::from_raw_os_error(*errno);
            warn!(env.log, "minor {minor}: the disk engine refuses a call: {error}");
        }
        while let Some((file, why)) = self.engine.disk().inner().take_ended() {
            let layer = self.images.as_ref().and_then(|i| i.layers.get(usize::from(file.0)));
            let path = layer.map(|layer| show::path(&layer.path).to_string()).unwrap_or_default();
            warn!(
                env.log,
                "minor {minor}: nbd:{path} is lost: {why}; pause and unpause connects again"
            );
        }
        if let Some((request, errno)) = self.failed.take() {
            let errors = self.engine.stats().errors;
            // The first few in full; a dead disk must not fill the log.
            if errors <= 16 || errors >= 2 * self.failures_told {
                self.failures_told = errors;
                let error = std::io::Error::from_raw_os_error(errno);
                let (start, count) = (request.span.start, request.span.count);
                warn!(
                    env.log,
                    "minor {minor}: {:?} of {count} sectors at {start} failed: {error} ({errors} \
                     failures so far)",
                    request.verb
                );
            }
        }
        if self.engine.events().taken_over && !std::mem::replace(&mut self.told_takeover, true) {
            takeover(env, minor);
        }
        if let Some(error) = self.device.as_mut().and_then(|device| device.take_error()) {
            warn!(env.log, "minor {minor}: the block device takes no answers: {error}");
        }
        while let Some(notice) = self.tap.as_mut().and_then(|tap| tap.take_notice()) {
            warn!(env.log, "minor {minor}: {notice}");
        }
        while let Some(notice) = self.nbd.take_notice() {
            match notice {
                Notice::TurnedAway(who) => warn!(env.log, "minor {minor}: NBD sockets: {who}"),
                notice => info!(env.log, "minor {minor}: nbd {notice:?}"),
            }
        }
        while let Some(notice) = self.rings.as_mut().and_then(|rings| rings.take_notice()) {
            warn!(env.log, "minor {minor}: {notice}");
        }
    }

    /// Whether requests have been in flight for ten seconds without any progress; once.
    pub(super) fn watch(&mut self, now: u64) -> bool {
        const PATIENCE_US: u64 = 10_000_000;
        let done: u64 = self.engine.stats().ops.iter().sum();
        if self.engine.idle() || done != self.watched.0 {
            self.watched = (done, now);
            self.warned = false;
        }
        let late = now.saturating_sub(self.watched.1) >= PATIENCE_US;
        late && !std::mem::replace(&mut self.warned, late)
    }

    /// About once a second.
    pub fn tick(&mut self, now: Instant) {
        self.nbd.tick(now);
        self.requests_told = self.requests();
        if let Some(rings) = &mut self.rings {
            self.answers_told = rings.counters().answers;
        }
        self.engine.disk().inner().tick(now);
        if let Some(images) = self.images.as_ref().filter(|_| self.engine.keeps_reads()) {
            self.engine.set_room(images.has_room());
        }
    }
}

/// The chain of open images; their drivers are lent to it.
fn chain(images: &mut Images, remember: bool) -> Chain {
    let layers = images.layers.iter_mut().filter_map(|layer| {
        let image = layer.image.take()?;
        Some(Layer { cipher: layer.cipher.take(), ..Layer::new(image) })
    });
    let mut chain = Chain::new(layers.collect());
    if let (Some(second), Some(last)) = (images.second, images.layers.len().checked_sub(1)) {
        let file = FileId(u8::try_from(last).expect("a file is named by eight bits"));
        let kind = images.layers[last].kind;
        let (read, remote) = (kind == Kind::Vhd, kind == Kind::Nbd);
        chain.set_second(Second { file, purpose: second.purpose, remote, read });
        if second.taken_over {
            chain.take_over();
        }
    }
    let log = images.log.clone();
    chain.changes = log.map(|log| Box::new(Marks(log)) as Box<dyn crate::engine::chain::Changes>);
    chain.local_cache = images.local_cache;
    // Below that, asking is as quick as remembering.
    const PARENTS_MIN: usize = 2;
    if remember && chain.order().len() > PARENTS_MIN {
        chain.remember();
    }
    chain
}

/// The leaf has no space left and the secondary took over: a file tells management, which neither
/// the original nor we ever look at (spec/operations.md §4.4).
fn takeover(env: &Env, minor: u16) {
    let path = env.run.enospc(minor);
    warn!(
        env.log,
        "minor {minor}: the leaf has no space left, the secondary takes the writes now; {} says so",
        show::path(&path)
    );
    let mut how = std::fs::File::options();
    // Not through somebody's symbolic link.
    how.write(true).create(true).truncate(true).mode(0o644).custom_flags(libc::O_NOFOLLOW);
    if let Err(error) = how.open(&path) {
        warn!(env.log, "minor {minor}: cannot make {}: {error}", show::path(&path));
    }
}

/// What OPEN and DISK_INFO tell.
pub fn info(images: &Images) -> ImageInfo {
    ImageInfo { sectors: images.sectors, sector_size: images.sector_size, ..ImageInfo::default() }
}

fn export(images: &Images) -> Export {
    Export {
        sectors: images.sectors,
        sector_size: images.sector_size,
        read_only: !images.writable(),
        // What a server does with zeros is not known.
        fast_zero: !images.layers.iter().any(|layer| layer.writable && layer.kind == Kind::Nbd),
    }
}

/// Whether the owner of the storage says that its cache is volatile (docs/decisions.md, "VHD
/// choices").
fn barriers() -> bool {
    std::env::var_os("TAPDISK_BARRIERS").is_some_and(|value| !value.is_empty() && value != "0")
}

/// A cache that holds the bitmaps of a long chain: without it each read would load many of them
/// again.
fn for_chain(limits: Limits, bitmaps: usize) -> Limits {
    const META_BLOCKS_MAX: usize = 16384;
    let spare = usize::from(Limits::NORMAL.meta_blocks);
    let wanted = (bitmaps + spare / 2).clamp(spare, META_BLOCKS_MAX);
    Limits { meta_blocks: wanted as u16, ..limits }
}

/// What offset and length of operations on each file must be multiples of.
fn alignments(images: &Images) -> Vec<u32> {
    images.layers.iter().map(|layer| layer.file.alignment()).collect()
}

/// Which files are with a server.
fn remotes(images: &Images) -> Vec<(FileId, Peer)> {
    let peers = (0..).zip(&images.layers).map(|(i, layer)| Some((FileId(i), layer.file.peer()?)));
    peers.flatten().collect()
}

/// An arena and a disk engine over it. One bounce buffer is always there: a snapshot may bring a
/// leaf with larger sectors later.
fn disk(limits: &Limits, images: &Images) -> Result<(Aligned<Remote<AnyDisk>>, String), OpenError> {
    let failed = |what: &str, error: &std::io::Error| {
        let errno = error.raw_os_error().unwrap_or(libc::ENOSYS);
        OpenError::new(errno, format!("{what}: {error}"))
    };
    let large = alignments(images).iter().any(|unit| *unit > 512);
    let bounces = if large { BOUNCES } else { 1 };
    let reserve = limits.behind(bounces * BOUNCE_BYTES);
    let bytes = (reserve.offset + reserve.bytes) as usize;
    let arena = Arena::new(bytes).map_err(|e| failed("no memory for the arena", &e))?;
    let files_max = u8::try_from(LAYERS_MAX).expect("a file is named by eight bits");
    let chosen =
        choose(arena, limits.ops(), files_max, None).map_err(|e| failed("no disk engine", &e))?;
    let remote = Remote::open(chosen.disk, limits.ops())
        .map_err(|e| failed("no descriptor for NBD servers", &e))?;
    Ok((Aligned::open(remote, reserve, limits.ops()), chosen.why))
}
