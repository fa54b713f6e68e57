//! What a tapdisk tells in shared memory of itself and its disks (spec/xenstore-tapback.md §9.1,
//! 9.3).
//!
//! ```text
//!   /dev/shm/td3-<pid>/                         from the start to the end of the process
//!            vdi-<minor>                        while images are open, not while paused
//!            nbd-<minor>, nbd-old-<minor>       from OPEN to CLOSE: clients by their greeting
//!            vbd-<domid>-<devid>                while rings are connected (ring_files)
//!   /dev/shm/metrics/tap-<pid>-<minor>          while images are open: a page of zeros
//! ```
//! Files are written once a second, not through a mapping: nobody who cuts them short can harm us.
//! Their pages are locked, for those of a tmpfs may be swapped out, and the swap device may be
//! ours. One that cannot be made is said in the log, and the disk is served without it. Anybody may
//! make these names before us: what is not ours is not touched (`tap_ctl::own_dir`).
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use slog::warn;
use tap_ctl::leftovers::{FOLDER, METRICS};
use tap_ctl::own_dir::OwnDir;
pub use tap_ctl::own_dir::SHM;
use tap_ctl::sys::{Lock, flock};

use super::{Env, Vbd};
use host::sys::{HeldPage, hold_page};
use request::Traffic;

pub(super) const PAGE: usize = 4096;

/// The folder of a process. It goes with it.
#[derive(Debug)]
pub struct Folder {
    pid: i32,
    /// `None`: it could not be made, and nothing is told.
    place: Option<(OwnDir, Arc<OwnDir>)>,
}

impl Folder {
    /// Makes it, empty: what an earlier process of the same number left in it goes.
    ///
    /// # Errors
    /// Those of the file system, or a folder of that name that is not ours.
    pub fn create(shm: &Path, pid: i32) -> io::Result<Folder> {
        let shm = OwnDir::of_host(shm)?;
        let own = shm.make(&format!("{FOLDER}{pid}"), 0o700)?;
        own.empty();
        // Tells who clears up after dead ones that we are not one of them; nobody else ever wants
        // it.
        let _ = flock(own.file(), Lock::Try);
        Ok(Folder { pid, place: Some((shm, Arc::new(own))) })
    }

    /// It cannot be made.
    pub fn none(pid: i32) -> Folder {
        Folder { pid, place: None }
    }

    /// Where shared memory has names, and the folder.
    ///
    /// # Errors
    /// ENOENT if it could not be made, which was said then.
    pub(super) fn place(&self) -> io::Result<(&OwnDir, &Arc<OwnDir>)> {
        let missing = || io::Error::other("this process has no folder there");
        self.place.as_ref().map(|(shm, own)| (shm, own)).ok_or_else(missing)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if host::carry::is_taking_over() {
            return;
        }
        // Files of disks are gone by now.
        if let Some((shm, _)) = &self.place {
            let _ = shm.remove_folder(&format!("{FOLDER}{}", self.pid));
        }
    }
}

/// Reads and writes of one kind of client, in a page.
#[derive(Debug)]
struct TrafficFile {
    place: Arc<OwnDir>,
    name: String,
    file: File,
    _held: Option<HeldPage>,
    /// What had been counted when the file was made.
    before: Traffic,
    /// What it says.
    told: Cell<Traffic>,
}

impl TrafficFile {
    fn create(place: &Arc<OwnDir>, name: String, before: Traffic) -> io::Result<TrafficFile> {
        let (file, place) = (place.fresh(&name)?, Arc::clone(place));
        let told = Cell::new(before);
        let mut made = TrafficFile { place, name, file, _held: None, before, told };
        made.file.write_all_at(&traffic_page(0, &Traffic::default()), 0)?;
        made._held = hold_page(&made.file);
        Ok(made)
    }

    fn update(&self, now: &Traffic) -> io::Result<()> {
        if self.told.get() != *now {
            self.file.write_all_at(&traffic_page(0, &now.since(&self.before)), 0)?;
            self.told.set(*now);
        }
        Ok(())
    }
}

