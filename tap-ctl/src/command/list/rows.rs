//! The records of `list`: how they are collected and how each is printed.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::super::program::Program;
use serde_json::{Value, json};
use std::collections::HashSet;
use tap_ctl::client::{Client, LIST_LIMIT};
use tap_ctl::error::Error;
use tap_ctl::messages::{Device, ListEntry, Request, Text, state};
use tap_ctl::minors;
use tap_ctl::paths::RunDir;
use tap_ctl::record;

/// One record. What is unknown is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    pub pid: Option<i32>,
    pub minor: Option<i32>,
    pub state: Option<u32>,
    /// `type:path`
    pub args: Option<Text>,
    /// The block device; of a minor without tapdisk the one that waits for it.
    pub device: Option<Device>,
}

/// All records: tapdisks in byte order of their sockets' names, each with its VBDs in reverse order
/// of attachment; then the minors that nobody has attached. With `only`, that tapdisk alone is
/// asked. A tapdisk that gives no pid is left out; one that gives no list is known by pid only.
pub fn collect(client: &Client, only: Option<i32>) -> Result<Vec<Row>, Error> {
    // They come first: a minor attached in between is then still found to be in use.
    let minors = minors::all(client.run_dir())?;
    let pids = match only {
        Some(pid) => vec![pid],
        None => client.run_dir().ctl_numbers()?,
    };
    let mut rows = Vec::new();
    for pid in pids.into_iter().filter_map(|pid| client.pid(pid).ok()) {
        let entries = client.list(pid, LIST_LIMIT).unwrap_or_default();
        if entries.is_empty() {
            rows.push(Row { pid: Some(pid), ..Row::default() });
        }
        rows.extend(entries.iter().rev().map(|entry| Row::attached(pid, entry)));
    }
    let used: HashSet<i32> = rows.iter().filter_map(|row| row.minor).collect();
    let orphans = minors.into_iter().filter(|minor| !used.contains(minor));
    rows.extend(orphans.map(|minor| Row {
        minor: Some(minor),
        device: waiting(client.run_dir(), minor),
        ..Row::default()
    }));
    Ok(rows)
}

/// The device that a tapdisk left behind when it died.
pub fn waiting(run: &RunDir, minor: i32) -> Option<Device> {
    let record = record::read(run, u16::try_from(minor).ok()?).ok()?;
    let Request::Open { params, .. } = record.request else { return None };
    let device = params.device.exact()?;
    std::path::Path::new(&device.to_string()).exists().then_some(device)
}

impl Row {
    fn attached(pid: i32, entry: &ListEntry) -> Row {
        Row {
            pid: Some(pid),
            minor: (entry.minor >= 0).then_some(entry.minor),
            state: Some(entry.state),
            args: (!entry.path.is_empty()).then_some(entry.path),
            device: entry.device,
        }
    }

    /// Image type, the text before the first colon.
    pub fn kind(&self) -> Option<&[u8]> {
        Some(self.args.as_ref()?.split_type()?.0)
    }

    /// Path of the image, the text after the first colon.
    pub fn file(&self) -> Option<&[u8]> {
        Some(self.args.as_ref()?.split_type()?.1)
    }

    /// `pid=… minor=… state=… args=…`, unknown ones left out, `args` last and unquoted.
    pub fn for_machines(&self) -> Vec<u8> {
        let fields = [
            self.pid.map(|pid| format!("pid={pid}").into_bytes()),
            self.minor.map(|minor| format!("minor={minor}").into_bytes()),
            self.state.map(|bits| format!("state={}", state::hex(bits)).into_bytes()),
            self.args.map(|args| [b"args=", &*exact(args.as_bytes())].concat()),
        ];
        let mut line = fields.into_iter().flatten().collect::<Vec<_>>().join(&b' ');
        line.push(b'\n');
        line
    }

    /// `device=… pid=… minor=…` of a row that has a block device.
    pub fn for_devices(&self) -> Vec<u8> {
        let Some(device) = self.device else { return Vec::new() };
        [format!("device={device} ").into_bytes(), self.for_machines()].concat()
    }

    /// `program=… replaced=… pid=…` of a row that has a tapdisk. Blanks in the path are written
    /// out.
    pub fn for_programs(&self) -> Vec<u8> {
        let Some(pid) = self.pid else { return Vec::new() };
        let text = Program::of(pid).map_or("program=- replaced=- ".into(), |program| {
            let replaced = if program.replaced { "yes" } else { "no" };
            let path = show::word(program.path.as_os_str());
            format!("program={} replaced={replaced} ", String::from_utf8_lossy(&path))
        });
        [text.into_bytes(), self.for_machines()].concat()
    }

