//! What becomes of a disk: a function of its state, of what is seen of it, and of what is asked
//! for. No I/O.
//!
//! ```text
//!             OPEN                 PAUSE                           RESUME
//!   Attached ─────► Opening ─► Open ──────► Draining ─► Shutting ─► Paused ──► Resuming ─► Open
//!      ▲              │          │ CLOSE        ▲          │          │ CLOSE     │ failed
//!      └── failed ────┘          └──────────────┘          ▼          ▼           ▼
//!                                                        Closed  Paused, no name  Paused
//!   Opening, Resuming ── somebody else writes an image ─► Waiting ── he lets go ─► Open
//!   with a block device:  … ─► MakingDevice ─► Open          CLOSE ─► EndingDevice ─► Draining …
//! ```
//! [`ask`] is for requests, [`decide`] for time and finished work. One step at a time: whoever has
//! taken it (`advance.rs`) looks again and asks again, until there is an outcome or nothing to do.
use super::Result;
use super::state::{Goal, Rest, State};

/// Tries of a RESUME (spec/control-socket.md §5.6).
pub const TRIES_MAX: u32 = 10;
/// Between two of them, in µs.
pub const PAUSE_US: u64 = 1_000_000;
/// Beyond them, where nobody but this process has the clients: one in so many is said.
const SAID_EVERY: u32 = 60;

/// What is seen of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// What was begun is over, and came to this.
    pub answer: Option<Answer>,
    /// µs of the clock.
    pub now: u64,
    /// No request is in flight.
    pub idle: bool,
    /// An image is named: OPEN was asked for, and CLOSE was not done since.
    pub named: bool,
    /// There is a data path.
    pub data: bool,
    /// It has images.
    pub images: bool,
    /// There is a block device.
    pub device: bool,
    /// The block device would not outlive this program.
    pub lends: bool,
    /// Another program has left it, with clients that nobody else can serve.
    pub left: bool,
    /// It has clients: without its block device it is better than not at all.
    pub goes_without: bool,
}

/// What became of what was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The images are open.
    Opened,
    /// They cannot be opened.
    NotOpened(i32),
    /// They are served: something follows.
    Served(Then),
    /// They are open and cannot be served.
    NotServed(i32),
    /// The images are closed, or something went wrong then.
    Shut(Result<()>),
    /// The block device is made.
    DeviceThere,
    /// It is not, and nothing is left of it.
    NoDevice(i32),
    /// It is not; what there is of it is being taken away.
    DeviceBroken(i32),
    /// It is taken away, or left for another tapdisk.
    DeviceGone,
    /// It is not taken away.
    DeviceStays(i32),
    /// One that nobody served is taken away, or not.
    DeviceRemoved(Result<()>),
}

/// What follows when images are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Open,
    /// A block device is made.
    Device,
    /// Somebody else writes one of them: they are opened anew when he lets go.
    Held,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// OPEN.
    Open,
    /// OPEN that takes a block device away whose tapdisk died.
    Remove,
    /// PAUSE.
    Pause,
    /// CLOSE, FORCE_SHUTDOWN.
    Close {
        /// The block device goes under its users.
        force: bool,
    },
    /// RESUME; its request makes no sense for this errno.
    Resume {
        /// Positive errno.
        refused: Option<i32>,
    },
    /// DETACH.
    Detach,
    /// A signal has asked for the end.
    End,
    /// Another program goes on with it.
    Rest,
    /// It does not after all.
    GoOn,
}

