//! Every state of a frontend against every state of the backend, as the spec has it.

use super::*;

const TAP: TapId = TapId { pid: 77, minor: 3 };
const OTHER: TapId = TapId { pid: 78, minor: 0 };

/// A disk whose script is done, with the frontend and the backend in these states.
fn view(front: u32, backend: u32) -> View {
    View {
        node: Node::Full,
        announced: true,
        online: true,
        backend: Some(backend),
        hotplug_present: true,
        hotplug: true,
        tap: Tap::At(TAP),
        mode: Mode::ReadWrite,
        front: Front::At(front),
        domain_gone: false,
        ring_key: None,
    }
}

fn known(ring: Ring) -> Known {
    Known { ring, met: Some(TAP), refused: false }
}

fn down() -> Known {
    known(Ring::Down)
}

fn up() -> Known {
    known(Ring::Up(TAP))
}

#[test]
fn a_new_node_is_announced_first() {
    let new = View { announced: false, ..view(1, 1) };
    assert_eq!(decide(&new, &Known::default()), Step::Announce);
    assert_eq!(decide(&new, &down()), Step::Announce);
}

#[test]
fn a_node_whose_frontend_is_not_there_yet_keeps_what_the_script_said() {
    let early = View { front: Front::Missing, ..view(0, 1) };
    assert_eq!(decide(&early, &down()), Step::Nothing);
    assert_eq!(decide(&early, &known(Ring::Unsure(None))), Step::Disconnect);
    assert_eq!(decide(&View { online: false, ..early }, &down()), Step::Abandon);
}

#[test]
fn a_node_made_anew_loses_the_ring_of_the_former_one() {
    let new = View { announced: false, ..view(1, 1) };
    assert_eq!(decide(&new, &up()), Step::Disconnect);
}

#[test]
fn init_wait_comes_before_the_script_is_done() {
    let early = View { hotplug: false, hotplug_present: false, tap: Tap::Absent, ..view(1, 1) };
    assert_eq!(decide(&early, &down()), Step::Enter(2));
    assert_eq!(decide(&View { backend: Some(2), ..early }, &down()), Step::Nothing);
}

#[test]
fn the_tapdisk_is_met_as_soon_as_the_script_is_done() {
    let nobody = Known { met: None, ..down() };
    assert_eq!(decide(&view(1, 2), &nobody), Step::Meet(TAP));
    assert_eq!(decide(&view(3, 2), &nobody), Step::Meet(TAP));
    let undone = View { hotplug: false, ..view(3, 2) };
    assert_eq!(decide(&undone, &nobody), Step::Nothing);
}

#[test]
fn a_frontend_that_is_ready_is_connected_whatever_state_it_skipped() {
    for front in [3, 4] {
        for backend in [1, 2, 4, 5, 6] {
            assert_eq!(decide(&view(front, backend), &down()), Step::Connect(TAP));
        }
        assert_eq!(decide(&view(front, 4), &up()), Step::Nothing);
        // After a restart: whether there is a ring is found out by connecting.
        assert_eq!(decide(&view(front, 4), &known(Ring::Unsure(None))), Step::Connect(TAP));
    }
}

#[test]
fn a_frontend_that_did_not_wait_for_2_does_not_keep_it_from_the_toolstack() {
    let early = View { hotplug: false, tap: Tap::Absent, ..view(3, 1) };
    assert_eq!(decide(&early, &down()), Step::Enter(2));
    assert_eq!(decide(&View { backend: Some(2), ..early }, &down()), Step::Nothing);
}

#[test]
fn closing_and_closed_are_answered_the_ring_first() {
    assert_eq!(decide(&view(5, 4), &up()), Step::Enter(5));
    assert_eq!(decide(&view(5, 5), &up()), Step::Nothing);
    assert_eq!(decide(&view(6, 5), &up()), Step::Disconnect);
    assert_eq!(decide(&view(6, 5), &down()), Step::Enter(6));
    assert_eq!(decide(&view(6, 6), &down()), Step::Nothing);
}

