//! Requests of 4 KiB through the engine over memory, for `make bench-cost`, which counts the
//! instructions (tests/bench/cost.py): no kernel, no clock, the same number every time.
//!
//! ```text
//! request-cost raw|vhd read|write REQUESTS
//! ```
//! Sixteen at a time, at random places; the image has all its blocks and its metadata is in memory.
//! Data is not copied: the disk is not what is measured.
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::process::ExitCode;

use engine::chain::Chain;
use engine::limits::Limits;
use engine::{Engine, Policy};
use host::arena::Arena;
use image::{Image, MemStorage, Span, Storage};
use request::disk::{Disk, FileInfo, Kind, Op, Tag};
use request::{Owner, Request, Slots, Verb};
use tests::sim::rng::Rng;
use vhd_rs::OpenOptions;
use vhd_rs::create::{NewImage, dynamic};
use vhd_rs::driver::Vhd;

/// Size of the disk.
const BYTES: u64 = 64 << 20;
/// Requests at a time.
const DEPTH: usize = 16;
/// Operations of so many bytes are of data.
const DATA_BYTES: u32 = 4096;

/// A disk that is done at once.
struct MemoryDisk {
    arena: Arena,
    file: MemStorage,
    done: VecDeque<(Tag, Result<u32, i32>)>,
}

impl Disk for MemoryDisk {
    // The number is the engine's, whatever the compiler thinks of this.
    #[inline(always)]
    fn push(&mut self, tag: Tag, op: Op) {
        if op.buf.bytes < DATA_BYTES {
            let done = match op.kind {
                Kind::Read => self.file.read_at(op.at, self.arena.slice_mut(op.buf)).map(|_| ()),
                Kind::Write => self.file.write_at(op.at, self.arena.slice(op.buf)),
                _ => Ok(()),
            };
            done.expect("memory does not fail");
        }
        self.done.push_back((tag, Ok(op.buf.bytes)));
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn reap(&mut self) -> Option<(Tag, Result<u32, i32>)> {
        self.done.pop_front()
    }
    fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }
    fn arena_ref(&self) -> &Arena {
        &self.arena
    }
    fn set_files(&mut self, _: &[RawFd]) -> io::Result<()> {
        Ok(())
    }
    fn wake_fd(&self) -> RawFd {
        -1
    }
    fn name(&self) -> &'static str {
        "memory"
    }
}

/// An empty image of [`BYTES`] in memory, and its driver.
fn image(format: &str) -> Option<(MemStorage, Box<dyn Image>)> {
    let file = MemStorage::new(Vec::new(), false);
    match format {
        "raw" => Some((file, Box::new(raw::Raw::new(BYTES / 512, false)))),
        "vhd" => {
            let name = "memory.vhd".as_ref();
            let new = NewImage { bytes: BYTES, room_bytes: BYTES, uuid: [7; 16], timestamp: 1 };
            dynamic(&file, name, &new, None).expect("memory does not fail");
            let how = OpenOptions { for_io: true, ..OpenOptions::default() };
            let opened = vhd_rs::open(&file, name, &how).expect("what was just made");
            Some((file, Box::new(Vhd::new(opened))))
        }
        _ => None,
    }
}

fn engine(format: &str) -> Option<Engine<MemoryDisk>> {
    let (file, image) = image(format)?;
    let limits = Limits::NORMAL;
    let arena = Arena::new(limits.arena_bytes()).expect("memory");
    let bytes = file.len().expect("memory does not fail").max(BYTES);
    let done = VecDeque::with_capacity(limits.ops() as usize);
    let mut engine = Engine::new(MemoryDisk { arena, file, done }, limits);
    let info = FileInfo { bytes, device: false, thin: false };
    engine.attach(Chain::of(vec![image]), &[info], Policy::default());
    Some(engine)
}

/// Works until nothing is left to do; how many requests are over.
fn turn(engine: &mut Engine<MemoryDisk>, now: u64) -> usize {
    let mut over = 0;
    while engine.step(now) {}
    while let Some((slot, _, outcome)) = engine.pop_done() {
        assert!(outcome.is_ok(), "memory does not fail");
        engine.release(slot);
        over += 1;
    }
    over
}

fn begin(engine: &mut Engine<MemoryDisk>, verb: Verb, span: Span) {
    let slot = engine.reserve(span.count * 512).expect("a slot");
    engine.start(slot, Request { verb, span, owner: Owner::default() });
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [format, verb, count] = words.as_slice() else { return usage() };
    let verb = match verb.as_str() {
        "read" => Verb::Read,
        "write" => Verb::Write { fua: false },
        _ => return usage(),
    };
    let (Some(mut engine), Ok(count)) = (engine(format), count.parse::<usize>()) else {
        return usage();
    };
    let mut now = 1;
    for start in (0..BYTES / 512).step_by(128) {
        begin(&mut engine, Verb::Write { fua: false }, Span { start, count: 128 });
        while turn(&mut engine, now) == 0 {
            now += 1;
        }
    }
    let mut random = Rng::new(1);
    let (mut begun, mut over) = (0, 0);
    while over < count {
        while begun < count && begun - over < DEPTH {
            let start = random.below(BYTES / 4096) * 8;
            begin(&mut engine, verb, Span { start, count: 8 });
            begun += 1;
        }
        now += 1;
        over += turn(&mut engine, now);
    }
    println!("{over} requests");
    ExitCode::SUCCESS
}

fn usage() -> ExitCode {
    eprintln!("usage: request-cost raw|vhd read|write REQUESTS");
    ExitCode::from(64)
}
