//! The rules one by one, and every combination of states, requests and answers led to rest.
use std::collections::{HashMap, HashSet, VecDeque};

use super::*;

const IO: i32 = libc::EIO;
const PAUSED: State = State::Paused { resume_failed: false };
const FAILED: State = State::Paused { resume_failed: true };

/// A disk that is served.
fn view() -> View {
    View {
        answer: None,
        now: 5,
        idle: true,
        named: true,
        data: true,
        images: true,
        device: false,
        lends: false,
        left: false,
        goes_without: false,
    }
}

/// One that is paused.
fn paused() -> View {
    View { images: false, ..view() }
}

/// One that is not open.
fn closed() -> View {
    View { data: false, named: false, ..paused() }
}

fn after(view: View, answer: Answer) -> View {
    View { answer: Some(answer), ..view }
}

fn step(state: State, act: Act) -> Step {
    Step::to(state, act)
}

fn stop(goal: Goal) -> Act {
    Act::StopIntake { goal, give_up: false }
}

#[test]
fn a_disk_is_opened_by_a_worker_and_then_served() {
    let opening = State::Opening { before: Rest::Attached };
    assert_eq!(ask(State::Attached, Request::Open, &closed()), Ok(step(opening, Act::OpenImages)));
    let named = View { named: true, ..closed() };
    assert_eq!(decide(opening, &named), step(opening, Act::Nothing));
    assert_eq!(decide(opening, &after(named, Answer::Opened)), step(opening, Act::Serve));
    let open = decide(opening, &after(view(), Answer::Served(Then::Open)));
    assert_eq!(open, step(State::Open, Act::Announce).over(Ok(())));
}

#[test]
fn a_second_open_is_refused() {
    for state in [State::Open, PAUSED, State::Waiting] {
        let refused = ask(state, Request::Open, &view()).unwrap_err();
        assert_eq!(refused, Refusal { errno: libc::EALREADY, state });
    }
    let removing = State::EndingDevice { goal: Goal::Close, back: None };
    assert_eq!(ask(removing, Request::Open, &closed()).unwrap_err().errno, libc::EBUSY);
}

#[test]
fn images_that_cannot_be_opened_leave_the_disk_as_it_was() {
    for before in [Rest::Attached, Rest::Closed, Rest::Paused { resume_failed: false }] {
        let named = View { named: true, ..closed() };
        let next = decide(State::Opening { before }, &after(named, Answer::NotOpened(IO)));
        let wanted = step(before.into(), Act::Unname).over(Err(IO)).saying(Say::Refusal);
        assert_eq!(next, wanted);
    }
}

#[test]
fn images_that_were_open_and_cannot_be_served_leave_it_closed() {
    for (before, rest) in [
        (Rest::Attached, Rest::Closed),
        (Rest::Closed, Rest::Closed),
        (Rest::Paused { resume_failed: false }, Rest::Paused { resume_failed: false }),
    ] {
        let goal = Goal::Fail { errno: IO, rest };
        let next = decide(State::Opening { before }, &after(closed(), Answer::NotServed(IO)));
        assert_eq!(next, step(State::Shutting { goal }, Act::Shut).saying(Say::Refusal));
        let over = decide(State::Shutting { goal }, &after(closed(), Answer::Shut(Ok(()))));
        assert_eq!(over, step(rest.into(), Act::Forget).over(Err(IO)));
    }
}

#[test]
fn a_pause_waits_for_requests_and_closes_the_images() {
    let (goal, busy) = (Goal::Pause, View { idle: false, ..view() });
    let draining = State::Draining { goal };
    assert_eq!(ask(State::Open, Request::Pause, &busy), Ok(step(draining, stop(goal))));
    assert_eq!(decide(draining, &busy), step(draining, Act::Nothing));
    let shutting = State::Shutting { goal };
    assert_eq!(decide(draining, &view()), step(shutting, Act::TakeOut));
    let over = decide(shutting, &after(paused(), Answer::Shut(Ok(()))));
    assert_eq!(over, step(PAUSED, Act::Nothing).over(Ok(())));
    let failed = decide(shutting, &after(paused(), Answer::Shut(Err(IO))));
    assert_eq!(failed, step(PAUSED, Act::Nothing).over(Err(IO)).saying(Say::Refusal));
}

