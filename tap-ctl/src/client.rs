//! A client of running tapdisks: one connection and one request a call.
//!
//! Time limits are those of the original (`control-socket.md` §4): LIST 10 s for the whole
//! exchange, STATS 10 s to send, CLOSE and PAUSE what the caller says, everything else none,
//! because a pause lasts as long as storage hangs. PID, which had none, is limited like LIST,
//! so that one stuck tapdisk cannot hang `tap-ctl list` for ever.
//!
//! A reply may come in pieces. SIGPIPE must be ignored, as Rust programs do by default.

mod exchange;

use crate::error::Error;
use crate::messages::{
    Blkif, COOKIE_ALL, CommitStatus, ImageInfo, KEY_BYTES_MAX, ListEntry, Params, Rates, Request,
    StatInfo, TapdiskPid, Text, Upgraded, flag,
};
use crate::paths::RunDir;
use crate::wiped::Wiped;
use exchange::Exchange;
use std::time::Duration;

/// Limit for a whole LIST exchange, for PID, and for sending STATS.
pub const LIST_LIMIT: Duration = Duration::from_secs(10);
/// Limit for an UPGRADE, which itself gives up earlier.
const UPGRADE_LIMIT: Duration = Duration::from_secs(60);
/// Longest statistics text that is accepted, in bytes. Real ones have a few kilobytes a VBD.
pub const STATS_BYTES_MAX: u64 = 64 << 20;
/// Most replies that are accepted to one LIST: there are no more minors than cookies.
const LIST_ENTRIES_MAX: usize = COOKIE_ALL as usize + 1;

/// Speaks to the tapdisks of one run-time directory.
#[derive(Clone, Debug)]
pub struct Client {
    run: RunDir,
    trace: fn(&str),
    says: fn(&[u8]) -> Vec<String>,
    tell: fn(&str),
}

/// How long OPEN and RESUME may take before it is asked what they wait for, and again.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// What follows the message of OPEN and RESUME.
#[derive(Clone, Copy, Debug, Default)]
pub struct Payload<'a> {
    /// Path of the changed-block log; sets [`flag::ADD_LOG`].
    pub log_path: Option<&'a Text>,
    /// Encryption key of 1…128 bytes; sets [`flag::OPEN_ENCRYPTED`]. OPEN only.
    pub key: Option<&'a [u8]>,
}

impl Client {
    /// A client of the tapdisks in `run`.
    pub fn new(run: RunDir) -> Client {
        Client { run, trace: |_| {}, says: |_| Vec::new(), tell: |_| {} }
    }

    /// Call `trace` with a line for every message sent and received (`--debug`).
    pub fn with_trace(self, trace: fn(&str)) -> Client {
        Client { trace, ..self }
    }

    /// Call `tell` with a sentence for everything that a disk which is being opened waits for, such
    /// as another process that writes its image, and for every catch that it was opened with.
    /// `says` finds the sentences in the disk's statistics.
    pub fn with_sentences(self, says: fn(&[u8]) -> Vec<String>, tell: fn(&str)) -> Client {
        Client { says, tell, ..self }
    }

    /// The run-time directory.
    pub fn run_dir(&self) -> &RunDir {
        &self.run
    }

    /// The pid that the tapdisk at `ctl<pid>` says it has.
    ///
    /// # Errors
    /// As all calls: [`Error::Connect`], [`Error::Send`], [`Error::NoReply`], [`Error::TimedOut`],
    /// [`Error::Refused`] with the tapdisk's errno, or a reply that makes no sense.
    pub fn pid(&self, pid: i32) -> Result<i32, Error> {
        let mut exchange = self.begin(pid, &Request::Pid, Some(LIST_LIMIT))?;
        Ok(exchange.reply::<TapdiskPid>()?.pid)
    }

    /// The VBDs of a tapdisk, in order of attachment, within `limit` (usually [`LIST_LIMIT`]).
    ///
    /// # Errors
    /// See [`Client::pid`].
    pub fn list(&self, pid: i32, limit: Duration) -> Result<Vec<ListEntry>, Error> {
        let mut exchange = self.begin(pid, &Request::List, Some(limit))?;
        let mut entries = Vec::new();
        while entries.len() < LIST_ENTRIES_MAX {
            let entry = exchange.reply::<ListEntry>()?;
            if entry.count <= 0 {
                return Ok(entries);
            }
            entries.push(entry);
        }
        Err(Error::BadReply { pid, reason: format!("a list of more than {LIST_ENTRIES_MAX} VBDs") })
    }

    /// Add a VBD to a tapdisk. Its minor must have been allocated.
    ///
    /// # Errors
    /// See [`Client::pid`]. EEXIST: attached already; EPERM: no marker.
    pub fn attach(&self, pid: i32, minor: u16) -> Result<(), Error> {
        self.simple(pid, &Request::Attach { minor }, None)
    }

