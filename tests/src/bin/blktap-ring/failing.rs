//! The module when the kernel has no memory for it, or cannot reach the caller's: each call again
//! and again, first with its first allocation failing, then with its second, until there is none
//! left to fail (`/proc/thread-self/fail-nth`, Linux's Documentation/fault-injection). A call fails
//! with the error that README.md names, leaves nothing behind, and works at the next try.
//!
//! Whoever starts it sees to it that only the module's own functions are met (`require-start`,
//! `require-end`).
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use tests::rig::blktap::{Control, Info, Ring, disk_name};

use crate::session::{
    Outcome, Page, Session, block_ioctl, ended, info, is_mapped, open_direct, said, serve, until,
};

/// Far more than any call asks for.
const ASKED_MAX: u32 = 5000;
const BLKFLSBUF: u64 = 0x1261;

pub fn main(words: &[String]) -> Outcome {
    match words {
        [what] if what == "calls" => calls(),
        [what, path] if what == "load" => load(path),
        _ => Err("failing calls|load MODULE".to_string()),
    }
}

/// This thread's counter: the so-manieth allocation from now on fails.
struct Nth(File);

impl Nth {
    fn new() -> Result<Nth, String> {
        let path = "/proc/thread-self/fail-nth";
        let file = OpenOptions::new().read(true).write(true).open(path);
        said("/proc/thread-self/fail-nth: the kernel for debugging has it", file).map(Nth)
    }

    fn set(&self, n: u32) -> Outcome {
        said("fail-nth", self.0.write_all_at(n.to_string().as_bytes(), 0))
    }

    /// How many are left before the one that fails; 0: it has failed.
    fn left(&self) -> Result<u32, String> {
        let mut text = [0; 16];
        let length = said("fail-nth", self.0.read_at(&mut text, 0))?;
        let text = String::from_utf8_lossy(&text[..length]);
        text.trim().parse().map_err(|e| format!("fail-nth is {text}: {e}"))
    }

    /// One call in which the nth fails; whether one did.
    fn during<T>(&self, n: u32, call: impl FnOnce() -> T) -> Result<(T, bool), String> {
        self.set(n)?;
        let result = call();
        let failed = self.left()? == 0;
        self.set(0)?;
        Ok((result, failed))
    }
}

/// What came of a call whose allocations failed one by one.
#[derive(Default)]
struct Tally {
    asked: u32,
    refused: u32,
}

/// `round` does the call in which the nth fails, and undoes it; it says whether one failed, and the
/// error.
fn each(
    what: &str,
    errors: &[i32],
    mut round: impl FnMut(u32) -> Result<(bool, Option<io::Error>), String>,
) -> Result<Tally, String> {
    let mut tally = Tally::default();
    for n in 1..ASKED_MAX {
        let (failed, error) = round(n).map_err(|e| format!("{what}, failing at {n}: {e}"))?;
        match (failed, error) {
            (false, None) => {
                println!("{what}: {} to fail, {} refused", tally.asked, tally.refused);
                return Ok(tally);
            }
            (true, None) => tally.asked += 1,
            (true, Some(e)) if errors.contains(&e.raw_os_error().unwrap_or(0)) => {
                tally.asked += 1;
                tally.refused += 1;
            }
            (_, Some(e)) => return Err(format!("{what}, failing at {n}: {e}")),
        }
    }
    Err(format!("{what}: no end of allocations"))
}

/// Demands that at least so many allocations failed, and as many led to an error.
fn at_least(what: &str, least: u32, tally: &Tally) -> Outcome {
    if tally.refused < least {
        return Err(format!(
            "{what}: {} calls were refused, {least} at least were expected",
            tally.refused
        ));
    }
    Ok(())
}

