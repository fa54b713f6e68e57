//! Counts of clusters in a piece of a count block (docs/spec/qcow2.md §2.3): 1 to 64 bits each, big
//! endian; those of less than a byte from its least significant bit on.

/// The width of counts.
#[derive(Clone, Copy, Debug)]
pub struct Width {
    order: u32,
}

impl Width {
    /// Of an image whose counts have `1 << order` bits, 6 at most.
    pub fn new(order: u32) -> Width {
        assert!(order <= 6, "a count has 64 bits at most");
        Width { order }
    }

    /// Counts in so many bytes.
    pub fn counts_in(self, bytes: u64) -> u64 {
        (bytes * 8) >> self.order
    }

    /// The largest count.
    pub fn max(self) -> u64 {
        u64::MAX >> (64 - (1 << self.order))
    }

    /// Byte, and bit in it, of a count.
    fn place(self, index: usize) -> (usize, u32) {
        let bit = index << self.order;
        (bit / 8, u32::try_from(bit % 8).expect("a byte has eight bits"))
    }

    /// A count.
    pub fn get(self, piece: &[u8], index: usize) -> u64 {
        let (at, bit) = self.place(index);
        if self.order < 3 {
            return u64::from(piece[at]) >> bit & self.max();
        }
        let bytes = 1usize << (self.order - 3);
        piece[at..at + bytes].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    }

    /// Changes it to one that fits.
    pub fn set(self, piece: &mut [u8], index: usize, count: u64) {
        assert!(count <= self.max(), "a count fits its bits");
        let (at, bit) = self.place(index);
        let bytes = count.to_be_bytes();
        if self.order < 3 {
            let mask = self.max().to_be_bytes()[7] << bit;
            piece[at] = piece[at] & !mask | bytes[7] << bit;
            return;
        }
        let width = 1usize << (self.order - 3);
        piece[at..at + width].copy_from_slice(&bytes[8 - width..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_all_widths_are_kept_apart() {
        for order in 0..=6 {
            let width = Width::new(order);
            let mut piece = [0; 64];
            let counts = usize::try_from(width.counts_in(64)).unwrap();
            assert_eq!(counts, (64 * 8) >> order);
            let value = |i: usize| (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) & width.max();
            for i in 0..counts {
                width.set(&mut piece, i, width.max());
                width.set(&mut piece, i, value(i));
            }
            assert!((0..counts).all(|i| width.get(&piece, i) == value(i)), "order {order}");
        }
    }

    #[test]
    fn they_lie_where_qemu_puts_them() {
        let mut piece = [0; 8];
        Width::new(1).set(&mut piece, 5, 2);
        assert_eq!(piece, [0, 0b1000, 0, 0, 0, 0, 0, 0]);
        Width::new(4).set(&mut piece, 1, 0x0102);
        assert_eq!(piece[2..4], [1, 2]);
    }
}
