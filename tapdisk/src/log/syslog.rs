//! A datagram client of /dev/log that never blocks.
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use slog::Level;

use super::stamp;
use host::sys::LocalTime;

/// LOG_DAEMON of syslog(3).
const DAEMON: u8 = 3 << 3;
/// Longest packet in bytes (spec/operations.md §3).
const PACKET_MAX: usize = 1024;
const SOCKET: &str = "/dev/log";

/// The client. Without a listener it drops and counts, and looks again at each line.
pub struct Syslog {
    pid: i32,
    socket: Option<UnixDatagram>,
    dropped: u64,
    reported: u64,
}

impl Syslog {
    pub fn open(pid: i32) -> Syslog {
        Syslog { pid, socket: connect(Path::new(SOCKET)), dropped: 0, reported: 0 }
    }

    pub fn reopen(&mut self) {
        self.socket = connect(Path::new(SOCKET));
    }

    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    pub fn send(&mut self, now: &LocalTime, level: Level, text: &str) {
        if self.dropped > self.reported {
            let missing = self.dropped - self.reported;
            let lost = format!("{missing} messages lost, syslog did not take them");
            if self.packet(&packet(now, self.pid, Level::Warning, &lost)) {
                self.reported = self.dropped;
            }
        }
        if !self.packet(&packet(now, self.pid, level, text)) {
            self.dropped += 1;
        }
    }

    fn packet(&mut self, packet: &[u8]) -> bool {
        if self.socket.is_none() {
            self.reopen();
        }
        let Some(socket) = &self.socket else { return false };
        match socket.send(packet) {
            Ok(_) => true,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => false,
            Err(_) => {
                // A new syslogd has a new socket.
                self.reopen();
                self.socket.as_ref().is_some_and(|socket| socket.send(packet).is_ok())
            }
        }
    }
}

fn connect(path: &Path) -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect(path).ok()?;
    Some(socket)
}

fn priority(level: Level) -> u8 {
    match level {
        Level::Critical => 2,
        Level::Error => 3,
        Level::Warning => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

pub(super) fn packet(now: &LocalTime, pid: i32, level: Level, text: &str) -> Vec<u8> {
    let mark = if level == Level::Warning { "tap-err:" } else { "" };
    let number = DAEMON | priority(level);
    let line = format!("<{number}>{} tapdisk[{pid}]: {mark}{text}", stamp(now));
    let mut bytes = line.into_bytes();
    bytes.truncate(PACKET_MAX);
    bytes
}