    /// Remove a VBD from a tapdisk, which exits when it was the last.
    ///
    /// # Errors
    /// See [`Client::pid`]. ENODEV: unknown minor; EBUSY: still open.
    pub fn detach(&self, pid: i32, minor: u16) -> Result<(), Error> {
        self.simple(pid, &Request::Detach { minor }, None)
    }

    /// Open the images of a VBD.
    ///
    /// # Errors
    /// See [`Client::pid`]. EINVAL also for a minor that is not attached; EALREADY: open.
    pub fn open(
        &self,
        pid: i32,
        minor: u16,
        params: &Params,
        payload: Payload<'_>,
    ) -> Result<ImageInfo, Error> {
        let key = payload.key.map(key_block).transpose()?;
        let mut params = Params { devnum: minor.into(), ..*params };
        params.flags |= log_flag(&payload);
        params.flags |= if key.is_some() { flag::OPEN_ENCRYPTED } else { 0 };
        let mut exchange = self.begin(pid, &Request::Open { minor, params }, None)?;
        exchange.send_blocks(&[log_block(&payload), key.as_deref()]);
        let mut sentences = Sentences { client: self, of: (pid, minor), told: Vec::new() };
        let info = exchange.reply_asking(ASK_AFTER, &mut || sentences.ask())?;
        sentences.ask();
        Ok(info)
    }

    /// Close the images of a VBD; with `force` without waiting for guest rings. `limit` is one
    /// budget for sending and receiving; after it ran out the tapdisk goes on closing.
    ///
    /// # Errors
    /// See [`Client::pid`]. ENODEV: unknown minor.
    pub fn close(
        &self,
        pid: i32,
        minor: u16,
        force: bool,
        limit: Option<Duration>,
    ) -> Result<(), Error> {
        let request =
            if force { Request::ForceShutdown { minor } } else { Request::Close { minor } };
        self.simple(pid, &request, limit)
    }

    /// Wait for the requests in flight and close the images until [`Client::unpause`].
    ///
    /// # Errors
    /// See [`Client::pid`]. ENODEV: unknown minor.
    pub fn pause(&self, pid: i32, minor: u16, limit: Option<Duration>) -> Result<(), Error> {
        self.simple(pid, &Request::Pause { minor }, limit)
    }

    /// Open the images of a paused VBD again. In `params` the path (empty: the former one), the
    /// secondary and [`flag::SECONDARY`] count.
    ///
    /// # Errors
    /// See [`Client::pid`]. EINVAL: not paused; EMEDIUMTYPE: size or sector size changed.
    pub fn unpause(
        &self,
        pid: i32,
        minor: u16,
        params: &Params,
        log_path: Option<&Text>,
    ) -> Result<(), Error> {
        let payload = Payload { log_path, key: None };
        let mut params = Params { devnum: minor.into(), ..*params };
        params.flags |= log_flag(&payload);
        let mut exchange = self.begin(pid, &Request::Resume { minor, params }, None)?;
        exchange.send_blocks(&[log_block(&payload)]);
        let mut sentences = Sentences { client: self, of: (pid, minor), told: Vec::new() };
        exchange.done_asking(ASK_AFTER, &mut || sentences.ask())?;
        sentences.ask();
        Ok(())
    }

    /// The statistics of a VBD, or of all with [`COOKIE_ALL`]: the text as it was sent.
    ///
    /// # Errors
    /// See [`Client::pid`]. ENODEV: unknown minor.
    pub fn stats(&self, pid: i32, minor: u16) -> Result<Vec<u8>, Error> {
        let mut exchange = self.begin(pid, &Request::Stats { minor }, Some(LIST_LIMIT))?;
        exchange.unlimited();
        let StatInfo { length } = exchange.reply()?;
        match usize::try_from(length) {
            Ok(bytes) if length <= STATS_BYTES_MAX => exchange.receive_bytes(bytes),
            _ => Err(Error::BadReply { pid, reason: format!("statistics of {length} bytes") }),
        }
    }

    /// Begin to merge an image of a VBD's chain into its parent. Its end is [`Client::query`]'s.
    ///
    /// # Errors
    /// See [`Client::pid`]. EBADF: paused; EBUSY: one is under way; ENOENT: no image of the chain.
    pub fn commit(&self, pid: i32, minor: u16, path: Text) -> Result<(), Error> {
        self.simple(pid, &Request::Commit { minor, path }, None)
    }

    /// How far the last commit is.
    ///
    /// # Errors
    /// See [`Client::pid`]; why it failed.
    pub fn query(&self, pid: i32, minor: u16) -> Result<CommitStatus, Error> {
        self.begin(pid, &Request::QueryCommit { minor }, Some(LIST_LIMIT))?.reply()
    }

