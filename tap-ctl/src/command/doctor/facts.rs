//! What /proc tells about a process.

use super::elf;
use std::fs;
use std::io;

/// `PF_MEMALLOC_NOIO | PF_LOCAL_THROTTLE` of linux/sched.h: what PR_SET_IO_FLUSHER sets.
const IO_FLUSHER: u64 = 0x0008_0000 | 0x0010_0000;

/// Of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Threads, and those of them that have PR_SET_IO_FLUSHER; io_uring's workers are threads too.
    pub threads: usize,
    pub io_flushers: usize,
    /// It was built as a control, without its protections.
    pub is_control: bool,
    /// vm.min_free_kbytes.
    pub free_kib: u64,
    /// Version of the running kernel.
    pub kernel: (u32, u32),
    pub locked_kib: u64,
    /// In memory, but not locked.
    pub unlocked_kib: u64,
    pub oom_score_adj: Option<i32>,
    pub stack_kib: u64,
    /// `None` if the program file cannot be read.
    pub bound_at_start: Option<bool>,
    pub nice: i32,
    /// 0: the normal one.
    pub policy: u32,
    /// Where standard output or error go, if a reader could make a writer wait.
    pub blocking_output: Option<String>,
    pub confined: Confined,
}

/// What a process gave up, by its status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confined {
    /// Permitted capabilities, by their bits.
    pub capabilities: u64,
    pub no_new_privs: bool,
    /// 2: there is a filter of system calls. `None`: this kernel has no such thing.
    pub seccomp: Option<u64>,
}

impl Confined {
    fn of(status: &str) -> Confined {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let number = |name: &str| field(name).and_then(|text| text.trim().parse().ok());
        let bits = field("CapPrm:").map(str::trim).unwrap_or_default();
        Confined {
            capabilities: u64::from_str_radix(bits, 16).unwrap_or(u64::MAX),
            no_new_privs: number("NoNewPrivs:") == Some(1),
            seccomp: number("Seccomp:"),
        }
    }
}

impl Facts {
    /// Looks at a process.
    ///
    /// # Errors
    /// It is gone, or another user's.
    pub fn of(pid: i32) -> io::Result<Facts> {
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let stat = read("stat")?;
        let (_, nice, policy) =
            stat_fields(&stat).ok_or_else(|| io::Error::from_raw_os_error(libc::EPROTO))?;
        let (unlocked_kib, stack_kib) = mappings(&read("smaps")?);
        let outputs = [1, 2].map(|fd| fs::read_link(format!("/proc/{pid}/fd/{fd}")));
        let outputs = outputs.into_iter().flatten().map(|path| path.display().to_string());
        let program = fs::read(format!("/proc/{pid}/exe")).ok();
        let flags = thread_flags(pid)?;
        let control = tap_ctl::UNPROTECTED.as_bytes();
        Ok(Facts {
            threads: flags.len(),
            io_flushers: flags.iter().filter(|flags| *flags & IO_FLUSHER == IO_FLUSHER).count(),
            is_control: program
                .as_deref()
                .is_some_and(|file| file.windows(control.len()).any(|part| part == control)),
            free_kib: kib_of(&fs::read_to_string("/proc/sys/vm/min_free_kbytes")),
            kernel: kernel(&fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()),
            locked_kib: kib_after(&read("status")?, "VmLck:"),
            unlocked_kib,
            oom_score_adj: read("oom_score_adj").ok().and_then(|text| text.trim().parse().ok()),
            stack_kib,
            bound_at_start: program.as_deref().and_then(elf::binds_at_start),
            nice,
            policy,
            blocking_output: outputs.into_iter().find(|path| may_block(path)),
            confined: Confined::of(&read("status")?),
        })
    }
}

/// Of each thread. One that ends meanwhile is not there.
fn thread_flags(pid: i32) -> io::Result<Vec<u64>> {
    let stats = fs::read_dir(format!("/proc/{pid}/task"))?.flatten();
    let stats = stats.filter_map(|thread| fs::read_to_string(thread.path().join("stat")).ok());
    Ok(stats.filter_map(|stat| Some(stat_fields(&stat)?.0)).collect())
}

