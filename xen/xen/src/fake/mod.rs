//! A guest in memory, for tests and for the simulator: its pages, rings and event channels, and the
//! back end's view of them. It does whatever a test tells it, also what no decent guest would.
//!
//! ```text
//!   Guest ─► FrontRing, pages, notify          the test's side
//!     └────── one world ──────► Fake           the back end's: GrantTable, EventChannels
//! ```
//! Nothing the back end calls allocates, as with the kernel's devices.
mod front;

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::{Copy, EventChannels, GrantTable, Memory, PAGE_BYTES, Port, RingPages};
pub use front::{Answer, FrontRing, entry, indirect_entry};

/// Domain of the guest.
pub const DOMID: u16 = 7;
/// References of rings begin here; those of data pages are below.
const RING_REFS: u32 = 1 << 20;
/// A local port is the remote one and this.
const LOCAL_PORTS: u32 = 1000;

/// What a grant allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reading and writing.
    Full,
    /// Reading.
    ReadOnly,
    /// Nothing (any more).
    None,
}

/// What the back end has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of [`GrantTable::copy`].
    pub copy_calls: u64,
    /// Copies in them.
    pub copies: u64,
    /// Notifications.
    pub notifications: u64,
    /// Looks at the event channel descriptor, and ports unmasked.
    pub event_calls: u64,
    /// Rings that are mapped now.
    pub mapped: i64,
    /// Ports that are bound now.
    pub bound: i64,
}

#[derive(Debug)]
struct Page {
    bytes: Box<[u8; PAGE_BYTES]>,
    access: Access,
}

#[derive(Debug, Default)]
struct Channel {
    bound: bool,
    masked: bool,
    fired: bool,
    /// Notifications that the guest has not looked at.
    heard: u64,
}

#[derive(Debug, Default)]
struct World {
    pages: Vec<Page>,
    rings: Vec<(u32, Arc<[AtomicU32]>)>,
    channels: Vec<Channel>,
    counts: Counts,
    /// What the next copy call fails with.
    broken: Option<i32>,
}

/// The guest, for the test. Clones are the same guest.
#[derive(Clone, Debug, Default)]
pub struct Guest(Rc<RefCell<World>>);

/// The back end's view of a guest.
#[derive(Debug)]
pub struct Fake(Rc<RefCell<World>>);

impl Guest {
    /// A guest without pages.
    pub fn new() -> Guest {
        Guest::default()
    }

    /// What a back end gets to see.
    pub fn back_end(&self) -> Fake {
        Fake(Rc::clone(&self.0))
    }

    /// Grants a new page; its reference.
    pub fn grant(&self, access: Access) -> u32 {
        let mut world = self.0.borrow_mut();
        world.pages.push(Page { bytes: Box::new([0; PAGE_BYTES]), access });
        world.pages.len() as u32 - 1
    }

    /// Changes what a grant allows.
    pub fn allow(&self, gref: u32, access: Access) {
        self.0.borrow_mut().pages[gref as usize].access = access;
    }

    /// Looks at a page, or changes it.
    pub fn page<T>(&self, gref: u32, f: impl FnOnce(&mut [u8; PAGE_BYTES]) -> T) -> T {
        f(&mut self.0.borrow_mut().pages[gref as usize].bytes)
    }

    /// Makes a ring of 2^`order` pages and an event channel for it.
    pub fn ring(&self, order: u32, layout: crate::Layout) -> FrontRing {
        let mut world = self.0.borrow_mut();
        let pages = 1u32 << order;
        let words: Arc<[AtomicU32]> =
            (0..pages as usize * PAGE_BYTES / 4).map(|_| AtomicU32::new(0)).collect();
        let first = RING_REFS + 8 * world.rings.len() as u32;
        world.rings.push((first, Arc::clone(&words)));
        world.channels.push(Channel::default());
        let port = world.channels.len() as u32 - 1;
        FrontRing::new(words, layout, (first..first + pages).collect(), port)
    }

    /// Notifies the back end, if it has not masked the port.
    pub fn notify(&self, port: u32) {
        let channel = &mut self.0.borrow_mut().channels[port as usize];
        channel.fired |= channel.bound;
    }

    /// Whether a port has a notification that the back end can see: it would wake up.
    pub fn wakes_back_end(&self) -> bool {
        self.0.borrow().channels.iter().any(|c| c.fired && c.bound && !c.masked)
    }

    /// Notifications that came at a port since the last look.
    pub fn heard(&self, port: u32) -> u64 {
        std::mem::take(&mut self.0.borrow_mut().channels[port as usize].heard)
    }

    /// The next copy call fails as a whole.
    pub fn break_copy(&self, errno: i32) {
        self.0.borrow_mut().broken = Some(errno);
    }

    /// What the back end has done so far.
    pub fn counts(&self) -> Counts {
        let world = self.0.borrow();
        let mapped = world.rings.iter().map(|(_, words)| Arc::strong_count(words) as i64 - 1);
        // One other reference is the front end's.
        let mapped = mapped.map(|others| (others - 1).max(0)).sum();
        let bound = world.channels.iter().filter(|c| c.bound).count() as i64;
        Counts { mapped, bound, ..world.counts }
    }
}

impl World {
    fn copy_one(&mut self, copy: &mut Copy, memory: &mut dyn Memory) -> bool {
        let Some(page) = self.pages.get_mut(copy.gref as usize) else { return false };
        let (offset, bytes) = (usize::from(copy.offset), usize::from(copy.bytes));
        let fits = copy.domid == DOMID && offset + bytes <= PAGE_BYTES;
        let allowed = match page.access {
            Access::Full => true,
            Access::ReadOnly => !copy.to_guest,
            Access::None => false,
        };
        if !fits || !allowed {
            return false;
        }
        let theirs = &mut page.bytes[offset..offset + bytes];
        let ours = &mut memory.piece(copy.piece)[copy.at as usize..copy.at as usize + bytes];
        match copy.to_guest {
            true => theirs.copy_from_slice(ours),
            false => ours.copy_from_slice(theirs),
        }
        true
    }

