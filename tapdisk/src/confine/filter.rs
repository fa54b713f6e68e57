//! The list of system calls, and the filter that is made of it.
//!
//! ```text
//!   calls of the data path: allowed ─► ioctls of the data path: allowed ─► the list ─► else
//! ```
//! The calls that requests make come first and have no conditions: since Linux 5.11 the kernel does
//! not even run the filter for those, and before they cost a few comparisons. The list has what a
//! tapdisk calls while it serves, opens and ends, with the calls of C libraries from 2.17 on, and
//! what a program calls that begins: `tap-ctl upgrade` executes the installed one in place.
use std::collections::BTreeMap;

use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use xen::devices::{IOCTLS_OF_REQUESTS, IOCTLS_OF_RINGS};

use super::Mode;
use frontend::blktap::abi::ring_ioctl;

/// What requests call, most frequent first.
const DATA_PATH: &[libc::c_long] = &[
    libc::SYS_io_uring_enter,
    libc::SYS_io_submit,
    libc::SYS_io_getevents,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_futex,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_preadv2,
    libc::SYS_fdatasync,
    libc::SYS_fallocate,
];

/// Of `ioctl`, the others that are not a guest's ring's: the blktap module; block devices
/// (linux/fs.h: BLKGETSIZE64, BLKSSZGET, BLKDISCARD); sockets; what the standard library asks of
/// its output.
const IOCTLS: &[u64] = &[
    ring_ioctl::CREATE_DEVICE as u64,
    ring_ioctl::CREATE_DEVICE_OLD as u64,
    ring_ioctl::REMOVE_DEVICE as u64,
    ring_ioctl::KEEP as u64,
    0x8008_1272,
    0x1268,
    0x1277,
    0x5401, // TCGETS
    0x5411, // TIOCOUTQ
    0x541b, // FIONREAD
    0x5421, // FIONBIO
    0x5451, // FIOCLEX
];

/// Of `ioctl`, what requests of guests' rings and of the blktap module's ring call.
fn data_ioctls() -> impl Iterator<Item = u64> {
    IOCTLS_OF_REQUESTS.into_iter().chain([ring_ioctl::RESPOND.into()])
}

/// Calls without conditions.
const CALLS: &[libc::c_long] = &[
    // Images, folders, logs, shared memory.
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_lseek,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_fsync,
    libc::SYS_sync_file_range,
    libc::SYS_ftruncate,
    libc::SYS_fadvise64,
    libc::SYS_flock,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_pipe2,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_fchmod,
    libc::SYS_umask,
    libc::SYS_getxattr,
    libc::SYS_fgetxattr,
    libc::SYS_fsetxattr,
    // The word for a parent, when a commit gives an image another one.
    libc::SYS_setxattr,
    libc::SYS_removexattr,
    libc::SYS_memfd_create,
    // Engines and events.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_register,
    libc::SYS_io_setup,
    libc::SYS_io_destroy,
    libc::SYS_io_cancel,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_ppoll,
    // Sockets; `socket` has conditions.
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    // Memory; `mmap` and `mprotect` have conditions.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_mlockall,
    libc::SYS_munlock,
    // Threads, signals, time; `clone` and `tgkill` have conditions.
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    // Refused by a filter of its own.
    libc::SYS_clone3,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setscheduler,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_restart_syscall,
    // The process itself; `prctl`, `prlimit64` and `setpriority` have conditions.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_seccomp,
    libc::SYS_execve,
];

/// What older C libraries call for the same, where there is such a call.
#[cfg(target_arch = "x86_64")]
const OLDER: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_getdents,
    libc::SYS_mkdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_epoll_create,
    libc::SYS_eventfd,
    libc::SYS_signalfd,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_time,
    libc::SYS_arch_prctl,
];
#[cfg(not(target_arch = "x86_64"))]
const OLDER: &[libc::c_long] = &[];

/// `prctl`: names of threads, IO_FLUSHER, dumpable, capabilities, no_new_privs, seccomp; the C
/// library's names of memory.
const PRCTLS: &[u64] = &[
    libc::PR_SET_NAME as u64,
    libc::PR_GET_DUMPABLE as u64,
    libc::PR_SET_DUMPABLE as u64,
    57, // PR_SET_IO_FLUSHER
    58, // PR_GET_IO_FLUSHER
    libc::PR_CAPBSET_READ as u64,
    libc::PR_CAPBSET_DROP as u64,
    libc::PR_CAP_AMBIENT as u64,
    libc::PR_SET_NO_NEW_PRIVS as u64,
    libc::PR_GET_NO_NEW_PRIVS as u64,
    libc::PR_GET_SECCOMP as u64,
    0x5356_4d41, // PR_SET_VMA
    0x4155_5856, // PR_GET_AUXV, of rustix, once
];

