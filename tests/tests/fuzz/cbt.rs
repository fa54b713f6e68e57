//! Changed-block logs: any file is opened, read, changed, merged and marked.
use cbt::{Change, Header, Log, LogFile, Uuid, bitmap};
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use tests::fuzz::{Target, as_it_is, outcome};

/// Bytes that say what is done, before the log.
const ORDER: usize = 8;

const LOG: Target = Target {
    name: "cbt-log",
    bytes_max: ORDER + 512,
    memory_max: 4 << 20,
    seeds,
    words: &[&[0, 0, 0, 0, 0, 0, 1, 0], &[0xff; 8], b"00112233-4455-6677-8899-aabbccddeeff"],
    seal: as_it_is,
    run,
};

#[test]
fn cbt_log() {
    LOG.check(20_000);
}

fn seeds() -> Vec<Vec<u8>> {
    let header = Header { disk_bytes: 10 << 20, consistent: 1, ..Header::default() };
    let log = [&header.encode()[..], &[0x85; 20]].concat();
    (0..6).map(|what| [&[what, 0, 40, 0, 10, 0, 100, 3], &log[..]].concat()).collect()
}

/// A file in memory, with a path.
fn file(bytes: &[u8]) -> (File, PathBuf) {
    // SAFETY: takes a name that lives on, and flags; the descriptor is ours alone.
    let fd = unsafe { libc::memfd_create(c"log".as_ptr(), libc::MFD_CLOEXEC) };
    assert!(fd >= 0, "a file in memory");
    // SAFETY: the descriptor was made just above, for this value alone.
    let file = unsafe { File::from_raw_fd(fd) };
    file.write_all_at(bytes, 0).expect("a file in memory is written");
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file, path.into())
}

fn run(input: &[u8]) -> u64 {
    let Some((&[what, a, b, c, d, e, f, g], bytes)) = input.split_first_chunk::<ORDER>() else {
        return 0;
    };
    let (log, path) = file(bytes);
    let large = u64::from(u16::from_be_bytes([a, b]));
    let small = u64::from(u32::from_be_bytes([c, d, e, f]));
    let told = match what % 6 {
        0 => LogFile::open(&path, false).and_then(|log| {
            let map = log.bitmap()?;
            let runs = bitmap::runs(&map, log.header().disk_bytes);
            let blocks: u64 = runs.map(|(_, blocks)| blocks).sum();
            assert!(blocks <= map.len() as u64 * 8);
            Ok(format!("{}", blocks > 0))
        }),
        1 => marked(&path, bytes, large << (g % 48), small, u64::from(g)),
        2 => changed(&path, small << (g % 40)),
        3 => {
            let (_other, parent) = file(bytes.get(..usize::from(g)).unwrap_or(bytes));
            cbt::coalesce(&parent, &path).map(|()| "merged".into())
        }
        4 => {
            let text = String::from_utf8_lossy(bytes);
            if let Ok(id) = text.parse::<Uuid>() {
                assert_eq!(id.to_string(), text.to_lowercase());
                return 1;
            }
            return 0;
        }
        _ => cbt::create(&path, small).map(|()| {
            let made = LogFile::open(&path, false).expect("a new log");
            assert_eq!(made.header().disk_bytes, small);
            assert_eq!(made.file_bytes(), made.header().file_bytes());
            "made".into()
        }),
    };
    drop(log);
    let text = told.unwrap_or_else(|e| {
        assert!(e.errno() > 0 && e.errno() < 256, "{e:?}");
        e.to_string().replace(&path.display().to_string(), "")
    });
    outcome(&format!("{}{text}", what % 6))
}

/// A log that opens for a disk records what is written to it, and changes nothing else.
fn marked(
    path: &Path,
    before: &[u8],
    sectors: u64,
    at: u64,
    count: u64,
) -> Result<String, cbt::CbtError> {
    let log = Log::open(path, sectors)?;
    let start = at.checked_rem(sectors).unwrap_or(0);
    let count = count.min(sectors - start);
    log.mark(start, count);
    let after = std::fs::read(path).expect("a readable log");
    assert!(after.len() == before.len() && after[..48] == before[..48]);
    for (i, (new, old)) in after[48..].iter().zip(&before[48..]).enumerate() {
        for bit in 0..8 {
            let block = (i * 8 + bit) as u64;
            let touched = count > 0 && (start / 128..=(start + count - 1) / 128).contains(&block);
            let wanted = old & 1 << bit != 0 || touched;
            assert_eq!(new & 1 << bit != 0, wanted, "block {block}");
        }
    }
    Ok("marked".into())
}

fn changed(path: &Path, disk_bytes: u64) -> Result<String, cbt::CbtError> {
    // Beyond this a bitmap would take the memory of the machine that tests.
    let disk_bytes = disk_bytes.min(1 << 40);
    let mut log = LogFile::open(path, true)?;
    let old = *log.header();
    log.set(&Change {
        disk_bytes: Some(disk_bytes),
        child: Some(Uuid([3; 16])),
        ..<_>::default()
    })?;
    let new = *LogFile::open(path, false)?.header();
    assert_eq!((new.disk_bytes, new.child.0), (disk_bytes, [3; 16]));
    assert_eq!((new.parent, new.consistent), (old.parent, old.consistent));
    Ok("changed".into())
}
