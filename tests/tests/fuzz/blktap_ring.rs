//! The ring page of the blktap module: any entries, any words, any producer index.
//!
//! An input is steps: a byte that says what the kernel does, and what it needs for that.
use crate::blktap_support::engine::Memory;
use crate::blktap_support::{Bench, DISK};
use crate::next;
use frontend::Frontend;
use frontend::blktap::abi::{Entry, op};
use frontend::blktap::fake::packed;
use std::cell::RefCell;
use std::sync::atomic::Ordering::Relaxed;
use tests::fuzz::{Target, as_it_is, outcome};

/// Bytes of an entry in an input.
const ENTRY: usize = 112;
const STEPS_MAX: u32 = 64;

const RING: Target = Target {
    name: "blktap-ring",
    bytes_max: 2 << 10,
    memory_max: 8 << 20,
    seeds,
    words: &[&[0, 1, 0, 0], &[4, 0, 3, 0], &[0, 7, 0, 0], &[0xff; 4], &[31, 0, 0, 0]],
    seal: as_it_is,
    run,
};

#[test]
fn blktap_ring() {
    RING.check(10_000);
}

thread_local! {
    /// The disk below, made once; each run must give all its slots back.
    static DISK_BELOW: RefCell<Option<Memory>> = const { RefCell::new(None) };
}

/// Each operation, and all entries at once.
fn seeds() -> Vec<Vec<u8>> {
    let entry = |operation, id, sectors: u64| {
        let data = matches!(operation, op::READ | op::WRITE);
        let (segments, count) = if data { packed(sectors as u32) } else { Default::default() };
        let entry = Entry { operation, count, id, sector: 16, segments, sectors, flags: 1 };
        let words = entry.to_words();
        [&[0][..], &words.map(u32::to_le_bytes).concat()].concat()
    };
    let mut all = Vec::new();
    for (id, operation) in
        [op::WRITE, op::READ, op::FLUSH, op::TRIM, op::WRITE_ZEROES, 9].into_iter().enumerate()
    {
        all.extend(entry(operation, id as u64, 88));
    }
    all.push(1);
    let full = (0..32).flat_map(|id| entry(op::READ, id, 8)).chain([1]);
    let wrong = entry(op::READ, 40, 8);
    vec![all, full.take(2 << 10).collect(), [wrong, vec![1]].concat(), vec![3, 33, 0, 0, 0, 1]]
}

fn run(mut input: &[u8]) -> u64 {
    let memory = DISK_BELOW.take().unwrap_or_else(|| Memory::new(DISK));
    let mut bench = Bench::over(memory);
    let (mut seen, mut sane) = (Vec::new(), true);
    for _ in 0..STEPS_MAX {
        let Some((step, rest)) = input.split_first() else { break };
        input = rest;
        match step % 6 {
            0 if sane && bench.kernel.has_room() => {
                let bytes = next::<ENTRY>(&mut input);
                let word = |i: usize| u32::from_le_bytes(bytes[4 * i..][..4].try_into().unwrap());
                bench.kernel.put_words(&std::array::from_fn(word));
            }
            2 => {
                // Any word but the answers' end, which is for the kernel alone to read.
                let [at, a, b, c, d] = next::<5>(&mut input);
                let at = if at == 2 { 0 } else { usize::from(at) };
                bench.kernel.page().0[at].store(u32::from_le_bytes([a, b, c, d]), Relaxed);
                sane = false;
            }
            3 => {
                bench.kernel.lie(u32::from_le_bytes(next(&mut input)));
                sane = false;
            }
            4 => bench.tap.suspend(),
            5 => bench.tap.resume(),
            _ => {
                if sane {
                    bench.kernel.show();
                }
                bench.settle();
                // Who lied about requests does not know which answers are whose.
                if sane {
                    seen.extend(bench.answers().iter().map(|answer| answer.status));
                }
            }
        }
    }
    bench.settle();
    let notices = std::iter::from_fn(|| bench.tap.take_notice()).map(|n| format!("{n:?}"));
    let notices: String = notices.collect::<String>().replace(|c: char| c.is_ascii_digit(), "");
    let message = bench.tap.take_message();
    let mut memory = bench.end();
    memory.seen = Vec::new();
    DISK_BELOW.set(Some(memory));
    let letters = seen.iter().take(8).map(|s| char::from(b'a' + s.rem_euclid(26) as u8));
    let letters: String = letters.collect();
    outcome(&format!("{letters}{notices}{message:?}"))
}
