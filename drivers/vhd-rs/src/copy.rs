//! A copy of an image, encrypted on the way if a key is given.
use crate::bat::UNUSED;
use crate::chain::{self, Chain};
use crate::create::{self, NewImage};
use crate::crypt::Cipher;
use crate::driver::Vhd;
use crate::error::{
    VhdError,
    errno::{EEXIST, EINVAL},
};
use crate::lock::{self, Others};
use crate::open::{self, OpenOptions, Opened};
use crate::{DiskType, files, key};
use image::blocking::Writer;
use image::unfinished::Unfinished;
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Copies an image to a new file: the same size, every block that is there as a full one, with a
/// unique id of its own. With a key the data is encrypted, and the hash of the key stored with a
/// nonce of zeros.
///
/// ```
/// use vhd_rs::{copy, files, key, open};
///
/// let dir = tempfile::tempdir()?;
/// let (old, new) = (dir.path().join("old.vhd"), dir.path().join("new.vhd"));
/// files::create(&old, 16 << 20, None, false)?;
/// copy::copy(&old, &new, Some(&[7; 32]), Default::default())?;
///
/// let file = std::fs::File::open(&new)?;
/// let stored = open(&file, &new, &Default::default())?.key_hash.unwrap();
/// assert!(key::fits(&stored, &[7; 32]));
/// assert_eq!(copy::copy(&old, &new, None, Default::default()).unwrap_err().errno(), 17); // EEXIST
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// EEXIST for a new name that exists; EINVAL for a source with a parent, one that is encrypted, or
/// a key of neither 32 nor 64 bytes; EBUSY while another process writes the source; those of the
/// files. A copy that could not be completed is removed.
pub fn copy(name: &Path, new: &Path, key: Option<&[u8]>, others: Others) -> Result<(), VhdError> {
    // A copy of what moves would be of no moment at all.
    let still = chain::open_file(name, false)?;
    lock::lock(&still, name, others)?;
    let chain = Chain::open(name)?;
    let source = chain.layers.first().and_then(|layer| layer.opened.as_ref());
    let Some(source) = source else {
        return Err(VhdError::request(name, EINVAL, "a raw image; use vhd-util convert"));
    };
    if source.kind == DiskType::Differencing {
        let why = "an image with a parent is not copied alone; use vhd-util convert";
        return Err(VhdError::request(new, EINVAL, why));
    }
    if source.key_hash.is_some() {
        let why = "an encrypted image is copied as a file (cp), with its key";
        return Err(VhdError::request(name, EINVAL, why));
    }
    let cipher = match key {
        None => None,
        Some(key) => Some(cipher(key, source, new)?),
    };
    if new.exists() {
        return Err(VhdError::request(new, EEXIST, "the file exists; name a new one"));
    }
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o644);
    let file = options.open(new).map_err(|e| VhdError::io(new, "create the file", 0, &e))?;
    let unfinished = Unfinished::begin(new);
    write(&chain, source, &file, new, key.zip(cipher.as_ref()))?;
    unfinished.whole();
    Ok(())
}

fn cipher(key: &[u8], source: &Opened, new: &Path) -> Result<Cipher, VhdError> {
    if source.kind == DiskType::Fixed {
        let why = "can't save key hashes for fixed vhds";
        return Err(VhdError::request(new, EINVAL, why));
    }
    let why = "Unsupported keysize, use either 256 bit or 512 bit key";
    Cipher::new(key).ok_or_else(|| VhdError::request(new, EINVAL, why))
}

fn write(
    chain: &Chain,
    source: &Opened,
    file: &File,
    new: &Path,
    key: Option<(&[u8], &Cipher)>,
) -> Result<(), VhdError> {
    let bytes = source.footer.current_bytes;
    let image =
        NewImage { bytes, room_bytes: bytes, uuid: files::new_uuid(new)?, timestamp: files::now() };
    if source.kind == DiskType::Fixed {
        create::fixed(file, new, &image)?;
    } else {
        create::dynamic(file, new, &image, None)?;
    }
    if let Some((key, _)) = key {
        key::set_hash(file, new, &key::hash_of(&[0; 32], key))?;
    }
    let options = OpenOptions { for_io: true, ..OpenOptions::default() };
    let mut target = Vhd::new(open::open(file, new, &options)?);
    let failed = |at: u64| move |e| VhdError::io(new, "write the copy", at * 512, &e);
    let mut writer = Writer::new(&mut target, file).map_err(failed(0))?;
    let mut buf = vec![0; 2 << 20];
    for (at, count) in present(source) {
        let piece = buf.get_mut(..(count * 512) as usize).unwrap_or_default();
        chain.read(at, piece)?;
        if let Some((_, cipher)) = key {
            cipher.encrypt(at, piece);
        }
        writer.write(at, piece).map_err(failed(at))?;
    }
    writer.close().map_err(failed(0))
}

/// Start and count of the sectors of each block that is there, in pieces of at most 2 MiB.
fn present(source: &Opened) -> Vec<(u64, u64)> {
    let per_block = source.header.as_ref().map_or(4096, |h| u64::from(h.block_bytes) / 512);
    let fixed = source.header.is_none();
    let blocks = source.sectors.div_ceil(per_block);
    let there = |block: &u64| {
        let entry = usize::try_from(*block).ok().and_then(|at| source.bat.get(at));
        fixed || entry.is_some_and(|entry| *entry != UNUSED)
    };
    let span = |block: u64| {
        let start = block * per_block;
        (start, per_block.min(source.sectors - start))
    };
    (0..blocks).filter(there).map(span).collect()
}
