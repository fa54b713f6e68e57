//! Which operations read the extents of a chunk. Pure: it never does I/O.
use super::source::Extent;

/// A gap up to this many sectors is read, or filled with zeros, rather than skipped: that costs
/// less than another operation does. Measured at scattered pages, a quarter of all: the disk's
/// bandwidth is the limit, and bridging 32 KiB moved three times as many bytes and took 1.7 times
/// as long.
pub(super) const BRIDGE: u32 = 8;
/// Sectors that are read from a layer in one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Read {
    /// Number of the layer.
    pub(super) source: usize,
    /// Byte in its file.
    pub(super) byte: u64,
    /// First sector, counted from the chunk's start.
    pub(super) first: u32,
    pub(super) count: u32,
    /// Sectors between, which are not to be had from there.
    pub(super) gaps: Vec<(u32, u32)>,
}

/// The operations for these extents: what lies close together in one file is read together. Extents
/// without bytes in a file are no business of theirs.
pub(super) fn reads(extents: &[(usize, Extent)]) -> Vec<Read> {
    let mut out: Vec<Read> = Vec::new();
    let mut joined = false;
    for (source, extent) in extents {
        let Some(byte) = extent.byte else {
            joined = false;
            continue;
        };
        if let (true, Some(last)) = (joined, out.last_mut()) {
            let end = last.first + last.count;
            let in_line = last.byte + u64::from(extent.first - last.first) * 512;
            let gap = extent.first - end;
            if last.source == *source && gap <= BRIDGE && byte == in_line {
                if gap > 0 {
                    last.gaps.push((end, gap));
                }
                last.count += gap + extent.count;
                continue;
            }
        }
        let (first, count) = (extent.first, extent.count);
        out.push(Read { source: *source, byte, first, count, gaps: Vec::new() });
        joined = true;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(first: u32, count: u32, sector: u64) -> Extent {
        Extent { first, count, byte: Some(sector * 512) }
    }

    fn bounds(extents: &[(usize, Extent)]) -> Vec<(usize, u32, u32)> {
        reads(extents).iter().map(|read| (read.source, read.first, read.count)).collect()
    }

    #[test]
    fn what_lies_close_together_is_read_together() {
        let near = [(0, extent(0, 8, 100)), (0, extent(16, 8, 116))];
        assert_eq!(bounds(&near), [(0, 0, 24)]);
        assert_eq!(reads(&near)[0].gaps, [(8, 8)]);
        let far = [(0, extent(0, 8, 100)), (0, extent(17, 8, 117))];
        assert_eq!(bounds(&far), [(0, 0, 8), (0, 17, 8)]);
    }

    #[test]
    fn a_read_stays_in_one_file_and_one_line() {
        let layers = [(0, extent(0, 8, 100)), (1, extent(8, 8, 108))];
        assert_eq!(bounds(&layers), [(0, 0, 8), (1, 8, 8)]);
        let elsewhere = [(0, extent(0, 8, 100)), (0, extent(8, 8, 500))];
        assert_eq!(bounds(&elsewhere), [(0, 0, 8), (0, 8, 8)]);
    }

    #[test]
    fn zeros_without_bytes_are_not_read_over() {
        let zeros = Extent { first: 8, count: 4, byte: None };
        let extents = [(0, extent(0, 8, 100)), (1, zeros), (0, extent(12, 4, 112))];
        assert_eq!(bounds(&extents), [(0, 0, 8), (0, 12, 4)]);
    }
}