#[test]
fn a_frontend_that_begins_again_without_closing_loses_its_old_ring() {
    assert_eq!(decide(&view(1, 4), &up()), Step::Disconnect);
    assert_eq!(decide(&view(1, 4), &down()), Step::Enter(2));
}

#[test]
fn a_disk_unplugged_before_its_frontend_began_is_let_go() {
    let unplugged = View { online: false, ..view(1, 5) };
    assert_eq!(decide(&unplugged, &down()), Step::Enter(6));
    assert_eq!(decide(&View { backend: Some(6), ..unplugged }, &down()), Step::Nothing);
}

#[test]
fn nothing_new_is_connected_while_the_disk_is_unplugged() {
    for front in [3, 4] {
        let unplugged = View { online: false, ..view(front, 5) };
        assert_eq!(decide(&unplugged, &down()), Step::Nothing);
        assert_eq!(decide(&unplugged, &up()), Step::Nothing, "the guest closes it");
    }
    let seen = View { online: false, ..view(5, 6) };
    assert_eq!(decide(&seen, &down()), Step::Nothing, "6 is not taken back");
}

#[test]
fn a_frontend_that_is_gone_leaves_6_and_no_hotplug_status() {
    let gone = View { front: Front::Missing, ..view(0, 4) };
    assert_eq!(decide(&gone, &up()), Step::Disconnect);
    assert_eq!(decide(&gone, &down()), Step::Abandon);
    let six = View { backend: Some(6), ..gone };
    assert_eq!(decide(&six, &down()), Step::Abandon);
    let done = View { hotplug: false, hotplug_present: false, ..six };
    assert_eq!(decide(&done, &down()), Step::Nothing);
}

#[test]
fn a_node_that_is_gone_is_forgotten_after_its_ring() {
    for node in [Node::Gone, Node::Bare] {
        assert_eq!(decide(&View::empty(node), &up()), Step::Disconnect);
    }
    assert_eq!(decide(&View::empty(Node::Gone), &down()), Step::Forget);
    assert_eq!(decide(&View::empty(Node::Bare), &down()), Step::Nothing);
}

#[test]
fn the_ring_of_a_domain_that_is_gone_is_left() {
    let dead = View { domain_gone: true, ..view(4, 4) };
    assert_eq!(decide(&dead, &up()), Step::Disconnect);
    assert_eq!(decide(&dead, &down()), Step::Enter(6));
}

#[test]
fn another_tapdisk_serves_the_next_ring_and_not_this_one() {
    let moved = View { tap: Tap::At(OTHER), ..view(4, 4) };
    assert_eq!(decide(&moved, &up()), Step::Nothing);
    assert_eq!(moved_from(&moved, &up()), Some(TAP));
    let again = View { front: Front::At(3), backend: Some(2), ..moved };
    assert_eq!(decide(&again, &down()), Step::Meet(OTHER));
    let met = Known { met: Some(OTHER), ..down() };
    assert_eq!(decide(&again, &met), Step::Connect(OTHER));
}

#[test]
fn after_a_restart_too_a_used_ring_is_not_given_to_another_tapdisk() {
    let noted = Some("77.3 3 0 17:8".to_owned());
    let moved = View { tap: Tap::At(OTHER), ring_key: noted, ..view(4, 4) };
    let unsure = known(Ring::Unsure(None));
    assert_eq!(decide(&moved, &unsure), Step::Nothing);
    let fresh = View { front: Front::At(3), ..moved };
    assert_eq!(decide(&fresh, &unsure), Step::Disconnect);
    assert_eq!(decide(&fresh, &Known { met: Some(OTHER), ..down() }), Step::Connect(OTHER));
}

