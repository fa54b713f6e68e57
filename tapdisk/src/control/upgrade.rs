//! UPGRADE: the disks are brought to rest, and another program goes on with them (docs/upgrade.md).
//!
//! ```text
//!   Finishing (clients end what they began) ─► Pausing ─► at rest: the server leaves
//!        │ 3 s                                  │ 30 s, or a pause that fails
//!        └────────── refused, and the disks go on ◄┘
//! ```
use std::path::Path;

use slog::{info, warn};
use tap_ctl::messages::{Message, Request, Text, Upgraded};

use super::work::{Begun, Daemon};
use crate::formats::key::Keys;
use crate::vbd::handover::DiskState;
use crate::vbd::{State, Vbd};
use host::carry::{Fetcher, monotonic_us};

/// How long clients may take to end what they have begun, in µs.
const FINISH_US: u64 = 3_000_000;
/// How long a pause may take, in µs.
const PAUSE_US: u64 = 30_000_000;
/// How long the images may take to be open again before the client is told that they are not, in
/// µs.
const ARRIVE_US: u64 = 20_000_000;
/// Between two looks, in µs.
const LOOK_US: u64 = 200;

/// On the way to another program.
#[derive(Debug)]
pub struct Leaving {
    /// Which.
    pub program: Text,
    /// When the disks were paused, in µs of the monotonic clock; 0: not yet.
    pub paused_us: u64,
    /// Until when this may take, in µs of the loop's clock.
    pub until: u64,
    /// A pause failed.
    failed: Option<(u16, i32)>,
}

/// The disks of another program are being opened.
#[derive(Debug)]
pub struct Arriving {
    /// When they were paused, in µs of the monotonic clock.
    pub paused_us: u64,
    /// Of this program.
    pub version: Text,
    /// It is the one that had them, since the other could not take over.
    pub why: Option<String>,
}

impl Daemon {
    /// A step on the way; the one after the exec is made by the other program.
    pub(super) fn upgrade(&mut self, request: &Request, program: Text, now: u64) -> Begun {
        if self.arriving.is_some() {
            return self.arrive(request, now);
        }
        match self.leaving.take() {
            None => self.begin_upgrade(request, program, now),
            Some(leaving) if leaving.paused_us == 0 => self.finish_clients(request, leaving, now),
            Some(leaving) => self.pause_disks(request, leaving, now),
        }
    }

    fn begin_upgrade(&mut self, request: &Request, program: Text, now: u64) -> Begun {
        if !Path::new(program.as_path()).is_absolute() {
            return refuse(request, libc::EINVAL, "the program's path does not begin with /");
        }
        if let Some(why) = self.vbds.iter().find_map(Vbd::why_not_upgraded) {
            return refuse(request, libc::EBUSY, &why);
        }
        info!(self.env.log, "goes on with {} as soon as all is at rest", program);
        self.vbds.iter_mut().for_each(Vbd::finish);
        let until = now + FINISH_US;
        self.leaving = Some(Leaving { program, paused_us: 0, until, failed: None });
        Begun::Again { at: now }
    }

    fn finish_clients(&mut self, request: &Request, leaving: Leaving, now: u64) -> Begun {
        if let Some(why) = self.vbds.iter().find_map(Vbd::why_not_upgraded) {
            return self.stay(request, libc::EBUSY, &why);
        }
        if self.vbds.iter().all(Vbd::at_rest) {
            let Daemon { env, vbds, .. } = self;
            vbds.iter_mut().for_each(|vbd| vbd.rest(env));
            let (paused_us, until) = (monotonic_us().max(1), now + PAUSE_US);
            self.leaving = Some(Leaving { paused_us, until, ..leaving });
            return Begun::Again { at: now };
        }
        if now < leaving.until {
            self.leaving = Some(leaving);
            return Begun::Again { at: now + LOOK_US };
        }
        let restless = self.vbds.iter().find(|vbd| !vbd.at_rest());
        let why = restless.map(Vbd::restlessness).unwrap_or_default();
        self.stay(request, libc::EBUSY, &why)
    }

