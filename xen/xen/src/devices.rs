//! The kernel's devices: `/dev/xen/gntdev` and `/dev/xen/evtchn`, one pair of descriptors for a
//! disk.
//!
//! Nothing here waits: the event channel descriptor is non-blocking, and copies are made by the
//! hypervisor before the call returns.
#![allow(unsafe_code)]
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use xen_sys::{PAGE_BYTES, evtchn, gntdev};

use crate::{COPIES_MAX, Copy, EventChannels, GrantTable, Memory, NoXen, Port, RingPages};

/// Both devices, open.
#[derive(Debug)]
pub struct Devices {
    grants: Arc<File>,
    events: File,
    /// Room for the segments of a call.
    segments: Vec<gntdev::CopySegment>,
    /// Ports that somebody else unmasks, if so.
    put_off: Option<Vec<Port>>,
}

/// Ports whose unmasking can be put off at once; what is beyond is unmasked on the spot.
const PUT_OFF_MAX: usize = 32;

impl Devices {
    /// Opens them.
    ///
    /// # Errors
    /// Which one is not there.
    pub fn open() -> Result<Devices, NoXen> {
        let open = |path: &'static str| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
            options.open(path).map_err(|error| NoXen { path, error })
        };
        Ok(Devices {
            grants: Arc::new(open(gntdev::PATH)?),
            events: open(evtchn::PATH)?,
            segments: Vec::with_capacity(COPIES_MAX),
            put_off: None,
        })
    }

    /// With ports that another program has bound: the descriptor of its event channels.
    ///
    /// # Errors
    /// Which device is not there.
    pub fn adopt(events: OwnedFd) -> Result<Devices, NoXen> {
        Ok(Devices { events: File::from(events), ..Devices::open()? })
    }

    /// From now on `unmask` only notes the port; the caller writes it, as a u32, to
    /// [`AsFd::as_fd`], soon.
    pub fn put_off_unmasks(&mut self) {
        self.put_off = Some(Vec::with_capacity(PUT_OFF_MAX));
    }

    /// A port that has to be unmasked.
    pub fn next_unmask(&mut self) -> Option<Port> {
        self.put_off.as_mut()?.pop()
    }

    /// Unmasks it on the spot.
    ///
    /// # Errors
    /// When the port is gone.
    pub fn unmask_now(&self, port: Port) -> io::Result<()> {
        // SAFETY: the kernel reads one port from live memory.
        let put = unsafe {
            libc::write(
                self.events.as_raw_fd(),
                std::ptr::from_ref(&port).cast(),
                size_of::<Port>(),
            )
        };
        if put < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// The ioctls that requests make.
pub const IOCTLS_OF_REQUESTS: [u64; 2] = [evtchn::IOCTL_NOTIFY, gntdev::IOCTL_GRANT_COPY];
/// The ioctls that rings make when they come and go. There are no others.
pub const IOCTLS_OF_RINGS: [u64; 4] = [
    evtchn::IOCTL_BIND_INTERDOMAIN,
    evtchn::IOCTL_UNBIND,
    gntdev::IOCTL_MAP_GRANT_REF,
    gntdev::IOCTL_UNMAP_GRANT_REF,
];

impl AsFd for Devices {
    /// Readable while ports have fired and were not asked for.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// Calls a device; a positive result is the value of calls that give one.
///
/// # Safety
/// `argument` is what the call `request` of the device behind `file` takes, alive and exclusively
/// ours.
unsafe fn call<T>(file: &File, request: u64, argument: &mut T) -> io::Result<u32> {
    // SAFETY: the caller's promise.
    let got = unsafe {
        libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, std::ptr::from_mut(argument))
    };
    u32::try_from(got).map_err(|_| io::Error::last_os_error())
}

impl GrantTable for Devices {
    fn map(&mut self, domid: u16, refs: &[u32]) -> io::Result<RingPages> {
        Mapping::new(Arc::clone(&self.grants), domid, refs).map(RingPages::Mapped)
    }

    fn copy(&mut self, memory: &mut dyn Memory, copies: &mut [Copy]) -> io::Result<()> {
        assert!(copies.len() <= COPIES_MAX, "a call makes at most {COPIES_MAX} copies");
        self.segments.clear();
        for copy in copies.iter_mut() {
            copy.ok = false;
            let (at, bytes) = (copy.at as usize, usize::from(copy.bytes));
            let piece = &mut memory.piece(copy.piece)[at..at + bytes];
            self.segments.push(segment(copy, piece.as_mut_ptr()));
        }
        let mut call_of =
            gntdev::GrantCopy { count: copies.len() as u32, segments: self.segments.as_mut_ptr() };
        // SAFETY: the segments are ours and live; the pieces they name were checked against their
        // slices above and are, by the contract of `Memory`, exclusively the caller's until `copy`
        // returns.
        unsafe { call(&self.grants, gntdev::IOCTL_GRANT_COPY, &mut call_of) }?;
        for (copy, segment) in copies.iter_mut().zip(&self.segments) {
            copy.ok = segment.status == gntdev::STATUS_OKAY;
        }
        Ok(())
    }
}

/// A copy as the kernel takes it.
fn segment(copy: &Copy, local: *mut u8) -> gntdev::CopySegment {
    let place = gntdev::Foreign { gref: copy.gref, offset: copy.offset, domid: copy.domid };
    let (ours, theirs) =
        (gntdev::CopySide::local(local.expose_provenance()), gntdev::CopySide::foreign(place));
    let (source, dest, flags) = match copy.to_guest {
        true => (ours, theirs, gntdev::DEST_GREF),
        false => (theirs, ours, gntdev::SOURCE_GREF),
    };
    let status = gntdev::STATUS_GENERAL_ERROR;
    gntdev::CopySegment { source, dest, len: copy.bytes, flags, status }
}

impl EventChannels for Devices {
    fn bind(&mut self, domid: u16, remote_port: u32) -> io::Result<Port> {
        let mut bind = evtchn::BindInterdomain { remote_domain: u32::from(domid), remote_port };
        // SAFETY: the structure is what the call takes.
        unsafe { call(&self.events, evtchn::IOCTL_BIND_INTERDOMAIN, &mut bind) }
    }

    fn unbind(&mut self, port: Port) {
        let mut port = evtchn::Port { port };
        // SAFETY: the structure is what the call takes. A port that is gone needs no unbinding.
        let _ = unsafe { call(&self.events, evtchn::IOCTL_UNBIND, &mut port) };
    }

    fn notify(&mut self, port: Port) -> io::Result<()> {
        let mut port = evtchn::Port { port };
        // SAFETY: the structure is what the call takes.
        unsafe { call(&self.events, evtchn::IOCTL_NOTIFY, &mut port) }.map(drop)
    }

    fn fired<'a>(&mut self, room: &'a mut [Port]) -> &'a [Port] {
        let bytes = size_of_val(room);
        // SAFETY: the kernel writes at most `bytes` bytes to `room`, which is ours; ports are
        // numbers.
        let got = unsafe { libc::read(self.events.as_raw_fd(), room.as_mut_ptr().cast(), bytes) };
        let count = usize::try_from(got).unwrap_or(0) / size_of::<Port>();
        &room[..count]
    }

    fn unmask(&mut self, port: Port) -> io::Result<()> {
        match &mut self.put_off {
            Some(ports) if ports.len() < PUT_OFF_MAX => {
                ports.push(port);
                Ok(())
            }
            _ => self.unmask_now(port),
        }
    }
}

