//! What the store says about a disk, read in one go. Everything is a stranger's text until it was
//! parsed here.

use crate::config::{DeviceId, decimal};
use std::path::Path;
use tap_ctl::paths::{ROOT_RUN_DIR, RunDir};
use xenstore::{Errno, Error, Store};

/// States of xenbus (`xen/include/public/io/xenbus.h`).
#[allow(missing_docs)]
pub mod state {
    pub const INITIALISING: u32 = 1;
    pub const INIT_WAIT: u32 = 2;
    pub const INITIALISED: u32 = 3;
    pub const CONNECTED: u32 = 4;
    pub const CLOSING: u32 = 5;
    pub const CLOSED: u32 = 6;
}

/// The backend's directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// It does not exist.
    Gone,
    /// It exists and names no frontend: it is still being made.
    Bare,
    /// It names a frontend.
    Full,
}

/// The frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Front {
    /// Its directory is not there: it has gone.
    Missing,
    /// Its directory is there, its state is not. The guest may remove it, and make it again.
    Stateless,
    /// Its state.
    At(u32),
    /// Its state is no number.
    Nonsense,
}

/// A disk of a tapdisk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TapId {
    /// The process.
    pub pid: i32,
    /// The disk in it.
    pub minor: u16,
}

impl std::fmt::Display for TapId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tapdisk {} minor {}", self.pid, self.minor)
    }
}

/// What `physical-device-path` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tap {
    /// Nothing yet.
    Absent,
    /// Something else than a tapdisk's socket.
    Bad(String),
    /// A disk of a tapdisk.
    At(TapId),
}

/// May the guest write?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No.
    ReadOnly,
    /// Yes.
    ReadWrite,
    /// `mode` is neither `r` nor `w`.
    Bad(String),
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The backend's directory.
    pub node: Node,
    /// `max-ring-page-order` is there: this tapback, or one before it, has seen this node.
    pub announced: bool,
    /// The toolstack wants the disk to stay.
    pub online: bool,
    /// Our own state, as the store has it.
    pub backend: Option<u32>,
    /// `hotplug-status` is there.
    pub hotplug_present: bool,
    /// It is `connected`.
    pub hotplug: bool,
    /// The tapdisk.
    pub tap: Tap,
    /// `mode`.
    pub mode: Mode,
    /// The frontend.
    pub front: Front,
    /// xenstored does not know the frontend's domain any more.
    pub domain_gone: bool,
    /// Which ring was connected last, see [`crate::ring::Rings::print`].
    pub ring_key: Option<String>,
}

impl View {
    /// Of a node that names no frontend.
    pub fn empty(node: Node) -> View {
        View {
            node,
            announced: false,
            online: true,
            backend: None,
            hotplug_present: false,
            hotplug: false,
            tap: Tap::Absent,
            mode: Mode::ReadWrite,
            front: Front::Missing,
            domain_gone: false,
            ring_key: None,
        }
    }
}

/// Reads one disk.
pub(crate) struct Reader<'a> {
    pub store: &'a Store,
    /// `backend/vbd3/5/51712`.
    pub path: &'a str,
    pub run: &'a RunDir,
}

impl Reader<'_> {
    /// A key of the backend's directory; text that is not UTF-8 is nonsense of its own.
    pub async fn key(&self, name: &str) -> Result<Option<String>, Error> {
        let value = self.store.read(&format!("{}/{name}", self.path)).await?;
        Ok(value.map(|bytes| text(&bytes)))
    }

    /// Where the frontend is, or what there is instead.
    pub async fn frontend(&self) -> Result<Result<String, Node>, Error> {
        match self.key("frontend").await? {
            Some(path) if path.starts_with('/') => Ok(Ok(path)),
            _ => match self.store.directory(self.path).await? {
                None => Ok(Err(Node::Gone)),
                Some(_) => Ok(Err(Node::Bare)),
            },
        }
    }

    /// The rest.
    pub async fn view(&self, id: DeviceId, frontend: &str) -> Result<View, Error> {
        let front = self.front(frontend).await?;
        // Only there would a domain that has gone keep a ring.
        let busy = matches!(front, Front::At(state::INITIALISED | state::CONNECTED));
        let hotplug = self.key("hotplug-status").await?;
        let tap = match self.key("physical-device-path").await? {
            None => Tap::Absent,
            Some(text) if text.is_empty() => Tap::Absent,
            Some(text) => parse_tap(&text, self.run),
        };
        Ok(View {
            node: Node::Full,
            announced: self.key("max-ring-page-order").await?.is_some(),
            online: self.key("online").await?.is_none_or(|online| online.trim() != "0"),
            backend: self.key("state").await?.and_then(|text| decimal(&text)),
            hotplug_present: hotplug.is_some(),
            hotplug: hotplug.as_deref() == Some("connected"),
            tap,
            mode: parse_mode(self.key("mode").await?),
            front,
            domain_gone: busy && !self.introduced(id.domid).await?,
            ring_key: self.key("tapback-ring").await?,
        })
    }

    async fn front(&self, frontend: &str) -> Result<Front, Error> {
        Ok(match self.store.read(&format!("{frontend}/state")).await? {
            // Only the directory's end is the toolstack's word.
            None => match self.store.directory(frontend).await? {
                None => Front::Missing,
                Some(_) => Front::Stateless,
            },
            Some(bytes) => decimal(&text(&bytes)).map_or(Front::Nonsense, Front::At),
        })
    }

    /// A store that does not tell (a driver domain may not ask) is no reason to think the domain
    /// gone.
    async fn introduced(&self, domid: u32) -> Result<bool, Error> {
        match self.store.is_domain_introduced(domid).await {
            Err(error) if error.is_lost() => Err(error),
            Err(_) => Ok(true),
            Ok(introduced) => Ok(introduced),
        }
    }
}

