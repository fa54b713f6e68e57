//! What all frontends ask before a request is put into a slot: whether the disk allows it, and
//! whether requests are taken at all.
use request::Slots;

/// What is done with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// They are taken.
    Serving,
    /// They wait where they are.
    Holding,
    /// They fail: the device is being taken away.
    Refusing,
}

/// What the disk allows.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    sectors: u64,
    /// Requests are multiples of so many sectors of 512 bytes.
    unit: u64,
    read_only: bool,
}

impl Bounds {
    /// Of the disk that is served.
    pub fn of(slots: &dyn Slots) -> Bounds {
        let unit = u64::from(slots.sector_size()) / image::SECTOR_BYTES;
        Bounds { sectors: slots.sectors(), unit: unit.max(1), read_only: slots.read_only() }
    }

    /// Whether these sectors may be read.
    pub fn allow_reading(&self, sector: u64, sectors: u64) -> bool {
        let end = sector.checked_add(sectors);
        let inside = end.is_some_and(|end| end <= self.sectors);
        inside && sector.is_multiple_of(self.unit) && sectors.is_multiple_of(self.unit)
    }

    /// Whether these sectors may be changed.
    pub fn allow_changing(&self, sector: u64, sectors: u64) -> bool {
        !self.read_only && self.allow_reading(sector, sectors)
    }
}
