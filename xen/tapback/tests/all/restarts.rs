//! tapback and xenstored come and go; rings stay.

use crate::guest::Guest;
use crate::rig::Rig;

#[test]
fn a_restarted_tapback_finds_the_ring_and_touches_nothing() {
    let mut rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    rig.connected(5, 51712, &tapdisk);
    rig.stop();
    assert_eq!(tapdisk.state().rings.len(), 1, "it goes on without tapback");
    rig.start();
    tapdisk.wait("a second connect", |state| state.connects == 2);
    let guest = Guest::new(&rig.fake, 5, 51712);
    guest.enter(5);
    guest.wait_backend(5);
    assert_eq!(tapdisk.state().disconnects, 0, "no ring was left");
    guest.enter(6);
    guest.wait_backend(6);
    assert!(tapdisk.state().rings.is_empty());
}

/// Whether its node went, or was made again, before the new one has looked.
#[test]
fn a_disk_that_went_while_tapback_was_away_leaves_no_ring() {
    for again in [false, true] {
        let mut rig = Rig::new();
        let tapdisk = rig.tapdisk(77);
        rig.connected(5, 51712, &tapdisk);
        rig.stop();
        let guest = Guest::new(&rig.fake, 5, 51712);
        rig.fake.rm(guest.front("").trim_end_matches('/'));
        rig.fake.rm(guest.back("").trim_end_matches('/'));
        if again {
            guest.xl_plug("w");
        }
        rig.start();
        tapdisk.wait("no ring", |state| state.rings.is_empty());
        if again {
            let guest = rig.connected(5, 51712, &tapdisk);
            assert_eq!(guest.error(), None);
        }
    }
}

/// Its order was carried out, but it ended before it had said so to the store.
#[test]
fn a_ring_of_an_order_whose_tapback_ended_is_left_when_another_tapdisk_is_named() {
    let mut rig = Rig::new();
    let tapdisks = [rig.tapdisk(77), rig.tapdisk(78)];
    rig.connected(5, 51712, &tapdisks[0]);
    rig.stop();
    let guest = Guest::new(&rig.fake, 5, 51712);
    rig.fake.rm(&guest.back("tapback-ring"));
    rig.fake.write(&guest.back("state"), "2");
    guest.enter(3);
    let path = rig.tap_path(78, 0);
    guest.script(&path);
    rig.start();
    tapdisks[0].wait("no ring", |state| state.rings.is_empty());
    tapdisks[1].wait("the ring", |state| state.rings.len() == 1);
}

#[test]
fn a_ring_that_changed_while_tapback_was_away_is_made_anew() {
    let mut rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    rig.connected(5, 51712, &tapdisk);
    rig.stop();
    Guest::new(&rig.fake, 5, 51712).start(&[60, 61]);
    rig.start();
    tapdisk.wait("the new ring", |state| {
        state.rings.get(&(5, 51712, 0)).is_some_and(|(_, blkif)| blkif.gref[..2] == [60, 61])
    });
    Guest::new(&rig.fake, 5, 51712).wait_backend(4);
}

#[test]
fn a_ring_that_its_tapdisk_lost_is_not_begun_again_in_the_middle() {
    let mut rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    rig.connected(5, 51712, &tapdisk);
    rig.stop();
    tapdisk.set(|state| state.rings.clear());
    rig.start();
    let guest = Guest::new(&rig.fake, 5, 51712);
    guest.wait_backend(5);
    assert!(guest.error().expect("there").contains("has to make it anew"));
    assert!(tapdisk.state().rings.is_empty());
}

/// A tapback of the original was there before: it leaves no note about the ring.
#[test]
fn after_the_original_a_ring_is_found_and_a_lost_one_not_begun_again() {
    for lost in [false, true] {
        let mut rig = Rig::new();
        let tapdisk = rig.tapdisk(77);
        rig.connected(5, 51712, &tapdisk);
        rig.stop();
        let note = Guest::new(&rig.fake, 5, 51712).back("tapback-ring");
        rig.fake.rm(&note);
        if lost {
            tapdisk.set(|state| state.rings.clear());
        }
        rig.start();
        let guest = Guest::new(&rig.fake, 5, 51712);
        match lost {
            true => {
                guest.wait_backend(5);
                assert!(guest.error().expect("there").contains("has to make it anew"));
                assert!(tapdisk.state().rings.is_empty());
            }
            false => {
                rig.fake.wait("a note", |tree| tree.has(&note));
                guest.wait_backend(4);
                let state = tapdisk.state();
                assert_eq!((state.rings.len(), state.disconnects), (1, 0));
            }
        }
    }
}

#[test]
fn what_happened_while_tapback_was_away_is_made_up_for() {
    let mut rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    for devid in 1..=4 {
        rig.connected(5, devid, &tapdisk);
    }
    rig.stop();
    let guest = |devid| Guest::new(&rig.fake, 5, devid);
    guest(1).enter(6);
    rig.fake.rm("/local/domain/5/device/vbd/2");
    guest(3).enter(1);
    let new = guest(7);
    new.xl_plug("w");
    rig.start();
    let guest = |devid| Guest::new(&rig.fake, 5, devid);
    guest(1).wait_backend(6);
    guest(2).wait_backend(6);
    rig.fake.wait_gone(&guest(2).back("hotplug-status"));
    guest(3).wait_backend(2);
    guest(7).wait_backend(2);
    tapdisk.wait("one ring left", |state| {
        state.rings.keys().copied().collect::<Vec<_>>() == [(5, 4, 0)]
    });
    assert_eq!(guest(4).get("state").as_deref(), Some("4"));
}

#[test]
fn a_restarted_xenstored_is_found_again_and_disks_go_on() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &tapdisk);
    let before = rig.fake.usage().accepted;
    rig.fake.kick_all();
    rig.fake.wait_clients("a new connection with three watches", |usage| {
        usage.accepted > before && usage.connections == 1 && usage.watches.len() == 3
    });
    assert!(rig.logs("disks that are connected stay so") > 0);
    let connects = tapdisk.state().connects;
    let disconnects = tapdisk.state().disconnects;
    guest.enter(6);
    guest.wait_backend(6);
    let state = tapdisk.state();
    assert_eq!((state.connects, state.disconnects), (connects, disconnects + 1));
    drop(state);
    let new = Guest::new(&rig.fake, 6, 51712);
    new.xl_plug("w");
    new.wait_backend(2);
}

#[test]
fn a_xenstored_that_goes_in_the_middle_of_everything_is_survived() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    for devid in 0..12 {
        let guest = Guest::new(&rig.fake, 5, devid);
        guest.xl_plug("w");
        guest.script(&rig.tap_path(77, 0));
        guest.start(&[8]);
        rig.fake.kick_all();
    }
    for devid in 0..12 {
        Guest::new(&rig.fake, 5, devid).wait_backend(4);
    }
    tapdisk.wait("twelve rings", |state| state.rings.len() == 12);
    rig.fake.wait_clients("no transaction", |usage| usage.transactions == 0);
}
