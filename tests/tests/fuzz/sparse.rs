//! A file in memory with a long tail of zeros, and a limit to its growth.
use image::Storage;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;

/// Longest file: a write beyond it fails.
const BYTES_MAX: u64 = 16 << 20;
const PAGE: u64 = 512;

/// Bytes at the start, zeros behind, and what was written over both.
pub struct Sparse<'a> {
    start: &'a [u8],
    length: Cell<u64>,
    written: RefCell<BTreeMap<u64, [u8; PAGE as usize]>>,
    device: bool,
}

impl<'a> Sparse<'a> {
    /// `start`, then so many zeros.
    pub fn new(start: &'a [u8], zeros: u64, device: bool) -> Sparse<'a> {
        let length = (start.len() as u64).saturating_add(zeros).min(BYTES_MAX);
        Sparse { start, length: Cell::new(length), written: RefCell::default(), device }
    }

    fn page(&self, page: u64) -> [u8; PAGE as usize] {
        if let Some(bytes) = self.written.borrow().get(&page) {
            return *bytes;
        }
        let mut bytes = [0; PAGE as usize];
        let from = usize::try_from(page * PAGE).unwrap_or(usize::MAX);
        let there = self.start.get(from..).unwrap_or_default();
        bytes.iter_mut().zip(there).for_each(|(to, from)| *to = *from);
        bytes
    }
}

impl Storage for Sparse<'_> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.length.get().saturating_sub(offset);
        let count = buf.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        for (i, to) in buf[..count].chunks_mut(PAGE as usize).enumerate() {
            let at = offset + i as u64 * PAGE;
            let skip = (at % PAGE) as usize;
            let first = self.page(at / PAGE);
            let next = if skip > 0 { self.page(at / PAGE + 1) } else { [0; PAGE as usize] };
            let bytes = first[skip..].iter().chain(&next);
            to.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        }
        Ok(count)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let end = offset.checked_add(buf.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        let room = if self.device { self.length.get() } else { BYTES_MAX };
        if end > room {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        for (i, byte) in buf.iter().enumerate() {
            let at = offset + i as u64;
            let old = || self.page(at / PAGE);
            let mut written = self.written.borrow_mut();
            if !written.contains_key(&(at / PAGE)) {
                drop(written);
                let page = old();
                written = self.written.borrow_mut();
                written.insert(at / PAGE, page);
            }
            if let Some(page) = written.get_mut(&(at / PAGE)) {
                page[(at % PAGE) as usize] = *byte;
            }
        }
        self.length.set(self.length.get().max(end));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.length.get())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        if self.device {
            return Ok(());
        }
        if length > BYTES_MAX {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let old = self.length.replace(length);
        // What is cut off does not come back.
        for page in length / PAGE..old.min(self.start.len() as u64).div_ceil(PAGE) {
            let mut bytes = self.page(page);
            let keep = length.saturating_sub(page * PAGE).min(PAGE) as usize;
            bytes[keep..].fill(0);
            self.written.borrow_mut().insert(page, bytes);
        }
        self.written.borrow_mut().retain(|page, _| {
            *page < length.div_ceil(PAGE) || *page * PAGE < self.start.len() as u64
        });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn is_device(&self) -> bool {
        self.device
    }
}

#[test]
fn it_is_a_file() {
    let start: Vec<u8> = (0..1000).map(|i| i as u8).collect();
    let sparse = Sparse::new(&start, 5000, false);
    let plain = image::MemStorage::new([&start[..], &[0; 5000]].concat(), false);
    let both: [&dyn Storage; 2] = [&sparse, &plain];
    let same = || {
        let all = both.map(|s| {
            let mut bytes = vec![7; 9000];
            let got = s.read_at(3, &mut bytes).unwrap();
            (bytes, got, s.len().unwrap())
        });
        assert!(all[0] == all[1]);
    };
    same();
    for (at, count) in [(990, 700), (3, 5), (5900, 300), (7000, 1)] {
        both.iter().for_each(|s| s.write_at(at, &vec![9; count]).unwrap());
        same();
    }
    for length in [6100, 800, 5000, 100, 3000] {
        both.iter().for_each(|s| s.set_len(length).unwrap());
        same();
    }
    assert!(sparse.write_at(BYTES_MAX - 1, &[1, 2]).is_err());
}
