//! A load on a block device or a file, for machines that have no fio: patterns that can be checked
//! by someone else later, and a load to measure. It keeps a number of requests in flight with
//! `io_uring` and `O_DIRECT`.
//!
//! ```text
//! disk-load write PATH [key=value ...]    blocks in a seeded order, every sector's bytes from seed and place
//! disk-load check PATH [key=value ...]    reads them and compares
//! disk-load read|overwrite PATH [...]     random blocks for `seconds`; prints requests a second
//! keys: seed=1 from=0 bytes=(all) block=4096 depth=16 seconds=5
//! ```
use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use tests::sim::rng::Rng;

const SECTOR: usize = 512;
const PAGE: usize = 4096;

/// What to do, from the command line.
struct Job {
    path: String,
    seed: u64,
    from: u64,
    bytes: u64,
    block: usize,
    depth: usize,
    seconds: u64,
}

impl Job {
    fn parse(path: &str, words: &[String]) -> Result<Job, String> {
        let path = path.to_string();
        let mut job = Job { path, seed: 1, from: 0, bytes: 0, block: PAGE, depth: 16, seconds: 5 };
        for word in words {
            let (key, value) = word.split_once('=').ok_or(format!("{word} is no key=value"))?;
            let number: u64 = value.parse().map_err(|_| format!("{word} holds no number"))?;
            match key {
                "seed" => job.seed = number,
                "from" => job.from = number,
                "bytes" => job.bytes = number,
                "block" => job.block = usize::try_from(number).map_err(|e| e.to_string())?,
                "depth" => job.depth = usize::try_from(number).map_err(|e| e.to_string())?,
                "seconds" => job.seconds = number,
                _ => return Err(format!("there is no key {key}")),
            }
        }
        let sectors =
            job.block != 0 && job.block.is_multiple_of(SECTOR) && job.from.is_multiple_of(512);
        if !sectors || job.depth == 0 || job.depth > 1024 {
            return Err("block and from are multiples of 512, depth is 1 to 1024".to_string());
        }
        Ok(job)
    }

    fn open(&mut self, write: bool) -> Result<File, String> {
        let mut options = OpenOptions::new();
        options.read(true).write(write).custom_flags(libc::O_DIRECT);
        let say = |e: io::Error| format!("{}: {e}", self.path);
        let mut file = options.open(&self.path).map_err(say)?;
        let size = file.seek(SeekFrom::End(0)).map_err(say)?;
        let rest = size.saturating_sub(self.from);
        if self.bytes == 0 {
            self.bytes = rest / self.block as u64 * self.block as u64;
        }
        if self.bytes > rest || self.bytes < self.block as u64 {
            return Err(format!("{}: {} bytes do not fit or hold no block", self.path, self.bytes));
        }
        Ok(file)
    }

    fn blocks(&self) -> u64 {
        self.bytes / self.block as u64
    }

    fn place(&self, block: u64) -> u64 {
        self.from + block * self.block as u64
    }
}

/// The bytes that a block at a place has: each sector tells its seed and its own number.
fn fill(data: &mut [u8], seed: u64, place: u64) {
    for (i, sector) in data.chunks_exact_mut(SECTOR).enumerate() {
        let number = place / SECTOR as u64 + i as u64;
        let mut word =
            seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        for bytes in sector.chunks_exact_mut(8) {
            bytes.copy_from_slice(&word.to_le_bytes());
            word = word.rotate_left(13).wrapping_add(0x94d0_49bb_1331_11eb);
        }
    }
}

/// Buffers for all requests in flight, each aligned for `O_DIRECT`.
struct Buffers {
    memory: Vec<u8>,
    start: usize,
    each: usize,
}

impl Buffers {
    fn new(count: usize, bytes: usize) -> Buffers {
        let each = bytes.next_multiple_of(PAGE);
        let memory = vec![0u8; count * each + PAGE];
        let start = memory.as_ptr().align_offset(PAGE);
        Buffers { memory, start, each }
    }

    fn get(&mut self, index: usize, bytes: usize) -> &mut [u8] {
        let at = self.start + index * self.each;
        &mut self.memory[at..at + bytes]
    }
}

/// Requests in flight on a file.
struct Flight<'a> {
    ring: IoUring,
    file: &'a File,
    buffers: Buffers,
    places: Vec<u64>,
    block: usize,
    write: bool,
}

