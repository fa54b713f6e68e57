//! A thread that writes, and remembers what was acknowledged: the witness that nothing is lost.
//!
//! Every sector belongs to the writer alone and holds the number of the write that came last, so
//! after any accident a sector must hold the last acknowledged number, or one that was sent after
//! it.
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tests::rig::nbd::{Client, FUA, Verb};
use tests::sim::rng::Rng;

/// Requests in flight.
const DEPTH: usize = 8;
/// The longest wait for a writer to get on.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a sector may hold: the last acknowledged number and all that were sent after it.
pub type Sectors = HashMap<u64, (u64, Vec<u64>)>;

/// A writer at work.
pub struct Writer {
    thread: JoinHandle<Sectors>,
    stop: Arc<AtomicBool>,
    done: Arc<(Mutex<u64>, Condvar)>,
}

impl Writer {
    /// Starts one on `sectors` sectors of a disk. It ends when told to, or when the server is gone.
    pub fn start(socket: &Path, sectors: u64, seed: u64) -> Writer {
        let mut client = Client::connect(socket);
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new((Mutex::new(0), Condvar::new()));
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            let mut state = State { written: HashMap::new(), in_flight: HashMap::new(), number: 0 };
            let mut rng = Rng::new(seed);
            while !stopped.load(Ordering::Relaxed) || !state.in_flight.is_empty() {
                let full = state.in_flight.len() >= DEPTH || stopped.load(Ordering::Relaxed);
                let goes_on = match full {
                    true => state.take_reply(&mut client, &counted),
                    false => state.send(&mut client, rng.below(sectors), rng.one_in(16)),
                };
                if !goes_on {
                    break;
                }
            }
            state.written
        });
        Writer { thread, stop, done }
    }

    /// Waits until so many more writes are acknowledged.
    #[track_caller]
    pub fn wait_for(&self, more: u64) {
        let (count, changed) = &*self.done;
        let count = count.lock().unwrap();
        let want = *count + more;
        let waited = changed.wait_timeout_while(count, PATIENCE, |count| *count < want).unwrap();
        assert!(!waited.1.timed_out(), "the writer does not get on");
    }

    /// Lets it end; gives what it wrote.
    pub fn finish(self) -> Sectors {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("the writer's thread")
    }
}

struct State {
    written: Sectors,
    /// Cookie to sector and number.
    in_flight: HashMap<u64, (u64, u64)>,
    number: u64,
}

impl State {
    /// Sends a write, unless the sector has one in flight. False if the server is gone.
    fn send(&mut self, client: &mut Client, sector: u64, fua: bool) -> bool {
        if self.in_flight.values().any(|(busy, _)| *busy == sector) {
            return true;
        }
        self.number += 1;
        let number = self.number;
        // Noted first: it may be on the disk although sending fails.
        self.written.entry(sector).or_default().1.push(number);
        let data = bytes_of(number);
        let flags = if fua { FUA } else { 0 };
        match client.try_send(Verb::Write, flags, sector * 512, 512, &data) {
            Ok(cookie) => self.in_flight.insert(cookie, (sector, number)).is_none(),
            Err(_) => false,
        }
    }

    /// Takes a reply. False if the server is gone.
    fn take_reply(&mut self, client: &mut Client, done: &(Mutex<u64>, Condvar)) -> bool {
        let Ok(reply) = client.try_receive() else { return false };
        assert_eq!(reply.result, Ok(()), "a write fails");
        let (sector, number) = self.in_flight.remove(&reply.cookie).expect("a write in flight");
        let (last, sent) = self.written.get_mut(&sector).expect("a sector that was written");
        *last = number;
        sent.retain(|sent| *sent > number);
        *done.0.lock().unwrap() += 1;
        done.1.notify_all();
        true
    }
}

/// A sector full of a number.
fn bytes_of(number: u64) -> Vec<u8> {
    number.to_le_bytes().repeat(64)
}

/// What parents are filled with, so that a sector of which no write was acknowledged may show it.
pub const OF_PARENTS: u8 = 0x99;

/// Demands that each sector holds what was acknowledged last, or sent later; counts them.
#[track_caller]
pub fn verify(client: &mut Client, sectors: &Sectors) -> u64 {
    let disk = client.dump();
    for (sector, (last, sent)) in sectors {
        let at = usize::try_from(sector * 512).unwrap();
        let found = &disk[at..at + 512];
        let number = u64::from_le_bytes(found[..8].try_into().unwrap());
        let untouched = *last == 0 && found == [OF_PARENTS; 512];
        let right = number == *last || sent.contains(&number) || untouched;
        assert!(right, "sector {sector} holds {number}, not {last} or one of {sent:?}");
        assert!(found == bytes_of(number), "sector {sector} is torn");
    }
    sectors.len() as u64
}
