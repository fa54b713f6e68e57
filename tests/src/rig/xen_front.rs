//! The front end of a block ring, run in dom0 for domain 0 itself: pages from `/dev/xen/gntalloc`,
//! a port of `/dev/xen/evtchn`, and a ring into which any bytes may be put. It goes to tapdisk
//! directly, with the control message that tapback would send; xenstore has no part in it.
use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;

use tap_ctl::client::Client;
use tap_ctl::messages::Blkif;
use xen_sys::blkif::Layout;
use xen_sys::{PAGE_BYTES, evtchn, gntalloc, ring};

use test_support::sys::wait_readable;

/// How long an answer may take on a busy host.
const PATIENCE: Duration = Duration::from_secs(20);
/// Domain 0, which is both ends.
const DOMID: u16 = 0;

/// Pages of ours that the back end may use. Taken back when dropped.
pub struct Granted {
    words: *const AtomicU32,
    pages: usize,
    /// Their references.
    pub refs: Vec<u32>,
    index: u64,
    device: Arc<File>,
}

/// `gntalloc::AllocGref` with room for the references of eight pages.
#[repr(C)]
struct Alloc {
    head: gntalloc::AllocGref,
    more: [u32; 8],
}

/// Calls a device; the result is not negative.
fn call<T>(file: &File, request: u64, argument: &mut T) -> io::Result<u32> {
    let argument = std::ptr::from_mut(argument);
    // SAFETY: `argument` is what the call takes, alive and exclusively ours.
    let got = unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, argument) };
    u32::try_from(got).map_err(|_| io::Error::last_os_error())
}

impl Granted {
    /// Grants zeroed pages (at most eight).
    ///
    /// # Errors
    /// Those of the device.
    pub fn new(device: &Arc<File>, pages: usize, writable: bool) -> io::Result<Granted> {
        assert!(pages <= 8, "Alloc has room for eight references");
        let flags = if writable { gntalloc::FLAG_WRITABLE } else { 0 };
        let mut alloc = Alloc { head: gntalloc::AllocGref::default(), more: [0; 8] };
        (alloc.head.domid, alloc.head.flags, alloc.head.count) = (DOMID, flags, pages as u32);
        call(device, gntalloc::IOCTL_ALLOC_GREF, &mut alloc)?;
        let mut refs = vec![alloc.head.grefs[0]];
        // The head ends with 4 bytes of padding, where the second reference is.
        let head = size_of::<gntalloc::AllocGref>();
        let words = std::ptr::from_ref(&alloc).cast::<u8>();
        for page in 1..pages {
            let at = 16 + 4 * page;
            assert!(at + 4 <= head + 32, "inside Alloc");
            // SAFETY: inside `alloc`, which is plain memory.
            refs.push(unsafe { words.add(at).cast::<u32>().read_unaligned() });
        }
        let index = alloc.head.index;
        let offset = libc::off_t::try_from(index).expect("an offset");
        let (protection, bytes) = (libc::PROT_READ | libc::PROT_WRITE, pages * PAGE_BYTES);
        let (null, fd) = (std::ptr::null_mut(), device.as_raw_fd());
        // SAFETY: a new mapping of the pages that the device has just given.
        let base = unsafe { libc::mmap(null, bytes, protection, libc::MAP_SHARED, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Granted { words: base.cast(), pages, refs, index, device: Arc::clone(device) })
    }

    /// All of it; the other end may change it.
    pub fn words(&self) -> &[AtomicU32] {
        // SAFETY: the mapping lives as long as self and is only reached as atomic words.
        unsafe { std::slice::from_raw_parts(self.words, self.pages * PAGE_BYTES / 4) }
    }

    /// Puts bytes at an offset that is a multiple of 4.
    pub fn put(&self, at: usize, bytes: &[u8]) {
        for (word, bytes) in self.words()[at / 4..].iter().zip(bytes.chunks_exact(4)) {
            let bytes = bytes.try_into().expect("four bytes");
            word.store(u32::from_le_bytes(bytes), Ordering::Relaxed);
        }
    }

    /// Bytes from an offset that is a multiple of 4.
    pub fn get(&self, at: usize, bytes: usize) -> Vec<u8> {
        let words = &self.words()[at / 4..at / 4 + bytes / 4];
        words.iter().flat_map(|w| w.load(Ordering::Relaxed).to_le_bytes()).collect()
    }
}

impl Drop for Granted {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody reaches any more.
        unsafe { libc::munmap(self.words.cast_mut().cast(), self.pages * PAGE_BYTES) };
        let mut back = gntalloc::DeallocGref { index: self.index, count: self.pages as u32 };
        let _ = call(&self.device, gntalloc::IOCTL_DEALLOC_GREF, &mut back);
    }
}

/// What a back end answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The request's.
    pub id: u64,
    /// The request's.
    pub operation: u8,
    /// 0, -1 or -2.
    pub status: i16,
}

/// A front end with a ring, connected or not.
pub struct Front {
    /// To grant more pages with.
    pub device: Arc<File>,
    events: File,
    port: u32,
    /// The ring's pages.
    pub ring: Granted,
    layout: Layout,
    protocol: u32,
    entries: u32,
    req_prod: u32,
    rsp_cons: u32,
}

