//! What a tapdisk may still do once it has started: by /proc of the real one, and call by call in
//! children that confine themselves.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};

use crate::daemon_support::{Daemon, program};
use tapdisk::confine::{Mode, confine};

/// In force: CAP_DAC_OVERRIDE, CAP_FOWNER. In reach of workers: CAP_SYS_PTRACE, CAP_SYS_ADMIN.
const KEPT: u64 = 1 << 1 | 1 << 3;
const OF_WORKERS: u64 = 1 << 19 | 1 << 21;

fn status(pid: i32, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("a status");
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    u64::from_str_radix(line.trim(), 16).expect("a number")
}

/// What this process could give to a child.
fn had() -> u64 {
    status(std::process::id() as i32, "CapPrm:")
}

/// What stays as well where the caller lacks CAP_SYS_RESOURCE, so that no limit can be raised:
/// CAP_IPC_LOCK, CAP_SYS_NICE.
fn instead_of_limits(pid: i32) -> u64 {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).expect("limits");
    let soft = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).expect("the limit");
        line.split_whitespace().next().expect("a soft limit").to_owned()
    };
    let lock = u64::from(soft("Max locked memory") != "unlimited") << 14;
    lock | u64::from(soft("Max realtime priority") == "0") << 23
}

fn standing(pid: i32) -> [u64; 6] {
    ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:", "NoNewPrivs:", "Seccomp:"].map(|f| status(pid, f))
}

#[test]
fn a_disk_that_is_served_has_next_to_no_capabilities() {
    for engine in ["aio", "uring"] {
        let daemon = Daemon::spawn_with(|c| {
            c.env("TAPDISK_ENGINE", engine).env("TAPDISK_SANDBOX", "kill");
        });
        let kept = KEPT | instead_of_limits(daemon.pid);
        let wanted = [had() & (kept | OF_WORKERS), had() & kept, 0, 0, 1, 2];
        assert_eq!(standing(daemon.pid), wanted, "{engine} started");
        assert_eq!(status(daemon.pid, "CapBnd:") & had() & !(kept | OF_WORKERS), 0);
        let image = daemon.run.join("image");
        std::fs::write(&image, vec![0; 1 << 20]).unwrap();
        daemon.attach(0);
        assert_eq!(daemon.open(0, &format!("aio:{}", image.display())), 0);
        assert_eq!(standing(daemon.pid), wanted, "{engine} open");
        // All its threads.
        for thread in std::fs::read_dir(format!("/proc/{}/task", daemon.pid)).unwrap().flatten() {
            let id = thread.file_name().to_str().unwrap().parse().unwrap();
            assert_eq!(standing(id)[4..], [1, 2], "thread {id}");
        }
        let mut nbd = daemon.nbd(0);
        assert_eq!(nbd.write(0, &[7; 4096]), Ok(()));
        assert_eq!(nbd.read(0, 4096), Ok(vec![7; 4096]));
    }
}

#[test]
fn off_is_off_and_other_words_are_refused() {
    let daemon = Daemon::spawn_with(|c| {
        c.env("TAPDISK_SANDBOX", "off");
    });
    assert_eq!(standing(daemon.pid)[..2], [had(), had()]);
    assert_eq!(standing(daemon.pid)[4..], standing(std::process::id() as i32)[4..]);
    let dir = tempfile::tempdir().unwrap();
    let mut wrong = crate::daemon_support::command(dir.path());
    wrong.env("TAPDISK_SANDBOX", "on");
    let out = crate::daemon_support::output(wrong);
    assert_eq!(out.status.code(), Some(libc::EINVAL));
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let text = "tapdisk: TAPDISK_SANDBOX is \"on\"; set it to off, errno or kill, or unset it\n";
    assert_eq!(said, text);
}

// ---- call by call ------------------------------------------------------------------------------

const CHILD: &str = "CONFINED_CHILD";

/// A name, the call, and whether it may be made.
type Case = (&'static str, libc::c_long, [i64; 6], Wanted);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Forbidden,
    /// It is let through to the kernel, which says this errno, 0 for success.
    Let(i32),
}
use Wanted::{Forbidden, Let};

const fn case(name: &'static str, call: libc::c_long, args: [i64; 6], wanted: Wanted) -> Case {
    (name, call, args, wanted)
}

const INET: i64 = libc::AF_INET as i64;
const PAGE: i64 = 4096;
const ANONYMOUS: i64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as i64;
const NO: i64 = -1;
/// As `posix_spawn` makes a process.
const VFORK: i64 = (libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD) as i64;

