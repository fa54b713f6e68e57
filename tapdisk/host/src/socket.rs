//! Calls on sockets that the standard library has no safe form of: scattered receive, gathered
//! send, buffer sizes, a wait for one of them; a listener with a mode, and who is at the other end.
//!
//! Sending and receiving never wait (`MSG_DONTWAIT`), so that a descriptor that somebody else
//! handed to us keeps its own flags. Nothing here allocates.
#![allow(unsafe_code)]
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

/// Most pieces of memory in one send (the kernel's limit is 1024).
pub const PARTS_MAX: usize = 256;

/// Receives into `first`, and into `second` when `first` is full. 0 is the end of the stream.
pub fn receive(fd: BorrowedFd<'_>, first: &mut [u8], second: &mut [u8]) -> io::Result<usize> {
    let mut parts = [
        libc::iovec { iov_base: first.as_mut_ptr().cast(), iov_len: first.len() },
        libc::iovec { iov_base: second.as_mut_ptr().cast(), iov_len: second.len() },
    ];
    let mut message = empty_message();
    message.msg_iov = parts.as_mut_ptr();
    message.msg_iovlen = parts.len() as _;
    // SAFETY: `message` names `parts`, which names two exclusively borrowed slices; all outlive the
    // call, and no name or control buffer is given.
    let n = unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, libc::MSG_DONTWAIT) };
    outcome(n)
}

/// Sends the first [`PARTS_MAX`] of `parts`, in order, as far as the socket takes them.
pub fn send<'a>(fd: BorrowedFd<'_>, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<usize> {
    let mut list = [const { MaybeUninit::<libc::iovec>::uninit() }; PARTS_MAX];
    let mut count = 0;
    for (place, part) in list.iter_mut().zip(parts) {
        let base = part.as_ptr().cast_mut().cast();
        place.write(libc::iovec { iov_base: base, iov_len: part.len() });
        count += 1;
    }
    let mut message = empty_message();
    message.msg_iov = list.as_mut_ptr().cast();
    message.msg_iovlen = count as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the first `count` places of `list` were written above and name slices borrowed for
    // 'a, which the kernel only reads; `list` outlives the call.
    outcome(unsafe { libc::sendmsg(fd.as_raw_fd(), &message, flags) })
}

/// Connections that may wait at a listener; the kernel's own limit is often less.
const BACKLOG: libc::c_int = 1024;

/// A listener at `path` that does not block. The file has mode 0600 from the moment on it is there:
/// Linux gives it the mode of the unbound socket, less the umask, so there is nothing to change
/// afterwards.
pub fn listen_privately(path: &Path) -> io::Result<UnixListener> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: zeros are a valid address; socket takes numbers and gives a descriptor that nobody
    // else owns.
    let (mut to, fd) = unsafe {
        let fd = number(libc::socket(libc::AF_UNIX, kind, 0))?;
        (std::mem::zeroed::<libc::sockaddr_un>(), OwnedFd::from_raw_fd(fd))
    };
    let name = path.as_os_str().as_bytes();
    if name.contains(&0) || name.is_empty() || name.len() >= to.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    to.sun_family = libc::AF_UNIX as libc::sa_family_t;
    to.sun_path.iter_mut().zip(name).for_each(|(to, byte)| *to = *byte as libc::c_char);
    let bytes = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the descriptor is owned just above; the address is a whole sockaddr_un that outlives
    // the call.
    unsafe {
        number(libc::fchmod(fd.as_raw_fd(), 0o600))?;
        number(libc::bind(fd.as_raw_fd(), (&raw const to).cast(), bytes))?;
    }
    // SAFETY: takes numbers only.
    match number(unsafe { libc::listen(fd.as_raw_fd(), BACKLOG) }) {
        Ok(_) => Ok(UnixListener::from(fd)),
        Err(error) => {
            let _ = std::fs::remove_file(path);
            Err(error)
        }
    }
}

/// Who connected this stream, or made it.
pub fn peer(fd: BorrowedFd<'_>) -> io::Result<(u32, i32)> {
    let mut who = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut bytes = size_of::<libc::ucred>() as libc::socklen_t;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    let to = (&raw mut who).cast();
    // SAFETY: the kernel writes at most `bytes` bytes to `who`; both outlive the call.
    number(unsafe { libc::getsockopt(fd.as_raw_fd(), level, option, to, &raw mut bytes) })?;
    Ok((who.uid, who.pid))
}

/// A buffer of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// Of what is received.
    Receive,
    /// Of what is sent.
    Send,
}

/// Asks for a socket buffer of that size; what the kernel refuses stays as it is.
pub fn size_buffer(fd: BorrowedFd<'_>, buffer: Buffer, bytes: i32) {
    let option = match buffer {
        Buffer::Receive => libc::SO_RCVBUF,
        Buffer::Send => libc::SO_SNDBUF,
    };
    // SAFETY: the option's value is an int that outlives the call, and its size is given.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(&bytes).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
}

/// Bytes (with overhead) that were sent and that the peer has not taken yet; 0 where nobody knows.
pub fn untaken(fd: BorrowedFd<'_>) -> i32 {
    let mut bytes = 0;
    // SAFETY: TIOCOUTQ (SIOCOUTQ on a socket) writes one int, which outlives the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    if done == 0 { bytes } else { 0 }
}

/// Something that a descriptor can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ready {
    /// Bytes to receive, or the end of the stream.
    Receive,
    /// Room to send.
    Send,
}

/// Waits until a descriptor is ready; false when the time is over first. Control path only.
///
/// # Errors
/// Those of `poll(2)`; Interrupted after a signal.
pub fn wait(fd: BorrowedFd<'_>, ready: Ready, limit: Duration) -> io::Result<bool> {
    let events = match ready {
        Ready::Receive => libc::POLLIN,
        Ready::Send => libc::POLLOUT,
    };
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // Rounded up, so that the last wait is not a busy one.
    let ms = i32::try_from(limit.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: one pollfd, which outlives the call.
    let n = unsafe { libc::poll(&raw mut poll, 1, ms) };
    outcome(n as isize).map(|n| n > 0)
}

/// Ends both directions. The peer sees it even while somebody else holds a copy of the descriptor.
pub fn shut_down(fd: BorrowedFd<'_>) {
    // SAFETY: takes numbers only. An error means that there is no connection, which is what we
    // want.
    unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_RDWR) };
}

fn empty_message() -> libc::msghdr {
    // SAFETY: msghdr is plain data; all zeros is a message without name, memory or control data.
    unsafe { std::mem::zeroed() }
}

fn number(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn outcome(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
