//! What a process may do with the mapping of a ring, and what not; what outlives what.
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use io_uring::{IoUring, opcode, types};
use libc::{EACCES, EBUSY, EINVAL, EIO, MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE};
use tests::rig::blktap::{Control, DATA, LENGTH, PAGE, Ring, op};

use crate::session::{Outcome, Session, ended, honest, in_child, is_mapped, refused, said, until};

/// The file is for device I/O on the data pages.
pub fn main(words: &[String]) -> Outcome {
    let [file] = words else { return Err("mappings FILE".to_string()) };
    wrong_forms()?;
    parts()?;
    dropped_pages()?;
    moved()?;
    forks()?;
    inherited()?;
    closed_before_unmapped()?;
    kept()?;
    device_io(file)?;
    honest()
}

fn wrong_forms() -> Outcome {
    let control = said("control device", Control::open())?;
    let minor = said("ALLOC_TAP", control.allocate())?.minor;
    let mut ring = said("open", Ring::open(minor))?;
    let both = PROT_READ | PROT_WRITE;
    for (what, length, protection, flags, offset) in [
        ("one page", PAGE, both, MAP_SHARED, 0),
        ("a page less", LENGTH - PAGE, both, MAP_SHARED, 0),
        ("a page more", LENGTH + PAGE, both, MAP_SHARED, 0),
        ("from the second page on", LENGTH, both, MAP_SHARED, PAGE as i64),
        ("the second page", PAGE, both, MAP_SHARED, PAGE as i64),
        ("private", LENGTH, both, MAP_PRIVATE, 0),
        ("read-only", LENGTH, PROT_READ, MAP_SHARED, 0),
        ("write-only", LENGTH, PROT_WRITE, MAP_SHARED, 0),
        ("no access", LENGTH, 0, MAP_SHARED, 0),
    ] {
        refused(what, EINVAL, ring.map_as(length, protection, flags, offset))?;
    }
    said("mmap after all that", ring.map())?;
    refused("a second mmap", EBUSY, ring.map_as(LENGTH, both, MAP_SHARED, 0))?;
    said("munmap", ring.unmap())?;
    refused("mmap after munmap", EIO, ring.map_as(LENGTH, both, MAP_SHARED, 0))?;
    refused("an ioctl after munmap", EACCES, ring.respond())?;
    let events = said("poll", ring.poll(0))?;
    if events & (libc::POLLHUP | libc::POLLERR) != libc::POLLHUP | libc::POLLERR {
        return Err(format!("poll after munmap: {events:#x}"));
    }
    refused("FREE_TAP before the close", EBUSY, control.free(minor))?;
    drop(ring);
    said("FREE_TAP", control.free(minor))
}

fn parts() -> Outcome {
    let session = Session::new()?;
    let base = session.ring.base().as_ptr();
    // SAFETY: refused, or done to pages that nothing borrows.
    let results = unsafe {
        let middle = base.add(16 * PAGE).cast();
        [
            ("munmap of the last page", libc::munmap(base.add(LENGTH - PAGE).cast(), PAGE)),
            ("munmap of the first page", libc::munmap(base.cast(), PAGE)),
            ("munmap of a page", libc::munmap(middle, PAGE)),
            ("mprotect of a page", libc::mprotect(middle, PAGE, PROT_READ)),
        ]
    };
    for (what, result) in results {
        if result == 0 {
            return Err(format!("{what} was not refused"));
        }
    }
    // As a whole it may be protected; and it does not grow.
    // SAFETY: nothing borrows from it.
    unsafe {
        if libc::mprotect(base.cast(), LENGTH, PROT_READ) != 0
            || libc::mprotect(base.cast(), LENGTH, PROT_READ | PROT_WRITE) != 0
        {
            return Err("mprotect of the whole mapping".to_string());
        }
        let grown = libc::mremap(base.cast(), LENGTH, LENGTH + PAGE, libc::MREMAP_MAYMOVE);
        if grown != libc::MAP_FAILED {
            return Err("the mapping can grow".to_string());
        }
    }
    session.end()
}

