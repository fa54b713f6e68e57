//! Tapdisks, toolstacks and stores that do not do their part.

use crate::guest::Guest;
use crate::rig::Rig;

#[test]
fn a_tapdisk_that_is_not_there_is_said_and_another_one_mends_it() {
    let rig = Rig::new();
    let guest = Guest::new(&rig.fake, 5, 51712);
    guest.xl_plug("w");
    guest.script(&rig.tap_path(76, 0));
    rig.fake.wait("an error", |tree| tree.has(&guest.back("hotplug-error")));
    let error = guest.get("hotplug-error").expect("there");
    assert!(error.contains("no tapdisk of that pid runs here"), "{error}");
    assert!(guest.error().expect("there").starts_with("2 cannot connect to "));
    let tapdisk = rig.tapdisk(77);
    rig.fake.write(&guest.back("physical-device-path"), &rig.tap_path(77, 0));
    guest.start(&[8]);
    guest.wait_backend(4);
    rig.fake.wait_gone(&guest.back("hotplug-error"));
    assert_eq!((guest.error(), tapdisk.state().rings.len()), (None, 1));
    rig.fake.wait_gone("/local/domain/0/error/backend/vbd3/5");
}

#[test]
fn what_a_tapback_before_this_one_said_is_taken_back() {
    let mut rig = Rig::new();
    for (devid, mode) in [(51712, "w"), (51728, "rw")] {
        let guest = Guest::new(&rig.fake, 5, devid);
        guest.xl_plug(mode);
        guest.start(&[8]);
        guest.script(&rig.tap_path(76, 0));
        rig.fake.wait("an error", |tree| tree.has(&guest.error_path()));
    }
    rig.stop();
    let _tapdisk = rig.tapdisk(76);
    rig.start();
    let guest = Guest::new(&rig.fake, 5, 51712);
    guest.wait_backend(4);
    rig.fake.wait_gone(&guest.error_path());
    rig.fake.wait_gone(&guest.back("hotplug-error"));
    assert!(Guest::new(&rig.fake, 5, 51728).error().is_some(), "that one is still so");
}

#[test]
fn a_tapdisk_that_comes_late_is_found_without_another_event() {
    let rig = Rig::new();
    let guest = Guest::new(&rig.fake, 5, 51712);
    guest.xl_plug("w");
    guest.script(&rig.tap_path(77, 0));
    guest.start(&[8]);
    rig.fake.wait("an error", |tree| tree.has(&guest.back("hotplug-error")));
    let _tapdisk = rig.tapdisk(77);
    guest.wait_backend(4);
}

#[test]
fn errors_are_tried_again_without_a_storm() {
    let rig = Rig::new();
    let guest = Guest::new(&rig.fake, 5, 51712);
    guest.xl_plug("w");
    guest.start(&[8]);
    guest.script(&rig.tap_path(76, 0));
    rig.fake.wait("an error", |tree| tree.has(&guest.back("hotplug-error")));
    let before = rig.fake.usage().requests;
    // The pauses grow to 200 ms, a look costs about ten requests.
    std::thread::sleep(std::time::Duration::from_millis(600));
    let asked = rig.fake.usage().requests - before;
    assert!(asked < 200, "{asked} requests in 600 ms");
}

#[test]
fn a_killed_tapdisk_is_followed_by_the_next_when_the_guest_makes_a_new_ring() {
    let rig = Rig::new();
    let first = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &first);
    first.kill();
    let second = rig.tapdisk(78);
    rig.fake.write(&guest.back("physical-device-path"), &rig.tap_path(78, 0));
    guest.enter(1);
    guest.wait_backend(2);
    guest.start(&[70, 71]);
    guest.wait_backend(4);
    assert_eq!(second.state().rings[&(5, 51712, 0)].1.gref[0], 70);
    rig.fake.wait_for(&guest.back("kthread-pid"), "78");
}

#[test]
fn a_killed_tapdisk_does_not_hold_an_unplug() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &tapdisk);
    tapdisk.kill();
    guest.ask_to_go();
    guest.enter(6);
    guest.wait_backend(6);
}

