//! The life of a ublk device as its server sees it: control commands that may wait, for a worker.
//!
//! ```text
//!   add ──────┐                                    ┌─► stop ─► (ring and descriptor closed) ─► delete
//!             ├─► opened ─► all tags fetched ─► go ┤
//!   take_over ┘                                    └─► the server dies ─► quiesced ─► take_over
//! ```
//! `go` ends only when all queues are served, and the kernel reads the disk's first sectors before
//! it returns; `stop` ends when no request is in flight: both need a data path that runs.
use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use super::abi::{self, DevInfo, Params, attribute, feature, state};
use super::orphans;
use super::sys::Control;

/// Bytes of the longest request with data: a slot's buffer, so that the kernel cuts longer ones.
pub const IO_BYTES_MAX: u32 = 64 << 10;
/// Sectors of the longest discard: the block layer's length is in bytes, in 32 bits.
const DISCARD_SECTORS_MAX: u32 = 1 << 22;
/// How long a device node, or a device whose server has just died, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What the disk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Logical sector size in bytes.
    pub sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Queues.
    pub queues: u16,
    /// Requests of a queue at once.
    pub depth: u16,
}

/// A device that can be served now.
#[derive(Debug)]
pub struct Added {
    /// Its number: `/dev/ublkbN`.
    pub number: u32,
    /// `/dev/ublkcN`.
    pub device: File,
    /// Its queues and their depth.
    pub queues: (u16, u16),
    /// Command codes are ioctls.
    pub encoded: bool,
}

/// Why there is no device: a positive errno and a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceError {
    /// Positive errno.
    pub errno: i32,
    /// A sentence.
    pub text: String,
}

impl DeviceError {
    fn new(errno: i32, text: impl Into<String>) -> DeviceError {
        DeviceError { errno, text: text.into() }
    }

    fn io(what: &str, error: &io::Error) -> DeviceError {
        DeviceError::new(error.raw_os_error().unwrap_or(libc::EIO), format!("{what}: {error}"))
    }
}

impl std::fmt::Display for DeviceError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

/// `/dev/ublkbN`.
pub fn block_path(number: u32) -> String {
    format!("/dev/ublkb{number}")
}

pub(super) fn char_path(number: u32) -> String {
    format!("/dev/ublkc{number}")
}

/// Makes a new device. Nothing of it stays behind if that fails.
///
/// # Errors
/// No driver, no privilege, a number in use.
pub fn add(wanted: Option<u32>, shape: &Shape) -> Result<Added, DeviceError> {
    let mut control = control()?;
    orphans::remove(&mut control);
    let mut info = DevInfo {
        ours: orphans::mark(),
        queues: shape.queues,
        depth: shape.depth,
        io_bytes_max: IO_BYTES_MAX,
        device: wanted.unwrap_or(u32::MAX),
        features: feature::USER_RECOVERY | feature::USER_RECOVERY_REISSUE | feature::IOCTL_ENCODE,
        ..DevInfo::default()
    };
    let asked = info.device;
    control.info(abi::ADD_DEV, asked, &mut info).map_err(|error| refused(&error, wanted))?;
    let number = info.device;
    let ready = set(&mut control, number, shape).and_then(|()| open_char(number));
    match ready {
        Ok(device) => {
            let queues = (info.queues, info.depth);
            Ok(Added { number, device, queues, encoded: control.encoded() })
        }
        Err(error) => {
            let _ = control.number(abi::DEL_DEV, number, 0);
            Err(error)
        }
    }
}

/// Opens a device whose server died, to serve it in its place.
///
/// # Errors
/// There is no such device, it is served, or it is not this disk.
pub fn take_over(number: u32, shape: &Shape) -> Result<Added, DeviceError> {
    let mut control = control()?;
    let path = block_path(number);
    let ask = |control: &mut Control| {
        let mut info = DevInfo::default();
        let what = format!("there is no {path} to take over");
        let asked = control.info(abi::GET_DEV_INFO, number, &mut info);
        asked.map(|()| info).map_err(|e| DeviceError::io(&what, &e))
    };
    // The kernel notices a server's death in its own time.
    let until = Instant::now() + PATIENCE;
    let mut info = ask(&mut control)?;
    while info.state == state::LIVE && !is_other(info.server_pid) && Instant::now() < until {
        std::thread::sleep(LOOK_AGAIN);
        info = ask(&mut control)?;
    }
    if info.state != state::QUIESCED {
        let text = match info.state {
            state::LIVE => format!("{path} is served by process {}", info.server_pid),
            _ => format!("{path} cannot be taken over (state {})", info.state),
        };
        return Err(DeviceError::new(libc::EBUSY, text));
    }
    if info.io_bytes_max > IO_BYTES_MAX {
        let text = format!("{path} was made by another program: its requests are too long");
        return Err(DeviceError::new(libc::EINVAL, text));
    }
    same_size(number, shape.sectors)?;
    let begun = control.number(abi::START_USER_RECOVERY, number, 0);
    begun.map_err(|error| not_recovered(&path, &error))?;
    let device = open_char(number)?;
    Ok(Added { number, device, queues: (info.queues, info.depth), encoded: control.encoded() })
}

