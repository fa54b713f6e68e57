//! The store against a xenstored in this process.

use crate::common::Rig;
use std::cell::Cell;
use xenstore::{Access, Errno, Error, Fired, Permission, Store};
use xenstore_fake::Fake;

fn rig(fake: &Fake) -> Rig {
    Rig::new(&fake.socket(0))
}

#[test]
fn what_is_written_is_read_listed_and_removed() {
    let fake = Fake::start();
    let mut rig = rig(&fake);
    let store = rig.store.clone();
    rig.run(async {
        store.write("/a/b", b"one").await.expect("written");
        store.mkdir("/a/c").await.expect("made");
        assert_eq!(store.read("/a/b").await, Ok(Some(b"one".to_vec())));
        assert_eq!(store.read("/a/c").await, Ok(Some(Vec::new())));
        assert_eq!(store.read("/a/x").await, Ok(None));
        assert_eq!(store.directory("/a").await, Ok(Some(vec!["b".into(), "c".into()])));
        assert_eq!(store.directory("/a/b").await, Ok(Some(vec![])));
        assert_eq!(store.directory("/x").await, Ok(None));
        assert_eq!(store.rm("/a").await, Ok(true));
        assert_eq!(store.read("/a/b").await, Ok(None));
        assert_eq!(store.rm("/a/b/c").await, Ok(false));
    });
    assert_eq!(fake.get("/a"), None);
}

#[test]
fn an_empty_value_is_a_value() {
    let fake = Fake::start();
    let mut rig = rig(&fake);
    let store = rig.store.clone();
    rig.run(async {
        store.write("/a", b"").await.expect("written");
        assert_eq!(store.read("/a").await, Ok(Some(Vec::new())));
    });
}

#[test]
fn relative_paths_are_those_of_the_own_domain() {
    let fake = Fake::start();
    fake.write("/local/domain/7/domid", "7");
    let mut rig = Rig::new(&fake.listen(7));
    let store = rig.store.clone();
    let denied = rig.run(async {
        assert_eq!(store.domain_path(7).await, Ok("/local/domain/7".into()));
        store.read("domid").await
    });
    assert!(denied.expect_err("not its own").is(Errno::Acces));
}

#[test]
fn permissions_are_set_and_read() {
    let fake = Fake::start();
    let mut rig = rig(&fake);
    let store = rig.store.clone();
    rig.run(async {
        store.write("/a", b"x").await.expect("written");
        let list = Permission::readable_by(0, 5);
        store.set_permissions("/a", &list).await.expect("set");
        assert_eq!(store.permissions("/a").await, Ok(list.to_vec()));
        let missing = store.set_permissions("/x", &list).await.expect_err("no such node");
        assert!(missing.is(Errno::NoEnt));
    });
    assert_eq!(fake.permissions("/a").as_deref(), Some("n0 r5"));
    let mut guest = Rig::new(&fake.listen(5));
    let store = guest.store.clone();
    assert_eq!(guest.run(store.read("/a")), Ok(Some(b"x".to_vec())));
    assert!(guest.run(store.write("/a", b"y")).expect_err("read only").is(Errno::Acces));
    let open = [Permission::new(Access::Both, 5)];
    assert!(guest.run(store.set_permissions("/a", &open)).expect_err("not its").is(Errno::Acces));
}

#[test]
fn a_directory_of_any_length_is_listed() {
    let fake = Fake::start();
    let names: Vec<String> = (0..2000).map(|n| format!("device-{n:06}")).collect();
    for name in &names {
        fake.write(&format!("/long/{name}"), "");
    }
    let mut rig = rig(&fake);
    let store = rig.store.clone();
    assert_eq!(rig.run(store.directory("/long")), Ok(Some(names)));
}

#[test]
fn a_transaction_is_all_or_nothing() {
    let fake = Fake::start();
    let mut rig = rig(&fake);
    let store = rig.store.clone();
    rig.run(async {
        let done = store
            .transact(async |tx| {
                tx.write("/a", b"1").await?;
                assert_eq!(tx.read("/a").await?, Some(b"1".to_vec()));
                assert_eq!(store.read("/a").await?, None, "not yet for others");
                tx.write("/b", b"2").await
            })
            .await;
        assert_eq!(done, Ok(()));
        let failed: Result<(), Error> = store
            .transact(async |tx| {
                tx.rm("/a").await?;
                Err(Error::Unfit { reason: "changed my mind".into() })
            })
            .await;
        assert!(failed.is_err());
    });
    rig.settle();
    assert_eq!((fake.get("/a").as_deref(), fake.get("/b").as_deref()), (Some("1"), Some("2")));
    assert_eq!(fake.usage().transactions, 0);
}

