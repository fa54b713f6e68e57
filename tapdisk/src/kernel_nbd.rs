//! `/dev/nbdN`, the kernel's own NBD client, as a block device over our NBD server: where there is
//! no ublk.
//!
//! ```text
//!   worker ─► connects to our socket, negotiates ─► hands the connection to the kernel (generic netlink)
//! ```
//! For a worker: the server that is talked to is this process itself. Netlink because it returns at
//! once (Linux 4.12 and later); the older ioctl keeps a thread for as long as the device lives. If
//! this process dies the kernel keeps requests for a day, and the next tapdisk hands it another
//! connection.
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::formats::nbd::RemoteImage;
use crate::receiver::Stash;
use disk::remote::Offer;
use frontend::ublk::device::DeviceError;
use host::sys;

/// Numbers of linux/netlink.h and linux/genetlink.h.
const NETLINK_GENERIC: i32 = 16;
const CONTROL_FAMILY: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const ERROR_MESSAGE: u16 = 2;
const REQUEST_AND_ACK: u16 = 1 | 4;
const NESTED: u16 = 1 << 15;
const HEAD_BYTES: usize = 20;

/// Numbers of linux/nbd-netlink.h.
const CONNECT: u8 = 1;
const DISCONNECT: u8 = 2;
const RECONFIGURE: u8 = 3;
mod attribute {
    pub const INDEX: u16 = 1;
    pub const SIZE_BYTES: u16 = 2;
    pub const BLOCK_SIZE_BYTES: u16 = 3;
    pub const SERVER_FLAGS: u16 = 5;
    pub const SOCKETS: u16 = 7;
    pub const DEAD_CONN_TIMEOUT: u16 = 8;
    /// Linux 5.14.
    pub const BACKEND: u16 = 10;
}
const SOCKET_ITEM: u16 = 1;
const SOCKET_FD: u16 = 1;

/// First word of the names of our devices.
const MARK: &str = "tapdisk";
/// How long the kernel keeps requests without a server, in seconds.
const KEEP_S: u64 = 24 * 60 * 60;

/// What is to be connected.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The number wanted.
    pub number: Option<u32>,
    /// Connections.
    pub connections: u8,
    /// Writes are refused.
    pub read_only: bool,
    /// Logical sector size in bytes.
    pub sector_size: u32,
    /// It is there, and its server died.
    pub take_over: bool,
    /// What tells the next tapdisk of it.
    pub record: PathBuf,
}

/// Makes the device, or goes on with it. Gives its number.
///
/// # Errors
/// No driver, no privilege, a number in use.
pub fn connect(socket: &Path, plan: &Plan) -> Result<u32, DeviceError> {
    let family = family()?;
    remove_orphans();
    let links = (0..plan.connections.max(1)).map(|_| link(socket, !plan.read_only));
    let links = links.collect::<Result<Vec<_>, _>>()?;
    let mut body = Vec::new();
    if let Some(number) = plan.number {
        put(&mut body, attribute::INDEX, &number.to_ne_bytes());
    }
    if let (false, Some((_, offer))) = (plan.take_over, links.first()) {
        put(&mut body, attribute::SIZE_BYTES, &offer.bytes.to_ne_bytes());
        let sector = u64::from(plan.sector_size);
        put(&mut body, attribute::BLOCK_SIZE_BYTES, &sector.to_ne_bytes());
        put(&mut body, attribute::SERVER_FLAGS, &u64::from(offer.flags).to_ne_bytes());
    }
    if let Some(backend) = backend_of(plan) {
        put(&mut body, attribute::BACKEND, &[backend.as_bytes(), b"\0"].concat());
    }
    put(&mut body, attribute::DEAD_CONN_TIMEOUT, &KEEP_S.to_ne_bytes());
    let mut sockets = Vec::new();
    for (fd, _) in &links {
        let mut item = Vec::new();
        put(&mut item, SOCKET_FD, &fd.as_raw_fd().to_ne_bytes());
        put(&mut sockets, SOCKET_ITEM | NESTED, &item);
    }
    put(&mut body, attribute::SOCKETS | NESTED, &sockets);
    let command = if plan.take_over { RECONFIGURE } else { CONNECT };
    let answer = ask(family, command, &body).map_err(|error| refused(&error, plan.number))?;
    let index = find(&answer, attribute::INDEX).and_then(|raw| raw.try_into().ok());
    index.map(u32::from_ne_bytes).or(plan.number).ok_or_else(|| {
        error_of(libc::EPROTO, "the kernel's NBD client does not tell the device's number".into())
    })
}

