//! What an image is in: a file or device, or an NBD server's export.
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use image::Storage;

use super::DirectFile;
use super::nbd::RemoteImage;
use disk::align::alignment_of;
use disk::remote::Peer;

/// Where the bytes of an image are.
#[derive(Debug)]
pub enum Medium {
    /// In a file or on a block device.
    Local(DirectFile),
    /// With a server.
    Remote(RemoteImage),
}

impl Medium {
    /// The descriptor that the disk engine works on; -1 for what is elsewhere.
    pub fn raw_fd(&self) -> RawFd {
        match self {
            Medium::Local(file) => file.file().as_raw_fd(),
            Medium::Remote(_) => -1,
        }
    }

    /// The server, if it is elsewhere.
    pub fn peer(&self) -> Option<Peer> {
        match self {
            Medium::Local(_) => None,
            Medium::Remote(remote) => Some(remote.peer()),
        }
    }

    /// Whether what is discarded goes back to a pool and reads as zeros.
    pub fn is_thin(&self) -> bool {
        match self {
            Medium::Local(file) => image::is_thin(file.file()),
            Medium::Remote(_) => false,
        }
    }

    /// What offset and length of operations must be multiples of, in bytes.
    pub fn alignment(&self) -> u32 {
        match self {
            Medium::Local(file) => alignment_of(file.file()),
            Medium::Remote(remote) => remote.peer().offer.unit,
        }
    }
}

/// Blocking access. Of a remote only the size and a flush: its bytes are the disk engine's alone.
impl Storage for Medium {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Medium::Local(file) => file.read_at(offset, buf),
            Medium::Remote(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        match self {
            Medium::Local(file) => file.write_at(offset, buf),
            Medium::Remote(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn len(&self) -> io::Result<u64> {
        match self {
            Medium::Local(file) => file.len(),
            Medium::Remote(remote) => Ok(remote.sectors() * 512),
        }
    }

    fn give_back(&self, from: u64, to: u64) {
        if let Medium::Local(file) = self {
            file.give_back(from, to);
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match self {
            Medium::Local(file) => file.set_len(len),
            Medium::Remote(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    fn attribute(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match self {
            Medium::Local(file) => file.attribute(name),
            Medium::Remote(_) => Ok(None),
        }
    }

    fn sync(&self) -> io::Result<()> {
        match self {
            Medium::Local(file) => file.sync(),
            Medium::Remote(remote) => remote.flush(),
        }
    }

    /// An export's size is fixed, like a device's, and what is discarded is given back, not zeroed.
    fn is_device(&self) -> bool {
        match self {
            Medium::Local(file) => file.is_device(),
            Medium::Remote(_) => true,
        }
    }
}
