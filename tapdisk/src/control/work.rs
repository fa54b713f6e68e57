//! What the requests do, and what is answered.
use slog::{info, warn};
use tap_ctl::messages::{
    Blkif, COOKIE_ALL, ListEntry, Message, Rates, Request, Response, StatInfo, TapdiskPid, kind,
};

use super::upgrade::{Arriving, Leaving};
use crate::formats::OpenError;
use crate::receiver::Receiver;
use crate::stats_json::Json;
use crate::tokens::{VBD_TOKENS, VBD_TOKENS_BASE};
use crate::vbd::{Attach, Env, Extra, State, Vbd, ring_name};

/// A marker that another process holds is tried again after this time, in µs.
const MARKER_RETRY_US: u64 = 100_000;

/// A commit that begins or ends is looked at again after this time, in µs.
const COMMIT_LOOK_US: u64 = 5_000;

/// The disks and what they have in common.
pub struct Daemon {
    /// For all disks.
    pub env: Env,
    /// In order of attachment.
    pub vbds: Vec<Vbd>,
    /// Takes descriptors for the NBD client.
    pub receiver: Option<Receiver>,
    /// The last disk was detached.
    pub over: bool,
    /// Disks attached so far.
    attached: usize,
    /// Why the last minor was not attached, for the reply.
    not_attached: Option<OpenError>,
    /// On the way to another program.
    pub leaving: Option<Leaving>,
    /// Another program has left its disks to this one, and waits for an answer.
    pub arriving: Option<Arriving>,
}

/// What beginning an exclusive request came to.
pub enum Begun {
    /// It is over; the reply.
    Done(Vec<u8>),
    /// The disk will tell when it is.
    Later,
    /// It has to be begun again at this time, in µs.
    Again {
        /// µs of the clock.
        at: u64,
    },
    /// All is at rest: the server goes on with another program.
    Leave,
}

impl Daemon {
    /// No disks yet.
    pub fn new(env: Env, receiver: Receiver) -> Daemon {
        let receiver = Some(receiver);
        Daemon {
            env,
            vbds: Vec::new(),
            receiver,
            over: false,
            attached: 0,
            not_attached: None,
            leaving: None,
            arriving: None,
        }
    }

    /// The token of the next disk.
    pub(super) fn next_token(&mut self) -> usize {
        self.attached += 1;
        VBD_TOKENS_BASE + (self.attached - 1) * VBD_TOKENS
    }

    /// The reply of a request that may be served at any time.
    pub fn at_once(&mut self, request: &Request) -> Option<Vec<u8>> {
        match request {
            Request::Pid => {
                let body = TapdiskPid { pid: self.env.pid };
                Some(Message::with(kind::PID_RSP, 0, &body).encode().to_vec())
            }
            Request::List => Some(self.list()),
            Request::Stats { minor } => Some(self.stats(*minor)),
            Request::QueryCommit { minor } => Some(self.query_commit(request, *minor)),
            Request::Limit { minor, rates } => Some(self.limit(request, *minor, rates)),
            _ => None,
        }
    }

    /// A request that has to wait for its turn. A close ends what its disk waits for: an open that
    /// waits for somebody else would keep it for minutes.
    pub fn hurry(&mut self, request: &Request) {
        let (Request::Close { minor } | Request::ForceShutdown { minor }) = request else { return };
        self.vbds.iter().filter(|vbd| vbd.minor == *minor).for_each(Vbd::give_up);
    }

    /// Begins an exclusive request.
    pub fn begin(&mut self, request: &Request, extra: &Extra, now: u64) -> Begun {
        let result = match request {
            Request::Attach { minor } => match self.attach(*minor) {
                Some(result) => result,
                None => return Begun::Again { at: now + MARKER_RETRY_US },
            },
            Request::Detach { minor } => self.detach(*minor),
            Request::Open { minor, params } => {
                return self.on(request, *minor, libc::EINVAL, now, |vbd, env| {
                    vbd.open(env, params, extra)
                });
            }
            Request::Resume { minor, params } => {
                return self.on(request, *minor, libc::ENODEV, now, |vbd, env| {
                    vbd.resume(env, params, extra)
                });
            }
            Request::Pause { minor } => {
                return self.on(request, *minor, libc::ENODEV, now, |vbd, env| {
                    vbd.pause(env);
                    Ok(())
                });
            }
            Request::Close { minor } | Request::ForceShutdown { minor } => {
                let force = matches!(request, Request::ForceShutdown { .. });
                return self.on(request, *minor, libc::ENODEV, now, |vbd, env| {
                    vbd.close(env, force);
                    Ok(())
                });
            }
            Request::Connect { minor, blkif } => self.connect(*minor, blkif),
            Request::Disconnect { domid, devid } => {
                let Daemon { env, vbds, .. } = self;
                let found = vbds.iter_mut().any(|vbd| vbd.disconnect_ring(env, *domid, *devid));
                if found { Ok(()) } else { Err(libc::ENODEV) }
            }
            Request::DiskInfo { minor } => self.find(*minor).map(|_| ()).ok_or(libc::ENODEV),
            Request::Upgrade { program } => return self.upgrade(request, *program, now),
            Request::Commit { minor, path } => {
                return self.on_commit(request, *minor, now, |vbd, env| vbd.commit(env, path));
            }
            Request::CancelCommit { minor, wait } => {
                return self.on_commit(request, *minor, now, |vbd, _| vbd.cancel_commit(*wait));
            }
            Request::Pid
            | Request::List
            | Request::Stats { .. }
            | Request::QueryCommit { .. }
            | Request::Limit { .. } => {
                unreachable!("answered at once")
            }
        };
        Begun::Done(self.reply(request, result))
    }

