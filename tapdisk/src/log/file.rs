//! The log file of warnings: `tapdisk.<pid>.log`.
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::stamp;
use host::sys::LocalTime;

/// Bytes that wait in memory (spec/operations.md §3).
const BUFFER_BYTES: usize = 16 << 10;

/// The file. It exists from the first warning or report on.
pub struct LogFile {
    pid: i32,
    dirs: Vec<PathBuf>,
    open: Option<(PathBuf, File)>,
    buffer: Vec<u8>,
    missing: u64,
    warnings: u64,
    keep: bool,
    serving: bool,
    /// The file is that of another program of this process.
    goes_on: bool,
}

impl LogFile {
    pub fn new(pid: i32, dirs: Vec<PathBuf>) -> LogFile {
        LogFile {
            pid,
            dirs,
            open: None,
            buffer: Vec::new(),
            missing: 0,
            warnings: 0,
            keep: false,
            serving: false,
            goes_on: false,
        }
    }

    /// Lines are added to a file that is there, which stays at the end.
    pub fn go_on(pid: i32, dirs: Vec<PathBuf>) -> LogFile {
        let path = |dir: &PathBuf| name(dir, pid);
        let there = dirs.iter().map(path).any(|path| path.is_file());
        LogFile { goes_on: there, keep: there, ..LogFile::new(pid, dirs) }
    }

    /// A line that also keeps the file at the end.
    pub fn warning(&mut self, now: &LocalTime, text: &str) {
        self.warnings += 1;
        self.note(now, text);
    }

    /// A line that does not.
    pub fn note(&mut self, now: &LocalTime, text: &str) {
        self.line(now, text);
        if !self.serving {
            self.flush();
        }
    }

    /// A line. `Mmm dd hh:mm:ss: [hh:mm:ss.mmm] text`.
    pub fn line(&mut self, now: &LocalTime, text: &str) {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(BUFFER_BYTES);
        }
        if self.open.is_none() && self.buffer.is_empty() {
            self.put(now, &format!("tapdisk[{}]: log start, level 0", self.pid));
        }
        self.put(now, text);
    }

    fn put(&mut self, now: &LocalTime, text: &str) {
        let ([h, m, s], ms) = (now.clock, now.millis);
        let line = format!("{}: [{h:02}:{m:02}:{s:02}.{ms:03}] {text}\n", stamp(now));
        if self.buffer.len() + line.len() > BUFFER_BYTES && !self.serving {
            self.flush();
        }
        if self.buffer.len() + line.len() > BUFFER_BYTES {
            self.missing += 1;
        } else {
            self.buffer.extend_from_slice(line.as_bytes());
        }
    }

    /// Writes what waits. What cannot be written is forgotten: there is nobody left to tell.
    pub fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        if self.open.is_none() {
            self.open =
                self.dirs.iter().find_map(|dir| create(dir.clone(), self.pid, self.goes_on));
        }
        if let Some((_, file)) = &mut self.open {
            let _ = file.write_all(&self.buffer);
            if self.missing > 0 {
                let _ =
                    writeln!(file, "{} lines were dropped while a disk was served", self.missing);
                self.missing = 0;
            }
        }
        self.buffer.clear();
    }

    pub fn keep(&mut self) {
        self.keep = true;
    }

    pub fn set_serving(&mut self, serving: bool) {
        self.serving = serving;
        if !serving {
            self.flush();
        }
    }

    /// After a rename the next line starts a new file; without one the file starts again.
    pub fn reopen(&mut self) {
        self.flush();
        if self.open.take().is_some() {
            self.line(&host::sys::local_time(), "log reopened");
            self.flush();
        }
    }

    pub fn close(&mut self, now: &LocalTime) {
        if self.open.is_none() && self.buffer.is_empty() {
            return;
        }
        let text = format!("tapdisk[{}]: closing log, {} errors", self.pid, self.warnings);
        self.put(now, &text);
        self.flush();
        let Some((path, _)) = self.open.take() else { return };
        if self.warnings == 0 && !self.keep {
            let _ = fs::remove_file(path);
        }
    }
}

fn name(dir: &Path, pid: i32) -> PathBuf {
    dir.join(format!("tapdisk.{pid}.log"))
}

fn create(dir: PathBuf, pid: i32, goes_on: bool) -> Option<(PathBuf, File)> {
    let _ = DirBuilder::new().recursive(true).mode(0o755).create(&dir);
    let path = name(&dir, pid);
    // Not through somebody's symbolic link, and no waiting for the reader of his pipe.
    let mut how = OpenOptions::new();
    how.write(true).append(goes_on).create(true).truncate(false).mode(0o644);
    let file = how.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(&path).ok()?;
    // Before it is cut: the folder may be one in which others make names and links.
    let meta = file.metadata().ok()?;
    let ours = meta.is_file() && meta.uid() == tap_ctl::sys::euid() && meta.nlink() == 1;
    (ours && (goes_on || file.set_len(0).is_ok())).then_some((path, file))
}
