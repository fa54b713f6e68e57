//! A request as it comes in: the message, then what OPEN and RESUME send after it. Pure, so that
//! any fragmentation gives the same result.
use std::sync::Arc;

use tap_ctl::messages::{
    Frame, KEY_BYTES_MAX, LOG_PATH_BYTES, MESSAGE_BYTES, Message, Params, Request, TEXT_BYTES,
    Text, flag, validate_request,
};

use vhd_rs::secret::Bytes;

use crate::vbd::Extra;

/// Bytes of the longest request: message, log path, length of the key, key.
pub const REQUEST_BYTES_MAX: usize = MESSAGE_BYTES + LOG_PATH_BYTES + 1 + KEY_BYTES_MAX;

/// What the bytes so far are.
pub enum Parsed {
    /// The beginning of a request that has at least this many bytes.
    More(usize),
    /// A request.
    Request(Box<(Request, Extra)>),
    /// Something that is refused, with this reply.
    Refused(Box<Message>),
}

/// Looks at what has come so far (spec/control-socket.md §3, §5.3).
pub fn parse(bytes: &[u8]) -> Parsed {
    let Some(frame) = bytes.first_chunk::<MESSAGE_BYTES>() else {
        return Parsed::More(MESSAGE_BYTES);
    };
    // Refused before it reaches a handler: the cookie is 0 (§3.4).
    let request = match validate_request(frame as &Frame) {
        Ok(request) => request,
        Err(reason) => return refused(0, &reason.to_string()),
    };
    let (params, may_have_key) = match &request {
        Request::Open { params, .. } => (params, true),
        Request::Resume { params, .. } => (params, false),
        _ => return Parsed::Request(Box::new((request, Extra::default()))),
    };
    match extra(params, may_have_key, &bytes[MESSAGE_BYTES..]) {
        Ok(extra) => Parsed::Request(Box::new((request, extra))),
        Err(Short(bytes)) => Parsed::More(MESSAGE_BYTES + bytes),
        Err(Bad(what)) => refused(request.cookie(), what),
    }
}

fn refused(cookie: u16, reason: &str) -> Parsed {
    Parsed::Refused(Box::new(Message::refusal(cookie, libc::EINVAL, reason)))
}

enum Fault {
    /// At least this many bytes are needed.
    Short(usize),
    /// This is wrong.
    Bad(&'static str),
}
use Fault::{Bad, Short};

fn extra(params: &Params, may_have_key: bool, bytes: &[u8]) -> Result<Extra, Fault> {
    let mut extra = Extra::default();
    let mut rest = bytes;
    if params.has(flag::ADD_LOG) {
        let field = rest.first_chunk::<TEXT_BYTES>().ok_or(Short(LOG_PATH_BYTES))?;
        extra.log_path = Some(
            Text::from_field(field)
                .ok_or(Bad("the path of the changed-block log (-C) has no NUL in its 256 bytes"))?,
        );
        rest = &rest[LOG_PATH_BYTES..];
    }
    if may_have_key && params.has(flag::OPEN_ENCRYPTED) {
        let before = bytes.len() - rest.len();
        let (&count, key) = rest.split_first().ok_or(Short(before + 1))?;
        let count = usize::from(count);
        if count == 0 || count > KEY_BYTES_MAX {
            return Err(Bad("a key is 32 or 64 bytes long"));
        }
        let key = key.get(..count).ok_or(Short(before + 1 + count))?;
        extra.key = Some(Arc::new(Bytes::copy_of(key)));
    }
    Ok(extra)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tap_ctl::messages::{Response, kind};

    fn open(flags: u32, after: &[u8]) -> Vec<u8> {
        let params = Params { flags, path: Text::new(b"vhd:/x").unwrap(), ..Params::default() };
        let mut bytes = Message::with(kind::OPEN, 3, &params).encode().to_vec();
        bytes.extend_from_slice(after);
        bytes
    }

    /// Feeds one byte after the other; checks that no more is asked for than is there.
    fn whole(bytes: &[u8]) -> Parsed {
        for n in 0..bytes.len() {
            match parse(&bytes[..n]) {
                Parsed::More(want) => assert!(want > n && want <= bytes.len(), "{want} at {n}"),
                _ => panic!("a request of {} bytes was taken at {n}", bytes.len()),
            }
        }
        parse(bytes)
    }

    #[test]
    fn a_message_alone_is_a_request() {
        let Parsed::Request(request) = whole(&Message::new(kind::PID, 0).encode()) else {
            panic!("a request");
        };
        assert!(*request == (Request::Pid, Extra::default()));
    }

    #[test]
    fn log_path_and_key_follow_the_message() {
        let mut after = b"/log".to_vec();
        after.resize(LOG_PATH_BYTES, 0);
        after.push(32);
        after.extend([7; 32]);
        let bytes = open(flag::ADD_LOG | flag::OPEN_ENCRYPTED, &after);
        let Parsed::Request(request) = whole(&bytes) else { panic!("a request") };
        let (_, extra) = &*request;
        assert_eq!(extra.log_path, Some(Text::new(b"/log").unwrap()));
        assert_eq!(extra.key.as_deref(), Some(&Bytes::copy_of(&[7; 32])));
    }

    #[test]
    fn what_is_wrong_is_refused() {
        let refused = |bytes: &[u8]| match parse(bytes) {
            Parsed::Refused(reply) => (reply.cookie(), reply.body::<Response>().unwrap().error),
            _ => panic!("refused"),
        };
        for number in [0, 17, 30, 36, 37, 65535] {
            assert_eq!(refused(&Message::new(number, 5).encode()), (0, 22));
        }
        let mut bytes = Message::new(kind::PID, 5).encode();
        bytes[20..276].fill(b'x');
        assert_eq!(refused(&bytes), (0, 22));
        for count in [0, 129] {
            assert_eq!(refused(&open(flag::OPEN_ENCRYPTED, &[count])), (3, 22));
        }
        assert_eq!(refused(&open(flag::ADD_LOG, &[b'x'; LOG_PATH_BYTES])), (3, 22));
    }
}
