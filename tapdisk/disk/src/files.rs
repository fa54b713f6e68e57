//! The open files of an engine: descriptors by position, and which of them are block devices.
#![allow(unsafe_code)]
use std::io;
use std::os::fd::RawFd;

use request::disk::FileId;

/// An open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// The caller's descriptor.
    pub fd: RawFd,
    /// It is a block device: some operations are done another way.
    pub block: bool,
    /// A file or device that was opened without O_DIRECT: its data go through the page cache. What
    /// stands in for a remote layer is neither.
    pub cached: bool,
}

/// The table. It never grows beyond the size given at open.
#[derive(Debug)]
pub(super) struct Files {
    files: Vec<File>,
    files_max: u8,
}

impl Files {
    /// An empty table with room for `files_max`.
    pub fn new(files_max: u8) -> Files {
        Files { files: Vec::with_capacity(usize::from(files_max)), files_max }
    }

    /// Replaces all files; unchanged on error.
    pub fn set(&mut self, fds: &[RawFd]) -> io::Result<()> {
        if fds.len() > usize::from(self.files_max) {
            let text =
                format!("{} files, where the engine was opened for {}", fds.len(), self.files_max);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let looked: io::Result<Vec<File>> = fds.iter().map(|&fd| look(fd)).collect();
        let looked = looked?;
        self.files.clear();
        self.files.extend(looked);
        Ok(())
    }

    /// The file an operation names.
    pub fn get(&self, id: FileId) -> File {
        *self.files.get(usize::from(id.0)).expect("an operation names a file of set_files")
    }

    /// Whether one of them is a block device.
    pub fn any_block(&self) -> bool {
        self.files.iter().any(|file| file.block)
    }

    /// Whether one of them goes through the page cache.
    pub fn any_cached(&self) -> bool {
        self.files.iter().any(|file| file.cached)
    }

    /// Descriptors for the kernel's table of `files_max` entries, -1 where there is none.
    pub fn table(&self) -> Vec<RawFd> {
        let mut table: Vec<RawFd> = self.files.iter().map(|file| file.fd).collect();
        table.resize(usize::from(self.files_max), -1);
        table
    }
}

fn look(fd: RawFd) -> io::Result<File> {
    let mut stat = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills the structure, which outlives the call.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: fstat succeeded, so it is filled.
    let kind = unsafe { stat.assume_init() }.st_mode & libc::S_IFMT;
    let block = kind == libc::S_IFBLK;
    Ok(File { fd, block, cached: (block || kind == libc::S_IFREG) && !is_direct(fd) })
}

/// Whether it was opened with O_DIRECT.
pub(super) fn is_direct(fd: RawFd) -> bool {
    // SAFETY: F_GETFL takes and gives numbers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_DIRECT != 0
}
