//! Which engine this kernel gets: io_uring where it works, else Linux AIO.
//!
//! The choice is made by opening, not by version numbers: a container or a sysctl may forbid what
//! the kernel has. An engine that somebody asked for by name is never replaced by the other.
use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

use super::aio::Aio;
use super::uring::{Uring, build_ring};
use super::worker::{Done, EventFd};
use host::arena::Arena;
use request::disk::{Disk, Op, Tag};

/// The environment variable that names the engine.
const VARIABLE: &str = "TAPDISK_ENGINE";

/// The engines there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring, Linux 5.6 and later.
    Uring,
    /// Native AIO, every Linux; fdatasync in the kernel since 4.18.
    Aio,
}

/// The engine that was chosen, and why.
pub struct Chosen {
    /// Ready for `set_files`.
    pub disk: AnyDisk,
    /// One sentence for the log.
    pub why: String,
}

/// Opens an engine for `depth` operations in flight over `files_max` files: the one that
/// TAPDISK_ENGINE names (uring or aio), else the preferred one, else the best that works. The
/// calling thread is the one that uses it.
///
/// # Errors
/// When the engine asked for does not open, no engine opens, or TAPDISK_ENGINE names none.
pub fn choose(
    arena: Arena,
    depth: u32,
    files_max: u8,
    preference: Option<EngineKind>,
) -> io::Result<Chosen> {
    let named =
        std::env::var_os(VARIABLE).map(|value| named(&value.to_string_lossy())).transpose()?;
    match (named, preference) {
        (Some(kind), _) => asked(kind, &format!("{VARIABLE} says so"), arena, depth, files_max),
        (None, Some(kind)) => asked(kind, "it was asked for", arena, depth, files_max),
        (None, None) => best(arena, depth, files_max),
    }
}

/// The engine of this name.
///
/// # Errors
/// When there is none.
pub fn named(name: &str) -> io::Result<EngineKind> {
    match name {
        "uring" => Ok(EngineKind::Uring),
        "aio" => Ok(EngineKind::Aio),
        other => {
            let text = format!("{VARIABLE} is \"{other}\"; set it to uring or aio, or unset it");
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        }
    }
}

fn asked(
    kind: EngineKind,
    reason: &str,
    arena: Arena,
    depth: u32,
    files_max: u8,
) -> io::Result<Chosen> {
    let disk = match kind {
        EngineKind::Uring => Uring::open(arena, depth, files_max).map(AnyDisk::Uring),
        EngineKind::Aio => Aio::open(arena, depth, files_max).map(AnyDisk::Aio),
    };
    let disk = disk.map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("{kind:?} was asked for ({reason}) but fails: {error}"),
        )
    })?;
    let why = format!("disk engine {}: {reason}{}", disk.name(), disk.remark());
    Ok(Chosen { disk, why })
}

fn best(arena: Arena, depth: u32, files_max: u8) -> io::Result<Chosen> {
    // The ring first, alone: the arena is still ours when it fails.
    match build_ring(depth) {
        Ok(ring) => {
            let uring = Uring::on_ring(ring, EventFd::new()?, arena, depth, files_max)?;
            let disk = AnyDisk::Uring(uring);
            let why = format!("disk engine io_uring: this kernel has it{}", disk.remark());
            Ok(Chosen { disk, why })
        }
        Err(refusal) => {
            let disk = AnyDisk::Aio(Aio::open(arena, depth, files_max)?);
            let why = format!("disk engine linux-aio: io_uring fails here ({refusal})");
            Ok(Chosen { disk, why })
        }
    }
}

/// One of the engines, without a call through a pointer.
#[allow(clippy::large_enum_variant, reason = "there is one of it a disk")]
pub enum AnyDisk {
    /// io_uring.
    Uring(Uring),
    /// Linux AIO.
    Aio(Aio),
}

impl AnyDisk {
    /// As [`Uring::take_watch_ready`]; never with Linux AIO, whose caller polls for itself.
    pub fn take_watch_ready(&mut self) -> bool {
        match self {
            AnyDisk::Uring(disk) => disk.take_watch_ready(),
            AnyDisk::Aio(_) => false,
        }
    }

    /// As [`Aio::woken`]. io_uring's results are collected by its calls alone.
    pub fn woken(&mut self) {
        match self {
            AnyDisk::Uring(_) => {}
            AnyDisk::Aio(disk) => disk.woken(),
        }
    }

    /// As [`Uring::read_events`]; never with Linux AIO.
    pub fn read_events(&mut self, fd: RawFd) -> bool {
        match self {
            AnyDisk::Uring(disk) => disk.read_events(fd),
            AnyDisk::Aio(_) => false,
        }
    }

    /// As [`Uring::take_events`].
    pub fn take_events(&mut self) -> &[u32] {
        match self {
            AnyDisk::Uring(disk) => disk.take_events(),
            AnyDisk::Aio(_) => &[],
        }
    }

    /// As [`Uring::acknowledge`].
    pub fn acknowledge(&mut self, number: u32) -> bool {
        match self {
            AnyDisk::Uring(disk) => disk.acknowledge(number),
            AnyDisk::Aio(_) => false,
        }
    }

    /// What the log should say beside the reason.
    fn remark(&self) -> &'static str {
        match self {
            AnyDisk::Uring(disk) if !disk.registered() => {
                "; its memory is not registered (RLIMIT_MEMLOCK?), which costs some speed"
            }
            AnyDisk::Uring(_) | AnyDisk::Aio(_) => "",
        }
    }
}

/// Calls the engine's own function.
macro_rules! forward {
    ($self:ident, $disk:ident => $call:expr) => {
        match $self {
            AnyDisk::Uring($disk) => $call,
            AnyDisk::Aio($disk) => $call,
        }
    };
}

impl Disk for AnyDisk {
    fn push(&mut self, tag: Tag, op: Op) {
        forward!(self, disk => disk.push(tag, op));
    }
    fn submit(&mut self) -> io::Result<()> {
        forward!(self, disk => disk.submit())
    }
    fn reap(&mut self) -> Option<Done> {
        forward!(self, disk => disk.reap())
    }
    fn has_finished(&self) -> bool {
        forward!(self, disk => disk.has_finished())
    }
    fn arena(&mut self) -> &mut Arena {
        forward!(self, disk => disk.arena())
    }
    fn arena_ref(&self) -> &Arena {
        forward!(self, disk => disk.arena_ref())
    }
    fn set_files(&mut self, fds: &[RawFd]) -> io::Result<()> {
        forward!(self, disk => disk.set_files(fds))
    }
    fn wake_fd(&self) -> RawFd {
        forward!(self, disk => disk.wake_fd())
    }
    fn submit_and_wait(&mut self, watch: RawFd, timeout: Duration) -> Option<io::Result<()>> {
        forward!(self, disk => disk.submit_and_wait(watch, timeout))
    }
    fn name(&self) -> &'static str {
        forward!(self, disk => disk.name())
    }
}
