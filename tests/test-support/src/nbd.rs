//! A small NBD client of our own: fixed newstyle, structured replies, `base:allocation`, extents; or
//! as the oldest clients do it, with EXPORT_NAME and simple replies. Errors are values, so that
//! tests can ask for what must fail; a broken protocol panics.
//!
//! ```text
//!   read, write, flush …  = send, then receive       one request at a time
//!   send ×n, receive ×n                              many in flight; replies by cookie
//! ```
//! Numbers are of the NBD protocol document (doc/proto.md of the nbd project).
mod greeting;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// The longest wait for a reply.
const PATIENCE: Duration = Duration::from_secs(150);
/// Bytes of one request of the whole-disk functions.
const CHUNK: u64 = 1 << 20;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Verb {
    /// NBD_CMD_READ
    Read = 0,
    /// NBD_CMD_WRITE
    Write = 1,
    /// NBD_CMD_DISC
    Disconnect = 2,
    /// NBD_CMD_FLUSH
    Flush = 3,
    /// NBD_CMD_TRIM
    Trim = 4,
    /// NBD_CMD_CACHE
    Cache = 5,
    /// NBD_CMD_WRITE_ZEROES
    Zero = 6,
    /// NBD_CMD_BLOCK_STATUS
    BlockStatus = 7,
}

/// NBD_CMD_FLAG_FUA
pub const FUA: u16 = 1;
/// NBD_CMD_FLAG_NO_HOLE
pub const NO_HOLE: u16 = 2;
/// NBD_CMD_FLAG_REQ_ONE
pub const REQ_ONE: u16 = 8;
/// NBD_CMD_FLAG_FAST_ZERO
pub const FAST_ZERO: u16 = 16;

/// Bits of a block status: a hole, and reads as zeros.
pub const HOLE_AND_ZERO: u32 = 3;

/// An errno that the server sent.
pub type Result<T> = std::result::Result<T, u32>;

/// A part of the disk with one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Bytes.
    pub bytes: u64,
    /// Bits; 0 is data.
    pub status: u32,
}

/// What came back for a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Of which request.
    pub cookie: u64,
    /// The first error, or success.
    pub result: Result<()>,
    /// What was read; holes are filled with zeros.
    pub data: Vec<u8>,
    /// Block status.
    pub extents: Vec<Extent>,
}

/// A connection in the transmission phase.
pub struct Client {
    /// The connection.
    pub stream: UnixStream,
    /// Size of the disk in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Smallest, preferred and largest request in bytes.
    pub block: [u32; 3],
    /// Whether reads are answered in chunks.
    structured: bool,
    next: u64,
    /// Requested reads: cookie, offset, bytes.
    reads: Vec<(u64, u64, usize)>,
    /// Replies of which more is to come.
    open: Vec<Reply>,
}

impl Client {
    /// Connects and negotiates everything.
    ///
    /// # Panics
    /// If the server does not take that.
    #[track_caller]
    pub fn connect(socket: &Path) -> Client {
        let stream = UnixStream::connect(socket)
            .unwrap_or_else(|e| panic!("cannot connect to {}: {e}", socket.display()));
        let mut client = Client::over(stream);
        client.greet();
        client
    }

    /// Connects as the oldest clients do: no options but the name, simple replies.
    ///
    /// # Panics
    /// If the server does not take that.
    #[track_caller]
    pub fn connect_plainly(socket: &Path) -> Client {
        let stream = UnixStream::connect(socket)
            .unwrap_or_else(|e| panic!("cannot connect to {}: {e}", socket.display()));
        let mut client = Client::over(stream);
        client.begin();
        client.name_export();
        client
    }

    /// Over a connection on which nothing has been said, or that has been negotiated.
    ///
    /// # Panics
    /// If it is none.
    pub fn over(stream: UnixStream) -> Client {
        stream.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        Client {
            stream,
            size: 0,
            flags: 0,
            block: [0; 3],
            structured: false,
            next: 1,
            reads: Vec::new(),
            open: Vec::new(),
        }
    }

    // ---- one at a time -------------------------------------------------------------------------

    /// Reads.
    ///
    /// # Errors
    /// The server's.
    pub fn read(&mut self, at: u64, bytes: u32) -> Result<Vec<u8>> {
        let reply = self.ask(Verb::Read, 0, at, bytes, &[]);
        reply.result.map(|()| reply.data)
    }

