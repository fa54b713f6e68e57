//! Block devices in control messages: an extension of ours (docs/devices.md).
//!
//! The words are in bytes that the original sends as zero and does not look at, so an old tapdisk
//! opens the disk without a device, and its reply, which names none, tells.
use std::fmt;

/// Block devices of the module, below `/dev`.
const TAPDEV: &str = "xen/blktap-2/tapdev";

/// A block device of this kernel that a tapdisk serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// `/dev/ublkbN`.
    Ublk(u32),
    /// `/dev/nbdN`: the kernel's NBD client.
    Nbd(u32),
    /// `/dev/xen/blktap-2/tapdevN`: of the kernel module blktap2, N is the minor.
    Tap(u32),
}

impl Device {
    /// The device in a path.
    pub fn of_path(path: &str) -> Option<Device> {
        let name = path.strip_prefix("/dev/")?;
        let number = |prefix| name.strip_prefix(prefix)?.parse().ok();
        let other = || number("nbd").map(Device::Nbd).or_else(|| number(TAPDEV).map(Device::Tap));
        number("ublkb").map(Device::Ublk).or_else(other)
    }

    /// The driver's name.
    pub fn driver(self) -> &'static str {
        match self {
            Device::Ublk(_) => "ublk",
            Device::Nbd(_) => "nbd",
            Device::Tap(_) => "blktap",
        }
    }

    /// Kind and number on the wire.
    pub(super) fn words(device: Option<Device>) -> [u32; 2] {
        match device {
            None => [0, 0],
            Some(Device::Ublk(number)) => [1, number],
            Some(Device::Nbd(number)) => [2, number],
            Some(Device::Tap(number)) => [3, number],
        }
    }

    /// The inverse; a kind that is not known is none.
    pub(super) fn of_words([kind, number]: [u32; 2]) -> Option<Device> {
        match kind {
            1 => Some(Device::Ublk(number)),
            2 => Some(Device::Nbd(number)),
            3 => Some(Device::Tap(number)),
            _ => None,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Ublk(number) => write!(f, "/dev/ublkb{number}"),
            Device::Nbd(number) => write!(f, "/dev/nbd{number}"),
            Device::Tap(number) => write!(f, "/dev/{TAPDEV}{number}"),
        }
    }
}

/// The device that OPEN asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Driver: 0 any (the module's, where the minor is the module's), 1 ublk, 2 nbd.
    pub driver: u8,
    /// Queues; 0: the daemon decides.
    pub queues: u8,
    /// Its number + 1; 0: any free one.
    pub number: u32,
}

impl DeviceOptions {
    /// This one.
    pub fn exactly(device: Device) -> DeviceOptions {
        let [driver, number] = Device::words(Some(device));
        DeviceOptions { driver: driver as u8, queues: 0, number: number.saturating_add(1) }
    }

    /// The device that was asked for, if it is a certain one.
    pub fn exact(&self) -> Option<Device> {
        Device::of_words([self.driver.into(), self.number()?])
    }

    /// The number that was asked for.
    pub fn number(&self) -> Option<u32> {
        self.number.checked_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_the_device_and_back() {
        for device in [Device::Ublk(0), Device::Ublk(17), Device::Nbd(3), Device::Tap(5)] {
            assert_eq!(Device::of_path(&device.to_string()), Some(device));
            assert_eq!(Device::of_words(Device::words(Some(device))), Some(device));
            assert_eq!(
                DeviceOptions::exactly(device).number(),
                Some(Device::words(Some(device))[1])
            );
        }
        for path in ["ublkb0", "/dev/ublkc0", "/dev/nbd", "/dev/ublkb0p1", "/dev/sda"] {
            assert_eq!(Device::of_path(path), None, "{path}");
        }
        assert_eq!(Device::of_words([9, 1]), None);
    }
}
