//! A guest's ring: any entries, any lists of segments, any word of the shared page overwritten.
//!
//! An input is two bytes that choose the ring, and steps: a byte that says what the guest does, and
//! what it needs for that.
use crate::blkif_support::engine::Memory;
use crate::blkif_support::{Bench, answers};
use crate::next;
use frontend::blkif::{Notice, Rings};
use frontend::nbd::Export;
use std::cell::RefCell;
use std::sync::atomic::Ordering::Relaxed;
use tests::fuzz::{Target, as_it_is, outcome};
use xen::fake::{Access, FrontRing, Guest, entry, indirect_entry};
use xen::{Layout, Segment, op};

const ORDER: usize = 2;
/// Bytes of an entry in an input.
const ENTRY: usize = 112;
/// The guest's pages: data, a list of segments, one that may only be read, one that is not granted.
const PAGES: usize = 4;
const STEPS_MAX: u32 = 64;
/// A disk of 1 MiB.
const DISK: Export = Export { sectors: 2048, sector_size: 512, read_only: false, fast_zero: true };

const RING: Target = Target {
    name: "guest-ring",
    bytes_max: 2 << 10,
    memory_max: 8 << 20,
    seeds,
    words: &[&[6, 0, 1, 0], &[6, 1, 20, 0], &[0, 7, 0, 0], &[0xff; 4], &[5, 1]],
    seal: as_it_is,
    run,
};

#[test]
fn guest_ring() {
    RING.check(10_000);
}

thread_local! {
    /// The disk below, made once; each run must give all its slots back.
    static DISK_BELOW: RefCell<Option<Memory>> = const { RefCell::new(None) };
}

/// A guest with its pages granted in the same order every time, so that inputs can name them.
fn bench() -> (Bench, [u32; PAGES]) {
    let memory = DISK_BELOW.take().unwrap_or_else(|| Memory::new(DISK));
    let guest = Guest::new();
    let rings = Rings::new(guest.back_end());
    let of = |access| guest.grant(access);
    let pages = [Access::Full, Access::Full, Access::ReadOnly, Access::None].map(of);
    (Bench { guest, rings, memory, now: 1 }, pages)
}

/// Each operation, directly and by a list.
fn seeds() -> Vec<Vec<u8>> {
    let (bench, [data, list, ..]) = bench();
    DISK_BELOW.set(Some(bench.memory));
    let segment = Segment { gref: data, first: 0, last: 7, pad: 0 };
    let mut seeds = Vec::new();
    for (protocol, layout) in [(0, Layout::WIDE), (1, Layout::NARROW)] {
        let mut all = vec![protocol, 0];
        for operation in [op::WRITE, op::READ, op::WRITE_BARRIER, op::FLUSH_DISKCACHE] {
            all.push(0);
            all.extend(entry(layout, (operation, 2), 7, 16, &[segment; 2]));
        }
        all.push(2);
        all.extend([segment; 12].iter().flat_map(|segment| segment.to_bytes()));
        for operation in [op::WRITE, op::READ] {
            all.push(0);
            all.extend(indirect_entry(layout, operation, 9, 8, (12, list)));
        }
        let mut discard = entry(layout, (op::DISCARD, 0), 3, 0, &[]);
        discard[layout.discard_sectors] = 64;
        all.extend([&[0][..], &discard, &[1]].concat());
        seeds.push(all);
    }
    seeds
}

fn run(mut input: &[u8]) -> u64 {
    let [protocol, order] = next::<ORDER>(&mut input);
    let (mut bench, pages) = bench();
    let protocol = [1, 2, 3][usize::from(protocol % 3)];
    let mut ring = bench.connect(u32::from(order % 3), protocol, 0);
    let (mut seen, mut lied) = (Vec::new(), false);
    for _ in 0..STEPS_MAX {
        let Some((step, rest)) = input.split_first() else { break };
        input = rest;
        match step % 5 {
            // After a lie the guest itself does not know where it is.
            0 if !lied && ring.room() > 0 => ring.put(&next::<ENTRY>(&mut input)),
            2 => {
                let list = next::<96>(&mut input);
                bench.guest.page(pages[1], |page| page[..96].copy_from_slice(&list));
            }
            3 => scribble(&mut ring, next(&mut input)),
            4 => {
                ring.lie(u32::from_le_bytes(next(&mut input)));
                lied = true;
            }
            _ => seen.extend(bench.serve(&mut ring).iter().map(|answer| answer.status)),
        }
    }
    seen.extend(bench.serve(&mut ring).iter().map(|answer| answer.status));
    let notices = std::iter::from_fn(|| bench.rings.take_notice()).map(why);
    let notices: Vec<String> = notices.collect();
    bench.assert_clean();
    seen.extend(answers(&mut ring).iter().map(|answer| answer.status));
    bench.memory.seen = Vec::new();
    DISK_BELOW.set(Some(bench.memory));
    let letters = seen.iter().take(8).map(|s| char::from(b'a' + s.rem_euclid(26) as u8));
    let letters: String = letters.collect();
    outcome(&format!("{letters}{notices:?}"))
}

/// One of the first words of the shared pages, where the indexes are, or of the entries.
fn scribble(ring: &mut FrontRing, [at, a, b, c, d]: [u8; 5]) {
    // Where answers end is for the guest alone to read.
    const ANSWERS: usize = 2;
    let at = if usize::from(at) == ANSWERS { 0 } else { usize::from(at) };
    ring.word(at).store(u32::from_le_bytes([a, b, c, d]), Relaxed);
}

fn why(notice: Notice) -> String {
    format!("{notice:?}").chars().filter(|c| !c.is_ascii_digit()).collect()
}