fn calls() -> Outcome {
    let nth = Nth::new()?;
    at_least("ALLOC_TAP", 5, &allocating(&nth)?)?;
    // Its pages.
    at_least("open of the ring", 354, &opening(&nth)?)?;
    at_least("mmap", 1, &mapping(&nth)?)?;
    at_least("CREATE_DEVICE", 10, &creating(&nth, false)?)?;
    at_least("CREATE_DEVICE, old form", 10, &creating(&nth, true)?)?;
    taking_away(&nth)?;
    nothing_for_requests(&nth)?;
    crate::session::honest()
}

fn minors() -> usize {
    let entries = fs::read_dir("/sys/class/blktap2").into_iter().flatten().flatten();
    entries.filter(|e| e.file_name().to_string_lossy().starts_with("blktap")).count()
}

fn allocating(nth: &Nth) -> Result<Tally, String> {
    let control = said("control device", Control::open())?;
    let before = minors();
    each("ALLOC_TAP", &[libc::ENOMEM, libc::EFAULT], |n| {
        let (result, failed) = nth.during(n, || control.allocate())?;
        let error = match result {
            Ok(handle) => {
                said("FREE_TAP", control.free(handle.minor))?;
                None
            }
            Err(e) => Some(e),
        };
        if minors() != before {
            return Err(format!("{} minors, {before} before", minors()));
        }
        Ok((failed, error))
    })
}

fn opening(nth: &Nth) -> Result<Tally, String> {
    let control = said("control device", Control::open())?;
    let minor = said("ALLOC_TAP", control.allocate())?.minor;
    let tally = each("open of the ring", &[libc::ENOMEM], |n| {
        let (result, failed) = nth.during(n, || Ring::open(minor))?;
        Ok((failed, result.err()))
    })?;
    said("FREE_TAP", control.free(minor))?;
    Ok(tally)
}

fn mapping(nth: &Nth) -> Result<Tally, String> {
    let control = said("control device", Control::open())?;
    let minor = said("ALLOC_TAP", control.allocate())?.minor;
    let tally = each("mmap", &[libc::ENOMEM], |n| {
        let mut ring = said("open", Ring::open(minor))?;
        // Where no page tables are: below a piece that takes up the rest of what is in use.
        let away = Away::new();
        let (result, failed) = nth.during(n, || ring.map())?;
        drop(away);
        if result.is_err() && ring.map().err().and_then(|e| e.raw_os_error()) != Some(libc::EIO) {
            return Err("a ring whose mapping failed is not over".to_string());
        }
        Ok((failed, result.err()))
    })?;
    said("FREE_TAP", control.free(minor))?;
    Ok(tally)
}

/// Addresses without memory, right below all others.
struct Away(*mut libc::c_void);

impl Away {
    const LENGTH: usize = 64 << 20;

