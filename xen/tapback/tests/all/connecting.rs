//! From a new node to state 4, in every order.

use crate::guest::Guest;
use crate::rig::Rig;
use tap_ctl::messages::{ImageInfo, Rates};

#[test]
fn init_wait_does_not_wait_for_the_script() {
    let rig = Rig::new();
    let guest = Guest::new(&rig.fake, 5, 51712);
    guest.xl_plug("w");
    guest.wait_backend(2);
    assert_eq!(guest.get("max-ring-page-order").as_deref(), Some("3"));
    assert_eq!(guest.get("multi-queue-max-queues").as_deref(), Some("4"));
    assert_eq!(guest.get("feature-max-indirect-segments").as_deref(), Some("256"));
    assert_eq!(guest.get("feature-persistent").as_deref(), Some("0"));
    assert_eq!(rig.fake.permissions(&guest.back("max-ring-page-order")).as_deref(), Some("n0 r5"));
}

#[test]
fn xl_s_order_ends_connected() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.connected(5, 51712, &tapdisk);
    for (key, value) in [
        ("feature-barrier", "1"),
        ("feature-flush-cache", "1"),
        ("feature-discard", "1"),
        ("sector-size", "512"),
        ("physical-sector-size", "512"),
        ("sectors", "2048"),
        ("info", "0"),
    ] {
        assert_eq!(guest.get(key).as_deref(), Some(value), "{key}");
        assert_eq!(rig.fake.permissions(&guest.back(key)).as_deref(), Some("n0 r5"), "{key}");
    }
    assert_eq!(guest.get("kthread-pid").as_deref(), Some("77"));
    assert_eq!(rig.fake.permissions(&guest.back("tapback-ring")).as_deref(), Some("n0"));
    let state = tapdisk.state();
    let (minor, blkif) = state.rings.get(&(5, 51712, 0)).expect("one ring");
    assert_eq!((*minor, blkif.order, blkif.proto, blkif.port), (0, 1, 3, 17));
    assert_eq!((&blkif.gref[..2], blkif.queues), (&[8, 9][..], 0));
}

#[test]
fn xenopsd_s_order_ends_connected_and_the_pid_comes_before_the_guest() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = Guest::new(&rig.fake, 5, 51712);
    guest.xenopsd_plug();
    guest.script(&rig.tap_path(77, 4));
    rig.fake.wait_for(&guest.back("kthread-pid"), "77");
    guest.start(&[8]);
    guest.wait_backend(4);
    let state = tapdisk.state();
    let (minor, blkif) = state.rings.get(&(5, 51712, 0)).expect("one ring");
    assert_eq!((*minor, blkif.poll_duration, blkif.poll_idle_threshold), (4, 8000, 50));
}

/// Limits stand beside the disk's other keys, as a toolstack or a person writes them.
#[test]
fn limits_in_the_backend_s_directory_reach_the_tapdisk() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let limited = |domid, minor, limits: &[(&str, &str)]| {
        let guest = Guest::new(&rig.fake, domid, 51712);
        guest.xenopsd_plug();
        for (key, value) in limits {
            rig.fake.write(&guest.back(key), value);
        }
        guest.script(&rig.tap_path(77, minor));
        guest.start(&[8]);
        guest.wait_backend(4);
    };
    let limits =
        [("limit-write-bps", "50M"), ("limit-read-iops", "500"), ("limit-burst-ms", "soon")];
    limited(5, 4, &limits);
    let wanted =
        Rates { bytes: [None, Some(50_000_000)], ops: [Some(500), None], ..Rates::default() };
    assert_eq!(tapdisk.state().limits, [(4, wanted)]);
    // A disk without limits is asked nothing, and a tapdisk without them is used all the same.
    let other = rig.connected(6, 51712, &tapdisk);
    assert_eq!(other.get("state").as_deref(), Some("4"));
    assert_eq!(tapdisk.state().limits.len(), 1);
    tapdisk.set(|state| state.old = true);
    limited(7, 6, &[("limit-read-bps", "1M")]);
}

#[test]
fn a_path_that_was_there_before_tapback_is_found() {
    let mut rig = Rig::idle();
    let tapdisk = rig.tapdisk(77);
    {
        let guest = Guest::new(&rig.fake, 5, 51712);
        guest.xenopsd_plug();
        guest.script(&rig.tap_path(77, 0));
        guest.start(&[8]);
    }
    rig.start();
    Guest::new(&rig.fake, 5, 51712).wait_backend(4);
    assert_eq!(tapdisk.state().connects, 1);
}

#[test]
fn keys_may_come_in_any_order() {
    let rig = Rig::new();
    let _tapdisk = rig.tapdisk(77);
    for (devid, first) in [(1, "hotplug-status"), (2, "physical-device-path"), (3, "state")] {
        let guest = Guest::new(&rig.fake, 5, devid);
        guest.xl_plug("w");
        guest.wait_backend(2);
        let path = rig.tap_path(77, 0);
        let status = || rig.fake.write(&guest.back("hotplug-status"), "connected");
        let place = || rig.fake.write(&guest.back("physical-device-path"), &path);
        match first {
            "hotplug-status" => (status(), place(), guest.start(&[8])),
            "physical-device-path" => (place(), status(), guest.start(&[8])),
            _ => (guest.start(&[8]), status(), place()),
        };
        guest.wait_backend(4);
    }
}

