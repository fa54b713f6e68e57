//! The control protocol's frame: 544 bytes, always, in native byte order.
//!
//! ```text
//!  0      2        4         8                                    544
//!  │ type │ cookie │ padding │ body: one of the structures in bodies.rs │
//! ```
//!
//! Every field is read and written at the explicit offset of `control-socket.md` §3, so no
//! layout of the compiler is involved and nothing here is unsafe or allocates. Bytes that are
//! not used are sent as zero and ignored on receipt.
//!
//! A daemon calls [`validate_request`] on what it read and gets a checked [`Request`]; a client
//! builds its frame with [`Request::to_message`] and reads replies with [`Message::body`].

mod bodies;
mod device;
mod numbers;
mod rates;
mod request;
mod text;

pub use bodies::{
    BadBody, Blkif, Body, CommitStatus, ImageInfo, ListEntry, NO_PARENT, Params, Program, Response,
    StatInfo, TapdiskPid, Upgraded,
};
pub use device::{Device, DeviceOptions};
pub use numbers::{flag, kind, state, type_name};
pub use rates::{Rates, amount};
pub use request::{RefuseReason, Request, validate_request};
pub use text::{TEXT_BYTES, TEXT_LEN_MAX, Text, TextError};

/// Size of a message of any type, in bytes (§3).
pub const MESSAGE_BYTES: usize = 544;
/// Where the body starts, in bytes from the start of the message (§3).
pub const BODY_OFFSET: usize = 8;
/// Cookie that means "all VBDs" in STATS, and which clients send in LIST (§3.2).
pub const COOKIE_ALL: u16 = 0xffff;
/// Size of the log path block that follows OPEN and RESUME with [`flag::ADD_LOG`], in bytes (§5.3).
pub const LOG_PATH_BYTES: usize = TEXT_BYTES;
/// Longest key that may follow OPEN with [`flag::OPEN_ENCRYPTED`], in bytes (§5.3).
pub const KEY_BYTES_MAX: usize = 128;

/// Where the text of an ERROR reply starts (§3.1).
const REASON_OFFSET: usize = 12;

/// The bytes of a message as they are on the socket.
pub type Frame = [u8; MESSAGE_BYTES];

/// One message. It has a type and a cookie (the minor); the body is read as what the type says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Message {
    frame: Frame,
}

impl Message {
    /// A message with an empty (zero) body.
    pub fn new(kind: u16, cookie: u16) -> Message {
        let mut frame = [0; MESSAGE_BYTES];
        frame[0..2].copy_from_slice(&kind.to_ne_bytes());
        frame[2..4].copy_from_slice(&cookie.to_ne_bytes());
        Message { frame }
    }

    /// A message with `body`.
    pub fn with<B: Body>(kind: u16, cookie: u16, body: &B) -> Message {
        let mut message = Message::new(kind, cookie);
        body.write_to(&mut message.frame);
        message
    }

    /// An ERROR reply. `errno` is positive on the wire whatever sign it is given with (§3.4).
    pub fn error(cookie: u16, errno: i32) -> Message {
        let error = errno.saturating_abs();
        Message::with(kind::ERROR, cookie, &Response { error })
    }

    /// An ERROR reply with a sentence that says why, for people: ours. It stands where the original
    /// has a text that it neither writes nor reads (§3.1), and goes on to the end of the message;
    /// what has no room there is cut.
    ///
    /// ```
    /// use tap_ctl::messages::Message;
    ///
    /// let refusal = Message::refusal(3, libc::EACCES, "/a/parent lies nowhere");
    /// assert_eq!(refusal.reason().as_deref(), Some("/a/parent lies nowhere"));
    /// assert_eq!(Message::error(3, libc::EACCES).reason(), None);
    /// ```
    pub fn refusal(cookie: u16, errno: i32, reason: &str) -> Message {
        let mut message = Message::error(cookie, errno);
        // The last byte stays 0.
        let room = MESSAGE_BYTES - REASON_OFFSET - 1;
        let reason = reason.replace('\0', " ");
        let end = (0..=room.min(reason.len())).rfind(|end| reason.is_char_boundary(*end));
        let text = &reason.as_bytes()[..end.unwrap_or(0)];
        message.frame[REASON_OFFSET..][..text.len()].copy_from_slice(text);
        message
    }

