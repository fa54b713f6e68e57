//! What a tapdisk wrote down about its block device: the OPEN message that serves the device again when
//! the tapdisk has died, and the path of the changed-block log behind it (ARCHITECTURE.md, "Block devices").

use crate::error::Error;
use crate::messages::{LOG_PATH_BYTES, MESSAGE_BYTES, Request, Text, validate_request};
use crate::paths::RunDir;

/// A record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// OPEN, with the flag to take the device over.
    pub request: Request,
    /// The changed-block log.
    pub log: Option<Text>,
}

/// The record of a minor.
///
/// # Errors
/// ENOENT if no device was made for the minor; EINVAL for what is no record.
pub fn read(run: &RunDir, minor: u16) -> Result<Record, Error> {
    let path = run.device(minor);
    let bytes = std::fs::read(&path).map_err(|error| Error::file("read", &path, &error))?;
    parse(&bytes).ok_or_else(|| Error::Argument {
        errno: libc::EINVAL,
        reason: format!("{} is no record of a block device; remove it", path.display()),
    })
}

fn parse(bytes: &[u8]) -> Option<Record> {
    let (message, rest) = bytes.split_first_chunk::<MESSAGE_BYTES>()?;
    let request = validate_request(message).ok()?;
    let log = match rest.first_chunk::<LOG_PATH_BYTES>() {
        Some(field) => Some(Text::from_field(field)?),
        None => None,
    };
    let open = matches!(request, Request::Open { .. });
    (open && log.is_some() == request.log_path_follows()).then_some(Record { request, log })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::messages::{Params, flag};

    #[test]
    fn a_record_is_a_message_and_perhaps_a_path() {
        let log = Text::new(b"/log").expect("short");
        let of = |flags| Request::Open { minor: 3, params: Params { flags, ..Params::default() } };
        let plain = of(flag::DEVICE).to_message().encode();
        assert_eq!(parse(&plain), Some(Record { request: of(flag::DEVICE), log: None }));
        let logged = of(flag::ADD_LOG);
        let bytes = [&logged.to_message().encode()[..], log.field()].concat();
        assert_eq!(parse(&bytes), Some(Record { request: logged, log: Some(log) }));
        assert_eq!(parse(&bytes[..544]), None, "the path is missing");
        assert_eq!(parse(&plain[..543]), None);
        assert_eq!(parse(&Request::Pid.to_message().encode()), None);
    }
}
