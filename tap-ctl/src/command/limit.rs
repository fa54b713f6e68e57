//! `tap-ctl limit`: how many bytes and operations a second a disk may have.
use std::ffi::OsStr;

use super::PLAIN;
use crate::cli::args::Args;
use crate::cli::{Command, Context, Listed, MINOR, Opt, PID, Takes, long, print};
use crate::failure::{Failure, Outcome};
use tap_ctl::messages::{Rates, amount};

pub static COMMAND: Command = Command {
    name: "limit",
    usage: "usage: limit <-p pid> <-m minor> [--read-bps N] [--write-bps N] [--read-iops N] \
            [--write-iops N] [--burst-ms N] [--none] [--json]",
    about: "limit the bytes and operations a second of a disk, or show its limits",
    details: "What is not named stays as it is; 0 is no limit. It holds at once and for every \
              frontend, over pause and\nunpause, until the disk is closed. An operation has 64 KiB \
              at most: a longer request counts for several.\nZeros and discards are one each, \
              flushes are free.",
    options: &OPTIONS,
    examples: &[
        ("limit -p 4711 -m 0 --write-bps 50M --write-iops 2k", "50 MB and 2000 writes a second"),
        ("limit -p 4711 -m 0", "show what is in force"),
        ("limit -p 4711 -m 0 --none", "no limits"),
    ],
    listed: Listed::Extra,
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 9] = [
    PID.required(),
    MINOR.required(),
    long("read-bps", Takes::Value("N"), "bytes read a second, with k, M, G (1000) or Ki, Mi, Gi"),
    long("write-bps", Takes::Value("N"), "bytes written a second"),
    long("read-iops", Takes::Value("N"), "reads a second"),
    long("write-iops", Takes::Value("N"), "writes, zeros and discards a second"),
    long("burst-ms", Takes::Value("N"), "what may come at once, in ms of the limits (100)"),
    long("none", Takes::Nothing, "take all limits away"),
    long("json", Takes::Nothing, "print a JSON document on one line"),
];

fn run(context: &Context, args: &Args) -> Outcome {
    let (pid, minor) = (args.pid()?, args.minor()?);
    let rate = |name: &str| args.value(name).map(|value| number(name, value)).transpose();
    let mut rates = Rates {
        bytes: [rate("read-bps")?, rate("write-bps")?],
        ops: [rate("read-iops")?, rate("write-iops")?],
        burst_ms: rate("burst-ms")?,
        ..Rates::default()
    };
    if args.has("none") {
        if rates != Rates::default() {
            return Err(Failure::new(libc::EINVAL, "--none goes with no other limit").aloud());
        }
        rates = Rates { bytes: [Some(0); 2], ops: [Some(0); 2], ..rates };
    }
    let now = context.client()?.limit(pid, minor, rates)?;
    print(&if args.has("json") { json(&now) } else { text(&now) });
    Ok(())
}

/// The four limits by name.
fn named(rates: &Rates) -> [(&'static str, u64); 4] {
    let [rb, wb] = rates.bytes.map(Option::unwrap_or_default);
    let [ro, wo] = rates.ops.map(Option::unwrap_or_default);
    [("read-bps", rb), ("write-bps", wb), ("read-iops", ro), ("write-iops", wo)]
}

fn text(rates: &Rates) -> String {
    let word = |rate: u64| if rate == 0 { "none".to_owned() } else { rate.to_string() };
    let words = named(rates).map(|(name, rate)| format!("{name}={}", word(rate)));
    let burst = rates.burst_ms.unwrap_or_default();
    let ([reads, writes], [read_us, write_us]) = (rates.waited, rates.waited_us);
    format!(
        "{} burst-ms={burst} waited-reads={reads} waited-writes={writes} waited-read-us={read_us} \
         waited-write-us={write_us}\n",
        words.join(" ")
    )
}

fn json(rates: &Rates) -> String {
    let mut all = serde_json::Map::new();
    for (name, rate) in named(rates) {
        all.insert(name.replace('-', "_"), rate.into());
    }
    all.insert("burst_ms".into(), rates.burst_ms.unwrap_or_default().into());
    all.insert("waited".into(), rates.waited.to_vec().into());
    all.insert("waited_us".into(), rates.waited_us.to_vec().into());
    format!("{}\n", serde_json::Value::Object(all))
}

/// A number with a unit or without.
fn number(name: &str, value: &OsStr) -> Result<u64, Failure> {
    let shown = show::line(value.as_encoded_bytes()).to_string();
    amount(&shown).ok_or_else(|| {
        let sentence = format!(
            "--{name} {shown}: a number, with k, M or G for thousands or Ki, Mi, Gi for 1024s"
        );
        Failure::new(libc::EINVAL, sentence).aloud()
    })
}