    fn channel(&mut self, port: Port) -> io::Result<&mut Channel> {
        let at = port.checked_sub(LOCAL_PORTS).map(|remote| remote as usize);
        let channel = at.and_then(|at| self.channels.get_mut(at)).filter(|c| c.bound);
        channel.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTCONN))
    }
}

impl GrantTable for Fake {
    fn map(&mut self, domid: u16, refs: &[u32]) -> io::Result<RingPages> {
        let world = self.0.borrow();
        let found = world.rings.iter().find(|(first, words)| {
            let pages = (words.len() * 4 / PAGE_BYTES) as u32;
            (*first..first + pages).eq(refs.iter().copied())
        });
        match found {
            Some((_, words)) if domid == DOMID => Ok(RingPages::Memory(Arc::clone(words))),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    fn copy(&mut self, memory: &mut dyn Memory, copies: &mut [Copy]) -> io::Result<()> {
        assert!(copies.len() <= crate::COPIES_MAX, "as the devices demand");
        let mut world = self.0.borrow_mut();
        world.counts.copy_calls += 1;
        world.counts.copies += copies.len() as u64;
        if let Some(errno) = world.broken.take() {
            return Err(io::Error::from_raw_os_error(errno));
        }
        for copy in copies {
            copy.ok = world.copy_one(copy, memory);
        }
        Ok(())
    }
}

impl EventChannels for Fake {
    fn bind(&mut self, domid: u16, remote_port: u32) -> io::Result<Port> {
        let mut world = self.0.borrow_mut();
        match world.channels.get_mut(remote_port as usize) {
            Some(channel) if !channel.bound && domid == DOMID => {
                *channel = Channel { bound: true, fired: true, ..Channel::default() };
                Ok(LOCAL_PORTS + remote_port)
            }
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }

    fn unbind(&mut self, port: Port) {
        if let Ok(channel) = self.0.borrow_mut().channel(port) {
            channel.bound = false;
        }
    }

    fn notify(&mut self, port: Port) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        world.channel(port)?.heard += 1;
        world.counts.notifications += 1;
        Ok(())
    }

    fn fired<'a>(&mut self, room: &'a mut [Port]) -> &'a [Port] {
        let mut world = self.0.borrow_mut();
        world.counts.event_calls += 1;
        let ready = |c: &Channel| c.bound && c.fired && !c.masked;
        let mut count = 0;
        for (at, channel) in (0u32..).zip(&mut world.channels).filter(|(_, c)| ready(c)) {
            let Some(place) = room.get_mut(count) else { break };
            (channel.fired, channel.masked) = (false, true);
            *place = LOCAL_PORTS + at;
            count += 1;
        }
        &room[..count]
    }

    fn unmask(&mut self, port: Port) -> io::Result<()> {
        let mut world = self.0.borrow_mut();
        world.counts.event_calls += 1;
        world.channel(port)?.masked = false;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Pieces(Vec<Vec<u8>>);

    // SAFETY: each piece is a vector of its own that nothing resizes.
    #[allow(unsafe_code)]
    unsafe impl Memory for Pieces {
        fn piece(&mut self, name: u32) -> &mut [u8] {
            &mut self.0[name as usize]
        }
    }

    #[test]
    fn copies_go_where_grants_allow() {
        let guest = Guest::new();
        let mut back = guest.back_end();
        let (full, read_only) = (guest.grant(Access::Full), guest.grant(Access::ReadOnly));
        guest.page(read_only, |page| page.fill(3));
        let mut pieces = Pieces(vec![vec![1; 100], vec![0; 100]]);
        let copy = Copy { domid: DOMID, bytes: 100, ..Copy::default() };
        let mut copies = [
            Copy { gref: full, offset: 4000 - 4, to_guest: true, ..copy },
            Copy { gref: read_only, piece: 1, ..copy },
            Copy { gref: read_only, to_guest: true, ..copy },
            Copy { gref: full, offset: 4000, to_guest: true, ..copy },
            Copy { gref: 99, ..copy },
            Copy { gref: full, domid: 1, ..copy },
        ];
        back.copy(&mut pieces, &mut copies).unwrap();
        assert_eq!(copies.map(|c| c.ok), [true, true, false, false, false, false]);
        assert_eq!(
            guest.page(full, |page| page[4000 - 5..].iter().map(|b| u32::from(*b)).sum::<u32>()),
            100
        );
        assert_eq!(pieces.0[1], [3; 100]);
    }

    #[test]
    fn a_port_fires_once_until_it_is_unmasked() {
        let guest = Guest::new();
        let mut back = guest.back_end();
        let ring = guest.ring(0, crate::Layout::WIDE);
        let port = back.bind(DOMID, ring.port()).unwrap();
        assert!(guest.wakes_back_end(), "binding raises an event");
        assert!(back.bind(DOMID, ring.port()).is_err(), "bound already");
        let mut room = [0; 4];
        assert_eq!(back.fired(&mut room), [port]);
        guest.notify(ring.port());
        assert!(!guest.wakes_back_end());
        back.unmask(port).unwrap();
        assert_eq!(back.fired(&mut room), [port]);
        back.unbind(port);
        assert!(back.notify(port).is_err());
    }
}
