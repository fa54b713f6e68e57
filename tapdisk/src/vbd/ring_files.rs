//! What rings tell in shared memory, for `xentop`, rrdp-iostat and the ring watch
//! (spec/xenstore-tapback.md §9.1–9.2): a few files a device, there while its rings are connected,
//! written once a second.
//!
//! ```text
//!   /dev/shm/td3-<pid>/vbd-<domid>-<devid>      requests, sectors, times
//!   /dev/shm/vbd3-<domid>-<devid>/statistics    the same as blkback's, /io_ring: indices of the first ring
//! ```
//! They are written, not mapped: nobody who cuts them short can harm us; `io_ring` every five
//! seconds, and all only when there is something new. A file that cannot be made is said in the log
//! and does without; the ring is served all the same.
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tap_ctl::leftovers::DEVICE;
use tap_ctl::own_dir::OwnDir;

use super::metrics::{Folder, PAGE, page, traffic_page};
use frontend::blkif::{Indices, Tally};
use host::sys::{HeldPage, hold_page};
use request::Traffic;

/// The files of one device.
#[derive(Debug)]
pub struct DeviceFiles {
    /// Front end's domain and device.
    pub device: (u16, u32),
    shm: OwnDir,
    process: Arc<OwnDir>,
    folder: OwnDir,
    vbd_file: File,
    statistics: File,
    _held: [Option<HeldPage>; 2],
    /// What `io_ring` says.
    shown: Cell<Option<Indices>>,
    /// Updates until it may say something else.
    rest: Cell<u32>,
    /// What the others say.
    told: Cell<Tally>,
}

/// Updates between two of `io_ring`: five seconds.
const RING_UPDATES: u32 = 5;

impl DeviceFiles {
    /// Makes them, with zeros.
    ///
    /// # Errors
    /// Those of the file system, or a folder of that name that is not ours.
    pub fn create(process: &Folder, device: (u16, u32)) -> io::Result<DeviceFiles> {
        let (domid, devid) = device;
        let (shm, process) = process.place()?;
        let folder = shm.make(&format!("{DEVICE}{domid}-{devid}"), 0o700)?;
        let mut files = DeviceFiles {
            device,
            shm: shm.again()?,
            process: Arc::clone(process),
            vbd_file: process.fresh(&vbd_name(device))?,
            statistics: folder.fresh("statistics")?,
            folder,
            _held: [None, None],
            shown: Cell::new(None),
            rest: Cell::new(0),
            told: Cell::new(Tally::default()),
        };
        files.show(&Tally::default())?;
        files._held = [&files.vbd_file, &files.statistics].map(hold_page);
        Ok(files)
    }

    /// Writes what was counted so far.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn update(&self, tally: &Tally, indices: Option<Indices>) -> io::Result<()> {
        if self.told.get() != *tally {
            self.show(tally)?;
            self.told.set(*tally);
        }
        let rest = self.rest.get().saturating_sub(1);
        self.rest.set(rest);
        let due = rest == 0 && self.shown.get() != indices;
        let Some(indices) = indices.filter(|_| due) else { return Ok(()) };
        self.rest.set(RING_UPDATES);
        // Made beside and moved into place, so that a reader finds all of it or the former.
        let beside = self.folder.fresh("io_ring~")?;
        beside.write_all_at(&io_ring(&indices), 0)?;
        self.folder.rename("io_ring~", "io_ring")?;
        self.shown.set(Some(indices));
        Ok(())
    }

    fn show(&self, tally: &Tally) -> io::Result<()> {
        self.vbd_file.write_all_at(&vbd_page(tally), 0)?;
        self.statistics.write_all_at(&statistics_page(tally), 0)
    }
}

impl Drop for DeviceFiles {
    fn drop(&mut self) {
        if host::carry::is_taking_over() {
            return;
        }
        // What is gone already needs no removing.
        for name in ["statistics", "io_ring", "io_ring~"] {
            let _ = self.folder.remove(name);
        }
        let (domid, devid) = self.device;
        let _ = self.shm.remove_folder(&format!("{DEVICE}{domid}-{devid}"));
        let _ = self.process.remove(&vbd_name(self.device));
    }
}

fn vbd_name((domid, devid): (u16, u32)) -> String {
    format!("vbd-{domid}-{devid}")
}