#[test]
fn a_transaction_that_met_a_change_is_done_again() {
    let fake = Fake::start();
    fake.write("/count", "0");
    let mut rig = rig(&fake);
    let store = rig.store.clone();
    let tries = Cell::new(0);
    let done = rig.run(store.transact(async |tx| {
        let seen = tx.read("/count").await?.expect("there");
        tries.set(tries.get() + 1);
        if tries.get() < 4 {
            // Somebody else, in between.
            fake.write("/count", &format!("{}", tries.get() * 10));
        }
        let mut next = seen;
        next.push(b'+');
        tx.write("/count", &next).await
    }));
    assert_eq!(done, Ok(()));
    assert_eq!((tries.get(), fake.get("/count").as_deref()), (4, Some("30+")));
}

#[test]
fn a_transaction_without_end_is_an_error() {
    let fake = Fake::start();
    fake.conflict_next(u32::MAX);
    let mut rig = rig(&fake);
    let store = rig.store.clone();
    let result = rig.run(store.transact(async |tx| tx.write("/a", b"1").await));
    assert_eq!(result, Err(Error::Contended { tries: 32 }));
    assert_eq!((fake.get("/a"), fake.usage().transactions), (None, 0));
}

#[test]
fn a_dropped_transaction_is_ended_wherever_it_was() {
    let fake = Fake::start();
    let mut rig = rig(&fake);
    let store = rig.store.clone();
    // A transaction has four requests here: start, write, read, end. Drop it after every number of
    // turns.
    for turns in 0..8 {
        let work = store.transact(async |tx| {
            tx.write("/a", b"1").await?;
            tx.read("/a").await.map(drop)
        });
        rig.run(some_polls(work, turns));
        rig.settle();
        rig.settle();
        assert_eq!(fake.usage().transactions, 0, "after {turns} polls");
    }
}

/// Poll a future so many times, and drop it.
async fn some_polls(future: impl Future, polls: u32) {
    let mut future = std::pin::pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 || future.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(());
        }
        left -= 1;
        std::task::Poll::Pending
    })
    .await;
}

#[test]
fn a_watch_fires_at_its_start_and_at_changes_until_it_is_dropped() {
    let fake = Fake::start();
    let mut rig = rig(&fake);
    let store = rig.store.clone();
    let number = store.watch_number();
    let watch = rig.run(store.watch("backend/vbd3", number)).expect("watched");
    let fired = |path: &str| Fired { watch: number, path: path.into() };
    assert_eq!(rig.next_fired(), fired("backend/vbd3"));
    fake.write("/local/domain/0/backend/vbd3/1/768/state", "1");
    assert_eq!(rig.next_fired(), fired("backend/vbd3/1/768/state"));
    fake.rm("/local/domain/0/backend");
    assert_eq!(rig.next_fired(), fired("backend/vbd3"));
    drop(watch);
    rig.settle();
    assert_eq!(fake.usage().watches, Vec::<String>::new());
}

#[test]
fn a_watch_whose_future_was_dropped_is_gone() {
    let fake = Fake::start();
    let mut rig = rig(&fake);
    let store = rig.store.clone();
    rig.run(some_polls(store.watch("/a", 1), 1));
    rig.settle();
    rig.settle();
    assert_eq!(fake.usage().watches, Vec::<String>::new());
}

#[test]
fn a_lost_connection_fails_what_waits_and_a_new_one_works() {
    let fake = Fake::start();
    let mut rig = rig(&fake);
    let store = rig.store.clone();
    let number = store.watch_number();
    let watch = rig.run(store.watch("/a", number)).expect("watched");
    fake.hold();
    let (reading, also) = (store.read("/a"), store.read("/b"));
    let lost = rig.run(async {
        let both = async { (reading.await, also.await) };
        let mut both = std::pin::pin!(both);
        let mut kicked = false;
        std::future::poll_fn(|cx| {
            let state = both.as_mut().poll(cx);
            if !std::mem::replace(&mut kicked, true) {
                fake.kick_all();
            }
            state
        })
        .await
    });
    assert!(lost.0.expect_err("lost").is_lost() && lost.1.expect_err("lost").is_lost());
    fake.release();
    assert!(rig.run(store.read("/a")).expect_err("not connected").is_lost());
    rig.connect(&fake.socket(0));
    assert_eq!(rig.run(store.read("/a")), Ok(None));
    // The watch was the old connection's: dropping it must not disturb the new one.
    drop(watch);
    rig.settle();
    assert_eq!(rig.run(store.read("/a")), Ok(None));
}

#[test]
fn introduced_domains_are_known() {
    let fake = Fake::start();
    fake.set_introduced(5, true);
    let mut rig = rig(&fake);
    let store = rig.store.clone();
    assert_eq!(rig.run(store.is_domain_introduced(5)), Ok(true));
    fake.set_introduced(5, false);
    assert_eq!(rig.run(store.is_domain_introduced(5)), Ok(false));
}

#[test]
fn without_a_connection_every_request_says_so() {
    let mut future = std::pin::pin!(async { Store::new().read("/a").await });
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let std::task::Poll::Ready(result) = future.as_mut().poll(&mut context) else {
        panic!("it waits for a connection that is not there");
    };
    assert!(result.expect_err("none").is_lost());
}
