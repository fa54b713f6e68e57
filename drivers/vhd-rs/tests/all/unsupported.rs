//! A header that adds up and still cannot be served is not read again: nobody is writing it.
use image::{MemStorage, Storage};
use std::cell::Cell;
use std::io;
use std::path::Path;
use vhd_rs::create::{self, NewImage};
use vhd_rs::{OpenOptions, VhdError, open};

const HEADER: usize = 512;

/// An image that counts how often its header is read.
struct Counted {
    image: MemStorage,
    reads: Cell<u32>,
}

impl Storage for Counted {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if offset == HEADER as u64 {
            self.reads.set(self.reads.get() + 1);
        }
        self.image.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.image.write_at(offset, buf)
    }
    fn len(&self) -> io::Result<u64> {
        self.image.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.image.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn is_device(&self) -> bool {
        false
    }
}

/// Opens an image whose header got these bytes; the error, and how often the header was read.
fn opened(at: usize, bytes: &[u8], sum: bool, retries: u32) -> (VhdError, u32) {
    let image = MemStorage::default();
    let new = NewImage { bytes: 4 << 20, room_bytes: 4 << 20, uuid: [1; 16], timestamp: 1 };
    create::dynamic(&image, Path::new("x.vhd"), &new, None).unwrap();
    let mut image = image.into_inner();
    let header = &mut image[HEADER..HEADER + 1024];
    header[at..at + bytes.len()].copy_from_slice(bytes);
    if sum {
        header[36..40].fill(0);
        let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
        header[36..40].copy_from_slice(&(!sum).to_be_bytes());
    }
    let storage = Counted { image: MemStorage::new(image, false), reads: Cell::new(0) };
    let o = OpenOptions { read_only: true, header_retries: retries, ..OpenOptions::default() };
    (open(&storage, Path::new("x.vhd"), &o).unwrap_err(), storage.reads.get())
}

#[test]
fn what_is_unsupported_is_said_after_one_read() {
    let fields: [(usize, &[u8], &str); 4] = [
        (24, &[0, 2, 0, 0], "header version at byte 536 is 2.0; only 1.0 is supported"),
        (32, &[0, 64, 0, 0], "header block size at byte 544 is 4194304 bytes"),
        (8, &[0; 8], "header data offset at byte 520 is 0x0"),
        (576, b"ABCD", "header locator platform code at byte 1088 is 0x41424344"),
    ];
    for (at, bytes, words) in fields {
        let (error, reads) = opened(at, bytes, true, 10);
        assert_eq!((error.errno(), reads), (22, 1), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_header_that_may_be_half_written_is_read_again() {
    for (at, bytes) in [(0, b"XXXX"), (100, b"XXXX")] {
        let (error, reads) = opened(at, bytes, false, 1);
        assert_eq!((error.errno(), reads), (22, 2), "{error}");
        assert!(error.to_string().contains("is not what a VHD header has"), "{error}");
    }
}
