//! The lock on each file of a chain, and who is waited for (docs/locks.md).
//!
//! ```text
//!   file open ─► lock ─► first read of metadata … last write of the close ─► file closed
//!                 │ dead: its requests run   wait: they land over what we would write
//!                 │ lives and writes         leaf: served when it lets go; parent: read, and said
//!                 │ lives and reads          beside it
//!                 └ another machine's        leaf: as one that lives, for a limited time
//! ```
//! Runs on a worker: waiting holds up nobody else.
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use image::Holder;
use slog::{Logger, warn};

use super::{DirectFile, OpenError};

/// `strict`: what somebody else writes is refused rather than waited for.
const LOCK_VARIABLE: &str = "TAPDISK_LOCK";
/// How long the requests of a dead process are waited for: as long as one may take before it counts
/// as stuck.
const DEAD_MAX: Duration = Duration::from_secs(120);
/// How long a writer that lives is waited for before there is an answer: it may be a tool that is
/// about to end.
const LIVING_MAX: Duration = Duration::from_secs(1);
/// The same where a block device is wanted: it is there when the image is, since the kernel reads
/// it at once.
const DEVICE_MAX: Duration = DEAD_MAX;
/// How long another machine is waited for. It may be dead, with a lock that nobody takes back.
const ELSEWHERE_MAX: Duration = Duration::from_secs(30);

/// What is done about a writer that lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Living {
    /// The images are opened as far as they can be and reported as held.
    Reported,
    /// It is waited for, as long as a caller may be kept waiting.
    Awaited,
    /// It is waited for as long as it takes: the disk waits with it.
    Outlived,
}

/// An opening that may have to wait, seen from both sides.
#[derive(Clone, Debug)]
pub struct Patience {
    living: Living,
    shared: Arc<Shared>,
    log: Logger,
}

#[derive(Debug, Default)]
struct Shared {
    given_up: AtomicBool,
    waits: Mutex<Option<String>>,
}

impl Patience {
    /// A new one.
    pub fn new(living: Living, log: &Logger) -> Patience {
        Patience { living, shared: Arc::default(), log: log.clone() }
    }

