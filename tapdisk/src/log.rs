//! The log: slog on top; below, syslog's socket and a file of warnings (spec/operations.md §3).
//!
//! ```text
//!   slog macros ─► Sink ─┬─► /dev/log            everything; dropped and counted when it is full
//!                        └─► tapdisk.<pid>.log   warnings; made at the first, gone after a clean end
//! ```
//! Nothing here is called in the sealed part of a turn. Nothing waits: the socket does not block,
//! and while a disk is served the file is only written where the spec asks for it (SIGUSR1, the
//! watchdog, a close), because its file system may lie on a disk that waits for this very process.
mod file;
mod syslog;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use slog::{Drain, KV, Level, Logger, Never, OwnedKVList, Record, Serializer, o};

use file::LogFile;
use host::sys::{LocalTime, local_time};
use syslog::Syslog;

/// The places that lines go to, for the few who steer them. Loggers are made of it.
#[derive(Clone)]
pub struct Log {
    sink: Arc<Mutex<Sink>>,
}

struct Sink {
    syslog: Syslog,
    file: LogFile,
    /// Also on standard error: the daemon stays in the foreground.
    foreground: bool,
}

impl Log {
    /// A log of the process `pid`, with its file in the first directory that can be written.
    pub fn open(pid: i32, dirs: Vec<PathBuf>, foreground: bool) -> Log {
        Log::over(LogFile::new(pid, dirs), pid, foreground)
    }

    /// The log of a process that goes on with another program: what is in the file stays.
    pub fn go_on(pid: i32, dirs: Vec<PathBuf>, foreground: bool) -> Log {
        Log::over(LogFile::go_on(pid, dirs), pid, foreground)
    }

    fn over(file: LogFile, pid: i32, foreground: bool) -> Log {
        let sink = Sink { syslog: Syslog::open(pid), file, foreground };
        Log { sink: Arc::new(Mutex::new(sink)) }
    }

    /// A logger that writes here.
    pub fn logger(&self) -> Logger {
        Logger::root(self.clone().ignore_res(), o!())
    }

    /// SIGHUP: the file and the socket anew.
    pub fn reopen(&self) {
        let mut sink = self.lock();
        sink.syslog.reopen();
        sink.file.reopen();
    }

    /// Writes lines to the file that are for it alone, flushes it, and keeps it at the end.
    pub fn report(&self, lines: &str) {
        let mut sink = self.lock();
        let now = local_time();
        show::lines(lines).lines().for_each(|line| sink.file.line(&now, line));
        sink.file.keep();
        sink.file.flush();
    }

    /// A sentence about a state of things that somebody chose, such as a limit: it goes to the
    /// file, but a file with nothing else is not worth keeping after a clean end.
    pub fn note(&self, text: &str) {
        slog::info!(self.logger(), "{text}");
        let mut sink = self.lock();
        sink.file.note(&local_time(), &show::line(text.as_bytes()));
    }

    /// Writes what waits in memory.
    pub fn flush(&self) {
        self.lock().file.flush();
    }

    /// While a disk is served, lines wait in memory.
    pub fn set_serving(&self, serving: bool) {
        self.lock().file.set_serving(serving);
    }

    /// The orderly end: without warnings the file goes.
    pub fn close(&self) {
        self.lock().file.close(&local_time());
    }

    /// Lines that syslog did not take.
    pub fn dropped(&self) -> u64 {
        self.lock().syslog.dropped()
    }

    fn lock(&self) -> MutexGuard<'_, Sink> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drain for Log {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        let mut text = Text(record.msg().to_string());
        let _ = record.kv().serialize(record, &mut text);
        let _ = values.serialize(record, &mut text);
        // A message is one line, whatever names are in it.
        let text = show::line(text.0.as_bytes());
        let now = local_time();
        let mut sink = self.lock();
        sink.syslog.send(&now, record.level(), &text);
        if record.level().is_at_least(Level::Warning) {
            sink.file.warning(&now, &text);
        }
        if sink.foreground {
            eprintln!("{} {text}", record.level().as_short_str());
        }
        Ok(())
    }
}

/// A message, followed by its values.
struct Text(String);

impl Serializer for Text {
    fn emit_arguments(&mut self, key: slog::Key, value: &std::fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, ", {key} {value}").map_err(slog::Error::Fmt)
    }
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// `Mmm dd hh:mm:ss`, as syslog writes it.
fn stamp(t: &LocalTime) -> String {
    let [h, m, s] = t.clock;
    format!("{} {:>2} {h:02}:{m:02}:{s:02}", MONTHS[t.month], t.day)
}

#[cfg(test)]
mod tests;
