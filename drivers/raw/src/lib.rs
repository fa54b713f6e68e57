//! Raw images (`aio:`): sector n of the disk is sector n of the file or device.
#![forbid(unsafe_code)]

use image::{Action, Image, Meta, Place, Plan, Run, Span, Step, Stop, Want};

/// Sectors in one plan at most: its length in bytes fits 32 bits.
const PLAN_SECTORS_MAX: u32 = 1 << 22;

/// A raw image.
#[derive(Debug)]
pub struct Raw {
    sectors: u64,
    device: bool,
}

impl Raw {
    /// A raw image of this many sectors, in a file or on a block device.
    pub fn new(sectors: u64, device: bool) -> Raw {
        Raw { sectors, device }
    }
}

impl Image for Raw {
    fn sectors(&self) -> u64 {
        self.sectors
    }

    fn map(&self, _: &dyn Meta, span: Span) -> Result<Run, Stop> {
        Ok(Run { place: Place::At { byte: span.start * image::SECTOR_BYTES }, count: span.count })
    }

    fn plan(&mut self, _: &mut dyn Meta, span: Span, want: Want) -> Result<Plan, Stop> {
        let action = match want {
            Want::Write => Action::Write,
            Want::Zero { keep, .. } => Action::Zero { punch: !keep },
            Want::Discard { .. } if self.device => Action::Discard,
            Want::Discard { .. } if span.count < 16 => Action::Nothing,
            Want::Discard { .. } => Action::Zero { punch: true },
        };
        let byte = span.start * image::SECTOR_BYTES;
        Ok(Plan::of(action, byte, span.count.min(PLAN_SECTORS_MAX)))
    }

    fn landed(&mut self, _: &mut dyn Meta, _: &Plan, _: u8) -> Step {
        Step::NONE
    }

    fn finish(&mut self, _: &mut dyn Meta, _: &Plan, _: bool) -> bool {
        false
    }
}
