//! A child and its parent, as files: what moves data between images of a stranger's.
//!
//! An input is six bytes that say what is done and where the parent begins, the child, and the
//! parent. Both lie in files in memory, with tails of zeros.
use crate::vhd::sealed;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tests::fuzz::{Target, outcome};
use tests::rig::vhdgen::{Gen, id};
use vhd_rs::chain::Chain;
use vhd_rs::coalesce::{Options, coalesce, compact, map};
use vhd_rs::lock::Others;
use vhd_rs::{CheckOptions, check, fill};

/// Bytes before the images.
const ORDER: usize = 6;
/// Zeros that one step of a tail adds.
const ZEROS: u64 = 32 << 10;
/// Disks beyond this would take their time, and nothing else.
const DISK_MAX: u64 = 4 << 20;

const CHAIN: Target = Target {
    name: "vhd-chain",
    bytes_max: ORDER + (14 << 10),
    memory_max: 64 << 20,
    seeds,
    words: &[b"conectix", b"cxsparse", b"tdbatmap", &[0xff; 4], &[0, 0, 0, 15]],
    seal,
    run,
};

#[test]
fn vhd_chain() {
    CHAIN.check(1_500);
}

/// Children with and without data over parents with and without.
fn seeds() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("a.vhd");
    let bytes = |mut image: Gen| {
        image.block_bytes = 64 << 10;
        image.write(&path);
        let mut bytes = std::fs::read(&path).expect("an image");
        bytes.truncate(7 << 10);
        bytes
    };
    let disk = 256 << 10;
    let child = || Gen::child(disk, "p.vhd", id(9));
    let parent = || Gen::new(disk).id(9);
    let mut seeds = Vec::new();
    for what in 0..4 {
        for (child, parent) in [
            (child(), parent()),
            (child().sectors(1, &[(0, 1), (127, 2)]), parent()),
            (child().full(3, 5), parent().full(3, 7).sectors(0, &[(5, 5)])),
        ] {
            let (child, parent) = (bytes(child), bytes(parent));
            let [high, low] = (child.len() as u16).to_be_bytes();
            seeds.push([&[what, 6, 6, high, low, 0][..], &child, &parent].concat());
        }
    }
    seeds
}

/// The child and the parent of an input.
fn split(input: &mut [u8]) -> Option<([u8; ORDER], &mut [u8], &mut [u8])> {
    let (order, images) = input.split_first_chunk_mut::<ORDER>()?;
    let at = usize::from(u16::from_be_bytes([order[3], order[4]])).min(images.len());
    let (child, parent) = images.split_at_mut(at);
    Some((*order, child, parent))
}

fn seal(input: &mut [u8]) {
    let Some((_, child, parent)) = split(input) else { return };
    for image in [child, parent] {
        // The sizes of the disk, in both footers.
        for at in [0, image.len().saturating_sub(512)] {
            if let Some(size) = image.get_mut(at + 48..at + 56) {
                let bytes = size.iter().fold(0, |all, b| all << 8 | u64::from(*b));
                size.copy_from_slice(&(bytes % (DISK_MAX + 1)).to_be_bytes());
            }
        }
        sealed(image);
    }
}

/// Two images in a folder of their own.
struct Pair {
    _dir: tempfile::TempDir,
    child: PathBuf,
    parent: PathBuf,
}

impl Pair {
    fn new(child: (&[u8], u8), parent: (&[u8], u8)) -> Pair {
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let dir = dir.expect("a folder");
        let put = |name: &str, (bytes, tail): (&[u8], u8)| {
            let path = dir.path().join(name);
            let file = File::create(&path).expect("a file");
            file.write_all_at(bytes, 0).expect("an image");
            file.set_len(bytes.len() as u64 + u64::from(tail) * ZEROS).expect("an image");
            path
        };
        let (child, parent) = (put("c.vhd", child), put("p.vhd", parent));
        Pair { _dir: dir, child, parent }
    }

    /// Whether both are images that nobody may damage.
    fn is_sound(&self) -> bool {
        [&self.child, &self.parent].into_iter().all(|path| {
            let file = File::open(path).expect("a file");
            let options =
                CheckOptions { ignore_footer: true, bitmaps: true, ..CheckOptions::default() };
            check(&file, path, &options).is_ok_and(|report| report.fault.is_none())
        })
    }
}

/// What a chain reads as, if it is readable and not too large.
fn contents(path: &Path) -> Option<Vec<u8>> {
    let chain = Chain::open(path).ok()?;
    let bytes = chain.sectors().checked_mul(512).filter(|bytes| *bytes <= DISK_MAX)?;
    let mut contents = vec![0; bytes as usize];
    chain.read(0, &mut contents).ok().map(|()| contents)
}

fn run(input: &[u8]) -> u64 {
    let mut input = input.to_vec();
    let Some(([what, tail, other, .., flags], child, parent)) = split(&mut input) else { return 0 };
    let pair = Pair::new((child, tail % 16), (parent, other % 16));
    let before = contents(&pair.child);
    // Without a small disk there is nothing to compare, and a large one takes long.
    let Some(before) = before else { return opened_only(&pair) };
    let sound = pair.is_sound();
    let after = |path: &Path| {
        if sound {
            assert!(
                contents(path).is_some_and(|after| after.starts_with(&before)),
                "other contents"
            );
        }
    };
    let told = match what % 4 {
        0 => {
            let options = Options { sparse: flags & 1 == 1, ..Options::default() };
            coalesce(&pair.child, &options, &mut |_| ())
                .map(|_| after(&pair.parent))
                .map_err(|failure| failure.error)
        }
        1 => compact::compact(&pair.child, Others::Refuse, &mut |_| ()).map(|_| after(&pair.child)),
        2 => {
            let mut end = 0;
            let mapped = map::map(&pair.child, false, &mut |range| {
                assert_eq!(range.start, end, "ranges follow each other");
                end += range.sectors;
            });
            mapped.map(|_| assert_eq!(end * 512, before.len() as u64))
        }
        _ => File::options().read(true).write(true).open(&pair.child).map_or(Ok(()), |file| {
            fill::mark(&file, &pair.child, None)?;
            assert!(contents(&pair.child).is_some(), "marked, but not readable");
            Ok(())
        }),
    };
    if let Err(e) = &told {
        assert!(e.errno() > 0 && e.errno() < 256, "{e:?}");
        // What fails leaves good images.
        if what % 4 < 2 {
            after(&pair.child);
        }
    }
    let name = pair.parent.parent().map_or(String::new(), |dir| dir.display().to_string());
    let text = told.map_or_else(|e| e.to_string().replace(&name, ""), |()| "done".into());
    outcome(&format!("{}{sound}{text}", char::from(b'a' + what % 4)))
}

/// A chain that is not readable: everything says so, and does not panic.
fn opened_only(pair: &Pair) -> u64 {
    let opened = Chain::open(&pair.child);
    let depth = vhd_rs::chain::depth(&pair.child, false);
    let name = pair.parent.parent().map_or(String::new(), |dir| dir.display().to_string());
    let text = opened.err().map_or(String::new(), |e| e.to_string().replace(&name, ""));
    outcome(&format!("{text}{}", depth.is_ok()))
}
