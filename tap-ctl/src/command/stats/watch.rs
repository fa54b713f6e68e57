//! `tap-ctl stats --watch`: ask, wait, ask again, print the difference.

use super::is_all;
use super::sample::{Rate, Rates, Sample};
use crate::cli::args::Args;
use crate::cli::write;
use crate::command::list::collect;
use crate::failure::{Failure, Outcome};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use tap_ctl::client::Client;
use tap_ctl::error::Error;

/// A disk: pid and minor.
type Disk = (i32, i32);

/// Longest image name in the table; of a longer one the end is shown.
const NAME_CHARS_MAX: usize = 28;
/// Longest interval, a day.
const SECONDS_MAX: f64 = 86_400.0;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Json,
    /// Clear the screen before each table.
    Screen,
    /// The head once, then lines.
    Lines,
}

pub fn run(client: &Client, args: &Args) -> Outcome {
    let interval = interval(args)?;
    let count = args.number("count")?.map(|count| count.max(0));
    let form = match (args.has("json"), std::io::stdout().is_terminal()) {
        (true, _) => Form::Json,
        (false, true) => Form::Screen,
        (false, false) => Form::Lines,
    };
    let (pid, minor) = (args.number("p")?, args.number("m")?);
    let (mut before, mut then) = (samples(client, pid, minor)?, Instant::now());
    let mut done = 0;
    while count.is_none_or(|count| done < count) {
        std::thread::sleep(interval);
        let (now, moment) = (samples(client, pid, minor)?, Instant::now());
        let seconds = moment.duration_since(then).as_secs_f64();
        let text = render(form, done == 0, seconds, &rates(&before, &now, seconds));
        if write(text.as_bytes()).is_err() {
            return Ok(());
        }
        (before, then, done) = (now, moment, done.saturating_add(1));
    }
    Ok(())
}

fn interval(args: &Args) -> Result<Duration, Failure> {
    let Some(value) = args.value("watch") else { return Ok(Duration::from_secs(1)) };
    let seconds = value.to_str().and_then(|value| value.parse::<f64>().ok());
    match seconds {
        Some(seconds) if (0.0..=SECONDS_MAX).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(Failure::Usage),
    }
}

/// The counters of the chosen disks. With pid and minor that disk must be there; else disks
/// come and go.
fn samples(
    client: &Client,
    pid: Option<i32>,
    minor: Option<i32>,
) -> Result<BTreeMap<Disk, Sample>, Error> {
    if let (Some(pid), Some(minor)) = (pid, minor.filter(|minor| !is_all(*minor))) {
        return Ok(BTreeMap::from([((pid, minor), sample(client, pid, minor)?)]));
    }
    let rows = collect(client, pid)?;
    let disks = rows.iter().filter_map(|row| Some((row.pid?, row.minor?)));
    let chosen = disks.filter(|disk| minor.is_none_or(|minor| is_all(minor) || disk.1 == minor));
    Ok(chosen.filter_map(|disk| Some((disk, sample(client, disk.0, disk.1).ok()?))).collect())
}

fn sample(client: &Client, pid: i32, minor: i32) -> Result<Sample, Error> {
    let cookie = u16::try_from(minor).map_err(|_| Error::Argument {
        errno: libc::EINVAL,
        reason: format!("minor {minor} does not exist; minors are 0 to 16383"),
    })?;
    let text = client.stats(pid, cookie)?;
    // An original tapdisk may send what is no JSON; its disk is then shown without numbers.
    let value: Value = serde_json::from_slice(&text).unwrap_or(Value::Null);
    Ok(Sample::from_json(&value))
}

fn rates(
    before: &BTreeMap<Disk, Sample>,
    now: &BTreeMap<Disk, Sample>,
    seconds: f64,
) -> Vec<(Disk, Rates)> {
    let one = |(disk, sample): (&Disk, &Sample)| match before.get(disk) {
        Some(before) => (*disk, sample.since(before, seconds)),
        None => (*disk, sample.first()),
    };
    now.iter().map(one).collect()
}