#[test]
fn a_pause_on_its_way_becomes_a_close_and_not_the_other_way_round() {
    for state in [|goal| State::Draining { goal }, |goal| State::Shutting { goal }] {
        let next = ask(state(Goal::Pause), Request::Close { force: false }, &view());
        assert_eq!(next, Ok(step(state(Goal::Close), stop(Goal::Close))));
        let next = ask(state(Goal::Close), Request::Pause, &view());
        assert_eq!(next, Ok(step(state(Goal::Close), Act::Nothing)));
    }
    // Its block device is still there.
    let with_device = View { device: true, ..paused() };
    let state = State::Shutting { goal: Goal::Close };
    let next = decide(state, &after(with_device, Answer::Shut(Ok(()))));
    let back = Some(Rest::Paused { resume_failed: false });
    let ending = State::EndingDevice { goal: Goal::Close, back };
    assert_eq!(next, step(ending, Act::EndDevice { force: false }));
}

#[test]
fn a_paused_disk_that_is_closed_stays_paused_without_a_name() {
    let close = Request::Close { force: false };
    assert_eq!(ask(PAUSED, close, &paused()), Ok(step(PAUSED, Act::Forget)));
    assert_eq!(ask(FAILED, close, &paused()), Ok(step(FAILED, Act::Forget)));
    assert_eq!(ask(PAUSED, Request::Pause, &paused()), Ok(step(PAUSED, Act::Nothing)));
}

#[test]
fn only_a_paused_disk_is_resumed() {
    let resume = Request::Resume { refused: None };
    for state in [State::Attached, State::Open, State::Closed, State::Waiting] {
        assert_eq!(ask(state, resume, &view()), Err(Refusal { errno: libc::EINVAL, state }));
    }
    let begun = State::Resuming { tries: 0, until: Some(0) };
    assert_eq!(ask(PAUSED, resume, &paused()), Ok(step(begun, Act::Nothing)));
    let first = State::Resuming { tries: 1, until: None };
    assert_eq!(decide(begun, &paused()), step(first, Act::OpenImages));
    let refused = ask(PAUSED, Request::Resume { refused: Some(IO) }, &paused());
    assert_eq!(refused, Err(Refusal { errno: IO, state: FAILED }));
}

#[test]
fn a_resume_is_tried_ten_times_and_by_an_heir_for_ever() {
    let not_opened = |tries, left| {
        let view = View { left, ..after(paused(), Answer::NotOpened(IO)) };
        decide(State::Resuming { tries, until: None }, &view)
    };
    let again = |tries| State::Resuming { tries, until: Some(5 + PAUSE_US) };
    assert_eq!(not_opened(9, false), step(again(9), Act::Nothing).saying(Say::Retry));
    let over = step(FAILED, Act::Nothing).over(Err(IO)).saying(Say::Refusal);
    assert_eq!(not_opened(10, false), over);
    // Once a minute it is said.
    for (tries, say) in [(10, Say::Refusal), (11, Say::Nothing), (60, Say::Refusal)] {
        assert_eq!(not_opened(tries, true), step(again(tries), Act::Nothing).saying(say));
    }
    // Somebody gave up.
    let view = View { left: true, ..after(paused(), Answer::NotOpened(libc::ECANCELED)) };
    let next = decide(State::Resuming { tries: 1, until: None }, &view);
    assert_eq!((next.state, next.outcome), (FAILED, Some(Err(libc::ECANCELED))));
}

#[test]
fn a_disk_whose_images_somebody_else_writes_is_as_good_as_open() {
    let held = after(view(), Answer::Served(Then::Held));
    let waiting = step(State::Waiting, Act::AwaitImages);
    let opening = State::Opening { before: Rest::Attached };
    assert_eq!(decide(opening, &held), waiting.over(Ok(())));
    // The OPEN has been answered.
    assert_eq!(decide(State::Waiting, &held), waiting);
    let open = decide(State::Waiting, &after(view(), Answer::Served(Then::Open)));
    assert_eq!(open, step(State::Open, Act::Announce));
    let lost = decide(State::Waiting, &after(paused(), Answer::NotOpened(IO)));
    assert_eq!(lost, step(FAILED, Act::Nothing).saying(Say::Refusal));
    let act = Act::StopIntake { goal: Goal::Pause, give_up: true };
    let next = ask(State::Waiting, Request::Pause, &paused());
    assert_eq!(next, Ok(step(State::Draining { goal: Goal::Pause }, act)));
}

