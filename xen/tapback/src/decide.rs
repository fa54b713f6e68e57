//! What to do next about a disk: a function of what the store says and of what this process knows.
//! No I/O.
//!
//! ```text
//!   frontend        backend
//!   1 ────────────► 2   as soon as the node is there: libxl waits for it before it runs its script
//!   3, 4 ─────────► 4   once the script is done and the tapdisk is known
//!   5 ────────────► 5
//!   6 ────────────► 6   after the tapdisk has left the ring
//!   no state ─────► 6   until it has one again
//!   gone ─────────► 6   and hotplug-status goes: both are waited for by somebody
//!   not there yet       the backend's half is at 1 and online: wait
//! ```
//! The rules are those of `xenstore-tapback.md` §4 and §8. One step at a time: whoever has taken it
//! looks again and asks again, until the answer is [`Step::Nothing`] or [`Step::Forget`].

use crate::ring::tap_of_print;
use crate::view::{Front, Mode, Node, Tap, TapId, View, state};

/// The guest's ring, as far as this process knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ring {
    /// Not connected.
    Down,
    /// Perhaps connected: by a tapback before this one, or by an order that got no answer; to
    /// this tapdisk, if it is known.
    Unsure(Option<TapId>),
    /// Connected to this tapdisk.
    Up(TapId),
}

impl Ring {
    fn may_be_up(&self) -> bool {
        !matches!(self, Ring::Down)
    }
}

/// What this process knows about a disk besides the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// The ring.
    pub ring: Ring,
    /// A tapdisk that was asked about the disk, and whose pid is in the store.
    pub met: Option<TapId>,
    /// What the frontend wrote cannot be connected to; it has to go through its states again.
    pub refused: bool,
}

impl Default for Known {
    /// Of a disk seen for the first time.
    fn default() -> Known {
        Known { ring: Ring::Unsure(None), met: None, refused: false }
    }
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Wait for a change.
    Nothing,
    /// The disk is gone; so is everything of ours.
    Forget,
    /// Write what a frontend reads before it makes its ring.
    Announce,
    /// Write our state.
    Enter(u32),
    /// Ask the tapdisk about the disk, and write its pid.
    Meet(TapId),
    /// Have the tapdisk connect to the ring, write what the guest has to know, and state 4.
    Connect(TapId),
    /// Have the tapdisk leave the ring.
    Disconnect,
    /// The frontend is gone: state 6, and no `hotplug-status`.
    Abandon,
}

/// The next thing to do.
pub fn decide(view: &View, known: &Known) -> Step {
    match view.node {
        Node::Gone | Node::Bare if known.ring.may_be_up() => return Step::Disconnect,
        Node::Gone => return Step::Forget,
        Node::Bare => return Step::Nothing,
        Node::Full => {}
    }
    if !view.announced {
        // Nobody has connected to this node; a ring that is up belongs to one of the same name
        // before it.
        let stale = matches!(known.ring, Ring::Up(_) | Ring::Unsure(Some(_)));
        return if stale { Step::Disconnect } else { Step::Announce };
    }
    let front = if view.domain_gone { &Front::At(state::CLOSED) } else { &view.front };
    match front {
        Front::Missing => frontend_gone(view, known),
        Front::At(state::INITIALISING) => initialising(view, known),
        Front::At(state::INITIALISED | state::CONNECTED) => ready(view, known),
        Front::At(state::CLOSING) => match view.backend {
            Some(state::CLOSING) => Step::Nothing,
            // It is on its way out; whoever unplugs it has seen 6 already.
            Some(state::CLOSED) if !view.online => Step::Nothing,
            _ => Step::Enter(state::CLOSING),
        },
        Front::At(state::CLOSED) | Front::Stateless if known.ring.may_be_up() => Step::Disconnect,
        Front::At(state::CLOSED) | Front::Stateless => enter(view, known, state::CLOSED),
        Front::At(_) | Front::Nonsense => Step::Nothing,
    }
}

