//! What a tapdisk may do besides serving its disk (docs/security.md, "What a tapdisk may do").

use super::facts::Confined;
use super::{Finding, Standing};

/// Names of linux/capability.h, by their numbers.
const NAMES: [&str; 41] = [
    "chown",
    "dac_override",
    "dac_read_search",
    "fowner",
    "fsetid",
    "kill",
    "setgid",
    "setuid",
    "setpcap",
    "linux_immutable",
    "net_bind_service",
    "net_broadcast",
    "net_admin",
    "net_raw",
    "ipc_lock",
    "ipc_owner",
    "sys_module",
    "sys_rawio",
    "sys_chroot",
    "sys_ptrace",
    "sys_pacct",
    "sys_admin",
    "sys_boot",
    "sys_nice",
    "sys_resource",
    "sys_time",
    "sys_tty_config",
    "mknod",
    "lease",
    "audit_write",
    "audit_control",
    "setfcap",
    "mac_override",
    "mac_admin",
    "syslog",
    "wake_alarm",
    "block_suspend",
    "audit_read",
    "perfmon",
    "bpf",
    "checkpoint_restore",
];

/// What a tapdisk keeps at most (`tapdisk/src/confine.rs`): dac_override, fowner; for its workers
/// sys_ptrace and sys_admin; ipc_lock and sys_nice where limits could not be raised.
const KEPT: u64 = 1 << 1 | 1 << 3 | 1 << 14 | 1 << 19 | 1 << 21 | 1 << 23;

pub(super) fn findings(confined: &Confined) -> [Finding; 2] {
    let Confined { capabilities, no_new_privs, seccomp } = *confined;
    let list = match seccomp {
        Some(2) => "system calls by a list",
        Some(_) => "all system calls",
        None => "this kernel filters no system calls",
    };
    [
        Finding {
            name: "capabilities",
            held: (capabilities & !KEPT == 0).into(),
            seen: match capabilities.count_ones() {
                0 => "none".into(),
                n if n > 8 => format!("{n} of them"),
                _ => names(capabilities).join(" "),
            },
            consequence: "who takes this process over has these: start it with this release of the \
                          program, and without TAPDISK_SANDBOX=off",
        },
        Finding {
            name: "confined",
            held: match seccomp {
                None => Standing::Unsupported,
                Some(mode) => (mode == 2 && no_new_privs).into(),
            },
            seen: format!("{list}{}", if no_new_privs { ", no new privileges" } else { "" }),
            consequence: "who takes this process over may call all of the kernel: start it with this \
                          release of the program, without TAPDISK_SANDBOX=off, on a kernel with \
                          CONFIG_SECCOMP_FILTER",
        },
    ]
}

fn names(capabilities: u64) -> Vec<&'static str> {
    let has = |bit: &usize| capabilities >> bit & 1 == 1;
    (0..64).filter(has).map(|bit| NAMES.get(bit).copied().unwrap_or("unknown")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(confined: Confined) -> [(Standing, String); 2] {
        findings(&confined).map(|f| (f.held, f.seen))
    }

    #[test]
    fn each_state_is_told() {
        let good = Confined { capabilities: 0x28_0002, no_new_privs: true, seccomp: Some(2) };
        let [capabilities, calls] = seen(good.clone());
        assert_eq!(capabilities, (Standing::Held, "dac_override sys_ptrace sys_admin".into()));
        assert_eq!(calls, (Standing::Held, "system calls by a list, no new privileges".into()));

        let whole = Confined { capabilities: (1 << 41) - 1, no_new_privs: false, seccomp: Some(0) };
        let [capabilities, calls] = seen(whole);
        assert_eq!(capabilities, (Standing::Missing, "41 of them".into()));
        assert_eq!(calls, (Standing::Missing, "all system calls".into()));

        let [_, calls] = seen(Confined { seccomp: None, ..good.clone() });
        assert_eq!(calls.0, Standing::Unsupported);
        let [_, calls] = seen(Confined { no_new_privs: false, ..good.clone() });
        assert_eq!(calls.0, Standing::Missing);
        let [capabilities, _] = seen(Confined { capabilities: 1 << 7, ..good.clone() });
        assert_eq!(capabilities, (Standing::Missing, "setuid".into()));
        let [capabilities, _] = seen(Confined { capabilities: 0, ..good });
        assert_eq!(capabilities, (Standing::Held, "none".into()));
    }
}
