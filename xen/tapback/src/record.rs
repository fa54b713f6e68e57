//! Which tapdisk was told to connect to a disk's ring, in a file a disk, kept while tapback is
//! away: a node may go in that time, and its tapdisk holds the guest's pages until it is told to
//! leave them.
//!
//! `RUN/tapback-vbd3.rings/5-51712` holds `77.0`: the process and the minor, as in our key
//! `tapback-ring`. The directory is on a tmpfs, so it ends when tapdisks do.

use crate::config::DeviceId;
use crate::ring::tap_of_print;
use crate::view::TapId;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use tap_ctl::paths::RunDir;

pub(crate) struct Record {
    folder: PathBuf,
}

impl Record {
    pub fn new(run: &RunDir, name: &str) -> Record {
        Record { folder: run.path().join(format!("tapback-{name}.rings")) }
    }

    /// Before the tapdisk is asked.
    pub fn put(&self, id: DeviceId, tap: TapId) -> io::Result<()> {
        if self.get(id) == Some(tap) {
            return Ok(());
        }
        fs::create_dir_all(&self.folder)?;
        let path = self.path(id);
        let new = path.with_extension("new");
        fs::write(&new, format!("{}.{}\n", tap.pid, tap.minor))?;
        fs::rename(new, path)
    }

    pub fn get(&self, id: DeviceId) -> Option<TapId> {
        tap_of_print(fs::read_to_string(self.path(id)).ok()?.trim_end())
    }

    /// Once it has left.
    pub fn remove(&self, id: DeviceId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Disks with a tapdisk, whether their nodes are there or not.
    pub fn ids(&self) -> Vec<DeviceId> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let id = |name: &str| {
            let (domid, devid) = name.split_once('-')?;
            DeviceId::parse(domid, devid)
        };
        entries.flatten().filter_map(|entry| id(entry.file_name().to_str()?)).collect()
    }

    fn path(&self, id: DeviceId) -> PathBuf {
        self.folder.join(format!("{}-{}", id.domid, id.devid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: DeviceId = DeviceId { domid: 5, devid: 51712 };

    #[test]
    fn what_was_put_is_there_until_it_is_removed() {
        let dir = tempfile::tempdir().expect("a directory");
        let record = Record::new(&RunDir::at(dir.path()), "vbd3");
        assert_eq!((record.get(ID), record.ids()), (None, vec![]));
        record.remove(ID).expect("nothing there is fine");
        for minor in [3, 4] {
            record.put(ID, TapId { pid: 77, minor }).expect("written");
            assert_eq!(record.get(ID), Some(TapId { pid: 77, minor }));
        }
        assert_eq!(record.ids(), [ID]);
        record.remove(ID).expect("removed");
        assert_eq!((record.get(ID), record.ids()), (None, vec![]));
    }

    #[test]
    fn what_others_put_there_is_no_disk() {
        let dir = tempfile::tempdir().expect("a directory");
        let record = Record::new(&RunDir::at(dir.path()), "vbd3");
        record.put(ID, TapId { pid: 77, minor: 0 }).expect("written");
        for (name, text) in [("5-51728", "x"), ("notes", "77.0"), ("5-1.new", "77.0")] {
            std::fs::write(record.folder.join(name), text).expect("written");
        }
        let mut ids = record.ids();
        ids.sort();
        assert_eq!(ids, [ID, DeviceId { domid: 5, devid: 51728 }]);
        assert_eq!(record.get(ids[1]), None);
    }
}
