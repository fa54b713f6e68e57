//! The record of a block device: beside the sockets lies a file with the OPEN message that serves
//! the device again. If this process dies the device waits, and `tap-ctl recover` sends the message
//! to another one.
use slog::warn;
use tap_ctl::messages::{Device, DeviceOptions, Params, Request, flag};

use crate::vbd::{Env, Opened};

/// Writes it, or says what follows from there being none.
pub(super) fn write_record(env: &Env, minor: u16, opened: &Opened, device: Device) {
    let path = env.run.device(minor);
    if let Err(error) = write(&path, &record(minor, opened, device)) {
        warn!(
            env.log,
            "minor {minor}: cannot write {}: {error}; without it tap-ctl recover does not find \
             {device}",
            show::path(&path)
        );
    }
}

/// The device is gone.
pub(super) fn remove_file(env: &Env, minor: u16) {
    let _ = std::fs::remove_file(env.run.device(minor));
}

/// The OPEN message, and the path of the log behind it.
fn record(minor: u16, opened: &Opened, device: Device) -> Vec<u8> {
    let log = opened.options.log.as_ref();
    let log_flag = if log.is_some() { flag::ADD_LOG } else { 0 };
    let flags = opened.params.flags & !flag::ADD_LOG | flag::TAKE_OVER | log_flag;
    let params = Params {
        flags,
        path: opened.options.name,
        device: DeviceOptions::exactly(device),
        ..opened.params
    };
    let mut bytes = Request::Open { minor, params }.to_message().encode().to_vec();
    bytes.extend(log.into_iter().flat_map(|path| path.field()));
    bytes
}

/// Whole or not at all, and ours alone: it names what root opens.
fn write(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let new = path.with_extension("new");
    // What a dead process left, whoever may write to it.
    let _ = std::fs::remove_file(&new);
    let how = std::fs::File::options().write(true).create_new(true).mode(0o600).clone();
    how.open(&new)?.write_all(bytes)?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tap_ctl::messages::{Text, validate_request};

    #[test]
    fn a_record_is_ours_alone_whoever_had_its_name() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let dir = tempfile::tempdir().unwrap();
        let (path, trap) = (dir.path().join("device3"), dir.path().join("trap"));
        std::fs::write(&trap, "trap").unwrap();
        symlink(&trap, dir.path().join("device3.new")).unwrap();
        symlink(&trap, &path).unwrap();
        write(&path, b"first").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
        write(&path, b"second").unwrap();
        let meta = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((meta.is_file(), meta.permissions().mode() & 0o7777), (true, 0o600));
        let read = |path: &std::path::Path| std::fs::read_to_string(path).unwrap();
        assert_eq!((read(&path), read(&trap)), ("second".into(), "trap".into()));
    }

    #[test]
    fn the_record_is_the_message_that_serves_the_device_again() {
        let text = |text: &str| Text::new(text.as_bytes()).unwrap();
        let params = Params {
            flags: flag::DEVICE | flag::RDONLY,
            path: text("vhd:/old"),
            req_timeout: 9,
            ..Params::default()
        };
        let run = tap_ctl::paths::RunDir::at(std::path::Path::new("/nowhere"));
        let log = slog::Logger::root(slog::Discard, slog::o!());
        let mut options =
            crate::vbd::options(&params, &crate::vbd::Extra::default(), &run, &log).unwrap();
        // After a snapshot.
        options.name = text("vhd:/new");
        options.log = Some(text("/log"));
        let opened =
            Opened { options, timeout_s: 9, params, device: Some(params.device), take_over: false };
        let bytes = record(5, &opened, Device::Ublk(3));
        assert_eq!(bytes.len(), 544 + 256);
        let request = validate_request(bytes[..544].try_into().unwrap()).unwrap();
        let Request::Open { minor: 5, params } = request else { panic!("{request:?}") };
        assert!(params.has(flag::DEVICE | flag::TAKE_OVER | flag::RDONLY | flag::ADD_LOG));
        assert_eq!((params.path, params.req_timeout), (text("vhd:/new"), 9));
        assert_eq!(params.device.number(), Some(3));
        assert_eq!(bytes[544..549], *b"/log\0");
    }
}