fn not_recovered(path: &str, error: &io::Error) -> DeviceError {
    let remedy = match error.raw_os_error() {
        // Its last thread waits for the device itself, whose first sectors the kernel was reading.
        Some(libc::EBUSY) => {
            "; if its tapdisk was killed while it was made, recover --remove takes it away"
        }
        _ => "",
    };
    DeviceError::io(&format!("{path} cannot be taken over{remedy}"), error)
}

/// All tags are fetched: the block device appears, or goes on.
///
/// # Errors
/// What the kernel answers.
pub fn go(number: u32, pid: i32, taken_over: bool) -> Result<(), DeviceError> {
    let command = if taken_over { abi::END_USER_RECOVERY } else { abi::START_DEV };
    let pid = u64::try_from(pid).unwrap_or(0);
    let gone = control()?.number(command, number, pid);
    gone.map_err(|e| DeviceError::io(&format!("{} does not start", block_path(number)), &e))
}

/// Whether the block device may be taken away.
///
/// # Errors
/// EBUSY while it is mounted or otherwise claimed.
pub fn check(path: &str) -> Result<(), DeviceError> {
    match File::options().read(true).custom_flags(libc::O_EXCL).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            let text = format!("{path} is in use (mounted, or claimed by another driver)");
            Err(DeviceError::new(libc::EBUSY, text))
        }
        // It is free, it is gone, or nobody can open it any more.
        _ => Ok(()),
    }
}

/// What is in the page cache of the block device is written. Without a flush: the images are flushed
/// when they are closed, and whoever is killed in a flush of a device that he serves himself never
/// ends (docs/devices.md).
pub fn sync(path: &str) {
    if let Ok(device) = File::open(path) {
        let _ = host::sys::write_out(&device);
    }
}

/// Takes the block device away.
///
/// # Errors
/// What the kernel answers.
pub fn stop(number: u32) -> Result<(), DeviceError> {
    let path = block_path(number);
    let stopped = control()?.number(abi::STOP_DEV, number, 0);
    stopped.map_err(|e| DeviceError::io(&format!("{path} does not stop"), &e))
}

/// Removes the rest, after our descriptor was closed.
///
/// # Errors
/// What the kernel answers.
pub fn delete(number: u32) -> Result<(), DeviceError> {
    let deleted = control()?.number(abi::DEL_DEV, number, 0);
    deleted.map_err(|e| DeviceError::io(&format!("{} is not removed", char_path(number)), &e))
}

/// Stops and removes a device whose server died: who uses it sees errors. One that is gone already
/// is as well.
///
/// # Errors
/// EBUSY if it is served; what the kernel answers.
pub fn remove_dead(number: u32) -> Result<(), DeviceError> {
    let path = block_path(number);
    let mut info = DevInfo::default();
    match control()?.info(abi::GET_DEV_INFO, number, &mut info) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        asked => asked.map_err(|e| DeviceError::io(&format!("{path} cannot be asked"), &e))?,
    }
    if info.state == state::LIVE && is_running(info.server_pid) {
        let text = format!("{path} is served by process {}", info.server_pid);
        return Err(DeviceError::new(libc::EBUSY, text));
    }
    stop(number)?;
    delete(number)
}

fn control() -> Result<Control, DeviceError> {
    Control::open().map_err(|error| {
        let path = abi::CONTROL_PATH;
        let text = match error.raw_os_error() {
            Some(libc::ENOENT) => format!(
                "{path} is not there: load the driver (modprobe ublk_drv), or use a kernel that has it \
                 (Linux 6.0)"
            ),
            Some(libc::EACCES | libc::EPERM) => {
                format!("{path}: {error}: block devices are made by root, or where udev rules say so")
            }
            _ => format!("{path} cannot be used: {error}"),
        };
        DeviceError::new(error.raw_os_error().unwrap_or(libc::EIO), text)
    })
}

