//! What the kernel tells of a process's threads, without touching the process's memory
//! (`/proc/PID/cmdline` would wait for it).
use std::fs;

/// Of one thread.
#[derive(Clone, Debug)]
pub struct Thread {
    /// Its number.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// R, S, D …
    pub state: char,
    /// PF_*, of linux/sched.h.
    pub flags: u64,
    /// The kernel's functions it is in, innermost first.
    pub stack: Vec<String>,
}

/// Those of a process; empty if it is gone.
pub fn of(pid: u64) -> Vec<Thread> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    entries.flatten().filter_map(|e| one(pid, e.file_name().to_str()?.parse().ok()?)).collect()
}

fn one(pid: u64, id: u64) -> Option<Thread> {
    let folder = format!("/proc/{pid}/task/{id}");
    let stat = fs::read_to_string(format!("{folder}/stat")).ok()?;
    let (start, end) = (stat.find('(')?, stat.rfind(')')?);
    let fields: Vec<&str> = stat.get(end + 1..)?.split_whitespace().collect();
    let stack = fs::read_to_string(format!("{folder}/stack")).unwrap_or_default();
    let function =
        |line: &str| Some(line.split_whitespace().nth(1)?.split('+').next()?.to_string());
    Some(Thread {
        id,
        name: stat.get(start + 1..end)?.to_string(),
        state: fields.first()?.chars().next()?,
        flags: fields.get(6)?.parse().ok()?,
        stack: stack.lines().filter_map(function).collect(),
    })
}

/// A line a thread: number, name, flags in hexadecimal, whether NOIO and LOCAL_THROTTLE are among
/// them.
pub fn flags(pid: u64) -> String {
    let flusher =
        |flags: u64| if flags & 0x0018_0000 == 0x0018_0000 { "io-flusher" } else { "plain" };
    let line = |t: Thread| format!("{} {} {:#x} {}", t.id, t.name, t.flags, flusher(t.flags));
    of(pid).into_iter().map(line).collect::<Vec<_>>().join("\n")
}
