//! The structures of a VHD by themselves: footer, header with its locators, batmap header.
use std::collections::BTreeSet;
use std::path::Path;
use tests::fuzz::{Target, as_it_is, outcome};
use tests::rig::vhdgen::Gen;
use vhd_rs::batmap::BatmapHeader;
use vhd_rs::locator::{self, Locator};
use vhd_rs::{Footer, Header, key};

/// Bytes of a footer, a header, a batmap header and a text.
const BYTES: usize = 512 + 1024 + 512 + 256;

const PARTS: Target = Target {
    name: "vhd-parts",
    bytes_max: BYTES,
    memory_max: 1 << 20,
    seeds,
    words: &[b"conectix", b"cxsparse", b"tdbatmap", b"MacX", b"W2ku", b"W2ru", b"file://", b"./"],
    seal: as_it_is,
    run,
};

#[test]
fn vhd_parts() {
    PARTS.check(60_000);
}

/// The structures of a small child, and each kind of text.
fn seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.vhd");
    let layout = Gen::child(10 << 20, "../p/ä.vhd", [7; 16]).write(&path);
    let image = std::fs::read(path).expect("an image");
    let map = &image[layout.batmap as usize..][..512];
    let texts = layout.locators.iter().map(|at| &image[*at as usize..][..256]);
    texts.map(|text| [&image[..1536], map, text].concat()).collect()
}

fn run(bytes: &[u8]) -> u64 {
    let part = |from: usize, to: usize| bytes.get(from..bytes.len().min(to)).unwrap_or_default();
    let mut seen = footer(part(0, 512));
    let header = Header::decode(part(512, 1536));
    seen += &format!("{:?}{:?}", Header::parse(part(512, 1536)).is_ok(), header.fault());
    assert_eq!(Header::decode(&header.encode()).locators, header.locators);
    let texts: BTreeSet<String> =
        header.locators.iter().map(|locator| text_of(locator, part(2048, BYTES))).collect();
    seen += &format!("{:?}", texts.last());
    let _ =
        (header.table_bytes(), header.batmap_at(), header.bitmap_bytes(), header.blocks(u64::MAX));
    let _ = header.parent_name_text();
    match BatmapHeader::parse(part(1536, 2048)) {
        Ok(map) => {
            assert_eq!(BatmapHeader::parse(&map.encode()).as_ref(), Ok(&map));
            assert!(map.map_end() >= map.map_offset);
            seen += &format!("{}", map.matches(part(2048, BYTES), 1 << 40, header.block_bytes));
            let _ = map.key_hash().is_some_and(|hash| key::fits(&hash, &[0; 32]));
        }
        Err(fault) => seen += fault.text(),
    }
    outcome(&seen)
}

fn footer(bytes: &[u8]) -> String {
    let footer = Footer::decode(bytes);
    let sealed = footer.encode();
    assert_eq!(Footer::decode(&sealed).checksum, footer.computed_checksum());
    let sound = Footer::parse(&sealed);
    if let Ok(again) = &sound {
        assert_eq!(again.encode(), sealed, "a sound footer stays as it is");
    }
    format!("{:?}{}{}", sound.err(), footer.poisoned(), footer.early_tap())
}

fn text_of(locator: &Locator, text: &[u8]) -> String {
    assert_eq!(Locator::decode(&locator.encode()), *locator);
    let _ = (locator.area_bytes(), locator.end(), locator.code_known());
    let length = locator.text_bytes();
    if let Ok(length) = length {
        assert!(length <= 2 * locator::PATH_BYTES_MAX);
    }
    let path = locator.path(text);
    if let Ok(path) = &path {
        assert!(path != Path::new(""), "an empty path is no parent");
        assert!(path.as_os_str().len() <= locator::PATH_BYTES_MAX);
        let _ = locator::text_of(locator.code, path);
    }
    format!("{:?}{:?}", length.err(), path.err())
}