    /// Connects a ring, unless it is connected to some disk of ours.
    fn connect(&mut self, minor: u16, blkif: &Blkif) -> Result<(), i32> {
        let Daemon { env, vbds, .. } = self;
        let Some(at) = vbds.iter().position(|vbd| vbd.minor == minor) else {
            return Err(libc::ENODEV);
        };
        let known = ring_name(blkif).is_ok_and(|name| vbds.iter().any(|vbd| vbd.has_ring(name)));
        if known { Err(libc::EALREADY) } else { vbds[at].connect_ring(env, blkif) }
    }

    /// Something about a commit, which is looked at again until it is over.
    fn on_commit(
        &mut self,
        request: &Request,
        minor: u16,
        now: u64,
        look: impl FnOnce(&mut Vbd, &Env) -> Option<Result<(), i32>>,
    ) -> Begun {
        let Daemon { env, vbds, .. } = self;
        let result = match vbds.iter_mut().find(|vbd| vbd.minor == minor) {
            None => Err(libc::ENODEV),
            Some(vbd) => match look(vbd, env) {
                Some(result) => result,
                None => return Begun::Again { at: now + COMMIT_LOOK_US },
            },
        };
        Begun::Done(self.reply(request, result))
    }

    fn limit(&mut self, request: &Request, minor: u16, rates: &Rates) -> Vec<u8> {
        let (number, cookie) = (request.reply_kind(), request.cookie());
        let Daemon { env, vbds, .. } = self;
        let message = match vbds.iter_mut().find(|vbd| vbd.minor == minor) {
            None => Message::refusal(cookie, libc::ENODEV, &self.unknown(minor)),
            Some(vbd) => Message::with(number, cookie, &vbd.limit(env, rates)),
        };
        message.encode().to_vec()
    }

    fn query_commit(&mut self, request: &Request, minor: u16) -> Vec<u8> {
        let (number, cookie) = (request.reply_kind(), request.cookie());
        let message = match self.vbds.iter_mut().find(|vbd| vbd.minor == minor) {
            None => Message::refusal(cookie, libc::ENODEV, &self.unknown(minor)),
            Some(vbd) => match vbd.commit_status() {
                Ok(status) => Message::with(number, cookie, &status),
                Err(errno) => {
                    let why = vbd.commit_failure().unwrap_or_default();
                    Message::refusal(cookie, errno, &why)
                }
            },
        };
        message.encode().to_vec()
    }

    /// Begins something on a disk and sees whether it is over already.
    fn on(
        &mut self,
        request: &Request,
        minor: u16,
        unknown: i32,
        now: u64,
        begin: impl FnOnce(&mut Vbd, &Env) -> Result<(), i32>,
    ) -> Begun {
        let Daemon { env, vbds, .. } = self;
        let Some(vbd) = vbds.iter_mut().find(|vbd| vbd.minor == minor) else {
            return Begun::Done(self.reply(request, Err(unknown)));
        };
        let result = match begin(vbd, env) {
            Ok(()) if vbd.state().settled() => Ok(()),
            Ok(()) => match vbd.advance(env, now) {
                Some(result) => result,
                None => return Begun::Later,
            },
            Err(errno) => Err(errno),
        };
        Begun::Done(self.reply(request, result))
    }

    /// `None`: another process holds the marker.
    fn attach(&mut self, minor: u16) -> Option<Result<(), i32>> {
        if minor == COOKIE_ALL {
            return Some(Err(libc::EINVAL));
        }
        if self.find(minor).is_some() {
            return Some(Err(libc::EEXIST));
        }
        // A token is used once; there are enough of them.
        let token = self.next_token();
        match Vbd::attach(&self.env, minor, token) {
            Attach::Done(vbd) => {
                self.vbds.push(*vbd);
                Some(Ok(()))
            }
            Attach::Wait => None,
            Attach::Failed(error) => {
                warn!(self.env.log, "minor {minor}: {error}");
                let errno = error.errno;
                self.not_attached = Some(error);
                Some(Err(errno))
            }
        }
    }

