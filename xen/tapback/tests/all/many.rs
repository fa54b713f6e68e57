//! Many disks, and anything in any order.

use crate::guest::Guest;
use crate::rig::Rig;
use std::time::Duration;
use test_support::rng::Rng;

#[test]
fn a_hundred_disks_come_and_go() {
    let rig = Rig::new();
    let tapdisk = rig.tapdisk(77);
    let guests: Vec<Guest<'_>> =
        (0..100).map(|n| Guest::new(&rig.fake, 1 + n / 4, n % 4)).collect();
    for guest in &guests {
        guest.xl_plug("w");
        guest.script(&rig.tap_path(77, 0));
        guest.start(&[8]);
    }
    for guest in &guests {
        guest.wait_backend(4);
    }
    assert_eq!(tapdisk.state().rings.len(), 100);
    for domid in 1..=25 {
        rig.fake.rm(&format!("/local/domain/0/backend/vbd3/{domid}"));
    }
    tapdisk.wait("no ring", |state| state.rings.is_empty());
    rig.fake.wait_clients("two watches, no transaction", |usage| {
        usage.watches.len() == 2 && usage.transactions == 0
    });
}

#[test]
fn after_any_history_a_disk_can_be_used_and_nothing_leaks() {
    for seed in 1..=12 {
        for paused in [false, true] {
            eprintln!("seed {seed}, with pauses: {paused}");
            history(seed, paused);
        }
    }
}

/// `paused`: now and then long enough for tapback to finish what it does.
fn history(seed: u64, paused: bool) {
    let mut rng = Rng::new(seed);
    let mut rig = Rig::new();
    let tapdisks = [rig.tapdisk(77), rig.tapdisk(78)];
    for _ in 0..60 {
        if paused && rng.below(3) == 0 {
            std::thread::sleep(Duration::from_micros(rng.below(8000)));
        }
        if rng.below(25) == 0 {
            rig.stop();
            rig.start();
        }
        let guest = Guest::new(&rig.fake, 5, rng.below(3) as u32);
        let tapdisk = &tapdisks[rng.below(2) as usize];
        match rng.below(16) {
            0 | 1 => guest.xl_plug("w"),
            2 => guest.xenopsd_plug(),
            3 | 4 => guest.script(&rig.tap_path(tapdisk.pid, rng.below(2) as u16)),
            5 | 6 => guest.start(&[rng.below(100) as u32]),
            7..=10 => guest.enter(rng.below(9) as u32),
            11 => guest.ask_to_go(),
            12 => rig.fake.rm(guest.front("").trim_end_matches('/')),
            13 => rig.fake.rm(guest.back("").trim_end_matches('/')),
            14 => tapdisk.set(|state| state.stalled = !state.stalled),
            _ => match rng.below(3) {
                0 => rig.fake.kick_all(),
                1 => rig.fake.conflict_next(rng.below(6) as u32),
                _ => tapdisk.set(|state| {
                    state.refuse = if state.refuse.is_some() { None } else { Some(22) };
                }),
            },
        }
    }
    for tapdisk in &tapdisks {
        tapdisk.set(|state| (state.stalled, state.refuse) = (false, None));
    }
    for devid in 0..3 {
        let guest = Guest::new(&rig.fake, 5, devid);
        rig.fake.rm(guest.front("").trim_end_matches('/'));
        rig.fake.rm(guest.back("").trim_end_matches('/'));
    }
    for tapdisk in &tapdisks {
        tapdisk.wait("no ring", |state| state.rings.is_empty());
    }
    rig.fake.wait_clients("two watches, no transaction", |usage| {
        usage.watches.len() == 2 && usage.transactions == 0
    });
    for devid in 0..3 {
        let guest = rig.connected(5, devid, &tapdisks[0]);
        assert_eq!(guest.error(), None);
    }
}