    fn new() -> Away {
        // SAFETY: a new mapping, which nobody uses.
        let at = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            libc::mmap(std::ptr::null_mut(), Away::LENGTH, libc::PROT_NONE, flags, -1, 0)
        };
        assert_ne!(at, libc::MAP_FAILED);
        Away(at)
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`.
        unsafe { libc::munmap(self.0, Away::LENGTH) };
    }
}

fn creating(nth: &Nth, old: bool) -> Result<Tally, String> {
    let what = if old { "CREATE_DEVICE, old form" } else { "CREATE_DEVICE" };
    let session = Session::mapped()?;
    let folder = format!("/sys/block/{}", disk_name(session.minor));
    let tally = each(what, &[libc::ENOMEM, libc::EFAULT], |n| {
        // A flag that is not accepted, so that flags are written back.
        let mut asked = Info { flags: info().flags | 0x10, ..info() };
        let (result, failed) = nth.during(n, || {
            if old {
                session.ring.create_old("x", 2048, 512)
            } else {
                session.ring.create(&mut asked)
            }
        })?;
        if result.is_ok() {
            until("REMOVE_DEVICE", || session.ring.remove().is_ok())?;
        }
        if Path::new(&folder).exists() || Path::new(&session.disk()).exists() {
            return Err(format!("{folder} or {} is there", session.disk()));
        }
        Ok((failed, result.err()))
    })?;
    session.end()?;
    Ok(tally)
}

/// What takes something away needs no memory, or does without.
fn taking_away(nth: &Nth) -> Outcome {
    each("REMOVE_DEVICE", &[], |n| {
        let session = Session::new()?;
        // Those who look at new disks have closed it by then.
        until("REMOVE_DEVICE", || {
            let removed = session.ring.remove().is_ok();
            removed && session.ring.create(&mut info()).is_ok()
        })?;
        let (result, failed) = nth.during(n, || session.ring.remove())?;
        session.end()?;
        Ok((failed, result.err()))
    })?;
    each("close of a ring with a disk", &[], |n| {
        let Session { control, minor, ring } = Session::new()?;
        let base = ring.base().as_ptr().cast();
        let ((), failed) = nth.during(n, || drop(ring))?;
        if is_mapped(base) {
            return Err("the ring is mapped".to_string());
        }
        said("FREE_TAP", control.free(minor))?;
        Ok((failed, None))
    })?;
    let control = said("control device", Control::open())?;
    each("FREE_TAP", &[], |n| {
        let minor = said("ALLOC_TAP", control.allocate())?.minor;
        let (result, failed) = nth.during(n, || control.free(minor))?;
        Ok((failed, result.err()))
    })?;
    Ok(())
}

/// Requests and answers: the module asks for no memory, neither in the program's call nor in the
/// server's.
fn nothing_for_requests(nth: &Nth) -> Outcome {
    let mut session = Session::new()?;
    let disk = open_direct(&session.disk(), true)?;
    let (sender, results) = std::sync::mpsc::channel();
    let user = std::thread::spawn(move || -> Result<u32, String> {
        let nth = Nth::new()?;
        let mut page = Box::new(Page([5; 4096]));
        nth.set(1)?;
        for place in 0..64 {
            let _ = sender.send(disk.write_all_at(&page.0, place * 4096));
            let _ = sender.send(disk.read_exact_at(&mut page.0, place * 4096));
        }
        let _ = sender.send(disk.sync_data());
        let _ = sender.send(block_ioctl(&disk, BLKFLSBUF));
        let _ = sender.send(trim(&disk));
        nth.left()
    });
    let mut store = vec![0; 16 << 20];
    nth.set(1)?;
    while !user.is_finished() {
        said("poll", session.ring.poll(10))?;
        serve(&mut session.ring, &mut store)?;
    }
    let left = nth.left()?;
    nth.set(0)?;
    ended("I/O", &results, 131, 0)?;
    let users = user.join().expect("no panic")?;
    if (left, users) != (1, 1) {
        return Err("the module asked for memory while it served requests".to_string());
    }
    println!("requests: nothing to fail");
    session.end()
}

fn trim(disk: &File) -> io::Result<()> {
    let range = [1u64 << 20, 1 << 20];
    // SAFETY: BLKDISCARD reads two numbers.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), 0x1277, range.as_ptr()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The module's start.
fn load(path: &str) -> Outcome {
    let nth = Nth::new()?;
    let file = said(path, File::open(path))?;
    let tally = each("loading", &[libc::ENOMEM], |n| {
        let (result, failed) = nth.during(n, || {
            // SAFETY: a descriptor, an empty string, a number.
            let result =
                unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
            if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        })?;
        if result.is_ok() {
            // SAFETY: a string and a number.
            let gone = unsafe {
                libc::syscall(libc::SYS_delete_module, c"blktap".as_ptr(), libc::O_NONBLOCK)
            };
            if gone < 0 {
                return Err(format!("unloading: {}", io::Error::last_os_error()));
            }
        }
        for left in ["/sys/class/blktap2", "/sys/class/misc/blktap!control"] {
            if Path::new(left).exists() {
                return Err(format!("{left} is there"));
            }
        }
        Ok((failed, result.err()))
    })?;
    at_least("loading", 10, &tally)
}
