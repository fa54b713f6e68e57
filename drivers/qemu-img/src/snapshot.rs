//! `snapshot -l`: the internal snapshots of an image. Dates are in UTC.
use std::ffi::OsString;
use std::path::Path;

use qcow2::head::Head;
use qcow2::snapshots::{Snapshot, snapshots};

use crate::json::Json;
use crate::open::{self, For, Format};
use crate::size::human;
use crate::tool::{FORMAT, Outcome, QUIET, SHARE, Tool};

pub(crate) fn run(words: &[OsString], tool: &mut Tool) -> Outcome {
    let o = tool.options("snapshot", "f:lUqa:c:d:", &[FORMAT, QUIET, SHARE], words)?;
    if ['a', 'c', 'd'].iter().any(|letter| o.has(*letter)) {
        return Err("snapshots are listed here, and not changed: use QEMU's qemu-img".into());
    }
    let [name] = o.operands() else {
        return tool.usage("snapshot", "Expecting one image file name");
    };
    let layer = open::layer(Path::new(name), open::format_of(o.value('f'))?, For::Reading)?;
    if layer.format == Format::Qcow2 {
        let head = Head::read(&layer.file.0, &layer.path)?;
        let (all, _) = snapshots(&layer.file.0, &layer.path, &head)?;
        if !all.is_empty() {
            tool.say(&list(&all));
        }
    }
    Ok(0)
}

/// A list for people.
pub(crate) fn list(all: &[Snapshot]) -> String {
    let mut out = String::from(
        "Snapshot list:\nID      TAG               VM_SIZE                DATE        VM_CLOCK     \
         ICOUNT\n",
    );
    for one in all {
        let (id, name) = (show::line(&one.id), show::line(&one.name));
        let (size, date) = (human(one.state_bytes), date(one.date));
        let seconds = one.clock_ns / 1_000_000_000;
        let clock = format!(
            "{:04}:{:02}:{:02}.{:03}",
            seconds / 3600,
            seconds / 60 % 60,
            seconds % 60,
            one.clock_ns / 1_000_000 % 1000
        );
        out.push_str(&format!("{id:<7} {name:<16} {size:>8} {date} {clock:>15} {:>10}\n", 0));
    }
    out
}

/// `2026-12-01 06:29:55` of seconds since 1970, by the calendar that has 400 years of 146 097 days.
fn date(seconds: u32) -> String {
    let (days, rest) = (i64::from(seconds / 86_400), seconds % 86_400);
    // Years that begin in March have their leap day last.
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, add) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    let year = era * 400 + year + add;
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// The same as JSON.
pub(crate) fn json(one: &Snapshot) -> Json {
    let text = |bytes: &[u8]| Json::Text(String::from_utf8_lossy(bytes).into_owned());
    Json::Object(vec![
        ("vm-clock-nsec", (one.clock_ns % 1_000_000_000).into()),
        ("name", text(&one.name)),
        ("date-sec", u64::from(one.date).into()),
        ("vm-clock-sec", (one.clock_ns / 1_000_000_000).into()),
        ("id", text(&one.id)),
        ("vm-state-size", one.state_bytes.into()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_796_106_595, "2026-12-01 06:29:55"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(date(seconds), text);
        }
    }
}