/// A page that was dropped from the page tables comes back as it was.
fn dropped_pages() -> Outcome {
    let mut session = Session::new()?;
    session.ring.data(5).fill(0x5a);
    // SAFETY: nothing borrows from it.
    let dropped =
        unsafe { libc::madvise(session.ring.base().as_ptr().cast(), LENGTH, libc::MADV_DONTNEED) };
    if dropped != 0 {
        return Err("MADV_DONTNEED was refused".to_string());
    }
    if session.ring.data(5).iter().any(|&b| b != 0x5a) {
        return Err("a dropped page came back with other bytes".to_string());
    }
    let reads = session.reads(1)?;
    let request = session.requests(1)?.remove(0);
    session.ring.answer(&request, 0);
    said("RESPOND", session.ring.respond())?;
    ended("a read after MADV_DONTNEED", &reads, 1, 0)?;
    session.end()
}

/// Moved to another address the ring goes on; unmapped there, it ends.
fn moved() -> Outcome {
    let mut session = Session::new()?;
    let reads = session.reads(1)?;
    // A read that comes after the disk's end finds a disk without sectors, and ends with 0 bytes.
    session.requests(1)?;
    let old = session.ring.base().as_ptr();
    // SAFETY: a new place, found by the kernel; the old address is not used afterwards.
    let moved = unsafe {
        let flags = MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let place = libc::mmap(std::ptr::null_mut(), LENGTH, 0, flags, -1, 0);
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        libc::mremap(old.cast(), LENGTH, LENGTH, flags, place)
    };
    if moved == libc::MAP_FAILED {
        return Err("the mapping cannot be moved".to_string());
    }
    said("RESPOND from the new place", session.ring.respond())?;
    // SAFETY: the mapping's new place.
    unsafe { libc::munmap(moved, LENGTH) };
    ended("a read while the moved ring was unmapped", &reads, 1, EIO)?;
    let Session { control, minor, ring } = session;
    // Its address is of nobody now.
    let file = said("another descriptor", ring.file.try_clone())?;
    std::mem::forget(ring);
    drop(file);
    // The forgotten descriptor keeps the ring open until it is closed by number.
    refused("FREE_TAP while the descriptor is open", EBUSY, control.free(minor))?;
    close_ring_of(minor)?;
    said("FREE_TAP", control.free(minor))
}

/// Closes a descriptor that was forgotten on purpose.
fn close_ring_of(minor: u32) -> Outcome {
    let name = format!("/dev/xen/blktap-2/blktap{minor}");
    for entry in said("descriptors", std::fs::read_dir("/proc/self/fd"))?.flatten() {
        if std::fs::read_link(entry.path()).is_ok_and(|l| l.as_os_str() == name.as_str()) {
            let fd =
                entry.file_name().to_string_lossy().parse::<i32>().map_err(|e| e.to_string())?;
            // SAFETY: nobody owns it any more.
            unsafe { libc::close(fd) };
            return Ok(());
        }
    }
    Err("the forgotten descriptor is not there".to_string())
}

/// A child has no mapping; it keeps the descriptor, and with that the minor.
fn forks() -> Outcome {
    let mut session = Session::new()?;
    let base = session.ring.base().as_ptr() as usize;
    if !in_child(|| !is_mapped(base as *mut libc::c_void)) {
        return Err("a child has the mapping".to_string());
    }
    let mut go = [0; 2];
    // SAFETY: an array of two.
    unsafe { libc::pipe(go.as_mut_ptr()) };
    // SAFETY: the child reads a pipe and leaves.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: as above.
        unsafe {
            libc::close(go[1]);
            let mut byte = 0u8;
            libc::read(go[0], (&raw mut byte).cast(), 1);
            libc::_exit(0);
        }
    }
    let reads = session.reads(3)?;
    session.requests(3)?;
    said("munmap", session.ring.unmap())?;
    ended("reads when the ring was unmapped", &reads, 3, EIO)?;
    let Session { control, minor, ring } = session;
    drop(ring);
    refused("FREE_TAP while a child has the descriptor", EBUSY, control.free(minor))?;
    // SAFETY: our own descriptors and child.
    unsafe {
        libc::close(go[1]);
        libc::close(go[0]);
        libc::waitpid(child, std::ptr::null_mut(), 0);
    }
    said("FREE_TAP", control.free(minor))
}

