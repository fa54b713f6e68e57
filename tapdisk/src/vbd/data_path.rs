//! The data path of a disk that is served: engine, disk engine, and the images while they are open;
//! and the turn.
//!
//! ```text
//!   frontends: take ─► engine.step ─► complete ─► kick          submit: the server's, once a turn
//! ```
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Token};
use slog::{info, warn};
use tap_ctl::messages::ImageInfo;

use super::frontends::Frontends;
use super::{Env, Opened, socket_paths};
use crate::formats::{self, Images, LAYERS_MAX, Marks, OpenError};
use crate::memory::Memory;
use crate::tokens::VBD_TOKENS;
use disk::align::{Aligned, BOUNCE_BYTES, BOUNCES};
use disk::probe::{AnyDisk, choose};
use disk::remote::{Peer, Remote};
use engine::chain::{self, Chain, Layer, Role};
use engine::limits::Limits;
use engine::slot::Cause;
use engine::{Engine, Policy};
use frontend::nbd::{Export, NbdServer};
use host::arena::{Arena, Locked};
use host::sys;
use image::Purpose;
use request::Request;
use request::disk::{Disk, FileId};

/// Of the tokens of a disk, the one of the NBD servers that it uses.
pub const REMOTE_TOKEN: usize = VBD_TOKENS - 2;
/// Rounds of one turn at most, before control and the other disks have theirs.
const ROUNDS_MAX: u32 = 8;
/// After so many bytes copied from or to clients the disk is given what there is for it.
const MOVED_MAX: usize = 256 << 10;

/// Everything that a request touches.
pub struct DataPath {
    /// The request engine.
    pub engine: Engine<Aligned<Remote<AnyDisk>>>,
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
    failed: Option<(Request, Option<Cause>)>,
    /// The same in words.
    failure: Option<String>,
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

impl DataPath {
    /// Makes arena, disk engine and sockets, and serves the images; the sockets may be those that
    /// another program has left.
    ///
    /// # Errors
    /// What cannot be had, with the images, which are the caller's to close. There are no sockets
    /// then.
    pub(super) fn start(
        env: &Env,
        (minor, token): (u16, usize),
        (opened, own_slots): (&Opened, u16),
        images: Images,
        frontends: &mut Frontends,
    ) -> Result<DataPath, (OpenError, Images)> {
        let made = DataPath::make(env, (minor, token), (opened, own_slots), images, frontends);
        if made.is_err() {
            frontends.nbd = None;
        }
        made
    }

    fn make(
        env: &Env,
        (minor, token): (u16, usize),
        (opened, own_slots): (&Opened, u16),
        images: Images,
        frontends: &mut Frontends,
    ) -> Result<DataPath, (OpenError, Images)> {
        let mut grant = env.memory.grant();
        if env.memory == Memory::Locked {
            grant.limits = for_chain(grant.limits, images.bitmaps);
        }
        let needs = images.layers.iter().filter_map(|layer| Some(layer.image.as_ref()?.needs()));
        grant.limits = needs.fold(grant.limits, |limits, needs| limits.with(needs, COPIES));
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
        if frontends.nbd.is_none() {
            match NbdServer::new(&env.registry, &paths, Token(token), export(&images)) {
                Ok(nbd) => frontends.nbd = Some(nbd),
                Err(error) => {
                    return Err((OpenError::new(error.errno(), error.to_string()), images));
                }
            }
        }
        let mut served = DataPath {
            engine: Engine::new(disk, grant.limits),
            requests_told: 0,
            images: None,
            why,
            locked,
            faults: (0, 0),
            failed: None,
            failure: None,
            failures_told: 0,
            watched: (0, 0),
            warned: false,
            disk_failed: None,
            remember: env.memory == Memory::Locked,
            told_takeover: false,
        };
        match served.put_in(images, opened, frontends) {
            Ok(()) => Ok(served),
            Err(failed) => Err(failed),
        }
    }

