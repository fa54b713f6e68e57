//! The client's half of the negotiation (doc/proto.md of the NetworkBlockDevice project): oldstyle,
//! newstyle, fixed newstyle.
//!
//! ```text
//!   NBDMAGIC ─┬─ oldstyle: size, flags ─────────────────────────────────────────► Offer
//!             └─ IHAVEOPT ─► flags ─► GO ─► INFO … ACK ────────────────────────► Offer
//!                               └──────┴─ (unknown) ─► EXPORT_NAME ─► size, flags ─► Offer
//! ```
use std::io;
use std::os::fd::AsFd;

use super::talk::Talk;
use disk::remote::Offer;
use nbd_proto::{self as proto, answer, info, option, u32_at, u64_at};

/// Answers to one option at most.
const ANSWERS_MAX: u32 = 64;
/// Bytes of one of them at most: the protocol's longest text, and room for what is new.
const ANSWER_BYTES_MAX: u32 = 64 << 10;
/// Bytes of a server's own words that are repeated.
const WORDS_MAX: usize = 200;
/// What nobody needs behind an export's flags.
const PADDING_BYTES: usize = 124;
/// The largest unit that misaligned operations are made up to here.
const UNIT_MAX: u32 = 4096;
const SECTOR: u32 = 512;

/// What the server says of its blocks: smallest and largest.
struct Blocks {
    unit: u32,
    longest: u32,
}

impl Blocks {
    /// Of a server that does not say.
    const DEFAULT: Blocks = Blocks { unit: 1, longest: proto::REQUEST_DATA_MAX };
}

/// Negotiates for an export; requests may follow then.
///
/// # Errors
/// A sentence.
pub(super) fn negotiate<F: AsFd>(talk: &mut Talk<F>, export: &[u8]) -> Result<Offer, String> {
    let silence = |e: io::Error| broken(&e, "the greeting");
    if u64::from_be_bytes(talk.receive().map_err(silence)?) != proto::GREETING {
        return Err("what answers there is no NBD server".into());
    }
    match u64::from_be_bytes(talk.receive().map_err(silence)?) {
        proto::OLDSTYLE_MAGIC => oldstyle(talk, export),
        proto::OPTION_MAGIC => newstyle(talk, export),
        magic => Err(format!("the server greets in a style that is not known ({magic:#x})")),
    }
}

fn oldstyle<F: AsFd>(talk: &mut Talk<F>, export: &[u8]) -> Result<Offer, String> {
    let rest: [u8; 12 + PADDING_BYTES] = talk.receive().map_err(|e| broken(&e, "the greeting"))?;
    if !export.is_empty() {
        return Err(
            "the server is an oldstyle one, whose only export has no name: leave the exportname \
                    out"
            .into(),
        );
    }
    checked(u64_at(&rest, 0), u32_at(&rest, 8) as u16, &Blocks::DEFAULT)
}

fn newstyle<F: AsFd>(talk: &mut Talk<F>, export: &[u8]) -> Result<Offer, String> {
    let server = u16::from_be_bytes(talk.receive().map_err(|e| broken(&e, "the greeting"))?);
    let client = server & (proto::FIXED_NEWSTYLE | proto::NO_ZEROES);
    talk.send(&u32::from(client).to_be_bytes()).map_err(|e| broken(&e, "its flags"))?;
    if server & proto::FIXED_NEWSTYLE != 0
        && let Some(offer) = go(talk, export)?
    {
        return Ok(offer);
    }
    export_name(talk, export, client & proto::NO_ZEROES != 0)
}

/// The modern option; `None` if the server does not know it.
fn go<F: AsFd>(talk: &mut Talk<F>, export: &[u8]) -> Result<Option<Offer>, String> {
    let mut data = (export.len() as u32).to_be_bytes().to_vec();
    data.extend_from_slice(export);
    data.extend_from_slice(&1u16.to_be_bytes());
    data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
    ask(talk, option::GO, &data).map_err(|e| broken(&e, "the choice of an export"))?;
    let (mut found, mut blocks) = (None, Blocks::DEFAULT);
    for _ in 0..ANSWERS_MAX {
        let (kind, data) = answered(talk, option::GO)?;
        match (kind, data.get(..2).map(|raw| u16::from_be_bytes([raw[0], raw[1]]))) {
            (answer::ACK, _) => {
                let (bytes, flags) = found.ok_or("the server does not tell the size")?;
                return checked(bytes, flags, &blocks).map(Some);
            }
            (answer::ERR_UNSUP, _) => return Ok(None),
            (answer::INFO, Some(info::EXPORT)) if data.len() == 12 => {
                found = Some((u64_at(&data, 2), u16::from_be_bytes([data[10], data[11]])));
            }
            (answer::INFO, Some(info::BLOCK_SIZE)) if data.len() == 14 => {
                blocks = Blocks { unit: u32_at(&data, 2), longest: u32_at(&data, 10) };
            }
            (answer::INFO, Some(kind)) if kind > info::BLOCK_SIZE => {}
            (answer::INFO, Some(info::NAME | info::DESCRIPTION)) => {}
            (kind, _) if kind & 1 << 31 != 0 => return Err(refusal(kind, &data, export)),
            (kind, _) => return Err(format!("the server's answer to GO makes no sense ({kind})")),
        }
    }
    Err(format!("the server gives more than {ANSWERS_MAX} answers to one option"))
}

