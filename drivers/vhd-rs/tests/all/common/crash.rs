//! Files that lose power: all of them at the same operation, each with a random part of what was
//! not flushed.
use image::Storage;
use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

/// The power supply of some files: operations until it fails, and chance.
pub struct Power {
    left: Cell<u64>,
    off: Cell<bool>,
    seed: Cell<u64>,
}

impl Power {
    /// Fails at operation number `left`.
    pub fn new(left: u64, seed: u64) -> Rc<Power> {
        Rc::new(Power {
            left: Cell::new(left),
            off: Cell::new(false),
            seed: Cell::new(seed * 2 + 1),
        })
    }

    /// Whether it has failed.
    pub fn off(&self) -> bool {
        self.off.get()
    }

    fn spend(&self) -> io::Result<()> {
        match self.left.get().checked_sub(1).filter(|_| !self.off()) {
            Some(left) => self.left.set(left),
            None => self.off.set(true),
        }
        if self.off() { Err(io::Error::from_raw_os_error(5)) } else { Ok(()) }
    }

    fn coin(&self) -> bool {
        let next =
            self.seed.get().wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.seed.set(next);
        next >> 63 == 1
    }
}

enum Change {
    Sector(usize, Vec<u8>),
    Length(usize),
}

/// A file, or a device.
pub struct Fragile {
    power: Rc<Power>,
    seen: RefCell<Vec<u8>>,
    medium: RefCell<Vec<u8>>,
    unflushed: RefCell<Vec<Change>>,
    device: bool,
}

impl Fragile {
    pub fn new(bytes: &[u8], device: bool, power: &Rc<Power>) -> Fragile {
        Fragile {
            power: Rc::clone(power),
            seen: RefCell::new(bytes.to_vec()),
            medium: RefCell::new(bytes.to_vec()),
            unflushed: RefCell::default(),
            device,
        }
    }

    /// What the file holds after the power cut.
    pub fn after_cut(&self) -> Vec<u8> {
        let mut bytes = self.medium.borrow().clone();
        for change in self.unflushed.borrow_mut().drain(..) {
            if self.power.coin() {
                apply(&mut bytes, &change);
            }
        }
        bytes
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.seen.borrow().clone()
    }

    fn change(&self, change: Change) {
        apply(&mut self.seen.borrow_mut(), &change);
        self.unflushed.borrow_mut().push(change);
    }
}

fn apply(bytes: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Length(len) => bytes.resize(*len, 0),
        Change::Sector(at, data) => {
            let len = bytes.len().max(at + data.len());
            bytes.resize(len, 0);
            bytes[*at..at + data.len()].copy_from_slice(data);
        }
    }
}

impl Storage for Fragile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if self.power.off() {
            return Err(io::Error::from_raw_os_error(5));
        }
        let bytes = self.seen.borrow();
        let from = usize::try_from(offset).unwrap().min(bytes.len());
        let n = buf.len().min(bytes.len() - from);
        buf[..n].copy_from_slice(&bytes[from..from + n]);
        Ok(n)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        if self.device && at + buf.len() > self.seen.borrow().len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        for (n, sector) in buf.chunks(512).enumerate() {
            // Long writes are cut in many places, but not in all.
            if n % 512 == 0 || n + 1 == buf.len().div_ceil(512) {
                self.power.spend()?;
            }
            self.change(Change::Sector(at + n * 512, sector.to_vec()));
        }
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.seen.borrow().len() as u64)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.power.spend()?;
        if !self.device {
            self.change(Change::Length(usize::try_from(len).unwrap()));
        }
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.power.spend()?;
        let mut medium = self.medium.borrow_mut();
        self.unflushed.borrow_mut().drain(..).for_each(|change| apply(&mut medium, &change));
        Ok(())
    }
    fn is_device(&self) -> bool {
        self.device
    }
}
