//! Metadata that is loaded ahead through a chain: fewer rounds, and no failure of what was not
//! needed.
use std::path::Path;

use engine::chain::Chain;
use engine::limits::Limits;
use engine::{Engine, Policy};
use image::{Image, MemStorage, Span};
use request::disk::FileInfo;
use request::{Outcome, Owner, Request, Slots, Verb};
use tests::rig::MIB;
use tests::rig::vhdgen::{Gen, id};
use tests::sim::disk::{SimDisk, SimFile};
use tests::sim::rng::Rng;
use vhd_rs::OpenOptions;
use vhd_rs::driver::Vhd;

const LAYERS: u8 = 6;

/// A chain in which sector n of block 0 is in layer n, leaf first; all have that block.
fn chain() -> Engine<SimDisk> {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut files, mut layers, mut infos) = (Vec::new(), Vec::new(), Vec::new());
    for n in 0..LAYERS {
        let path = folder.path().join(format!("{n}.vhd"));
        let gen_ = match n + 1 {
            LAYERS => Gen::new(4 * MIB),
            parent => Gen::child(4 * MIB, &format!("{parent}.vhd"), id(parent + 1)),
        };
        gen_.id(n + 1).sectors(0, &[(u32::from(n), n + 1)]).write(&path);
        let bytes = std::fs::read(&path).expect("it was just written");
        let storage = MemStorage::new(bytes.clone(), false);
        let options = OpenOptions { read_only: n > 0, for_io: true, ..OpenOptions::default() };
        let opened = vhd_rs::open(&storage, Path::new("x.vhd"), &options).expect("a whole image");
        layers.push(Box::new(Vhd::new(opened)) as Box<dyn Image>);
        infos.push(FileInfo { bytes: bytes.len() as u64, device: false, thin: false });
        files.push(SimFile::new(bytes, false));
    }
    let limits = Limits::NORMAL;
    let disk = SimDisk::new(limits.arena_bytes(), files, limits.ops() as usize, Rng::new(1));
    let mut engine = Engine::new(disk, limits);
    engine.attach(Chain::of(layers), &infos, Policy::default());
    engine
}

/// Reads one sector; with the rounds in which everything in flight was completed together.
fn read(engine: &mut Engine<SimDisk>, sector: u64) -> (Outcome, u8, u32) {
    let slot = engine.reserve(4096).expect("a free slot");
    let span = Span { start: sector, count: 1 };
    engine.start(slot, Request { verb: Verb::Read, span, owner: Owner::default() });
    let mut rounds = 0;
    loop {
        engine.step(1);
        if let Some((slot, _, outcome)) = engine.pop_done() {
            let byte = engine.buffer(slot)[0];
            engine.release(slot);
            return (outcome, byte, rounds);
        }
        assert!(engine.disk_ref().busy(), "the read is stuck");
        while engine.disk_ref().busy_queue() {
            engine.disk().complete_one();
        }
        rounds += 1;
    }
}

#[test]
fn the_bitmaps_of_a_chain_are_loaded_together() {
    let mut engine = chain();
    let (outcome, byte, rounds) = read(&mut engine, u64::from(LAYERS) - 1);
    assert_eq!((outcome, byte), (Ok(0), LAYERS), "the last layer has it");
    // Five bitmaps at once, the sixth, the data; one after the other it would be seven.
    assert_eq!(rounds, 3);
    assert_eq!(read(&mut engine, 2), (Ok(0), 3, 1), "now only data is read");
}

#[test]
fn a_layer_that_is_not_needed_may_be_unreadable() {
    for broken in 1..LAYERS {
        let mut engine = chain();
        engine.disk().faults.unreadable = Some(broken);
        for sector in 0..broken {
            let (outcome, byte, _) = read(&mut engine, u64::from(sector));
            assert_eq!((outcome, byte), (Ok(0), sector + 1), "layer {broken} is broken");
        }
        let (outcome, _, _) = read(&mut engine, u64::from(broken));
        assert_eq!(outcome, Err(libc::EIO), "and it is told where it is needed");
    }
}
