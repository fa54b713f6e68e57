//! The NBD client: a server that greets with anything and answers with anything.
//!
//! All that the server will ever say lies in the socket before the client begins, so nothing waits.
use std::cell::RefCell;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use disk::remote::Remote;
use host::arena::{Arena, Buf};
use request::disk::{Disk, FileId, Kind, Op, Tag};
use tapdisk::formats::nbd::RemoteImage;
use tapdisk::receiver::Stash;
use tests::fuzz::{Target, as_it_is, outcome};

/// Bytes that say what the client does, before what the server says.
const ORDER: usize = 2;
const GREETING: &[u8] = b"NBDMAGIC";
const REPLY: &[u8] = &[0x67, 0x44, 0x66, 0x98];
const OPTION_REPLY: &[u8] = &[0x00, 0x03, 0xe8, 0x89, 0x04, 0x55, 0x65, 0xa9];
/// Operations of one run at most.
const DEPTH: u32 = 8;
const BUFFER_BYTES: u32 = 1024;

const CLIENT: Target = Target {
    name: "nbd-client",
    bytes_max: 4 << 10,
    memory_max: 1 << 20,
    seeds,
    words: &[GREETING, b"IHAVEOPT", OPTION_REPLY, REPLY, &[0, 0, 0, 1, 0, 0, 0, 0]],
    seal: as_it_is,
    run,
};

#[test]
fn nbd_client() {
    CLIENT.check(20_000);
}

fn option_reply(kind: u32, data: &[u8]) -> Vec<u8> {
    let (kind, length) = (kind.to_be_bytes(), (data.len() as u32).to_be_bytes());
    [OPTION_REPLY, &7_u32.to_be_bytes(), &kind, &length, data].concat()
}

/// Answers to the operations of a run, in order: each place of the table is used for the first
/// time.
fn replies() -> Vec<u8> {
    let mut all = Vec::new();
    for id in 0..DEPTH {
        all.extend(
            [REPLY, &[0, 0, 0, u8::from(id == 5)], &[0, 0, 0, 1], &id.to_be_bytes()].concat(),
        );
        all.extend(vec![7; if id % 4 == 0 { BUFFER_BYTES as usize } else { 0 }]);
    }
    all
}

/// Whole sessions: fixed newstyle, newstyle, oldstyle; and a refusal.
fn seeds() -> Vec<Vec<u8>> {
    let size = (1_u64 << 20).to_be_bytes();
    let greeting = [GREETING, b"IHAVEOPT", &[0, 3]].concat();
    let export = [&[0, 0][..], &size, &[0x01, 0x6d]].concat();
    let blocks = [&[0, 3][..], &[0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0]].concat();
    let go = [option_reply(3, &export), option_reply(3, &blocks), option_reply(1, &[])].concat();
    let fixed = [&[0, 8][..], &greeting, &go, &replies()].concat();
    let newstyle =
        [&[0, 8][..], GREETING, b"IHAVEOPT", &[0, 0], &size, &[1, 0x6d], &[0; 124], &replies()];
    let oldstyle = [
        &[0, 8][..],
        GREETING,
        &[0x00, 0x00, 0x42, 0x02, 0x81, 0x86, 0x12, 0x53],
        &size,
        &[0, 0, 1, 0x6d],
        &[0; 124],
        &replies(),
    ];
    let refused = [&[1, 0][..], &greeting, &option_reply(0x8000_0006, b"no such export")].concat();
    vec![fixed, newstyle.concat(), oldstyle.concat(), refused]
}

