//! The watchman: looks once a second at what a block device has moved, without needing memory for
//! it.
//!
//! If the device has requests in flight and moves nothing for `REPORT_SECONDS`, it tells the
//! console where the threads of its daemon are; after `PANIC_SECONDS` it ends the machine, in case
//! the kernel's own detection of hung tasks looks away (it does not count a killable wait, such as
//! one for a page).
use super::threads;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const REPORT_SECONDS: u64 = 10;
const PANIC_SECONDS: u64 = 30;
const INTERVAL_SECONDS: u64 = 5;

struct Seen {
    /// Bytes read and written so far.
    bytes: u64,
    in_flight: u64,
}

struct Counter(File);

impl Counter {
    fn read(&self) -> Option<Seen> {
        let mut text = [0u8; 512];
        let length = self.0.read_at(&mut text, 0).ok()?;
        let text = std::str::from_utf8(&text[..length]).ok()?;
        let mut fields = [0u64; 9];
        for (field, word) in fields.iter_mut().zip(text.split_ascii_whitespace()) {
            *field = word.parse().ok()?;
        }
        Some(Seen { bytes: (fields[2] + fields[6]) * 512, in_flight: fields[8] })
    }
}

/// Watches for `seconds`, or until SIGTERM ends it; then says of each interval of five seconds how
/// many bytes it moved, how many requests were in flight at most, and the longest time in ms so far
/// that some were and nothing moved. It writes nothing before: a page of a tmpfs may be on the very
/// device.
///
/// # Errors
/// The device is not there.
pub fn run(device: &str, pid: u64, seconds: u64) -> Result<String, String> {
    stand_apart();
    let path = format!("/sys/block/{device}/stat");
    let counter = Counter(File::open(&path).map_err(|e| format!("{path}: {e}"))?);
    let open = |path| OpenOptions::new().write(true).open(path).map_err(|e| format!("{path}: {e}"));
    let (mut console, mut sysrq) = (open("/dev/kmsg")?, open("/proc/sysrq-trigger")?);
    let mut report = Vec::with_capacity(4096);
    let begun = Instant::now();
    let (mut last, mut moved) = (counter.read().map_or(0, |seen| seen.bytes), Instant::now());
    let (mut interval, mut interval_bytes, mut told) = (Instant::now(), last, false);
    let (mut busy, mut longest) = (0, 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        if ended(500) {
            break;
        }
        let Some(seen) = counter.read() else { break };
        if seen.bytes != last || seen.in_flight == 0 {
            (last, moved, told) = (seen.bytes, Instant::now(), false);
        }
        busy = busy.max(seen.in_flight);
        longest = longest.max(moved.elapsed().as_millis());
        let still = moved.elapsed().as_secs();
        if still >= REPORT_SECONDS && !told {
            told = true;
            tell(&mut console, device, pid, still, seen.in_flight);
            let _ = sysrq.write_all(b"w");
        }
        if still >= PANIC_SECONDS {
            say(&mut console, &format!("{device} moved nothing for {still} s: the end"));
            let _ = sysrq.write_all(b"c");
        }
        if interval.elapsed().as_secs() >= INTERVAL_SECONDS {
            report.push(format!("{} {busy} {longest}", seen.bytes - interval_bytes));
            (interval, interval_bytes, busy) = (Instant::now(), seen.bytes, 0);
        }
    }
    Ok(report.join("\n"))
}

fn tell(console: &mut File, device: &str, pid: u64, still: u64, in_flight: u64) {
    let mut say = |text: String| say(console, &text);
    say(format!("stall: {device} moved nothing for {still} s, {in_flight} requests in flight"));
    let threads = threads::of(pid);
    if threads.is_empty() {
        say(format!("daemon {pid} is gone"));
    }
    for thread in threads {
        let threads::Thread { id, name, state, stack, .. } = thread;
        say(format!("daemon {pid} thread {id} {name} state {state} in {}", stack.join(" < ")));
    }
    let free = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let wanted = ["MemFree", "Dirty", "Writeback:", "AnonPages", "SwapFree", "Mlocked"];
    for line in free.lines().filter(|line| wanted.iter().any(|name| line.starts_with(name))) {
        say(line.to_string());
    }
}

/// One record of the kernel's log is one write.
fn say(console: &mut File, text: &str) {
    let _ = console.write_all(format!("<2>pressure: {text}\n").as_bytes());
}

/// Waits; whether SIGTERM came meanwhile.
fn ended(milliseconds: i64) -> bool {
    let time = libc::timespec { tv_sec: 0, tv_nsec: milliseconds * 1_000_000 };
    // SAFETY: zeros are an empty set, which outlives both calls, as `time` does.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigaddset(&raw mut set, libc::SIGTERM);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const time) == libc::SIGTERM
    }
}

/// Memory of its own, no wait for anybody's pages, before all others, and never chosen by the OOM
/// killer.
fn stand_apart() {
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    // SAFETY: numbers only, and a structure that outlives its call.
    unsafe {
        libc::prctl(57, 1, 0, 0, 0);
        libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE);
        let first = libc::sched_param { sched_priority: 1 };
        libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first);
    }
}
