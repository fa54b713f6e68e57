//! One program hands a running tapdisk to the next, in the same process (docs/upgrade.md).
//!
//! ```text
//!   UPGRADE ─► clients finish what they began ─► pause ─► state in a memfd ─► exec ─► adopt ─► resume
//!                          │ too slow                │ fails                   │ fails
//!                          └────────────── the disks go on as before ◄─────────┘
//! ```
//! Descriptors are carried by their numbers and stay open over the exec; keys follow the text, so
//! that no other copy of them is made.
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::{Deserialize, Serialize};
use tap_ctl::upgrade::{FORMAT, RESUME};
use vhd_rs::secret::Bytes;

use crate::control::ControlState;
use crate::formats::key::Keys;
use crate::receiver::ReceiverState;
use crate::vbd::handover::DiskState;
use host::carry::{Carried, Carrier};

/// The first bytes of what is handed over.
const MAGIC: &[u8; 8] = b"TAPDISK\n";
/// Longer texts are no state.
const TEXT_BYTES_MAX: u64 = 64 << 20;

/// With `--resume`: why another program did not take over.
pub const WHY: &str = "--why";

/// Everything that the next program needs.
#[derive(Debug, Deserialize, Serialize)]
pub struct State {
    /// Of [`FORMAT`].
    pub format: u32,
    /// Of the program that wrote it.
    pub version: String,
    /// When the disks were paused, in µs of the monotonic clock.
    pub paused_us: u64,
    /// The filter of system calls that it is under.
    #[serde(default)]
    pub filter: Option<u64>,
    /// The program that wrote it, to go back to.
    pub program: Carried,
    /// The control socket and who waits there.
    pub control: ControlState,
    /// The receiver of descriptors.
    pub receiver: ReceiverState,
    /// In order of attachment.
    pub disks: Vec<DiskState>,
}

/// Puts the state into a descriptor that survives an exec.
///
/// # Errors
/// No memory.
pub fn write(state: &State, keys: &[&[u8]], carrier: &mut Carrier) -> io::Result<File> {
    let mut file = File::from(memfd_create("tapdisk-state", MemfdFlags::CLOEXEC)?);
    let text = serde_json::to_vec(state).map_err(io::Error::other)?;
    file.write_all(MAGIC)?;
    file.write_all(&(text.len() as u64).to_le_bytes())?;
    file.write_all(&text)?;
    for key in keys {
        file.write_all(&[key.len() as u8])?;
        file.write_all(key)?;
    }
    file.rewind()?;
    carrier.carry(file.as_fd())?;
    Ok(file)
}

/// Reads what another program wrote. It is left as it is, for whoever must go back.
///
/// # Errors
/// What is no state, or one of a format that is not known.
pub fn read(state: &OwnedFd) -> io::Result<(State, Keys)> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut file = File::from(state.try_clone()?);
    file.rewind()?;
    let (mut magic, mut length) = ([0; 8], [0; 8]);
    file.read_exact(&mut magic)?;
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if magic != *MAGIC || length > TEXT_BYTES_MAX {
        return Err(wrong("this is not the state of a tapdisk"));
    }
    let mut text = Vec::new();
    (&file).take(length).read_to_end(&mut text)?;
    let format = serde_json::from_slice::<Format>(&text).map_err(io::Error::other)?.format;
    if format != FORMAT {
        return Err(wrong(&format!("its state has format {format}, and {FORMAT} is known here")));
    }
    let state = serde_json::from_slice(&text).map_err(io::Error::other)?;
    let mut keys = Vec::new();
    let mut bytes = [0];
    while file.read(&mut bytes)? == 1 {
        keys.push(Bytes::read(&mut (&file).take(bytes[0].into()), bytes[0].into())?);
    }
    Ok((state, keys))
}

/// The command line of a program that is to take over.
pub fn resume_args(state: i32, foreground: bool, why: Option<&str>) -> Vec<CString> {
    let text = |text: String| CString::new(text.replace('\0', " ")).expect("there is no NUL in it");
    let mut args = vec![text("tapdisk".into()), text(format!("{RESUME}={state}"))];
    args.extend(why.map(|why| text(format!("{WHY}={why}"))));
    args.extend(foreground.then(|| text("-D".into())));
    args
}

/// Nobody goes back any more: the keys in it are wiped.
pub fn forget(state: OwnedFd) {
    let mut file = File::from(state);
    let wiped = file.metadata().map(|meta| meta.len()).and_then(|bytes| {
        file.rewind()?;
        io::copy(&mut io::repeat(0).take(bytes), &mut file)
    });
    // A memfd that cannot be written goes with its last descriptor in any case.
    let _ = wiped;
}

/// What every format begins with.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            format: FORMAT,
            version: "1".into(),
            paused_us: 7,
            filter: None,
            program: 3,
            control: ControlState::default(),
            receiver: ReceiverState::default(),
            disks: Vec::new(),
        }
    }

    #[test]
    fn a_state_comes_back_with_its_keys_and_can_be_read_twice() {
        let mut carrier = Carrier::default();
        let file = write(&state(), &[&[9; 64], &[8; 32]], &mut carrier).unwrap();
        let fd = OwnedFd::from(file);
        for _ in 0..2 {
            let (state, keys) = read(&fd).unwrap();
            assert_eq!((state.paused_us, state.program), (7, 3));
            assert_eq!(
                keys.iter().map(|key| key.to_vec()).collect::<Vec<_>>(),
                [vec![9; 64], vec![8; 32]]
            );
        }
        let again = fd.try_clone().unwrap();
        forget(fd);
        assert!(read(&again).is_err(), "it is zeros");
    }

    #[test]
    fn what_is_no_state_is_refused() {
        let mut carrier = Carrier::default();
        let file = write(&State { format: FORMAT + 1, ..state() }, &[], &mut carrier).unwrap();
        let error = read(&OwnedFd::from(file)).unwrap_err().to_string();
        assert!(error.contains(&format!("format {}", FORMAT + 1)), "{error}");
        for bytes in
            [&b""[..], b"TAPDISK\n", b"TAPDISK\n\xff\xff\xff\xff\xff\xff\xff\xff{}", &[0; 99]]
        {
            let mut file = File::from(memfd_create("x", MemfdFlags::CLOEXEC).unwrap());
            file.write_all(bytes).unwrap();
            assert!(read(&OwnedFd::from(file)).is_err());
        }
    }
}
