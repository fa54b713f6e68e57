//! The keys that tell a frontend what it can have. Those that shape its ring are written before
//! state 2, the others before state 4 (`xenstore-tapback.md` §10).

use crate::config::{Config, QUEUES_MAX, SEGMENTS_MAX};
use crate::ring::ORDER_MAX;
use tap_ctl::messages::ImageInfo;

/// A key and its value.
pub(crate) type Offer = (&'static str, String);

/// `info`: a CD-ROM drive.
const CDROM: u32 = 1;
/// `info`: read-only.
const READ_ONLY: u32 = 4;
/// What a discard has to cover to free something in a file: a page of the file system.
const DISCARD_BYTES: u32 = 4096;

/// Before state 2. Persistent grants are answered with no: data are copied by grant copy, and a
/// frontend that wanted them falls back to granting each request.
pub(crate) fn for_the_ring(config: &Config) -> Vec<Offer> {
    let mut offers =
        vec![("max-ring-page-order", ORDER_MAX.to_string()), ("feature-persistent", "0".into())];
    if config.queues > 1 {
        offers.push(("multi-queue-max-queues", config.queues.min(QUEUES_MAX).to_string()));
    }
    if config.segments > 0 {
        let segments = config.segments.min(SEGMENTS_MAX);
        offers.push(("feature-max-indirect-segments", segments.to_string()));
    }
    offers
}

/// What the backend's directory says about the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    pub image: ImageInfo,
    pub read_only: bool,
    pub cdrom: bool,
    /// `discard-enable` is not 0.
    pub discard: bool,
}

/// Before state 4.
pub(crate) fn for_the_disk(config: &Config, disk: Disk) -> Vec<Offer> {
    let image = disk.image;
    let mut info = image.info & !(CDROM | READ_ONLY);
    info |= if disk.cdrom { CDROM } else { 0 };
    info |= if disk.read_only { READ_ONLY } else { 0 };
    let flag = |on: bool| if on { "1".to_owned() } else { "0".to_owned() };
    let discard = disk.discard && !disk.read_only;
    let mut offers = vec![
        ("feature-barrier", flag(config.barrier)),
        ("feature-flush-cache", flag(true)),
        ("feature-discard", flag(discard)),
        ("sector-size", image.sector_size.to_string()),
        ("physical-sector-size", image.sector_size.to_string()),
        ("sectors", image.sectors.to_string()),
        ("info", info.to_string()),
    ];
    if discard {
        offers.push(("discard-granularity", DISCARD_BYTES.max(image.sector_size).to_string()));
        offers.push(("discard-alignment", "0".into()));
        offers.push(("discard-secure", "0".into()));
    }
    offers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Limits;
    use std::path::Path;
    use tap_ctl::paths::RunDir;

    fn config() -> Config {
        Config {
            name: "vbd3".into(),
            only: None,
            barrier: true,
            queues: 4,
            segments: 256,
            places: Vec::new(),
            run: RunDir::at(Path::new("/tmp")),
            limits: Limits::default(),
        }
    }

    fn value(offers: &[Offer], key: &str) -> Option<String> {
        offers.iter().find(|(name, _)| *name == key).map(|(_, value)| value.clone())
    }

    fn disk(read_only: bool, cdrom: bool, discard: bool) -> Disk {
        let image = ImageInfo { sectors: 2048, sector_size: 4096, ..ImageInfo::default() };
        Disk { image, read_only, cdrom, discard }
    }

    #[test]
    fn info_has_a_bit_for_cdrom_and_one_for_read_only() {
        for (read_only, cdrom, want) in
            [(false, false, "0"), (true, false, "4"), (false, true, "1"), (true, true, "5")]
        {
            let offers = for_the_disk(&config(), disk(read_only, cdrom, true));
            assert_eq!(value(&offers, "info").as_deref(), Some(want));
        }
    }

    #[test]
    fn sectors_are_of_512_bytes_whatever_the_sector_size() {
        let offers = for_the_disk(&config(), disk(false, false, true));
        assert_eq!(value(&offers, "sectors").as_deref(), Some("2048"));
        assert_eq!(value(&offers, "sector-size").as_deref(), Some("4096"));
    }

    #[test]
    fn discard_is_for_disks_that_can_be_written_and_may_be_switched_off() {
        for (read_only, discard, want) in
            [(false, true, "1"), (true, true, "0"), (false, false, "0")]
        {
            let offers = for_the_disk(&config(), disk(read_only, false, discard));
            assert_eq!(value(&offers, "feature-discard").as_deref(), Some(want));
            assert_eq!(value(&offers, "discard-granularity").is_some(), want == "1");
        }
    }

    #[test]
    fn what_is_switched_off_is_not_offered() {
        let plain = Config { queues: 1, segments: 0, barrier: false, ..config() };
        let offers = for_the_ring(&plain);
        assert_eq!(value(&offers, "multi-queue-max-queues"), None);
        assert_eq!(value(&offers, "feature-max-indirect-segments"), None);
        assert_eq!(value(&offers, "max-ring-page-order").as_deref(), Some("3"));
        let offers = for_the_disk(&plain, disk(false, false, true));
        assert_eq!(value(&offers, "feature-barrier").as_deref(), Some("0"));
    }
}