/// The old option, which a server refuses by closing the connection.
fn export_name<F: AsFd>(
    talk: &mut Talk<F>,
    export: &[u8],
    no_zeroes: bool,
) -> Result<Offer, String> {
    let told = |e: io::Error| match e.kind() {
        io::ErrorKind::UnexpectedEof => {
            format!("the server has no export named \"{}\"", words(export))
        }
        _ => broken(&e, "the export"),
    };
    ask(talk, option::EXPORT_NAME, export).map_err(told)?;
    let raw: [u8; 10] = talk.receive().map_err(told)?;
    if !no_zeroes {
        talk.receive::<PADDING_BYTES>().map_err(told)?;
    }
    checked(u64_at(&raw, 0), u16::from_be_bytes([raw[8], raw[9]]), &Blocks::DEFAULT)
}

fn ask<F: AsFd>(talk: &mut Talk<F>, option: u32, data: &[u8]) -> io::Result<()> {
    let mut all = proto::OPTION_MAGIC.to_be_bytes().to_vec();
    all.extend_from_slice(&option.to_be_bytes());
    all.extend_from_slice(&(data.len() as u32).to_be_bytes());
    all.extend_from_slice(data);
    talk.send(&all)
}

/// One answer: its type and its data.
fn answered<F: AsFd>(talk: &mut Talk<F>, option: u32) -> Result<(u32, Vec<u8>), String> {
    let silence = |e: io::Error| broken(&e, "an answer");
    let head: [u8; 20] = talk.receive().map_err(silence)?;
    if u64_at(&head, 0) != proto::OPTION_REPLY_MAGIC || u32_at(&head, 8) != option {
        return Err("the server answers what was not asked".into());
    }
    let bytes = u32_at(&head, 16);
    if bytes > ANSWER_BYTES_MAX {
        return Err(format!("the server's answer has {bytes} bytes, which is too much"));
    }
    let mut data = vec![0; bytes as usize];
    talk.fill(&mut data).map_err(silence)?;
    Ok((u32_at(&head, 12), data))
}

/// Whether this can be worked with.
fn checked(bytes: u64, flags: u16, blocks: &Blocks) -> Result<Offer, String> {
    let Blocks { unit, longest } = *blocks;
    if !unit.is_power_of_two() || unit > UNIT_MAX {
        return Err(format!(
            "the server wants blocks of {unit} bytes; 1 to {UNIT_MAX} are possible"
        ));
    }
    let unit = unit.max(SECTOR);
    let longest = longest.min(proto::REQUEST_DATA_MAX);
    let longest = longest - longest % unit;
    if longest == 0 {
        return Err(format!("the server takes less than {unit} bytes at once"));
    }
    if bytes < u64::from(unit) {
        return Err(format!("the export has {bytes} bytes, less than one sector"));
    }
    if i64::try_from(bytes).is_err() {
        return Err(format!("the export has {bytes} bytes, which no disk can have"));
    }
    Ok(Offer { bytes, flags, unit, longest })
}

fn refusal(kind: u32, data: &[u8], export: &[u8]) -> String {
    let why = match kind {
        answer::ERR_POLICY => "the server's policy forbids it".into(),
        answer::ERR_UNKNOWN => format!("the server has no export named \"{}\"", words(export)),
        answer::ERR_TLS_REQD => "the server wants TLS, which is not spoken here".into(),
        answer::ERR_SHUTDOWN => "the server is shutting down".into(),
        answer::ERR_BLOCK_SIZE_REQD => "the server wants its block sizes asked for".into(),
        _ => format!("the server refuses ({kind:#x})"),
    };
    if data.is_empty() { why } else { format!("{why}: {}", words(data)) }
}

/// A server's or a user's words, fit for a log.
fn words(raw: &[u8]) -> String {
    show::line(&raw[..raw.len().min(WORDS_MAX)]).into_owned()
}

fn broken(error: &io::Error, at: &str) -> String {
    match error.kind() {
        io::ErrorKind::TimedOut => format!("the server says nothing in time, at {at}"),
        io::ErrorKind::UnexpectedEof => format!("the server closed the connection at {at}"),
        _ => format!("the connection broke at {at}: {error}"),
    }
}