    fn pause_disks(&mut self, request: &Request, leaving: Leaving, now: u64) -> Begun {
        if let Some((minor, errno)) = leaving.failed {
            let error = std::io::Error::from_raw_os_error(errno);
            let said =
                self.vbds.iter().find(|vbd| vbd.minor == minor).and_then(|v| v.reason(errno));
            let why = said.unwrap_or(format!("minor {minor} could not be paused: {error}"));
            return self.stay(request, errno, &why);
        }
        if self.vbds.iter().all(|vbd| vbd.state().rest().is_some()) {
            self.leaving = Some(leaving);
            return Begun::Leave;
        }
        if now < leaving.until {
            self.leaving = Some(leaving);
            return Begun::Again { at: now + LOOK_US };
        }
        let slow = self.vbds.iter().find(|vbd| vbd.state().rest().is_none());
        let minor = slow.map_or(0, |vbd| vbd.minor);
        let why = format!("minor {minor} did not come to rest within {} s", PAUSE_US / 1_000_000);
        self.stay(request, libc::ETIMEDOUT, &why)
    }

    /// Takes the disks over that another program has left.
    ///
    /// # Errors
    /// What is not there, or makes no sense.
    pub fn adopt(
        &mut self,
        arriving: Arriving,
        disks: Vec<DiskState>,
        (keys, fetcher): (Keys, &mut Fetcher),
    ) -> std::io::Result<()> {
        let mut keys = keys.into_iter();
        for disk in disks {
            let token = self.next_token();
            let vbd = Vbd::adopt(&self.env, disk, token, (fetcher, &mut keys))?;
            self.vbds.push(vbd);
        }
        self.arriving = Some(arriving);
        Ok(())
    }

    /// What came of a pause on the way.
    pub fn note_pause(&mut self, minor: u16, outcome: &Result<(), i32>) {
        let paused = self.leaving.as_mut().filter(|leaving| leaving.paused_us > 0);
        if let (Some(leaving), Err(errno)) = (paused, outcome) {
            leaving.failed = Some((minor, *errno));
        }
    }

    /// The disks go on with this program.
    fn stay(&mut self, request: &Request, errno: i32, why: &str) -> Begun {
        Begun::Done(self.stay_with(request, errno, why))
    }

    /// The same; the reply.
    pub fn stay_with(&mut self, request: &Request, errno: i32, why: &str) -> Vec<u8> {
        self.leaving = None;
        warn!(self.env.log, "stays with this program: {why}");
        let Daemon { env, vbds, .. } = self;
        vbds.iter_mut().for_each(|vbd| vbd.go_on(env));
        Message::refusal(request.cookie(), errno, why).encode().to_vec()
    }

    /// The other program: answers when the disks are open.
    fn arrive(&mut self, request: &Request, now: u64) -> Begun {
        let settled = |vbd: &&Vbd| !vbd.state().settled() && !matches!(vbd.state(), State::Waiting);
        let late = self.vbds.iter().find(settled);
        let (Some(arriving), number) = (&self.arriving, request.reply_kind()) else {
            unreachable!("asked by the caller")
        };
        let reply = match late {
            None if arriving.why.is_some() => {
                let why = arriving.why.as_deref().unwrap_or_default();
                let why = format!("the program could not take over: {why}; the old one goes on");
                warn!(self.env.log, "{why}");
                Message::refusal(request.cookie(), libc::EIO, &why)
            }
            None => {
                let pause_us = monotonic_us().saturating_sub(arriving.paused_us);
                let disks = self.vbds.iter().filter(|vbd| vbd.is_open()).count();
                let disks = u32::try_from(disks).unwrap_or(u32::MAX);
                let body = Upgraded { pause_us, disks, version: arriving.version };
                info!(self.env.log, "has taken over from another program within {pause_us} µs");
                Message::with(number, request.cookie(), &body)
            }
            Some(_) if now < ARRIVE_US => return Begun::Again { at: now + LOOK_US },
            Some(vbd) => {
                let why = vbd.reason_of_any().unwrap_or_else(|| vbd.state().to_string());
                let why = format!("minor {}: {why}; it is tried again each second", vbd.minor);
                Message::refusal(request.cookie(), libc::EIO, &why)
            }
        };
        self.arriving = None;
        Begun::Done(reply.encode().to_vec())
    }
}

fn refuse(request: &Request, errno: i32, why: &str) -> Begun {
    Begun::Done(Message::refusal(request.cookie(), errno, why).encode().to_vec())
}
