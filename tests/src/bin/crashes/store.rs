//! A file server of one file, `disk`, that logs what is written and flushed, and shows what a power
//! cut would have left. The protocol is that of linux/fuse.h, version 7.31.
use std::collections::HashMap;
use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

const PAGE: usize = 4096;
/// Longest data of one request.
const WRITE_MAX: u32 = 256 << 10;
const BIG_WRITES: u32 = 1 << 5;
const FOLDER: u64 = 1;
const DISK: u64 = 2;

/// What was done.
enum Record {
    Write(u64, Vec<u8>),
    Flush,
}

type Pages = HashMap<u64, Box<[u8; PAGE]>>;

#[derive(Default)]
struct State {
    bytes: u64,
    /// On the medium.
    pages: Pages,
    /// What counts in its place since the last cut.
    above: Pages,
    log: Vec<Record>,
    recorded: bool,
    /// So much of the log is on the medium.
    done: usize,
    /// What there was before the log.
    blank: Pages,
}

/// The file server, until it is dropped.
pub struct Store {
    folder: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Store {
    /// Serves the contents of a file in a new folder, and begins to log.
    ///
    /// # Errors
    /// Those of `/dev/fuse`, which takes root.
    pub fn mount(folder: &Path, contents: &Path) -> io::Result<Store> {
        std::fs::create_dir(folder)?;
        let device = File::options().read(true).write(true).open("/dev/fuse")?;
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let target = CString::new(folder.as_os_str().as_bytes())?;
        let (source, kind, data) = (c"crashes", c"fuse", CString::new(data)?);
        // SAFETY: strings that outlive the call.
        let mounted = unsafe {
            let data = data.as_ptr().cast();
            libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), 0, data)
        };
        if mounted != 0 {
            return Err(io::Error::last_os_error());
        }
        let mut state = State::default();
        state.load(contents)?;
        let state = Arc::new(Mutex::new(state));
        let theirs = Arc::clone(&state);
        std::thread::spawn(move || serve(&device, &theirs));
        Ok(Store { folder: folder.into(), state })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("the server lives")
    }

    /// The file.
    pub fn file(&self) -> PathBuf {
        self.folder.join("disk")
    }

    /// How many records there are.
    pub fn records(&self) -> usize {
        self.state().log.len()
    }

    /// From now on nothing is logged. The number of records, and which of them are flushes.
    pub fn stop_recording(&self) -> (usize, Vec<usize>) {
        let mut state = self.state();
        state.recorded = true;
        state.pages = std::mem::take(&mut state.blank);
        let flushes = (0..state.log.len()).filter(|i| matches!(state.log[*i], Record::Flush));
        (state.log.len(), flushes.collect())
    }

    /// Shows what is left when the power goes at a record, later than the last one: all before the
    /// last flush, and of the rest those pieces of so many bytes that `lands` says. The record of
    /// that flush.
    pub fn cut(&self, record: usize, piece: usize, mut lands: impl FnMut(usize) -> bool) -> usize {
        let mut state = self.state();
        let state = &mut *state;
        let flush = |i: &usize| matches!(state.log[*i], Record::Flush);
        let flushed = (0..record).rev().find(flush).unwrap_or(0).max(state.done);
        for step in &state.log[state.done..flushed] {
            if let Record::Write(at, data) = step {
                put(&mut state.pages, None, *at, data);
            }
        }
        state.done = flushed;
        state.above.clear();
        for (i, step) in state.log[..record].iter().enumerate().skip(flushed) {
            let Record::Write(at, data) = step else { continue };
            let mut done = 0;
            while done < data.len() {
                let at = *at + done as u64;
                let bytes = (piece - at as usize % piece).min(data.len() - done);
                if lands(i) {
                    put(&mut state.above, Some(&state.pages), at, &data[done..done + bytes]);
                }
                done += bytes;
            }
        }
        flushed
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let path = CString::new(self.folder.as_os_str().as_bytes()).expect("no NUL in a path");
        // SAFETY: a path that outlives the call.
        unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
    }
}

/// Puts bytes into pages; what a new page holds elsewhere comes from below.
fn put(pages: &mut Pages, below: Option<&Pages>, at: u64, data: &[u8]) {
    let mut done = 0;
    while done < data.len() {
        let (page, from) = ((at + done as u64) / PAGE as u64, (at as usize + done) % PAGE);
        let count = (PAGE - from).min(data.len() - done);
        let old = || below.and_then(|below| below.get(&page).cloned());
        let bytes = pages.entry(page).or_insert_with(|| old().unwrap_or(Box::new([0; PAGE])));
        bytes[from..from + count].copy_from_slice(&data[done..done + count]);
        done += count;
    }
}

