//! Any bytes: opening, checking and closing never panic and never take memory beyond the file's
//! size. The seed is fixed; a failure prints its input.

use crate::common::{Block, build, checked, file, open_ro, open_rw};
use image::MemStorage;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};
use std::path::Path;
use std::sync::OnceLock;
use vhd_rs::{CheckOptions, OpenOptions, closing, open, resolve_parent};

fn config() -> Config {
    Config { cases: 2000, rng_seed: RngSeed::Fixed(0x7664_6f6f), ..Config::default() }
}

/// A short image with every structure: a snapshot whose blocks are not there.
fn small() -> &'static Vec<u8> {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| build(10, &[], Some("./p.vhd")))
}

fn everything(bytes: &[u8], device: bool) {
    let storage = MemStorage::new(bytes.to_vec(), device);
    let everything = CheckOptions {
        bitmaps: true,
        stats: true,
        ignore_footer: bytes.len().is_multiple_of(2),
        ..CheckOptions::default()
    };
    let _ = checked(&storage, &everything);
    let _ = open(&storage, Path::new("/nonexistent/t.vhd"), &OpenOptions::default());
    for opened in [open_ro(&storage), open_rw(&storage)] {
        match opened {
            Ok(o) => {
                let done = closing(&o, &o.bat, &o.full);
                assert!(done.writes.iter().map(|(_, b)| b.len()).sum::<usize>() < 1 << 20);
                if let Some(parent) = &o.parent {
                    let _ = resolve_parent(Path::new("/nonexistent/t.vhd"), parent);
                }
            }
            Err(e) => assert!(e.errno() > 0 && !e.to_string().is_empty()),
        }
    }
}

/// Mutates bytes at interesting places, then makes the checksums right again.
fn mutated(edits: &[(usize, [u8; 4], u8)], length: usize) -> Vec<u8> {
    let mut bytes = small().clone();
    for (at, new, n) in edits {
        for (to, from) in bytes.iter_mut().skip(*at).zip(new.iter().take(1 + usize::from(n % 4))) {
            *to = *from;
        }
    }
    crate::common::seal(&mut bytes, 0);
    crate::common::seal(&mut bytes, -512);
    crate::common::seal_header(&mut bytes);
    bytes.resize(length, 0);
    bytes
}

fn edit() -> impl Strategy<Value = (usize, [u8; 4], u8)> {
    let small = prop_oneof![Just([0; 4]), Just([0xff; 4]), any::<[u8; 4]>(), Just([0, 0, 0, 7])];
    let place = prop_oneof![
        0..5120_usize,
        0..128_usize,
        512..640_usize,
        1088..1200_usize,
        1536..1600_usize
    ];
    (place, small, any::<u8>())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn random_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..4096), device: bool) {
        everything(&bytes, device);
    }

    #[test]
    fn mutated_images_are_harmless(
        edits in prop::collection::vec(edit(), 0..12),
        cut in 0..1024_usize,
        device: bool,
    ) {
        let length = small().len() - if cut < 600 { 0 } else { cut };
        everything(&mutated(&edits, length), device);
    }

    #[test]
    fn unsealed_mutations_are_harmless(at in 0..5120_usize, new: u8, device: bool) {
        let mut bytes = small().clone();
        bytes[at] = new;
        everything(&bytes, device);
    }

    #[test]
    fn structures_survive_a_round_trip(bytes in prop::collection::vec(any::<u8>(), 1024)) {
        let header = vhd_rs::Header::decode(&bytes);
        prop_assert_eq!(vhd_rs::Header::decode(&header.encode()).locators, header.locators);
        let sealed = vhd_rs::Footer::decode(&bytes).encode();
        let again = vhd_rs::Footer::decode(&sealed);
        prop_assert_eq!(again.checksum, again.computed_checksum());
        prop_assert_eq!(&sealed[68..], &bytes[68..512]);
    }
}

#[test]
fn every_single_byte_of_a_valid_image_may_be_wrong() {
    let _ = build(2, &[(0, Block::Full)], None);
    let image = small();
    for at in 0..image.len() {
        for flip in [0x01, 0x80, 0xff] {
            let mut bytes = image.clone();
            bytes[at] ^= flip;
            let _ = checked(&file(&bytes), &CheckOptions::default());
            let _ = open_rw(&file(&bytes));
        }
    }
}