fn refused(error: &io::Error, wanted: Option<u32>) -> DeviceError {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    let text = match (errno, wanted) {
        (libc::EEXIST, Some(number)) => format!("{} is in use", block_path(number)),
        (libc::EPERM | libc::EACCES, _) => {
            "the ublk driver refuses a device: it takes root (CAP_SYS_ADMIN) to make one"
                .to_string()
        }
        (libc::ENOSPC | libc::EMFILE, _) => {
            format!("the ublk driver has as many devices as it may (ublks_max): {error}")
        }
        _ => format!("the ublk driver refuses a device: {error}"),
    };
    DeviceError::new(errno, text)
}

fn set(control: &mut Control, number: u32, shape: &Shape) -> Result<(), DeviceError> {
    let shift = shape.sector_size.trailing_zeros() as u8;
    let read_only = if shape.read_only { attribute::READ_ONLY } else { 0 };
    let unit = shape.sector_size.max(4096);
    let mut params = Params {
        bytes: size_of::<Params>() as u32,
        types: abi::PARAMS_BASIC_AND_DISCARD,
        attributes: attribute::VOLATILE_CACHE | attribute::FUA | read_only,
        logical_shift: shift,
        physical_shift: unit.trailing_zeros() as u8,
        io_opt_shift: unit.trailing_zeros() as u8,
        io_min_shift: unit.trailing_zeros() as u8,
        sectors_max: IO_BYTES_MAX / 512,
        sectors: shape.sectors,
        discard_granularity: unit,
        discard_sectors_max: DISCARD_SECTORS_MAX,
        zeroes_sectors_max: DISCARD_SECTORS_MAX,
        discard_segments_max: 1,
        ..Params::default()
    };
    control.params(number, &mut params).map_err(|error| {
        let (sectors, size) = (shape.sectors, shape.sector_size);
        DeviceError::io(
            &format!("the ublk driver takes no disk of {sectors} sectors, {size} bytes each"),
            &error,
        )
    })
}

/// The node is made by the kernel or by udev, a moment later.
fn open_char(number: u32) -> Result<File, DeviceError> {
    let path = char_path(number);
    let until = Instant::now() + PATIENCE;
    loop {
        match File::options().read(true).write(true).open(&path) {
            Ok(device) => return Ok(device),
            Err(error) => {
                let soon = matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ENXIO | libc::EBUSY | libc::EACCES)
                );
                if !soon || Instant::now() >= until {
                    return Err(DeviceError::io(&format!("cannot open {path}"), &error));
                }
                std::thread::sleep(LOOK_AGAIN);
            }
        }
    }
}

/// A device that waits for a server keeps its size: another disk must not get under a mounted file
/// system.
fn same_size(number: u32, sectors: u64) -> Result<(), DeviceError> {
    let path = format!("/sys/block/ublkb{number}/size");
    let text = std::fs::read_to_string(&path)
        .map_err(|e| DeviceError::io(&format!("cannot read {path}"), &e))?;
    if text.trim().parse() == Ok(sectors) {
        return Ok(());
    }
    let (has, path) = (text.trim(), block_path(number));
    let text = format!("{path} has {has} sectors, and the image {sectors}: it is another disk");
    Err(DeviceError::new(libc::EMEDIUMTYPE, text))
}

/// Whether a server lives that is not this process: of ours it is another program, which has let
/// go.
fn is_other(pid: i32) -> bool {
    is_running(pid) && u32::try_from(pid) != Ok(std::process::id())
}

pub(super) fn is_running(pid: i32) -> bool {
    pid > 0 && std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_to_do() {
        let error = |errno| io::Error::from_raw_os_error(errno);
        assert!(refused(&error(libc::EEXIST), Some(3)).text.contains("/dev/ublkb3 is in use"));
        assert!(refused(&error(libc::EPERM), None).text.contains("root"));
        assert_eq!(refused(&error(libc::EIO), None).errno, libc::EIO);
    }

    #[test]
    fn a_dead_process_is_not_running() {
        assert!(is_running(std::process::id() as i32));
        assert!(!is_running(0) && !is_running(i32::MAX));
    }
}
