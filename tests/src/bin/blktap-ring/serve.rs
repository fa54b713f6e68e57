//! An honest server: a file is the disk.
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use tests::rig::blktap::{Control, FOLDER, FUA, Info, NOUNMAP, Request, Ring, flag, op};

/// What the command line asks for.
pub struct ServeOptions {
    /// The file that is the disk.
    pub store: String,
    /// Sector size, flags and physical sector size of the disk.
    pub sector: u32,
    pub flags: u64,
    pub physical: u32,
    /// An allocated minor to serve; none: a new one, freed at the end.
    pub minor: Option<u32>,
    /// O_DIRECT on the store: the data pages take part in device I/O.
    pub direct: bool,
    /// Never answer a request after so many.
    pub answers: u64,
    /// Where every request is written down, a line each.
    pub log: Option<String>,
    /// The operation that is answered "not supported", if any.
    pub unsupported: Option<u8>,
}

impl ServeOptions {
    fn parse(words: &[String]) -> Result<ServeOptions, String> {
        let (store, rest) = words.split_first().ok_or("serve needs a file")?;
        let mut options = ServeOptions {
            store: store.clone(),
            sector: 512,
            flags: flag::FLUSH | flag::TRIM | flag::ZEROES | flag::FUA | flag::LEVEL,
            physical: 0,
            minor: None,
            direct: false,
            answers: u64::MAX,
            log: None,
            unsupported: None,
        };
        for word in rest {
            let (key, value) = word.split_once('=').ok_or(format!("{word} is no key=value"))?;
            let digits = value.trim_start_matches("0x");
            let number = u64::from_str_radix(digits, if digits == value { 10 } else { 16 });
            let number = number.map_err(|_| format!("{word} holds no number"));
            match key {
                "sector" => options.sector = number? as u32,
                "flags" => options.flags = number?,
                "physical" => options.physical = number? as u32,
                "minor" => options.minor = Some(number? as u32),
                "direct" => options.direct = number? != 0,
                "answers" => options.answers = number?,
                "log" => options.log = Some(value.to_string()),
                "unsupported" => options.unsupported = Some(number? as u8),
                _ => return Err(format!("serve knows no {key}")),
            }
        }
        Ok(options)
    }
}

/// What was asked for, by operation, and the two flags.
#[derive(Default)]
struct Counts {
    by_operation: [u64; 5],
    fua: u64,
    nounmap: u64,
    sleeps: u64,
}

struct Server {
    ring: Ring,
    store: File,
    options: ServeOptions,
    counts: Counts,
    log: Option<File>,
}

impl Server {
    fn carry_out(&mut self, request: &Request) -> io::Result<()> {
        let place = request.sector * 512;
        let length = request.sectors * 512;
        match request.operation {
            op::READ => {
                let data = self.ring.data(request.id);
                self.store.read_exact_at(&mut data[..length as usize], place)?;
            }
            op::WRITE => {
                let data = self.ring.data(request.id);
                self.store.write_all_at(&data[..length as usize], place)?;
                if request.flags & FUA != 0 {
                    self.store.sync_data()?;
                }
            }
            op::FLUSH => self.store.sync_data()?,
            // What is trimmed is gone, so that a test sees it.
            op::TRIM => self.space(libc::FALLOC_FL_PUNCH_HOLE, place, length)?,
            op::ZEROES if request.flags & NOUNMAP != 0 => {
                let zeros = vec![0; 1 << 16];
                let mut at = place;
                while at < place + length {
                    let n = (place + length - at).min(1 << 16);
                    self.store.write_all_at(&zeros[..n as usize], at)?;
                    at += n;
                }
            }
            op::ZEROES => self.space(libc::FALLOC_FL_PUNCH_HOLE, place, length)?,
            _ => return Err(io::Error::other("no such operation")),
        }
        Ok(())
    }

