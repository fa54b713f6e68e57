//! The blktap device as the process sees it that serves a disk: control device, ring, data pages
//! (xen/blktap-dkms/README.md). Shared by the honest and the hostile programs of the machines'
//! tests.
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI16, AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

/// Where the nodes are.
pub const FOLDER: &str = "/dev/xen/blktap-2";
/// A page in bytes.
pub const PAGE: usize = 4096;
/// Requests and entries of a ring.
pub const REQUESTS: u32 = 32;
/// Pages of a request.
pub const SEGMENTS: usize = 11;
/// What one request can carry, in bytes.
pub const DATA: usize = SEGMENTS * PAGE;
/// The whole mapping.
pub const LENGTH: usize = PAGE + REQUESTS as usize * DATA;

/// Operations of a request.
#[allow(missing_docs)]
pub mod op {
    pub const READ: u8 = 0;
    pub const WRITE: u8 = 1;
    pub const FLUSH: u8 = 2;
    pub const TRIM: u8 = 3;
    pub const ZEROES: u8 = 4;
}

/// Flags of a device.
#[allow(missing_docs)]
pub mod flag {
    pub const READ_ONLY: u64 = 1;
    pub const PHYSICAL: u64 = 2;
    pub const FLUSH: u64 = 4;
    pub const TRIM: u64 = 8;
    pub const ZEROES: u64 = 0x100;
    pub const FUA: u64 = 0x200;
    pub const LEVEL: u64 = 0x400;
}

/// Flag of a write: it must be on the disk when it is answered.
pub const FUA: u16 = 1;
/// Flag of zeroes: the space stays allocated.
pub const NOUNMAP: u16 = 2;

/// Numbers of the ioctls.
#[allow(missing_docs)]
pub mod call {
    pub const ALLOC: u64 = 200;
    pub const FREE: u64 = 201;
    pub const RESPOND: u64 = 1;
    pub const CREATE: u64 = 208;
    pub const CREATE_OLD: u64 = 202;
    pub const REMOVE: u64 = 207;
    pub const KEEP: u64 = 209;
}

/// Any ioctl, with a number or the address of something as argument.
///
/// # Safety
/// If the kernel takes the argument for an address, what is there must be valid for what it does.
pub unsafe fn ioctl(file: &File, number: u64, argument: usize) -> io::Result<()> {
    // SAFETY: the caller's promise.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), number as _, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An ioctl that takes a number or nothing.
pub fn plain_ioctl(file: &File, number: u64, argument: usize) -> io::Result<()> {
    let takes_address = [call::ALLOC, call::CREATE, call::CREATE_OLD].contains(&number);
    assert!(!takes_address || argument == 0, "the argument would be an address");
    // SAFETY: the kernel takes it for no address, or for the null page's.
    unsafe { ioctl(file, number, argument) }
}

fn open(path: PathBuf) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// What ALLOC_TAP answers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Handle {
    /// Of blktapN.
    pub ring_major: u32,
    /// Of tapdevN.
    pub bdev_major: u32,
    /// N.
    pub minor: u32,
}

/// The control device.
pub struct Control(pub File);

impl Control {
    /// Opens it; the module is loaded.
    pub fn open() -> io::Result<Control> {
        open(format!("{FOLDER}/control").into()).map(Control)
    }

    /// A new minor.
    pub fn allocate(&self) -> io::Result<Handle> {
        let mut handle = Handle::default();
        // SAFETY: the kernel writes twelve bytes there.
        unsafe { ioctl(&self.0, call::ALLOC, &raw mut handle as usize)? };
        Ok(handle)
    }

    /// Gives it back.
    pub fn free(&self, minor: u32) -> io::Result<()> {
        plain_ioctl(&self.0, call::FREE, minor as usize)
    }
}

/// The form of 56 bytes; the fields of the other form in what is reserved there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct Info {
    pub capacity: u64,
    pub sector_size: u32,
    pub physical_sector_size: u32,
    pub flags: u64,
    pub phys_block_size: u32,
    pub phys_block_offset: u32,
    pub trim_block_size: u32,
    pub trim_block_offset: u32,
    pub reserved: [u64; 2],
}

const _: () = assert!(size_of::<Info>() == 56);

#[repr(C)]
struct OldInfo {
    name: [u8; 256],
    capacity: u64,
    sector_size: u64,
}

/// A request, copied out of the ring.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Request {
    pub operation: u8,
    pub flags: u16,
    pub id: u32,
    pub sector: u64,
    /// Sectors of 512 bytes.
    pub sectors: u64,
    /// First and last sector of every page.
    pub segments: Vec<(u8, u8)>,
}