fn frontend_gone(view: &View, known: &Known) -> Step {
    // Not every toolstack writes both halves at once. To end such a disk, all of them take online
    // away.
    let not_yet = view.backend == Some(state::INITIALISING) && view.online;
    match () {
        () if known.ring.may_be_up() => Step::Disconnect,
        () if not_yet => Step::Nothing,
        () if view.backend != Some(state::CLOSED) || view.hotplug_present => Step::Abandon,
        () => Step::Nothing,
    }
}

/// A frontend that begins, or that begins again without having closed (kexec, a crash): its old
/// ring is nobody's. One that is being unplugged before it has begun is let go at once.
fn initialising(view: &View, known: &Known) -> Step {
    match () {
        () if known.ring.may_be_up() => Step::Disconnect,
        () if !view.online => enter(view, known, state::CLOSED),
        () => enter(view, known, state::INIT_WAIT),
    }
}

fn ready(view: &View, known: &Known) -> Step {
    if known.refused {
        return match view.backend {
            Some(state::CLOSING | state::CLOSED) => Step::Nothing,
            _ => Step::Enter(state::CLOSING),
        };
    }
    if !view.online {
        return Step::Nothing;
    }
    if moved_from(view, known).is_some() {
        // A ring that was used by one tapdisk cannot be gone on with by another: it begins at index 0. So
        // the guest keeps what it has until it makes a ring anew.
        return match (&known.ring, &view.front) {
            (Ring::Up(_), _) => Step::Nothing,
            (_, Front::At(state::CONNECTED)) if view.backend == Some(state::CONNECTED) => {
                Step::Nothing
            }
            _ => Step::Disconnect,
        };
    }
    let closing = matches!(view.backend, Some(state::CLOSING | state::CLOSED));
    match (&known.ring, known_tap(view)) {
        // It was closing, and has a ring again without having closed.
        (Ring::Up(_), _) if closing && view.front == Front::At(state::INITIALISED) => {
            Step::Disconnect
        }
        (Ring::Up(_), _) => meet(view, known),
        (Ring::Down | Ring::Unsure(_), Some(tap)) if known.met == Some(tap) => Step::Connect(tap),
        (Ring::Down | Ring::Unsure(_), Some(tap)) => Step::Meet(tap),
        // It did not wait for us; a toolstack may.
        (Ring::Down | Ring::Unsure(_), None) if view.backend == Some(state::INITIALISING) => {
            Step::Enter(state::INIT_WAIT)
        }
        (Ring::Down | Ring::Unsure(_), None) => Step::Nothing,
    }
}

/// The tapdisk that serves, or served, the guest's ring, when the toolstack now names another one.
pub fn moved_from(view: &View, known: &Known) -> Option<TapId> {
    let serving = match known.ring {
        Ring::Up(tap) => Some(tap),
        Ring::Unsure(None) if view.backend == Some(state::CONNECTED) => {
            view.ring_key.as_deref().and_then(tap_of_print)
        }
        Ring::Unsure(tap) => tap,
        Ring::Down => None,
    };
    serving.filter(|tap| known_tap(view).is_some_and(|named| named != *tap))
}

fn enter(view: &View, known: &Known, wanted: u32) -> Step {
    match view.backend == Some(wanted) {
        true => meet(view, known),
        false => Step::Enter(wanted),
    }
}

/// Toolstacks wait for the tapdisk's pid, so it is asked for even before a frontend needs it.
fn meet(view: &View, known: &Known) -> Step {
    match known_tap(view) {
        Some(tap) if known.met != Some(tap) && view.online => Step::Meet(tap),
        _ => Step::Nothing,
    }
}

/// The tapdisk, once the hotplug script says that it has done its work.
fn known_tap(view: &View) -> Option<TapId> {
    match (&view.tap, &view.mode) {
        (Tap::At(tap), Mode::ReadOnly | Mode::ReadWrite) if view.hotplug => Some(*tap),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