    /// What is being waited for: a sentence.
    pub fn waits(&self) -> Option<String> {
        self.shared.waits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nobody wants the images any more.
    pub fn give_up(&self) {
        self.shared.given_up.store(true, Ordering::Relaxed);
    }

    /// What the next wait may be for is not known yet; one that is over is forgotten.
    fn tell(&self, text: Option<String>) {
        if let Some(text) = &text {
            warn!(self.log, "{text}");
        }
        *self.shared.waits.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// The same from outside, when the images are held.
    pub fn told(&self, text: &str) {
        self.tell(Some(text.into()));
    }

    fn has_given_up(&self) -> bool {
        self.shared.given_up.load(Ordering::Relaxed)
    }

    /// How long this holder is waited for.
    fn limit(&self, who: Holder, writable: bool) -> Duration {
        match (who, self.living) {
            (Holder::Dead, _) => DEAD_MAX,
            // Who only reads does as ever.
            _ if !writable => Duration::ZERO,
            (Holder::Reader(_), _) => Duration::ZERO,
            (Holder::Writer(_), Living::Outlived) => Duration::MAX,
            (Holder::Writer(_), Living::Awaited) => DEVICE_MAX,
            (Holder::Elsewhere, Living::Outlived | Living::Awaited) => ELSEWHERE_MAX,
            (Holder::Writer(pid), Living::Reported) if is_tapdisk(pid) => Duration::ZERO,
            (Holder::Writer(_), Living::Reported) => LIVING_MAX,
            (Holder::Elsewhere, Living::Reported) => Duration::ZERO,
        }
    }
}

/// Whether a file is ours now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// As far as anybody can have it.
    Ours,
    /// Somebody else writes it; the sentence says who.
    Held(String),
}

/// Takes the lock of a file: exclusive for what is written, shared for what is read. A file system
/// without locks has nobody who holds one.
///
/// # Errors
/// EBUSY for a dead process whose requests do not end, and for one that lives where it is not
/// outlived; ECANCELED when nobody wants the file any more.
pub fn take(
    file: &DirectFile,
    (path, writable): (&Path, bool),
    patience: &Patience,
    notes: &mut Vec<String>,
) -> Result<Taken, OpenError> {
    /// What is over sooner is not worth a word.
    const SILENT_MAX: Duration = Duration::from_millis(500);
    let mut told = None;
    let mut goes_on = |who: Holder, since: Duration| {
        if since > SILENT_MAX && told != Some(who) && since < patience.limit(who, writable) {
            told = Some(who);
            patience.tell(Some(waiting(path, who, patience.limit(who, writable))));
        }
        since < patience.limit(who, writable) && !patience.has_given_up()
    };
    let who = image::acquire(file.file(), writable, &mut goes_on).unwrap_or(None);
    if told.is_some() {
        patience.tell(None);
    }
    let Some(who) = who else { return Ok(Taken::Ours) };
    if patience.has_given_up() {
        let text = format!("{}: not opened, the disk is being closed", show::path(path));
        return Err(OpenError::new(libc::ECANCELED, text));
    }
    decide((path, writable), who, patience.living, notes).inspect(|taken| {
        if writable && *taken == Taken::Ours {
            // As much of it as readers leave; without one, nobody would wait for us.
            let _ = image::try_lock(file.file(), false);
        }
    })
}

/// It was not to be had.
fn decide(
    (path, writable): (&Path, bool),
    who: Holder,
    living: Living,
    notes: &mut Vec<String>,
) -> Result<Taken, OpenError> {
    let shown = show::path(path);
    let refuse = |text: String| Err(OpenError::new(libc::EBUSY, text));
    let strict = writable && std::env::var_os(LOCK_VARIABLE).is_some_and(|is| is == "strict");
    match who {
        Holder::Dead => refuse(format!(
            "{shown}: requests of a process that has ended are still not over after {} s, and \
             would land over what is written now; see to its storage and try again",
            DEAD_MAX.as_secs()
        )),
        _ if strict => refuse(format!("{shown} is {}; close it there first", held_by(who))),
        Holder::Reader(_) => {
            notes.push(format!("{shown} is {}, which sees what is written here", held_by(who)));
            Ok(Taken::Ours)
        }
        Holder::Writer(_) | Holder::Elsewhere if !writable => {
            notes.push(format!(
                "{shown} is {}; what is read may be in the middle of a change",
                held_by(who)
            ));
            Ok(Taken::Ours)
        }
        Holder::Elsewhere if living != Living::Reported => {
            notes.push(format!(
                "{shown} is {}, for {} s now: it is opened all the same, as that machine may be \
                 dead; two writers destroy an image",
                held_by(who),
                ELSEWHERE_MAX.as_secs()
            ));
            Ok(Taken::Ours)
        }
        Holder::Writer(_) if living != Living::Reported => {
            refuse(format!("{shown} is {}; close it there first", held_by(who)))
        }
        Holder::Writer(_) => Ok(Taken::Held(waiting(path, who, Duration::MAX))),
        Holder::Elsewhere => Ok(Taken::Held(waiting(path, who, ELSEWHERE_MAX))),
    }
}

fn waiting(path: &Path, who: Holder, limit: Duration) -> String {
    let path = show::path(path);
    let at_most = match limit {
        Duration::MAX => String::new(),
        limit => format!(", at most {} s", limit.as_secs()),
    };
    match who {
        Holder::Dead => {
            format!("{path}: waiting for the last requests of a process that has ended{at_most}")
        }
        _ => format!("{path} is {}: requests wait until it lets go{at_most}", held_by(who)),
    }
}

fn held_by(who: Holder) -> String {
    match who {
        Holder::Writer(pid) => format!("being written by {}", vhd_rs::lock::named(pid)),
        Holder::Reader(pid) => format!("being read by {}", vhd_rs::lock::named(pid)),
        Holder::Elsewhere => "being written on another machine".into(),
        Holder::Dead => "being written by a process that has ended".into(),
    }
}

fn is_tapdisk(pid: i32) -> bool {
    vhd_rs::lock::is_tapdisk(pid)
}
