//! A tapdisk that knows rings: it keeps those that it was told of, and what it was told.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;
use tap_ctl::messages::{Blkif, ImageInfo, Message, Rates, Request, kind, validate_request};

const WAIT: Duration = Duration::from_secs(20);

/// (frontend domain, device, queue)
pub type RingName = (u32, u32, u32);

#[derive(Default)]
pub struct State {
    pub rings: BTreeMap<RingName, (u16, Blkif)>,
    pub connects: u32,
    pub disconnects: u32,
    pub questions: u32,
    /// Answer nothing.
    pub stalled: bool,
    /// Refuse to connect, with this errno.
    pub refuse: Option<i32>,
    /// Know nothing of queues, as the original.
    pub old: bool,
    pub image: ImageInfo,
    /// Limits that were asked for.
    pub limits: Vec<(u16, Rates)>,
    dead: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

pub struct Tapdisk {
    pub pid: i32,
    socket: PathBuf,
    shared: Arc<Shared>,
}

impl Tapdisk {
    /// With an image of 1 MiB behind every minor below 100.
    pub fn start(run: &Path, pid: i32) -> Tapdisk {
        let socket = run.join(format!("ctl{pid}"));
        let listener = UnixListener::bind(&socket).expect("a control socket");
        let image = ImageInfo { sectors: 2048, sector_size: 512, ..ImageInfo::default() };
        let state = Mutex::new(State { image, ..State::default() });
        let shared = Arc::new(Shared { state, changed: Condvar::new() });
        let served = Arc::clone(&shared);
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if served.lock().dead {
                    return;
                }
                let shared = Arc::clone(&served);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Tapdisk { pid, socket, shared }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }

    pub fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.shared.changed.notify_all();
    }

    /// Killed: its socket stays and refuses.
    pub fn kill(&self) {
        self.set(|state| state.dead = true);
        // The listener wakes, sees it, and goes.
        drop(UnixStream::connect(&self.socket));
        while UnixStream::connect(&self.socket).is_ok() {
            std::thread::yield_now();
        }
    }

    pub fn wait(&self, what: &str, mut done: impl FnMut(&State) -> bool) {
        let state = self.state();
        let waiting = |state: &mut State| !done(state);
        let (state, waited) =
            self.shared.changed.wait_timeout_while(state, WAIT, waiting).expect("no panic");
        let rings: Vec<RingName> = state.rings.keys().copied().collect();
        // A panic that holds the lock would be followed by one in a destructor, and nothing said.
        drop(state);
        assert!(!waited.timed_out(), "tapdisk {} never saw: {what}; {rings:?}", self.pid);
    }
}

impl Drop for Tapdisk {
    fn drop(&mut self) {
        self.set(|state| (state.dead, state.stalled) = (true, false));
        drop(UnixStream::connect(&self.socket));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }
}

fn serve(mut stream: UnixStream, shared: &Shared) {
    let mut frame = [0; 544];
    if stream.read_exact(&mut frame).is_err() {
        return;
    }
    let state = shared.lock();
    let mut state = shared.changed.wait_while(state, |s| s.stalled).expect("no panic");
    if state.dead {
        return;
    }
    let reply = match validate_request(&frame) {
        Ok(request) => answer(&mut state, &request),
        Err(reason) => reason.reply(&frame),
    };
    drop(state);
    shared.changed.notify_all();
    // Whoever asked may have given up.
    let _ = stream.write_all(reply.as_bytes());
}

fn answer(state: &mut State, request: &Request) -> Message {
    let refuse = |errno| Message::error(request.cookie(), errno);
    match *request {
        Request::Connect { minor, .. } | Request::DiskInfo { minor } if minor >= 100 => refuse(19),
        Request::DiskInfo { minor } => {
            state.questions += 1;
            Message::with(kind::DISK_INFO_RSP, minor, &state.image)
        }
        Request::Connect { minor, blkif } => {
            state.connects += 1;
            let queue = if state.old { 0 } else { blkif.queue };
            let name = (blkif.domid, blkif.devid, queue);
            match state.refuse {
                Some(errno) => return refuse(errno),
                None if state.rings.contains_key(&name) => return refuse(114),
                None => {}
            }
            state.rings.insert(name, (minor, blkif));
            Message::new(kind::XENBLKIF_CONNECT_RSP, minor)
        }
        Request::Disconnect { domid, devid } => {
            state.disconnects += 1;
            let before = state.rings.len();
            state.rings.retain(|(a, b, _), _| (*a, *b) != (domid, devid));
            match state.rings.len() == before {
                true => refuse(19),
                false => Message::new(kind::XENBLKIF_DISCONNECT_RSP, 0),
            }
        }
        Request::Limit { minor, rates } if !state.old => {
            state.limits.push((minor, rates));
            Message::with(kind::LIMIT_RSP, minor, &rates)
        }
        _ => refuse(22),
    }
}
