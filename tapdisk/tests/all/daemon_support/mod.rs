//! The real daemon in a run directory of its own, and the control protocol byte by byte. Nothing
//! here sleeps: whatever is waited for has an event or a deadline.
pub mod fuse;
pub mod images;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tap_ctl::messages::{ImageInfo, MESSAGE_BYTES, Message, NO_PARENT, Params, Text, flag, kind};
pub use test_support::{PATIENCE, skip, sys::is_root, until};
use test_support::{nbd, surround, sys};

/// A running tapdisk. It is killed when this goes, if it is still there.
pub struct Daemon {
    pub pid: i32,
    pub run: PathBuf,
    pub logs: PathBuf,
    pidfd: OwnedFd,
    _dir: Option<tempfile::TempDir>,
}

/// The program under test.
pub fn program() -> PathBuf {
    test_support::program!("tapdisk")
}

/// How to start one.
pub fn command(run: &Path) -> Command {
    let mut command = Command::new(program());
    surround(&mut command, run, &run.join("log"));
    command.env("TAPDISK_SEAL_TRACE", run.join("log-seal")).stdin(Stdio::null());
    command
}

/// Runs a command to the end of its output; fails if that does not come.
pub fn output(mut command: Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    // Another test's fork may hold a program that was just copied open for a moment.
    let mut child = loop {
        match command.spawn() {
            Err(e) if e.raw_os_error() == Some(libc::ETXTBSY) => std::thread::yield_now(),
            other => break other.expect("starts"),
        }
    };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    read_to_end(child.stdout.take().expect("piped"), &mut stdout);
    read_to_end(child.stderr.take().expect("piped"), &mut stderr);
    let status = child.wait().expect("ends");
    Output { status, stdout, stderr }
}

fn read_to_end(mut from: impl Read + AsRawFd, into: &mut Vec<u8>) {
    let mut part = [0; 4096];
    loop {
        assert!(sys::wait_readable(&from, PATIENCE), "the end of a program's output");
        match from.read(&mut part).expect("a pipe can be read") {
            0 => return,
            n => into.extend_from_slice(&part[..n]),
        }
    }
}

impl Daemon {
    pub fn spawn() -> Daemon {
        Daemon::spawn_with(|_| {})
    }

    pub fn spawn_with(change: impl FnOnce(&mut Command)) -> Daemon {
        tap_ctl::sys::settle_umask();
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut daemon = Daemon::spawn_in(dir.path(), change);
        daemon._dir = Some(dir);
        daemon
    }

    /// In a run directory of somebody else's.
    pub fn spawn_in(run: &Path, change: impl FnOnce(&mut Command)) -> Daemon {
        let mut start = command(run);
        change(&mut start);
        let out = output(start);
        let said = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(
            out.status.success(),
            "{:?} {said} {:?}",
            out.status,
            out.stderr.escape_ascii().to_string()
        );
        let ctl = Path::new(said.trim_end());
        let pid =
            tap_ctl::paths::pid_of_ctl(ctl).unwrap_or_else(|| panic!("a control path: {said}"));
        assert_eq!(ctl.parent(), Some(run));
        let pidfd = sys::pidfd(pid).unwrap_or_else(|e| panic!("tapdisk {pid} runs: {e}"));
        Daemon { pid, run: run.to_owned(), logs: run.join("log"), pidfd, _dir: None }
    }

    /// A daemon whose minor 0 is attached.
    pub fn attached() -> Daemon {
        let daemon = Daemon::spawn();
        daemon.attach(0);
        daemon
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.run.join(format!("{name}{}", self.pid))
    }

    /// `nbd<pid>.<minor>` and the like.
    pub fn socket(&self, stem: &str, minor: u16) -> PathBuf {
        self.run.join(format!("{stem}{}.{minor}", self.pid))
    }

    pub fn connect(&self) -> Client {
        let stream = UnixStream::connect(self.path("ctl")).expect("the control socket accepts");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        Client { stream }
    }

    /// One request and its whole reply.
    pub fn call(&self, request: &Message, extra: &[u8]) -> Reply {
        let mut client = self.connect();
        client.send(request, extra);
        client.reply()
    }