/// Arguments name no memory, so that what is let through by mistake fails or does no harm.
const CASES: &[Case] = &[
    case("ptrace", libc::SYS_ptrace, [0; 6], Forbidden),
    case("process_vm_writev", libc::SYS_process_vm_writev, [0; 6], Forbidden),
    case("mount", libc::SYS_mount, [0; 6], Forbidden),
    case("bpf", libc::SYS_bpf, [NO; 6], Forbidden),
    case("keyctl", libc::SYS_keyctl, [NO; 6], Forbidden),
    case("perf_event_open", libc::SYS_perf_event_open, [0; 6], Forbidden),
    case("userfaultfd", libc::SYS_userfaultfd, [NO; 6], Forbidden),
    case("unshare", libc::SYS_unshare, [0; 6], Forbidden),
    case("setns", libc::SYS_setns, [NO, 0, 0, 0, 0, 0], Forbidden),
    case("setuid", libc::SYS_setuid, [0; 6], Forbidden),
    case("chroot", libc::SYS_chroot, [0; 6], Forbidden),
    case("init_module", libc::SYS_init_module, [0; 6], Forbidden),
    case("personality", libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0], Forbidden),
    case("kill", libc::SYS_kill, [1, 0, 0, 0, 0, 0], Forbidden),
    case("mknodat", libc::SYS_mknodat, [NO; 6], Forbidden),
    case("a symbolic link", libc::SYS_symlinkat, [NO; 6], Forbidden),
    case("a second name", libc::SYS_linkat, [NO; 6], Forbidden),
    case("fchmodat", libc::SYS_fchmodat, [NO; 6], Forbidden),
    case("fchown", libc::SYS_fchown, [NO; 6], Forbidden),
    case("execveat", libc::SYS_execveat, [NO, 0, 0, 0, 0, 0], Forbidden),
    case("landlock_restrict_self", libc::SYS_landlock_restrict_self, [NO; 6], Forbidden),
    case("pidfd_getfd", libc::SYS_pidfd_getfd, [NO; 6], Forbidden),
    case("another's priority", libc::SYS_setpriority, [0, 1, 0, 0, 0, 0], Forbidden),
    case("open_by_handle_at", libc::SYS_open_by_handle_at, [NO; 6], Forbidden),
    case("a process", libc::SYS_clone, [libc::SIGCHLD as i64, 0, 0, 0, 0, 0], Forbidden),
    case(
        "a thread with a user namespace",
        libc::SYS_clone,
        [0x1001_0100, 0, 0, 0, 0, 0],
        Forbidden,
    ),
    case("a process in our memory", libc::SYS_clone, [VFORK, 0, 0, 0, 0, 0], Forbidden),
    case("a user namespace", libc::SYS_clone, [0x1000_0011, 0, 0, 0, 0, 0], Forbidden),
    case("a raw socket", libc::SYS_socket, [INET, 3, 1, 0, 0, 0], Forbidden),
    case("UDP", libc::SYS_socket, [INET, 2, 0, 0, 0, 0], Forbidden),
    case("a packet socket", libc::SYS_socket, [17, 3, 0, 0, 0, 0], Forbidden),
    case("AF_ALG", libc::SYS_socket, [38, 5, 0, 0, 0, 0], Forbidden),
    case("netlink of routes", libc::SYS_socket, [16, 3, 0, 0, 0, 0], Forbidden),
    case("TCP", libc::SYS_socket, [INET, 1 | 0x8_0000, 0, 0, 0, 0], Let(0)),
    case("UNIX", libc::SYS_socket, [1, 1, 0, 0, 0, 0], Let(0)),
    case("memory to write and execute", libc::SYS_mmap, [0, PAGE, 7, ANONYMOUS, NO, 0], Forbidden),
    case("memory to execute", libc::SYS_mmap, [0, PAGE, 5, ANONYMOUS, NO, 0], Forbidden),
    case("a file to write and execute", libc::SYS_mmap, [0, PAGE, 7, 2, NO, 0], Forbidden),
    case("a shared file to execute", libc::SYS_mmap, [0, PAGE, 5, 1, NO, 0], Forbidden),
    case("the same, validated", libc::SYS_mmap, [0, PAGE, 5, 3, NO, 0], Forbidden),
    case("a file to execute", libc::SYS_mmap, [0, PAGE, 5, 2, NO, 0], Let(libc::EBADF)),
    case("memory to write", libc::SYS_mmap, [0, PAGE, 3, ANONYMOUS, NO, 0], Let(0)),
    case("memory becomes executable", libc::SYS_mprotect, [0, 0, 5, 0, 0, 0], Forbidden),
    case("memory becomes executable alone", libc::SYS_mprotect, [0, 0, 4, 0, 0, 0], Forbidden),
    case("memory with a key", libc::SYS_pkey_mprotect, [0, 0, 4, 0, 0, 0], Forbidden),
    case("memory becomes writable", libc::SYS_mprotect, [0, 0, 3, 0, 0, 0], Let(0)),
    case("PR_SET_MM", libc::SYS_prctl, [35, 0, 0, 0, 0, 0], Forbidden),
    case("PR_SET_PTRACER", libc::SYS_prctl, [0x5961_6d61, 0, 0, 0, 0, 0], Forbidden),
    case("TIOCSTI", libc::SYS_ioctl, [NO, 0x5412, 0, 0, 0, 0], Forbidden),
    case("SG_IO", libc::SYS_ioctl, [NO, 0x2285, 0, 0, 0, 0], Forbidden),
    case("BLKDISCARD", libc::SYS_ioctl, [NO, 0x1277, 0, 0, 0, 0], Let(libc::EBADF)),
    case("a limit of another process", libc::SYS_prlimit64, [1, 0, 0, 0, 0, 0], Forbidden),
    case("F_SETOWN", libc::SYS_fcntl, [NO, 8, 0, 0, 0, 0], Forbidden),
    case("a signal to another process", libc::SYS_tgkill, [1, 1, 0, 0, 0, 0], Forbidden),
    case("clone3, so that clone is taken", libc::SYS_clone3, [0; 6], Let(libc::ENOSYS)),
    #[cfg(target_arch = "x86_64")]
    case("fork", libc::SYS_fork, [0; 6], Forbidden),
    #[cfg(target_arch = "x86_64")]
    case("vfork", libc::SYS_vfork, [0; 6], Forbidden),
    #[cfg(target_arch = "x86_64")]
    case("getpid by its x32 number", libc::SYS_getpid | 0x4000_0000, [0; 6], Forbidden),
    case("a number that no kernel has", 0x3fff_ffff, [0; 6], Forbidden),
];