/// Response as a process may write it, also a wrong one.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Response {
    pub id: u64,
    pub operation: u8,
    pub status: i16,
}

/// An open ring device; mapped after `map`.
pub struct Ring {
    /// The open device.
    pub file: File,
    map: Option<NonNull<u8>>,
    /// Requests taken so far.
    pub taken: u32,
    /// Responses written so far.
    pub answered: u32,
}

// SAFETY: the mapping may be used from any thread of the process; `&mut self` keeps uses apart.
unsafe impl Send for Ring {}

impl Ring {
    /// Opens the ring of a minor.
    pub fn open(minor: u32) -> io::Result<Ring> {
        let file = open(format!("{FOLDER}/blktap{minor}").into())?;
        Ok(Ring { file, map: None, taken: 0, answered: 0 })
    }

    /// Maps it as it has to be.
    pub fn map(&mut self) -> io::Result<()> {
        let shared = libc::MAP_SHARED;
        let at = self.map_as(LENGTH, libc::PROT_READ | libc::PROT_WRITE, shared, 0)?;
        self.map = Some(at);
        Ok(())
    }

    /// Any mapping; the caller of other than `map` gets one that nobody uses, or an error.
    pub fn map_as(
        &self,
        length: usize,
        protection: i32,
        flags: i32,
        offset: i64,
    ) -> io::Result<NonNull<u8>> {
        let fd = self.file.as_raw_fd();
        // SAFETY: a new mapping, wherever the kernel has room.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, fd, offset) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(NonNull::new(at.cast()).expect("a mapping is not at 0"))
    }

    /// The beginning of the mapping, for what does system calls on it.
    pub fn base(&self) -> NonNull<u8> {
        self.map.expect("the ring is mapped")
    }

