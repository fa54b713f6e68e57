//! A load generator: a pipelined NBD client that keeps a batch of requests in flight. Every request
//! and its data come from a seed.
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::sim::rng::Rng;

/// NBD commands used.
const READ: u16 = 0;
const WRITE: u16 = 1;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const ZEROES: u16 = 6;

/// A client in transmission, with simple replies.
pub struct Load {
    socket: UnixStream,
    /// Size of the disk in bytes.
    pub bytes: u64,
    rng: Rng,
    out: Vec<u8>,
    data: Vec<u8>,
    sizes: Vec<u32>,
    /// Nothing is changed.
    pub reads_only: bool,
}

impl Load {
    /// Connects (fixed newstyle, EXPORT_NAME).
    ///
    /// # Errors
    /// Those of the socket, or an answer that is not NBD.
    pub fn connect(path: &Path, seed: u64) -> io::Result<Load> {
        let mut socket = UnixStream::connect(path)?;
        let mut greeting = [0; 18];
        socket.read_exact(&mut greeting)?;
        if !greeting.starts_with(b"NBDMAGICIHAVEOPT") {
            return Err(io::Error::other("not a newstyle greeting"));
        }
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1u32.to_be_bytes());
        hello.extend(0u32.to_be_bytes());
        socket.write_all(&hello)?;
        let mut export = [0; 10];
        socket.read_exact(&mut export)?;
        let bytes = u64::from_be_bytes(export[..8].try_into().expect("eight bytes"));
        let data = vec![0x5a; 256 << 10];
        let (out, sizes, reads_only) = (Vec::new(), Vec::new(), false);
        Ok(Load { socket, bytes, rng: Rng::new(seed), out, data, sizes, reads_only })
    }

    /// Sends `count` requests of all kinds in batches of `depth` and takes every answer.
    ///
    /// # Errors
    /// Those of the socket, or an answer that says so.
    pub fn mixed(&mut self, count: u32, depth: u32) -> io::Result<()> {
        for _ in 0..count.div_ceil(depth) {
            self.out.clear();
            self.sizes.clear();
            for handle in 0..depth {
                self.request(u64::from(handle));
            }
            self.socket.write_all(&self.out)?;
            for _ in 0..depth {
                self.answer()?;
            }
        }
        Ok(())
    }

    fn request(&mut self, handle: u64) {
        let (kind, sectors) = match self.rng.below(100) {
            _ if self.reads_only => (READ, self.length()),
            0 => (FLUSH, 0),
            1 => (TRIM, 1 + self.rng.below(256)),
            2 | 3 => (ZEROES, 1 + self.rng.below(64)),
            4..=50 => (WRITE, self.length()),
            _ => (READ, self.length()),
        };
        let bytes = sectors * 512;
        let at = self.rng.below((self.bytes - bytes) / 512) * 512;
        let at = if kind == FLUSH { 0 } else { at };
        self.out.extend(0x2560_9513u32.to_be_bytes());
        self.out.extend(0u16.to_be_bytes());
        self.out.extend(kind.to_be_bytes());
        self.out.extend(handle.to_be_bytes());
        self.out.extend(at.to_be_bytes());
        self.out.extend((bytes as u32).to_be_bytes());
        if kind == WRITE {
            self.out.extend(&self.data[..bytes as usize]);
        }
        self.sizes.push(if kind == READ { bytes as u32 } else { 0 });
    }

    /// Mostly 4 KiB; odd sizes, and some longer than a slot.
    fn length(&mut self) -> u64 {
        match self.rng.below(20) {
            0 => 1 + self.rng.below(16),
            1 => 128,
            2 => 1 + self.rng.below(300),
            _ => 8,
        }
    }

    fn answer(&mut self) -> io::Result<()> {
        let mut head = [0; 16];
        self.socket.read_exact(&mut head)?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        if word(0) != 0x6744_6698 || word(4) != 0 {
            return Err(io::Error::other(format!("answer {:#x}, error {}", word(0), word(4))));
        }
        let handle = u64::from_be_bytes(head[8..].try_into().expect("eight bytes"));
        let bytes = self.sizes[handle as usize] as usize;
        self.socket.read_exact(&mut self.data[..bytes])
    }
}
