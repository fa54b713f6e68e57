//! A file system of one file that hangs or fails on command. Needs root and /dev/fuse.
//!
//! The protocol is that of linux/fuse.h, version 7.31, as far as one open file needs it.
use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

const FILE: u64 = 2;
/// Longest data of one request.
const WRITE_MAX: u32 = 128 << 10;
const ASYNC_DIO: u32 = 1 << 15;
/// FUSE_ASYNC_READ: reading ahead waits for nobody, as on other file systems.
const ASYNC_READ: u32 = 1;

/// The mounted file system.
pub struct Hanging {
    dir: tempfile::TempDir,
    shared: Arc<Shared>,
}

struct Shared {
    device: File,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// Reads and writes get no answer.
    hold: bool,
    held: Vec<Vec<u8>>,
    /// Errors of the next reads and writes.
    errors: VecDeque<i32>,
    /// The error of all of them.
    always: i32,
    /// The next write there is neither done nor answered.
    late: Option<u64>,
    /// It has come.
    waiting: Option<Vec<u8>>,
    /// What is opened without O_DIRECT goes through the page cache.
    page_cache: bool,
}

impl Hanging {
    /// A file of so many zeros; `None` where it cannot be mounted.
    pub fn mount(bytes: usize) -> Option<Hanging> {
        let device = File::options().read(true).write(true).open("/dev/fuse").ok()?;
        let dir = tempfile::tempdir().unwrap();
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        if !mount(dir.path(), &data) {
            return None;
        }
        let state = Mutex::new(State { bytes: vec![0; bytes], ..State::default() });
        let shared = Arc::new(Shared { device, state, changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        std::thread::spawn(move || theirs.serve());
        Some(Hanging { dir, shared })
    }

    /// From now on, what is opened without O_DIRECT goes through the page cache.
    pub fn use_page_cache(&self) {
        self.shared.state.lock().unwrap().page_cache = true;
    }

    /// The file.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// From now on reads and writes hang.
    pub fn hold(&self) {
        self.shared.state.lock().unwrap().hold = true;
    }

    /// Waits until `n` of them do.
    pub fn wait_for_held(&self, n: usize) {
        let state = self.shared.state.lock().unwrap();
        let waiting =
            self.shared.changed.wait_timeout_while(state, super::PATIENCE, |s| s.held.len() < n);
        assert!(!waiting.unwrap().1.timed_out(), "{n} requests hang");
    }

    /// They all go on.
    pub fn release(&self) {
        let mut state = self.shared.state.lock().unwrap();
        state.hold = false;
        for reply in std::mem::take(&mut state.held) {
            self.shared.send(&reply);
        }
    }

    /// Puts bytes at the beginning of the file.
    pub fn put(&self, bytes: &[u8]) {
        self.shared.state.lock().unwrap().bytes[..bytes.len()].copy_from_slice(bytes);
    }

    /// What the file has there.
    pub fn bytes(&self, at: usize, count: usize) -> Vec<u8> {
        self.shared.state.lock().unwrap().bytes[at..at + count].to_vec()
    }

    /// The next write at this offset is a slow one: neither done nor answered before `land`.
    pub fn delay_write(&self, at: u64) {
        self.shared.state.lock().unwrap().late = Some(at);
    }

    /// Waits until it has come.
    pub fn wait_for_delayed(&self) {
        let state = self.shared.state.lock().unwrap();
        let none = |state: &mut State| state.waiting.is_none();
        let waiting = self.shared.changed.wait_timeout_while(state, super::PATIENCE, none);
        assert!(!waiting.unwrap().1.timed_out(), "the slow write comes");
    }

    /// It is done now.
    pub fn land(&self) {
        let mut state = self.shared.state.lock().unwrap();
        let request = state.waiting.take().expect("a slow write");
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        let reply = transfer(&mut state, 16, long(48), &request[40..]);
        self.shared.send(&frame(long(8), Ok(reply)));
    }

    /// The next reads and writes fail so.
    pub fn fail_next(&self, errors: &[i32]) {
        self.shared.state.lock().unwrap().errors = errors.iter().copied().collect();
    }

    /// All of them fail so from now on; 0: no more.
    pub fn fail_always(&self, errno: i32) {
        self.shared.state.lock().unwrap().always = errno;
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.release();
        if self.shared.state.lock().unwrap().waiting.is_some() {
            self.land();
        }
        let path = CString::new(self.dir.path().as_os_str().as_bytes()).unwrap();
        // SAFETY: a path that outlives the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

fn mount(dir: &Path, data: &str) -> bool {
    let target = CString::new(dir.as_os_str().as_bytes()).unwrap();
    let (source, kind, data) = (c"tapdisk-test", c"fuse", CString::new(data).unwrap());
    // SAFETY: strings that outlive the call.
    unsafe {
        libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, data.as_ptr().cast()) == 0
    }
}

impl Shared {
    fn serve(&self) {
        let mut request = vec![0; WRITE_MAX as usize + 4096];
        // Ends when the file system is gone.
        while let Ok(n) = (&self.device).read(&mut request) {
            self.answer(&request[..n]);
        }
    }

    fn send(&self, reply: &[u8]) {
        let _ = (&self.device).write_all(reply);
    }

    fn answer(&self, request: &[u8]) {
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        let (opcode, unique, node) = (word(4), long(8), long(16));
        let mut state = self.state.lock().unwrap();
        let size = state.bytes.len() as u64;
        let result = match opcode {
            1 => Ok(entry(size)),
            2 | 36 | 42 => return,
            3 => Ok([vec![0; 16], attributes(node, size)].concat()),
            4 => {
                if word(40) & 8 != 0 {
                    state.bytes.resize(long(56) as usize, 0);
                }
                Ok([vec![0; 16], attributes(node, state.bytes.len() as u64)].concat())
            }
            14 => {
                // FOPEN_DIRECT_IO.
                let flags = u32::from(!state.page_cache);
                Ok([&1u64.to_ne_bytes()[..], &flags.to_ne_bytes(), &[0; 4]].concat())
            }
            16 if state.late == Some(long(48)) => {
                state.late = None;
                state.waiting = Some(request.to_vec());
                self.changed.notify_all();
                return;
            }
            15 | 16 => {
                let reply = match (state.always, state.errors.pop_front()) {
                    (0, None | Some(0)) => {
                        Ok(transfer(&mut state, opcode, long(48), &request[40..]))
                    }
                    (0, Some(errno)) | (errno, _) => Err(errno),
                };
                let reply = frame(unique, reply);
                if state.hold {
                    state.held.push(reply);
                    self.changed.notify_all();
                } else {
                    self.send(&reply);
                }
                return;
            }
            17 => Ok(vec![0; 80]),
            18 | 20 | 25 | 27 | 29 | 30 | 34 | 38 => Ok(Vec::new()),
            26 => Ok(init()),
            _ => Err(libc::ENOSYS),
        };
        self.send(&frame(unique, result));
    }
}

fn frame(unique: u64, result: Result<Vec<u8>, i32>) -> Vec<u8> {
    let (error, body) = result.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
    let bytes = 16 + body.len() as u32;
    [&bytes.to_ne_bytes()[..], &error.to_ne_bytes(), &unique.to_ne_bytes(), &body].concat()
}

/// READ and WRITE have offset and size at the same places.
fn transfer(state: &mut State, opcode: u32, at: u64, body: &[u8]) -> Vec<u8> {
    let bytes = u32::from_ne_bytes(body[16..20].try_into().unwrap()) as usize;
    let from = at as usize;
    if opcode == 15 {
        let from = from.min(state.bytes.len());
        let to = (from + bytes).min(state.bytes.len());
        return state.bytes[from..to].to_vec();
    }
    let end = from + bytes;
    if end > state.bytes.len() {
        state.bytes.resize(end, 0);
    }
    state.bytes[from..end].copy_from_slice(&body[40..40 + bytes]);
    [&(bytes as u32).to_ne_bytes()[..], &[0; 4]].concat()
}

fn init() -> Vec<u8> {
    let mut out = vec![0; 64];
    let mut word = |at: usize, value: u32| out[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    word(0, 7);
    word(4, 31);
    word(12, ASYNC_READ | ASYNC_DIO);
    word(16, 64 | 48 << 16);
    word(20, WRITE_MAX);
    word(24, 1);
    out
}

fn entry(size: u64) -> Vec<u8> {
    [&FILE.to_ne_bytes()[..], &[0; 32], &attributes(FILE, size)].concat()
}

fn attributes(node: u64, size: u64) -> Vec<u8> {
    let mode: u32 = if node == FILE { libc::S_IFREG | 0o644 } else { libc::S_IFDIR | 0o755 };
    let mut out = vec![0; 88];
    out[..8].copy_from_slice(&node.to_ne_bytes());
    out[8..16].copy_from_slice(&size.to_ne_bytes());
    out[60..64].copy_from_slice(&mode.to_ne_bytes());
    out[64..68].copy_from_slice(&1u32.to_ne_bytes());
    out[80..84].copy_from_slice(&4096u32.to_ne_bytes());
    out
}
