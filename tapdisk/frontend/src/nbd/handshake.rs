//! The negotiation: bytes in, bytes out, no I/O.
//!
//! ```text
//!   greet ─► ClientFlags ─► Option ─► (Skip ─►) Option … ─► Ready | Close | Drop
//! ```
//! Nothing allocates: an option is answered once it lies whole in the receive buffer, and all
//! answers of a negotiation together fit the text buffer, because there are at most [`OPTIONS_MAX`]
//! of them.
use super::{Export, notice::Why};
use nbd_proto::{self as proto, answer, feature, info, option, u32_at, u64_at};

/// Options in one negotiation (control-socket.md §6.3).
pub(super) const OPTIONS_MAX: u32 = 32;
/// Longest option that is looked at; longer ones are skipped and answered TOO_BIG.
pub(super) const OPTION_BYTES_MAX: u32 = 16 << 10;
/// Bytes of all options together; beyond it the client is dropped.
pub(super) const OPTIONS_BYTES_MAX: u32 = 4 << 20;
/// Longest name that is sent back.
const NAME_BYTES_MAX: usize = 256;
/// Room for everything that is said in one negotiation: 32 answers of at most 450 bytes and the
/// greeting.
pub(super) const TEXT_BYTES: usize = 16 << 10;
const OPTION_HEAD_BYTES: usize = 16;
/// The name in the answer to LIST, as the original has it.
const EXPORT_NAME: &[u8] = b"tapdisk_client";
const DESCRIPTION: &[u8] = b"virtual disk served by tapdisk";

/// What both sides agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Features {
    /// Reads are answered in chunks.
    pub structured: bool,
    /// BLOCK_STATUS tells about `base:allocation`.
    pub allocation: bool,
}

/// How far one step got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More bytes are needed.
    Starved,
    /// So many bytes were used; call again.
    Used(usize),
    /// So many bytes were used; requests follow.
    Ready(usize),
    /// Send what is left to say, then close.
    Close,
    /// Close at once.
    Drop(Why),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    ClientFlags,
    Option,
    /// The rest of an option that was answered already.
    Skip(u32),
}

/// One client's negotiation.
#[derive(Debug)]
pub(super) struct Handshake {
    stage: Stage,
    options: u32,
    options_bytes: u32,
    no_zeroes: bool,
    features: Features,
}

/// The oldstyle greeting; requests follow at once.
pub(super) fn greet_oldstyle(text: &mut Vec<u8>, export: &Export) {
    put(text, &proto::GREETING.to_be_bytes());
    put(text, &proto::OLDSTYLE_MAGIC.to_be_bytes());
    put(text, &export.bytes().to_be_bytes());
    put(text, &[0; 4 + 124]);
}

/// The fixed newstyle greeting; a [`Handshake`] follows.
pub(super) fn greet_newstyle(text: &mut Vec<u8>) {
    put(text, &proto::GREETING.to_be_bytes());
    put(text, &proto::OPTION_MAGIC.to_be_bytes());
    put(text, &(proto::FIXED_NEWSTYLE | proto::NO_ZEROES).to_be_bytes());
}

/// The flags that tell a client what it may ask for.
fn transmission_flags(export: &Export, features: Features) -> u16 {
    let mut flags = feature::HAS_FLAGS
        | feature::SEND_FLUSH
        | feature::SEND_FUA
        | feature::SEND_CACHE
        | feature::CAN_MULTI_CONN;
    if export.read_only {
        flags |= feature::READ_ONLY;
    } else {
        flags |= feature::SEND_TRIM | feature::SEND_WRITE_ZEROES;
        flags |= if export.fast_zero { feature::SEND_FAST_ZERO } else { 0 };
    }
    flags | if features.structured { feature::SEND_DF } else { 0 }
}

impl Handshake {
    /// Waits for the client's flags.
    pub(super) fn new() -> Handshake {
        Handshake {
            stage: Stage::ClientFlags,
            options: 0,
            options_bytes: 0,
            no_zeroes: false,
            features: Features::default(),
        }
    }

    /// Nothing was said yet.
    pub(super) fn is_fresh(&self) -> bool {
        matches!(self.stage, Stage::ClientFlags)
    }

    /// What was agreed on so far.
    pub(super) fn features(&self) -> Features {
        self.features
    }

    /// Takes the next thing out of `input` and says what there is to say.
    pub(super) fn step(&mut self, input: &[u8], text: &mut Vec<u8>, export: &Export) -> Step {
        match self.stage {
            Stage::ClientFlags => self.client_flags(input),
            Stage::Option => self.option(input, text, export),
            Stage::Skip(left) => self.skip(left, input),
        }
    }