#[test]
fn a_path_that_vanishes_does_not_cut_the_guest_off() {
    let vanished = View { tap: Tap::Absent, ..view(4, 4) };
    assert_eq!(decide(&vanished, &up()), Step::Nothing);
    assert_eq!(decide(&View { front: Front::At(6), ..vanished }, &up()), Step::Disconnect);
}

#[test]
fn a_refused_frontend_is_sent_back_and_not_tried_again() {
    let refused = Known { refused: true, ..down() };
    assert_eq!(decide(&view(3, 2), &refused), Step::Enter(5));
    assert_eq!(decide(&view(3, 5), &refused), Step::Nothing);
}

#[test]
fn bad_modes_and_paths_connect_nothing() {
    let bad = View { mode: Mode::Bad("".into()), ..view(3, 2) };
    assert_eq!(decide(&bad, &down()), Step::Nothing);
    let bad = View { tap: Tap::Bad("".into()), ..view(3, 2) };
    assert_eq!(decide(&bad, &down()), Step::Nothing);
}

#[test]
fn other_states_do_nothing() {
    for front in [0, 2, 7, 8, 99] {
        assert_eq!(decide(&view(front, 2), &down()), Step::Nothing);
        assert_eq!(decide(&view(front, 4), &up()), Step::Nothing);
    }
    let nonsense = View { front: Front::Nonsense, ..view(0, 2) };
    assert_eq!(decide(&nonsense, &down()), Step::Nothing);
}

/// The store as the step leaves it.
fn after(view: &View, known: &Known, step: &Step) -> (View, Known) {
    let (mut view, mut known) = (view.clone(), known.clone());
    match step {
        Step::Nothing | Step::Forget => {}
        Step::Announce => (view.announced, known.ring) = (true, Ring::Down),
        Step::Enter(state) => view.backend = Some(*state),
        Step::Meet(tap) => known.met = Some(*tap),
        Step::Connect(tap) => (view.backend, known.ring) = (Some(4), Ring::Up(*tap)),
        Step::Disconnect => known.ring = Ring::Down,
        Step::Abandon => {
            view.backend = Some(6);
            (view.hotplug, view.hotplug_present) = (false, false);
        }
    }
    (view, known)
}

#[test]
fn from_everywhere_a_few_steps_lead_to_rest() {
    let others = [Front::Missing, Front::Stateless, Front::Nonsense];
    let fronts = others.into_iter().chain((0..9).map(Front::At));
    let fronts: Vec<Front> = fronts.collect();
    let rings = [Ring::Down, Ring::Unsure(None), Ring::Unsure(Some(OTHER)), Ring::Up(TAP)];
    let taps = [Tap::Absent, Tap::Bad("".into()), Tap::At(TAP), Tap::At(OTHER)];
    let mut cases = 0;
    for front in &fronts {
        for (backend, tap) in (0..8).flat_map(|b| taps.iter().map(move |t| (b, t))) {
            for (ring, bits) in rings.iter().flat_map(|r| (0..64u32).map(move |b| (r, b))) {
                let bit = |n: u32| bits & 1 << n != 0;
                let mut view = View { front: front.clone(), tap: tap.clone(), ..view(0, backend) };
                (view.announced, view.online, view.domain_gone) = (bit(0), bit(1), bit(2));
                (view.hotplug_present, view.hotplug) = (bit(3), bit(3));
                let met = bit(4).then_some(TAP);
                let mut known = Known { ring: ring.clone(), met, refused: bit(5) };
                let mut steps = Vec::new();
                let start = view.clone();
                loop {
                    let step = decide(&view, &known);
                    if step == Step::Nothing || step == Step::Forget {
                        break;
                    }
                    (view, known) = after(&view, &known, &step);
                    steps.push(step);
                    assert!(steps.len() <= 6, "{start:?} with {ring:?} never rests: {steps:?}");
                }
                cases += 1;
            }
        }
    }
    assert_eq!(cases, 12 * 8 * 4 * 4 * 64);
}
