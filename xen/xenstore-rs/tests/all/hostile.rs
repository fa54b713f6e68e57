//! A server that sends anything. The client gives up or goes on; it never panics, and never keeps
//! more than a packet.

use crate::common::Rig;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use xenstore::wire::{Kind, Packet};
use xenstore::{Error, Store};

/// Ask `ask` of a server that reads a request and then does `serve`.
fn against<T>(
    serve: impl FnOnce(&mut UnixStream, Packet) + Send + 'static,
    ask: impl AsyncFnOnce(&Store) -> T,
) -> T {
    let dir = tempfile();
    let socket = dir.join("socket");
    let listener = UnixListener::bind(&socket).expect("a socket");
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut header = [0; 16];
        stream.read_exact(&mut header).expect("a request");
        let word =
            |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let mut payload = vec![0; word(12) as usize];
        stream.read_exact(&mut payload).expect("a payload");
        serve(&mut stream, Packet { kind: word(0), id: word(4), tx: word(8), payload });
    });
    let mut rig = Rig::new(&socket);
    let store = rig.store.clone();
    let result = rig.run(ask(&store));
    drop(rig);
    server.join().expect("the server");
    std::fs::remove_dir_all(dir).expect("removed");
    result
}

fn tempfile() -> std::path::PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let dir =
        std::env::temp_dir().join(format!("xenstore-hostile-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    dir
}

fn send(stream: &mut UnixStream, packet: &Packet) {
    stream.write_all(&packet.encode()).expect("sent");
}

#[test]
fn a_reply_with_another_id_ends_the_connection() {
    let wrong = |stream: &mut UnixStream, asked: Packet| {
        send(stream, &Packet { id: asked.id + 1, ..asked });
    };
    let error = against(wrong, async |store| store.read("/a").await).expect_err("wrong id");
    assert!(error.is_lost(), "{error}");
}

#[test]
fn a_reply_of_another_kind_ends_the_connection() {
    let wrong = |stream: &mut UnixStream, asked: Packet| {
        send(stream, &Packet { kind: Kind::Write as u32, ..asked });
    };
    let error = against(wrong, async |store| store.read("/a").await).expect_err("wrong kind");
    assert!(error.is_lost(), "{error}");
}

#[test]
fn an_endless_packet_ends_the_connection() {
    let endless = |stream: &mut UnixStream, asked: Packet| {
        let header = [asked.kind, asked.id, 0, u32::MAX].map(u32::to_ne_bytes).concat();
        stream.write_all(&header).expect("sent");
    };
    let error = against(endless, async |store| store.read("/a").await).expect_err("endless");
    assert!(error.to_string().contains("4294967295 bytes"), "{error}");
}

#[test]
fn an_unknown_error_is_an_error() {
    let odd = |stream: &mut UnixStream, asked: Packet| {
        send(stream, &Packet { kind: Kind::Error as u32, payload: b"\xff\xfe".to_vec(), ..asked });
    };
    let error = against(odd, async |store| store.read("/a").await).expect_err("an error");
    assert!(matches!(error, Error::Refused { .. }), "{error}");
}

#[test]
fn a_transaction_without_a_number_is_an_error_and_the_connection_stands() {
    let odd = |stream: &mut UnixStream, asked: Packet| {
        send(stream, &Packet { payload: b"many\0".to_vec(), ..asked });
    };
    let ask = async |store: &Store| store.transact(async |tx| tx.write("/a", b"1").await).await;
    let error = against(odd, ask).expect_err("no number");
    assert!(matches!(error, Error::BadReply { .. }), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_at_all(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let noise = move |stream: &mut UnixStream, _: Packet| drop(stream.write_all(&bytes));
        let result = against(noise, async |store| store.read("/a").await);
        prop_assert!(result.is_err());
    }

    #[test]
    fn any_payload_in_a_sound_reply(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let copy = bytes.clone();
        let noise = move |stream: &mut UnixStream, asked: Packet| {
            send(stream, &Packet { payload: copy, ..asked });
        };
        let names = against(noise, async |store| store.directory("/a").await);
        let text = std::str::from_utf8(&bytes).is_ok();
        prop_assert_eq!(names.is_ok(), text);
    }
}
