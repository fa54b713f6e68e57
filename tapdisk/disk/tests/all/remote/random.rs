//! A server that answers in any order and in any pieces, and now and then with an error; what is
//! read and written is compared with its memory. Everything comes from a seed.
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};

use request::disk::{Disk, Kind, Tag};
use test_support::rng::Rng;

use super::support::{Bench, DEPTH, Request, buf, each, offer, reply};

const DISK_BYTES: usize = 1 << 20;

/// The server: bytes that came, requests that wait for their answer, bytes to send.
struct Server {
    memory: Vec<u8>,
    came: Vec<u8>,
    held: Vec<(Request, Vec<u8>)>,
    out: VecDeque<u8>,
}

impl Server {
    /// Reads some, answers some, sends some.
    fn turn(&mut self, b: &mut Bench, rng: &mut Rng) {
        let mut part = vec![0; 1 + rng.below(100_000) as usize];
        match b.far.read(&mut part) {
            Ok(n) => self.came.extend_from_slice(&part[..n]),
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        while let Some((request, used)) = parse(&self.came) {
            self.held.push((request, self.came[28..used].to_vec()));
            self.came.drain(..used);
        }
        while !self.held.is_empty() && rng.below(4) > 0 {
            let at = rng.below(self.held.len() as u64) as usize;
            let (request, data) = self.held.swap_remove(at);
            self.answer(&request, &data, rng.below(16) == 0);
        }
        let n = self.out.len().min(rng.below(150_000) as usize);
        let (front, _) = self.out.as_slices();
        match b.far.write(&front[..n.min(front.len())]) {
            Ok(n) => drop(self.out.drain(..n)),
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
    }

    fn answer(&mut self, request: &Request, data: &[u8], fails: bool) {
        let range = request.at as usize..request.at as usize + request.bytes as usize;
        self.out.extend(reply(request.handle, if fails { 28 } else { 0 }));
        match request.command {
            _ if fails => {}
            0 => self.out.extend(&self.memory[range]),
            1 => self.memory[range].copy_from_slice(data),
            6 => self.memory[range].fill(0),
            _ => {}
        }
    }
}

/// The first whole request and how many bytes it has.
fn parse(came: &[u8]) -> Option<(Request, usize)> {
    let head = came.get(..28)?;
    let request = Request {
        flags: u16::from_be_bytes([head[4], head[5]]),
        command: u16::from_be_bytes([head[6], head[7]]),
        handle: head[8..16].try_into().unwrap(),
        at: u64::from_be_bytes(head[16..24].try_into().unwrap()),
        bytes: u32::from_be_bytes(head[24..28].try_into().unwrap()),
    };
    let used = 28 + if request.command == 1 { request.bytes as usize } else { 0 };
    (came.len() >= used).then_some((request, used))
}

/// An operation in flight.
#[derive(Clone, Copy, Debug)]
struct Asked {
    kind: Kind,
    at: usize,
    bytes: usize,
    value: u8,
}

/// Gives a tag something to do on its own part of the disk, so that the order of others does not
/// matter.
fn ask(b: &mut Bench, tag: Tag, rng: &mut Rng) -> Asked {
    let part = DISK_BYTES / DEPTH as usize;
    let bytes = 512 * (1 + rng.below(part as u64 / 512) as usize);
    let at = tag as usize * part + 512 * rng.below(((part - bytes) / 512 + 1) as u64) as usize;
    let kind = match rng.below(8) {
        0..=2 => Kind::Read,
        3..=5 => Kind::Write,
        6 => Kind::Zero { bytes: bytes as u64, punch: true },
        _ => Kind::Sync,
    };
    let value = 1 + rng.below(255) as u8;
    b.fill(tag, bytes as u32, value);
    b.push(tag, kind, at as u64, bytes as u32);
    Asked { kind, at, bytes, value }
}

fn run(b: &mut Bench, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut shadow = vec![0u8; DISK_BYTES];
    let memory = shadow.clone();
    let mut server = Server { memory, came: Vec::new(), held: Vec::new(), out: VecDeque::new() };
    let mut asked: Vec<Option<Asked>> = vec![None; DEPTH as usize];
    b.far.set_nonblocking(true).unwrap();
    let mut finished = 0;
    while finished < 2000 {
        for tag in 0..DEPTH {
            if asked[tag as usize].is_none() && rng.below(3) == 0 {
                asked[tag as usize] = Some(ask(b, tag, &mut rng));
            }
        }
        for (tag, result) in b.turn() {
            let it = asked[tag as usize].take().expect("it was asked");
            finished += 1;
            let range = it.at..it.at + it.bytes;
            let moved =
                if matches!(it.kind, Kind::Read | Kind::Write) { it.bytes as u32 } else { 0 };
            match result {
                Err(errno) => assert_eq!(errno, libc::ENOSPC, "seed {seed}: {it:?}"),
                Ok(n) => {
                    assert_eq!(n, moved, "seed {seed}: {it:?}");
                    match it.kind {
                        Kind::Write => shadow[range].fill(it.value),
                        Kind::Zero { .. } => shadow[range].fill(0),
                        Kind::Read => {
                            let read = b.disk.arena_ref().slice(buf(tag, n));
                            assert!(read == &shadow[range], "seed {seed}: {it:?}");
                        }
                        _ => {}
                    }
                }
            }
        }
        server.turn(b, &mut rng);
    }
    assert!(!b.ended.is(), "seed {seed}");
}

#[test]
fn any_order_and_any_pieces_give_the_same_data() {
    each(|bench| {
        for seed in 0..8 {
            run(&mut bench(offer()), seed);
        }
    });
}

/// Answers of which some bytes are wrong: everything ends, nothing hangs or panics, the rest works.
#[test]
fn damaged_answers_end_in_errors_or_in_nothing() {
    each(|bench| {
        for seed in 0..100 {
            let mut rng = Rng::new(seed);
            let mut b = bench(offer());
            (0..8).for_each(|tag| b.push(tag, Kind::Read, 0, 512));
            assert_eq!(b.turn(), []);
            let mut all = Vec::new();
            for _ in 0..8 {
                all.extend(reply(b.request().handle, 0));
                all.extend([7; 512]);
            }
            for _ in 0..1 + rng.below(3) {
                let at = rng.below(all.len() as u64) as usize;
                all[at] ^= 1 << rng.below(8);
            }
            all.truncate(all.len() - rng.below(600) as usize);
            b.say(&all);
            b.far.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(b.finish(8).len(), 8, "seed {seed}");
            b.assert_local_works();
        }
    });
}