fn run(input: &[u8]) -> u64 {
    let Some((&[how, count], bytes)) = input.split_first_chunk::<ORDER>() else { return 0 };
    let (ours, mut theirs) = UnixStream::pair().expect("a socketpair");
    theirs.write_all(bytes).expect("room in the socket");
    theirs.shutdown(Shutdown::Write).expect("a socket");
    ours.set_nonblocking(true).expect("a socket");
    let stash = Arc::new(Stash::default());
    let _ = stash.put_back(b"name", OwnedFd::from(ours));
    let name = if how & 1 == 0 { "name" } else { "name:exportname=e" };
    let told = match RemoteImage::open(Path::new(name), how & 2 == 0, &stash) {
        Ok(image) => {
            assert!(image.sectors() > 0);
            let flushed = if how & 4 == 0 { String::new() } else { format!("{:?}", image.flush()) };
            let offer = image.peer().offer;
            assert!(offer.unit.is_power_of_two() && offer.longest.is_multiple_of(offer.unit));
            worked(&image, u32::from(count) % (DEPTH + 1)) + &flushed
        }
        // Further on stand words of the server's.
        Err(e) => e.to_string().chars().take(56).collect(),
    };
    outcome(&told)
}

thread_local! {
    static ARENA: RefCell<Option<Arena>> = const { RefCell::new(None) };
}

/// Every operation has exactly one answer, and a read that succeeds is whole.
fn worked(image: &RemoteImage, count: u32) -> String {
    let mut disk = Remote::open(Memory::take(), DEPTH).expect("an epoll descriptor");
    let peers = vec![(FileId(0), image.peer())];
    disk.set_remotes(peers, Duration::from_secs(60)).expect("a socket that can be polled");
    for tag in 0..count {
        let buf = Buf { offset: tag * BUFFER_BYTES, bytes: BUFFER_BYTES };
        let (kind, buf) = match tag % 4 {
            0 => (Kind::Read, buf),
            1 => (Kind::Write, buf),
            2 => (Kind::Sync, Buf::NONE),
            _ => (Kind::Zero { bytes: 4096, punch: true }, Buf::NONE),
        };
        disk.push(tag, Op { file: FileId(0), kind, at: u64::from(tag) * 4096, buf });
    }
    let mut answers: Vec<Option<Result<u32, i32>>> = vec![None; count as usize];
    let mut open = count;
    for _ in 0..10_000 {
        disk.submit().expect("nothing below fails");
        while let Some((tag, result)) = disk.reap() {
            assert!(answers[tag as usize].replace(result).is_none(), "two answers to {tag}");
            assert!(result.is_err() || tag % 4 > 1 || result == Ok(BUFFER_BYTES), "{result:?}");
            open -= 1;
        }
        if open == 0 {
            break;
        }
    }
    assert_eq!(open, 0, "the server is gone, and these have no answer: {answers:?}");
    let why = disk.take_ended().map(|(_, why)| why);
    disk.set_remotes(Vec::new(), Duration::MAX).expect("nothing to poll");
    let letters = answers.iter().flatten().map(|a| if a.is_ok() { 'o' } else { 'x' });
    format!("{}{why:?}", letters.collect::<String>())
}

/// A disk without files: only the memory.
struct Memory(Option<Arena>);

impl Memory {
    /// Mapped once for all runs.
    fn take() -> Memory {
        let arena = ARENA.take();
        let make = || Arena::new((DEPTH * BUFFER_BYTES) as usize).expect("memory");
        Memory(Some(arena.unwrap_or_else(make)))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        ARENA.set(self.0.take());
    }
}

impl Disk for Memory {
    fn push(&mut self, tag: Tag, op: Op) {
        panic!("{tag}: {op:?} is for the server");
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn reap(&mut self) -> Option<(Tag, Result<u32, i32>)> {
        None
    }
    fn arena(&mut self) -> &mut Arena {
        self.0.as_mut().expect("there until the end")
    }
    fn arena_ref(&self) -> &Arena {
        self.0.as_ref().expect("there until the end")
    }
    fn set_files(&mut self, _: &[RawFd]) -> io::Result<()> {
        Ok(())
    }
    fn wake_fd(&self) -> RawFd {
        -1
    }
    fn name(&self) -> &'static str {
        "nowhere"
    }
}