#[test]
fn a_tapdisk_that_does_not_answer_holds_up_its_own_disk_only() {
    let rig = Rig::new();
    let (stuck, fast) = (rig.tapdisk(77), rig.tapdisk(78));
    stuck.set(|state| state.stalled = true);
    let slow = rig.plugged(5, 1, &stuck);
    slow.start(&[8]);
    let quick = rig.connected(6, 1, &fast);
    assert_eq!(slow.get("state").as_deref(), Some("2"));
    // The slow one's guest gives up meanwhile, and need not wait.
    slow.enter(6);
    slow.wait_backend(6);
    stuck.set(|state| state.stalled = false);
    slow.enter(1);
    slow.wait_backend(2);
    slow.start(&[9]);
    slow.wait_backend(4);
    assert_eq!(quick.get("state").as_deref(), Some("4"));
}

#[test]
fn a_ring_that_is_connected_too_late_is_left_again() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.plugged(5, 1, &tapdisk);
    rig.fake.wait_for(&guest.back("kthread-pid"), "77");
    // The disk is asked about again before the connect; both stall.
    tapdisk.set(|state| state.stalled = true);
    guest.start(&[8]);
    tapdisk.set(|state| state.stalled = false);
    guest.enter(6);
    guest.wait_backend(6);
    tapdisk.wait("no ring", |state| state.rings.is_empty());
}

#[test]
fn a_tapdisk_that_cannot_map_the_ring_sends_the_guest_back() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    tapdisk.set(|state| state.refuse = Some(22));
    let guest = rig.plugged(5, 1, &tapdisk);
    guest.start(&[8]);
    guest.wait_backend(5);
    assert!(guest.error().expect("there").contains("refused sring connect of minor 0"));
    tapdisk.set(|state| state.refuse = None);
    for (front, back) in [(5, 5), (6, 6), (1, 2)] {
        guest.enter(front);
        guest.wait_backend(back);
    }
    guest.start(&[8]);
    guest.wait_backend(4);
}

#[test]
fn a_tapdisk_without_memory_is_asked_again() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    tapdisk.set(|state| state.refuse = Some(12));
    let guest = rig.plugged(5, 1, &tapdisk);
    guest.start(&[8]);
    tapdisk.wait("four tries", |state| state.connects >= 4);
    assert_eq!(rig.logs("refused sring connect"), 1, "it is said until it is over, and once");
    assert_eq!(guest.get("state").as_deref(), Some("2"));
    tapdisk.set(|state| state.refuse = None);
    guest.wait_backend(4);
    rig.fake.wait_gone(&guest.back("hotplug-error"));
}

#[test]
fn a_tapdisk_without_an_open_image_is_no_disk() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    tapdisk.set(|state| state.image.sectors = 0);
    let guest = rig.plugged(5, 1, &tapdisk);
    rig.fake.wait("an error", |tree| tree.has(&guest.back("hotplug-error")));
    assert!(guest.get("hotplug-error").expect("there").contains("has no open image"));
    tapdisk.set(|state| state.image.sectors = 8);
    guest.start(&[8]);
    guest.wait_backend(4);
    assert_eq!(guest.get("sectors").as_deref(), Some("8"));
}

#[test]
fn what_the_toolstack_wrote_wrongly_is_said_where_it_looks() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let said = |guest: &Guest<'_>, text: &str| {
        rig.fake.wait("an error", |tree| {
            tree.text(&guest.back("hotplug-error")).is_some_and(|error| error.contains(text))
        });
    };
    let guest = Guest::new(&rig.fake, 5, 1);
    guest.xl_plug("rw");
    guest.script(&rig.tap_path(77, 0));
    guest.start(&[8]);
    said(&guest, "mode is \"rw\", not r or w");
    rig.fake.write(&guest.back("mode"), "w");
    guest.wait_backend(4);
    rig.fake.wait_gone(&guest.back("hotplug-error"));
    let guest = Guest::new(&rig.fake, 5, 2);
    guest.xl_plug("w");
    guest.script("/dev/sda");
    said(&guest, "physical-device-path is \"/dev/sda\"");
    rig.fake.write(&guest.back("physical-device-path"), &rig.tap_path(77, 0));
    rig.fake.wait_for(&guest.back("kthread-pid"), "77");
    rig.fake.wait_gone(&guest.back("hotplug-error"));
    drop(tapdisk);
}

