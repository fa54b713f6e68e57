//! The kept inputs of a target: files in `tests/corpus/<target>`, named by what is in them.
use std::fs;
use std::path::PathBuf;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

fn name(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, b| {
        (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// All kept inputs, in the order of their names.
///
/// # Panics
/// If a file cannot be read.
pub(super) fn load(target: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder(target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("an entry").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a readable input")).collect()
}

/// Makes exactly these the kept inputs.
///
/// # Panics
/// If the folder cannot be written.
pub(super) fn replace(target: &str, inputs: &[Vec<u8>]) {
    let folder = folder(target);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a folder for inputs");
    for input in inputs {
        fs::write(folder.join(name(input)), input).expect("room for an input");
    }
}

/// Keeps an input that failed outside the tree; it belongs into the corpus once the fault is
/// mended.
pub(super) fn failed(target: &str, input: &[u8]) -> Option<PathBuf> {
    let path = std::env::temp_dir().join(format!("fuzz-{target}-{}", name(input)));
    fs::write(&path, input).ok().map(|()| path)
}
