//! A minor with a ring and a disk, in this process: what most of the tests begin with.
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use tests::rig::blktap::{Control, FOLDER, Info, PAGE, Request, Ring, flag};

/// Within this, the kernel does what it has to do, on a busy host and with all of its debugging.
pub const SOON: Duration = Duration::from_secs(60);

pub type Outcome = Result<(), String>;

/// Says what was done when something failed.
pub fn said<T>(what: &str, result: io::Result<T>) -> Result<T, String> {
    result.map_err(|e| format!("{what}: {e}"))
}

/// Demands an error.
pub fn refused<T>(what: &str, errno: i32, result: io::Result<T>) -> Outcome {
    match result {
        Err(e) if e.raw_os_error() == Some(errno) => Ok(()),
        Err(e) => Err(format!("{what}: {e}, not {}", io::Error::from_raw_os_error(errno))),
        Ok(_) => Err(format!("{what}: no error, not {}", io::Error::from_raw_os_error(errno))),
    }
}

/// Waits for what sends no event.
pub fn until(what: &str, mut so: impl FnMut() -> bool) -> Outcome {
    let end = Instant::now() + SOON;
    while !so() {
        if Instant::now() > end {
            return Err(format!("{what}: not within {SOON:?}"));
        }
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

pub struct Session {
    pub control: Control,
    pub minor: u32,
    pub ring: Ring,
}

impl Session {
    /// A ring that is mapped, without a disk.
    pub fn mapped() -> Result<Session, String> {
        let control = said("control device", Control::open())?;
        let minor = said("ALLOC_TAP", control.allocate())?.minor;
        let mut ring = said("open of the ring", Ring::open(minor))?;
        said("mmap", ring.map())?;
        Ok(Session { control, minor, ring })
    }

    /// With a disk of 16 MiB.
    pub fn new() -> Result<Session, String> {
        let session = Session::mapped()?;
        said("CREATE_DEVICE", session.ring.create(&mut info()))?;
        until("the disk's node", || Path::new(&session.disk()).exists())?;
        Ok(session)
    }

    pub fn disk(&self) -> String {
        format!("{FOLDER}/tapdev{}", self.minor)
    }

    /// So many reads of the disk, each by a thread of its own; what came of them.
    pub fn reads(&self, count: u64) -> Result<Receiver<io::Result<()>>, String> {
        let (sender, receiver) = channel();
        for i in 0..count {
            let disk = open_direct(&self.disk(), false)?;
            let sender = sender.clone();
            thread::spawn(move || sender.send(read_at(&disk, i * PAGE as u64)));
        }
        Ok(receiver)
    }

    /// The next requests, so many.
    pub fn requests(&mut self, count: usize) -> Result<Vec<Request>, String> {
        let mut taken = Vec::new();
        let end = Instant::now() + SOON;
        while taken.len() < count {
            match self.ring.take() {
                Some(request) => taken.push(request),
                None if Instant::now() > end => return Err("requests do not come".to_string()),
                None => {
                    if !self.ring.sleep_after(self.ring.taken) {
                        said("poll", self.ring.poll(1000))?;
                    }
                }
            }
        }
        Ok(taken)
    }

    /// The end in good order: nobody has the disk open, or will soon have closed it.
    pub fn end(self) -> Outcome {
        let Session { control, minor, mut ring } = self;
        until("REMOVE_DEVICE", || match ring.remove() {
            Ok(()) => true,
            Err(_) => {
                // Those who look at new disks read from them.
                while let Some(request) = ring.take() {
                    ring.answer(&request, 0);
                }
                let _ = ring.respond();
                false
            }
        })?;
        said("munmap", ring.unmap())?;
        drop(ring);
        said("FREE_TAP", control.free(minor))
    }

    /// The end of a ring that is closed already, or is closed hereby.
    pub fn abandon(self) -> Outcome {
        let Session { control, minor, ring } = self;
        drop(ring);
        said("FREE_TAP after a close", control.free(minor))
    }
}

/// A disk of 16 MiB with all that can be asked for.
pub fn info() -> Info {
    let flags = flag::FLUSH | flag::TRIM | flag::ZEROES | flag::FUA | flag::LEVEL;
    Info { capacity: 32768, sector_size: 512, flags, ..Info::default() }
}

pub fn open_direct(path: &str, write: bool) -> Result<File, String> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(write).custom_flags(libc::O_DIRECT).open(path);
    said(path, file)
}

/// A page at an address that is a multiple of its size, as O_DIRECT wants it.
#[repr(align(4096))]
pub struct Page(pub [u8; PAGE]);

pub fn read_at(disk: &File, at: u64) -> io::Result<()> {
    let mut page = Box::new(Page([0; PAGE]));
    disk.read_exact_at(&mut page.0, at)
}

/// Demands that each of these ended, with this error or (0) without one.
pub fn ended(what: &str, results: &Receiver<io::Result<()>>, count: u64, errno: i32) -> Outcome {
    for _ in 0..count {
        let result = results.recv_timeout(SOON).map_err(|_| format!("{what}: I/O hangs"))?;
        let found = match result {
            Ok(()) => 0,
            Err(e) if e.kind() == ErrorKind::UnexpectedEof => return Err(format!("{what}: short")),
            Err(e) => e.raw_os_error().unwrap_or(-1),
        };
        if found != errno {
            return Err(format!("{what}: I/O ended with error {found}, not {errno}"));
        }
    }
    Ok(())
}

/// Serves a new disk honestly: what is written is read. The proof that nothing stayed broken.
pub fn honest() -> Outcome {
    let mut session = Session::new()?;
    let disk = open_direct(&session.disk(), true)?;
    let writer = thread::spawn(move || {
        let mut page = Box::new(Page([0; PAGE]));
        page.0.iter_mut().enumerate().for_each(|(i, b)| *b = (i * 7 / 3) as u8);
        disk.write_all_at(&page.0, 8 * PAGE as u64)?;
        let mut back = Box::new(Page([0; PAGE]));
        disk.read_exact_at(&mut back.0, 8 * PAGE as u64)?;
        Ok::<bool, io::Error>(back.0 == page.0)
    });
    let mut store = vec![0; 16 << 20];
    while !writer.is_finished() {
        said("poll", session.ring.poll(10))?;
        serve(&mut session.ring, &mut store)?;
    }
    let same = said("honest I/O", writer.join().expect("no panic"))?;
    if !same {
        return Err("an honest disk returned other bytes than were written".to_string());
    }
    session.end()
}

/// Answers what is there, from memory.
pub fn serve(ring: &mut Ring, store: &mut [u8]) -> Outcome {
    let mut any = false;
    while let Some(request) = ring.take() {
        let (at, length) = (request.sector as usize * 512, request.sectors as usize * 512);
        match request.operation {
            0 => ring.data(request.id)[..length].copy_from_slice(&store[at..at + length]),
            1 => store[at..at + length].copy_from_slice(&ring.data(request.id)[..length]),
            _ => {}
        }
        ring.answer(&request, 0);
        any = true;
    }
    if any { said("RESPOND", ring.respond()) } else { Ok(()) }
}

/// Runs something in a child process, which does not come back from it; true: it said so.
pub fn in_child(work: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child calls `work`, which makes system calls, and _exit; no other thread's lock
    // is needed.
    match unsafe { libc::fork() } {
        0 => {
            let fine = work();
            // SAFETY: ends the child.
            unsafe { libc::_exit(if fine { 0 } else { 1 }) }
        }
        child => {
            let mut status = 0;
            // SAFETY: our own child, an int on the stack.
            let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
            waited == child && status == 0
        }
    }
}

/// Whether this page of ours is mapped.
pub fn is_mapped(at: *mut libc::c_void) -> bool {
    let mut there = 0u8;
    // SAFETY: asks about one page, writes one byte.
    unsafe { libc::mincore(at, PAGE, &raw mut there) == 0 }
}

/// A block ioctl with a number, or none, as argument.
pub fn block_ioctl(disk: &File, number: u64) -> io::Result<()> {
    // SAFETY: only for those that take no address (BLKFLSBUF).
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), number as _, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