    fn client_flags(&mut self, input: &[u8]) -> Step {
        if input.len() < 4 {
            return Step::Starved;
        }
        let flags = u32_at(input, 0);
        if flags & !u32::from(proto::FIXED_NEWSTYLE | proto::NO_ZEROES) != 0 {
            return Step::Drop(Why::BadNegotiation);
        }
        self.no_zeroes = flags & u32::from(proto::NO_ZEROES) != 0;
        self.stage = Stage::Option;
        Step::Used(4)
    }

    fn skip(&mut self, left: u32, input: &[u8]) -> Step {
        if left == 0 {
            self.stage = Stage::Option;
            return Step::Used(0);
        }
        if input.is_empty() {
            return Step::Starved;
        }
        let used = input.len().min(left as usize);
        self.stage = Stage::Skip(left - used as u32);
        Step::Used(used)
    }

    fn option(&mut self, input: &[u8], text: &mut Vec<u8>, export: &Export) -> Step {
        let Some(payload) = input.get(OPTION_HEAD_BYTES..) else {
            return wrong_magic(input).unwrap_or(Step::Starved);
        };
        if let Some(drop) = wrong_magic(input) {
            return drop;
        }
        let (option, bytes) = (u32_at(input, 8), u32_at(input, 12));
        if self.options == OPTIONS_MAX || bytes > OPTIONS_BYTES_MAX - self.options_bytes {
            return Step::Drop(Why::TooManyOptions);
        }
        if bytes > OPTION_BYTES_MAX {
            return self.too_big(option, bytes, text);
        }
        let Some(payload) = payload.get(..bytes as usize) else { return Step::Starved };
        self.options += 1;
        self.options_bytes += bytes;
        self.answer(option, payload, text, export)
    }

    fn too_big(&mut self, option: u32, bytes: u32, text: &mut Vec<u8>) -> Step {
        if option == option::EXPORT_NAME {
            // This option has no error reply.
            return Step::Drop(Why::TooManyOptions);
        }
        self.options += 1;
        self.options_bytes += bytes;
        self.stage = Stage::Skip(bytes);
        reply(text, option, answer::ERR_TOO_BIG, &[]);
        Step::Used(OPTION_HEAD_BYTES)
    }

    fn answer(&mut self, option: u32, data: &[u8], text: &mut Vec<u8>, export: &Export) -> Step {
        let used = OPTION_HEAD_BYTES + data.len();
        let verdict = match option {
            option::EXPORT_NAME => {
                self.export_name(text, export);
                return Step::Ready(used);
            }
            option::ABORT => {
                reply(text, option, answer::ACK, &[]);
                return Step::Close;
            }
            option::LIST => list(data, text),
            option::INFO | option::GO => self.info(option, data, text, export),
            option::STRUCTURED_REPLY => self.structured(data),
            option::LIST_META_CONTEXT => self.list_contexts(data, text),
            option::SET_META_CONTEXT => self.set_contexts(data, text),
            _ => Some(answer::ERR_UNSUP),
        };
        reply(text, option, verdict.unwrap_or(answer::ACK), &[]);
        match (option, verdict) {
            (option::GO, None) => Step::Ready(used),
            _ => Step::Used(used),
        }
    }

    fn export_name(&self, text: &mut Vec<u8>, export: &Export) {
        put(text, &export.bytes().to_be_bytes());
        put(text, &transmission_flags(export, self.features).to_be_bytes());
        if !self.no_zeroes {
            put(text, &[0; 124]);
        }
    }

    fn structured(&mut self, data: &[u8]) -> Option<u32> {
        if !data.is_empty() {
            return Some(answer::ERR_INVALID);
        }
        self.features.structured = true;
        None
    }

    fn info(&self, option: u32, data: &[u8], text: &mut Vec<u8>, export: &Export) -> Option<u32> {
        let Some((name, wanted)) = parse_info(data) else { return Some(answer::ERR_INVALID) };
        let flags = transmission_flags(export, self.features);
        let size = export.bytes();
        info_reply(text, option, info::EXPORT, &[&size.to_be_bytes(), &flags.to_be_bytes()]);
        let sector = export.sector_size;
        let sizes = [sector, sector.max(4096), proto::REQUEST_DATA_MAX].map(u32::to_be_bytes);
        info_reply(text, option, info::BLOCK_SIZE, &[sizes.as_flattened()]);
        if asks(wanted, info::NAME) && name.len() <= NAME_BYTES_MAX {
            info_reply(text, option, info::NAME, &[name]);
        }
        if asks(wanted, info::DESCRIPTION) {
            info_reply(text, option, info::DESCRIPTION, &[DESCRIPTION]);
        }
        None
    }

