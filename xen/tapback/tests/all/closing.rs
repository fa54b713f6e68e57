//! Ways for a disk to go, and to come back.

use crate::guest::Guest;
use crate::rig::Rig;

#[test]
fn a_guest_closes_and_starts_again_with_another_ring() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &tapdisk);
    for refs in [[10, 11], [12, 13]] {
        guest.enter(5);
        guest.wait_backend(5);
        guest.enter(6);
        guest.wait_backend(6);
        assert!(tapdisk.state().rings.is_empty(), "the ring is left before 6 is said");
        guest.enter(1);
        guest.wait_backend(2);
        guest.start(&refs);
        guest.wait_backend(4);
        assert_eq!(tapdisk.state().rings[&(5, 51712, 0)].1.gref[..2], refs);
    }
}

#[test]
fn a_guest_that_begins_again_without_closing_loses_its_old_ring() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &tapdisk);
    guest.enter(1);
    guest.wait_backend(2);
    assert!(tapdisk.state().rings.is_empty());
    guest.start(&[20, 21]);
    guest.wait_backend(4);
    assert_eq!(tapdisk.state().rings[&(5, 51712, 0)].1.gref[..2], [20, 21]);
}

#[test]
fn a_guest_that_changes_its_mind_while_it_closes_is_connected_anew() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &tapdisk);
    guest.enter(5);
    guest.wait_backend(5);
    guest.start(&[30, 31]);
    guest.wait_backend(4);
    assert_eq!(tapdisk.state().rings[&(5, 51712, 0)].1.gref[0], 30);
}

#[test]
fn windows_boots() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &tapdisk);
    for _ in 0..2 {
        for (front, back) in [(5, 5), (6, 6), (1, 2)] {
            guest.enter(front);
            guest.wait_backend(back);
        }
        guest.start(&[30, 31, 32, 33]);
        guest.wait_backend(4);
        guest.enter(4);
    }
    assert_eq!(tapdisk.state().rings[&(5, 51712, 0)].1.order, 2);
}

#[test]
fn a_polite_unplug_by_xl_ends_in_6_and_the_node_goes() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &tapdisk);
    guest.ask_to_go();
    guest.enter(5);
    guest.enter(6);
    guest.wait_backend(6);
    assert!(tapdisk.state().rings.is_empty());
    assert_eq!(guest.get("hotplug-status").as_deref(), Some("connected"), "for block-tap remove");
    rig.fake.rm("/local/domain/0/backend/vbd3/5");
    rig.fake.rm("/local/domain/5/device/vbd/51712");
    rig.fake.wait_clients("two watches", |usage| usage.watches.len() == 2);
    assert_eq!(guest.get("state"), None, "nothing is made again");
}

#[test]
fn a_disk_that_no_guest_ever_used_is_unplugged_at_once() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.plugged(5, 51712, &tapdisk);
    guest.ask_to_go();
    guest.wait_backend(6);
    assert_eq!(tapdisk.state().connects, 0);
}

#[test]
fn a_forced_unplug_leaves_6_and_no_hotplug_status() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &tapdisk);
    rig.fake.write(&guest.back("online"), "0");
    rig.fake.rm("/local/domain/5/device/vbd/51712");
    guest.wait_backend(6);
    rig.fake.wait_gone(&guest.back("hotplug-status"));
    assert!(tapdisk.state().rings.is_empty());
    assert!(guest.get("physical-device-path").is_some(), "the rest stays for the script");
}

#[test]
fn a_frontend_that_removes_its_state_is_closed_and_may_begin_again() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &tapdisk);
    for round in 0..3 {
        rig.fake.rm(&guest.front("state"));
        guest.wait_backend(6);
        assert!(tapdisk.state().rings.is_empty());
        assert_eq!(guest.get("hotplug-status").as_deref(), Some("connected"));
        // Meanwhile its other keys may change.
        rig.fake.write(&guest.front("ring-ref"), "x");
        guest.enter(1);
        guest.wait_backend(2);
        guest.start(&[20 + round]);
        guest.wait_backend(4);
    }
    // Without a state its directory's end is still noticed.
    rig.fake.rm(&guest.front("state"));
    guest.wait_backend(6);
    rig.fake.rm("/local/domain/5/device/vbd/51712");
    rig.fake.wait_gone(&guest.back("hotplug-status"));
    rig.fake.wait_clients("three watches", |usage| usage.watches.len() == 3);
}

#[test]
fn a_node_that_is_removed_in_any_state_is_left_and_not_made_again() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    for state in 0..7u32 {
        let guest = rig.plugged(5, 100 + state, &tapdisk);
        match state {
            3 => {
                guest.start(&[8]);
                guest.wait_backend(4);
            }
            4 => {
                guest.start(&[8]);
                guest.wait_backend(4);
                guest.enter(4);
            }
            other => guest.enter(other),
        }
        rig.fake.rm(guest.back("").trim_end_matches('/'));
    }
    rig.fake.wait_clients("two watches", |usage| usage.watches.len() == 2);
    rig.fake.wait("nothing left", |tree| {
        (0..7).all(|n| !tree.has(&format!("/local/domain/0/backend/vbd3/5/{}", 100 + n)))
    });
    assert!(tapdisk.state().rings.is_empty());
}

#[test]
fn after_disks_that_went_in_several_steps_tapback_rests() {
    let rig = Rig::new();
    for devid in 0..20 {
        let guest = Guest::new(&rig.fake, 5, devid);
        guest.xl_plug("w");
        guest.wait_backend(2);
        rig.fake.rm(guest.back("").trim_end_matches('/'));
        rig.fake.rm(guest.front("").trim_end_matches('/'));
        rig.fake.rm("/local/domain/0/backend/vbd3/5");
    }
    rig.fake.wait_clients("two watches", |usage| usage.watches.len() == 2);
    let before = rig.fake.usage().requests;
    std::thread::sleep(std::time::Duration::from_millis(300));
    let asked = rig.fake.usage().requests - before;
    assert!(asked < 100, "{asked} requests in 300 ms about disks that are gone");
}

#[test]
fn a_node_removed_and_made_again_is_a_new_disk() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    rig.connected(5, 51712, &tapdisk);
    rig.fake.rm("/local/domain/0/backend/vbd3/5");
    rig.fake.rm("/local/domain/5/device/vbd/51712");
    let again = rig.plugged(5, 51712, &tapdisk);
    again.start(&[40]);
    again.wait_backend(4);
    assert_eq!(tapdisk.state().rings[&(5, 51712, 0)].1.gref[0], 40);
}

#[test]
fn the_ring_of_a_destroyed_domain_is_left_though_nobody_tidies_up() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &tapdisk);
    let other = rig.connected(6, 51712, &tapdisk);
    rig.fake.set_introduced(5, false);
    guest.wait_backend(6);
    assert_eq!(tapdisk.state().rings.keys().copied().collect::<Vec<_>>(), [(6, 51712, 0)]);
    assert_eq!(other.get("state").as_deref(), Some("4"));
}

#[test]
fn a_guest_that_dies_while_it_closes_is_closed() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &tapdisk);
    guest.enter(5);
    guest.wait_backend(5);
    rig.fake.rm("/local/domain/5");
    guest.wait_backend(6);
    assert!(tapdisk.state().rings.is_empty());
}

#[test]
fn after_migration_a_guest_goes_to_3_without_waiting() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = Guest::new(&rig.fake, 9, 51712);
    guest.xl_plug("w");
    guest.start(&[50]);
    guest.script(&rig.tap_path(77, 0));
    guest.wait_backend(4);
    assert_eq!(tapdisk.state().rings.len(), 1);
}