#[test]
fn a_block_device_is_made_before_an_open_is_answered() {
    let opening = State::Opening { before: Rest::Attached };
    let next = decide(opening, &after(view(), Answer::Served(Then::Device)));
    assert_eq!(next, step(State::MakingDevice, Act::MakeDevice));
    let there = decide(State::MakingDevice, &after(view(), Answer::DeviceThere));
    assert_eq!(there, step(State::Open, Act::AnnounceDevice).over(Ok(())));
    let goal = Goal::Fail { errno: IO, rest: Rest::Closed };
    let none = decide(State::MakingDevice, &after(view(), Answer::NoDevice(IO)));
    assert_eq!(none, step(State::Draining { goal }, stop(goal)).saying(Say::Refusal));
    let half = decide(State::MakingDevice, &after(view(), Answer::DeviceBroken(IO)));
    let ending = State::EndingDevice { goal, back: None };
    assert_eq!(half, step(ending, Act::Nothing).saying(Say::Refusal));
}

#[test]
fn a_disk_with_clients_goes_on_without_its_block_device() {
    let view = View { goes_without: true, ..after(view(), Answer::NoDevice(IO)) };
    let next = decide(State::MakingDevice, &view);
    assert_eq!(next, step(State::Open, Act::Announce).over(Ok(())).saying(Say::Without));
}

#[test]
fn a_block_device_goes_before_a_close_or_keeps_the_disk() {
    let with_device = View { device: true, ..view() };
    for force in [false, true] {
        let ending = State::EndingDevice { goal: Goal::Close, back: None };
        let next = ask(State::Open, Request::Close { force }, &with_device);
        assert_eq!(next, Ok(step(ending, Act::EndDevice { force })));
        let again = ask(ending, Request::Close { force }, &with_device);
        assert_eq!(again, Ok(step(ending, Act::Nothing)));
        let gone = decide(ending, &after(view(), Answer::DeviceGone));
        assert_eq!(gone, step(State::Draining { goal: Goal::Close }, stop(Goal::Close)));
        let stays = decide(ending, &after(with_device, Answer::DeviceStays(libc::EBUSY)));
        assert_eq!(stays, step(State::Open, Act::Nothing).over(Err(libc::EBUSY)));
    }
}

#[test]
fn a_paused_disk_keeps_its_block_device_or_loses_it_with_its_name() {
    let with_device = View { device: true, ..paused() };
    for (state, resume_failed) in [(PAUSED, false), (FAILED, true)] {
        let back = Some(Rest::Paused { resume_failed });
        let ending = State::EndingDevice { goal: Goal::Close, back };
        let next = ask(state, Request::Close { force: false }, &with_device);
        assert_eq!(next, Ok(step(ending, Act::EndDevice { force: false })));
        let gone = decide(ending, &after(paused(), Answer::DeviceGone));
        assert_eq!(gone, step(state, Act::Forget).over(Ok(())));
        let stays = decide(ending, &after(with_device, Answer::DeviceStays(libc::EBUSY)));
        assert_eq!(stays, step(state, Act::Nothing).over(Err(libc::EBUSY)));
    }
}

#[test]
fn the_block_device_of_a_dead_tapdisk_is_taken_away_from_a_disk_at_rest() {
    let removing = State::EndingDevice { goal: Goal::Close, back: None };
    for state in [State::Attached, State::Closed, PAUSED] {
        let next = ask(state, Request::Remove, &closed());
        assert_eq!(next, Ok(step(removing, Act::RemoveDevice)));
    }
    for result in [Ok(()), Err(IO)] {
        let next = decide(removing, &after(closed(), Answer::DeviceRemoved(result)));
        assert_eq!(next, step(State::Closed, Act::Nothing).over(result));
    }
}