/// Not a test by itself: what the children do.
#[test]
#[ignore = "the others run it in a process of its own"]
fn child() {
    let Ok(task) = std::env::var(CHILD) else { return };
    let (mode, task) = task.split_once(' ').expect("two words");
    let mode = if mode == "kill" { Mode::Kill } else { Mode::Errno };
    confine(&slog::Logger::root(slog::Discard, slog::o!()), mode, None);
    if task == "exec" {
        let error = Command::new(program()).arg("--version").exec();
        panic!("no exec: {error}");
    }
    if task == "thread" {
        assert_eq!(std::thread::spawn(|| 42).join().unwrap(), 42);
        return;
    }
    let (name, call, args, wanted) = CASES[task.parse::<usize>().expect("a number")];
    let [a, b, c, d, e, f] = args;
    // SAFETY: no argument is the address of memory that is in use.
    let result = unsafe { libc::syscall(call, a, b, c, d, e, f) };
    let error = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    let got = if result == -1 { error } else { 0 };
    match wanted {
        Forbidden => assert_eq!(got, libc::EPERM, "{name}"),
        Let(errno) => assert_eq!(got, errno, "{name}"),
    }
}

/// Not a test by itself: the child that asks landlock for as little as can be asked for.
#[test]
#[ignore = "another one runs it in a process of its own"]
fn landlocked() {
    let Some(other) = std::env::var_os(CHILD) else { return };
    let fdinfo = std::path::Path::new("/proc").join(other).join("fdinfo");
    std::fs::read_dir(&fdinfo).expect("seen before");
    // struct landlock_ruleset_attr of ABI 1: LANDLOCK_ACCESS_FS_MAKE_CHAR.
    let devices_are_not_made = 1_u64 << 6;
    let (at, bytes) = (&raw const devices_are_not_made, size_of::<u64>());
    // SAFETY: the kernel reads the eight bytes, which outlive the call; the others take numbers.
    let done = unsafe {
        let rules = libc::syscall(libc::SYS_landlock_create_ruleset, at, bytes, 0);
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_landlock_restrict_self, rules, 0)
    };
    if done != 0 {
        eprintln!("SKIPPED: this kernel has no landlock: {}", std::io::Error::last_os_error());
        return;
    }
    let error = std::fs::read_dir(&fdinfo).expect_err("hidden");
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "see docs/security.md");
}

/// Why a tapdisk is not under landlock (docs/security.md): it could not see any more whether who
/// holds an image writes or reads it, or is dead. If this fails there is a kernel that hides less.
#[test]
fn landlock_would_hide_who_holds_an_image() {
    let mut holder = Command::new("sleep").arg("60").spawn().expect("starts");
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.args(["--exact", "landlocked", "--ignored", "--nocapture", "--test-threads=1"]);
    let out = command.env(CHILD, holder.id().to_string()).output().expect("starts");
    holder.kill().expect("lives");
    holder.wait().expect("ends");
    assert!(out.status.success(), "{out:?}");
    eprint!("{}", String::from_utf8_lossy(&out.stderr));
}

fn run(mode: &str, task: &str) -> std::process::Output {
    let mut command = Command::new(std::env::current_exe().expect("our own path"));
    command.args(["--exact", "confined::child", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(CHILD, format!("{mode} {task}")).stdin(Stdio::null());
    command.output().expect("starts")
}

#[test]
fn what_is_not_on_the_list_kills() {
    for (at, (name, _, _, wanted)) in CASES.iter().enumerate() {
        let out = run("kill", &at.to_string());
        match wanted {
            Forbidden => assert_eq!(out.status.signal(), Some(libc::SIGSYS), "{name}: {out:?}"),
            Let(_) => assert!(out.status.success(), "{name}: {out:?}"),
        }
    }
}

#[test]
fn or_is_refused() {
    for (at, (name, ..)) in CASES.iter().enumerate() {
        let out = run("errno", &at.to_string());
        assert!(out.status.success(), "{name}: {out:?}");
    }
}

#[test]
fn threads_can_be_made_and_the_installed_program_be_executed() {
    assert!(run("kill", "thread").status.success());
    let out = run("kill", "exec");
    let said = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success() && said.contains("tapdisk 0."), "{out:?}");
}
