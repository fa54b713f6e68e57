//! The client against a scripted tapdisk: a thread that reads one request and answers as told.

use super::*;
use crate::messages::{Body, Message, Response, kind, state};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread::JoinHandle;

const PID: i32 = 77;

/// A tapdisk that takes one connection, reads `expect` bytes, and lets `answer` write.
struct Fake {
    _dir: tempfile::TempDir,
    client: Client,
    thread: JoinHandle<Vec<u8>>,
}

fn fake(
    expect: usize,
    answer: impl FnOnce(&mut std::os::unix::net::UnixStream) + Send + 'static,
) -> Fake {
    let dir = tempfile::tempdir().expect("temporary directory");
    let run = RunDir::at(dir.path());
    let listener = UnixListener::bind(run.ctl(PID)).expect("bind");
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("accept");
        let mut got = vec![0; expect];
        stream.read_exact(&mut got).expect("request");
        answer(&mut stream);
        got
    });
    Fake { _dir: dir, client: Client::new(run), thread }
}

/// A tapdisk that answers with messages.
fn replying(expect: usize, replies: Vec<Message>) -> Fake {
    fake(expect, move |stream| {
        for reply in replies {
            stream.write_all(reply.as_bytes()).expect("reply");
        }
    })
}

fn reply<B: Body>(number: u16, body: B) -> Message {
    Message::with(number, 0, &body)
}

fn ok(number: u16) -> Message {
    Message::new(number, 0)
}

fn text(text: &str) -> Text {
    Text::new(text.as_bytes()).expect("short")
}

fn entry(count: i32, minor: i32) -> ListEntry {
    ListEntry { count, minor, state: state::PAUSED, path: text("vhd:/x y=z"), device: None }
}

#[test]
fn pid_is_the_one_in_the_reply() {
    let fake = replying(544, vec![reply(kind::PID_RSP, TapdiskPid { pid: 4711 })]);
    assert_eq!(fake.client.pid(PID), Ok(4711));
    assert_eq!(fake.thread.join().expect("thread"), Request::Pid.to_message().encode());
}

/// While an OPEN is not answered, and once more then, the client asks what the disk waits for and
/// was opened with, and passes each sentence on once.
#[test]
fn what_an_open_waits_for_is_told() {
    use std::sync::Mutex;
    static TOLD: Mutex<Vec<String>> = Mutex::new(Vec::new());
    let dir = tempfile::tempdir().expect("temporary directory");
    let run = RunDir::at(dir.path());
    let listener = UnixListener::bind(run.ctl(PID)).expect("bind");
    let thread = std::thread::spawn(move || {
        let accept = || {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut request = [0; 544];
            stream.read_exact(&mut request).expect("request");
            (stream, Message::decode(&request).kind())
        };
        let (mut open, number) = accept();
        assert_eq!(number, kind::OPEN);
        for sentence in ["the dead", "the dead", "the dead\nthe living"] {
            let (mut stats, number) = accept();
            assert_eq!(number, kind::STATS);
            if sentence.ends_with("the living") {
                let info = ImageInfo { sectors: 8, ..ImageInfo::default() };
                open.write_all(reply(kind::OPEN_RSP, info).as_bytes()).expect("reply");
            }
            let length = sentence.len() as u64;
            stats.write_all(reply(kind::STATS_RSP, StatInfo { length }).as_bytes()).expect("reply");
            stats.write_all(sentence.as_bytes()).expect("text");
        }
        // Once more when it is open: it may go on waiting.
        let _ = accept();
    });
    let client = Client::new(run).with_sentences(
        |stats| String::from_utf8_lossy(stats).split_terminator('\n').map(str::to_owned).collect(),
        |text| TOLD.lock().expect("told").push(text.into()),
    );
    let opened = client.open(PID, 0, &Params::default(), Payload::default());
    assert_eq!(opened.map(|info| info.sectors), Ok(8));
    thread.join().expect("thread");
    assert_eq!(*TOLD.lock().expect("told"), ["the dead", "the living"]);
}

#[test]
fn list_ends_at_count_zero() {
    let replies = [entry(2, 5), entry(1, 6), ListEntry::END].map(|e| reply(kind::LIST_RSP, e));
    let fake = replying(544, replies.to_vec());
    assert_eq!(fake.client.list(PID, LIST_LIMIT), Ok(vec![entry(2, 5), entry(1, 6)]));
    let sent: [u8; 544] = fake.thread.join().expect("thread").try_into().expect("one frame");
    assert_eq!(Message::decode(&sent).cookie(), 0xffff);
}

#[test]
fn replies_may_come_byte_by_byte() {
    let fake = fake(544, |stream| {
        for part in [reply(kind::LIST_RSP, entry(1, 5)), reply(kind::LIST_RSP, ListEntry::END)] {
            for byte in part.encode() {
                stream.write_all(&[byte]).expect("one byte");
            }
        }
    });
    assert_eq!(fake.client.list(PID, LIST_LIMIT), Ok(vec![entry(1, 5)]));
}

#[test]
fn a_tapdisk_that_closes_early_is_eio() {
    let cut = fake(544, |stream| stream.write_all(&[0; 543]).expect("all but one byte"));
    assert_eq!(cut.client.pid(PID).expect_err("cut").errno(), 5);
    let silent = fake(544, |_| {});
    assert_eq!(silent.client.attach(PID, 0).expect_err("nothing").errno(), 5);
}