/// Whoever insists (MADV_DOFORK) gives a child the mapping: the ring ends with the last of them.
fn inherited() -> Outcome {
    let mut session = Session::new()?;
    let base = session.ring.base().as_ptr();
    // SAFETY: advice.
    if unsafe { libc::madvise(base.cast(), LENGTH, libc::MADV_DOFORK) } != 0 {
        return Err("MADV_DOFORK was refused".to_string());
    }
    let reads = session.reads(1)?;
    let request = session.requests(1)?.remove(0);
    let base = base as usize;
    let file = said("descriptor", session.ring.file.try_clone())?;
    // It sees the pages, but is not the process that the ring answers to.
    let child = in_child(|| {
        // SAFETY: no arguments.
        let denied = unsafe { libc::ioctl(file.as_raw_fd(), 1, 0) } < 0;
        is_mapped(base as *mut libc::c_void) && denied
    });
    if !child {
        return Err("a child that inherited the mapping: it has none, or may RESPOND".to_string());
    }
    drop(file);
    session.ring.answer(&request, 0);
    said("RESPOND after the child's end", session.ring.respond())?;
    ended("a read over a child's end", &reads, 1, 0)?;
    session.end()
}

/// The mapping alone keeps the ring.
fn closed_before_unmapped() -> Outcome {
    let mut session = Session::new()?;
    let reads = session.reads(1)?;
    session.requests(1)?;
    let null = said("/dev/null", OpenOptions::new().read(true).open("/dev/null"))?;
    let null = std::mem::replace(&mut session.ring.file, null);
    drop(null);
    refused("FREE_TAP while it is mapped", EBUSY, session.control.free(session.minor))?;
    said("munmap", session.ring.unmap())?;
    ended("a read when the last mapping went", &reads, 1, EIO)?;
    until("FREE_TAP", || session.control.free(session.minor).is_ok())
}

/// A ring that is kept outlives its mapping, for its own process, as long as its file is open.
fn kept() -> Outcome {
    let mut session = Session::new()?;
    refused("KEEP of 2", EINVAL, session.ring.keep(2))?;
    if !in_child(|| session.ring.keep(1).is_err_and(|e| e.raw_os_error() == Some(EACCES))) {
        return Err("a child may say that the ring is kept".to_string());
    }
    said("KEEP", session.ring.keep(1))?;
    let both = PROT_READ | PROT_WRITE;
    refused("a second mmap", EBUSY, session.ring.map_as(LENGTH, both, MAP_SHARED, 0))?;
    // Two requests that were taken, and one that comes while there is no mapping.
    let reads = session.reads(2)?;
    let taken = session.requests(2)?;
    session.ring.data(9).fill(0x77);
    said("munmap", session.ring.unmap())?;
    refused("an ioctl without a mapping", EACCES, session.ring.respond())?;
    let ring = &session.ring;
    let map = || ring.map_as(LENGTH, both, MAP_SHARED, 0);
    if !in_child(|| map().is_err_and(|e| e.raw_os_error() == Some(EBUSY))) {
        return Err("a child may map a ring that is kept for another process".to_string());
    }
    let late = session.reads(1)?;
    said("mmap again", session.ring.map())?;
    if session.ring.data(9).iter().any(|&b| b != 0x77) {
        return Err("the pages are not as they were".to_string());
    }
    let more = session.requests(1)?;
    taken.iter().chain(&more).for_each(|request| session.ring.answer(request, 0));
    said("RESPOND", session.ring.respond())?;
    ended("reads that were taken before", &reads, 2, 0)?;
    ended("a read that came between", &late, 1, 0)?;
    // Not any more: it ends as ever.
    said("KEEP of 0", session.ring.keep(0))?;
    let reads = session.reads(1)?;
    session.requests(1)?;
    said("munmap", session.ring.unmap())?;
    ended("a read when the ring was unmapped", &reads, 1, EIO)?;
    refused("mmap after that", EIO, session.ring.map_as(LENGTH, both, MAP_SHARED, 0))?;
    session.abandon()?;
    // Kept, and closed without a mapping.
    let mut session = Session::new()?;
    said("KEEP", session.ring.keep(1))?;
    let reads = session.reads(1)?;
    session.requests(1)?;
    said("munmap", session.ring.unmap())?;
    let Session { control, minor, ring } = session;
    drop(ring);
    ended("a read when the ring was closed", &reads, 1, EIO)?;
    said("FREE_TAP", control.free(minor))
}

