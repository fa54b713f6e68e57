//! Images in memory for the tests: made by the crate, then given blocks by hand.
#![allow(dead_code)]

pub mod crash;

use image::{MemStorage, Storage};
use std::path::{Path, PathBuf};
use vhd_rs::create::{NewImage, ParentRef, dynamic};
use vhd_rs::{CheckOptions, OpenOptions, Opened, Report, VhdError, check, open};

pub const MIB: u64 = 1 << 20;
pub const BLOCK_SECTORS: u32 = 4097;
pub const UUID: [u8; 16] = [
    0x11, 0x11, 0x11, 0x11, 0x22, 0x22, 0x33, 0x33, 0x44, 0x44, 0x55, 0x55, 0x55, 0x55, 0x55, 0x55,
];

/// What a block holds.
pub enum Block {
    /// These sectors, filled with that byte.
    Some(Vec<(u32, u8)>),
    /// All sectors, filled with 0x5A.
    Full,
}

/// A dynamic image of `mib` with blocks placed as the original does (bitmap at 7 mod 8).
pub fn build(mib: u64, blocks: &[(u32, Block)], parent: Option<&str>) -> Vec<u8> {
    let parent = parent.map(|p| ParentRef {
        uuid: Some(UUID),
        timestamp: 0,
        relative: PathBuf::from(p),
        key_hash: None,
    });
    let uuid = if parent.is_some() { [0x66; 16] } else { UUID };
    let new = NewImage { bytes: mib * MIB, room_bytes: mib * MIB, uuid, timestamp: 0 };
    let storage = MemStorage::new(Vec::new(), false);
    dynamic(&storage, Path::new("t.vhd"), &new, parent.as_ref()).unwrap();
    let opened = open_rw(&storage).unwrap();
    let (mut bat, mut full) = (opened.bat.clone(), opened.full.clone());
    let mut next = u32::try_from(opened.end_of_headers / 512).unwrap();
    for (index, block) in blocks {
        next += (7 + 8 - next % 8) % 8;
        bat[*index as usize] = next;
        write_block(&storage, u64::from(next) * 512, block);
        if matches!(block, Block::Full) {
            vhd_rs::batmap::set_full(&mut full, *index);
        }
        next += BLOCK_SECTORS;
    }
    storage.write_at(1536, &vhd_rs::bat::encode(bat.iter().copied())).unwrap();
    apply(&storage, &vhd_rs::closing(&opened, &bat, &full));
    storage.into_inner()
}

fn write_block(storage: &MemStorage, at: u64, block: &Block) {
    let mut bytes = vec![0; 512 * BLOCK_SECTORS as usize];
    match block {
        Block::Full => {
            bytes[..512].fill(0xff);
            bytes[512..].fill(0x5a);
        }
        Block::Some(sectors) => {
            for (sector, fill) in sectors {
                vhd_rs::batmap::set_full(&mut bytes[..512], *sector);
                let from = 512 * (1 + *sector as usize);
                bytes[from..from + 512].fill(*fill);
            }
        }
    }
    storage.write_at(at, &bytes).unwrap();
}

/// Does what a closing says, in order.
pub fn apply(storage: &dyn Storage, closing: &image::Closing) {
    for (n, (at, bytes)) in closing.writes.iter().enumerate() {
        storage.write_at(*at, bytes).unwrap();
        if let (0, Some(len)) = (n, closing.truncate) {
            storage.set_len(len).unwrap();
        }
    }
    for (at, bytes) in &closing.last {
        storage.write_at(*at, bytes).unwrap();
    }
}

pub fn file(bytes: &[u8]) -> MemStorage {
    MemStorage::new(bytes.to_vec(), false)
}

pub fn open_rw(storage: &dyn Storage) -> Result<Opened, VhdError> {
    let o = OpenOptions { for_io: true, ..OpenOptions::default() };
    open(storage, Path::new("t.vhd"), &o)
}

pub fn open_ro(storage: &dyn Storage) -> Result<Opened, VhdError> {
    let o = OpenOptions { for_io: true, read_only: true, ..OpenOptions::default() };
    open(storage, Path::new("t.vhd"), &o)
}

pub fn checked(storage: &dyn Storage, o: &CheckOptions) -> Report {
    check(storage, Path::new("t.vhd"), o).unwrap()
}

/// The first fault of a strict check, or nothing.
pub fn fault(bytes: &[u8]) -> String {
    let o = CheckOptions { stats: true, now: 1000, ..CheckOptions::default() };
    checked(&file(bytes), &o).fault.map_or(String::new(), |(text, _)| text)
}

/// Puts bytes at an offset, or from the end if it is negative.
pub fn poke(bytes: &mut [u8], at: i64, new: &[u8]) {
    let len = i64::try_from(bytes.len()).unwrap();
    let at = usize::try_from(if at < 0 { len + at } else { at }).unwrap();
    bytes[at..at + new.len()].copy_from_slice(new);
}

/// Gives the footer at that offset (from the end if negative) a right checksum again.
pub fn seal(bytes: &mut [u8], at: i64) {
    let len = i64::try_from(bytes.len()).unwrap();
    let from = usize::try_from(if at < 0 { len + at } else { at }).unwrap();
    let sealed = vhd_rs::Footer::decode(&bytes[from..from + 512]).encode();
    bytes[from..from + 512].copy_from_slice(&sealed);
}

/// The same for the header at 512.
pub fn seal_header(bytes: &mut [u8]) {
    let sealed = vhd_rs::Header::decode(&bytes[512..1536]).encode();
    bytes[512..1536].copy_from_slice(&sealed);
}