#[test]
fn a_disk_is_detached_only_without_a_name_and_at_rest() {
    for state in [State::Attached, State::Closed, PAUSED] {
        assert!(ask(state, Request::Detach, &closed()).is_ok());
        let refused = ask(state, Request::Detach, &paused()).unwrap_err();
        assert_eq!(refused, Refusal { errno: libc::EBUSY, state });
    }
    let removing = State::EndingDevice { goal: Goal::Close, back: None };
    assert!(ask(removing, Request::Detach, &closed()).is_err());
}

#[test]
fn a_signal_closes_what_may_end_and_waits_for_the_rest() {
    let goal = Goal::Close;
    let next = ask(State::Open, Request::End, &view());
    assert_eq!(next, Ok(step(State::Draining { goal }, stop(goal))));
    let opening = State::Opening { before: Rest::Attached };
    assert_eq!(ask(opening, Request::End, &view()), Ok(step(opening, Act::Nothing)));
    assert_eq!(ask(PAUSED, Request::End, &closed()), Ok(step(PAUSED, Act::Nothing)));
}

#[test]
fn for_another_program_a_disk_pauses_and_lends_the_block_device_that_would_go() {
    let goal = Goal::Pause;
    let lends = View { device: true, lends: true, ..view() };
    let next = ask(State::Open, Request::Rest, &lends);
    assert_eq!(next, Ok(step(State::EndingDevice { goal, back: None }, Act::LendDevice)));
    let keeps = View { lends: false, ..lends };
    let next = ask(State::Open, Request::Rest, &keeps);
    assert_eq!(next, Ok(step(State::Draining { goal }, stop(goal))));
    assert_eq!(ask(PAUSED, Request::Rest, &paused()), Ok(step(PAUSED, Act::Nothing)));
}

#[test]
fn without_another_program_it_goes_on_at_once_or_from_its_pause() {
    let goal = Goal::Pause;
    let ending = State::EndingDevice { goal, back: None };
    for state in [State::Draining { goal }, State::Shutting { goal }, ending] {
        assert_eq!(ask(state, Request::GoOn, &view()), Ok(step(state, Act::GoOnLater)));
    }
    let resuming = State::Resuming { tries: 0, until: Some(0) };
    assert_eq!(ask(PAUSED, Request::GoOn, &paused()), Ok(step(resuming, Act::Nothing)));
    assert_eq!(ask(PAUSED, Request::GoOn, &closed()), Ok(step(PAUSED, Act::Nothing)));
    assert_eq!(ask(State::Open, Request::GoOn, &view()), Ok(step(State::Open, Act::GoOn)));
}

// ---- every combination ------------------------------------------------------------------------

/// What is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Job {
    None,
    Opening,
    Making,
    Ending,
    Removing,
    Shutting,
}

/// A disk, with the world as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Disk {
    state: State,
    job: Job,
    named: bool,
    data: bool,
    images: bool,
    device: bool,
    left: bool,
    goes_without: bool,
    goes_on: bool,
}

impl Disk {
    fn view(&self, answer: Option<Answer>, (idle, now): (bool, u64)) -> View {
        View {
            answer,
            now,
            idle,
            named: self.named,
            data: self.data,
            images: self.images,
            device: self.device,
            lends: self.device && self.goes_without,
            left: self.left,
            goes_without: self.goes_without,
        }
    }

