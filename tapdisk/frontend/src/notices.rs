//! What a frontend has to say, kept until somebody between turns takes it: a fixed ring, nothing
//! allocated.

/// At most `N` notices, oldest first.
#[derive(Debug)]
pub(super) struct Notices<T, const N: usize> {
    ring: [Option<T>; N],
    first: usize,
    used: usize,
}

impl<T: Copy, const N: usize> Default for Notices<T, N> {
    fn default() -> Notices<T, N> {
        Notices { ring: [None; N], first: 0, used: 0 }
    }
}

impl<T: Copy, const N: usize> Notices<T, N> {
    /// Keeps a notice, or tells that there is no room.
    pub(super) fn note(&mut self, notice: T) -> bool {
        if self.used == N {
            return false;
        }
        self.ring[(self.first + self.used) % N] = Some(notice);
        self.used += 1;
        true
    }

    /// The oldest notice.
    pub(super) fn take(&mut self) -> Option<T> {
        let notice = self.ring[self.first].take()?;
        self.first = (self.first + 1) % N;
        self.used -= 1;
        Some(notice)
    }
}