    /// A request about a minor: 0 or the errno.
    #[track_caller]
    pub fn ask(&self, number: u16, minor: u16) -> i32 {
        self.call(&Message::new(number, minor), &[]).errno()
    }

    pub fn marker(&self, minor: u16) -> PathBuf {
        let dir = self.run.join("tapdisk");
        fs::create_dir_all(&dir).expect("the markers' directory");
        // A daemon of another user looks at them, whatever the umask here.
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).expect("its mode");
        dir.join(format!("tapdisk-{minor}"))
    }

    pub fn attach(&self, minor: u16) {
        let marker = File::create(self.marker(minor)).expect("a marker");
        marker.set_permissions(PermissionsExt::from_mode(0o644)).expect("its mode");
        assert_eq!(self.ask(kind::ATTACH, minor), 0);
    }

    pub fn open(&self, minor: u16, name: &str) -> i32 {
        self.open_with(minor, name, |_| {})
    }

    pub fn open_with(&self, minor: u16, name: &str, change: impl FnOnce(&mut Params)) -> i32 {
        self.call(&open(minor, name, change), &[]).errno()
    }

    pub fn resume(&self, minor: u16, name: &str) -> i32 {
        let params = Params { path: text(name), ..Params::default() };
        self.call(&Message::with(kind::RESUME, minor, &params), &[]).errno()
    }

    /// (minor, state, name) of each disk.
    pub fn list(&self) -> Vec<(i32, u32, String)> {
        let reply = self.call(&Message::new(kind::LIST, 0xffff), &[]);
        let entries = reply.bytes.chunks(MESSAGE_BYTES).map(|frame| {
            let at = |i| u32::from_ne_bytes(frame[i..i + 4].try_into().expect("four bytes"));
            let name = frame[20..276].split(|b| *b == 0).next().expect("a name");
            (at(8), at(12) as i32, at(16), String::from_utf8_lossy(name).into_owned())
        });
        let entries: Vec<_> = entries.collect();
        let n = entries.len() as u32 - 1;
        assert!(entries.iter().map(|e| e.0).eq((0..=n).rev()), "counts descend to 0");
        assert_eq!(entries.last().map(|e| (e.1, e.3.as_str())), Some((-1, "")));
        entries
            .into_iter()
            .take(n as usize)
            .map(|(_, minor, state, name)| (minor, state, name))
            .collect()
    }

    pub fn state(&self, minor: u16) -> u32 {
        self.list().into_iter().find(|e| e.0 == i32::from(minor)).expect("listed").1
    }

    /// The text of STATS.
    pub fn stats_text(&self, minor: u16) -> String {
        let reply = self.call(&Message::new(kind::STATS, minor), &[]);
        assert_eq!(reply.kind(), kind::STATS_RSP);
        let length = u64::from_ne_bytes(reply.bytes[16..24].try_into().expect("eight bytes"));
        let text = &reply.bytes[MESSAGE_BYTES..];
        assert_eq!(text.len() as u64, length, "the length is that of what follows");
        String::from_utf8(text.to_vec()).expect("UTF-8")
    }

    pub fn stats(&self, minor: u16) -> serde_json::Value {
        serde_json::from_str(&self.stats_text(minor)).expect("JSON")
    }

    pub fn nbd(&self, minor: u16) -> nbd::Client {
        nbd::Client::connect_plainly(&self.socket("nbd", minor))
    }

    pub fn signal(&self, number: i32) {
        assert!(self.is_running(), "signal {number}");
        sys::kill(&self.pidfd, number);
    }

    /// Waits for the end of the process.
    pub fn wait_for_end(&self) {
        assert!(sys::wait_readable(&self.pidfd, PATIENCE), "tapdisk ends");
    }

    pub fn is_running(&self) -> bool {
        !sys::wait_readable(&self.pidfd, Duration::ZERO)
    }

    /// Names in the run directory, without pids and without what tests put there.
    pub fn names(&self) -> Vec<String> {
        names(&self.run).into_iter().map(|name| name.replace(&self.pid.to_string(), "P")).collect()
    }

    /// All that was logged to files.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    pub fn log_file(&self) -> PathBuf {
        self.logs.join(format!("tapdisk.{}.log", self.pid))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let trace = fs::read_to_string(self.run.join("log-seal")).unwrap_or_default();
            eprintln!("log of tapdisk {}:\n{}{trace}", self.pid, self.log());
        }
        // An error means that it has ended already.
        sys::kill(&self.pidfd, libc::SIGKILL);
        sys::wait_readable(&self.pidfd, PATIENCE);
    }
}

