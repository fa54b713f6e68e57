//! One read of 4 KiB of a guest, warm, from a block that its VHD has: `make bench-walk` lists the
//! files of ours that it passes (tests/bench/walk.py).
//!
//! ```text
//! request-walk FOLDER
//! ```
//! Not a part of request-cost: a second kind of disk there would change what is inlined, and with
//! that the instructions that are counted.
use std::path::Path;
use std::process::ExitCode;

use disk::align::Aligned;
use disk::probe::{AnyDisk, EngineKind};
use engine::Engine;
use engine::limits::Limits;
use frontend::Frontend;
use frontend::blkif::{PollPolicy, RingParams, Rings};
use xen::fake::{Access, DOMID, Fake, FrontRing, Guest, entry};
use xen::{Segment, op, status};

/// The daemon's engine over a real file.
#[path = "../../tests/zero_alloc_support/mod.rs"]
mod support;

/// A guest with one ring and one page.
struct Machine {
    engine: Engine<Aligned<AnyDisk>>,
    rings: Rings<Fake>,
    guest: Guest,
    front: FrontRing,
    page: Segment,
    clock: u64,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [folder] = words.as_slice() else {
        eprintln!("usage: request-walk FOLDER");
        return ExitCode::from(64);
    };
    walk(folder.as_ref());
    ExitCode::SUCCESS
}

/// Three reads that are not counted, and one that is.
fn walk(folder: &Path) {
    let path = folder.join("walk.vhd");
    let (_file, engine) = support::engine(&path, "vhd", EngineKind::Uring, Limits::NORMAL);
    let guest = Guest::new();
    let page = Segment { gref: guest.grant(Access::Full), first: 0, last: 7, pad: 0 };
    let front = guest.ring(0, xen::Layout::of_protocol(3).expect("x86_64's"));
    let mut rings = Rings::new(guest.back_end());
    let mut refs = [0; 8];
    refs[..front.refs().len()].copy_from_slice(front.refs());
    let name = RingParams::name((DOMID.into(), 51712), (0, 1)).expect("a name");
    let params = RingParams::new(name, (0, &refs), front.port(), 3, PollPolicy::default());
    rings.connect(&params.expect("parameters")).expect("it connects");
    let mut machine = Machine { engine, rings, guest, front, page, clock: 1 };
    machine.one(op::WRITE);
    for _ in 0..3 {
        machine.one(op::READ);
    }
    counted_read(&mut machine);
}

/// The one that callgrind looks at, by this name.
#[inline(never)]
fn counted_read(machine: &mut Machine) {
    machine.one(op::READ);
}

impl Machine {
    /// One request, until it is answered.
    fn one(&mut self, operation: u8) {
        let bytes = entry(self.front.layout(), (operation, 1), 1, 0, &[self.page]);
        self.front.put(&bytes);
        if self.front.show() {
            self.guest.notify(self.front.port());
        }
        if self.guest.wakes_back_end() {
            self.rings.event();
        }
        let answer = loop {
            self.clock += 10;
            let clock = self.clock;
            support::turn(&mut self.engine, &mut self.rings, clock, |rings| rings.clock(clock));
            if let Some(answer) = self.front.answer() {
                break answer;
            }
        };
        assert_eq!(answer.status, status::OKAY, "the disk does not fail");
    }
}