    /// Writes.
    ///
    /// # Errors
    /// The server's.
    pub fn write(&mut self, at: u64, data: &[u8]) -> Result<()> {
        self.write_with(0, at, data)
    }

    /// Writes with flags.
    ///
    /// # Errors
    /// The server's.
    pub fn write_with(&mut self, flags: u16, at: u64, data: &[u8]) -> Result<()> {
        let bytes = u32::try_from(data.len()).expect("a request of less than 4 GiB");
        self.ask(Verb::Write, flags, at, bytes, data).result
    }

    /// Writes one byte over and over.
    ///
    /// # Errors
    /// The server's.
    pub fn fill(&mut self, at: u64, bytes: u64, byte: u8) -> Result<()> {
        self.write(at, &vec![byte; usize::try_from(bytes).expect("a small write")])
    }

    /// Does something without data: flush, trim, cache, zero.
    ///
    /// # Errors
    /// The server's.
    pub fn command(&mut self, verb: Verb, flags: u16, at: u64, bytes: u64) -> Result<()> {
        let bytes = u32::try_from(bytes).expect("a request of less than 4 GiB");
        self.ask(verb, flags, at, bytes, &[]).result
    }

    /// Flushes.
    ///
    /// # Errors
    /// The server's.
    pub fn flush(&mut self) -> Result<()> {
        self.command(Verb::Flush, 0, 0, 0)
    }

    /// What lies where: extents, beginning at `at`.
    ///
    /// # Errors
    /// The server's.
    pub fn block_status(&mut self, at: u64, bytes: u32) -> Result<Vec<Extent>> {
        let reply = self.ask(Verb::BlockStatus, 0, at, bytes, &[]);
        reply.result.map(|()| reply.extents)
    }

    /// Demands that a part of the disk holds one byte over and over.
    #[track_caller]
    pub fn expect(&mut self, at: u64, bytes: u64, byte: u8) {
        let mut done = 0;
        while done < bytes {
            let part = CHUNK.min(bytes - done);
            let data = self.read(at + done, u32::try_from(part).expect("a chunk"));
            let data = data.unwrap_or_else(|e| panic!("a read at {} fails: {e}", at + done));
            if let Some(wrong) = data.iter().position(|found| *found != byte) {
                let place = at + done + wrong as u64;
                panic!("byte {place} is {:#04x}, not {byte:#04x}", data[wrong]);
            }
            done += part;
        }
    }

    /// The whole disk.
    #[track_caller]
    pub fn dump(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while (all.len() as u64) < self.size {
            let part = CHUNK.min(self.size - all.len() as u64);
            let data = self.read(all.len() as u64, u32::try_from(part).expect("a chunk"));
            all.extend(data.unwrap_or_else(|e| panic!("a read at {} fails: {e}", all.len())));
        }
        all
    }

    // ---- many in flight ------------------------------------------------------------------------

    /// Sends a request; gives its cookie.
    ///
    /// # Panics
    /// If the server hangs up.
    pub fn send(&mut self, verb: Verb, flags: u16, at: u64, bytes: u32, data: &[u8]) -> u64 {
        self.try_send(verb, flags, at, bytes, data).expect("the server takes requests")
    }

    /// Sends a request to a server that may be gone.
    ///
    /// # Errors
    /// It is.
    pub fn try_send(
        &mut self,
        verb: Verb,
        flags: u16,
        at: u64,
        bytes: u32,
        data: &[u8],
    ) -> std::io::Result<u64> {
        let cookie = self.next;
        self.next += 1;
        let mut message = Vec::with_capacity(28 + data.len());
        message.extend(REQUEST_MAGIC.to_be_bytes());
        message.extend(flags.to_be_bytes());
        message.extend((verb as u16).to_be_bytes());
        message.extend(cookie.to_be_bytes());
        message.extend(at.to_be_bytes());
        message.extend(bytes.to_be_bytes());
        message.extend(data);
        self.stream.write_all(&message)?;
        if verb == Verb::Read {
            self.reads.push((cookie, at, bytes as usize));
        }
        Ok(cookie)
    }

    /// Receives a whole reply, which may be of any request.
    ///
    /// # Panics
    /// If the server hangs up, or breaks the protocol.
    pub fn receive(&mut self) -> Reply {
        self.try_receive().expect("the server answers")
    }