    /// Puts open images under the engine, and lets clients go on.
    pub(super) fn put_in(
        &mut self,
        mut images: Images,
        opened: &Opened,
        frontends: &mut Frontends,
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
        // Reserves are taken at open, for the formats of then.
        let serves = |layer: &&formats::Layer| {
            layer.image.as_ref().is_none_or(|image| self.engine.serves(image.needs()))
        };
        if let Some(layer) = images.layers.iter().find(|layer| !serves(layer)) {
            let text = format!(
                "{} is of another format than the disk was opened with: close the disk and open it anew",
                show::path(&layer.path)
            );
            return Err((OpenError::new(libc::EMEDIUMTYPE, text), images));
        }
        let roles = roles(&images);
        if let Err(misfit) = chain::fit(&roles) {
            return Err((OpenError::new(libc::EINVAL, misfit.to_string()), images));
        }
        let chain = chain(&mut images, &roles, self.remember);
        let policy = Policy {
            read_only: !images.writable(),
            barriers: barriers(),
            timeout_s: opened.timeout_s,
            sector_size: images.sector_size,
        };
        self.engine.attach(chain, &infos, policy);
        self.engine.set_room(images.has_room());
        frontends.resume(export(&images));
        self.told_takeover = false;
        self.images = Some(images);
        self.faults = sys::faults();
        Ok(())
    }

