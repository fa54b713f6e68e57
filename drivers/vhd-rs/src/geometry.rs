//! Cylinders, heads and sectors per track: informative only. The size of a disk is never derived
//! from them (corpus A07).

/// The geometry word of a footer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

/// Largest sector count that a geometry expresses, and the first that takes 255 sectors per track.
const SECTORS_MAX: u64 = 65535 * 16 * 255;
const LONG_TRACKS_FROM: u64 = 65535 * 16 * 63;

impl Geometry {
    /// The geometry of a disk of that many sectors of 512 bytes (§3).
    pub fn of(sectors: u64) -> Geometry {
        let sectors = sectors.min(SECTORS_MAX);
        let (track, heads, tracks) = if sectors >= LONG_TRACKS_FROM {
            (255, 16, sectors / 255)
        } else {
            short_tracks(sectors)
        };
        Geometry {
            cylinders: u16::try_from(tracks / heads).unwrap_or(u16::MAX),
            heads: u8::try_from(heads).unwrap_or(u8::MAX),
            sectors: track,
        }
    }

    /// From the word in a footer.
    pub fn from_word(word: u32) -> Geometry {
        let [c0, c1, heads, sectors] = word.to_be_bytes();
        Geometry { cylinders: u16::from_be_bytes([c0, c1]), heads, sectors }
    }

    /// The word for a footer.
    pub fn word(self) -> u32 {
        let [c0, c1] = self.cylinders.to_be_bytes();
        u32::from_be_bytes([c0, c1, self.heads, self.sectors])
    }

    /// Bytes that the geometry spans; usually less than the disk has.
    pub fn bytes(self) -> u64 {
        u64::from(self.cylinders) * u64::from(self.heads) * u64::from(self.sectors) * 512
    }
}

/// Sectors per track, heads and the number of tracks, for disks below 127 GiB.
fn short_tracks(sectors: u64) -> (u8, u64, u64) {
    let tracks = sectors / 17;
    let heads = tracks.div_ceil(1024).max(4);
    if tracks < heads * 1024 && heads <= 16 {
        return (17, heads, tracks);
    }
    if sectors / 31 < 16 * 1024 { (31, 16, sectors / 31) } else { (63, 16, sectors / 63) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_give_the_published_words() {
        // §3 and corpus C02: MiB, word.
        for (mib, word) in [
            (2, 0x003C_0411),
            (4, 0x0078_0411),
            (10, 0x012D_0411),
            (34, 0x008C_101F),
            (100, 0x03EB_0C11),
            (504, 0x0400_103F),
            (1024, 0x0820_103F),
            (2048, 0x1041_103F),
            (8192, 0x4104_103F),
            (130_048, 0xFEFE_10FF),
            (131_072, 0xFFFF_10FF),
            (2_088_960, 0xFFFF_10FF),
        ] {
            assert_eq!(Geometry::of(mib * 2048).word(), word, "{mib} MiB");
            assert_eq!(Geometry::from_word(word).word(), word);
        }
    }

    #[test]
    fn the_long_tracks_start_at_the_exact_size() {
        assert_eq!(Geometry::of(LONG_TRACKS_FROM).sectors, 255);
        assert_eq!(Geometry::of(LONG_TRACKS_FROM - 1).sectors, 63);
        assert_eq!(Geometry::of(0), Geometry { cylinders: 0, heads: 4, sectors: 17 });
    }
}