/// What is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The state from now on.
    pub state: State,
    /// Done then.
    pub act: Act,
    /// Said of what came back.
    pub say: Say,
    /// What was under way is over.
    pub outcome: Option<Result<()>>,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Nothing.
    Nothing,
    /// A worker opens the images.
    OpenImages,
    /// Images that were opened get engine and sockets, or are put into those that wait.
    Serve,
    /// Requests wait, and a worker opens the images as soon as nobody else has them.
    AwaitImages,
    /// Nothing more is taken in.
    StopIntake {
        /// What for.
        goal: Goal,
        /// The worker that waits for somebody else's images is told.
        give_up: bool,
    },
    /// The images are taken out of the data path, and a worker closes them.
    TakeOut,
    /// A worker closes images that are not served.
    Shut,
    /// The block device is made.
    MakeDevice,
    /// It is taken away.
    EndDevice {
        /// Under its users, too.
        force: bool,
    },
    /// It is taken away until another program makes it again.
    LendDevice,
    /// One that nobody serves is taken away.
    RemoveDevice,
    /// The disk is open: said.
    Announce,
    /// The same, with its block device.
    AnnounceDevice,
    /// What OPEN asked for is forgotten.
    Unname,
    /// Sockets, engine and name go.
    Forget,
    /// When it has come to rest, it goes on.
    GoOnLater,
    /// Clients and guests go on.
    GoOn,
}

/// What is said of an answer that is an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Say {
    /// Nothing.
    Nothing,
    /// It is refused: to the log, and to who asked.
    Refusal,
    /// There will be another try.
    Retry,
    /// The disk goes on without its block device.
    Without,
}

/// Why nothing is begun, and the state to be in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Positive errno.
    pub errno: i32,
    /// The state.
    pub state: State,
}

impl Step {
    /// To this state, with an act.
    fn to(state: State, act: Act) -> Step {
        Step { state, act, say: Say::Nothing, outcome: None }
    }

    fn over(self, outcome: Result<()>) -> Step {
        Step { outcome: Some(outcome), ..self }
    }

    fn saying(self, say: Say) -> Step {
        Step { say, ..self }
    }

    /// Whether there is nothing to do from this state.
    pub fn is_nothing(&self, state: State) -> bool {
        *self == Step::to(state, Act::Nothing)
    }
}

/// What time and finished work lead to.
pub fn decide(state: State, view: &View) -> Step {
    let stay = Step::to(state, Act::Nothing);
    match (state, view.answer) {
        (State::Attached | State::Open | State::Paused { .. } | State::Closed, _) => stay,
        (State::Draining { .. }, _) if !view.idle => stay,
        (State::Draining { goal }, _) if view.data => {
            Step::to(State::Shutting { goal }, Act::TakeOut)
        }
        (State::Draining { goal }, _) => arrive(view, goal, Ok(())),
        (State::Resuming { tries, until: Some(until) }, _) if until <= view.now => {
            Step::to(State::Resuming { tries: tries + 1, until: None }, Act::OpenImages)
        }
        (_, None) => stay,
        (State::Opening { .. } | State::Resuming { .. } | State::Waiting, Some(Answer::Opened)) => {
            Step::to(state, Act::Serve)
        }
        (State::Opening { before }, Some(Answer::NotOpened(errno))) => {
            Step::to(before.into(), Act::Unname).over(Err(errno)).saying(Say::Refusal)
        }
        (State::Resuming { tries, .. }, Some(Answer::NotOpened(errno))) => {
            not_resumed(view, tries, errno)
        }
        (State::Waiting, Some(Answer::NotOpened(_))) => {
            Step::to(State::Paused { resume_failed: true }, Act::Nothing).saying(Say::Refusal)
        }
        (State::Opening { .. } | State::Resuming { .. }, Some(Answer::Served(then))) => {
            served(then)
        }
        // Its OPEN or RESUME has been answered long ago.
        (State::Waiting, Some(Answer::Served(then))) => Step { outcome: None, ..served(then) },
        (_, Some(Answer::NotServed(errno))) => {
            let goal = Goal::Fail { errno, rest: without_images(state) };
            Step::to(State::Shutting { goal }, Act::Shut).saying(Say::Refusal)
        }
        (State::MakingDevice, Some(answer)) => making(view, answer),
        (State::EndingDevice { goal, back }, Some(answer)) => ending(view, (goal, back), answer),
        (State::Shutting { goal }, Some(Answer::Shut(closed))) => {
            let say = if closed.is_ok() { Say::Nothing } else { Say::Refusal };
            arrive(view, goal, closed).saying(say)
        }
        (_, Some(answer)) => unreachable!("{answer:?} while {state}"),
    }
}

