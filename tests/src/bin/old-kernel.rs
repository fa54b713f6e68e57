//! Runs a program with the system calls that Linux 4.19 has, the kernel of XCP-ng 8.3's and
//! XenServer 8's dom0, on a kernel that has more: a filter (seccomp) answers as the old one would.
//!
//! ```text
//! old-kernel PROGRAM [ARGUMENTS]    runs it; what it starts runs under the filter as well
//! old-kernel --check                tries what the old kernel has not, and says what came of it
//! ```
//!
//! It cannot take away what no register shows: flags in an iocb, blocking file systems, copies
//! between them. And dom0's control groups refuse real-time scheduling; so does this.
use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use libc::{BPF_ABS, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};
use libc::{EINVAL, ENOPROTOOPT, ENOSYS, EOPNOTSUPP, EPERM, sock_filter};
use libc::{SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS};

/// The last number of 4.19's table (`rseq`). Everything newer begins at 424.
const LAST_CALL: u32 = 334;
/// `AUDIT_ARCH_X86_64` of linux/audit.h: numbers of other tables mean other calls.
const ARCH: u32 = 0xc000_003e;

/// When the low half of an argument is of the new kind.
#[derive(Clone, Copy)]
enum When {
    /// From the first to the last, both of them.
    Between(u32, u32),
    /// One of these bits is set.
    Has(u32),
}
use When::{Between, Has};

const fn is(value: u32) -> When {
    Between(value, value)
}

/// A call that 4.19 has, with arguments that it has not.
struct Rule {
    call: libc::c_long,
    /// Numbers of arguments from 0, and when; all of them.
    given: &'static [(u32, When)],
    errno: i32,
    why: &'static str,
}

const fn rule(
    call: libc::c_long,
    given: &'static [(u32, When)],
    errno: i32,
    why: &'static str,
) -> Rule {
    Rule { call, given, errno, why }
}

/// `PR_SET_PTRACER` of the Yama module: old, and of a large number.
const PTRACER: u32 = 0x5961_6d61;
const RESET_ON_FORK: u32 = 0x4000_0000;
const SOL_SOCKET: When = is(1);
const F_ADD_SEALS: When = is(1033);

/// Its last option is `PR_SET_SPECULATION_CTRL`, 53; of sockets `SO_TXTIME`, 61.
const RULES: &[Rule] = &[
    rule(libc::SYS_userfaultfd, &[], ENOSYS, "userfaultfd, not configured"),
    rule(libc::SYS_prctl, &[(0, Between(54, PTRACER - 1))], EINVAL, "IO_FLUSHER, VMA names ..."),
    rule(libc::SYS_prctl, &[(0, Between(PTRACER + 1, u32::MAX))], EINVAL, "later prctl options"),
    rule(libc::SYS_madvise, &[(2, Between(14, 15))], EINVAL, "huge pages, not configured"),
    rule(libc::SYS_madvise, &[(2, Between(20, 99))], EINVAL, "MADV_COLD and later"),
    rule(libc::SYS_memfd_create, &[(1, Has(0x18))], EINVAL, "MFD_NOEXEC_SEAL, MFD_EXEC"),
    rule(libc::SYS_fcntl, &[(1, F_ADD_SEALS), (2, Has(0x30))], EINVAL, "F_SEAL_FUTURE_WRITE"),
    rule(libc::SYS_preadv2, &[(5, Has(!0x1f))], EOPNOTSUPP, "later flags of preadv2"),
    rule(libc::SYS_pwritev2, &[(5, Has(!0x1f))], EOPNOTSUPP, "later flags of pwritev2"),
    rule(libc::SYS_getsockopt, &[(1, SOL_SOCKET), (2, LATER)], ENOPROTOOPT, "later SO options"),
    rule(libc::SYS_setsockopt, &[(1, SOL_SOCKET), (2, LATER)], ENOPROTOOPT, "later SO options"),
    rule(libc::SYS_sched_setscheduler, &[(1, REAL_TIME)], EPERM, "SCHED_FIFO, SCHED_RR"),
    rule(libc::SYS_sched_setscheduler, &[(1, REAL_TIME_RESET)], EPERM, "the same, not inherited"),
];
const LATER: When = Between(62, u32::MAX);
const REAL_TIME: When = Between(1, 2);
const REAL_TIME_RESET: When = Between(RESET_ON_FORK | 1, RESET_ON_FORK | 2);

fn main() -> ExitCode {
    let mut words = std::env::args_os().skip(1);
    let Some(program) = words.next() else {
        eprintln!("usage: old-kernel PROGRAM [ARGUMENTS] | --check");
        return ExitCode::from(2);
    };
    if let Err(error) = take_away() {
        eprintln!("old-kernel: this kernel takes no filter: {error}");
        return ExitCode::from(126);
    }
    if program == "--check" {
        return check();
    }
    let mut command = Command::new(&program);
    command.args(words.collect::<Vec<OsString>>());
    // Tests ask for both engines; there a tapdisk has to find out for itself.
    if std::env::var_os("TAPDISK_ENGINE").is_some_and(|engine| engine == "uring") {
        command.env_remove("TAPDISK_ENGINE");
    }
    let error = command.exec();
    eprintln!("old-kernel: {}: {error}", program.display());
    ExitCode::from(127)
}