/// Text for people and for parsing; what is no text does not parse.
pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn parse_mode(mode: Option<String>) -> Mode {
    match mode.as_deref() {
        Some("r") => Mode::ReadOnly,
        Some("w") => Mode::ReadWrite,
        Some(other) => Mode::Bad(format!("mode is \"{}\", not r or w", shown(other))),
        None => Mode::Bad("mode is missing; it has to be r or w".to_owned()),
    }
}

/// `/run/blktap-control/nbd<pid>.<minor>`, the directory also as this process has it, or by its old
/// name.
fn parse_tap(path: &str, run: &RunDir) -> Tap {
    let bad = || {
        let run = run.path();
        let want = show::path(&run);
        Tap::Bad(format!(
            "physical-device-path is \"{}\", not {want}/nbd<pid>.<minor>",
            shown(path)
        ))
    };
    let Some((dir, name)) = path.rsplit_once('/') else { return bad() };
    let known = [run.path(), Path::new(ROOT_RUN_DIR), Path::new("/var/run/blktap-control")];
    let numbers = name.strip_prefix("nbd").and_then(|numbers| numbers.split_once('.'));
    let id = numbers.and_then(|(pid, minor)| {
        let (pid, minor) = (decimal(pid)?, decimal(minor)?);
        Some(TapId { pid: pid.try_into().ok()?, minor: minor.try_into().ok()? })
    });
    match id {
        Some(id) if id.pid > 0 && known.contains(&Path::new(dir)) => Tap::At(id),
        _ => bad(),
    }
}

/// A stranger's text in a sentence of ours.
pub(crate) fn shown(text: &str) -> String {
    let first: String = text.chars().take(100).collect();
    show::line(first.as_bytes()).into_owned()
}

/// Permission denied is a fact about the disk, not a failure of the store.
pub(crate) fn is_denied(error: &Error) -> bool {
    error.is(Errno::Acces) || error.is(Errno::Perm)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tap(path: &str) -> Tap {
        parse_tap(path, &RunDir::at(Path::new("/tmp/run")))
    }

    #[test]
    fn a_tapdisk_is_named_by_its_socket() {
        let want = Tap::At(TapId { pid: 77, minor: 3 });
        for dir in ["/run/blktap-control", "/var/run/blktap-control", "/tmp/run"] {
            assert_eq!(tap(&format!("{dir}/nbd77.3")), want);
        }
    }

    #[test]
    fn anything_else_is_bad_and_said_so() {
        for path in [
            "nbd77.3",
            "/run/other/nbd77.3",
            "/run/blktap-control/nbd77",
            "/run/blktap-control/nbd0.3",
            "/run/blktap-control/nbd-1.3",
            "/run/blktap-control/nbd77.65536",
            "/run/blktap-control/nbd99999999999.0",
            "/run/blktap-control/ctl77",
            "/run/blktap-control/nbd77.3\n",
        ] {
            let Tap::Bad(reason) = tap(path) else { panic!("{path} was taken") };
            assert!(reason.contains("/nbd<pid>.<minor>"), "{reason}");
        }
    }

    #[test]
    fn mode_is_one_letter() {
        assert_eq!(parse_mode(Some("r".into())), Mode::ReadOnly);
        assert_eq!(parse_mode(Some("w".into())), Mode::ReadWrite);
        for bad in [None, Some(""), Some("rw"), Some("w ")] {
            assert!(matches!(parse_mode(bad.map(str::to_owned)), Mode::Bad(_)));
        }
    }
}
