//! Images that the original made (see `../data/README.md`).

use crate::common::{checked, file, open_ro};
use vhd_rs::create::{NewImage, ParentRef, dynamic};
use vhd_rs::{BatmapState, CheckOptions, DiskType, Opened};

const IMAGES: [(&str, &[u8]); 7] = [
    ("dynamic-16M", include_bytes!("../data/dynamic-16M.vhd")),
    ("dynamic-16M-S64M", include_bytes!("../data/dynamic-16M-S64M.vhd")),
    ("chain-empty", include_bytes!("../data/chain-empty.vhd")),
    ("chain-sub-kid", include_bytes!("../data/chain-sub-kid.vhd")),
    ("snapshot-of-base", include_bytes!("../data/snapshot-of-base.vhd")),
    ("snapshot-of-raw", include_bytes!("../data/snapshot-of-raw.vhd")),
    ("keyhash", include_bytes!("../data/keyhash.vhd")),
];

fn opened(name: &str) -> Opened {
    let (_, bytes) = IMAGES.iter().find(|(n, _)| *n == name).unwrap();
    open_ro(&file(bytes)).unwrap()
}

#[test]
fn every_image_opens_and_is_valid() {
    let o = CheckOptions { ignore_times: true, ..CheckOptions::default() };
    for (name, bytes) in IMAGES {
        assert_eq!(checked(&file(bytes), &o).fault, None, "{name}");
        let opened = open_ro(&file(bytes)).unwrap();
        assert_eq!(opened.sectors, 32768, "{name}");
        assert!(matches!(opened.batmap, BatmapState::Valid { .. }), "{name}");
        assert_eq!(opened.end_of_data + 512, bytes.len() as u64, "{name}");
    }
}

#[test]
fn closing_an_untouched_image_changes_nothing() {
    for (name, bytes) in IMAGES {
        let storage = file(bytes);
        let opened = crate::common::open_rw(&storage).unwrap();
        crate::common::apply(&storage, &vhd_rs::closing(&opened, &opened.bat, &opened.full));
        assert!(storage.into_inner() == bytes, "{name}");
    }
}

/// The same facts given to `create` make the same bytes.
#[test]
fn create_makes_the_bytes_of_the_original() {
    for (name, bytes) in IMAGES {
        let o = open_ro(&file(bytes)).unwrap();
        let header = o.header.unwrap();
        let parent = o.parent.map(|p| ParentRef {
            uuid: p.uuid,
            timestamp: header.parent_timestamp,
            relative: p.candidates[0].clone(),
            key_hash: None,
        });
        if o.key_hash.is_some() {
            continue; // The hash was set later by another command.
        }
        let new = NewImage {
            bytes: o.footer.current_bytes,
            room_bytes: u64::from(header.max_entries) * 2 * crate::common::MIB,
            uuid: o.footer.uuid,
            timestamp: o.footer.timestamp,
        };
        let storage = image::MemStorage::new(Vec::new(), false);
        dynamic(&storage, std::path::Path::new("x"), &new, parent.as_ref()).unwrap();
        assert!(storage.into_inner() == bytes, "{name}");
    }
}

#[test]
fn parents_are_told_apart() {
    let raw = opened("snapshot-of-raw").parent.unwrap();
    assert_eq!(raw.uuid, None);
    let kid = opened("chain-sub-kid");
    assert_eq!(kid.kind, DiskType::Differencing);
    assert_eq!(kid.parent.unwrap().candidates[0], std::path::Path::new("../base.vhd"));
    assert_eq!(opened("dynamic-16M").parent, None);
}

#[test]
fn a_key_hash_is_reported_and_room_is_the_tail() {
    assert!(opened("keyhash").key_hash.is_some());
    let roomy = opened("dynamic-16M-S64M");
    assert_eq!((roomy.bat.len(), roomy.bat_tail.len()), (8, 24));
}
