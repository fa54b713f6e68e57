//! `nbd:` images: from an address to a server that is ready for requests, and the farewell.
//!
//! ```text
//!   address ─► connect │ passed descriptor ─► greeting ─► Offer ─► disk::remote … DISC ─► closed │ put back
//! ```
//! All of it waits, for ten seconds at most, on a worker. Whatever fails is EPERM, as the original
//! has it (spec/operations.md §5); the sentence says what it was.
mod address;
mod greeting;
mod talk;
#[cfg(test)]
mod tests;

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::OpenError;
use crate::receiver::Stash;
use address::{Address, Endpoint};
use disk::remote::{Ended, Offer, Peer};
use host::socket;
use nbd_proto::{RequestHead, SIMPLE_BYTES, SimpleReply, command, errno_of};
use talk::Talk;

/// For connecting and negotiating, and for the last flush (spec/drivers.md §6.10).
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two tries to connect to a server whose queue is full.
const BETWEEN_TRIES: Duration = Duration::from_millis(10);

/// A disk that a server has.
#[derive(Debug)]
pub struct RemoteImage {
    fd: Arc<OwnedFd>,
    offer: Offer,
    ended: Ended,
    /// Where a passed descriptor goes back to.
    home: Option<Home>,
}

#[derive(Debug)]
struct Home {
    stash: Arc<Stash>,
    name: Vec<u8>,
}

impl RemoteImage {
    /// Connects to `path`, the part of the image's name behind `nbd:`, and negotiates.
    ///
    /// # Errors
    /// EPERM, and EROFS for an export that is not for writing.
    pub fn open(path: &Path, writable: bool, stash: &Arc<Stash>) -> Result<RemoteImage, OpenError> {
        RemoteImage::open_within(PATIENCE, path, writable, stash)
    }

    fn open_within(
        limit: Duration,
        path: &Path,
        writable: bool,
        stash: &Arc<Stash>,
    ) -> Result<RemoteImage, OpenError> {
        let refuse = |errno: i32, why: &str| {
            OpenError::new(errno, format!("nbd:{}: {why}", show::path(path)))
        };
        let until = Instant::now() + limit;
        let address = Address::parse(path.as_os_str().as_bytes());
        let (fd, home) =
            connect(&address.endpoint, until, stash).map_err(|why| refuse(libc::EPERM, &why))?;
        let mut talk = Talk::new(fd, until);
        let offer = greeting::negotiate(&mut talk, &address.export);
        let (fd, touched) = talk.into_parts();
        let offer = offer.map_err(|why| {
            // Nothing was said yet: the next try may find the greeting.
            if let (false, Some(home)) = (touched, &home) {
                home.take_back(&fd);
            }
            refuse(libc::EPERM, &why)
        })?;
        // From here on the end of it is a farewell.
        let image = RemoteImage { fd: Arc::new(fd), offer, ended: Ended::default(), home };
        if writable && offer.is_read_only() {
            return Err(refuse(libc::EROFS, "the export is for reading only: open it with -R"));
        }
        Ok(image)
    }

    /// Size in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        let unit = u64::from(self.offer.unit);
        self.offer.bytes / unit * (unit / 512)
    }

    /// What the disk engine works on.
    pub fn peer(&self) -> Peer {
        Peer { fd: Arc::clone(&self.fd), offer: self.offer, ended: self.ended.clone() }
    }

    /// Waits until everything is on the server's disk. Nothing is in flight. A connection that has
    /// ended has failed its requests already.
    ///
    /// # Errors
    /// What the server says, or that it says nothing.
    pub fn flush(&self) -> io::Result<()> {
        const COOKIE: u64 = u64::from_be_bytes(*b"farewell");
        if self.ended.is() || !self.offer.can_flush() {
            return Ok(());
        }
        let mut talk = Talk::new(Arc::clone(&self.fd), Instant::now() + PATIENCE);
        let answer = talk
            .send(&request(command::FLUSH, COOKIE))
            .and_then(|()| talk.receive::<SIMPLE_BYTES>());
        let reply = answer.as_ref().ok().and_then(SimpleReply::parse);
        match reply.filter(|reply| reply.cookie == COOKIE) {
            Some(SimpleReply { error: 0, .. }) => Ok(()),
            Some(reply) => match errno_of(reply.error) {
                // Announced, and then not there.
                libc::EINVAL | libc::EOPNOTSUPP => Ok(()),
                errno => Err(io::Error::from_raw_os_error(errno)),
            },
            None => {
                self.ended.set();
                Err(answer.err().unwrap_or_else(|| io::Error::from_raw_os_error(libc::EPROTO)))
            }
        }
    }
}

impl Drop for RemoteImage {
    /// Says goodbye. On a passed descriptor the server then greets anew, for the next open.
    fn drop(&mut self) {
        if self.ended.is() {
            return;
        }
        let farewell = request(command::DISC, 0);
        let sent = socket::send(self.fd.as_fd(), [&farewell[..]].into_iter());
        if let (Ok(_), Some(home)) = (sent, &self.home) {
            home.take_back(&self.fd);
        }
    }
}

impl Home {
    fn take_back(&self, fd: &OwnedFd) {
        // Without a descriptor left, or a place, the next open says that there is none.
        if let Ok(fd) = fd.try_clone() {
            let _ = self.stash.put_back(&self.name, fd);
        }
    }
}

fn request(command: u16, cookie: u64) -> [u8; nbd_proto::REQUEST_BYTES] {
    RequestHead { flags: 0, command, cookie, offset: 0, bytes: 0 }.bytes()
}

fn connect(
    endpoint: &Endpoint,
    until: Instant,
    stash: &Arc<Stash>,
) -> Result<(OwnedFd, Option<Home>), String> {
    match endpoint {
        Endpoint::Unix(path) => Ok((unix(path, until)?, None)),
        Endpoint::Tcp(address) => {
            let left = until.saturating_duration_since(Instant::now());
            let stream = TcpStream::connect_timeout(address, left);
            let stream = stream.map_err(|e| format!("cannot connect to {address}: {e}"))?;
            stream.set_nodelay(true).map_err(|e| format!("cannot set TCP_NODELAY: {e}"))?;
            Ok((stream.into(), None))
        }
        Endpoint::Passed(name) => match stash.take(name) {
            Some(fd) => Ok((fd, Some(Home { stash: Arc::clone(stash), name: name.clone() }))),
            None => Err(
                "this is neither the absolute path of a socket nor IP:PORT, and no descriptor of \
                         this name was passed to the nbdclient socket"
                    .into(),
            ),
        },
    }
}

fn unix(path: &Path, until: Instant) -> Result<OwnedFd, String> {
    loop {
        match mio::net::UnixStream::connect(path) {
            Ok(stream) => return Ok(stream.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                std::thread::sleep(BETWEEN_TRIES);
            }
            Err(e) => return Err(format!("cannot connect to {}: {e}", show::path(path))),
        }
    }
}