    /// Unmaps it; the disk is gone then.
    pub fn unmap(&mut self) -> io::Result<()> {
        let Some(at) = self.map.take() else { return Ok(()) };
        // SAFETY: nothing borrows from the mapping: `data` borrows from self.
        let result = unsafe { libc::munmap(at.as_ptr().cast(), LENGTH) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// The info's flags become the accepted ones.
    pub fn create(&self, info: &mut Info) -> io::Result<()> {
        // SAFETY: the kernel reads and writes within the structure.
        unsafe { ioctl(&self.file, call::CREATE, std::ptr::from_mut(info) as usize) }
    }

    /// The older form of CREATE_DEVICE.
    pub fn create_old(&self, name: &str, capacity: u64, sector_size: u64) -> io::Result<()> {
        let mut info = OldInfo { name: [0; 256], capacity, sector_size };
        info.name[..name.len()].copy_from_slice(name.as_bytes());
        // SAFETY: the kernel reads the structure.
        unsafe { ioctl(&self.file, call::CREATE_OLD, &raw mut info as usize) }
    }

    /// REMOVE_DEVICE.
    pub fn remove(&self) -> io::Result<()> {
        plain_ioctl(&self.file, call::REMOVE, 0)
    }

    /// KEEP: 1, the ring outlives its mapping; 0, it does not.
    pub fn keep(&self, how: usize) -> io::Result<()> {
        plain_ioctl(&self.file, call::KEEP, how)
    }

    /// RESPOND: the kernel takes what was answered.
    pub fn respond(&self) -> io::Result<()> {
        plain_ioctl(&self.file, call::RESPOND, 0)
    }

    /// What poll reports within so many milliseconds (-1: for ever); 0: nothing.
    pub fn poll(&self, milliseconds: i32) -> io::Result<i16> {
        let fd = self.file.as_raw_fd();
        let mut poll = libc::pollfd { fd, events: libc::POLLIN | libc::POLLPRI, revents: 0 };
        // SAFETY: one pollfd.
        if unsafe { libc::poll(&raw mut poll, 1, milliseconds) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(poll.revents)
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset < PAGE);
        // SAFETY: within the ring page, aligned; shared memory is accessed by atomics only.
        unsafe { self.base().add(offset).cast().as_ref() }
    }

    fn byte(&self, offset: usize) -> u8 {
        assert!(offset < PAGE);
        // SAFETY: as in `word`.
        unsafe { self.base().add(offset).cast::<AtomicU8>().as_ref() }.load(Ordering::Relaxed)
    }

    fn long(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < PAGE);
        // SAFETY: as in `word`.
        unsafe { self.base().add(offset).cast().as_ref() }
    }

    /// What the kernel has to say; 3: end the disk.
    pub fn message(&self) -> u8 {
        self.byte(16)
    }

    /// It was read.
    pub fn clear_message(&self) {
        // SAFETY: as in `word`.
        unsafe { self.base().add(16).cast::<AtomicU8>().as_ref() }.store(0, Ordering::Relaxed);
    }

    /// Requests pushed so far.
    pub fn req_prod(&self) -> u32 {
        self.word(0).load(Ordering::Acquire)
    }

    /// What the kernel keeps for itself anyway: nonsense for it.
    pub fn set_req_prod(&self, value: u32) {
        self.word(0).store(value, Ordering::Release);
    }

    /// Responses that the kernel may take at the next RESPOND.
    pub fn set_rsp_prod(&self, value: u32) {
        self.word(8).store(value, Ordering::Release);
    }

    /// Says that the process has taken all it saw; true: there is more already.
    pub fn sleep_after(&self, taken: u32) -> bool {
        self.word(4).store(taken.wrapping_add(1), Ordering::Release);
        fence(Ordering::SeqCst);
        self.req_prod() != taken
    }

    /// The number of requests at which the kernel wakes us.
    pub fn set_req_event(&self, value: u32) {
        self.word(4).store(value, Ordering::Release);
    }

    /// The next request, if there is one.
    pub fn take(&mut self) -> Option<Request> {
        if self.req_prod() == self.taken {
            return None;
        }
        let at = 64 + 112 * (self.taken % REQUESTS) as usize;
        self.taken = self.taken.wrapping_add(1);
        let segments = (0..usize::from(self.byte(at + 1)))
            .map(|s| (self.byte(at + 28 + 8 * s), self.byte(at + 29 + 8 * s)))
            .collect::<Vec<_>>();
        let operation = self.byte(at);
        let mut sectors = segments.iter().map(|&(a, b)| u64::from(b) + 1 - u64::from(a)).sum();
        if operation == op::TRIM || operation == op::ZEROES {
            sectors = self.long(at + 24).load(Ordering::Relaxed);
        }
        let flags = u16::from(self.byte(at + 2)) | u16::from(self.byte(at + 3)) << 8;
        let id = self.long(at + 8).load(Ordering::Relaxed) as u32;
        let sector = self.long(at + 16).load(Ordering::Relaxed);
        Some(Request { operation, flags, id, sector, sectors, segments })
    }

    /// The data pages of a request.
    pub fn data(&mut self, id: u32) -> &mut [u8] {
        assert!(id < REQUESTS);
        // SAFETY: within the mapping. Until the request is answered nobody else uses its pages;
        // after that the kernel may write into them, but the borrow ends before `answer` can be
        // called.
        unsafe {
            let at = self.base().add(PAGE + id as usize * DATA);
            std::slice::from_raw_parts_mut(at.as_ptr(), DATA)
        }
    }

    /// Writes a response where number `place` belongs; rsp_prod stays.
    pub fn write_response(&self, place: u32, response: Response) {
        let at = 64 + 112 * (place % REQUESTS) as usize;
        self.long(at).store(response.id, Ordering::Relaxed);
        // SAFETY: as in `word`.
        unsafe {
            self.base()
                .add(at + 8)
                .cast::<AtomicU8>()
                .as_ref()
                .store(response.operation, Ordering::Relaxed);
            self.base()
                .add(at + 10)
                .cast::<AtomicI16>()
                .as_ref()
                .store(response.status, Ordering::Relaxed);
        }
    }

    /// Answers a request; the kernel looks after `respond`.
    pub fn answer(&mut self, request: &Request, status: i16) {
        let response = Response { id: u64::from(request.id), operation: request.operation, status };
        self.write_response(self.answered, response);
        self.answered = self.answered.wrapping_add(1);
        self.set_rsp_prod(self.answered);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let _ = self.unmap();
    }
}

/// `tda`, `tdb`, … `tdz`, `tdaa`: the kernel's name of a disk.
pub fn disk_name(minor: u32) -> String {
    let mut letters = Vec::new();
    let mut rest = minor + 1;
    while rest > 0 {
        rest -= 1;
        letters.push(char::from(b'a' + (rest % 26) as u8));
        rest /= 26;
    }
    letters.iter().rev().fold("td".to_string(), |name, &letter| name + &letter.to_string())
}

/// A file of sysfs, without the line's end.
pub fn sysfs(path: &str) -> io::Result<String> {
    let text =
        fs::read_to_string(path).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}")))?;
    Ok(text.trim_end_matches('\n').to_string())
}
