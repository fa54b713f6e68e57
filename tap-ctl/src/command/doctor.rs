//! `tap-ctl doctor`: whether a running tapdisk holds the protections that keep memory pressure from
//! hanging it, and is confined.
//!
//! Read from /proc and from the tapdisk's own statistics: nothing is changed, and the tapdisk does
//! not even have to answer.

mod confined;
mod elf;
mod facts;

use super::PLAIN;
use super::program::Program;
use crate::cli::args::Args;
use crate::cli::{Command, Context, Listed, Opt, PID, Takes, long, print};
use crate::failure::{Failure, Outcome};
use facts::Facts;
use serde_json::{Value, json};
use tap_ctl::messages::COOKIE_ALL;

pub static COMMAND: Command = Command {
    name: "doctor",
    usage: "usage: doctor [-p pid]",
    about: "show which protections running tapdisks hold",
    details: "Each protection is held, missing, or unsupported by this kernel; of what is not held the consequence is said.\nExits with 1 if one is missing.",
    options: &OPTIONS,
    examples: &[("doctor", "all tapdisks"), ("doctor -p 4711 --json", "one, for a program")],
    listed: Listed::Extra,
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 2] = [PID, long("json", Takes::Nothing, "print a JSON array")];

/// Whether a protection is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Held,
    Missing,
    /// Not to be had of this kernel.
    Unsupported,
}

impl Standing {
    fn name(self) -> &'static str {
        match self {
            Standing::Held => "held",
            Standing::Missing => "missing",
            Standing::Unsupported => "unsupported",
        }
    }
}

impl From<bool> for Standing {
    fn from(held: bool) -> Standing {
        if held { Standing::Held } else { Standing::Missing }
    }
}

/// One protection of one tapdisk.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    name: &'static str,
    held: Standing,
    /// What was seen.
    seen: String,
    /// What follows if it is not held.
    consequence: &'static str,
}

fn run(context: &Context, args: &Args) -> Outcome {
    let client = context.client()?;
    let pids: Vec<i32> = match args.number("p")? {
        Some(pid) => vec![client.pid(pid)?],
        None => {
            let pids = client.run_dir().ctl_numbers()?;
            pids.into_iter().filter_map(|pid| client.pid(pid).ok()).collect()
        }
    };
    let mut reports = Vec::new();
    for pid in pids {
        let stats = client.stats(pid, COOKIE_ALL).unwrap_or_default();
        let stats = serde_json::from_slice(&stats).unwrap_or(Value::Null);
        match Facts::of(pid) {
            Ok(facts) => reports.push((pid, findings(&facts, &stats))),
            Err(error) => {
                let sentence = format!("cannot look at process {pid}: {error}");
                return Err(Failure::new(error.raw_os_error().unwrap_or(libc::EIO), sentence));
            }
        }
    }
    if args.has("json") {
        print(&format!("{}\n", reports.iter().map(as_json).collect::<Value>()));
    } else {
        reports.iter().for_each(|report| print(&as_text(report)));
        print(&replaced(reports.iter().map(|(pid, _)| *pid)));
    }
    let missing = reports.iter().flat_map(|(_, findings)| findings);
    match missing.filter(|finding| finding.held == Standing::Missing).count() {
        0 => Ok(()),
        _ => Err(Failure::Line { exit: 1, line: "some protections are missing" }),
    }
}

fn findings(facts: &Facts, stats: &Value) -> Vec<Finding> {
    let mut findings = of_memory(facts);
    findings.extend(of_turns(facts));
    findings.extend(confined::findings(&facts.confined));
    if serves_a_device(stats) {
        findings.extend(reserves(facts));
    }
    if facts.is_control {
        findings.push(of(
            "release-build",
            Standing::Missing,
            tap_ctl::UNPROTECTED.into(),
            "it hangs under memory pressure: install the real program and start this disk again",
        ));
    }
    findings.extend(served(stats));
    findings
}

fn of(name: &'static str, held: Standing, seen: String, consequence: &'static str) -> Finding {
    Finding { name, held, seen, consequence }
}

/// What keeps it from waiting for memory.
fn of_memory(facts: &Facts) -> Vec<Finding> {
    vec![
        of(
            "io-flusher",
            match facts.io_flushers == facts.threads {
                false if facts.kernel < (5, 6) => Standing::Unsupported,
                set => set.into(),
            },
            format!("PR_SET_IO_FLUSHER set for {} of {} threads", facts.io_flushers, facts.threads),
            "what the kernel allocates inside this process's own calls may wait for pages that only this \
             process can write out: it may wait for itself (Linux 5.6, CAP_SYS_RESOURCE)",
        ),
        of(
            "memory-locked",
            (facts.unlocked_kib == 0 && facts.locked_kib > 0).into(),
            format!(
                "{} KiB locked, {} KiB of what is in memory not",
                facts.locked_kib, facts.unlocked_kib
            ),
            "pages of this process may be reclaimed, and reading them back may need its own disk: raise \
             ulimit -l, or run it as root",
        ),
        of(
            "oom-score",
            (facts.oom_score_adj == Some(-1000)).into(),
            facts.oom_score_adj.map_or("unknown".into(), |n| format!("oom_score_adj {n}")),
            "the OOM killer may choose this process, and every disk it serves then waits or fails",
        ),
        of(
            "stack-present",
            (facts.stack_kib >= STACK_KIB).into(),
            format!("{} KiB of stack in memory", facts.stack_kib),
            "a deeper call may ask for a page in the middle of a request",
        ),
    ]
}

