//! Device-mapper devices by the ioctls of linux/dm-ioctl.h: the machine has no dmsetup.
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// `_IOWR(0xfd, n, struct dm_ioctl)`, 312 bytes.
const fn code(number: u64) -> u64 {
    0xc000_0000 | 312 << 16 | 0xfd << 8 | number
}
const DEV_CREATE: u64 = code(3);
const DEV_REMOVE: u64 = code(4);
const DEV_SUSPEND: u64 = code(6);
const SKIP_LOCKFS: u32 = 1 << 10;
const TABLE_LOAD: u64 = code(9);

/// `struct dm_ioctl` with room for one target behind it.
struct Call(Vec<u8>);

impl Call {
    fn new(name: &str) -> Call {
        let mut bytes = vec![0u8; 2048];
        let words = [4u32, 0, 0, 2048, 312];
        for (i, word) in words.iter().enumerate() {
            bytes[i * 4..][..4].copy_from_slice(&word.to_le_bytes());
        }
        bytes[48..][..name.len()].copy_from_slice(name.as_bytes());
        Call(bytes)
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..][..bytes.len()].copy_from_slice(bytes);
    }

    fn send(&mut self, control: &File, code: u64) -> io::Result<()> {
        // SAFETY: the structure says its own size, which is that of the vector, and outlives the
        // call.
        match unsafe { libc::ioctl(control.as_raw_fd(), code, self.0.as_mut_ptr()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Makes a device of one target, `START SECTORS TYPE [PARAMETERS]`, or gives the one that is there
/// another target, and says its path.
///
/// # Errors
/// Those of the kernel; a table that is none.
pub fn create(name: &str, table: &str) -> io::Result<String> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, "START SECTORS TYPE [PARAMETERS]");
    let mut words = table.splitn(4, ' ');
    let mut next = || words.next().ok_or_else(wrong);
    let (start, sectors, kind) = (next()?, next()?, next()?);
    let parameters = words.next().unwrap_or("");
    let number = |word: &str| word.parse::<u64>().map_err(|_| wrong());
    let control = control()?;
    match Call::new(name).send(&control, DEV_CREATE) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {}
        made => made?,
    }
    let mut load = Call::new(name);
    // target_count; then struct dm_target_spec: start, length, status, next, type[16], parameters.
    load.put(20, &1u32.to_le_bytes());
    load.put(312, &number(start)?.to_le_bytes());
    load.put(320, &number(sectors)?.to_le_bytes());
    load.put(336, kind.as_bytes());
    load.put(352, parameters.as_bytes());
    load.send(&control, TABLE_LOAD)?;
    // Also of a device that is in use: the call without the flag to suspend takes the new table. A
    // file system on it may have given up, and is not frozen.
    let mut resume = Call::new(name);
    resume.put(28, &SKIP_LOCKFS.to_le_bytes());
    resume.send(&control, DEV_SUSPEND)?;
    // The minor, in the low byte and above the twelve bits of the major.
    let device = u64::from_le_bytes(resume.0[40..48].try_into().expect("eight bytes"));
    Ok(format!("/dev/dm-{}", (device & 0xff) | (device >> 12 & 0xfff00)))
}

/// Takes a device away.
///
/// # Errors
/// Those of the kernel.
pub fn remove(name: &str) -> io::Result<()> {
    Call::new(name).send(&control()?, DEV_REMOVE)
}

fn control() -> io::Result<File> {
    File::options().read(true).write(true).open("/dev/mapper/control")
}