    /// All disks that may come of a step: what is known at once is answered at once.
    fn take(mut self, step: Step, found: &mut Vec<Disk>) {
        self.state = match step.state {
            // One time is as good as another, and so are many tries.
            State::Resuming { tries, until } => {
                State::Resuming { tries: tries.min(12), until: until.map(|_| 1) }
            }
            state => state,
        };
        let mut at_once: Vec<Answer> = Vec::new();
        match step.act {
            Act::Nothing | Act::Announce | Act::AnnounceDevice | Act::GoOn => {}
            Act::OpenImages => self.job = Job::Opening,
            Act::AwaitImages => (self.images, self.job) = (false, Job::Opening),
            Act::Serve => {
                at_once.push(Answer::NotServed(IO));
                let first = matches!(self.state, State::Opening { .. });
                if first || self.left || self.data {
                    let all = [Then::Open, Then::Device, Then::Held];
                    at_once.extend(all.map(Answer::Served));
                }
                self.left = false;
            }
            Act::StopIntake { .. } if self.job == Job::Shutting => {}
            Act::StopIntake { .. } => self.job = Job::None,
            Act::TakeOut if self.images => (self.images, self.job) = (false, Job::Shutting),
            Act::TakeOut => at_once.push(Answer::Shut(Ok(()))),
            Act::Shut => self.job = Job::Shutting,
            Act::MakeDevice => self.job = Job::Making,
            Act::EndDevice { .. } | Act::LendDevice => {
                assert!(self.device, "{self:?}: no block device to end");
                self.job = Job::Ending;
            }
            Act::RemoveDevice => self.job = Job::Removing,
            Act::Unname => self.named = false,
            Act::Forget => {
                assert!(!self.images, "{self:?}: images are forgotten");
                (self.named, self.data, self.left) = (false, false, false);
            }
            Act::GoOnLater => self.goes_on = true,
        }
        if at_once.is_empty() {
            found.push(self.settle());
        }
        for answer in at_once {
            let mut disk = self;
            if let Answer::Served(_) = answer {
                (disk.data, disk.images) = (true, true);
            }
            disk.take(decide(disk.state, &disk.view(Some(answer), (true, 0))), found);
        }
    }

    /// As `advance` does when it is at rest.
    fn settle(mut self) -> Disk {
        if self.goes_on && self.state.settled() {
            self.goes_on = false;
            match ask(self.state, Request::GoOn, &self.view(None, (true, 0))) {
                Ok(Step { state: State::Resuming { tries, .. }, .. }) => {
                    self.state = State::Resuming { tries, until: Some(1) };
                }
                Ok(step) => assert!(matches!(step.act, Act::GoOn | Act::Nothing), "{step:?}"),
                Err(refusal) => panic!("{refusal:?}"),
            }
        }
        self
    }

    /// All that may come back of what is under way.
    fn answers(&self) -> Vec<(Answer, Disk)> {
        let over = Disk { job: Job::None, ..*self };
        let device = |device| Disk { device, ..over };
        match self.job {
            Job::None => Vec::new(),
            Job::Opening => {
                [Answer::Opened, Answer::NotOpened(IO), Answer::NotOpened(libc::ECANCELED)]
                    .map(|answer| (answer, over))
                    .to_vec()
            }
            Job::Making => vec![
                (Answer::DeviceThere, device(true)),
                (Answer::NoDevice(IO), device(false)),
                (Answer::DeviceBroken(IO), Disk { job: Job::Ending, ..device(true) }),
                (Answer::DeviceBroken(IO), Disk { job: Job::Ending, ..device(false) }),
            ],
            Job::Ending => {
                vec![(Answer::DeviceGone, device(false)), (Answer::DeviceStays(IO), over)]
            }
            Job::Removing => {
                [Ok(()), Err(IO)].map(|result| (Answer::DeviceRemoved(result), over)).to_vec()
            }
            Job::Shutting => [Ok(()), Err(IO)].map(|result| (Answer::Shut(result), over)).to_vec(),
        }
    }

    /// What may come of time and finished work.
    fn moved(&self) -> Vec<Disk> {
        let mut found = Vec::new();
        if self.state.settled() {
            return found;
        }
        for (answer, disk) in self.answers() {
            disk.take(decide(self.state, &disk.view(Some(answer), (true, 0))), &mut found);
        }
        for idle_and_now in [(false, 0), (true, 0), (true, 1)] {
            let step = decide(self.state, &self.view(None, idle_and_now));
            if !step.is_nothing(self.state) {
                self.take(step, &mut found);
            }
        }
        found
    }