impl Front {
    /// A ring of 2^`order` pages in a protocol's layout (1 native, 2 `x86_32`, 3 `x86_64`).
    ///
    /// # Errors
    /// Those of the devices.
    pub fn new(order: u32, protocol: u32) -> io::Result<Front> {
        let open = |path: &str| {
            let file = OpenOptions::new().read(true).write(true).open(path);
            file.map_err(|e| io::Error::other(format!("{path}: {e}")))
        };
        let device = Arc::new(open(gntalloc::PATH)?);
        let events = open(evtchn::PATH)?;
        let ring = Granted::new(&device, 1 << order, true)?;
        let mut bind = evtchn::BindUnboundPort { remote_domain: u32::from(DOMID) };
        let port = call(&events, evtchn::IOCTL_BIND_UNBOUND_PORT, &mut bind)?;
        let layout = Layout::of_protocol(protocol).expect("a protocol");
        let entries = ring::entries(1 << order, layout.entry_bytes as u32);
        let front = Front {
            device,
            events,
            port,
            ring,
            layout,
            protocol,
            entries,
            req_prod: 0,
            rsp_cons: 0,
        };
        // RING_INIT: both sides want to be told of the first.
        front.header(1).store(1, Ordering::Relaxed);
        front.header(3).store(1, Ordering::Relaxed);
        Ok(front)
    }

    /// The control message that connects this ring as device `devid`.
    pub fn message(&self, devid: u32) -> Blkif {
        let mut message = Blkif {
            domid: u32::from(DOMID),
            devid,
            order: self.ring.refs.len().ilog2(),
            proto: self.protocol,
            port: self.port,
            gref: [0; 8],
            pool: tap_ctl::messages::Text::new(b"").expect("an empty text"),
            poll_duration: 0,
            poll_idle_threshold: 0,
            queue: 0,
            queues: 0,
        };
        message.gref[..self.ring.refs.len()].copy_from_slice(&self.ring.refs);
        message
    }

    /// Connects it.
    ///
    /// # Errors
    /// What tapdisk says.
    pub fn connect(&self, client: &Client, pid: i32, minor: u16, devid: u32) -> Result<(), String> {
        client.connect_ring(pid, minor, &self.message(devid)).map_err(|e| e.to_string())
    }

    /// Word of the ring's header: 0 `req_prod`, 1 `req_event`, 2 `rsp_prod`, 3 `rsp_event`.
    pub fn header(&self, word: usize) -> &AtomicU32 {
        &self.ring.words()[word]
    }

    /// Entries of the ring.
    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Puts an entry and moves the producer index past it; nobody is told.
    pub fn put(&mut self, entry: &[u8]) {
        let slot = (self.req_prod & (self.entries - 1)) as usize;
        self.ring.put(64 + slot * self.layout.entry_bytes, entry);
        self.req_prod = self.req_prod.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.header(0).store(self.req_prod, Ordering::SeqCst);
    }

    /// Tells the back end.
    ///
    /// # Errors
    /// When the port is gone.
    pub fn notify(&self) -> io::Result<()> {
        let mut port = evtchn::Port { port: self.port };
        call(&self.events, evtchn::IOCTL_NOTIFY, &mut port).map(drop)
    }

    /// Closes the port.
    pub fn close_port(&self) {
        let mut port = evtchn::Port { port: self.port };
        let _ = call(&self.events, evtchn::IOCTL_UNBIND, &mut port);
    }

    /// The next `count` answers, in the order in which they came.
    ///
    /// # Errors
    /// When they do not come.
    pub fn answers(&mut self, count: u32) -> Result<Vec<Answer>, String> {
        let want = self.rsp_cons.wrapping_add(count);
        loop {
            let have = self.header(2).load(Ordering::SeqCst).wrapping_sub(self.rsp_cons);
            if have >= count {
                break;
            }
            self.header(3).store(want, Ordering::SeqCst);
            let have = self.header(2).load(Ordering::SeqCst).wrapping_sub(self.rsp_cons);
            if have < count && !self.told(PATIENCE) {
                return Err(format!("{have} of {count} answers came"));
            }
        }
        Ok((0..count).map(|_| self.answer()).collect())
    }

    /// Whether the back end notifies us within a time.
    pub fn told(&self, patience: Duration) -> bool {
        if !wait_readable(&self.events, patience) {
            return false;
        }
        let mut port = [0u8; 4];
        // The port that fired goes back to be unmasked.
        let read = io::Read::read(&mut &self.events, &mut port).is_ok_and(|n| n == 4);
        read && io::Write::write(&mut &self.events, &port).is_ok()
    }

    fn answer(&mut self) -> Answer {
        let slot = (self.rsp_cons & (self.entries - 1)) as usize;
        let bytes = self.ring.get(64 + slot * self.layout.entry_bytes, 12);
        self.rsp_cons = self.rsp_cons.wrapping_add(1);
        Answer {
            id: u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")),
            operation: bytes[8],
            status: i16::from_le_bytes([bytes[10], bytes[11]]),
        }
    }

    /// A request in this ring's layout: operation, the byte after it, sector, and what stands where
    /// segments do.
    pub fn entry(&self, operation: u8, second: u8, id: u64, sector: u64, tail: &[u8]) -> Vec<u8> {
        let mut entry = vec![0; self.layout.entry_bytes];
        (entry[0], entry[1]) = (operation, second);
        entry[self.layout.id..][..8].copy_from_slice(&id.to_le_bytes());
        entry[self.layout.sector..][..8].copy_from_slice(&sector.to_le_bytes());
        entry[self.layout.segments..][..tail.len()].copy_from_slice(tail);
        entry
    }

    /// An indirect request.
    pub fn indirect(
        &self,
        operation: u8,
        id: u64,
        sector: u64,
        count: u16,
        pages: &[u32],
    ) -> Vec<u8> {
        let mut entry = self.entry(xen_sys::blkif::op::INDIRECT, operation, id, sector, &[]);
        entry[self.layout.indirect_count..][..2].copy_from_slice(&count.to_le_bytes());
        for (i, page) in pages.iter().enumerate() {
            let at = self.layout.indirect_grefs + 4 * i;
            entry[at..at + 4].copy_from_slice(&page.to_le_bytes());
        }
        entry
    }
}