#[test]
fn without_a_protocol_the_ring_is_x86_32_and_an_unknown_one_is_refused() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    for (devid, protocol, proto) in [(1, None, 2), (2, Some("x86_32-abi"), 2)] {
        let guest = rig.plugged(5, devid, &tapdisk);
        guest.ring(&[8], protocol);
        guest.enter(3);
        guest.wait_backend(4);
        assert_eq!(tapdisk.state().rings[&(5, devid, 0)].1.proto, proto);
    }
    let guest = rig.plugged(5, 3, &tapdisk);
    guest.ring(&[8], Some("foo"));
    guest.enter(3);
    guest.wait_backend(5);
    let error = guest.error().expect("an error");
    assert!(error.contains("the protocol \"foo\" is not known"), "{error}");
    assert_eq!(guest.get("hotplug-error"), None, "the toolstack did nothing wrong");
    // The guest starts again, better.
    guest.enter(6);
    guest.wait_backend(6);
    guest.enter(1);
    guest.wait_backend(2);
    guest.start(&[8]);
    guest.wait_backend(4);
    rig.fake.wait_gone("/local/domain/0/error/backend/vbd3/5/3/error");
}

#[test]
fn what_a_frontend_says_of_persistent_grants_does_not_matter() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.plugged(5, 51712, &tapdisk);
    rig.fake.write(&guest.front("feature-persistent"), "yes");
    rig.fake.write(&guest.front("event-channel"), "17");
    rig.fake.write(&guest.front("ring-ref"), "8");
    guest.enter(3);
    guest.wait_backend(4);
}

#[test]
fn a_frontend_with_queues_gets_a_ring_each() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.plugged(5, 51712, &tapdisk);
    rig.fake.write(&guest.front("protocol"), "x86_64-abi");
    rig.fake.write(&guest.front("multi-queue-num-queues"), "3");
    for queue in 0..3 {
        let key = |name: &str| guest.front(&format!("queue-{queue}/{name}"));
        rig.fake.write(&key("ring-ref"), &format!("{}", 100 + queue));
        rig.fake.write(&key("event-channel"), &format!("{}", 200 + queue));
    }
    guest.enter(3);
    guest.wait_backend(4);
    let state = tapdisk.state();
    for queue in 0..3 {
        let blkif = &state.rings[&(5, 51712, queue)].1;
        assert_eq!((blkif.gref[0], blkif.port), (100 + queue, 200 + queue));
        assert_eq!((blkif.queue, blkif.queues), (queue, 3));
    }
}

#[test]
fn an_old_tapdisk_is_not_left_with_half_of_a_frontends_queues() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    tapdisk.set(|state| state.old = true);
    let guest = rig.plugged(5, 51712, &tapdisk);
    rig.fake.write(&guest.front("multi-queue-num-queues"), "2");
    for queue in 0..2 {
        rig.fake.write(&guest.front(&format!("queue-{queue}/ring-ref")), "8");
        rig.fake.write(&guest.front(&format!("queue-{queue}/event-channel")), "17");
    }
    guest.enter(3);
    guest.wait_backend(5);
    assert!(guest.error().expect("an error").contains("--queues 1"));
    assert!(tapdisk.state().rings.is_empty());
}

#[test]
fn nonsense_about_rings_is_refused_before_anything_is_made_of_it() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    for (devid, key, value) in [
        (1, "ring-page-order", "4"),
        (2, "ring-page-order", "4294967295"),
        (3, "ring-page-order", "-1"),
        (4, "event-channel", ""),
        (5, "event-channel", "99999999999"),
        (6, "ring-ref", "eight"),
        (7, "multi-queue-num-queues", "0"),
        (8, "multi-queue-num-queues", "5"),
        (9, "multi-queue-num-queues", "2"),
    ] {
        let guest = rig.plugged(5, devid, &tapdisk);
        guest.ring(&[8], Some("x86_64-abi"));
        rig.fake.write(&guest.front(key), value);
        guest.enter(3);
        guest.wait_backend(5);
        let error = guest.error().expect("an error");
        assert!(error.starts_with("22 frontend: "), "{key} = {value}: {error}");
    }
    assert_eq!(tapdisk.state().connects, 0);
}

#[test]
fn missing_ring_keys_are_refused_by_name() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.plugged(5, 1, &tapdisk);
    guest.enter(3);
    guest.wait_backend(5);
    assert_eq!(guest.error().as_deref(), Some("22 frontend: ring-ref is missing"));
}