fn render(form: Form, first: bool, seconds: f64, rates: &[(Disk, Rates)]) -> String {
    if form == Form::Json {
        let disks: Value =
            rates.iter().map(|((pid, minor), rates)| rates.json(*pid, *minor)).collect();
        return format!("{}\n", json!({"seconds": seconds, "disks": disks}));
    }
    let head = match (form, first) {
        // ANSI: cursor to the top left, clear to the end of the screen.
        (Form::Screen, _) => format!("\x1b[H\x1b[2J{}", head()),
        (_, true) => head(),
        _ => String::new(),
    };
    rates.iter().fold(head, |text, ((pid, minor), rates)| text + &line(*pid, *minor, rates))
}

fn head() -> String {
    format!(
        "{:>5} {:>8} {:<NAME_CHARS_MAX$} {:>8} {:>8} {:>8} {:>8} {:>13} {:>13} {:>6}\n",
        "minor",
        "pid",
        "image",
        "r IOPS",
        "w IOPS",
        "r MB/s",
        "w MB/s",
        "r p50/p99 us",
        "w p50/p99 us",
        "queue"
    )
}

fn line(pid: i32, minor: i32, rates: &Rates) -> String {
    let number = |value: Option<f64>, digits: usize| {
        value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
    };
    let count = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |n| n.to_string());
    let latency = |rate: &Rate| format!("{}/{}", count(rate.p50), count(rate.p99));
    format!(
        "{minor:>5} {pid:>8} {:<NAME_CHARS_MAX$} {:>8} {:>8} {:>8} {:>8} {:>13} {:>13} {:>6}\n",
        shortened(&rates.name),
        number(rates.read.iops, 0),
        number(rates.write.iops, 0),
        number(rates.read.megabytes, 1),
        number(rates.write.megabytes, 1),
        latency(&rates.read),
        latency(&rates.write),
        count(rates.inflight),
    )
}

/// The end of a long name says more than its beginning.
fn shortened(name: &str) -> String {
    let shown: Vec<char> = show::line(name.as_bytes()).chars().collect();
    match shown.len().checked_sub(NAME_CHARS_MAX) {
        Some(over) if over > 0 => {
            shown[over + 1..].iter().fold("…".to_owned(), |text, c| text + &c.to_string())
        }
        _ => shown.iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Rates {
        let read =
            Rate { iops: Some(500.4), megabytes: Some(2.048), p50: Some(90), p99: Some(1448) };
        Rates { name: "vhd:/x".into(), read, write: Rate::default(), inflight: Some(3) }
    }

    #[test]
    fn columns_stand_below_their_heads() {
        let text = render(Form::Lines, true, 1.0, &[((4711, 0), some())]);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0].chars().count(), lines[1].chars().count());
        let words: Vec<&str> = lines[1].split_whitespace().collect();
        assert_eq!(words, ["0", "4711", "vhd:/x", "500", "-", "2.0", "-", "90/1448", "-/-", "3"]);
    }

    #[test]
    fn the_head_comes_once_on_lines_and_always_on_a_screen() {
        assert!(!render(Form::Lines, false, 1.0, &[]).contains("minor"));
        assert!(render(Form::Screen, false, 1.0, &[]).starts_with("\x1b[H\x1b[2Jminor"));
    }

    #[test]
    fn json_is_one_object_a_line() {
        let text = render(Form::Json, true, 1.5, &[((4711, 0), some())]);
        assert_eq!(text.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["seconds"], json!(1.5));
        assert_eq!(value["disks"][0]["read"]["p99_us"], json!(1448));
        assert_eq!(value["disks"][0]["write"]["iops"], Value::Null);
    }

    #[test]
    fn long_names_keep_their_end() {
        let name = format!("vhd:/{}/leaf.vhd", "x".repeat(60));
        assert_eq!(shortened(&name).chars().count(), NAME_CHARS_MAX);
        assert!(shortened(&name).starts_with('…') && shortened(&name).ends_with("/leaf.vhd"));
        assert_eq!(shortened(&"y".repeat(NAME_CHARS_MAX)), "y".repeat(NAME_CHARS_MAX));
        assert_eq!(shortened("a\x1b[2J"), r"a\x1b[2J");
    }

    #[test]
    fn a_new_disk_has_no_rates_yet() {
        let now = BTreeMap::from([((1, 2), Sample::from_json(&json!({"name": "aio:/z"})))]);
        let rates = rates(&BTreeMap::new(), &now, 1.0);
        assert_eq!(rates[0].1, Rates { name: "aio:/z".into(), ..Rates::default() });
    }
}
