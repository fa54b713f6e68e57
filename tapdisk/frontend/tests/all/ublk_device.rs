//! The block device's frontend over a kernel in memory.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use crate::nbd_support::Memory;
use frontend::Frontend;
use frontend::ublk::abi::{IoDesc, op};
use frontend::ublk::{Commands, Ublk};

const TAGS: u16 = 4;

/// What the kernel knows: commands queued and handed over, and what it has to tell.
#[derive(Default)]
struct Kernel {
    queued: Vec<(u16, Option<i32>)>,
    waiting: Vec<u16>,
    answers: Vec<(u16, i32)>,
    told: VecDeque<(u16, i32)>,
    descs: [IoDesc; TAGS as usize],
    /// Data of the write that was told, or of the read that was answered, by tag.
    data: Vec<Vec<u8>>,
    refuses: bool,
}

#[derive(Clone)]
struct Fake(Rc<RefCell<Kernel>>);

impl Commands for Fake {
    fn queue(&mut self, place: u16, answer: Option<i32>, buffer: &mut [u8]) {
        let mut kernel = self.0.borrow_mut();
        let tag = usize::from(place);
        let desc = kernel.descs[tag];
        if desc.op_flags as u8 == op::READ && answer.is_some_and(|n| n > 0) {
            let bytes = desc.sectors as usize * 512;
            kernel.data[tag][..bytes].copy_from_slice(&buffer[..bytes]);
        }
        kernel.queued.push((place, answer));
    }

    fn submit(&mut self) -> io::Result<()> {
        let mut kernel = self.0.borrow_mut();
        if kernel.refuses {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        for i in 0..kernel.queued.len() {
            let (place, answer) = kernel.queued[i];
            if let Some(answer) = answer {
                kernel.answers.push((place, answer));
            }
            kernel.waiting.push(place);
        }
        kernel.queued.clear();
        Ok(())
    }

    fn pop(&mut self) -> Option<(u16, i32)> {
        self.0.borrow_mut().told.pop_front()
    }

    fn is_empty(&mut self) -> bool {
        self.0.borrow().told.is_empty()
    }

    fn request(&self, place: u16) -> IoDesc {
        self.0.borrow().descs[usize::from(place)]
    }
}

struct Bench {
    memory: Memory,
    device: Ublk<Fake>,
    kernel: Fake,
}

impl Bench {
    fn new() -> Bench {
        let mut memory = Memory::new(crate::nbd_support::export());
        let mut kernel = Kernel { data: vec![vec![0; 64 << 10]; TAGS.into()], ..Kernel::default() };
        kernel.queued.reserve(64);
        kernel.waiting.reserve(64);
        kernel.answers.reserve(64);
        kernel.told.reserve(64);
        let kernel = Fake(Rc::new(RefCell::new(kernel)));
        let device = Ublk::start(kernel.clone(), TAGS, &mut memory).unwrap().expect("slots");
        Bench { memory, device, kernel }
    }

    /// The block layer asks; gives the tag.
    fn ask(&mut self, operation: u8, flags: u32, start: u64, sectors: u32) -> u16 {
        let mut kernel = self.kernel.0.borrow_mut();
        let tag = kernel.waiting.pop().expect("a tag that waits for requests");
        kernel.descs[usize::from(tag)] =
            IoDesc { op_flags: u32::from(operation) | flags, sectors, start, address: 0 };
        kernel.told.push_back((tag, 0));
        tag
    }

    fn turn(&mut self) {
        self.device.take(&mut self.memory);
        while let Some((slot, request, outcome)) = self.memory.finish() {
            self.device.complete(&mut self.memory, slot, &request, outcome);
        }
        self.device.kick(&mut self.memory);
    }