    /// Takes the images out again. Nothing is in flight.
    pub(super) fn take_out(&mut self) -> Option<Images> {
        self.put_failure_in_words();
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

    /// Whether the leaf is committed to its parent, or was: changes go to both.
    pub fn commits(&self) -> bool {
        self.images.as_ref().is_some_and(|images| images.commits)
    }

    /// Whether no request is in flight below the frontends, and none was since the last tick.
    pub fn is_calm(&self) -> bool {
        self.engine.idle() && self.requests_told == self.requests()
    }

    fn requests(&self) -> u64 {
        let stats = self.engine.stats();
        stats.begun.iter().chain(&stats.ops).sum()
    }

    /// The sealed part of a turn: nothing here allocates, blocks, logs or loops without a bound.
    /// True if there is more to do without waiting.
    pub fn turn(&mut self, frontends: &mut Frontends, now: u64) -> bool {
        let mut more = false;
        frontends.clock(now);
        let mut moved = 0;
        for _ in 0..ROUNDS_MAX {
            let arrived = frontends.take(&mut self.engine);
            let again = self.engine.step(now);
            let finished = self.finish(frontends);
            moved += frontends.take_moved();
            if moved >= MOVED_MAX {
                // The disk works while the rest is copied.
                moved = 0;
                self.submit();
            }
            let pending = frontends.kick(&mut self.engine);
            more = again || self.engine.has_ready() || pending || (arrived && finished);
            if !more {
                break;
            }
        }
        more
    }

    /// Hands finished requests back. Whether there was one.
    fn finish(&mut self, frontends: &mut Frontends) -> bool {
        let mut any = false;
        while let Some((slot, request, outcome)) = self.engine.pop_done() {
            if outcome.is_err() {
                self.failed = Some((request, self.engine.cause(slot)));
            }
            frontends.complete(&mut self.engine, slot, &request, outcome);
            any = true;
        }
        any
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
        self.put_failure_in_words();
        if let Some(failure) = self.failure.take() {
            warn!(env.log, "minor {minor}: {failure}");
        }
        if self.engine.events().taken_over && !std::mem::replace(&mut self.told_takeover, true) {
            takeover(env, minor);
        }
    }

    /// While the images are there, whose paths it names.
    fn put_failure_in_words(&mut self) {
        let Some((request, cause)) = self.failed.take() else { return };
        let errors = self.engine.stats().errors;
        // The first few in full; a dead disk must not fill the log.
        if errors > 16 && errors < 2 * self.failures_told {
            return;
        }
        self.failures_told = errors;
        let (verb, start, count) = (request.verb, request.span.start, request.span.count);
        let why = cause.map_or_else(|| "refused".into(), |cause| self.why(cause));
        self.failure = Some(format!(
            "{verb:?} of {count} sectors at {start} failed: {why} ({errors} failures so far)"
        ));
    }

    /// Why a request failed: which image, what the driver says, what the kernel says.
    fn why(&self, cause: Cause) -> String {
        let layer = self.images.as_ref().and_then(|i| i.layers.get(usize::from(cause.file.0)));
        let path = layer.map(|layer| format!("{}: ", show::path(&layer.path))).unwrap_or_default();
        let error = std::io::Error::from_raw_os_error(cause.errno);
        match cause.why {
            "" => format!("{path}{error}"),
            why => format!("{path}{why}: {error}"),
        }
    }

    /// Whether requests have been in flight for ten seconds without any progress; once.
    pub(super) fn watch(&mut self, now: u64) -> bool {
        const PATIENCE_US: u64 = 10_000_000;
        let done = self.engine.stats().ops.iter().sum::<u64>() + self.engine.commit().1;
        if self.engine.idle() || done != self.watched.0 {
            self.watched = (done, now);
            self.warned = false;
        }
        let late = now.saturating_sub(self.watched.1) >= PATIENCE_US;
        late && !std::mem::replace(&mut self.warned, late)
    }

    /// About once a second.
    pub fn tick(&mut self, now: Instant) {
        self.requests_told = self.requests();
        self.engine.disk().inner().tick(now);
        if let Some(images) = self.images.as_ref().filter(|_| self.engine.keeps_reads()) {
            self.engine.set_room(images.has_room());
        }
    }
}

/// What each of the open images is to their chain.
fn roles(images: &Images) -> Vec<Role> {
    let last = images.layers.len() - 1;
    let role = |(i, layer): (usize, &formats::Layer)| match images.secondary {
        Some(secondary) if i == last => match secondary.purpose {
            Purpose::Mirror => {
                let format = layer.kind.format();
                Role::Mirror { read: format.layered, remote: format.is_remote() }
            }
            Purpose::Standby => Role::Standby,
            Purpose::Base => unreachable!("a base is no secondary that was asked for"),
        },
        _ if i == 0 => Role::Top { keeps: images.local_cache },
        _ if i == 1 && images.commits => Role::Base,
        _ => Role::Parent,
    };
    images.layers.iter().enumerate().map(role).collect()
}

/// The chain of open images, which fit; their drivers are lent to it.
fn chain(images: &mut Images, roles: &[Role], remember: bool) -> Chain {
    let layers = images.layers.iter_mut().zip(roles).filter_map(|(layer, role)| {
        let image = layer.image.take()?;
        Some(Layer { cipher: layer.cipher.take(), ..Layer::new(*role, image) })
    });
    let mut chain = Chain::new(layers.collect()).expect("it was asked whether they fit");
    if images.secondary.is_some_and(|secondary| secondary.taken_over) {
        chain.take_over();
    }
    let log = images.log.clone();
    chain.changes = log.map(|log| Box::new(Marks(log)) as Box<dyn image::Changes>);
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
        fast_zero: !images
            .layers
            .iter()
            .any(|layer| layer.writable && layer.kind.format().is_remote()),
    }
}

/// Whether the owner of the storage says that its cache is volatile (docs/decisions.md, "VHD
/// choices").
fn barriers() -> bool {
    std::env::var_os("TAPDISK_BARRIERS").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Buffers of 64 KiB to copy through, of a disk with a format that copies: so many of its first
/// writes are in hand at once.
const COPIES: u8 = 8;

/// A cache that holds the bitmaps of a long chain: without it each read would load many of them
/// again.
fn for_chain(limits: Limits, bitmaps: u32) -> Limits {
    const META_BLOCKS_MAX: u32 = 16384;
    let spare = u32::from(Limits::NORMAL.meta_blocks);
    let wanted = bitmaps.saturating_add(spare / 2).clamp(spare, META_BLOCKS_MAX);
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