/// `fcntl`: descriptors, their flags, locks, seals of a memfd.
const FCNTLS: &[i32] = &[
    libc::F_DUPFD,
    libc::F_GETFD,
    libc::F_SETFD,
    libc::F_GETFL,
    libc::F_SETFL,
    libc::F_GETLK,
    libc::F_SETLK,
    libc::F_SETLKW,
    libc::F_OFD_GETLK,
    libc::F_OFD_SETLK,
    libc::F_OFD_SETLKW,
    libc::F_DUPFD_CLOEXEC,
    libc::F_ADD_SEALS,
    libc::F_GET_SEALS,
];

/// The filter; `None` for a processor that there is no filter for.
pub(super) fn program(mode: Mode, pid: u32) -> Option<BpfProgram> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).ok()?;
    let else_ = match mode {
        Mode::Off => return None,
        Mode::Errno => SeccompAction::Errno(libc::EPERM as u32),
        Mode::Kill => SeccompAction::KillProcess,
    };
    let list = SeccompFilter::new(rules(pid)?, else_, SeccompAction::Allow, architecture).ok()?;
    let mut program = first(architecture);
    program.extend(BpfProgram::try_from(list).ok()?);
    Some(program)
}

/// FNV-1a of both filters, without the number of the process.
pub(super) fn id(mode: Mode) -> u64 {
    let mut steps = without_clone3();
    steps.extend(program(mode, 0).unwrap_or_default());
    let words = steps
        .iter()
        .flat_map(|step| [u32::from(step.code), u32::from(step.jt), u32::from(step.jf), step.k]);
    words.flat_map(u32::to_le_bytes).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(pid: u32) -> Option<Rules> {
    let mut rules: Rules =
        DATA_PATH.iter().chain(CALLS).chain(OLDER).map(|call| (*call, Vec::new())).collect();
    let mut when = |call: libc::c_long, any: &[&[Condition]]| {
        let all = any.iter().map(|all| rule(all)).collect::<Option<Vec<_>>>()?;
        rules.insert(call, all);
        Some(())
    };
    let is = |at: u8| move |value: &u64| [(at, Eq, *value)];
    let any = |at: u8, values: &[u64]| values.iter().map(is(at)).collect::<Vec<_>>();
    let ioctls: Vec<u64> =
        data_ioctls().chain(IOCTLS_OF_RINGS).chain(IOCTLS.iter().copied()).collect();
    let ioctls = any(1, &ioctls);
    when(libc::SYS_ioctl, &ioctls.iter().map(|one| &one[..]).collect::<Vec<_>>())?;
    let prctls = any(0, PRCTLS);
    when(libc::SYS_prctl, &prctls.iter().map(|one| &one[..]).collect::<Vec<_>>())?;
    let fcntls = FCNTLS.iter().map(|value| u64::from(value.unsigned_abs())).collect::<Vec<_>>();
    let fcntls = any(1, &fcntls);
    when(libc::SYS_fcntl, &fcntls.iter().map(|one| &one[..]).collect::<Vec<_>>())?;

    // Never writable and executable; executable only from a file and private, as the dynamic loader
    // of the next program does it: what is shared could be written through another mapping.
    let (write, execute) = (libc::PROT_WRITE as u64, libc::PROT_EXEC as u64);
    let flags = |flags: i32| u64::from(flags.unsigned_abs());
    let (anonymous, kind) = (flags(libc::MAP_ANONYMOUS), flags(libc::MAP_TYPE));
    let private = flags(libc::MAP_PRIVATE);
    let plain = [(2, MaskedEq(execute), 0)];
    let program =
        [(2, MaskedEq(write | execute), execute), (3, MaskedEq(anonymous | kind), private)];
    when(libc::SYS_mmap, &[&plain, &program])?;
    when(libc::SYS_mprotect, &[&plain])?;

    // A thread, in no namespace of its own; never a process.
    let thread = (libc::CLONE_THREAD | libc::CLONE_VM) as u64;
    let namespaces = 0x7e02_0000;
    when(libc::SYS_clone, &[&[(0, MaskedEq(thread | namespaces), thread)]])?;
    // To oneself.
    when(libc::SYS_tgkill, &[&[(0, Eq, pid.into())]])?;
    when(libc::SYS_prlimit64, &[&[(0, Eq, 0)]])?;
    when(libc::SYS_setpriority, &[&[(0, Eq, libc::PRIO_PROCESS.into()), (1, Eq, 0)]])?;

    // UNIX; TCP for `nbd:HOST:PORT`, which RESUME may name at any time; netlink for the kernel's
    // NBD client (NETLINK_GENERIC).
    let unix = [(0, Eq, libc::AF_UNIX as u64)];
    let stream = || (1, MaskedEq(0xf), libc::SOCK_STREAM as u64);
    let tcp = |family: i32| [(0, Eq, family as u64), stream()];
    let netlink = [(0, Eq, libc::AF_NETLINK as u64), (2, Eq, libc::NETLINK_GENERIC as u64)];
    when(libc::SYS_socket, &[&unix, &tcp(libc::AF_INET), &tcp(libc::AF_INET6), &netlink])?;
    when(libc::SYS_socketpair, &[&unix])?;
    Some(rules)
}

/// Of an argument by its number: its low half, and what it has to be.
type Condition = (u8, SeccompCmpOp, u64);

fn rule(all: &[Condition]) -> Option<SeccompRule> {
    let all = all
        .iter()
        .map(|(at, how, value)| SeccompCondition::new(*at, Dword, how.clone(), *value).ok());
    SeccompRule::new(all.collect::<Option<Vec<_>>>()?).ok()
}

// ---- what comes before the list ----------------------------------------------------------------

/// Instructions of linux/bpf_common.h: load a word of `struct seccomp_data`, compare, go on,
/// return.
const LOAD: u16 = 0x20;
const IF_EQUAL: u16 = 0x15;
const GO: u16 = 0x05;
const RETURN: u16 = 0x06;
/// Where `struct seccomp_data` has the number, the processor and the second argument's low half.
const NUMBER: u32 = 0;
const PROCESSOR: u32 = 4;
const SECOND: u32 = 24;

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

/// A filter of its own: `clone3` is ENOSYS, so that C libraries take `clone`, whose flags can be
/// seen. The kernel's log has what the other filter refuses, and this is nothing to tell.
pub(super) fn without_clone3() -> BpfProgram {
    // By the numbers of any processor that has them, `clone3` is the same.
    let mut compare = step(IF_EQUAL, libc::SYS_clone3 as u32);
    (compare.jt, compare.jf) = (1, 0);
    let unknown = SeccompAction::Errno(libc::ENOSYS as u32);
    vec![
        step(LOAD, NUMBER),
        compare,
        step(RETURN, u32::from(SeccompAction::Allow)),
        step(RETURN, u32::from(unknown)),
    ]
}

/// The data path is let through. Everything else goes on to the list, other processors' calls too.
fn first(architecture: TargetArch) -> BpfProgram {
    let processor = match architecture {
        TargetArch::x86_64 => 0xc000_003e,
        TargetArch::aarch64 => 0xc000_00b7,
        TargetArch::riscv64 => 0xc000_00f3,
    };
    let numbers = DATA_PATH.iter().map(|call| *call as u32);
    let ioctls: Vec<u32> = data_ioctls().map(|number| number as u32).collect();
    // The end: on to the list, allowed.
    let end = 3 + DATA_PATH.len() + 2 + ioctls.len();
    let (list, allow) = (end, end + 1);
    let mut all: Vec<(sock_filter, Option<(usize, usize)>)> = vec![
        (step(LOAD, PROCESSOR), None),
        (step(IF_EQUAL, processor), Some((2, list))),
        (step(LOAD, NUMBER), None),
    ];
    for number in numbers {
        all.push((step(IF_EQUAL, number), Some((allow, all.len() + 1))));
    }
    all.push((step(IF_EQUAL, libc::SYS_ioctl as u32), Some((all.len() + 1, list))));
    all.push((step(LOAD, SECOND), None));
    for number in ioctls {
        all.push((step(IF_EQUAL, number), Some((allow, all.len() + 1))));
    }
    assert_eq!(all.len(), end, "the places of the end are where they were said to be");
    all.push((step(GO, 1), None));
    all.push((step(RETURN, u32::from(SeccompAction::Allow)), None));
    let resolved = all.into_iter().enumerate().map(|(at, (step, to))| match to {
        None => step,
        Some((yes, no)) => {
            let offset = |to: usize| u8::try_from(to - at - 1).expect("a short way");
            sock_filter { jt: offset(yes), jf: offset(no), ..step }
        }
    });
    resolved.collect()
}
