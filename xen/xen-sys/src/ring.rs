//! A shared ring: the header, and the macros of Xen's `public/io/ring.h` as functions.
//!
//! Indices are free-running u32s; all arithmetic wraps. The other end may put any number there at
//! any time, so every function gives a defined answer for every input.
use std::mem::{offset_of, size_of};

use crate::PAGE_BYTES;

/// The beginning of a shared ring; entries follow.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Header {
    /// Requests that the front end has put.
    pub req_prod: u32,
    /// The front end notifies when it puts the request before this one.
    pub req_event: u32,
    /// Responses that the back end has put.
    pub rsp_prod: u32,
    /// The back end notifies when it puts the response before this one.
    pub rsp_event: u32,
    /// Unused.
    pub pad: [u8; 48],
}

const _: () = {
    assert!(size_of::<Header>() == 64 && offset_of!(Header, req_event) == 4);
    assert!(offset_of!(Header, rsp_prod) == 8 && offset_of!(Header, rsp_event) == 12);
};

/// Entries of a ring of `pages` pages (`__RING_SIZE`): the largest power of two that fits.
pub const fn entries(pages: u32, entry_bytes: u32) -> u32 {
    let room = pages * PAGE_BYTES as u32 - size_of::<Header>() as u32;
    let fit = room / entry_bytes;
    if fit == 0 { 0 } else { 1 << fit.ilog2() }
}

/// Requests that can be taken (`RING_HAS_UNCONSUMED_REQUESTS`).
pub const fn unconsumed(req_prod: u32, req_cons: u32) -> u32 {
    req_prod.wrapping_sub(req_cons)
}

/// Whether the front end claims more requests than there is room for
/// (`RING_REQUEST_PROD_OVERFLOW`): its ring cannot be trusted any more. `rsp_prod` is our own
/// count.
pub const fn is_overflown(req_prod: u32, rsp_prod: u32, entries: u32) -> bool {
    req_prod.wrapping_sub(rsp_prod) > entries
}

/// Whether putting responses `old` to `new` passes the one that the front end waits for
/// (`RING_PUSH_RESPONSES_AND_CHECK_NOTIFY`).
pub const fn must_notify(old: u32, new: u32, rsp_event: u32) -> bool {
    new.wrapping_sub(rsp_event) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_have_the_entries_that_front_ends_count_on() {
        for (pages, want) in [(1, 32), (2, 64), (4, 128), (8, 256)] {
            assert_eq!(entries(pages, 112), want);
            assert_eq!(entries(pages, 108), want);
        }
        assert_eq!(entries(1, 5000), 0);
    }

    #[test]
    fn indices_wrap() {
        assert_eq!(unconsumed(2, u32::MAX), 3);
        assert!(!is_overflown(30, u32::MAX - 1, 32));
        assert!(is_overflown(31, u32::MAX - 1, 32));
        assert!(is_overflown(5, 6, 32), "a producer index that goes back");
    }

    #[test]
    fn a_notification_is_due_when_the_awaited_response_is_passed() {
        assert!(must_notify(0, 1, 1));
        assert!(must_notify(0, 5, 3));
        assert!(!must_notify(0, 5, 6));
        assert!(!must_notify(3, 5, 3), "told before");
        assert!(!must_notify(5, 5, 5), "nothing was put");
        assert!(must_notify(u32::MAX, 2, 0));
    }
}