fn served(then: Then) -> Step {
    match then {
        Then::Open => Step::to(State::Open, Act::Announce).over(Ok(())),
        Then::Device => Step::to(State::MakingDevice, Act::MakeDevice),
        Then::Held => Step::to(State::Waiting, Act::AwaitImages).over(Ok(())),
    }
}

/// The state after images were open and could not be served.
fn without_images(state: State) -> Rest {
    match state {
        // The images had been open (spec/control-socket.md §5.3).
        State::Opening { before: Rest::Attached } => Rest::Closed,
        State::Opening { before } => before,
        _ => Rest::Paused { resume_failed: true },
    }
}

fn not_resumed(view: &View, tries: u32, errno: i32) -> Step {
    let again = State::Resuming { tries, until: Some(view.now + PAUSE_US) };
    let again = Step::to(again, Act::Nothing);
    match errno {
        libc::ECANCELED => {}
        // Its clients and guests would be lost: nobody but this process has them.
        _ if view.left && (tries <= TRIES_MAX || tries.is_multiple_of(SAID_EVERY)) => {
            return again.saying(Say::Refusal);
        }
        _ if view.left => return again,
        _ if tries < TRIES_MAX => return again.saying(Say::Retry),
        _ => {}
    }
    let paused = State::Paused { resume_failed: true };
    Step::to(paused, Act::Nothing).over(Err(errno)).saying(Say::Refusal)
}

fn making(view: &View, answer: Answer) -> Step {
    let fail = |errno| Goal::Fail { errno, rest: Rest::Closed };
    match answer {
        Answer::DeviceThere => Step::to(State::Open, Act::AnnounceDevice).over(Ok(())),
        Answer::NoDevice(_) if view.goes_without => {
            Step::to(State::Open, Act::Announce).over(Ok(())).saying(Say::Without)
        }
        Answer::NoDevice(errno) => after_device(view, fail(errno), None).saying(Say::Refusal),
        Answer::DeviceBroken(errno) => {
            let state = State::EndingDevice { goal: fail(errno), back: None };
            Step::to(state, Act::Nothing).saying(Say::Refusal)
        }
        _ => unreachable!("{answer:?} while a block device is made"),
    }
}

fn ending(view: &View, (goal, back): (Goal, Option<Rest>), answer: Answer) -> Step {
    match answer {
        Answer::DeviceGone => after_device(view, goal, back),
        Answer::DeviceStays(errno) => {
            let state = back.map_or(State::Open, State::from);
            Step::to(state, Act::Nothing).over(Err(errno))
        }
        Answer::DeviceRemoved(removed) => Step::to(State::Closed, Act::Nothing).over(removed),
        _ => unreachable!("{answer:?} while a block device is taken away"),
    }
}

/// What was to follow the end of the block device.
fn after_device(view: &View, goal: Goal, back: Option<Rest>) -> Step {
    match (goal, back) {
        _ if view.images => {
            let act = Act::StopIntake { goal, give_up: false };
            Step::to(State::Draining { goal }, act)
        }
        (Goal::Close, Some(rest)) => Step::to(rest.into(), Act::Forget).over(Ok(())),
        _ => arrive(view, goal, Ok(())),
    }
}