    /// The sentence of a [`refusal`](Message::refusal), if it has one. It is a stranger's text:
    /// whoever shows it makes it harmless before.
    pub fn reason(&self) -> Option<String> {
        let text = &self.frame[REASON_OFFSET..];
        let text = text.split(|byte| *byte == 0).next().filter(|text| !text.is_empty())?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// The message in received bytes. Any 544 bytes are a message; see [`validate_request`].
    pub fn decode(frame: &Frame) -> Message {
        Message { frame: *frame }
    }

    /// The bytes to send.
    pub fn encode(&self) -> Frame {
        self.frame
    }

    /// The bytes to send, borrowed.
    pub fn as_bytes(&self) -> &Frame {
        &self.frame
    }

    /// Message type, one of [`kind`] if the sender knows the protocol.
    pub fn kind(&self) -> u16 {
        u16::from_ne_bytes([self.frame[0], self.frame[1]])
    }

    /// Cookie: the minor.
    pub fn cookie(&self) -> u16 {
        u16::from_ne_bytes([self.frame[2], self.frame[3]])
    }

    /// Read the body as a `B`.
    ///
    /// # Errors
    /// A string field without a terminating NUL.
    pub fn body<B: Body>(&self) -> Result<B, BadBody> {
        B::read_from(&self.frame)
    }
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "'{}' message (uuid = {})", type_name(self.kind()), self.cookie())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_is_type_cookie_padding() {
        let frame = Message::new(0x0102, 0x0304).encode();
        assert_eq!(frame.len(), 544);
        assert_eq!(frame[0..2], 0x0102u16.to_ne_bytes());
        assert_eq!(frame[2..4], 0x0304u16.to_ne_bytes());
        assert!(frame[4..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn decode_is_the_inverse_of_encode() {
        let message = Message::with(kind::PID_RSP, 7, &TapdiskPid { pid: 4711 });
        let again = Message::decode(&message.encode());
        assert_eq!(again, message);
        assert_eq!((again.kind(), again.cookie()), (kind::PID_RSP, 7));
        assert_eq!(again.body::<TapdiskPid>(), Ok(TapdiskPid { pid: 4711 }));
    }

    #[test]
    fn error_replies_are_positive() {
        for errno in [22, -22] {
            let message = Message::error(3, errno);
            assert_eq!(message.kind(), 1);
            assert_eq!(message.body::<Response>(), Ok(Response { error: 22 }));
        }
        assert_eq!(Message::error(0, i32::MIN).body(), Ok(Response { error: i32::MAX }));
    }

    #[test]
    fn debug_text_is_that_of_the_debug_option() {
        assert_eq!(
            format!("{:?}", Message::new(kind::LIST, 65535)),
            "'list' message (uuid = 65535)"
        );
    }

    /// A text of any length, with anything in it, is cut at a character.
    #[test]
    fn reasons_are_cut() {
        let long = "é".repeat(400);
        let refusal = Message::refusal(0, 1, &long);
        let reason = refusal.reason().unwrap();
        assert_eq!(reason.len(), 530);
        assert!(long.starts_with(&reason));
        assert_eq!(refusal.body(), Ok(Response { error: 1 }));
        assert_eq!(Message::refusal(0, 1, "a\0b").reason().as_deref(), Some("a b"));
        assert_eq!(Message::refusal(0, 1, ""), Message::error(0, 1));
        let foreign = Message::decode(&[0xff; MESSAGE_BYTES]);
        assert!(foreign.reason().is_some_and(|reason| !reason.is_empty()));
    }
}