    /// Receives until a reply is whole, of a server that may be gone. Chunks of several replies may
    /// come mixed.
    ///
    /// # Errors
    /// It is.
    pub fn try_receive(&mut self) -> std::io::Result<Reply> {
        loop {
            let magic = self.u32()?;
            assert!(magic == SIMPLE_MAGIC || magic == CHUNK_MAGIC, "magic {magic:#x}");
            let (cookie, last) = if magic == SIMPLE_MAGIC {
                let (error, cookie) = (self.u32()?, self.u64()?);
                self.reply(cookie).result = if error == 0 { Ok(()) } else { Err(error) };
                let bytes = self.reads.iter().find(|read| read.0 == cookie).map(|read| read.2);
                if let Some(bytes) = bytes.filter(|_| error == 0) {
                    assert!(!self.structured, "a read is answered in chunks");
                    self.reply(cookie).data = self.bytes(bytes)?;
                }
                (cookie, true)
            } else {
                let (flags, kind) = (self.u16()?, self.u16()?);
                let (cookie, bytes) = (self.u64()?, self.u32()? as usize);
                let payload = self.bytes(bytes)?;
                let start = self.reads.iter().find(|read| read.0 == cookie).map(|read| read.1);
                take_chunk(self.reply(cookie), start, kind, &payload);
                (cookie, flags & 1 != 0)
            };
            if last {
                self.reads.retain(|read| read.0 != cookie);
                let at = self.open.iter().position(|reply| reply.cookie == cookie);
                return Ok(self.open.swap_remove(at.expect("the reply that is whole")));
            }
        }
    }

    /// The reply that a chunk belongs to. 0xcc stands where the server has sent nothing.
    fn reply(&mut self, cookie: u64) -> &mut Reply {
        let at = self.open.iter().position(|reply| reply.cookie == cookie).unwrap_or_else(|| {
            let bytes = self.reads.iter().find(|read| read.0 == cookie).map_or(0, |read| read.2);
            let data = vec![0xcc; bytes];
            self.open.push(Reply { cookie, result: Ok(()), data, extents: Vec::new() });
            self.open.len() - 1
        });
        &mut self.open[at]
    }

    /// Says good-bye.
    pub fn disconnect(mut self) {
        self.send(Verb::Disconnect, 0, 0, 0, &[]);
    }

    fn ask(&mut self, verb: Verb, flags: u16, at: u64, bytes: u32, data: &[u8]) -> Reply {
        let cookie = self.send(verb, flags, at, bytes, data);
        let reply = self.receive();
        assert_eq!(reply.cookie, cookie, "a reply to something else");
        reply
    }

    // ---- bytes ---------------------------------------------------------------------------------

    fn bytes(&mut self, count: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u16(&mut self) -> std::io::Result<u16> {
        Ok(u16::from_be_bytes(self.bytes(2)?.try_into().expect("two bytes")))
    }

    fn u32(&mut self) -> std::io::Result<u32> {
        Ok(u32::from_be_bytes(self.bytes(4)?.try_into().expect("four bytes")))
    }

    fn u64(&mut self) -> std::io::Result<u64> {
        Ok(u64::from_be_bytes(self.bytes(8)?.try_into().expect("eight bytes")))
    }
}

/// Takes one chunk of a structured reply into a reply; `start` is the offset of the read.
fn take_chunk(reply: &mut Reply, start: Option<u64>, kind: u16, payload: &[u8]) {
    let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("4 bytes"));
    let place = |start: Option<u64>| {
        let at = u64::from_be_bytes(payload[..8].try_into().expect("an offset"));
        usize::try_from(at - start.expect("a chunk of data answers a read")).expect("in range")
    };
    match kind {
        // none, offset_data, offset_hole, block_status
        0 => {}
        1 => reply.data[place(start)..][..payload.len() - 8].copy_from_slice(&payload[8..]),
        2 => reply.data[place(start)..][..word(8) as usize].fill(0),
        5 => reply.extents.extend(
            (4..payload.len())
                .step_by(8)
                .map(|at| Extent { bytes: u64::from(word(at)), status: word(at + 4) }),
        ),
        // error, error_offset
        0x8001 | 0x8002 => reply.result = reply.result.and(Err(word(0))),
        _ => panic!("chunk of type {kind:#x}"),
    }
}