impl Drop for TrafficFile {
    fn drop(&mut self) {
        if host::carry::is_taking_over() {
            return;
        }
        let _ = self.place.remove(&self.name);
    }
}

/// The files of one disk.
#[derive(Debug, Default)]
pub(super) struct DiskFiles {
    vdi: Option<TrafficFile>,
    nbd: Option<[TrafficFile; 2]>,
    tap: Option<(OwnDir, String)>,
    /// The log knows that they cannot be made.
    told: bool,
}

impl DiskFiles {
    fn open(
        &mut self,
        folder: &Folder,
        minor: u16,
        vdi: Traffic,
        nbd: [Traffic; 2],
    ) -> io::Result<()> {
        let (shm, place) = folder.place()?;
        if self.nbd.is_none() {
            let make = |name: &str, i: usize| {
                TrafficFile::create(place, format!("{name}-{minor}"), nbd[i])
            };
            self.nbd = Some([make("nbd", 0)?, make("nbd-old", 1)?]);
        }
        if self.vdi.is_none() {
            self.vdi = Some(TrafficFile::create(place, format!("vdi-{minor}"), vdi)?);
        }
        if self.tap.is_none() {
            // All tapdisks of a user share it: root's, or else the first user's.
            let metrics = shm.make(METRICS, 0o755)?;
            let name = format!("tap-{}-{minor}", folder.pid);
            metrics.fresh(&name)?.write_all_at(&[0; PAGE], 0)?;
            self.tap = Some((metrics, name));
        }
        Ok(())
    }

    /// The images are closed.
    fn pause(&mut self) {
        self.vdi = None;
        if let Some((metrics, name)) = self.tap.take() {
            let _ = metrics.remove(&name);
        }
    }

    fn update(&self, vdi: &Traffic, nbd: &[Traffic; 2]) {
        // A full file system: the next second may be better.
        if let Some(file) = &self.vdi {
            let _ = file.update(vdi);
        }
        for (file, traffic) in self.nbd.iter().flatten().zip(nbd) {
            let _ = file.update(traffic);
        }
    }
}

impl Drop for DiskFiles {
    fn drop(&mut self) {
        self.pause();
    }
}

impl Vbd {
    /// Files for a disk whose images have just been opened.
    pub(super) fn show_files(&mut self, env: &Env) {
        let (Some(data), Some(nbd)) = (&self.data, &self.frontends.nbd) else { return };
        let (vdi, nbd) = (data.engine.stats().traffic(), nbd.traffic());
        let Err(error) = self.files.open(&env.folder, self.minor, vdi, nbd) else { return };
        if !std::mem::replace(&mut self.files.told, true) {
            let minor = self.minor;
            warn!(env.log, "minor {minor}: no files in {SHM} tell of it: {error}");
        }
    }

    /// The images are being closed.
    pub(super) fn hide_files(&mut self) {
        self.files.pause();
    }

    /// Once a second: what was read and written.
    pub(super) fn update_files(&self) {
        let (Some(data), Some(nbd)) = (&self.data, &self.frontends.nbd) else { return };
        self.files.update(&data.engine.stats().traffic(), &nbd.traffic());
    }
}

