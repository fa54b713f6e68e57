//! The two rings and the mapped table: everything of ublk that needs unsafe code.
#![allow(unsafe_code)]
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, RawFd};
use std::ptr::NonNull;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::abi::{self, Command, IoDesc};
use host::uring_bounds::{Bounds, restrict};

/// What both rings are made for.
const BOUNDS: Bounds<'_> = Bounds {
    operations: &[opcode::UringCmd16::CODE],
    flags: squeue::Flags::empty(),
    registers: &[],
};

/// Sends control commands, one at a time, and waits for each: on a worker.
pub struct Control {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    device: File,
    encoded: bool,
}

impl Control {
    /// A ring of its own for the control device.
    ///
    /// # Errors
    /// Those of opening the device, and of io_uring_setup.
    pub fn open() -> io::Result<Control> {
        let device = File::options().read(true).write(true).open(abi::CONTROL_PATH)?;
        let ring = IoUring::<squeue::Entry128, cqueue::Entry>::builder()
            .dontfork()
            .setup_r_disabled()
            .build(4)?;
        restrict(&ring, &BOUNDS)?;
        Ok(Control { ring, device, encoded: true })
    }

    /// Whether command codes are ioctls.
    pub fn encoded(&self) -> bool {
        self.encoded
    }

    /// A command with one word of data.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn number(&mut self, command: Command, device: u32, data: u64) -> io::Result<()> {
        self.send(command, abi::control_bytes(device, (0, 0), data))
    }

    /// A command that describes a device, or asks for its description.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn info(
        &mut self,
        command: Command,
        device: u32,
        info: &mut abi::DevInfo,
    ) -> io::Result<()> {
        let buffer = (std::ptr::from_mut(info) as u64, size_of::<abi::DevInfo>() as u16);
        self.send(command, abi::control_bytes(device, buffer, 0))
    }

    /// SET_PARAMS.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn params(&mut self, device: u32, params: &mut abi::Params) -> io::Result<()> {
        let buffer = (std::ptr::from_mut(params) as u64, size_of::<abi::Params>() as u16);
        self.send(abi::SET_PARAMS, abi::control_bytes(device, buffer, 0))
    }

    /// The first kernels have no encoded commands and answer EOPNOTSUPP.
    fn send(&mut self, command: Command, bytes: [u8; 80]) -> io::Result<()> {
        let sent = self.send_as(command.code(self.encoded), bytes);
        let unknown = sent
            .as_ref()
            .is_err_and(|e| matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)));
        if !unknown || !self.encoded {
            return sent;
        }
        let sent = self.send_as(command.code(false), bytes);
        self.encoded = sent.is_err();
        sent
    }

    fn send_as(&mut self, code: u32, bytes: [u8; 80]) -> io::Result<()> {
        let fd = types::Fd(self.device.as_raw_fd());
        let entry = opcode::UringCmd80::new(fd, code).cmd(bytes).build();
        // SAFETY: the entry names a buffer of the caller's at most, which is borrowed until the
        // command is over, and that is waited for below.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "one command at a time");
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            if let Some(done) = self.ring.completion().next() {
                let errno = -done.result();
                return if errno > 0 { Err(io::Error::from_raw_os_error(errno)) } else { Ok(()) };
            }
        }
    }
}

/// The table of requests of one queue, written by the kernel.
struct Table {
    base: NonNull<IoDesc>,
    bytes: usize,
}

