//! The log: standard error in the foreground, syslog's socket in the background. Nothing waits for
//! either.

use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record, Serializer, o};
use std::fmt::Write as _;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, PoisonError};

/// LOG_DAEMON of syslog(3).
const DAEMON: u8 = 3 << 3;
/// Longest line in bytes; the rest is cut off.
const LINE_MAX: usize = 1024;
const SOCKET: &str = "/dev/log";

/// Where lines go.
pub enum Target {
    /// Standard error.
    Stderr,
    /// Syslog; lines that it does not take are lost.
    Syslog,
}

/// A logger that leaves out what is below `least`.
pub fn logger(target: Target, least: Level) -> Logger {
    let syslog = match target {
        Target::Stderr => None,
        Target::Syslog => Some(Mutex::new(connect())),
    };
    Logger::root(Lines { syslog, least }.ignore_res(), o!())
}

struct Lines {
    /// `None`: standard error.
    syslog: Option<Mutex<Option<UnixDatagram>>>,
    least: Level,
}

impl Drain for Lines {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        if !record.level().is_at_least(self.least) {
            return Ok(());
        }
        let mut line = Line::default();
        let _ = values.serialize(record, &mut line);
        let _ = write!(line.text, "{}", record.msg());
        let _ = record.kv().serialize(record, &mut line);
        // A message is one line, whatever is in xenstore.
        let text = show::line(line.text.as_bytes());
        match &self.syslog {
            None => eprintln!("tapback: {text}"),
            Some(socket) => {
                let mut socket = socket.lock().unwrap_or_else(PoisonError::into_inner);
                send(&mut socket, record.level(), &text);
            }
        }
        Ok(())
    }
}

/// The disk first, then the sentence, then its values.
#[derive(Default)]
struct Line {
    text: String,
}

impl Serializer for Line {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        let done = match key {
            "disk" => write!(self.text, "{value}: "),
            key => write!(self.text, ", {key} {value}"),
        };
        done.map_err(slog::Error::Fmt)
    }
}

fn connect() -> Option<UnixDatagram> {
    let socket = UnixDatagram::unbound().ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect(SOCKET).ok()?;
    Some(socket)
}

/// A syslogd that was restarted has a new socket: try twice.
fn send(socket: &mut Option<UnixDatagram>, level: Level, text: &str) {
    let priority = match level {
        Level::Critical => 2,
        Level::Error => 3,
        Level::Warning => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    };
    let mut packet = format!("<{}>tapback[{}]: {text}", DAEMON | priority, std::process::id());
    let end = (0..=LINE_MAX.min(packet.len())).rev().find(|at| packet.is_char_boundary(*at));
    packet.truncate(end.unwrap_or(0));
    for _ in 0..2 {
        if socket.as_ref().is_some_and(|socket| socket.send(packet.as_bytes()).is_ok()) {
            return;
        }
        *socket = connect();
    }
}
