//! What keeps a disk from working: a sentence for the log and for the keys that toolstacks read.

use crate::decide::{Known, moved_from};
use crate::view::{Mode, Tap, View};
use tap_ctl::error::Error as TapError;

/// Whose move it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The guest's frontend wrote what cannot be: it has to start again.
    Frontend,
    /// The toolstack or its script wrote what cannot be.
    Toolstack,
    /// The tapdisk is gone, busy, or refuses; it is asked again.
    Tapdisk,
    /// xenstore refuses; it is tried again.
    Store,
    /// The connection to xenstore is gone: everything begins anew when it is back.
    Lost,
}

/// A sentence, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    pub cause: Cause,
    pub errno: i32,
    pub text: String,
}

impl Trouble {
    pub fn frontend(text: String) -> Trouble {
        Trouble { cause: Cause::Frontend, errno: libc::EINVAL, text: format!("frontend: {text}") }
    }

    pub fn tapdisk(errno: i32, text: String) -> Trouble {
        Trouble { cause: Cause::Tapdisk, errno, text }
    }

    /// Of a disk whose script is done, in what the toolstack wrote. A drive without a medium is
    /// none.
    pub fn of_view(view: &View, known: &Known) -> Option<Trouble> {
        if !view.hotplug {
            return None;
        }
        if let (Some(old), Tap::At(new)) = (moved_from(view, known), &view.tap) {
            let text = format!(
                "physical-device-path names {new}, but the guest is connected to {old}; \
                 the change counts when the guest connects next"
            );
            return Some(Trouble { cause: Cause::Toolstack, errno: libc::EBUSY, text });
        }
        let text = match (&view.tap, &view.mode) {
            (Tap::Bad(reason), _) => reason.clone(),
            (Tap::At(_), Mode::Bad(reason)) => reason.clone(),
            (Tap::Absent | Tap::At(_), _) => return None,
        };
        Some(Trouble { cause: Cause::Toolstack, errno: libc::EINVAL, text })
    }

    /// Does `hotplug-error` say it, too? Only what the toolstack's side can mend.
    pub fn is_hotplugs(&self) -> bool {
        matches!(self.cause, Cause::Toolstack | Cause::Tapdisk)
    }
}

impl From<xenstore::Error> for Trouble {
    fn from(error: xenstore::Error) -> Trouble {
        let cause = if error.is_lost() { Cause::Lost } else { Cause::Store };
        Trouble { cause, errno: libc::EIO, text: error.to_string() }
    }
}

impl From<TapError> for Trouble {
    fn from(error: TapError) -> Trouble {
        Trouble::tapdisk(error.errno(), error.to_string())
    }
}