/// All is idle and closed.
fn arrive(view: &View, goal: Goal, closed: Result<()>) -> Step {
    match goal {
        // A pause on its way has become a close.
        Goal::Close if view.device => {
            let back = Some(Rest::Paused { resume_failed: false });
            Step::to(State::EndingDevice { goal, back }, Act::EndDevice { force: false })
        }
        Goal::Pause => Step::to(State::Paused { resume_failed: false }, Act::Nothing).over(closed),
        Goal::Close => Step::to(State::Closed, Act::Forget).over(closed),
        Goal::Fail { errno, rest } => {
            let stays = matches!(rest, Rest::Paused { .. }) && view.data;
            let act = if stays { Act::Nothing } else { Act::Forget };
            Step::to(rest.into(), act).over(Err(errno))
        }
    }
}

/// What a request begins. An outcome is the request's.
///
/// # Errors
/// It is refused.
pub fn ask(state: State, request: Request, view: &View) -> std::result::Result<Step, Refusal> {
    let stay = Step::to(state, Act::Nothing);
    let refuse = |errno| Err(Refusal { errno, state });
    let begun = match request {
        Request::Open | Request::Remove if view.named => return refuse(libc::EALREADY),
        Request::Open | Request::Remove => {
            let Some(before) = state.rest() else { return refuse(libc::EBUSY) };
            match request {
                Request::Open => Step::to(State::Opening { before }, Act::OpenImages),
                _ => Step::to(
                    State::EndingDevice { goal: Goal::Close, back: None },
                    Act::RemoveDevice,
                ),
            }
        }
        Request::Pause => match state {
            State::Paused { .. } => stay,
            _ => drain(state, Goal::Pause),
        },
        Request::Close { force } => close(state, view, force),
        Request::Resume { refused } => match (state, refused) {
            (State::Paused { .. }, None) => resume(),
            (State::Paused { .. }, Some(errno)) => {
                return Err(Refusal { errno, state: State::Paused { resume_failed: true } });
            }
            _ => return refuse(libc::EINVAL),
        },
        Request::Detach if view.named || !state.settled() => return refuse(libc::EBUSY),
        Request::Detach => stay,
        Request::End if state.may_end() && view.named => close(state, view, false),
        Request::End => stay,
        Request::Rest => match state {
            State::Open if view.lends => {
                let state = State::EndingDevice { goal: Goal::Pause, back: None };
                Step::to(state, Act::LendDevice)
            }
            State::Open => drain(state, Goal::Pause),
            _ => stay,
        },
        Request::GoOn => match state {
            State::Draining { goal: Goal::Pause }
            | State::Shutting { goal: Goal::Pause }
            | State::EndingDevice { goal: Goal::Pause, .. } => Step::to(state, Act::GoOnLater),
            State::Paused { .. } if view.named => resume(),
            State::Paused { .. } => stay,
            _ => Step::to(state, Act::GoOn),
        },
    };
    Ok(begun)
}

fn resume() -> Step {
    Step::to(State::Resuming { tries: 0, until: Some(0) }, Act::Nothing)
}

/// A paused disk stays paused, without a name. A block device goes first, unless somebody uses it.
fn close(state: State, view: &View, force: bool) -> Step {
    let goal = Goal::Close;
    let end = |back| Step::to(State::EndingDevice { goal, back }, Act::EndDevice { force });
    match state {
        State::Open if view.device => end(None),
        State::Paused { resume_failed } if view.device => end(Some(Rest::Paused { resume_failed })),
        State::Paused { .. } => Step::to(state, Act::Forget),
        State::EndingDevice { .. } => Step::to(state, Act::Nothing),
        _ => drain(state, goal),
    }
}

/// Stops intake and waits for what is in flight.
fn drain(state: State, goal: Goal) -> Step {
    let stop = Act::StopIntake { goal, give_up: state == State::Waiting };
    match state {
        // On its way already, perhaps further than this.
        State::Shutting { goal: Goal::Pause } => Step::to(State::Shutting { goal }, stop),
        State::Shutting { .. } => Step::to(state, Act::Nothing),
        State::Draining { goal: now } if now != Goal::Pause => Step::to(state, Act::Nothing),
        _ => Step::to(State::Draining { goal }, stop),
    }
}

#[cfg(test)]
mod tests;
