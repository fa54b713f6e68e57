//! Telling how far a long command is, on standard error: a bar on a terminal, JSON lines otherwise.
//! Standard output stays what callers parse.
use crate::options::{Long, Options, Takes, Term};
use std::ffi::OsStr;
use std::io::{IsTerminal, Write};
use std::num::NonZeroU64;
use std::time::Duration;
use vhd_rs::coalesce::Progress;

/// `--progress`, `--progress=bar`, `--progress=json`.
pub(crate) const PROGRESS: Long = Long { name: "progress", key: '%', takes: Takes::Perhaps };
/// `--rate BYTES`.
pub(crate) const RATE: Long = Long { name: "rate", key: '/', takes: Takes::Value };

/// Cells of the bar.
const CELLS: u64 = 30;
/// JSON lines are for programs: two a second are enough.
const BETWEEN: Duration = Duration::from_millis(500);

/// The options that all long commands share.
pub(crate) struct Pace {
    pub(crate) bar: Bar,
    pub(crate) rate: Option<NonZeroU64>,
}

/// How it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    Silent,
    Bar,
    Json,
}

/// The teller.
pub(crate) struct Bar {
    style: Style,
    told: Option<Duration>,
}

impl Pace {
    /// What [`PROGRESS`] and [`RATE`] ask for.
    ///
    /// # Errors
    /// The exit code when the command is over with that.
    pub(crate) fn of(o: &Options, usage: &str, term: &mut Term) -> Result<Pace, i32> {
        let mut refuse = |text: &str| {
            term.complain(text);
            term.usage(usage)
        };
        let style = match o.value(PROGRESS.key).map(|v| v.to_string_lossy().into_owned()) {
            None => Style::Silent,
            Some(how) => match how.as_str() {
                "" if std::io::stderr().is_terminal() => Style::Bar,
                "bar" => Style::Bar,
                "" | "json" => Style::Json,
                other => {
                    let other = show::bytes(other.as_bytes());
                    let text = format!("'{other}' is no way to show progress; bar and json are\n");
                    return Err(refuse(&text));
                }
            },
        };
        let rate = match o.value(RATE.key) {
            None => None,
            Some(text) => match bytes(text).and_then(NonZeroU64::new) {
                Some(rate) => Some(rate),
                None => {
                    let text = show::path(text);
                    return Err(refuse(&format!("'{text}' is no rate; try 100M\n")));
                }
            },
        };
        Ok(Pace { bar: Bar { style, told: None }, rate })
    }
}

impl Bar {
    /// Tells how far it is, if it is time to.
    pub(crate) fn tell(&mut self, p: &Progress) {
        let last = p.blocks == p.blocks_total;
        let soon = self.told.is_some_and(|told| p.elapsed < told + BETWEEN);
        match self.style {
            Style::Silent => return,
            Style::Json if soon && !last => return,
            Style::Json => say(&json(p)),
            Style::Bar => say(&bar(p)),
        }
        self.told = Some(p.elapsed);
    }

    /// The command is over.
    pub(crate) fn end(&mut self) {
        if self.style == Style::Bar && self.told.is_some() {
            say("\n");
        }
    }
}

/// A number of bytes: digits, and K, M, G or T for powers of 1024.
fn bytes(text: &OsStr) -> Option<u64> {
    let text = text.to_str()?;
    let (digits, shift) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        _ => (text, 0),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse::<u64>().ok()?.checked_mul(1 << shift)).flatten()
}

fn say(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Part done, in thousandths.
fn permille(p: &Progress) -> u64 {
    match p.blocks_total {
        0 => 1000,
        total => u64::from(p.blocks) * 1000 / u64::from(total),
    }
}

/// Bytes a second since the beginning.
fn speed(p: &Progress) -> u64 {
    (p.bytes as f64 / p.elapsed.as_secs_f64().max(1e-3)) as u64
}

/// Seconds left, if that can be told yet.
fn left(p: &Progress) -> Option<u64> {
    let todo = f64::from(p.blocks_total - p.blocks);
    (p.blocks > 0).then(|| (p.elapsed.as_secs_f64() * todo / f64::from(p.blocks)).ceil() as u64)
}

fn json(p: &Progress) -> String {
    let left = left(p).map_or("null".to_string(), |s| s.to_string());
    let permille = permille(p);
    format!(
        "{{\"blocks\":{},\"blocks_total\":{},\"percent\":{}.{},\"bytes\":{},\"bytes_per_second\":{},\
         \"elapsed_ms\":{},\"left_s\":{left}}}\n",
        p.blocks,
        p.blocks_total,
        permille / 10,
        permille % 10,
        p.bytes,
        speed(p),
        p.elapsed.as_millis(),
    )
}

fn bar(p: &Progress) -> String {
    let permille = permille(p);
    let full = (permille * CELLS / 1000) as usize;
    let left = match left(p) {
        Some(s) => format!("{}:{:02} left", s / 60, s % 60),
        None => String::new(),
    };
    format!(
        "\r{}{} {:3}% {:6} MB {:5} MB/s {left:<12}",
        "█".repeat(full),
        "░".repeat(CELLS as usize - full),
        permille / 10,
        p.bytes / 1_000_000,
        speed(p) / 1_000_000,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halfway() -> Progress {
        Progress {
            blocks: 1,
            blocks_total: 2,
            upto: 1,
            blocks_disk: 4,
            bytes: 2 << 20,
            elapsed: Duration::from_secs(2),
        }
    }

    #[test]
    fn a_json_line_says_how_far_and_how_long() {
        assert_eq!(
            json(&halfway()),
            "{\"blocks\":1,\"blocks_total\":2,\"percent\":50.0,\"bytes\":2097152,\
             \"bytes_per_second\":1048576,\"elapsed_ms\":2000,\"left_s\":2}\n"
        );
        let none = Progress { blocks: 0, blocks_total: 0, bytes: 0, ..halfway() };
        assert!(json(&none).contains("\"percent\":100.0") && json(&none).contains("null"));
    }

    #[test]
    fn sizes_have_suffixes_and_nothing_else() {
        for (text, want) in [("0", Some(0)), ("12k", Some(12 << 10)), ("3G", Some(3 << 30))] {
            assert_eq!(bytes(text.as_ref()), want);
        }
        for text in ["", "k", "-1", "1.5M", "9999999999999999T", "5MB"] {
            assert_eq!(bytes(text.as_ref()), None, "{text}");
        }
    }

    #[test]
    fn a_bar_has_always_the_same_cells() {
        for blocks in 0..=2 {
            let bar = bar(&Progress { blocks, ..halfway() });
            assert_eq!(bar.chars().filter(|c| "█░".contains(*c)).count(), 30, "{bar}");
        }
    }
}