    /// What may come of a request.
    fn asked(&self, request: Request) -> Vec<Disk> {
        let mut found = Vec::new();
        match ask(self.state, request, &self.view(None, (false, 0))) {
            Err(refusal) => found.push(Disk { state: refusal.state, ..*self }),
            Ok(step) => {
                let named = self.named || request == Request::Open;
                Disk { named, ..*self }.take(step, &mut found);
            }
        }
        found
    }

    fn check(&self) {
        assert!(!self.goes_on || !self.state.settled(), "{self:?}: clients wait for nothing");
        match self.state {
            State::Attached | State::Closed => {
                assert!(!self.images && !self.data && !self.named, "{self:?}");
                assert_eq!(self.job, Job::None, "{self:?}");
            }
            State::Paused { .. } => {
                assert!(!self.images, "{self:?}");
                assert_eq!(self.job, Job::None, "{self:?}");
            }
            State::Open => {
                assert!(self.images && self.data && self.named, "{self:?}");
                assert_eq!(self.job, Job::None, "{self:?}");
            }
            State::Opening { .. } | State::Waiting => {
                assert_eq!(self.job, Job::Opening, "{self:?}")
            }
            State::Resuming { until, .. } => {
                let job = if until.is_some() { Job::None } else { Job::Opening };
                assert_eq!(self.job, job, "{self:?}");
            }
            State::MakingDevice => assert_eq!(self.job, Job::Making, "{self:?}"),
            State::EndingDevice { .. } => {
                assert!(matches!(self.job, Job::Ending | Job::Removing), "{self:?}");
            }
            State::Draining { .. } => assert_eq!(self.job, Job::None, "{self:?}"),
            State::Shutting { .. } => assert_eq!(self.job, Job::Shutting, "{self:?}"),
        }
    }
}

const REQUESTS: [Request; 11] = [
    Request::Open,
    Request::Remove,
    Request::Pause,
    Request::Close { force: false },
    Request::Close { force: true },
    Request::Resume { refused: None },
    Request::Resume { refused: Some(IO) },
    Request::Detach,
    Request::End,
    Request::Rest,
    Request::GoOn,
];

/// A new disk, and one that another program has left; with and without what a disk has for life.
fn births() -> Vec<Disk> {
    let new = Disk {
        state: State::Attached,
        job: Job::None,
        named: false,
        data: false,
        images: false,
        device: false,
        left: false,
        goes_without: false,
        goes_on: false,
    };
    let resuming = State::Resuming { tries: 0, until: Some(1) };
    let left = Disk { state: resuming, named: true, left: true, ..new };
    let mut all = Vec::new();
    for goes_without in [false, true] {
        all.extend(
            [new, left, Disk { device: true, ..left }].map(|disk| Disk { goes_without, ..disk }),
        );
    }
    all
}

#[test]
fn every_combination_of_states_requests_and_answers_is_led_to_rest() {
    let mut before: HashMap<Disk, Vec<Disk>> = HashMap::new();
    let mut queue: VecDeque<Disk> = births().into();
    let mut seen: HashSet<Disk> = queue.iter().copied().collect();
    while let Some(disk) = queue.pop_front() {
        disk.check();
        let moved = disk.moved();
        assert_eq!(moved.is_empty(), disk.state.settled(), "{disk:?}: nothing would move it");
        for next in &moved {
            before.entry(*next).or_default().push(disk);
        }
        let asked = REQUESTS.into_iter().flat_map(|request| disk.asked(request));
        for next in moved.into_iter().chain(asked) {
            if seen.insert(next) {
                queue.push_back(next);
            }
        }
    }
    // Backwards from rest by time and finished work alone: nothing is left over.
    let mut reached: HashSet<Disk> =
        seen.iter().copied().filter(|disk| disk.state.settled()).collect();
    let mut queue: VecDeque<Disk> = reached.iter().copied().collect();
    while let Some(disk) = queue.pop_front() {
        for earlier in before.get(&disk).into_iter().flatten() {
            if reached.insert(*earlier) {
                queue.push_back(*earlier);
            }
        }
    }
    let lost: Vec<&Disk> = seen.difference(&reached).collect();
    assert!(lost.is_empty(), "never at rest: {lost:#?}");
    assert!(seen.len() > 500, "combinations are tried: {}", seen.len());
}