/// What keeps it from waiting for others.
fn of_turns(facts: &Facts) -> Vec<Finding> {
    vec![
        of(
            "bound-at-start",
            facts.bound_at_start.map_or(Standing::Missing, Standing::from),
            match facts.bound_at_start {
                Some(true) => "the program has no lazy binding".into(),
                Some(false) => "the program binds functions when they are first called".into(),
                None => "the program file cannot be read".to_string(),
            },
            "the first call of a function may read the linker's tables from a disk",
        ),
        of(
            "priority",
            (facts.nice < 0 || facts.policy != 0).into(),
            format!("nice {}, policy {}", facts.nice, facts.policy),
            "busy processes come before the one that writes their pages out",
        ),
        of(
            "logging",
            facts.blocking_output.is_none().into(),
            match &facts.blocking_output {
                None => "output goes nowhere that could block".into(),
                Some(target) => format!("output goes to {target}"),
            },
            "a terminal or pipe that nobody reads stops the process when it logs",
        ),
    ]
}

fn serves_a_device(stats: &Value) -> bool {
    let disks = stats.as_array().map(Vec::as_slice).unwrap_or_default();
    disks.iter().any(|disk| disk.get("device").is_some_and(|device| !device.is_null()))
}

/// What only matters where this host's own memory becomes free through the disk.
fn reserves(facts: &Facts) -> [Finding; 2] {
    [
        Finding {
            name: "real-time",
            held: (facts.policy == 1 || facts.policy == 2).into(),
            seen: format!("policy {}", facts.policy),
            consequence: "the kernel's allocations in this process's calls get nothing of the memory that is kept \
                          for real-time tasks (half of vm.min_free_kbytes); it takes CAP_SYS_NICE, and \
                          where the kernel schedules groups of them (XCP-ng) a control group with \
                          cpu.rt_runtime_us",
        },
        Finding {
            name: "free-reserve",
            held: (facts.free_kib >= FREE_KIB).into(),
            seen: format!("vm.min_free_kbytes {}", facts.free_kib),
            consequence: "the kernel may find no memory for this disk's requests once all that is left waits for \
                          this disk: set vm.min_free_kbytes to 8192 or more",
        },
    ]
}

/// What tapdisk raises vm.min_free_kbytes to, at least.
const FREE_KIB: u64 = 8192;

/// As much stack as the daemon touches at its start.
const STACK_KIB: u64 = 96;

/// What the disks' statistics tell, where they are those of this tapdisk.
fn served(stats: &Value) -> Vec<Finding> {
    let disks = stats.as_array().map(Vec::as_slice).unwrap_or_default();
    let number = |path: &str| disks.iter().filter_map(|d| d.pointer(path)?.as_u64()).max();
    let of = |name, held: bool, seen: String, consequence| Finding {
        name,
        held: held.into(),
        seen,
        consequence,
    };
    let mut findings = Vec::new();
    if let Some(n) = number("/sealed/allocations") {
        let text = "a request waits for memory, which may wait for this process to write pages out";
        findings.push(of("no-allocation", n == 0, format!("{n} allocations while serving"), text));
    }
    if let Some(n) = number("/faults/major") {
        let text = "a request waited for a page that was read from a disk";
        findings.push(of(
            "no-major-fault",
            n == 0,
            format!("{n} major faults while serving"),
            text,
        ));
    }
    let rings = disks.iter().filter_map(|d| d.pointer("/tap/served")?.as_bool());
    if let Some(held) = rings.reduce(|a, b| a && b) {
        let seen =
            format!("{} by the blktap module's ring", if held { "served" } else { "not served" });
        let text = "the ring was closed, and whoever uses the block device sees errors: close and open the disk";
        findings.push(of("ring-served", held, seen, text));
    }
    let arenas = disks.iter().filter_map(|d| d.pointer("/memory/arena_locked")?.as_bool());
    if let Some(held) = arenas.reduce(|a, b| a && b) {
        let seen = format!("buffers {}", if held { "are locked" } else { "are not locked" });
        let text = "the data of a request may be reclaimed while it is written";
        findings.push(of("buffers-locked", held, seen, text));
    }
    for waits in disks.iter().filter_map(|d| d.pointer("/waits")?.as_str()) {
        let text = "this disk's requests wait: end what has the image there, or this disk";
        findings.push(of("images-alone", false, waits.into(), text));
    }
    findings
}

