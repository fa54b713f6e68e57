//! Dirty files: written through the page cache as fast as it takes them, compared and removed
//! later, never flushed.
use super::{compare, fill};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Of one file.
const FILE_BLOCKS: u64 = 256;

/// Keeps at most `mib` MiB of files in a folder and replaces the oldest, for `seconds`.
///
/// # Errors
/// An error of the file system, or a block that does not hold what was written.
pub fn run(folder: &Path, mib: u64, seconds: u64, seed: u64) -> Result<String, String> {
    let until = Instant::now() + Duration::from_secs(seconds);
    let path = |n: u64| folder.join(format!("{seed}.{n}"));
    let keep = mib * 256 / FILE_BLOCKS;
    let (mut written, mut compared) = (0, 0);
    for n in 0.. {
        if Instant::now() > until {
            break;
        }
        write(&path(n), seed, n).map_err(|e| format!("{}: {e}", path(n).display()))?;
        written += 1;
        if let Some(old) = n.checked_sub(keep) {
            check(&path(old), seed, old)?;
            compared += 1;
            fs::remove_file(path(old)).map_err(|e| e.to_string())?;
        }
    }
    for n in written - keep.min(written)..written {
        check(&path(n), seed, n)?;
        compared += 1;
    }
    Ok(format!("files {seed}: {written} MiB written, {compared} compared"))
}

fn write(path: &Path, seed: u64, n: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let mut block = [0u8; 4096];
    for at in 0..FILE_BLOCKS {
        fill(&mut block, seed, n << 32 | at);
        file.write_all(&block)?;
    }
    Ok(())
}

fn check(path: &Path, seed: u64, n: u64) -> Result<(), String> {
    let say = |e: std::io::Error| format!("{}: {e}", path.display());
    let mut file = File::open(path).map_err(say)?;
    let mut block = [0u8; 4096];
    for at in 0..FILE_BLOCKS {
        file.read_exact(&mut block).map_err(say)?;
        compare(&block, seed, n << 32 | at)?;
    }
    Ok(())
}