/// A page of u64s, some of them set.
pub(super) fn page(fields: &[(usize, u64)]) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    for (at, value) in fields {
        page[*at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    page
}

/// The layout of §9.1, with the version in its first four bytes.
pub(super) fn traffic_page(version: u32, t: &Traffic) -> [u8; PAGE] {
    let [read, write] = [0, 1].map(|i| [t.begun[i], t.over[i], t.sectors[i], t.ticks_us[i]]);
    let of = |from: usize, values: [u64; 4]| (0..4).map(move |i| (from + 8 * i, values[i]));
    let first = [(0, u64::from(version)), (80, t.errors)];
    let fields: Vec<(usize, u64)> =
        first.into_iter().chain(of(16, read)).chain(of(48, write)).collect();
    page(&fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_page_of_a_file_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let place = Arc::new(OwnDir::of_host(dir.path()).unwrap());
        let file = TrafficFile::create(&place, "vdi-1".into(), Traffic::default()).unwrap();
        assert!(file._held.is_some());
    }

    const TRAFFIC: Traffic = Traffic {
        begun: [11, 21],
        over: [10, 20],
        sectors: [12, 22],
        ticks_us: [13, 23],
        errors: 5,
    };

    fn numbers(path: &Path) -> Vec<u64> {
        let bytes = fs::read(path).unwrap();
        assert_eq!(bytes.len(), PAGE);
        assert!(bytes[96..].iter().all(|byte| *byte == 0));
        let of = |raw: &[u8]| u64::from_le_bytes(raw.try_into().unwrap());
        bytes[..96].chunks_exact(8).map(of).collect()
    }

    #[test]
    fn files_come_and_go_with_images_and_disk() {
        let shm = tempfile::tempdir().unwrap();
        let folder = Folder::create(shm.path(), 77).unwrap();
        let there = |name: &str| shm.path().join(name).exists();
        let mut files = DiskFiles::default();
        // What was counted earlier is another file's.
        let before = Traffic { begun: [1, 1], over: [1, 1], ..Traffic::default() };
        files.open(&folder, 3, before, [Traffic::default(), before]).unwrap();
        assert_eq!(numbers(&shm.path().join("td3-77/vdi-3")), [0; 12]);
        let tap = fs::read(shm.path().join("metrics/tap-77-3")).unwrap();
        assert_eq!(tap, [0; PAGE]);
        files.update(&TRAFFIC, &[TRAFFIC, before]);
        let vdi = numbers(&shm.path().join("td3-77/vdi-3"));
        assert_eq!(vdi, [0, 0, 10, 9, 12, 13, 20, 19, 22, 23, 5, 0]);
        let nbd = numbers(&shm.path().join("td3-77/nbd-3"));
        assert_eq!(nbd, [0, 0, 11, 10, 12, 13, 21, 20, 22, 23, 5, 0]);
        assert_eq!(numbers(&shm.path().join("td3-77/nbd-old-3")), [0; 12]);
        files.pause();
        assert!(!there("td3-77/vdi-3") && !there("metrics/tap-77-3") && there("td3-77/nbd-3"));
        files.open(&folder, 3, TRAFFIC, [TRAFFIC; 2]).unwrap();
        assert_eq!(numbers(&shm.path().join("td3-77/vdi-3")), [0; 12]);
        drop(files);
        assert_eq!(fs::read_dir(shm.path().join("td3-77")).unwrap().count(), 0);
        drop(folder);
        assert!(!there("td3-77"));
    }

    #[test]
    fn a_dead_process_folder_is_emptied_and_a_strangers_refused() {
        tap_ctl::sys::settle_umask();
        let shm = tempfile::tempdir().unwrap();
        let path = shm.path().join("td3-1");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("vdi-9"), "old").unwrap();
        let folder = Folder::create(shm.path(), 1).unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        drop(folder);
        std::os::unix::fs::symlink("/etc", &path).unwrap();
        assert!(Folder::create(shm.path(), 1).is_err());
    }

    #[test]
    fn without_a_folder_nothing_is_written_through_the_name() {
        let shm = tempfile::tempdir().unwrap();
        fs::create_dir(shm.path().join("theirs")).unwrap();
        fs::write(shm.path().join("theirs/vdi-3"), "theirs").unwrap();
        std::os::unix::fs::symlink("theirs", shm.path().join("td3-77")).unwrap();
        let error = Folder::create(shm.path(), 77).unwrap_err();
        assert!(error.to_string().contains("td3-77 is not ours"), "{error}");
        let folder = Folder::none(77);
        let mut files = DiskFiles::default();
        assert!(files.open(&folder, 3, TRAFFIC, [TRAFFIC; 2]).is_err());
        files.update(&TRAFFIC, &[TRAFFIC; 2]);
        drop((files, folder));
        assert_eq!(fs::read(shm.path().join("theirs/vdi-3")).unwrap(), b"theirs");
        assert!(shm.path().join("td3-77").exists() && !shm.path().join("metrics").exists());
    }
}
