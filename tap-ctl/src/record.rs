//! What a tapdisk wrote down about its block device: the OPEN message that serves the device again
//! when the tapdisk has died, and the path of the changed-block log behind it (docs/devices.md).

use crate::error::Error;
use crate::messages::{LOG_PATH_BYTES, MESSAGE_BYTES, Request, Text, validate_request};
use crate::paths::RunDir;
use crate::sys;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// A message and a path.
const RECORD_BYTES_MAX: u64 = (MESSAGE_BYTES + LOG_PATH_BYTES) as u64;

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
/// ENOENT if no device was made for the minor; EINVAL for what is no record; EACCES for one that
/// somebody else may have written, since it names the images that root opens.
pub fn read(run: &RunDir, minor: u16) -> Result<Record, Error> {
    let path = run.device(minor);
    let failed = |error: &io::Error| Error::file("read", &path, error);
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(&path);
    let file = file.map_err(|error| failed(&error))?;
    if let Some(reason) = strangers(&file.metadata().map_err(|error| failed(&error))?) {
        let path = show::path(&path);
        let reason = format!("{path} {reason}: it is not believed; see what it is, and remove it");
        return Err(Error::Argument { errno: libc::EACCES, reason });
    }
    let mut bytes = Vec::new();
    file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
    parse(&bytes).ok_or_else(|| Error::Argument {
        errno: libc::EINVAL,
        reason: format!("{} is no record of a block device; remove it", show::path(&path)),
    })
}

/// Why a record may be another's than ours or root's. Reading it harms nobody: earlier versions
/// made it 0644.
fn strangers(meta: &Metadata) -> Option<String> {
    match (meta.uid(), meta.mode() & 0o7777) {
        _ if !meta.is_file() => Some("is no file".into()),
        (uid, _) if uid != 0 && uid != sys::euid() => Some(format!("belongs to user {uid}")),
        (_, mode) if mode & 0o022 != 0 => {
            Some(format!("can be written by others (mode {mode:04o})"))
        }
        _ => None,
    }
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
    fn a_record_that_others_may_have_written_is_not_believed() {
        use std::os::unix::fs::{PermissionsExt, chown, symlink};
        let dir = tempfile::tempdir().expect("temporary directory");
        let run = RunDir::at(dir.path());
        let path = run.device(3);
        let request = Request::Open { minor: 3, params: Params::default() };
        std::fs::write(&path, request.to_message().encode()).expect("written");
        let mode = |mode| {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).expect("chmod");
            read(&run, 3).map_err(|error| (error.errno(), error.to_string()))
        };
        for good in [0o600, 0o644] {
            assert_eq!(mode(good).map(|record| record.request), Ok(request));
        }
        for bad in [0o666, 0o620, 0o602] {
            let (errno, text) = mode(bad).expect_err("others may write");
            assert!(errno == libc::EACCES && text.contains("can be written by others"), "{text}");
        }
        mode(0o600).expect("as before");
        symlink(&path, run.device(4)).expect("symlink");
        assert_eq!(read(&run, 4).expect_err("a link").errno(), libc::ELOOP);
        std::fs::create_dir(run.device(5)).expect("made");
        assert_eq!(read(&run, 5).expect_err("a folder").errno(), libc::EACCES);
        if sys::euid() != 0 {
            return sys::skip("only root can make things of another user");
        }
        chown(&path, Some(65534), None).expect("chown");
        let text = mode(0o600).expect_err("a stranger's").1;
        assert!(text.contains("belongs to user 65534"), "{text}");
    }

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
