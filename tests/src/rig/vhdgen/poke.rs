//! Damage that keeps the checksum right, so that the field itself is what is wrong.
use std::path::Path;

use super::checksum;
use crate::rig::files;

/// Changes bytes of both footers of a dynamic image.
pub fn poke_footers(path: &Path, field: usize, bytes: &[u8]) {
    poke_footer(path, 0, field, bytes);
    poke_footer(path, files::size(path) - 512, field, bytes);
}

/// Changes bytes of the footer at a place of the file.
pub fn poke_footer(path: &Path, at: u64, field: usize, bytes: &[u8]) {
    change(path, at, (512, 64), field, bytes);
}

/// Changes bytes of the header.
pub fn poke_header(path: &Path, field: usize, bytes: &[u8]) {
    change(path, 512, (1024, 36), field, bytes);
}

fn change(path: &Path, at: u64, (length, sum): (usize, usize), field: usize, bytes: &[u8]) {
    let mut block = files::bytes_at(path, at, length);
    block[field..field + bytes.len()].copy_from_slice(bytes);
    block[sum..sum + 4].fill(0);
    let right = checksum(&block);
    block[sum..sum + 4].copy_from_slice(&right.to_be_bytes());
    files::poke(path, at, &block);
}