/// Takes the device away.
///
/// # Errors
/// What the kernel answers.
pub fn disconnect(number: u32) -> Result<(), DeviceError> {
    let mut body = Vec::new();
    put(&mut body, attribute::INDEX, &number.to_ne_bytes());
    let answer = ask(family()?, DISCONNECT, &body);
    answer.map(drop).map_err(|error| refused(&error, Some(number)))
}

/// The device's name for those who served it: its first tapdisk, and the record. One that is taken
/// over keeps the name.
fn backend_of(plan: &Plan) -> Option<String> {
    match (plan.take_over, plan.number) {
        (true, Some(number)) => read_backend(number),
        _ => Some(format!("{MARK} {} {}", std::process::id(), plan.record.display())),
    }
}

fn read_backend(number: u32) -> Option<String> {
    let text = std::fs::read_to_string(format!("/sys/block/nbd{number}/backend")).ok()?;
    Some(text.trim_end_matches('\n').to_string())
}

/// The process and the record in a device's name, if a tapdisk gave it.
fn parse_backend(text: &str) -> Option<(i32, &Path)> {
    let (pid, record) = text.strip_prefix(MARK)?.strip_prefix(' ')?.split_once(' ')?;
    Some((pid.parse().ok()?, Path::new(record)))
}

/// Devices whose tapdisk was killed before it could write their record: nobody would ever find
/// them. Where the kernel keeps no names they stay.
fn remove_orphans() {
    let entries = std::fs::read_dir("/sys/block").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    for number in names.filter_map(|name| name.strip_prefix("nbd")?.parse().ok()) {
        let backend = read_backend(number);
        let orphan = backend.as_deref().and_then(parse_backend).is_some_and(|(pid, record)| {
            !Path::new(&format!("/proc/{pid}")).exists() && !record.exists()
        });
        if orphan {
            let _ = disconnect(number);
        }
    }
}

/// A connection that is past the negotiation.
fn link(socket: &Path, writable: bool) -> Result<(Arc<OwnedFd>, Offer), DeviceError> {
    let image = RemoteImage::open(socket, writable, &Arc::<Stash>::default());
    let image = image.map_err(|error| error_of(error.errno, error.text))?;
    let peer = image.peer();
    // It is the kernel's from now on: we say no farewell.
    peer.ended.set();
    Ok((peer.fd, peer.offer))
}

/// The number under which the driver listens.
fn family() -> Result<u16, DeviceError> {
    let mut body = Vec::new();
    put(&mut body, FAMILY_NAME, b"nbd\0");
    let answer = ask(CONTROL_FAMILY, GET_FAMILY, &body).map_err(|error| {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        let text = match errno {
            libc::ENOENT => {
                "this kernel has neither ublk nor the NBD client loaded: modprobe ublk_drv (Linux \
                 6.0), or modprobe nbd"
                    .into()
            }
            _ => format!("the kernel's NBD client cannot be asked: {error}"),
        };
        error_of(errno, text)
    })?;
    let id = find(&answer, FAMILY_ID).and_then(|raw| raw.get(..2)?.try_into().ok());
    id.map(u16::from_ne_bytes)
        .ok_or_else(|| error_of(libc::EPROTO, "generic netlink gives no family number".into()))
}

fn refused(error: &io::Error, number: Option<u32>) -> DeviceError {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    let name = number.map_or("a device".to_string(), |number| format!("/dev/nbd{number}"));
    let text = match errno {
        libc::EPERM | libc::EACCES => {
            "the kernel's NBD client takes root (CAP_SYS_ADMIN) to make a device".into()
        }
        libc::EBUSY => format!("{name} is in use"),
        _ => format!("the kernel's NBD client refuses {name}: {error}"),
    };
    error_of(errno, text)
}

fn error_of(errno: i32, text: String) -> DeviceError {
    DeviceError { errno, text }
}