impl Table {
    fn map(device: &File, queue: u16, depth: u16) -> io::Result<Table> {
        let bytes = abi::table_bytes(depth);
        let offset = libc::off_t::try_from(abi::table_offset(queue)).expect("a small offset");
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            let flags = libc::MAP_SHARED | libc::MAP_POPULATE;
            let null = std::ptr::null_mut();
            libc::mmap(null, bytes, libc::PROT_READ, flags, device.as_raw_fd(), offset)
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Table { base: NonNull::new(at.cast()).expect("mmap gave an address"), bytes })
    }

    fn get(&self, tag: u16) -> IoDesc {
        let tag = usize::from(tag);
        assert!((tag + 1) * size_of::<IoDesc>() <= self.bytes, "a tag lies in its table");
        // SAFETY: checked just above; the kernel writes an entry only before it completes the FETCH
        // of that tag, and any bits are a valid entry. It is copied once.
        unsafe { self.base.as_ptr().add(tag).read_volatile() }
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: the mapping of `map`, unmapped once.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// The data path of a device: the commands of its tags, on a ring of their own.
pub struct Ring {
    // Dropped first: then no command is left that names a buffer.
    ring: IoUring,
    tables: Vec<Table>,
    device: File,
    depth: u16,
    encoded: bool,
    enters: u64,
}

impl Ring {
    /// Maps the tables and makes a ring. Commands belong to the thread that queues them: the one
    /// that calls `queue` and `submit` from then on.
    ///
    /// # Errors
    /// Those of mmap and io_uring_setup.
    pub fn open(device: File, (queues, depth): (u16, u16), encoded: bool) -> io::Result<Ring> {
        let entries = (u32::from(queues) * u32::from(depth)).next_power_of_two();
        // Without DEFER_TASKRUN: requests become visible whenever this thread leaves the kernel,
        // with the disk engine's calls too, and no call is needed to look for them.
        let ring =
            IoUring::builder().setup_coop_taskrun().setup_r_disabled().dontfork().build(entries)?;
        restrict(&ring, &BOUNDS)?;
        let tables = (0..queues).map(|queue| Table::map(&device, queue, depth));
        let tables = tables.collect::<io::Result<_>>()?;
        Ok(Ring { ring, tables, device, depth, encoded, enters: 0 })
    }

    /// For polling: readable when there are requests.
    pub fn raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Calls of io_uring_enter so far.
    pub fn enters(&self) -> u64 {
        self.enters
    }
}

impl super::Commands for Ring {
    fn queue(&mut self, place: u16, answer: Option<i32>, buffer: &mut [u8]) {
        let name = (place / self.depth, place % self.depth);
        let code = match answer {
            None => abi::fetch(self.encoded),
            Some(_) => abi::commit(self.encoded),
        };
        let bytes = abi::io_bytes(name, answer.unwrap_or(0), buffer.as_mut_ptr() as u64);
        let fd = types::Fd(self.device.as_raw_fd());
        let entry = opcode::UringCmd16::new(fd, code).cmd(bytes).build().user_data(place.into());
        // SAFETY: the kernel writes to the buffer until the command is over, and reads from it when
        // it takes it. It is a slot's, in the arena, which the frontend keeps reserved and
        // untouched while the command is with the kernel, and the ring is dropped before the arena.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "the ring has room for a command of each tag");
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        self.enters += 1;
        self.ring.submit().map(drop)
    }

    fn begin(&mut self) -> io::Result<()> {
        without_admin(|| self.submit())
    }

    fn pop(&mut self) -> Option<(u16, i32)> {
        let done = self.ring.completion().next()?;
        Some((done.user_data() as u16, done.result()))
    }

    fn is_empty(&mut self) -> bool {
        self.ring.completion().is_empty()
    }

    fn request(&self, place: u16) -> IoDesc {
        self.tables[usize::from(place / self.depth)].get(place % self.depth)
    }
}

/// Does something without CAP_SYS_ADMIN in this thread. A device whose tags were fetched so is not
/// searched for partitions (drivers/block/ublk_drv.c, `nr_privileged_daemon`). Linux 6.12 searches
/// while it holds the device's lock, so if the daemon is killed just then, the search waits for the
/// daemon's successor, who waits for the lock: for ever. Nor is a guest's partition table dom0's to
/// parse: the original's devices have no partitions either.
fn without_admin<T>(act: impl FnOnce() -> T) -> T {
    use rustix::process::{dumpable_behavior, set_dumpable_behavior};
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    let (Ok(all), Ok(dumpable)) = (capabilities(None), dumpable_behavior()) else { return act() };
    let mut fewer = all;
    fewer.effective.remove(CapabilitySet::SYS_ADMIN);
    let dropped = set_capabilities(None, fewer).is_ok();
    let result = act();
    if dropped {
        // Getting it back takes away the right to dump core, as after a change of user.
        let back = set_capabilities(None, all).and_then(|()| set_dumpable_behavior(dumpable));
        debug_assert!(back.is_ok(), "what was permitted before still is");
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::dumpable_behavior;
    use rustix::thread::{CapabilitySet, capabilities};

    #[test]
    fn the_capability_is_away_for_a_moment_and_comes_back() {
        let before = (capabilities(None).unwrap(), dumpable_behavior().unwrap());
        let meanwhile = without_admin(|| capabilities(None).unwrap());
        assert!(!meanwhile.effective.contains(CapabilitySet::SYS_ADMIN));
        assert_eq!(meanwhile.permitted, before.0.permitted);
        assert_eq!((capabilities(None).unwrap(), dumpable_behavior().unwrap()), before);
    }
}