impl<'a> Flight<'a> {
    fn new(job: &Job, file: &'a File, write: bool) -> io::Result<Flight<'a>> {
        let ring = IoUring::new(u32::try_from(job.depth).expect("at most 1024"))?;
        let buffers = Buffers::new(job.depth, job.block);
        let places = vec![0; job.depth];
        Ok(Flight { ring, file, buffers, places, block: job.block, write })
    }

    /// Starts the request of slot `index` at a place; its buffer holds what to write.
    fn start(&mut self, index: usize, place: u64) {
        self.places[index] = place;
        let fd = types::Fd(self.file.as_raw_fd());
        let bytes = u32::try_from(self.block).expect("a block of less than 4 GiB");
        let data = self.buffers.get(index, self.block).as_mut_ptr();
        let entry = if self.write {
            opcode::Write::new(fd, data, bytes).offset(place).build()
        } else {
            opcode::Read::new(fd, data, bytes).offset(place).build()
        };
        // SAFETY: the buffer belongs to the slot, lives as long as the ring, and nobody touches it
        // before the completion of this request has been taken.
        let pushed = unsafe { self.ring.submission().push(&entry.user_data(index as u64)) };
        pushed.expect("there are as many entries as slots");
    }

    /// Waits for requests that are over: their slots.
    fn over(&mut self, slots: &mut Vec<usize>) -> Result<(), String> {
        slots.clear();
        match self.ring.submit_and_wait(1) {
            Err(e) if e.raw_os_error() != Some(libc::EINTR) => return Err(e.to_string()),
            _ => {}
        }
        while let Some(end) = self.ring.completion().next() {
            let index = usize::try_from(end.user_data()).expect("our own number");
            let place = self.places[index];
            match usize::try_from(end.result()) {
                Ok(done) if done == self.block => slots.push(index),
                Ok(done) => return Err(format!("at byte {place}: {done} of {} bytes", self.block)),
                Err(_) => {
                    let why = io::Error::from_raw_os_error(-end.result());
                    return Err(format!("at byte {place}: {why}"));
                }
            }
        }
        Ok(())
    }
}

/// Every block once, in an order that the seed determines: a stride that has no factor with the
/// count.
struct Order {
    next: u64,
    stride: u64,
    count: u64,
    left: u64,
}

impl Order {
    fn new(seed: u64, count: u64) -> Order {
        let mut rng = Rng::new(seed);
        let common = |mut a: u64, mut b: u64| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let mut stride = rng.below(count) + 1;
        while common(stride, count) != 1 {
            stride += 1;
        }
        Order { next: rng.below(count), stride, count, left: count }
    }
}

impl Iterator for Order {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.left = self.left.checked_sub(1)?;
        self.next = (self.next + self.stride) % self.count;
        Some(self.next)
    }
}

fn pattern(mut job: Job, write: bool) -> Result<String, String> {
    let file = job.open(write)?;
    let mut flight = Flight::new(&job, &file, write).map_err(|e| e.to_string())?;
    let mut order = Order::new(job.seed, job.blocks());
    let mut expected = vec![0u8; job.block];
    let (mut idle, mut in_flight) = ((0..job.depth).collect::<Vec<_>>(), 0);
    let mut over = Vec::with_capacity(job.depth);
    loop {
        while let Some(index) = idle.pop() {
            let Some(block) = order.next() else { break };
            let place = job.place(block);
            if write {
                fill(flight.buffers.get(index, job.block), job.seed, place);
            }
            flight.start(index, place);
            in_flight += 1;
        }
        if in_flight == 0 {
            break;
        }
        flight.over(&mut over)?;
        in_flight -= over.len();
        for &index in over.iter().filter(|_| !write) {
            let place = flight.places[index];
            fill(&mut expected, job.seed, place);
            let found = flight.buffers.get(index, job.block);
            if let Some(at) = found.iter().zip(&expected).position(|(a, b)| a != b) {
                let (found, expected) = (found[at], expected[at]);
                let at = place + at as u64;
                return Err(format!("byte {at} is {found:#04x} and should be {expected:#04x}"));
            }
        }
        idle.append(&mut over);
    }
    if write {
        file.sync_data().map_err(|e| format!("flush: {e}"))?;
    }
    Ok(format!("{} bytes of seed {} as they should be", job.bytes, job.seed))
}

fn speed(mut job: Job, write: bool) -> Result<String, String> {
    let file = job.open(write)?;
    let mut flight = Flight::new(&job, &file, write).map_err(|e| e.to_string())?;
    let mut rng = Rng::new(job.seed);
    for index in 0..job.depth {
        fill(flight.buffers.get(index, job.block), job.seed, index as u64);
        let place = job.place(rng.below(job.blocks()));
        flight.start(index, place);
    }
    let (begun, limit) = (Instant::now(), Duration::from_secs(job.seconds));
    let (mut requests, mut in_flight) = (0u64, job.depth);
    let mut over = Vec::with_capacity(job.depth);
    while in_flight > 0 {
        flight.over(&mut over)?;
        requests += over.len() as u64;
        in_flight -= over.len();
        if begun.elapsed() < limit {
            for &index in &over {
                let place = job.place(rng.below(job.blocks()));
                flight.start(index, place);
                in_flight += 1;
            }
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    let rate = requests as f64 / seconds;
    Ok(format!("requests={requests} seconds={seconds:.2} rate={rate:.0}"))
}

fn run(words: &[String]) -> Result<String, String> {
    let usage = "usage: disk-load write|check|read|overwrite PATH [seed= from= bytes= block= depth= seconds=]";
    let [what, path, rest @ ..] = words else { return Err(usage.to_string()) };
    let job = Job::parse(path, rest)?;
    match what.as_str() {
        "write" => pattern(job, true),
        "check" => pattern(job, false),
        "read" => speed(job, false),
        "overwrite" => speed(job, true),
        _ => Err(usage.to_string()),
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(said) => {
            println!("disk-load: {said}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("disk-load: {why}");
            ExitCode::FAILURE
        }
    }
}