    fn space(&self, mode: i32, place: u64, length: u64) -> io::Result<()> {
        let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
        let fd = self.store.as_raw_fd();
        // SAFETY: takes numbers.
        let result = unsafe { libc::fallocate(fd, mode, place as i64, length as i64) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn note(&mut self, request: &Request) -> Result<(), String> {
        self.counts.by_operation[usize::from(request.operation)] += 1;
        match request.operation {
            op::WRITE => self.counts.fua += u64::from(request.flags & FUA),
            op::ZEROES => self.counts.nounmap += u64::from(request.flags & NOUNMAP) / 2,
            _ => {}
        }
        if let Some(log) = &mut self.log {
            let r = request;
            let line = format!("{} {} {} {}\n", r.operation, r.sector, r.sectors, r.flags);
            log.write_all(line.as_bytes()).map_err(|e| format!("log: {e}"))?;
        }
        // The data is one piece from the first page on.
        let last = request.segments.len().saturating_sub(1);
        let packed = |(i, &(a, b)): (usize, &(u8, u8))| a == 0 && b < 8 && (b == 7 || i == last);
        if request.segments.iter().enumerate().all(packed) {
            return Ok(());
        }
        Err(format!("data that is not packed: {request:?}"))
    }

    /// Takes and answers all there is.
    fn turn(&mut self) -> Result<(), String> {
        let mut answered = false;
        while let Some(request) = self.ring.take() {
            if self.options.answers == 0 {
                continue;
            }
            self.options.answers -= 1;
            self.note(&request)?;
            let status = if self.options.unsupported == Some(request.operation) {
                -2
            } else if let Err(e) = self.carry_out(&request) {
                eprintln!("blktap-ring: {request:?}: {e}");
                -1
            } else {
                0
            };
            self.ring.answer(&request, status);
            answered = true;
        }
        if answered {
            self.ring.respond().map_err(|e| format!("RESPOND: {e}"))?;
        }
        Ok(())
    }

    /// Waits for requests or for the end. True: the end was asked for.
    fn wait(&mut self, signals: &OwnedFd, events: i16) -> Result<bool, String> {
        if self.options.flags & flag::LEVEL != 0 && self.ring.sleep_after(self.ring.taken) {
            return Ok(false);
        }
        self.counts.sleeps += 1;
        let mut fds = [
            libc::pollfd { fd: self.ring.file.as_raw_fd(), events, revents: 0 },
            libc::pollfd { fd: signals.as_raw_fd(), events: libc::POLLIN, revents: 0 },
        ];
        // SAFETY: an array of two.
        if unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) } < 0 {
            return Err(format!("poll: {}", io::Error::last_os_error()));
        }
        if fds[0].revents & (libc::POLLERR | libc::POLLHUP) != 0 {
            return Err("the kernel closed the ring".to_string());
        }
        if self.ring.message() == 3 {
            self.ring.clear_message();
            return Ok(true);
        }
        Ok(fds[1].revents != 0)
    }

    /// Removes the disk as soon as nobody has it open; serves until then.
    fn end(&mut self, signals: &OwnedFd) -> Result<(), String> {
        loop {
            match self.ring.remove() {
                Ok(()) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
                Err(e) => return Err(format!("REMOVE_DEVICE: {e}")),
            }
            self.wait(signals, libc::POLLIN | libc::POLLPRI)?;
            self.turn()?;
        }
    }
}

/// SIGTERM as a descriptor.
fn signals() -> Result<OwnedFd, String> {
    // SAFETY: a set on the stack, initialised by sigemptyset.
    let fd = unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(format!("signalfd: {}", io::Error::last_os_error()));
    }
    // SAFETY: the kernel gave a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub fn main(words: &[String]) -> Result<(), String> {
    let options = ServeOptions::parse(words)?;
    let signals = signals()?;
    let control = Control::open().map_err(|e| format!("control device: {e}"))?;
    let flags = if options.direct { libc::O_DIRECT } else { 0 };
    let store = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&options.store);
    let store = store.map_err(|e| format!("{}: {e}", options.store))?;
    let size = store.metadata().map_err(|e| e.to_string())?.len();
    let minor = match options.minor {
        Some(minor) => minor,
        None => control.allocate().map_err(|e| format!("ALLOC_TAP: {e}"))?.minor,
    };
    let mut ring = Ring::open(minor).map_err(|e| format!("ring of {minor}: {e}"))?;
    ring.map().map_err(|e| format!("mmap: {e}"))?;
    let (capacity, flags) = (size / 512, options.flags);
    let mut info = Info { capacity, sector_size: options.sector, flags, ..Info::default() };
    info.physical_sector_size = options.physical;
    ring.create(&mut info).map_err(|e| format!("CREATE_DEVICE: {e}"))?;
    println!("{minor} {FOLDER}/tapdev{minor}");
    let log = options.log.as_ref().map(File::create).transpose().map_err(|e| e.to_string())?;
    let mut server = Server { ring, store, counts: Counts::default(), log, options };

    while !server.wait(&signals, libc::POLLIN)? {
        server.turn()?;
    }
    server.end(&signals)?;
    let Counts { by_operation: [read, write, flush, trim, zeroes], fua, nounmap, sleeps } =
        server.counts;
    println!(
        "read={read} write={write} flush={flush} trim={trim} zeroes={zeroes} fua={fua} nounmap={nounmap} sleeps={sleeps}"
    );
    let free = server.options.minor.is_none();
    drop(server.ring);
    if free {
        control.free(minor).map_err(|e| format!("FREE_TAP: {e}"))?;
    }
    Ok(())
}