#[test]
fn read_only_disks_and_cdroms_say_so() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    for (devid, kind, mode, info) in
        [(1, "disk", "r", "4"), (2, "cdrom", "r", "5"), (3, "cdrom", "w", "1")]
    {
        let guest = Guest { kind, ..Guest::new(&rig.fake, 5, devid) };
        guest.xl_plug(mode);
        guest.wait_backend(2);
        guest.script(&rig.tap_path(77, 0));
        guest.start(&[8]);
        guest.wait_backend(4);
        assert_eq!(guest.get("info").as_deref(), Some(info));
        let discard = if mode == "r" { "0" } else { "1" };
        assert_eq!(guest.get("feature-discard").as_deref(), Some(discard));
    }
    drop(tapdisk);
}

#[test]
fn a_cdrom_by_xenopsd_is_known_by_the_frontends_key() {
    let rig = Rig::new();
    let _tapdisk = rig.tapdisk(77);
    let guest = Guest { kind: "cdrom", ..Guest::new(&rig.fake, 5, 1) };
    guest.xenopsd_plug();
    guest.script(&rig.tap_path(77, 0));
    guest.start(&[8]);
    guest.wait_backend(4);
    assert_eq!(guest.get("info").as_deref(), Some("1"));
}

#[test]
fn an_empty_drive_waits_and_a_medium_connects_it() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = Guest { kind: "cdrom", ..Guest::new(&rig.fake, 5, 51728) };
    guest.xl_plug("r");
    rig.fake.write(&guest.back("hotplug-status"), "connected");
    guest.start(&[8]);
    guest.wait_backend(2);
    rig.fake.write(&guest.back("physical-device-path"), &rig.tap_path(77, 1));
    guest.wait_backend(4);
    assert_eq!(guest.error(), None);
    assert_eq!(tapdisk.state().rings[&(5, 51728, 0)].0, 1);
}

#[test]
fn another_medium_counts_when_the_guest_connects_next() {
    let rig = Rig::new();
    let (old, new) = (rig.tapdisk(77), rig.tapdisk(78));
    new.set(|state| {
        state.image = ImageInfo { sectors: 999, sector_size: 512, ..ImageInfo::default() }
    });
    let guest = rig.connected(5, 51728, &old);
    rig.fake.write(&guest.back("physical-device-path"), &rig.tap_path(78, 0));
    rig.fake.wait("a note for the toolstack", |tree| {
        tree.text(&guest.back("hotplug-error")).is_some_and(|text| text.contains("connects next"))
    });
    assert_eq!((old.state().rings.len(), new.state().connects), (1, 0), "the ring is in use");
    for (front, back) in [(5, 5), (6, 6), (1, 2)] {
        guest.enter(front);
        guest.wait_backend(back);
    }
    guest.start(&[8]);
    guest.wait_backend(4);
    assert_eq!(guest.get("sectors").as_deref(), Some("999"));
    assert_eq!(guest.get("kthread-pid").as_deref(), Some("78"));
    assert!(old.state().rings.is_empty());
    rig.fake.wait_gone(&guest.back("hotplug-error"));
}

#[test]
fn discard_enable_0_is_obeyed() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guest = rig.plugged(5, 51712, &tapdisk);
    rig.fake.write(&guest.back("discard-enable"), "0");
    guest.start(&[8]);
    guest.wait_backend(4);
    assert_eq!(guest.get("feature-discard").as_deref(), Some("0"));
}

#[test]
fn a_driver_domain_serves_its_own_backends() {
    let mut rig = Rig::idle();
    // What a toolstack grants a driver domain and the guest's directory for it.
    rig.fake.write("/local/domain/3/domid", "3");
    let socket = rig.fake.listen(3);
    rig.fake.grant("/local/domain/3", "n3");
    rig.fake.grant("/local/domain/3/domid", "n3");
    rig.config.places = vec![xenstore::Endpoint::Socket(socket)];
    rig.start();
    let tapdisk = rig.tapdisk(77);
    let guest = Guest { backend_domid: 3, ..Guest::new(&rig.fake, 5, 51712) };
    rig.fake.write("/local/domain/5/device/vbd/51712", "");
    rig.fake.grant("/local/domain/5/device/vbd/51712", "n5 r3");
    guest.xl_plug("w");
    guest.wait_backend(2);
    guest.script(&rig.tap_path(77, 0));
    guest.start(&[8]);
    guest.wait_backend(4);
    assert_eq!(rig.fake.permissions(&guest.back("sectors")).as_deref(), Some("n3 r5"));
    assert_eq!(tapdisk.state().rings.len(), 1);
}

#[test]
fn one_domain_only_means_that_one() {
    let mut rig = Rig::idle();
    rig.config.only = Some(6);
    rig.start();
    let (other, ours) = (Guest::new(&rig.fake, 5, 1), Guest::new(&rig.fake, 6, 1));
    other.xl_plug("w");
    ours.xl_plug("w");
    ours.wait_backend(2);
    assert_eq!(other.get("state").as_deref(), Some("1"));
}