#[test]
fn a_script_that_never_ends_leaves_the_disk_waiting() {
    let rig = Rig::new();
    let guest = Guest::new(&rig.fake, 5, 1);
    guest.xl_plug("w");
    guest.start(&[8]);
    rig.fake.write(&guest.back("hotplug-status"), "error");
    rig.fake.write(&guest.back("hotplug-error"), "the script says no");
    guest.wait_backend(2);
    guest.ask_to_go();
    guest.enter(6);
    guest.wait_backend(6);
    assert_eq!(guest.get("hotplug-error").as_deref(), Some("the script says no"));
}

#[test]
fn transactions_that_meet_others_are_repeated() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    rig.fake.conflict_next(20);
    let guest = rig.connected(5, 1, &tapdisk);
    assert_eq!(guest.get("sectors").as_deref(), Some("2048"));
}

#[test]
fn a_key_that_may_not_be_read_is_an_error_and_no_loop() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.plugged(5, 1, &tapdisk);
    rig.fake.deny("/ring-ref");
    guest.start(&[8]);
    guest.wait_backend(5);
    let error = guest.error().expect("there");
    assert!(error.contains("permission denied (EACCES)"), "{error}");
    rig.fake.deny("");
}

#[test]
fn keys_of_the_backend_that_may_not_be_read_stop_that_disk_only() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    rig.fake.deny("/5/1/mode");
    let denied = Guest::new(&rig.fake, 5, 1);
    denied.xl_plug("w");
    let other = rig.connected(5, 2, &tapdisk);
    assert_eq!(denied.get("state").as_deref(), Some("1"));
    rig.fake.wait("an error", |tree| tree.has(&denied.error_path()));
    assert!(denied.error().expect("there").contains("/5/1/mode"));
    rig.fake.deny("");
    denied.wait_backend(2);
    rig.fake.wait_gone(&denied.error_path());
    assert_eq!(other.get("state").as_deref(), Some("4"));
}

#[test]
fn a_state_that_may_not_be_read_is_said_and_the_ring_stays() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 1, &tapdisk);
    rig.fake.deny("device/vbd/1/state");
    guest.enter(4);
    rig.fake.wait("an error", |tree| tree.has(&guest.error_path()));
    let error = guest.error().expect("there");
    assert!(error.contains("device/vbd/1/state in xenstore: permission denied"), "{error}");
    assert_eq!(tapdisk.state().rings.len(), 1);
    rig.fake.deny("");
    rig.fake.wait_gone(&guest.error_path());
    guest.enter(5);
    guest.wait_backend(5);
}

#[test]
fn states_that_are_none_do_nothing() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 1, &tapdisk);
    for nonsense in
        ["", "four", "-1", "4 ", "99", "18446744073709551617", "\u{fffd}", "0", "7", "8"]
    {
        rig.fake.write(&guest.front("state"), nonsense);
    }
    guest.enter(5);
    guest.wait_backend(5);
    assert_eq!(tapdisk.state().rings.len(), 1);
}

#[test]
fn directories_that_are_no_disks_are_left_alone() {
    let rig = Rig::new();
    rig.fake.write("/local/domain/0/backend/vbd3/five/1/frontend", "/local/domain/5/device/vbd/1");
    rig.fake.write("/local/domain/0/backend/vbd3/5/xvda/frontend", "/local/domain/5/device/vbd/1");
    rig.fake.write("/local/domain/0/backend/vbd3/5/1/frontend", "not/absolute");
    let tapdisk = rig.tapdisk(77);
    rig.connected(6, 1, &tapdisk);
    rig.fake.wait("nothing written", |tree| {
        ["five/1", "5/xvda", "5/1"]
            .iter()
            .all(|id| !tree.has(&format!("/local/domain/0/backend/vbd3/{id}/max-ring-page-order")))
    });
}
