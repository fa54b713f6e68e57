//! The system calls of the NBD transport that the standard library has no safe form of: scattered
//! receive, gathered send, a descriptor received over a socket, socket buffer sizes.
//!
//! Every call is made with `MSG_DONTWAIT`, so that a descriptor that somebody else handed to us keeps
//! its own flags. Nothing here allocates.
#![allow(unsafe_code)]
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Most pieces of memory in one send (the kernel's limit is 1024).
pub(super) const PARTS_MAX: usize = 256;
/// Most text that comes along with a descriptor (control-socket.md §7).
const MESSAGE_BYTES: usize = 16384;
/// Descriptors accepted in one message; all but the first are closed.
const DESCRIPTORS_MAX: usize = 16;

/// Receives into `first`, and into `second` when `first` is full. 0 is the end of the stream.
pub(super) fn receive(
    fd: BorrowedFd<'_>,
    first: &mut [u8],
    second: &mut [u8],
) -> io::Result<usize> {
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
pub(super) fn send<'a>(
    fd: BorrowedFd<'_>,
    parts: impl Iterator<Item = &'a [u8]>,
) -> io::Result<usize> {
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
    // SAFETY: the first `count` places of `list` were written above and name slices borrowed for 'a,
    // which the kernel only reads; `list` outlives the call.
    outcome(unsafe { libc::sendmsg(fd.as_raw_fd(), &message, flags) })
}

/// What arrived at a descriptor receiver.
#[derive(Debug)]
pub(super) enum Passed {
    /// A descriptor.
    Descriptor(OwnedFd),
    /// Text, or the end of the stream, without a descriptor.
    Nothing,
}

/// One message with a descriptor in it. Surplus descriptors are closed.
pub(super) fn receive_descriptor(fd: BorrowedFd<'_>) -> io::Result<Passed> {
    // u64s, so that the control headers are aligned.
    let mut control = [0u64; 4 + DESCRIPTORS_MAX / 2];
    let mut text = [0u8; MESSAGE_BYTES];
    let mut part = libc::iovec { iov_base: text.as_mut_ptr().cast(), iov_len: text.len() };
    let mut message = empty_message();
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    let flags = libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: `message` names `part` and `control`, both exclusively ours and alive during the call.
    outcome(unsafe { libc::recvmsg(fd.as_raw_fd(), &mut message, flags) })?;
    let mut first = None;
    // SAFETY: `message` was filled in by the kernel and its control buffer is alive and aligned.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR give whole headers inside the control buffer.
        let kind = unsafe { *header };
        if kind.cmsg_level == libc::SOL_SOCKET && kind.cmsg_type == libc::SCM_RIGHTS {
            // SAFETY: `header` is a SCM_RIGHTS message that the kernel wrote.
            unsafe { adopt(header, kind.cmsg_len as usize, &mut first) };
        }
        // SAFETY: as for CMSG_FIRSTHDR; `header` belongs to `message`.
        header = unsafe { libc::CMSG_NXTHDR(&message, header) };
    }
    Ok(first.map_or(Passed::Nothing, Passed::Descriptor))
}

/// Takes ownership of the descriptors of one control message; keeps the first ever seen.
///
/// # Safety
/// `header` is a SCM_RIGHTS message of `bytes` bytes written by the kernel, read only once.
unsafe fn adopt(header: *const libc::cmsghdr, bytes: usize, first: &mut Option<OwnedFd>) {
    // SAFETY: CMSG_LEN is arithmetic only.
    let head = unsafe { libc::CMSG_LEN(0) } as usize;
    for i in 0..bytes.saturating_sub(head) / size_of::<RawFd>() {
        // SAFETY: the i-th descriptor lies inside the message, whose length the kernel wrote.
        let raw = unsafe { libc::CMSG_DATA(header).cast::<RawFd>().add(i).read_unaligned() };
        // SAFETY: the kernel made this descriptor for us just now; nobody else owns it.
        let owned = unsafe { OwnedFd::from_raw_fd(raw) };
        first.get_or_insert(owned);
    }
}

/// A buffer of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Buffer {
    Receive,
    Send,
}

/// Asks for a socket buffer of that size; what the kernel refuses stays as it is.
pub(super) fn size_buffer(fd: BorrowedFd<'_>, buffer: Buffer, bytes: i32) {
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
pub(super) fn untaken(fd: BorrowedFd<'_>) -> i32 {
    let mut bytes = 0;
    // SAFETY: TIOCOUTQ (SIOCOUTQ on a socket) writes one int, which outlives the call.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &mut bytes) };
    if done == 0 { bytes } else { 0 }
}

fn empty_message() -> libc::msghdr {
    // SAFETY: msghdr is plain data; all zeros is a message without name, memory or control data.
    unsafe { std::mem::zeroed() }
}

fn outcome(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
