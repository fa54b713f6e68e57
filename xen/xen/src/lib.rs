//! What a block back end needs of Xen, behind safe types: grant copies in batches, event channels
//! and shared rings; with the kernel's devices below ([`devices`]) or a guest in memory ([`fake`]).
//!
//! ```text
//!   back end ─► BackRing ─► RingPages ──┐
//!      │  └───► GrantTable::copy        ├─► devices: /dev/xen/gntdev, /dev/xen/evtchn
//!      └──────► EventChannels ──────────┘   or fake: a guest that tests drive
//! ```
//! What a guest can change at any time is copied once and then checked, and never looked at again:
//! ring entries by [`BackRing::take`], lists of segments and data by grant copies. Data pages of a
//! guest are never mapped; ring pages are, and are only reached as atomic words. Every byte of a
//! response is written by us, so none of our memory leaks into a ring.
#![deny(unsafe_code)]

pub mod devices;
pub mod fake;
mod request;
mod ring;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

pub use request::{Kind, List, Refusal, Request};
pub use ring::{BackRing, Entry, Runaway};
pub use xen_sys::PAGE_BYTES;
pub use xen_sys::blkif::{Layout, SEGMENTS_MAX, SEGMENTS_PER_PAGE, Segment, op, status};

/// Copies of one call of [`GrantTable::copy`] at most.
pub const COPIES_MAX: usize = 1024;
/// Pages of a ring at most (order 3).
pub const RING_PAGES_MAX: usize = xen_sys::gntdev::MAP_MAX;

/// A local event channel port.
pub type Port = u32;

/// One copy between a granted page and a piece of the caller's memory. Neither side crosses its
/// end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// Who granted the page.
    pub domid: u16,
    /// The page's reference.
    pub gref: u32,
    /// First byte in the page.
    pub offset: u16,
    /// Bytes, at most a page.
    pub bytes: u16,
    /// Which piece of the caller's memory (see [`Memory`]).
    pub piece: u32,
    /// First byte in that piece.
    pub at: u32,
    /// To the guest's page, or from it.
    pub to_guest: bool,
    /// Out: it was made.
    pub ok: bool,
}

/// The caller's memory, in pieces that have names.
///
/// # Safety
/// A piece stays where it is, and nobody but the caller of [`GrantTable::copy`] uses it, for as
/// long as that call lasts, whichever other pieces are asked for meanwhile. Pieces with different
/// names do not overlap.
#[allow(unsafe_code)]
pub unsafe trait Memory {
    /// A piece.
    fn piece(&mut self, name: u32) -> &mut [u8];
}

/// Pages that other domains have granted to us.
pub trait GrantTable {
    /// Maps the pages of a ring, in order.
    ///
    /// # Errors
    /// What the kernel says to references that are none.
    fn map(&mut self, domid: u16, refs: &[u32]) -> io::Result<RingPages>;

    /// Makes up to [`COPIES_MAX`] copies in one call and notes for each whether it was made. Never
    /// allocates.
    ///
    /// # Errors
    /// When the call itself fails; none was made then, as far as the caller may rely on it.
    fn copy(&mut self, memory: &mut dyn Memory, copies: &mut [Copy]) -> io::Result<()>;
}

/// Event channels.
pub trait EventChannels {
    /// Binds a port to the other domain's; it fires once at once.
    ///
    /// # Errors
    /// What the kernel says to a port that does not wait for us.
    fn bind(&mut self, domid: u16, remote_port: u32) -> io::Result<Port>;
    /// Closes a port.
    fn unbind(&mut self, port: Port);
    /// Tells the other end.
    ///
    /// # Errors
    /// When the port is gone.
    fn notify(&mut self, port: Port) -> io::Result<()>;
    /// Ports that fired since they were unmasked; as many as fit. They are masked now.
    fn fired<'a>(&mut self, room: &'a mut [Port]) -> &'a [Port];
    /// Lets a port fire again.
    ///
    /// # Errors
    /// When the port is gone.
    fn unmask(&mut self, port: Port) -> io::Result<()>;
}

/// The pages of a ring, in a row.
#[derive(Debug)]
pub enum RingPages {
    /// Those of a guest.
    Mapped(devices::Mapping),
    /// Those of a guest in memory.
    Memory(Arc<[AtomicU32]>),
}

impl RingPages {
    /// All of it. The other end changes it at any time.
    pub fn words(&self) -> &[AtomicU32] {
        match self {
            RingPages::Mapped(mapping) => mapping.words(),
            RingPages::Memory(words) => words,
        }
    }
}

/// A Xen device that cannot be opened.
#[derive(Debug)]
pub struct NoXen {
    /// Which.
    pub path: &'static str,
    /// Why.
    pub error: io::Error,
}

impl NoXen {
    /// Positive errno.
    pub fn errno(&self) -> i32 {
        self.error.raw_os_error().unwrap_or(libc::ENODEV)
    }
}

impl fmt::Display for NoXen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let NoXen { path, error } = self;
        write!(
            f,
            "cannot open {path}: {error}; is this a domain of Xen, with the modules xen-gntdev and \
             xen-evtchn, and are we root?"
        )
    }
}

impl std::error::Error for NoXen {}
