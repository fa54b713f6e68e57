//! Processes that put into the ring what makes no sense. Each time: the kernel says EIO and closes
//! the ring, or fails that one request; all I/O ends; and the next ring serves as it should.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use libc::EIO;
use tests::rig::blktap::{PAGE, Request, Response, Ring, op};
use tests::sim::rng::Rng;

use crate::session::{Outcome, SOON, Session, ended, honest, open_direct, read_at, refused, said};

pub fn main(words: &[String]) -> Outcome {
    let [seed, rounds] = words else { return Err("hostile SEED ROUNDS".to_string()) };
    let number = |w: &String| w.parse::<u64>().map_err(|_| format!("{w} is no number"));
    let (seed, rounds) = (number(seed)?, number(rounds)?);
    for (what, nonsense) in NONSENSE {
        println!("closed: {what}");
        closes(nonsense).map_err(|e| format!("{what}: {e}"))?;
    }
    println!("one request fails");
    wrong_answers()?;
    overwritten_counters()?;
    for round in 0..rounds {
        println!("seed {}", seed + round);
        scribble(seed + round).map_err(|e| format!("seed {}: {e}", seed + round))?;
        if round % 8 == 0 {
            honest()?;
        }
    }
    honest()
}

fn response(id: u64) -> Response {
    Response { id, operation: op::READ, status: 0 }
}

/// Given a ring with some requests outstanding, makes it one to be closed; RESPOND follows.
type Nonsense = fn(&mut Ring, &[Request]);

const NONSENSE: [(&str, Nonsense); 9] = [
    ("an id beyond all", |ring, _| {
        ring.write_response(0, response(32));
        ring.set_rsp_prod(1);
    }),
    ("all ones as id", |ring, _| {
        ring.write_response(0, response(u64::MAX));
        ring.set_rsp_prod(1);
    }),
    ("an id with something above", |ring, requests| {
        ring.write_response(0, response(u64::from(requests[0].id) + (1 << 32)));
        ring.set_rsp_prod(1);
    }),
    ("an id of no request", |ring, requests| {
        let unused = (0..32).find(|&id| requests.iter().all(|r| r.id != id)).expect("not all are");
        ring.write_response(0, response(u64::from(unused)));
        ring.set_rsp_prod(1);
    }),
    ("the same answer twice", |ring, requests| {
        ring.write_response(0, response(u64::from(requests[0].id)));
        ring.write_response(1, response(u64::from(requests[0].id)));
        ring.set_rsp_prod(2);
    }),
    ("one answer more than requests", |ring, requests| {
        for (place, request) in requests.iter().enumerate() {
            ring.write_response(place as u32, response(u64::from(request.id)));
        }
        ring.set_rsp_prod(requests.len() as u32 + 1);
    }),
    ("rsp_prod backwards", |ring, _| ring.set_rsp_prod(u32::MAX)),
    ("rsp_prod half around", |ring, _| ring.set_rsp_prod(1 << 31)),
    ("rsp_prod once around the ring", |ring, requests| {
        ring.set_rsp_prod(requests.len() as u32 + 32);
    }),
];

fn closes(nonsense: Nonsense) -> Outcome {
    let mut session = Session::new()?;
    let reads = session.reads(5)?;
    let requests = session.requests(5)?;
    nonsense(&mut session.ring, &requests);
    refused("RESPOND", EIO, session.ring.respond())?;
    // At most the first answer counted before the nonsense was met.
    let mut failed = 0;
    for _ in 0..5 {
        match reads.recv_timeout(SOON) {
            Ok(Err(e)) if e.raw_os_error() == Some(EIO) => failed += 1,
            Ok(Ok(())) => {}
            Ok(Err(e)) => return Err(format!("a read ended with {e}")),
            Err(_) => return Err("a read hangs".to_string()),
        }
    }
    if failed < 4 {
        return Err(format!("only {failed} of 5 reads failed"));
    }
    for (what, result) in
        [("RESPOND", session.ring.respond()), ("REMOVE_DEVICE", session.ring.remove())]
    {
        refused(what, EIO, result)?;
    }
    let events = said("poll", session.ring.poll(0))?;
    let gone = libc::POLLIN | libc::POLLERR | libc::POLLHUP;
    if events & gone != gone {
        return Err(format!("poll of a closed ring: {events:#x}"));
    }
    session.abandon()
}

