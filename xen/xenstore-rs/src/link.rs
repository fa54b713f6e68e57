//! The two ways to xenstored: its socket, and the kernel's device, which every domain has.

use crate::error::Error;
use mio::event::Source;
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// O_NONBLOCK of Linux on the platforms that Xen runs on (asm-generic/fcntl.h).
const O_NONBLOCK: i32 = 0o4000;

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// xenstored's socket, in the domain that it runs in.
    Socket(PathBuf),
    /// The device, in any domain.
    Device(PathBuf),
}

impl Endpoint {
    /// The usual places, the most likely first. `XENSTORED_PATH` names a socket or a device
    /// instead, as it does for Xen's own library.
    pub fn usual() -> Vec<Endpoint> {
        if let Some(path) = std::env::var_os("XENSTORED_PATH").filter(|path| !path.is_empty()) {
            let path = PathBuf::from(path);
            return vec![if path.starts_with("/dev") || path.starts_with("/proc") {
                Endpoint::Device(path)
            } else {
                Endpoint::Socket(path)
            }];
        }
        vec![
            Endpoint::Socket("/run/xenstored/socket".into()),
            Endpoint::Socket("/var/run/xenstored/socket".into()),
            Endpoint::Device("/dev/xen/xenbus".into()),
        ]
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        match self {
            Endpoint::Socket(path) | Endpoint::Device(path) => path,
        }
    }
}

/// An open connection.
#[derive(Debug)]
pub enum Link {
    /// A stream.
    Socket(mio::net::UnixStream),
    /// The device, opened so that it does not block.
    Device(File),
}

impl Link {
    /// Connect to the first of these that works.
    ///
    /// # Errors
    /// [`Error::Absent`] with what was wrong with each.
    pub fn open(places: &[Endpoint]) -> Result<Link, Error> {
        let mut tried = Vec::new();
        for place in places {
            match Link::open_one(place) {
                Ok(link) => return Ok(link),
                Err(error) => tried.push(format!("{} ({error})", place.path().display())),
            }
        }
        Err(Error::Absent { tried: tried.join(", ") })
    }

    fn open_one(place: &Endpoint) -> io::Result<Link> {
        match place {
            Endpoint::Socket(path) => mio::net::UnixStream::connect(path).map(Link::Socket),
            Endpoint::Device(path) => {
                let mut options = File::options();
                options.read(true).write(true).custom_flags(O_NONBLOCK);
                options.open(path).map(Link::Device)
            }
        }
    }
}

impl Read for Link {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Link::Socket(socket) => socket.read(buffer),
            Link::Device(device) => device.read(buffer),
        }
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Link::Socket(socket) => socket.write(bytes),
            Link::Device(device) => device.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Source for Link {
    fn register(&mut self, registry: &Registry, token: Token, what: Interest) -> io::Result<()> {
        match self {
            Link::Socket(socket) => socket.register(registry, token, what),
            Link::Device(device) => SourceFd(&device.as_raw_fd()).register(registry, token, what),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, what: Interest) -> io::Result<()> {
        match self {
            Link::Socket(socket) => socket.reregister(registry, token, what),
            Link::Device(device) => SourceFd(&device.as_raw_fd()).reregister(registry, token, what),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Link::Socket(socket) => socket.deregister(registry),
            Link::Device(device) => SourceFd(&device.as_raw_fd()).deregister(registry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_xen_the_error_says_where_it_looked() {
        let places = [
            Endpoint::Socket("/nowhere/socket".into()),
            Endpoint::Device("/nowhere/xenbus".into()),
        ];
        let error = Link::open(&places).expect_err("nothing there").to_string();
        assert!(error.starts_with("there is no xenstore here, is this Xen?"), "{error}");
        for place in places {
            assert!(error.contains(place.path().to_str().expect("text")), "{error}");
        }
    }
}
