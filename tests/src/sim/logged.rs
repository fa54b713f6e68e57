//! The bytes of an image under a program that opens or closes it, and what is left of them when it
//! is killed, or the power goes, in the middle of that.
use std::cell::RefCell;
use std::io;

use image::{MemStorage, Storage};

use super::rng::Rng;

const SECTOR: usize = 512;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The program is gone; what it has written is there.
    Kill,
    /// Of what was not flushed, any sectors may be lost.
    Cut,
}

/// One thing that was done.
#[derive(Clone, Debug)]
enum Done {
    Write(u64, Vec<u8>),
    Len(u64),
    Sync,
}

/// Storage that remembers in which order it was written.
pub struct Logged {
    before: Vec<u8>,
    now: MemStorage,
    done: RefCell<Vec<Done>>,
}

impl Logged {
    /// Over the contents of a file, or of a device; all of it is on the medium.
    pub fn new(bytes: Vec<u8>, device: bool) -> Logged {
        let now = MemStorage::new(bytes.clone(), device);
        Logged { before: bytes, now, done: RefCell::default() }
    }

    /// The bytes after everything.
    pub fn into_inner(self) -> Vec<u8> {
        self.now.into_inner()
    }

    /// The bytes after a crash at some moment.
    pub fn crash(&self, how: Crash, rng: &mut Rng) -> Vec<u8> {
        let done = self.done.borrow();
        let upto = rng.below(done.len() as u64 + 1) as usize;
        let flush = done[..upto].iter().rposition(|step| matches!(step, Done::Sync)).unwrap_or(0);
        let mut bytes = self.before.clone();
        for (i, step) in done[..upto].iter().enumerate() {
            let safe = how == Crash::Kill || i < flush;
            match step {
                // The file's length is in its journal: it comes with what is written there.
                Done::Write(at, new) if safe || *at as usize + new.len() > bytes.len() => {
                    if safe || rng.one_in(2) {
                        put(&mut bytes, *at as usize, new);
                    }
                }
                Done::Write(at, new) => {
                    for (i, sector) in new.chunks(SECTOR).enumerate() {
                        if rng.one_in(2) {
                            put(&mut bytes, *at as usize + i * SECTOR, sector);
                        }
                    }
                }
                Done::Len(len) if safe || rng.one_in(2) => bytes.resize(*len as usize, 0),
                Done::Len(_) | Done::Sync => {}
            }
        }
        bytes
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    bytes.resize(bytes.len().max(at + new.len()), 0);
    bytes[at..at + new.len()].copy_from_slice(new);
}

impl Storage for Logged {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.now.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.now.write_at(offset, buf)?;
        self.done.borrow_mut().push(Done::Write(offset, buf.to_vec()));
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        self.now.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        if !self.is_device() {
            self.done.borrow_mut().push(Done::Len(len));
        }
        self.now.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.done.borrow_mut().push(Done::Sync);
        Ok(())
    }
    fn is_device(&self) -> bool {
        self.now.is_device()
    }
}
