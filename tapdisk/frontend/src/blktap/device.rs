//! The block device behind a ring: calls that may wait, for a worker.
use std::io;

use super::abi::{DeviceInfo, OldInfo, device_flag};
use super::sys::Handle;

/// What the disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// Logical sector size in bytes.
    pub sector_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// For people.
    pub name: Vec<u8>,
}

/// What a module offers of what is beyond the original's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offers {
    /// Flags that were accepted, see [`device_flag`].
    pub flags: u64,
}

impl Offers {
    /// The kernel looks at `req_event`.
    pub fn events(self) -> bool {
        self.flags & device_flag::EVENTS != 0
    }
}

/// Asks for everything that we serve.
fn request(shape: &Shape) -> DeviceInfo {
    let changes = device_flag::FLUSH
        | device_flag::TRIM
        | device_flag::TRIM_ZEROES
        | device_flag::ZEROES
        | device_flag::FUA;
    let flags = if shape.read_only { device_flag::READ_ONLY } else { changes };
    let unit = shape.sector_size.max(4096);
    DeviceInfo {
        sectors: shape.sectors,
        sector_size: shape.sector_size,
        physical_sector_size: unit,
        flags: flags | device_flag::TRIM_ZEROES | device_flag::EVENTS,
        trim_granularity: unit,
        ..DeviceInfo::default()
    }
}

/// What is offered, from the flags that were asked for and those that stand there now. A module
/// that knows nothing but read-only leaves them as they were.
fn offered(asked: u64, answered: u64) -> Offers {
    let told = answered != asked;
    Offers { flags: if told { answered } else { answered & device_flag::READ_ONLY } }
}

/// Makes the block device. One that is there already is served on.
///
/// # Errors
/// What the kernel answers.
pub fn create(ring: &Handle, shape: &Shape) -> io::Result<Offers> {
    let mut info = request(shape);
    let asked = info.flags;
    let mut made = ring.create(&mut info);
    if errno(&made) == Some(libc::EINVAL) {
        // One that refuses flags it does not know.
        info = DeviceInfo { flags: asked & device_flag::READ_ONLY, ..request(shape) };
        made = ring.create(&mut info);
    }
    match errno(&made) {
        None => Ok(offered(asked, info.flags)),
        Some(libc::EEXIST) => Ok(Offers::default()),
        Some(libc::ENOTTY) => create_old(ring, shape),
        Some(_) => made.map(|()| Offers::default()),
    }
}

fn create_old(ring: &Handle, shape: &Shape) -> io::Result<Offers> {
    let (sectors, sector_size) = (shape.sectors, shape.sector_size.into());
    let mut info = OldInfo { name: [0; 256], sectors, sector_size };
    // The last byte stays zero.
    info.name.iter_mut().zip(shape.name.iter().take(255)).for_each(|(to, from)| *to = *from);
    let made = ring.create_old(&mut info);
    match errno(&made) {
        Some(libc::EEXIST) => Ok(Offers::default()),
        _ => made.map(|()| Offers::default()),
    }
}

/// How the end of a block device went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Gone,
    /// It goes with the ring, under its users if there are any: the module is one of the first.
    WithRing,
    /// Somebody has it open.
    InUse,
    /// Something else is wrong, with this errno.
    Failed(i32),
}

/// Takes the block device away.
pub fn remove(ring: &Handle) -> Removed {
    match errno(&ring.remove()) {
        None => Removed::Gone,
        Some(libc::ENOTTY) => Removed::WithRing,
        Some(libc::EBUSY) => Removed::InUse,
        Some(errno) => Removed::Failed(errno),
    }
}

fn errno<T>(result: &io::Result<T>) -> Option<i32> {
    result.as_ref().err().map(|error| error.raw_os_error().unwrap_or(libc::EIO))
}

/// Why a ring cannot be attached.
pub fn why_not_attached(minor: u16, path: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EBUSY) => {
            format!("cannot open {path}: another process has the ring of minor {minor}")
        }
        Some(libc::ENODEV | libc::ENXIO | libc::ENOENT) => {
            format!(
                "cannot open {path}: minor {minor} is not allocated; tap-ctl allocate does that"
            )
        }
        Some(libc::EACCES | libc::EPERM) => {
            format!("cannot open {path}: {error}: rings of the blktap module are root's")
        }
        Some(libc::EINVAL) => format!(
            "cannot map {path}: {error}: the blktap module has another ring than the one this tapdisk knows; \
             it is of another version"
        ),
        _ => format!("cannot open {path}: {error}"),
    }
}

/// Why there is no block device.
pub fn why_not_created(minor: u16, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOTTY) => format!(
            "minor {minor}: the blktap module knows none of the ways to make a block device: it is of another \
             version"
        ),
        Some(libc::EINVAL) => {
            format!("minor {minor}: the blktap module takes no disk of this size or sector size")
        }
        _ => format!("minor {minor}: the blktap module makes no block device: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(read_only: bool) -> Shape {
        Shape { sectors: 80, sector_size: 512, read_only, name: b"vhd:/x".to_vec() }
    }

    #[test]
    fn every_module_tells_what_it_offers_in_its_own_way() {
        let asked = request(&shape(false)).flags;
        // Our own: never this one.
        let ours = offered(asked, asked & !device_flag::TRIM_ZEROES);
        assert!(ours.events());
        // Older ones that know trims, and the production one, which says nothing.
        assert!(!offered(asked, 0x1c).events());
        assert_eq!(offered(asked, asked), Offers::default());
        let read_only = request(&shape(true)).flags;
        assert_eq!(read_only, 0x411);
        assert_eq!(offered(read_only, read_only).flags, device_flag::READ_ONLY);
    }

    #[test]
    fn refusals_are_sentences() {
        let error = io::Error::from_raw_os_error;
        let said = |errno| why_not_attached(3, "/dev/xen/blktap-2/blktap3", &error(errno));
        assert!(said(libc::EBUSY).contains("another process has the ring of minor 3"));
        assert!(said(libc::ENODEV).contains("tap-ctl allocate"));
        assert!(said(libc::EINVAL).contains("another version"));
        assert!(said(libc::EACCES).contains("root"));
        assert!(why_not_created(3, &error(libc::ENOTTY)).contains("another version"));
    }
}