/// A connection to a control socket.
pub struct Client {
    pub stream: UnixStream,
}

impl Client {
    pub fn send(&mut self, request: &Message, extra: &[u8]) {
        // In two writes, as the original's tap-ctl does.
        self.stream.write_all(request.as_bytes()).expect("sent");
        if !extra.is_empty() {
            let _ = self.stream.write_all(extra);
        }
    }

    /// Everything until the daemon closes.
    pub fn reply(&mut self) -> Reply {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(e) if e.raw_os_error() == Some(libc::ECONNRESET) => {}
            Err(e) => panic!("a reply: {e}"),
        }
        Reply { bytes }
    }

    /// Whether a reply has begun to arrive within `limit`.
    pub fn has_reply(&self, limit: Duration) -> bool {
        sys::wait_readable(&self.stream, limit)
    }
}

/// A reply as it came.
pub struct Reply {
    pub bytes: Vec<u8>,
}

impl Reply {
    pub fn message(&self) -> Message {
        let frame =
            self.bytes.first_chunk().unwrap_or_else(|| panic!("{} bytes", self.bytes.len()));
        Message::decode(frame)
    }

    pub fn kind(&self) -> u16 {
        self.message().kind()
    }

    /// 0, or the errno of an ERROR, which always says why.
    #[track_caller]
    pub fn errno(&self) -> i32 {
        if self.kind() != kind::ERROR {
            return 0;
        }
        let errno = i32::from_ne_bytes(self.bytes[8..12].try_into().expect("four bytes"));
        let why = self.message().reason();
        assert!(why.is_some_and(|why| why.contains(' ')), "no reason beside errno {errno}");
        errno
    }

    pub fn info(&self) -> ImageInfo {
        self.message().body().expect("an image")
    }
}

pub fn text(value: &str) -> Text {
    Text::new(value.as_bytes()).expect("short enough")
}

pub fn open(minor: u16, name: &str, change: impl FnOnce(&mut Params)) -> Message {
    let mut params = Params { path: text(name), prt_devnum: NO_PARENT, ..Params::default() };
    change(&mut params);
    Message::with(kind::OPEN, minor, &params)
}

pub fn read_only(params: &mut Params) {
    params.flags |= flag::RDONLY;
}

pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).map(|entries| entries.flatten().collect()).unwrap_or_default();
    let entries: Vec<fs::DirEntry> = entries;
    let mut names: Vec<String> =
        entries.iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|name| name != "log");
    names.sort();
    names
}

/// Sends a descriptor with a text to a receiver, and waits until it has been read.
pub fn pass(receiver: &Path, text: &str, fd: &impl AsRawFd) {
    let stream = UnixStream::connect(receiver).expect("the receiver accepts");
    let mut room = [0u64; 4];
    let mut part = libc::iovec { iov_base: text.as_ptr().cast_mut().cast(), iov_len: text.len() };
    // SAFETY: zeros are a valid msghdr; it names memory that outlives the call; `room` is large
    // enough for one descriptor and aligned for its header.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &mut part;
        header.msg_iovlen = 1;
        header.msg_control = room.as_mut_ptr().cast();
        header.msg_controllen = libc::CMSG_SPACE(4) as _;
        let control = libc::CMSG_FIRSTHDR(&header);
        (*control).cmsg_level = libc::SOL_SOCKET;
        (*control).cmsg_type = libc::SCM_RIGHTS;
        (*control).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(control).cast::<i32>().write_unaligned(fd.as_raw_fd());
        assert_eq!(libc::sendmsg(stream.as_raw_fd(), &header, 0), text.len() as isize);
    }
    // Closed by the receiver once it has read.
    assert!(sys::wait_readable(&stream, PATIENCE), "the receiver reads");
}

pub fn set<K: AsRef<OsStr>>(name: K, value: &str) -> impl FnOnce(&mut Command) {
    let (name, value) = (name.as_ref().to_owned(), value.to_owned());
    move |command| {
        command.env(name, value);
    }
}