/// Pages of a guest, mapped in a row. Unmapped when dropped.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<AtomicU32>,
    pages: usize,
    index: u64,
    grants: Arc<File>,
}

// SAFETY: the mapping has no thread affinity and is reached as atomics only.
unsafe impl Send for Mapping {}

impl Mapping {
    fn new(grants: Arc<File>, domid: u16, refs: &[u32]) -> io::Result<Mapping> {
        let pages = refs.len();
        if pages == 0 || pages > gntdev::MAP_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut map = gntdev::MapGrantRefs::default();
        map.first.count = pages as u32;
        let wanted = |gref: u32| gntdev::GrantRef { domid: u32::from(domid), gref };
        map.first.refs[0] = wanted(refs[0]);
        for (to, gref) in map.rest.iter_mut().zip(&refs[1..]) {
            *to = wanted(*gref);
        }
        // SAFETY: `map` holds `count` references in a row behind the head, which is what the call
        // reads; it writes `index`.
        unsafe { call(&grants, gntdev::IOCTL_MAP_GRANT_REF, &mut map) }?;
        let index = map.first.index;
        let offset = libc::off_t::try_from(index).map_err(|_| io::ErrorKind::InvalidData)?;
        let (prot, fd) = (libc::PROT_READ | libc::PROT_WRITE, grants.as_raw_fd());
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(std::ptr::null_mut(), pages * PAGE_BYTES, prot, libc::MAP_SHARED, fd, offset)
        };
        if at == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            forget(&grants, index, pages);
            return Err(error);
        }
        // SAFETY: the mapping made just above; the advice keeps the guest's pages out of cores.
        unsafe { libc::madvise(at, pages * PAGE_BYTES, libc::MADV_DONTDUMP) };
        let base = NonNull::new(at.cast()).expect("mmap gave an address");
        Ok(Mapping { base, pages, index, grants })
    }

    /// All of it, as words.
    pub fn words(&self) -> &[AtomicU32] {
        // SAFETY: the range is mapped until `drop`, page-aligned, and the other domain's changes
        // are what atomics are for.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.pages * PAGE_BYTES / 4) }
    }
}

/// The kernel forgets a grant that was made mappable.
fn forget(grants: &File, index: u64, pages: usize) {
    let mut unmap = gntdev::UnmapGrantRef { index, count: pages as u32, pad: 0 };
    // SAFETY: the structure is what the call takes. Failure means that it is forgotten already.
    let _ = unsafe { call(grants, gntdev::IOCTL_UNMAP_GRANT_REF, &mut unmap) };
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, unmapped once; slices of it cannot outlive `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.pages * PAGE_BYTES) };
        forget(&self.grants, self.index, self.pages);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_xen_it_is_said_which_device_is_missing() {
        if std::path::Path::new(gntdev::PATH).exists() {
            // Under Xen opening works, and tests/vm shows the rest.
            assert!(Devices::open().is_ok());
            return;
        }
        let error = Devices::open().unwrap_err();
        assert_eq!(error.errno(), libc::ENOENT);
        assert!(error.to_string().starts_with("cannot open /dev/xen/gntdev: "), "{error}");
    }

    #[test]
    fn a_copy_names_both_sides_by_direction() {
        let copy = Copy { domid: 3, gref: 9, offset: 512, bytes: 1024, ..Copy::default() };
        let mut byte = 0u8;
        let from = segment(&copy, &mut byte);
        let to = segment(&Copy { to_guest: true, ..copy }, &mut byte);
        assert_eq!((from.flags, to.flags), (gntdev::SOURCE_GREF, gntdev::DEST_GREF));
        assert_eq!((from.source, from.dest), (to.dest, to.source));
        assert_eq!(
            from.source,
            gntdev::CopySide::foreign(gntdev::Foreign { gref: 9, offset: 512, domid: 3 })
        );
        assert!(from.len == 1024 && from.status != gntdev::STATUS_OKAY);
    }
}