/// Device I/O straight to and from the data pages, also as registered buffers of an io_uring, under
/// mlockall; and while such I/O runs, the ring goes away.
fn device_io(file: &str) -> Outcome {
    let mut session = Session::new()?;
    // SAFETY: numbers.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } != 0 {
        return Err("mlockall".to_string());
    }
    let mut options = OpenOptions::new();
    let target = options.read(true).write(true).custom_flags(libc::O_DIRECT).open(file);
    let target = said(file, target)?;
    let mut uring = said("io_uring", IoUring::new(64))?;
    let base = session.ring.base().as_ptr();
    let vector = libc::iovec { iov_base: base.wrapping_add(PAGE).cast(), iov_len: LENGTH - PAGE };
    // SAFETY: the mapping lives longer than the ring of this function.
    said("registered buffers", unsafe { uring.submitter().register_buffers(&[vector]) })?;
    for id in 0..32u32 {
        session.ring.data(id).fill(id as u8 + 1);
    }
    for (write, round) in [(true, 0), (false, 1)] {
        for id in 0..32u32 {
            if !write {
                session.ring.data(id).fill(0);
            }
            let at = base.wrapping_add(PAGE + id as usize * DATA);
            let place = u64::from(id) * DATA as u64;
            let fd = types::Fd(target.as_raw_fd());
            let entry = if write {
                opcode::WriteFixed::new(fd, at, DATA as u32, 0).offset(place).build()
            } else {
                opcode::ReadFixed::new(fd, at, DATA as u32, 0).offset(place).build()
            };
            // SAFETY: the pages stay mapped until the completion was seen.
            unsafe { uring.submission().push(&entry) }.map_err(|e| e.to_string())?;
        }
        said("submit", uring.submit_and_wait(32))?;
        let bad = uring.completion().find(|c| c.result() != DATA as i32);
        if let Some(completion) = bad {
            return Err(format!("fixed I/O, round {round}: {}", completion.result()));
        }
    }
    for id in 0..32u32 {
        if session.ring.data(id).iter().any(|&b| b != id as u8 + 1) {
            return Err(format!("the pages of request {id} came back with other bytes"));
        }
    }
    // Requests still work, and their data is what device I/O put there.
    let reads = session.reads(1)?;
    let request = session.requests(1)?.remove(0);
    if request.operation != op::READ {
        return Err(format!("{request:?} is no read"));
    }
    session.ring.answer(&request, 0);
    said("RESPOND", session.ring.respond())?;
    ended("a read", &reads, 1, 0)?;

    // The pages of writes in flight outlive the ring.
    for id in 0..32u32 {
        let at = base.wrapping_add(PAGE + id as usize * DATA);
        let fd = types::Fd(target.as_raw_fd());
        let place = u64::from(id) * DATA as u64;
        let entry = opcode::WriteFixed::new(fd, at, DATA as u32, 0).offset(place).build();
        // SAFETY: registered: the kernel holds the pages, whatever becomes of the mapping.
        unsafe { uring.submission().push(&entry) }.map_err(|e| e.to_string())?;
    }
    said("submit", uring.submit())?;
    let Session { control, minor, ring } = session;
    drop(ring);
    said("FREE_TAP with I/O in flight", control.free(minor))?;
    said("wait", uring.submit_and_wait(32))?;
    if uring.completion().any(|c| c.result() != DATA as i32) {
        return Err("a write from pages whose ring went away".to_string());
    }
    let mut page = crate::session::Page([0; PAGE]);
    use std::os::unix::fs::FileExt;
    said("read back", target.read_exact_at(&mut page.0, 31 * DATA as u64))?;
    if page.0.iter().any(|&b| b != 32) {
        return Err("what was written while the ring went away is not there".to_string());
    }
    Ok(())
}