/// Sends a command and gives the attributes of its answer, if it has one.
fn ask(family: u16, command: u8, body: &[u8]) -> io::Result<Vec<u8>> {
    let length = (HEAD_BYTES + body.len()) as u32;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(family.to_ne_bytes());
    message.extend(REQUEST_AND_ACK.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(body);
    let mut answer = Vec::new();
    let mut over = None;
    sys::netlink(NETLINK_GENERIC, &message, |packet| {
        over = read(packet, &mut answer);
        over.is_some()
    })?;
    match over {
        Some(0) => Ok(answer),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// Keeps the attributes of the messages of a packet; the errno, once the last one is there.
fn read(packet: &[u8], answer: &mut Vec<u8>) -> Option<i32> {
    let mut rest = packet;
    while let Some(head) = rest.first_chunk::<16>() {
        let word =
            |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let bytes = usize::try_from(word(0)).ok()?;
        let message = rest.get(16..bytes)?;
        match u16::from_ne_bytes([head[4], head[5]]) {
            ERROR_MESSAGE => return message.first_chunk().map(|raw| -i32::from_ne_bytes(*raw)),
            _ => answer.extend_from_slice(message.get(4..)?),
        }
        rest = rest.get(bytes.next_multiple_of(4)..)?;
    }
    None
}

/// An attribute, padded.
fn put(body: &mut Vec<u8>, kind: u16, data: &[u8]) {
    body.extend(((4 + data.len()) as u16).to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(data);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The data of the first attribute of a kind.
fn find(body: &[u8], kind: u16) -> Option<&[u8]> {
    let mut rest = body;
    while let Some(head) = rest.first_chunk::<4>() {
        let bytes = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let data = rest.get(4..bytes)?;
        if u16::from_ne_bytes([head[2], head[3]]) & !NESTED == kind {
            return Some(data);
        }
        rest = rest.get(bytes.next_multiple_of(4)..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_ours_names_its_maker_and_its_record() {
        let record = PathBuf::from("/run/a b/device3");
        let plan = Plan {
            number: None,
            connections: 1,
            read_only: false,
            sector_size: 512,
            take_over: false,
            record: record.clone(),
        };
        let name = backend_of(&plan).expect("a new device has a name");
        let pid = i32::try_from(std::process::id()).expect("a pid");
        assert_eq!(parse_backend(&name), Some((pid, record.as_path())));
        for other in ["", "tapdisk", "tapdisk 12", "tapdisk x /a", "qemu 12 /a", "tapdisks 1 /a"] {
            assert_eq!(parse_backend(other), None, "{other}");
        }
    }

    #[test]
    fn attributes_are_padded_and_found_again() {
        let mut body = Vec::new();
        put(&mut body, 2, b"nbd\0");
        put(&mut body, 3, &[7]);
        put(&mut body, 1 | NESTED, &9u32.to_ne_bytes());
        assert_eq!(body.len(), 24);
        assert_eq!(find(&body, 3), Some(&[7][..]));
        assert_eq!(find(&body, 1), Some(&9u32.to_ne_bytes()[..]));
        assert_eq!(find(&body, 4), None);
        assert_eq!(find(&[3, 0, 1, 0], 1), None, "shorter than its own head");
    }

    #[test]
    fn an_answer_is_kept_until_the_errno_comes() {
        let message = |kind: u16, body: &[u8]| {
            let mut all = (16 + body.len() as u32).to_ne_bytes().to_vec();
            all.extend(kind.to_ne_bytes());
            all.extend([0; 10]);
            all.extend(body);
            all
        };
        let mut answer = Vec::new();
        assert_eq!(read(&message(30, &[1, 1, 0, 0, 42]), &mut answer), None);
        assert_eq!(answer, [42]);
        let error = (-libc::EBUSY).to_ne_bytes();
        assert_eq!(read(&message(ERROR_MESSAGE, &error), &mut answer), Some(libc::EBUSY));
        assert_eq!(read(&message(30, &[1])[..10], &mut answer), None);
    }

    #[test]
    fn a_family_that_is_not_there_is_enoent() {
        let mut body = Vec::new();
        put(&mut body, FAMILY_NAME, b"no-such-family\0");
        match ask(CONTROL_FAMILY, GET_FAMILY, &body) {
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOENT)),
            Ok(_) => panic!("a family of that name"),
        }
        // The controller itself is always there.
        let mut body = Vec::new();
        put(&mut body, FAMILY_NAME, b"nlctrl\0");
        let answer = ask(CONTROL_FAMILY, GET_FAMILY, &body).unwrap();
        assert_eq!(find(&answer, FAMILY_ID), Some(&CONTROL_FAMILY.to_ne_bytes()[..]));
    }
}