    fn detach(&mut self, minor: u16) -> Result<(), i32> {
        let vbd = self.vbds.iter_mut().find(|vbd| vbd.minor == minor).ok_or(libc::ENODEV)?;
        vbd.may_be_detached()?;
        self.remove(minor);
        Ok(())
    }

    /// Forgets a disk that is closed. After the last one the process ends, and nobody shall find it
    /// any more by the time the client has its reply.
    pub fn remove(&mut self, minor: u16) {
        self.vbds.retain(|vbd| vbd.minor != minor);
        info!(self.env.log, "minor {minor}: detached");
        self.over = self.vbds.is_empty();
        if self.over {
            self.receiver = None;
        }
    }

    fn find(&self, minor: u16) -> Option<&Vbd> {
        self.vbds.iter().find(|vbd| vbd.minor == minor)
    }

    /// Whether a disk waits for requests in flight.
    pub fn is_draining(&self, minor: u16) -> bool {
        self.find(minor).is_some_and(|vbd| matches!(vbd.state(), State::Draining { .. }))
    }

    /// The reply of an exclusive request.
    pub fn reply(&mut self, request: &Request, outcome: Result<(), i32>) -> Vec<u8> {
        let not_attached = self.not_attached.take();
        let (number, cookie) = (request.reply_kind(), request.cookie());
        let message = match (outcome, request) {
            (Err(errno), _) => {
                let why = not_attached.map(|error| error.text);
                let why = why.unwrap_or_else(|| self.reason(request, errno));
                Message::refusal(cookie, errno, &why)
            }
            (Ok(()), Request::Open { minor, .. } | Request::DiskInfo { minor }) => {
                let info = self.find(*minor).map(Vbd::info).unwrap_or_default();
                Message::with(number, cookie, &info)
            }
            (Ok(()), _) => Message::with(number, cookie, &Response { error: 0 }),
        };
        message.encode().to_vec()
    }

    /// Why a request is refused: what the disk says, or what the errno means here.
    fn reason(&self, request: &Request, errno: i32) -> String {
        if let Request::Disconnect { domid, devid } = request {
            return format!("no disk of it has a ring of domain {domid}, device {devid}");
        }
        let (minor, pid) = (request.cookie(), self.env.pid);
        let vbd = self.find(minor);
        if let Some(reason) = vbd.and_then(|vbd| vbd.reason(errno)) {
            return reason;
        }
        match (errno, vbd) {
            (_, None) if !matches!(request, Request::Attach { .. }) => self.unknown(minor),
            (_, None) => format!("{minor} is no minor, it means all"),
            (libc::EBUSY, Some(vbd)) if vbd.is_open() => {
                format!("minor {minor} is open; close it first: tap-ctl close -p {pid} -m {minor}")
            }
            (libc::EALREADY, Some(vbd)) if matches!(request, Request::Open { .. }) => {
                format!("minor {minor} is open with {}", vbd.name())
            }
            (libc::EALREADY, Some(_)) => "this ring is connected already".into(),
            (libc::EEXIST, Some(_)) => format!("it has minor {minor} already"),
            (libc::EINVAL, Some(_)) if matches!(request, Request::Resume { .. }) => {
                format!("minor {minor} is not paused")
            }
            _ => String::new(),
        }
    }

    fn unknown(&self, minor: u16) -> String {
        let pid = self.env.pid;
        format!("it has no minor {minor}; tap-ctl list -p {pid} shows those that it has")
    }

    /// One message for each disk and one for the end (§5.7).
    fn list(&self) -> Vec<u8> {
        let n = self.vbds.len() as i32;
        let entry = |(i, vbd): (i32, &Vbd)| ListEntry {
            count: n - i,
            minor: i32::from(vbd.minor),
            state: vbd.bits(),
            path: vbd.name(),
            device: vbd.device(),
        };
        let entries = (0..).zip(&self.vbds).map(entry).chain([ListEntry::END]);
        let message = |entry| Message::with(kind::LIST_RSP, COOKIE_ALL, &entry).encode();
        entries.flat_map(message).collect()
    }

    /// A message with the length of the text, and the text (§5.8).
    fn stats(&self, minor: u16) -> Vec<u8> {
        let mut j = Json::default();
        if minor == COOKIE_ALL {
            j.array(|j| self.vbds.iter().for_each(|vbd| vbd.stats(&self.env, j)));
        } else {
            match self.find(minor) {
                Some(vbd) => vbd.stats(&self.env, &mut j),
                None => {
                    let why = self.unknown(minor);
                    return Message::refusal(minor, libc::ENODEV, &why).encode().to_vec();
                }
            }
        }
        let text = j.into_text();
        let length = text.len() as u64;
        let mut reply =
            Message::with(kind::STATS_RSP, minor, &StatInfo { length }).encode().to_vec();
        reply.extend_from_slice(text.as_bytes());
        reply
    }
}
