//! Blocking access to an image for opening and closing it: past the page cache, whatever the
//! alignment.
//!
//! The engine and this never work on a file at the same time, except where the page cache is used
//! for neither, so the two cannot disagree about its bytes.
use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use image::Storage;

/// Alignment of memory and of reads: what every device accepts.
const PAGE: usize = 4096;
/// Bytes of one system call at most.
const CHUNK: usize = 1 << 20;
/// The smallest unit of a write.
const SECTOR: usize = 512;

/// An open image.
#[derive(Debug)]
pub struct DirectFile {
    file: File,
    direct: bool,
    device: bool,
    /// Alignment of writes: what the device was found to accept.
    unit: Cell<usize>,
}

impl DirectFile {
    /// Takes a file; `direct` if it was opened with O_DIRECT; `unit` is the sector size of its
    /// device.
    pub fn new(file: File, direct: bool, device: bool, unit: usize) -> DirectFile {
        DirectFile { file, direct, device, unit: Cell::new(unit.clamp(SECTOR, PAGE)) }
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Writes whole units, what is around `buf` taken from the file.
    fn write_units(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let unit = self.unit.get();
        let skip = (offset % unit as u64) as usize;
        let start = offset - skip as u64;
        let bytes = (skip + buf.len()).next_multiple_of(unit);
        let whole = skip == 0 && bytes == buf.len();
        let end = offset + buf.len() as u64;
        let length = if whole || self.device { 0 } else { self.len()?.max(end) };
        let mut area = Area::new(bytes);
        if !whole {
            self.fill(start, area.slice())?;
        }
        area.slice()[skip..skip + buf.len()].copy_from_slice(buf);
        self.file.write_all_at(area.slice(), start)?;
        if length > 0 && self.len()? > length {
            self.file.set_len(length)?;
        }
        Ok(())
    }

    /// Reads up to the end of the file; page-aligned memory and offset.
    fn fill(&self, offset: u64, area: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < area.len() {
            match FileExt::read_at(&self.file, &mut area[done..], offset + done as u64) {
                Ok(n) => {
                    done += n;
                    // Only the end of the file is not a multiple of a sector.
                    if n == 0 || n % SECTOR != 0 {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
}

impl Storage for DirectFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if !self.direct {
            return Storage::read_at(&self.file, offset, buf);
        }
        let mut done = 0;
        while done < buf.len() {
            let from = offset + done as u64;
            let skip = (from % PAGE as u64) as usize;
            let part = (buf.len() - done).min(CHUNK - skip);
            let mut area = Area::new((skip + part).next_multiple_of(PAGE));
            let got = self.fill(from - skip as u64, area.slice())?;
            let part = part.min(got.saturating_sub(skip));
            buf[done..done + part].copy_from_slice(&area.slice()[skip..skip + part]);
            done += part;
            if got < area.bytes {
                break;
            }
        }
        Ok(done)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        if !self.direct {
            return self.file.write_all_at(buf, offset);
        }
        match self.write_units(offset, buf) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) && self.unit.get() < PAGE => {
                self.unit.set(PAGE);
                self.write_units(offset, buf)
            }
            other => other,
        }
    }

    fn len(&self) -> io::Result<u64> {
        match self.device {
            true => host::sys::device_bytes(&self.file),
            false => Ok(self.file.metadata()?.len()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.device { Ok(()) } else { self.file.set_len(len) }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn give_back(&self, from: u64, to: u64) {
        self.file.give_back(from, to);
    }

    fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        self.file.attribute(name)
    }

    fn is_device(&self) -> bool {
        self.device
    }
}

/// Page-aligned zeros.
struct Area {
    memory: Vec<u8>,
    skip: usize,
    bytes: usize,
}

impl Area {
    fn new(bytes: usize) -> Area {
        let memory = vec![0; bytes + PAGE];
        let skip = memory.as_ptr().align_offset(PAGE);
        Area { memory, skip, bytes }
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.skip..self.skip + self.bytes]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    /// A file of `bytes`, with and (where the file system has it) without the page cache.
    fn files(bytes: &[u8]) -> Vec<(tempfile::TempDir, DirectFile)> {
        let open = |direct: bool, unit: usize| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("f");
            std::fs::write(&path, bytes).unwrap();
            let mut how = std::fs::OpenOptions::new();
            how.read(true).write(true).custom_flags(if direct { libc::O_DIRECT } else { 0 });
            Some((dir, DirectFile::new(how.open(path).ok()?, direct, false, unit)))
        };
        [(false, 512), (true, 512), (true, 4096)]
            .into_iter()
            .filter_map(|(direct, unit)| open(direct, unit))
            .collect()
    }

    #[test]
    fn any_range_reads_as_it_is() {
        let bytes: Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
        for (_dir, f) in files(&bytes) {
            for (at, want) in [(0, 10_000), (1, 4096), (4095, 2), (9_000, 1_000), (8_192, 512)] {
                let mut buf = vec![0; want];
                f.read_exact_at(at as u64, &mut buf).unwrap();
                assert_eq!(buf, bytes[at..at + want]);
            }
            let mut buf = [0; 100];
            assert_eq!(f.read_at(9_950, &mut buf).unwrap(), 50);
            assert_eq!(f.read_at(20_000, &mut buf).unwrap(), 0);
        }
    }

    #[test]
    fn any_range_is_written_and_nothing_around_it() {
        for (_dir, f) in files(&[9; 5_000]) {
            for (at, bytes) in [(3, 10), (512, 512), (4_999, 3), (6_000, 512), (100, 4_096)] {
                let mut want = vec![0; f.len().unwrap().max((at + bytes) as u64) as usize];
                f.read_at(0, &mut want).unwrap();
                want[at..at + bytes].fill(7);
                f.write_at(at as u64, &vec![7; bytes]).unwrap();
                let mut now = vec![0; f.len().unwrap() as usize];
                f.read_exact_at(0, &mut now).unwrap();
                assert!(now == want, "{bytes} bytes at {at}");
            }
        }
    }
}