    /// C's `%8s %4s %4s %10s %s`, unknown ones as `-`.
    pub fn for_people(&self) -> Vec<u8> {
        let dash = || "-".to_owned();
        let pid = self.pid.map_or_else(dash, |pid| pid.to_string());
        let minor = self.minor.map_or_else(dash, |minor| minor.to_string());
        let bits = self.state.map_or_else(dash, state::hex);
        let kind = self.kind().map_or_else(dash, |kind| show::line(kind).into_owned());
        let mut line = format!("{pid:>8} {minor:>4} {bits:>4} {kind:>10} ").into_bytes();
        line.extend_from_slice(&exact(self.file().unwrap_or(b"-")));
        line.push(b'\n');
        line
    }

    /// An object; unknown ones are null.
    pub fn json(&self) -> Value {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let program = self.pid.and_then(Program::of);
        json!({
            "pid": self.pid,
            "minor": self.minor,
            "state": self.state,
            "state_text": self.state.map(state::names),
            "type": self.kind().map(text),
            "path": self.file().map(text),
            "device": self.device.map(|device| device.to_string()),
            "program": program.as_ref().map(|program| program.path.to_string_lossy()),
            "program_replaced": program.as_ref().map(|program| program.replaced),
        })
    }
}

/// A name as it is, since callers look for it; what would make a second line of it is written out.
fn exact(name: &[u8]) -> Cow<'_, [u8]> {
    show::name(OsStr::from_bytes(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(args: &str, bits: u32) -> Row {
        let args = Text::new(args.as_bytes()).expect("short");
        Row { pid: Some(2034), minor: Some(0), state: Some(bits), args: Some(args), device: None }
    }

    fn machine(row: Row) -> String {
        String::from_utf8(row.for_machines()).expect("UTF-8")
    }

    fn people(row: Row) -> String {
        String::from_utf8(row.for_people()).expect("UTF-8")
    }

    #[test]
    fn machine_lines_leave_out_what_is_unknown() {
        assert_eq!(
            machine(row("vhd:/sr mount/x=y.vhd", 0x2a)),
            "pid=2034 minor=0 state=0x2a args=vhd:/sr mount/x=y.vhd\n"
        );
        assert_eq!(machine(Row { args: None, ..row("x:y", 0) }), "pid=2034 minor=0 state=0\n");
        assert_eq!(machine(Row { pid: Some(7), ..Row::default() }), "pid=7\n");
        assert_eq!(machine(Row { minor: Some(7), ..Row::default() }), "minor=7\n");
    }

    #[test]
    fn a_row_is_one_line_whatever_the_name() {
        let odd = row("vhd:/a\npid=1 minor=0 args=x\u{1b}[2J", 0);
        assert_eq!(
            machine(odd),
            "pid=2034 minor=0 state=0 args=vhd:/a\\npid=1 minor=0 args=x\\x1b[2J\n"
        );
        assert_eq!(people(odd).matches('\n').count(), 1);
        let latin = Text::new(b"vhd:/b\xfcro").expect("short");
        let line = Row { args: Some(latin), ..Row::default() }.for_machines();
        assert_eq!(line, b"args=vhd:/b\xfcro\n", "byte for byte otherwise");
    }

    #[test]
    fn people_s_lines_are_the_recorded_ones() {
        let recorded = Row { pid: Some(7702), ..row("aio:/golden/w/a.raw", 0) };
        assert_eq!(people(recorded), "    7702    0    0        aio /golden/w/a.raw\n");
        assert_eq!(people(Row { args: None, ..recorded }), "    7702    0    0          - -\n");
        assert_eq!(
            people(Row { minor: Some(1), ..Row::default() }),
            "       -    1    -          - -\n"
        );
        assert_eq!(
            people(Row { pid: Some(7599), ..Row::default() }),
            "    7599    -    -          - -\n"
        );
    }

    #[test]
    fn json_has_null_for_the_unknown() {
        let value = row("aio:/x", 0x22).json();
        assert_eq!(value["state_text"], "closed,paused");
        assert_eq!((&value["type"], &value["path"]), (&json!("aio"), &json!("/x")));
        assert_eq!(Row::default().json()["pid"], Value::Null);
    }
}
