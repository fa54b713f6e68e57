//! What a frontend has to say, kept until somebody between turns takes it: a fixed ring, nothing
//! allocated.

/// At most `N` notices, oldest first.
#[derive(Debug)]
pub(super) struct Notices<T, const N: usize> {
    ring: [Option<T>; N],
    first: usize,
    used: usize,
    lost: u64,
}

impl<T: Copy, const N: usize> Default for Notices<T, N> {
    fn default() -> Notices<T, N> {
        Notices { ring: [None; N], first: 0, used: 0, lost: 0 }
    }
}

impl<T: Copy, const N: usize> Notices<T, N> {
    /// None so far, but for so many that were lost before.
    pub(super) fn after(lost: u64) -> Notices<T, N> {
        Notices { lost, ..Notices::default() }
    }

    /// Keeps a notice, or counts it as lost.
    pub(super) fn note(&mut self, notice: T) {
        if self.used == N {
            self.lost += 1;
            return;
        }
        self.ring[(self.first + self.used) % N] = Some(notice);
        self.used += 1;
    }

    /// Those for which there was no room.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// The oldest notice.
    pub(super) fn take(&mut self) -> Option<T> {
        let notice = self.ring[self.first].take()?;
        self.first = (self.first + 1) % N;
        self.used -= 1;
        Some(notice)
    }
}
