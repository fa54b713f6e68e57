//! What the socket allows: an NBD server that only copies. It reads what has arrived, answers every
//! request from one buffer in one send, and never sees a disk. `make bench` shows it beside the
//! servers that have one.
//!
//! ```text
//! nbd-copy SOCKET BYTES     serves a disk of BYTES bytes to one client after the other
//! ```
use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;

/// The protocol's numbers: <https://github.com/NetworkBlockDevice/nbd>, doc/proto.md.
const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const REP_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 0x8000_0001;
const FIXED_NEWSTYLE_NO_ZEROES: u16 = 3;
/// HAS_FLAGS and SEND_FLUSH.
const TRANSMISSION: u16 = 5;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const REQUEST_BYTES: usize = 28;
/// The longest request, and what one receive takes at most.
const DATA_MAX: usize = 2 << 20;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [path, bytes] = words.as_slice() else {
        eprintln!("usage: nbd-copy SOCKET BYTES");
        return ExitCode::from(2);
    };
    match bytes.parse().map_err(io::Error::other).and_then(|bytes| serve(path, bytes)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbd-copy: {path}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(path: &str, bytes: u64) -> io::Result<()> {
    let listener = UnixListener::bind(path)?;
    let (mut received, data) = (vec![0; DATA_MAX + REQUEST_BYTES], vec![1; DATA_MAX]);
    for client in listener.incoming() {
        let mut client = client?;
        // A client that leaves is no reason to end.
        if negotiate(&mut client, bytes).is_ok() {
            let _ = transmit(&mut client, &mut received, &data);
        }
    }
    Ok(())
}

/// Fixed newstyle, as far as fio and the benchmark's own client go: GO, and no to all else.
fn negotiate(client: &mut UnixStream, bytes: u64) -> io::Result<()> {
    let magic = [NBDMAGIC.to_be_bytes(), IHAVEOPT.to_be_bytes()].concat();
    client.write_all(&[&magic[..], &FIXED_NEWSTYLE_NO_ZEROES.to_be_bytes()].concat())?;
    client.read_exact(&mut [0; 4])?;
    loop {
        let mut head = [0; 16];
        client.read_exact(&mut head)?;
        let (option, length) = (word(&head, 8), word(&head, 12));
        io::copy(&mut Read::by_ref(client).take(length.into()), &mut io::sink())?;
        if option != OPT_GO {
            answer(client, option, REP_ERR_UNSUP, &[])?;
            continue;
        }
        let size = bytes.to_be_bytes();
        answer(
            client,
            option,
            REP_INFO,
            &[&[0; 2], &size[..], &TRANSMISSION.to_be_bytes()].concat(),
        )?;
        return answer(client, option, REP_ACK, &[]);
    }
}

fn answer(client: &mut UnixStream, option: u32, kind: u32, text: &[u8]) -> io::Result<()> {
    let words = [option, kind, text.len() as u32].map(u32::to_be_bytes).concat();
    client.write_all(&[&REP_MAGIC.to_be_bytes(), &words[..], text].concat())
}

/// Everything that arrived is answered in one send.
fn transmit(client: &mut UnixStream, received: &mut [u8], data: &[u8]) -> io::Result<()> {
    let (mut have, mut replies) = (0, Vec::new());
    loop {
        let got = client.read(&mut received[have..])?;
        if got == 0 {
            return Ok(());
        }
        have += got;
        let mut used = 0;
        while let Some((request, bytes)) = whole_request(&received[used..have])? {
            if request.command == DISCONNECT {
                return Ok(());
            }
            used += bytes;
            replies.push(request);
        }
        received.copy_within(used..have, 0);
        have -= used;
        send(client, &replies, data)?;
        replies.clear();
    }
}

/// What of a request its answer needs.
struct Request {
    command: u16,
    head: [u8; 16],
    bytes: usize,
}

/// The first request, and its length with its payload; `None` if it is not all there.
fn whole_request(at: &[u8]) -> io::Result<Option<(Request, usize)>> {
    let Some(head) = at.first_chunk::<REQUEST_BYTES>() else { return Ok(None) };
    let (magic, bytes) = (word(head, 0), word(head, 24) as usize);
    let command = u16::from_be_bytes([head[6], head[7]]);
    if magic != REQUEST_MAGIC || bytes > DATA_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let length = REQUEST_BYTES + if command == WRITE { bytes } else { 0 };
    let mut reply = [0; 16];
    reply[..4].copy_from_slice(&SIMPLE_REPLY_MAGIC.to_be_bytes());
    reply[8..].copy_from_slice(&head[8..16]);
    let bytes = if command == READ { bytes } else { 0 };
    Ok((at.len() >= length).then_some((Request { command, head: reply, bytes }, length)))
}

fn send(client: &mut UnixStream, replies: &[Request], data: &[u8]) -> io::Result<()> {
    for some in replies.chunks(256) {
        let mut parts: Vec<IoSlice<'_>> = some
            .iter()
            .flat_map(|reply| [IoSlice::new(&reply.head), IoSlice::new(&data[..reply.bytes])])
            .collect();
        let mut left = &mut parts[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            let sent = client.write_vectored(left)?;
            IoSlice::advance_slices(&mut left, sent);
        }
    }
    Ok(())
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |four| u32::from_be_bytes(*four))
}
