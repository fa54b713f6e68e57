//! Blocking access to the bytes of an image, for opening, closing and the offline tools.
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Zeros that are written at a time.
const ZEROS_BYTES: u64 = 1 << 20;

/// A file, a block device, or memory.
pub trait Storage {
    /// Reads at an offset; fewer bytes than asked only at the end.
    ///
    /// # Errors
    /// Those of the device.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `buf` at an offset.
    ///
    /// # Errors
    /// Those of the device.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;
    /// Size in bytes.
    ///
    /// # Errors
    /// Those of the device.
    fn len(&self) -> io::Result<u64>;
    /// Whether it has no bytes.
    ///
    /// # Errors
    /// Those of [`Storage::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends a regular file; nothing on a device.
    ///
    /// # Errors
    /// Those of the device.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Waits until everything is on the disk.
    ///
    /// # Errors
    /// Those of the device.
    fn sync(&self) -> io::Result<()>;
    /// Makes a range read as zeros. With `punch` its space may be given back; the length of the
    /// file does not change by more than the range.
    ///
    /// # Errors
    /// Those of the device.
    fn zero_at(&self, offset: u64, bytes: u64, punch: bool) -> io::Result<()> {
        let _ = punch;
        write_zeros(self, offset, bytes)
    }
    /// Gives the whole pages of a range back that nobody needs any more, where that can be done;
    /// what is not there any more reads as zeros.
    fn give_back(&self, from: u64, to: u64) {
        let _ = (from, to);
    }
    /// Whether this is a block device: its size is fixed, a footer lies in its last sector.
    fn is_device(&self) -> bool;

    /// An extended attribute, where files have those: `None` if this one has none of that name, or
    /// is no file.
    ///
    /// # Errors
    /// Those of the file system; ERANGE for a value of more than 255 bytes.
    fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let _ = name;
        Ok(None)
    }
    /// Stores an extended attribute.
    ///
    /// # Errors
    /// Those of the file system; EOPNOTSUPP where there are none.
    fn set_attribute(&self, name: &str, value: &[u8]) -> io::Result<()> {
        let _ = (name, value);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Reads exactly; a short read is `UnexpectedEof`.
    ///
    /// # Errors
    /// Those of the device, or `UnexpectedEof`.
    fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if self.read_at(offset, buf)? < buf.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }
}

fn write_zeros(to: &(impl Storage + ?Sized), offset: u64, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; bytes.min(ZEROS_BYTES) as usize];
    let mut done = 0;
    while done < bytes {
        let now = (bytes - done).min(ZEROS_BYTES);
        to.write_at(offset + done, &zeros[..now as usize])?;
        done += now;
    }
    Ok(())
}

impl Storage for File {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            match FileExt::read_at(self, &mut buf[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.write_all_at(buf, offset)
    }
    fn len(&self) -> io::Result<u64> {
        if !self.is_device() {
            return Ok(self.metadata()?.len());
        }
        // Only the position moves, and nothing here uses the position.
        use std::io::{Seek, SeekFrom};
        let mut other: &File = self;
        other.seek(SeekFrom::End(0))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        if self.is_device() { Ok(()) } else { File::set_len(self, len) }
    }
    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
    fn zero_at(&self, offset: u64, bytes: u64, punch: bool) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let way = if punch { FallocateFlags::PUNCH_HOLE } else { FallocateFlags::ZERO_RANGE };
        match fallocate(self, way | FallocateFlags::KEEP_SIZE, offset, bytes) {
            Ok(()) => Ok(()),
            // Not every file system and device can: then zeros are written.
            Err(_) => write_zeros(self, offset, bytes),
        }
    }
    fn give_back(&self, from: u64, to: u64) {
        use rustix::fs::{FallocateFlags, fallocate};
        const PAGE: u64 = 4096;
        let (from, to) = (from.next_multiple_of(PAGE), to / PAGE * PAGE);
        if from < to && !self.is_device() {
            let way = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            // Where it cannot be done the space comes back when the file is cut.
            let _ = fallocate(self, way, from, to - from);
        }
    }
    fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        use rustix::io::Errno;
        let mut value = vec![0; 255];
        match rustix::fs::fgetxattr(self, name, &mut value) {
            Ok(bytes) => {
                value.truncate(bytes);
                Ok(Some(value))
            }
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }
    fn set_attribute(&self, name: &str, value: &[u8]) -> io::Result<()> {
        Ok(rustix::fs::fsetxattr(self, name, value, rustix::fs::XattrFlags::empty())?)
    }
    fn is_device(&self) -> bool {
        use std::os::unix::fs::FileTypeExt;
        self.metadata().is_ok_and(|m| m.file_type().is_block_device())
    }
}

/// An image in memory, for tests and the simulator.
#[derive(Debug, Default)]
pub struct MemStorage {
    bytes: std::cell::RefCell<Vec<u8>>,
    device: bool,
}

impl MemStorage {
    /// Takes `bytes` as the contents of a file, or of a device of that size.
    pub fn new(bytes: Vec<u8>, device: bool) -> MemStorage {
        MemStorage { bytes: bytes.into(), device }
    }

    /// Gives the bytes back.
    pub fn into_inner(self) -> Vec<u8> {
        self.bytes.into_inner()
    }
}

impl Storage for MemStorage {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let bytes = self.bytes.borrow();
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let n = buf.len().min(bytes.len() - from);
        buf[..n].copy_from_slice(&bytes[from..from + n]);
        Ok(n)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut bytes = self.bytes.borrow_mut();
        let from = usize::try_from(offset).map_err(io::Error::other)?;
        let end = from.checked_add(buf.len()).ok_or(io::ErrorKind::InvalidInput)?;
        if end > bytes.len() {
            if self.device {
                return Err(io::ErrorKind::StorageFull.into());
            }
            bytes.resize(end, 0);
        }
        bytes[from..end].copy_from_slice(buf);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.borrow().len() as u64)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        if !self.device {
            self.bytes.borrow_mut().resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        }
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn is_device(&self) -> bool {
        self.device
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_made_zero_in_a_file_whose_length_stays() {
        for punch in [true, false] {
            let mut file = tempfile::tempfile().unwrap();
            io::Write::write_all(&mut file, &[7; 20_000]).unwrap();
            file.zero_at(512, 16_384, punch).unwrap();
            let mut back = vec![1; 20_000];
            Storage::read_exact_at(&file, 0, &mut back).unwrap();
            assert!(back[..512].iter().chain(&back[16_896..]).all(|b| *b == 7));
            assert!(back[512..16_896].iter().all(|b| *b == 0));
            assert_eq!(Storage::len(&file).unwrap(), 20_000);
        }
    }
}
