//! A folder to work in, and the command run there.
use test_support::{Folder, program};

/// A new folder, empty.
pub(crate) fn folder() -> Folder {
    Folder::of(program!("vhd-util"))
}
