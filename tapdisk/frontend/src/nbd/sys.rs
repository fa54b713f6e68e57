//! The system calls of the NBD frontend: those on connected sockets ([`host::socket`]), and a
//! descriptor received over one. Nothing here waits or allocates.
#![allow(unsafe_code)]
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

pub(super) use host::socket::{Buffer, receive, send, size_buffer, untaken};

/// Most text that comes along with a descriptor (control-socket.md §7).
const MESSAGE_BYTES: usize = 16384;
/// Descriptors accepted in one message; all but the first are closed.
const DESCRIPTORS_MAX: usize = 16;

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
    // SAFETY: `message` names `part` and `control`, both exclusively ours and alive during the
    // call.
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

fn empty_message() -> libc::msghdr {
    // SAFETY: msghdr is plain data; all zeros is a message without name, memory or control data.
    unsafe { std::mem::zeroed() }
}

fn outcome(n: isize) -> io::Result<usize> {
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