impl State {
    /// The pages of a file that are not zeros.
    fn load(&mut self, file: &Path) -> io::Result<()> {
        let mut file = File::open(file)?;
        self.bytes = file.metadata()?.len();
        let mut bytes = Box::new([0; PAGE]);
        for page in 0..self.bytes / PAGE as u64 {
            file.read_exact(&mut bytes[..])?;
            if bytes.iter().any(|byte| *byte != 0) {
                self.pages.insert(page, bytes.clone());
                self.blank.insert(page, bytes.clone());
            }
        }
        Ok(())
    }

    fn read(&self, at: u64, bytes: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes);
        while out.len() < bytes {
            let (page, from) =
                ((at + out.len() as u64) / PAGE as u64, (at as usize + out.len()) % PAGE);
            let count = (PAGE - from).min(bytes - out.len());
            match self.above.get(&page).or_else(|| self.pages.get(&page)) {
                Some(data) => out.extend(&data[from..from + count]),
                None => out.resize(out.len() + count, 0),
            }
        }
        out
    }

    fn write(&mut self, at: u64, data: &[u8]) {
        if self.recorded {
            put(&mut self.above, Some(&self.pages), at, data);
        } else {
            put(&mut self.pages, None, at, data);
            self.log.push(Record::Write(at, data.to_vec()));
        }
    }

    fn flush(&mut self) {
        if !self.recorded {
            self.log.push(Record::Flush);
        }
    }
}

/// Answers until the file system is gone.
fn serve(device: &File, state: &Mutex<State>) {
    let mut request = vec![0; WRITE_MAX as usize + PAGE];
    let mut device = device;
    while let Ok(count) = device.read(&mut request) {
        let request = &request[..count];
        let Some(result) = answer(request, &mut state.lock().expect("nobody panics")) else {
            continue;
        };
        let (error, body) = result.map_or_else(|errno| (-errno, Vec::new()), |body| (0, body));
        let head = [(16 + body.len() as u32).to_ne_bytes(), error.to_ne_bytes()].concat();
        let _ = device.write_all(&[&head, &request[8..16], &body].concat());
    }
}

/// `None`: there is no answer to that.
fn answer(request: &[u8], state: &mut State) -> Option<Result<Vec<u8>, i32>> {
    let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().expect("four bytes"));
    let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().expect("eight"));
    let (opcode, node) = (word(4), long(16));
    Some(match opcode {
        // lookup
        1 if &request[40..45] == b"disk\0" => {
            Ok([&DISK.to_ne_bytes()[..], &[0; 32], &attributes(DISK, state.bytes)].concat())
        }
        1 => Err(libc::ENOENT),
        // forget, interrupt
        2 | 36 | 42 => return None,
        // getattr
        3 => Ok([vec![0; 16], attributes(node, state.bytes)].concat()),
        // open: past the page cache
        14 => Ok([&1u64.to_ne_bytes()[..], &1u32.to_ne_bytes(), &[0; 4]].concat()),
        15 => Ok(state.read(long(48), word(56) as usize)),
        16 => {
            let count = word(56);
            state.write(long(48), &request[80..80 + count as usize]);
            Ok([&count.to_ne_bytes()[..], &[0; 4]].concat())
        }
        // fsync
        20 => {
            state.flush();
            Ok(Vec::new())
        }
        // release, flush, opendir, releasedir, destroy
        18 | 25 | 27 | 29 | 38 => Ok(Vec::new()),
        26 => Ok(init()),
        _ => Err(libc::ENOSYS),
    })
}

fn init() -> Vec<u8> {
    let mut out = vec![0; 64];
    let mut word = |at: usize, value: u32| out[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    word(0, 7);
    word(4, 31);
    word(8, 65536);
    word(12, BIG_WRITES);
    word(16, 32 | 24 << 16);
    word(20, WRITE_MAX);
    word(24, 1);
    word(28, 64);
    out
}

fn attributes(node: u64, size: u64) -> Vec<u8> {
    let mode: u32 = if node == FOLDER { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o600 };
    let mut out = vec![0; 88];
    out[..8].copy_from_slice(&node.to_ne_bytes());
    out[8..16].copy_from_slice(&size.to_ne_bytes());
    out[16..24].copy_from_slice(&(size / 512).to_ne_bytes());
    out[60..64].copy_from_slice(&mode.to_ne_bytes());
    out[64..68].copy_from_slice(&1u32.to_ne_bytes());
    out[80..84].copy_from_slice(&4096u32.to_ne_bytes());
    out
}