fn vbd_page(t: &Tally) -> [u8; PAGE] {
    let Tally { taken: begun, answered: over, sectors, ticks_us, errors, .. } = *t;
    traffic_page(1, &Traffic { begun, over, sectors, ticks_us, errors })
}

fn statistics_page(t: &Tally) -> [u8; PAGE] {
    let of = |from: usize, i: usize| {
        let values = [t.taken[i], t.answered[i], t.sectors[i], t.ticks_us[i], t.longest_us[i]];
        (0..5).map(move |k| (from + 8 * k, values[k]))
    };
    let first = [(0, t.discards), (8, t.flushes)];
    let fields: Vec<(usize, u64)> = first.into_iter().chain(of(24, 0)).chain(of(64, 1)).collect();
    page(&fields)
}

fn io_ring(i: &Indices) -> Vec<u8> {
    // `cons` and `pvt` as signed numbers, as the original prints them.
    let text = format!(
        "nr_ents {}\nreq prod {} cons {} event {}\nrsp prod {} pvt {} event {}\n",
        i.entries,
        i.req_prod,
        i.req_cons.cast_signed(),
        i.req_event,
        i.rsp_prod,
        i.rsp_pvt.cast_signed(),
        i.rsp_event
    );
    let crc = u64::from(crc32(text.as_bytes()));
    [&crc.to_le_bytes(), text.as_bytes()].concat()
}

/// The CRC of zlib (polynomial 0xedb88320, reflected).
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        let start = crc ^ u32::from(*byte);
        (0..8).fold(start, |c, _| if c & 1 == 1 { c >> 1 ^ 0xedb8_8320 } else { c >> 1 })
    };
    !bytes.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const INDICES: Indices = Indices {
        entries: 32,
        req_prod: 7,
        req_cons: 7,
        req_event: 8,
        rsp_prod: 7,
        rsp_pvt: 7,
        rsp_event: 8,
    };

    fn number(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn crc_of_the_known_string() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn files_are_where_and_what_readers_expect_and_go_with_the_device() {
        let dir = tempfile::tempdir().unwrap();
        let process = Folder::create(dir.path(), 77).unwrap();
        let files = DeviceFiles::create(&process, (3, 51712)).unwrap();
        let tally = Tally {
            taken: [11, 21],
            answered: [10, 20],
            sectors: [12, 22],
            ticks_us: [13, 23],
            longest_us: [14, 24],
            errors: 5,
            flushes: 6,
            discards: 7,
        };
        files.update(&tally, Some(INDICES)).unwrap();
        let vbd = fs::read(dir.path().join("td3-77/vbd-3-51712")).unwrap();
        assert_eq!((vbd.len(), number(&vbd, 0)), (PAGE, 1));
        let numbers: Vec<u64> = (2..11).map(|i| number(&vbd, 8 * i)).collect();
        assert_eq!(numbers, [11, 10, 12, 13, 21, 20, 22, 23, 5]);
        let statistics = fs::read(dir.path().join("vbd3-3-51712/statistics")).unwrap();
        let numbers: Vec<u64> = (0..14).map(|i| number(&statistics, 8 * i)).collect();
        assert_eq!(numbers, [7, 6, 0, 11, 10, 12, 13, 14, 21, 20, 22, 23, 24, 0]);
        let ring = fs::read(dir.path().join("vbd3-3-51712/io_ring")).unwrap();
        let text = "nr_ents 32\nreq prod 7 cons 7 event 8\nrsp prod 7 pvt 7 event 8\n";
        assert_eq!(&ring[8..], text.as_bytes());
        assert_eq!(number(&ring, 0), u64::from(crc32(text.as_bytes())));
        drop(files);
        drop(process);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_leftover_is_replaced_and_a_strangers_name_refused() {
        tap_ctl::sys::settle_umask();
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("vbd3-1-2");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("statistics"), "old").unwrap();
        let process = Folder::create(dir.path(), 1).unwrap();
        drop(DeviceFiles::create(&process, (1, 2)).unwrap());
        std::os::unix::fs::symlink("/etc", &folder).unwrap();
        assert!(DeviceFiles::create(&process, (1, 2)).is_err());
    }
}