fn step(code: u32, k: u32, yes: u8, no: u8) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("a small number"), jt: yes, jf: no, k }
}

fn load(offset: u32) -> sock_filter {
    step(BPF_LD | BPF_W | BPF_ABS, offset, 0, 0)
}

fn end(verdict: u32) -> sock_filter {
    step(BPF_RET | BPF_K, verdict, 0, 0)
}

fn error(errno: i32) -> sock_filter {
    end(SECCOMP_RET_ERRNO | errno.unsigned_abs())
}

/// The filter, over `struct seccomp_data`: number at 0, table at 4, arguments of eight bytes from
/// 16.
fn filter() -> Vec<sock_filter> {
    let jump = |test| BPF_JMP | test | BPF_K;
    let mut all = vec![
        load(4),
        step(jump(BPF_JEQ), ARCH, 1, 0),
        end(SECCOMP_RET_KILL_PROCESS),
        load(0),
        step(jump(BPF_JGE), LAST_CALL + 1, 0, 1),
        error(ENOSYS),
    ];
    for rule in RULES {
        let call = u32::try_from(rule.call).expect("a number of a call");
        // Each test goes on, or beyond the rule's end: the tests after it and the verdict.
        let mut tests = vec![(load(0), vec![(BPF_JEQ, call, true)])];
        for (argument, when) in rule.given {
            let conditions = match *when {
                Between(first, last) if last < u32::MAX => {
                    vec![(BPF_JGE, first, true), (BPF_JGE, last + 1, false)]
                }
                Between(first, _) => vec![(BPF_JGE, first, true)],
                Has(bits) => vec![(BPF_JSET, bits, true)],
            };
            tests.push((load(16 + 8 * argument), conditions));
        }
        let mut left: usize = tests.iter().map(|(_, conditions)| 1 + conditions.len()).sum();
        for (load, conditions) in tests {
            all.push(load);
            left -= 1;
            for (test, k, wanted) in conditions {
                left -= 1;
                let beyond = u8::try_from(left + 1).expect("a short rule");
                let (yes, no) = if wanted { (0, beyond) } else { (beyond, 0) };
                all.push(step(jump(test), k, yes, no));
            }
        }
        all.push(error(rule.errno));
    }
    all.push(end(SECCOMP_RET_ALLOW));
    all
}

/// Puts the filter onto this process and all that it starts.
fn take_away() -> io::Result<()> {
    let mut steps = filter();
    let program = libc::sock_fprog {
        len: u16::try_from(steps.len()).expect("a short filter"),
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: plain numbers; the filter lives until the call returns, and the kernel copies it.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1_u64, 0_u64, 0_u64, 0_u64);
        libc::prctl(libc::PR_SET_SECCOMP, u64::from(libc::SECCOMP_MODE_FILTER), &raw const program)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Each rule with arguments it is made for, and what 4.19 has.
fn check() -> ExitCode {
    let mut wrong = 0;
    let mut expect = |what: &str, call: libc::c_long, words: [u64; 6], errno: i32| {
        let [a, b, c, d, e, f] = words;
        // SAFETY: no pointer among the arguments leads anywhere, and those calls that are let
        // through below change nothing.
        let result = unsafe { libc::syscall(call, a, b, c, d, e, f) };
        let said = io::Error::last_os_error().raw_os_error().unwrap_or(0);
        let came = if result == -1 { said } else { 0 };
        if came != errno {
            eprintln!("old-kernel: {what}: errno {came} in place of {errno}");
            wrong += 1;
        }
    };
    for call in [424, libc::SYS_io_uring_setup, libc::SYS_clone3, libc::SYS_close_range] {
        expect("a call of a later kernel", call, [u64::MAX; 6], ENOSYS);
    }
    for rule in RULES {
        let mut words = [0; 6];
        for (argument, when) in rule.given {
            words[*argument as usize] = match *when {
                Between(_, last) => u64::from(last),
                Has(bits) => u64::from(bits & bits.wrapping_neg()),
            };
        }
        expect(rule.why, rule.call, words, rule.errno);
    }
    expect("PR_GET_NO_NEW_PRIVS", libc::SYS_prctl, [39, 0, 0, 0, 0, 0], 0);
    expect("MADV_DONTDUMP", libc::SYS_madvise, [0, 0, 16, 0, 0, 0], 0);
    expect("a plain pwritev2", libc::SYS_pwritev2, [u64::MAX, 0, 0, 0, 0, 0], libc::EBADF);
    expect("SCHED_IDLE for nobody", libc::SYS_sched_setscheduler, [0, 5, 0, 0, 0, 0], EINVAL);
    if wrong == 0 {
        println!("old-kernel: {} rules hold", RULES.len());
        return ExitCode::SUCCESS;
    }
    ExitCode::FAILURE
}