    fn answers(&mut self) -> Vec<(u16, i32)> {
        std::mem::take(&mut self.kernel.0.borrow_mut().answers)
    }
}

#[test]
fn each_operation_is_asked_for_as_it_was_meant() {
    use image::Span;
    use request::Verb;
    let mut bench = Bench::new();
    let cases = [
        (op::READ, 0, Verb::Read, 4096),
        (op::WRITE, 0, Verb::Write { fua: false }, 4096),
        (op::WRITE, op::FUA, Verb::Write { fua: true }, 4096),
        (op::FLUSH, 0, Verb::Flush, 0),
        (op::DISCARD, 0, Verb::Discard { fua: false }, 0),
        (op::WRITE_ZEROES, 0, Verb::Zero { keep: false, fast: false, fua: false }, 0),
        (op::WRITE_ZEROES, op::NOUNMAP, Verb::Zero { keep: true, fast: false, fua: false }, 0),
    ];
    for (operation, flags, verb, answer) in cases {
        bench.memory.seen.clear();
        let tag = bench.ask(operation, flags, 80, 8);
        bench.turn();
        assert_eq!(bench.answers(), [(tag, answer)], "{verb:?}");
        let span = if verb == Verb::Flush { Span::default() } else { Span { start: 80, count: 8 } };
        let seen: Vec<_> = bench.memory.seen.iter().map(|r| (r.verb, r.span)).collect();
        assert_eq!(seen, [(verb, span)]);
    }
}

#[test]
fn what_the_engine_cannot_take_is_refused_here() {
    let mut bench = Bench::new();
    let long = bench.ask(op::READ, 0, 0, 129);
    let unknown = bench.ask(4, 0, 0, 8);
    bench.turn();
    assert_eq!(bench.answers(), [(long, -libc::EINVAL), (unknown, -libc::EOPNOTSUPP)]);
    assert!(bench.memory.seen.is_empty());
    assert_eq!(bench.device.counters().errors, 2);
}

#[test]
fn a_pause_holds_requests_and_an_end_fails_them() {
    let mut bench = Bench::new();
    bench.device.suspend();
    let tag = bench.ask(op::READ, 0, 0, 8);
    bench.turn();
    assert!(
        bench.answers().is_empty() && bench.device.idle() && !bench.device.pending(&bench.memory)
    );
    bench.device.resume();
    assert!(bench.device.pending(&bench.memory));
    bench.turn();
    assert_eq!(bench.answers(), [(tag, 4096)]);
    bench.device.suspend();
    let tag = bench.ask(op::WRITE, 0, 0, 8);
    bench.turn();
    bench.device.refuse();
    bench.turn();
    assert_eq!(bench.answers(), [(tag, -libc::EIO)]);
}

#[test]
fn at_the_end_every_tag_and_slot_comes_back() {
    let mut bench = Bench::new();
    assert_eq!(bench.memory.reserved(), usize::from(TAGS));
    bench.ask(op::READ, 0, 0, 8);
    bench.turn();
    let waiting = std::mem::take(&mut bench.kernel.0.borrow_mut().waiting);
    let ends = waiting.into_iter().map(|tag| (tag, -libc::ENODEV));
    bench.kernel.0.borrow_mut().told.extend(ends);
    assert!(!bench.device.has_ended());
    bench.turn();
    assert!(bench.device.has_ended() && bench.device.idle());
    bench.device.end(&mut bench.memory);
    assert_eq!(bench.memory.reserved(), 0);
}

#[test]
fn answers_that_the_kernel_does_not_take_are_offered_again() {
    let mut bench = Bench::new();
    let tag = bench.ask(op::READ, 0, 0, 8);
    bench.kernel.0.borrow_mut().refuses = true;
    bench.turn();
    assert_eq!(bench.device.take_error().and_then(|e| e.raw_os_error()), Some(libc::ENOMEM));
    bench.kernel.0.borrow_mut().refuses = false;
    bench.turn();
    assert_eq!(bench.answers(), [(tag, 4096)]);
}

#[test]
fn a_request_costs_no_allocation() {
    let mut bench = Bench::new();
    // The engine of the tests remembers in vectors of its own.
    bench.memory.seen.reserve(8);
    bench.ask(op::READ, 0, 0, 8);
    bench.turn();
    for i in 0..1000 {
        bench.memory.seen.clear();
        bench.ask(if i % 2 == 0 { op::READ } else { op::WRITE }, 0, i * 8, 8);
        crate::counting::watch(true);
        bench.device.take(&mut bench.memory);
        crate::counting::watch(false);
        while let Some((slot, request, outcome)) = bench.memory.finish() {
            crate::counting::watch(true);
            bench.device.complete(&mut bench.memory, slot, &request, outcome);
            crate::counting::watch(false);
        }
        crate::counting::watch(true);
        bench.device.kick(&mut bench.memory);
        crate::counting::watch(false);
        bench.kernel.0.borrow_mut().answers.clear();
    }
    assert_eq!(crate::counting::calls(), 0);
    assert_eq!(bench.device.counters().requests[..2], [501, 500]);
}