#[test]
fn a_tapdisk_that_never_answers_times_out() {
    // The fake holds the connection until the client drops it: read gives end-of-file.
    let hold = || fake(544, |stream| drop(stream.read(&mut [0])));
    let short = Duration::from_millis(20);
    assert_eq!(hold().client.list(PID, short).expect_err("late").errno(), 110);
    assert_eq!(hold().client.close(PID, 0, false, Some(short)).expect_err("late").errno(), 110);
    assert_eq!(hold().client.pause(PID, 0, Some(Duration::ZERO)).expect_err("late").errno(), 110);
}

#[test]
fn a_dripping_tapdisk_does_not_stretch_the_limit() {
    let fake = fake(544, |stream| while stream.write_all(&[0]).is_ok() && !drip_end(stream) {});
    fn drip_end(stream: &mut std::os::unix::net::UnixStream) -> bool {
        // Wait 5 ms for the client to hang up, then write the next byte.
        stream.set_read_timeout(Some(Duration::from_millis(5))).expect("timeout");
        matches!(stream.read(&mut [0]), Ok(0))
    }
    let result = fake.client.list(PID, Duration::from_millis(50));
    assert_eq!(result.expect_err("late").errno(), 110);
}

#[test]
fn errors_of_the_tapdisk_are_reported() {
    for errno in [19, -19] {
        let fake = replying(544, vec![reply(kind::ERROR, Response { error: errno })]);
        let error = fake.client.pause(PID, 9, None).expect_err("refused");
        let (kind, reason) = (kind::PAUSE, None);
        assert_eq!(error, Error::Refused { kind, pid: PID, minor: 9, errno: 19, reason });
    }
    let fake = replying(544, vec![ok(kind::ERROR)]);
    assert_eq!(fake.client.pause(PID, 9, None).expect_err("refused without errno").errno(), 22);
}

#[test]
fn an_unrelated_reply_is_einval() {
    let fake = replying(544, vec![ok(kind::PID_RSP)]);
    assert_eq!(fake.client.attach(PID, 0).expect_err("unrelated").errno(), 22);
}

#[test]
fn no_socket_and_a_stale_socket() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let run = RunDir::at(dir.path());
    let client = Client::new(run.clone());
    assert_eq!(client.pid(1).expect_err("absent").errno(), 2);
    drop(UnixListener::bind(run.ctl(2)).expect("bind"));
    assert_eq!(client.pid(2).expect_err("stale").errno(), 111);
    let long = Client::new(RunDir::at(&dir.path().join("x".repeat(120))));
    assert_eq!(long.pid(1).expect_err("does not fit in sun_path").errno(), 36);
}

#[test]
fn open_sends_log_path_and_key_after_the_message() {
    let image = ImageInfo { sectors: 8, sector_size: 512, info: 0, device: None };
    let fake = replying(544 + 256 + 33, vec![reply(kind::OPEN_RSP, image)]);
    let params = Params { path: text("vhd:/x"), ..Params::default() };
    let (log, key) = (text("/log"), [9; 32]);
    let payload = Payload { log_path: Some(&log), key: Some(&key) };
    assert_eq!(fake.client.open(PID, 3, &params, payload), Ok(image));
    let sent = fake.thread.join().expect("thread");
    let frame = sent[..544].try_into().expect("one frame");
    let got: Params = Message::decode(frame).body().expect("valid");
    assert_eq!((got.devnum, got.flags, got.parent()), (3, 0x410, None));
    assert_eq!(&sent[544..548], b"/log");
    assert_eq!(sent[800..], [&[32u8][..], &key].concat());
}

#[test]
fn a_refusal_before_the_payload_was_read_is_still_understood() {
    // The peer answers and closes with bytes unread. Whether the reply or ECONNRESET comes first
    // is the kernel's choice for stream sockets; both are failures.
    let fake = replying(544, vec![Message::error(3, 114)]);
    let log = text("/log");
    let payload = Payload { log_path: Some(&log), key: None };
    let error = fake.client.open(PID, 3, &Params::default(), payload).expect_err("refused");
    assert!([114, 5].contains(&error.errno()), "{error}");
}

#[test]
fn keys_have_1_to_128_bytes() {
    assert_eq!(key_block(&[7; 2]).expect("fits")[..], [2, 7, 7]);
    assert_eq!(key_block(&[7; 128]).expect("fits").len(), 129);
    for len in [0, 129, 300] {
        assert_eq!(key_block(&vec![0; len]).expect_err("refused").errno(), 22);
    }
}

#[test]
fn force_is_answered_with_close() {
    let fake = replying(544, vec![ok(kind::CLOSE_RSP)]);
    assert_eq!(fake.client.close(PID, 0, true, None), Ok(()));
}

#[test]
fn stats_are_as_long_as_announced() {
    let stats = |length, bytes: &'static [u8]| {
        fake(544, move |stream| {
            stream
                .write_all(reply(kind::STATS_RSP, StatInfo { length }).as_bytes())
                .expect("reply");
            stream.write_all(bytes).expect("text");
        })
    };
    assert_eq!(stats(3, b"{ }").client.stats(PID, 0), Ok(b"{ }".to_vec()));
    assert_eq!(stats(4, b"{ }").client.stats(PID, 0).expect_err("short").errno(), 5);
    assert_eq!(stats(u64::MAX, b"").client.stats(PID, 0).expect_err("absurd").errno(), 71);
}