    /// Stop a commit; with `wait` nothing is written to the parent any more afterwards.
    ///
    /// # Errors
    /// See [`Client::pid`].
    pub fn cancel(&self, pid: i32, minor: u16, wait: bool) -> Result<(), Error> {
        self.simple(pid, &Request::CancelCommit { minor, wait }, None)
    }

    /// Change the limits of a VBD, and learn what they are then.
    ///
    /// # Errors
    /// See [`Client::pid`]. ENODEV: unknown minor; EINVAL: a tapdisk without limits.
    pub fn limit(&self, pid: i32, minor: u16, rates: Rates) -> Result<Rates, Error> {
        self.begin(pid, &Request::Limit { minor, rates }, Some(LIST_LIMIT))?.reply()
    }

    /// Size and sector size of a VBD as stored when it was opened.
    ///
    /// # Errors
    /// See [`Client::pid`]. ENODEV: unknown minor.
    pub fn disk_info(&self, pid: i32, minor: u16) -> Result<ImageInfo, Error> {
        self.begin(pid, &Request::DiskInfo { minor }, None)?.reply()
    }

    /// Connect a ring of a guest to a VBD. A frontend with several queues needs one call a queue.
    ///
    /// # Errors
    /// See [`Client::pid`]. ENODEV: unknown minor; EALREADY: this ring is connected; otherwise that
    /// of the grant and event channel devices.
    pub fn connect_ring(&self, pid: i32, minor: u16, ring: &Blkif) -> Result<(), Error> {
        self.simple(pid, &Request::Connect { minor, blkif: *ring }, None)
    }

    /// Disconnect all rings of a guest's device.
    ///
    /// # Errors
    /// See [`Client::pid`]. ENODEV: none is connected.
    pub fn disconnect_ring(&self, pid: i32, domid: u32, devid: u32) -> Result<(), Error> {
        self.simple(pid, &Request::Disconnect { domid, devid }, None)
    }

    /// Lets a tapdisk go on with another program, in the same process. It has done so when this
    /// comes back; whether the program can take over is for [`crate::upgrade::ask`] to find out
    /// before.
    ///
    /// # Errors
    /// See [`Client::pid`]. EINVAL from a tapdisk that does not know the request; EBUSY: something
    /// is under way; what the disk or exec says. It goes on with its old program then.
    pub fn upgrade(&self, pid: i32, program: &Text) -> Result<Upgraded, Error> {
        let request = Request::Upgrade { program: *program };
        self.begin(pid, &request, Some(UPGRADE_LIMIT))?.reply()
    }

    fn begin(
        &self,
        pid: i32,
        request: &Request,
        limit: Option<Duration>,
    ) -> Result<Exchange, Error> {
        Exchange::begin(&self.run.ctl(pid), pid, request, limit, self.trace)
    }

    fn simple(&self, pid: i32, request: &Request, limit: Option<Duration>) -> Result<(), Error> {
        self.begin(pid, request, limit)?.done()
    }
}

/// Passes on what a disk says while it is opened, each sentence once.
struct Sentences<'a> {
    client: &'a Client,
    of: (i32, u16),
    told: Vec<String>,
}

impl Sentences<'_> {
    fn ask(&mut self) {
        let (pid, minor) = self.of;
        // The statistics of a tapdisk of another version say nothing of it. They are no part of
        // what was asked for on the command line, so they are not traced.
        let client = Client { trace: |_| {}, ..self.client.clone() };
        let text = client.stats(pid, minor).unwrap_or_default();
        for sentence in (client.says)(&text) {
            if !self.told.contains(&sentence) {
                (client.tell)(&sentence);
                self.told.push(sentence);
            }
        }
    }
}

fn log_flag(payload: &Payload<'_>) -> u32 {
    if payload.log_path.is_some() { flag::ADD_LOG } else { 0 }
}

/// The full 256-byte field, whatever the length of the path (§5.3).
fn log_block<'a>(payload: &Payload<'a>) -> Option<&'a [u8]> {
    payload.log_path.map(|path| path.field().as_slice())
}

/// One byte for the length, then the key (§5.3), to be sent with a single write.
fn key_block(key: &[u8]) -> Result<Wiped, Error> {
    let refuse = || Error::Argument {
        errno: libc::EINVAL,
        reason: format!("the key has {} bytes and must have 1 to {KEY_BYTES_MAX}", key.len()),
    };
    match u8::try_from(key.len()) {
        Ok(len) if len > 0 && key.len() <= KEY_BYTES_MAX => Ok(Wiped::new([&[len], key].concat())),
        _ => Err(refuse()),
    }
}

#[cfg(test)]
mod tests;
