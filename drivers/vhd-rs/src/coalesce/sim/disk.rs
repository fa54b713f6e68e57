//! A file or device in memory that fails and loses power by seed.
use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex};

use image::Storage;

use super::super::medium::Medium;

/// Chance, the same for the same seed (splitmix64).
#[derive(Clone, Debug)]
pub(super) struct Rng(pub(super) u64);

impl Rng {
    pub(super) fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        n > 0 && self.below(n) == 0
    }
}

/// What happens to the power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Power {
    On,
    /// Going: what is in flight lands in parts.
    Going,
    Off,
}

/// The bytes, as reads see them and as they are on the medium.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) bytes: Vec<u8>,
    medium: Vec<u8>,
    /// Sectors written since the last flush, in order; an empty one is a cut of the file there.
    unflushed: Vec<(usize, Box<[u8]>)>,
    device: bool,
    volatile: bool,
    power: Power,
    /// One operation at a time: nothing else is in flight when the power goes.
    pub(super) alone: bool,
    /// Operations until the power goes.
    pub(super) cut_in: Option<u64>,
    /// One write in so many fails.
    pub(super) eio: u64,
    /// New pages that the file system has left.
    pub(super) room: Option<u64>,
    pages: HashSet<usize>,
    /// How much of `unflushed` the flush at work covers.
    pub(super) mark: usize,
    /// Planted: flushes do nothing.
    pub(super) lies: bool,
    /// Planted: the bitmap of the block at this byte is not written.
    pub(super) forget: Option<u64>,
    pub(super) rng: Rng,
}

/// The same disk for the code under test and for the simulator.
#[derive(Clone, Debug)]
pub(super) struct SimMedium(pub(super) Arc<Mutex<Disk>>);

impl SimMedium {
    pub(super) fn new(bytes: Vec<u8>, device: bool, volatile: bool, rng: Rng) -> SimMedium {
        SimMedium(Arc::new(Mutex::new(Disk {
            pages: (0..bytes.len().div_ceil(4096)).collect(),
            medium: bytes.clone(),
            mark: usize::MAX,
            bytes,
            unflushed: Vec::new(),
            device,
            volatile,
            power: Power::On,
            alone: false,
            cut_in: None,
            eio: 0,
            room: None,
            lies: false,
            forget: None,
            rng,
        })))
    }

    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Disk) -> T) -> T {
        f(&mut self.0.lock().expect("one thread"))
    }
}

impl Disk {
    pub(super) fn is_off(&self) -> bool {
        self.power != Power::On
    }

    /// How much is not on the medium for certain.
    pub(super) fn unflushed(&self) -> usize {
        self.unflushed.len()
    }

    /// Planted: what was written since then has not been written.
    pub(super) fn take_back(&mut self, bytes: Vec<u8>, mark: usize) {
        self.bytes = bytes;
        self.unflushed.truncate(mark);
    }

    /// The bytes after the power has come back; what was not flushed is there or not.
    pub(super) fn after_the_cut(&mut self) -> Vec<u8> {
        self.power = Power::Off;
        for (at, sector) in std::mem::take(&mut self.unflushed) {
            if self.rng.one_in(2) {
                put(&mut self.medium, at, &sector);
            }
        }
        self.medium.clone()
    }

    /// An operation begins; an error if the power is off or goes now.
    fn begin(&mut self) -> io::Result<()> {
        match self.power {
            Power::On => {}
            Power::Going if !self.alone => return Ok(()),
            Power::Going | Power::Off => return Err(io::Error::from_raw_os_error(5)),
        }
        match &mut self.cut_in {
            Some(0) => self.power = Power::Going,
            Some(left) => *left -= 1,
            None => {}
        }
        if self.power == Power::On && self.rng.one_in(self.eio) {
            return Err(io::Error::from_raw_os_error(5));
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.begin()?;
        let (mut at, mut data) = (offset as usize, data);
        if let Some(bitmap) = self.forget {
            let there = bitmap as usize;
            if at <= there && there < at + data.len() {
                (at, data) = (there + 512, &data[there + 512 - at..]);
            }
        }
        if self.device && at + data.len() > self.bytes.len() {
            return Err(io::Error::from_raw_os_error(28));
        }
        self.take_space(at, data.len())?;
        for (i, sector) in data.chunks(512).enumerate() {
            if self.power == Power::On || self.rng.one_in(2) {
                self.land(at + i * 512, sector);
            }
        }
        Ok(())
    }

    fn take_space(&mut self, at: usize, bytes: usize) -> io::Result<()> {
        for page in at / 4096..(at + bytes).div_ceil(4096) {
            if self.device || self.pages.contains(&page) {
                continue;
            }
            match &mut self.room {
                Some(0) => return Err(io::Error::from_raw_os_error(28)),
                Some(left) => *left -= 1,
                None => {}
            }
            self.pages.insert(page);
        }
        Ok(())
    }

    fn land(&mut self, at: usize, sector: &[u8]) {
        put(&mut self.bytes, at, sector);
        if self.volatile {
            self.unflushed.push((at, sector.into()));
        } else {
            put(&mut self.medium, at, sector);
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if data.is_empty() {
        return bytes.truncate(at);
    }
    if bytes.len() < at + data.len() {
        bytes.resize(at + data.len(), 0);
    }
    bytes[at..at + data.len()].copy_from_slice(data);
}

impl Storage for SimMedium {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.with(|disk| {
            let at = (offset as usize).min(disk.bytes.len());
            let n = buf.len().min(disk.bytes.len() - at);
            buf[..n].copy_from_slice(&disk.bytes[at..at + n]);
            Ok(n)
        })
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.with(|disk| disk.write(offset, buf))
    }
    fn len(&self) -> io::Result<u64> {
        self.with(|disk| Ok(disk.bytes.len() as u64))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|disk| {
            disk.begin()?;
            if disk.power != Power::On || disk.device {
                return Ok(());
            }
            let len = len as usize;
            disk.pages.retain(|page| page * 4096 < len);
            disk.bytes.resize(len, 0);
            if disk.volatile {
                // The file system's journal has a cut whole or not at all.
                disk.unflushed.push((len, Box::default()));
            } else {
                disk.medium.resize(len, 0);
            }
            Ok(())
        })
    }
    fn sync(&self) -> io::Result<()> {
        self.with(|disk| {
            disk.begin()?;
            if disk.power != Power::On || disk.lies {
                return Ok(());
            }
            let upto = disk.mark.min(disk.unflushed.len());
            let flushed: Vec<_> = disk.unflushed.drain(..upto).collect();
            flushed.into_iter().for_each(|(at, sector)| put(&mut disk.medium, at, &sector));
            // A flush takes the length of the file along.
            let len = disk.bytes.len();
            disk.medium.resize(len, 0);
            Ok(())
        })
    }
    fn give_back(&self, from: u64, to: u64) {
        self.with(|disk| {
            let (from, to) = ((from as usize).div_ceil(4096), to as usize / 4096);
            for page in from..to {
                if disk.pages.remove(&page) {
                    disk.room = disk.room.map(|room| room + 1);
                }
            }
        });
    }
    fn is_device(&self) -> bool {
        self.with(|disk| disk.device)
    }
}

impl Medium for SimMedium {
    fn copy(&self, _: u64, _: &dyn Medium, _: u64, _: u64) -> io::Result<bool> {
        Ok(false)
    }
    fn shares_with(&self, _: &dyn Medium) -> bool {
        false
    }
    fn file(&self) -> Option<&File> {
        None
    }
}