    fn list_contexts(&self, data: &[u8], text: &mut Vec<u8>) -> Option<u32> {
        let matches = |query: &[u8]| query == proto::ALLOCATION || query == b"base:";
        let Some((count, found)) = parse_queries(data, matches).filter(|_| self.can_chunk()) else {
            return Some(answer::ERR_INVALID);
        };
        if count == 0 || found {
            context_reply(text, option::LIST_META_CONTEXT, 0);
        }
        None
    }

    fn set_contexts(&mut self, data: &[u8], text: &mut Vec<u8>) -> Option<u32> {
        let parsed = parse_queries(data, |query| query == proto::ALLOCATION);
        self.features.allocation = false;
        let Some((_, found)) = parsed.filter(|_| self.can_chunk()) else {
            return Some(answer::ERR_INVALID);
        };
        self.features.allocation = found;
        if found {
            context_reply(text, option::SET_META_CONTEXT, proto::ALLOCATION_ID);
        }
        None
    }

    /// Metadata contexts need structured replies.
    fn can_chunk(&self) -> bool {
        self.features.structured
    }
}

/// A wrong magic is recognised as soon as its eight bytes are there.
fn wrong_magic(input: &[u8]) -> Option<Step> {
    (input.len() >= 8 && u64_at(input, 0) != proto::OPTION_MAGIC)
        .then_some(Step::Drop(Why::BadNegotiation))
}

fn list(data: &[u8], text: &mut Vec<u8>) -> Option<u32> {
    if !data.is_empty() {
        return Some(answer::ERR_INVALID);
    }
    let length = (EXPORT_NAME.len() as u32).to_be_bytes();
    reply(text, option::LIST, answer::SERVER, &[&length, EXPORT_NAME]);
    None
}

/// Name and wanted information of INFO and GO.
fn parse_info(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (name, rest) = string(data)?;
    let (count, wanted) = rest.split_at_checked(2)?;
    let count = u16::from_be_bytes(count.try_into().ok()?);
    (wanted.len() == usize::from(count) * 2).then_some((name, wanted))
}

fn asks(wanted: &[u8], kind: u16) -> bool {
    wanted.chunks_exact(2).any(|w| w == kind.to_be_bytes())
}

/// How many queries there are, and whether one of them matches. `None` if the option is malformed.
fn parse_queries(data: &[u8], matches: impl Fn(&[u8]) -> bool) -> Option<(u32, bool)> {
    let (_name, rest) = string(data)?;
    let (count, mut rest) = rest.split_at_checked(4)?;
    let count = u32_at(count, 0);
    let mut found = false;
    for _ in 0..count {
        // At least four bytes each, so the option's length bounds this loop.
        let (query, after) = string(rest)?;
        found |= matches(query);
        rest = after;
    }
    rest.is_empty().then_some((count, found))
}

/// A string with its length in front, and what follows it.
fn string(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = data.split_at_checked(4)?;
    rest.split_at_checked(u32_at(length, 0) as usize)
}

fn context_reply(text: &mut Vec<u8>, option: u32, id: u32) {
    reply(text, option, answer::META_CONTEXT, &[&id.to_be_bytes(), proto::ALLOCATION]);
}

fn info_reply(text: &mut Vec<u8>, option: u32, kind: u16, parts: &[&[u8]]) {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    reply_head(text, option, answer::INFO, bytes + 2);
    put(text, &kind.to_be_bytes());
    parts.iter().for_each(|part| put(text, part));
}

fn reply(text: &mut Vec<u8>, option: u32, kind: u32, parts: &[&[u8]]) {
    reply_head(text, option, kind, parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| put(text, part));
}

fn reply_head(text: &mut Vec<u8>, option: u32, kind: u32, bytes: usize) {
    put(text, &proto::OPTION_REPLY_MAGIC.to_be_bytes());
    put(text, &option.to_be_bytes());
    put(text, &kind.to_be_bytes());
    put(text, &(bytes as u32).to_be_bytes());
}

fn put(text: &mut Vec<u8>, bytes: &[u8]) {
    assert!(text.capacity() - text.len() >= bytes.len(), "a negotiation's answers fit the buffer");
    text.extend_from_slice(bytes);
}