fn kib_of(text: &io::Result<String>) -> u64 {
    text.as_ref().ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn may_block(path: &str) -> bool {
    path.starts_with("pipe:")
        || path.starts_with("socket:")
        || path.starts_with("/dev/pts/")
        || path.starts_with("/dev/tty")
        || path == "/dev/console"
}

/// Flags, nice and policy: fields 9, 19 and 41. The name, field 2, may hold anything, even
/// brackets.
fn stat_fields(stat: &str) -> Option<(u64, i32, u32)> {
    let rest = stat.get(stat.rfind(')')? + 1..)?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3);
    Some((field(9)?.parse().ok()?, field(19)?.parse().ok()?, field(41)?.parse().ok()?))
}

fn kernel(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn kib_after(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// KiB in memory of all mappings that are not locked, and of the stack.
fn mappings(smaps: &str) -> (u64, u64) {
    let (mut unlocked, mut stack, mut resident) = (0, 0, 0);
    let (mut is_stack, mut kernels) = (false, false);
    for line in smaps.lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if !name.ends_with(':') {
            is_stack = line.ends_with("[stack]");
            // These are the kernel's own pages, which are never reclaimed.
            kernels = ["[vdso]", "[vvar]", "[vvar_vclock]", "[vsyscall]", "/[aio]"]
                .iter()
                .any(|part| line.trim_end_matches(" (deleted)").ends_with(part));
        } else if name == "Rss:" {
            resident = kib_after(line, "Rss:");
            if is_stack {
                stack = resident;
            }
        } else if name == "VmFlags:" {
            let has = |flag| line.split_whitespace().any(|word| word == flag);
            // Mapped from a driver, as rings are: pages that the kernel holds.
            let drivers = has("io") || has("pf") || has("mm");
            if !kernels && !has("lo") && !drivers {
                unlocked += resident;
            }
        }
    }
    (unlocked, stack)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_does_not_confuse() {
        let mut fields = vec!["S".to_string()];
        fields.extend((4..=52).map(|n| n.to_string()));
        let stat = format!("17 (tap) x) {}", fields.join(" "));
        assert_eq!(stat_fields(&stat), Some((9, 19, 41)));
        assert_eq!(stat_fields("17 (x"), None);
    }

    #[test]
    fn what_is_in_memory_and_not_locked_is_counted() {
        let of = |name: &str, rss: u64, flags: &str| {
            format!(
                "7f00-7f01 rw-p 0 0:0 0 {name}\nSize: 9 kB\nRss: {rss} kB\nVmFlags: rd wr {flags}\n"
            )
        };
        let smaps = [
            of("/bin/tapdisk", 100, "lo"),
            of("[heap]", 8, "me"),
            of("[stack]", 260, "gd lo"),
            of("[vdso]", 4, "de"),
            of("/dev/ublkc0", 4, "pf io"),
            of("anon_inode:[io_uring]", 12, "mm"),
            of("/[aio] (deleted)", 64, "de"),
        ];
        assert_eq!(mappings(&smaps.concat()), (8, 260));
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let facts = Facts::of(std::process::id() as i32).expect("our own");
        assert!(facts.kernel > (3, 0) && facts.oom_score_adj.is_some());
        assert!(facts.stack_kib > 0 || facts.unlocked_kib > 0);
    }

    #[test]
    fn what_was_given_up_is_read() {
        let text = "CapPrm:\t0000000000080002\nCapEff:\t0\nNoNewPrivs:\t1\nSeccomp:\t2\n";
        let confined = Confined { capabilities: 0x8_0002, no_new_privs: true, seccomp: Some(2) };
        assert_eq!(Confined::of(text), confined);
        let nothing = Confined { capabilities: u64::MAX, no_new_privs: false, seccomp: None };
        assert_eq!(Confined::of("Name:\tx\n"), nothing);
    }

    #[test]
    fn releases_are_read_as_numbers() {
        assert_eq!(kernel("6.12.9-amd64\n"), (6, 12));
        assert_eq!(kernel("4.19.0+1"), (4, 19));
    }
}