fn wrong_answers() -> Outcome {
    let mut session = Session::new()?;
    for (operation, status) in [
        (op::WRITE, 0),
        (255, 0),
        (op::READ, -1),
        (op::READ, 1),
        (op::READ, i16::MIN),
        (op::READ, -3),
    ] {
        let reads = session.reads(1)?;
        let request = session.requests(1)?.remove(0);
        let answer = Response { id: u64::from(request.id), operation, status };
        session.ring.write_response(session.ring.answered, answer);
        session.ring.answered += 1;
        session.ring.set_rsp_prod(session.ring.answered);
        said("RESPOND", session.ring.respond())?;
        ended("a wrong answer", &reads, 1, EIO)?;
    }
    // The kernel does not ask again: once is once.
    let reads = session.reads(1)?;
    let request = session.requests(1)?.remove(0);
    session.ring.answer(&request, -2);
    said("RESPOND", session.ring.respond())?;
    ended("not supported", &reads, 1, libc::EOPNOTSUPP)?;
    session.end()
}

/// The kernel counts for itself.
fn overwritten_counters() -> Outcome {
    let mut session = Session::new()?;
    for nonsense in [0, u32::MAX, 1 << 31, 77] {
        session.ring.set_req_prod(nonsense);
        session.ring.set_req_event(nonsense);
        let reads = session.reads(1)?;
        // By polling without the counters' help.
        let end = Instant::now() + SOON;
        while session.ring.req_prod() != session.ring.taken + 1 {
            if Instant::now() > end {
                return Err("the kernel lost count of its requests".to_string());
            }
            thread::sleep(Duration::from_millis(1));
        }
        let request = session.ring.take().ok_or("a request")?;
        session.ring.answer(&request, 0);
        said("RESPOND", session.ring.respond())?;
        ended("a read", &reads, 1, 0)?;
    }
    session.end()
}

/// A process that writes anything anywhere while its disk is used, answers some requests, and
/// repeats RESPOND; the one thing demanded is that all I/O ends when it has gone.
fn scribble(seed: u64) -> Outcome {
    let mut session = Session::new()?;
    let stop = Arc::new(AtomicBool::new(false));
    let ended = Arc::new(AtomicU64::new(0));
    let users: Vec<_> = (0..3)
        .map(|n| {
            let disk = open_direct(&session.disk(), false)?;
            let (stop, ended) = (stop.clone(), ended.clone());
            Ok(thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = read_at(&disk, n * PAGE as u64);
                    ended.fetch_add(1, Ordering::Relaxed);
                }
            }))
        })
        .collect::<Result<_, String>>()?;
    let mut rng = Rng::new(seed);
    let rings_are_read = rng.below(2) == 0;
    for _ in 0..400 {
        match rng.below(10) {
            0 => session.ring.set_req_prod(rng.below(1 << 32) as u32),
            1 => session.ring.set_req_event(rng.below(1 << 32) as u32),
            // Half of these answers are right by chance: ids are few.
            2 => {
                let place = session.ring.answered;
                let any = Response {
                    id: rng.below(6),
                    operation: rng.below(2) as u8,
                    status: rng.below(3) as i16 - 1,
                };
                session.ring.write_response(place, any);
            }
            3 if rng.below(8) == 0 => {
                session.ring.answered = session.ring.answered.wrapping_add(rng.below(3) as u32);
                session.ring.set_rsp_prod(session.ring.answered);
            }
            4 => session.ring.data(rng.below(32) as u32).fill(rng.below(256) as u8),
            5 => {
                let _ = session.ring.poll(0);
            }
            _ if rings_are_read => {
                if let Some(request) = session.ring.take() {
                    session.ring.answer(&request, 0);
                }
            }
            _ => {}
        }
        if session.ring.respond().is_err() {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    session.abandon()?;
    let end = Instant::now() + SOON;
    while users.iter().any(|u| !u.is_finished()) {
        if Instant::now() > end {
            return Err("I/O hangs after the ring's end".to_string());
        }
        thread::sleep(Duration::from_millis(1));
    }
    users.into_iter().try_for_each(|u| u.join().map_err(|_| "a reader panicked".to_string()))
}
