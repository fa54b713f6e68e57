//! What the command line decides, and what tests set differently.

use std::fmt;
use std::time::Duration;
use tap_ctl::paths::RunDir;
use xenstore::Endpoint;

/// Most queues of a disk (docs/rings.md).
pub const QUEUES_MAX: u32 = 8;
/// Most segments of an indirect request.
pub const SEGMENTS_MAX: u32 = 256;

/// How this tapback behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Type of the backends it serves: `vbd3`.
    pub name: String,
    /// The one domain it serves; `None`: all.
    pub only: Option<u32>,
    /// Announce barriers.
    pub barrier: bool,
    /// Queues offered to each disk; 1: no multi-queue.
    pub queues: u32,
    /// Segments of indirect requests offered; 0: none.
    pub segments: u32,
    /// Where xenstore may be.
    pub places: Vec<Endpoint>,
    /// Where tapdisks are.
    pub run: RunDir,
    /// Times.
    pub limits: Limits,
}

/// Times.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A tapdisk says how large its disk is.
    pub ask: Duration,
    /// A tapdisk connects to a ring, or leaves it.
    pub order: Duration,
    /// Pause before something that failed is tried again; doubled each time.
    pub retry_first: Duration,
    /// Longest such pause.
    pub retry_max: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            ask: Duration::from_secs(10),
            order: Duration::from_secs(60),
            retry_first: Duration::from_secs(1),
            retry_max: Duration::from_secs(60),
        }
    }
}

/// A disk: frontend domain and virtual device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    /// The frontend's domain.
    pub domid: u32,
    /// The virtual device number, such as 51712 for xvda.
    pub devid: u32,
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domid, self.devid)
    }
}

impl DeviceId {
    /// Of the two names below `backend/<type>`.
    pub fn parse(domid: &str, devid: &str) -> Option<DeviceId> {
        Some(DeviceId { domid: decimal(domid)?, devid: decimal(devid)? })
    }
}

/// A number of digits and nothing else.
pub fn decimal(text: &str) -> Option<u32> {
    match !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().ok(),
        false => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_digits() {
        assert_eq!(decimal("51712"), Some(51712));
        for bad in ["", "-1", "+1", " 1", "1 ", "0x1", "4294967296", "one"] {
            assert_eq!(decimal(bad), None, "{bad}");
        }
        assert_eq!(DeviceId::parse("5", "768"), Some(DeviceId { domid: 5, devid: 768 }));
        assert_eq!(DeviceId::parse("5", "x"), None);
    }
}