/// Who goes on with a program that an update has replaced: nothing is wrong with that.
fn replaced(pids: impl Iterator<Item = i32>) -> String {
    let old: Vec<String> = pids
        .filter(|pid| Program::of(*pid).is_some_and(|program| program.replaced))
        .map(|pid| pid.to_string())
        .collect();
    match old.len() {
        0 => String::new(),
        n => format!(
            "{n} tapdisk{} with a program that has been replaced since: {}\n  a disk gets the new one when \
             it is closed and opened by a new tapdisk, e.g. when its guest starts again\n",
            if n == 1 { " runs" } else { "s run" },
            old.join(" ")
        ),
    }
}

fn as_text((pid, findings): &(i32, Vec<Finding>)) -> String {
    let mut text = format!("tapdisk {pid}\n");
    for finding in findings {
        let Finding { name, held, seen, consequence } = finding;
        text.push_str(&format!("  {:<12} {name:<15} {seen}\n", held.name()));
        if *held != Standing::Held {
            text.push_str(&format!("  {:<12} {:<15} so: {consequence}\n", "", ""));
        }
    }
    text
}

fn as_json((pid, findings): &(i32, Vec<Finding>)) -> Value {
    let one = |f: &Finding| {
        json!({
            "name": f.name,
            "state": f.held.name(),
            "seen": f.seen,
            "consequence": (f.held != Standing::Held).then_some(f.consequence),
        })
    };
    let replaced = Program::of(*pid).map(|program| program.replaced);
    json!({ "pid": pid, "program_replaced": replaced, "protections": findings.iter().map(one).collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::facts::Confined;
    use super::*;

    fn good() -> Facts {
        Facts {
            threads: 2,
            io_flushers: 2,
            is_control: false,
            free_kib: 8192,
            kernel: (6, 12),
            locked_kib: 9000,
            unlocked_kib: 0,
            oom_score_adj: Some(-1000),
            stack_kib: 264,
            bound_at_start: Some(true),
            nice: -20,
            policy: 2,
            blocking_output: None,
            confined: Confined { capabilities: 0x8_0002, no_new_privs: true, seccomp: Some(2) },
        }
    }

    fn states(facts: &Facts, stats: &Value) -> Vec<(&'static str, Standing)> {
        findings(facts, stats).iter().map(|f| (f.name, f.held)).collect()
    }

    #[test]
    fn all_is_held_where_all_is_well() {
        let stats = json!([{
            "device": { "name": "/dev/ublkb0" },
            "sealed": { "allocations": 0 }, "faults": { "major": 0 }, "memory": { "arena_locked": true }
        }]);
        let states = states(&good(), &stats);
        assert_eq!(states.len(), 14);
        assert!(states.iter().all(|(_, held)| *held == Standing::Held), "{states:?}");
    }

    #[test]
    fn what_is_missing_is_told_with_its_consequence() {
        let facts = Facts {
            io_flushers: 1,
            free_kib: 4096,
            is_control: true,
            unlocked_kib: 4,
            oom_score_adj: Some(0),
            stack_kib: 20,
            bound_at_start: Some(false),
            nice: 0,
            policy: 0,
            blocking_output: Some("/dev/pts/0".into()),
            confined: Confined { capabilities: u64::MAX, no_new_privs: false, seccomp: Some(0) },
            ..good()
        };
        let stats = json!([{ "device": { "name": "/dev/ublkb0" } }]);
        let states = states(&facts, &stats);
        assert!(states.iter().all(|(_, held)| *held == Standing::Missing), "{states:?}");
        let text = as_text(&(7, findings(&facts, &stats)));
        assert!(text.starts_with("tapdisk 7\n  missing      io-flusher "));
        assert_eq!(text.matches("so: ").count(), 12);
        let old = Facts { kernel: (4, 19), ..facts };
        assert_eq!(findings(&old, &Value::Null)[0].held, Standing::Unsupported);
    }

    #[test]
    fn a_ring_that_was_closed_is_told() {
        let stats =
            |served: bool| json!([{ "tap": { "served": true } }, { "tap": { "served": served } }]);
        let held = |served| served_of(&stats(served));
        assert_eq!(held(true), [("ring-served", Standing::Held)]);
        assert_eq!(held(false), [("ring-served", Standing::Missing)]);
    }

    fn served_of(stats: &Value) -> Vec<(&'static str, Standing)> {
        served(stats).iter().map(|f| (f.name, f.held)).collect()
    }

    #[test]
    fn the_worst_disk_counts() {
        let disk =
            |n, held| json!({ "sealed": { "allocations": n }, "memory": { "arena_locked": held } });
        let stats = json!([disk(0, true), disk(3, false)]);
        let found: Vec<_> = served(&stats).iter().map(|f| (f.name, f.held)).collect();
        assert_eq!(
            found,
            [("no-allocation", Standing::Missing), ("buffers-locked", Standing::Missing)]
        );
    }
}
