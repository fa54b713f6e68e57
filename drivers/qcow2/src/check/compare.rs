//! Counts of the file beside how often clusters are used.
use super::Check;
use crate::counts::PAGE;
use crate::error::Error;

/// A cluster whose count is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unlike {
    pub(crate) cluster: u64,
    /// What the file says.
    pub(crate) count: u32,
    /// How often it is used.
    pub(crate) uses: u32,
}

impl Unlike {
    /// A line on it; a count that does not fit into memory is read again.
    pub(crate) fn line(&self, what: &str, check: &Check<'_>) -> String {
        let whole = || check.table.count(self.cluster).unwrap_or(u64::from(u32::MAX));
        let count = if self.count == u32::MAX { whole() } else { self.count.into() };
        format!("{what} cluster {} refcount={count} reference={}", self.cluster, self.uses)
    }
}

impl Check<'_> {
    /// Clusters of a page whose counts differ.
    pub(crate) fn unlike(&self, first: u64) -> Vec<Unlike> {
        // A table may end in the cluster behind a file's last.
        let all = first..(first + PAGE).min(self.head.clusters() + 1);
        let both = |cluster| Unlike {
            cluster,
            count: self.disk.get(cluster),
            uses: self.uses.get(cluster),
        };
        let behind = |one: &Unlike| one.cluster >= self.head.clusters() && one.uses == 0;
        all.map(both).filter(|one| one.count != one.uses && !behind(one)).collect()
    }

    /// Says which counts are wrong, and counts them.
    pub(crate) fn compare(&mut self) {
        for first in self.uses.pages_unlike(&self.disk) {
            for unlike in self.unlike(first) {
                let low = unlike.count < unlike.uses;
                let line = unlike.line(if low { "ERROR" } else { "Leaked" }, self);
                match low {
                    true => self.corrupt(&line),
                    false => {
                        self.report.leaks += 1;
                        self.say(&line);
                    }
                }
            }
        }
        let last = self.uses.last().into_iter().chain(self.disk.last()).max();
        self.report.end = last.map_or(0, |last| (last + 1) * self.head.header.cluster());
    }

    /// Counts that have changed are read again.
    pub(crate) fn reload(&mut self) -> Result<(), Error> {
        let clusters = self.head.clusters();
        self.disk = self.table.load(clusters)?.map_err(|_| super::too_much(self.name))?;
        self.count_behind()
    }

    /// The count of the cluster behind a file's last, where something is in it.
    pub(super) fn count_behind(&mut self) -> Result<(), Error> {
        let behind = self.head.clusters();
        if self.uses.get(behind) == 0 {
            return Ok(());
        }
        let count = u32::try_from(self.table.count(behind)?).unwrap_or(u32::MAX);
        self.disk.set(behind, count).map_err(|_| super::too_much(self.name))
    }
}
