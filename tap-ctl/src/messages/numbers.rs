//! The numbers of the protocol: message types, open flags, state bits.

/// Message types (§3.2). A reply is the request's number + 1, except for FORCE_SHUTDOWN.
#[allow(missing_docs)]
pub mod kind {
    pub const ERROR: u16 = 1;
    pub const RUNTIME_ERROR: u16 = 2;
    pub const PID: u16 = 3;
    pub const PID_RSP: u16 = 4;
    pub const ATTACH: u16 = 5;
    pub const ATTACH_RSP: u16 = 6;
    pub const OPEN: u16 = 7;
    pub const OPEN_RSP: u16 = 8;
    pub const PAUSE: u16 = 9;
    pub const PAUSE_RSP: u16 = 10;
    pub const RESUME: u16 = 11;
    pub const RESUME_RSP: u16 = 12;
    pub const CLOSE: u16 = 13;
    pub const CLOSE_RSP: u16 = 14;
    pub const DETACH: u16 = 15;
    pub const DETACH_RSP: u16 = 16;
    pub const LIST_MINORS: u16 = 17;
    pub const LIST_MINORS_RSP: u16 = 18;
    pub const LIST: u16 = 19;
    pub const LIST_RSP: u16 = 20;
    pub const STATS: u16 = 21;
    pub const STATS_RSP: u16 = 22;
    pub const FORCE_SHUTDOWN: u16 = 23;
    pub const XENBLKIF_CONNECT: u16 = 24;
    pub const XENBLKIF_CONNECT_RSP: u16 = 25;
    pub const XENBLKIF_DISCONNECT: u16 = 26;
    pub const XENBLKIF_DISCONNECT_RSP: u16 = 27;
    pub const DISK_INFO: u16 = 28;
    pub const DISK_INFO_RSP: u16 = 29;
    pub const EXIT: u16 = 30;
    /// Of blktap's qcow2 builds, as the next five.
    pub const COMMIT: u16 = 31;
    pub const COMMIT_RSP: u16 = 32;
    pub const QUERY_COMMIT_JOB: u16 = 33;
    pub const QUERY_COMMIT_JOB_RSP: u16 = 34;
    pub const CANCEL_COMMIT_JOB: u16 = 35;
    pub const CANCEL_COMMIT_JOB_RSP: u16 = 36;
    /// Ours, above all that blktap and its qcow2 builds use (31 to 36).
    pub const UPGRADE: u16 = 100;
    pub const UPGRADE_RSP: u16 = 101;
    pub const LIMIT: u16 = 102;
    pub const LIMIT_RSP: u16 = 103;
}

/// Flags of OPEN and RESUME (§3.3). RESUME looks at [`ADD_LOG`](flag::ADD_LOG) and
/// [`SECONDARY`](flag::SECONDARY) only; the others persist from OPEN.
pub mod flag {
    /// The image may be shared inside the process.
    pub const SHARED: u32 = 0x001;
    /// Open read-only.
    pub const RDONLY: u32 = 0x002;
    /// Insert the block cache over the shared read-only parent.
    pub const ADD_CACHE: u32 = 0x004;
    /// VHD index.
    pub const VHD_INDEX: u32 = 0x008;
    /// Change-tracking layer; a 256-byte log path follows the message.
    pub const ADD_LOG: u32 = 0x010;
    /// Local cache layer.
    pub const ADD_LCACHE: u32 = 0x020;
    /// `prt_devnum` names the parent; without effect itself (§3.1).
    pub const REUSE_PRT: u32 = 0x040;
    /// `secondary` is valid.
    pub const SECONDARY: u32 = 0x080;
    /// The secondary is a fail-over on ENOSPC, not a mirror.
    pub const STANDBY: u32 = 0x100;
    /// Open parents through the page cache.
    pub const NO_O_DIRECT: u32 = 0x200;
    /// An encryption key follows the message.
    pub const OPEN_ENCRYPTED: u32 = 0x400;
    /// Ours: serve the disk as a block device of this kernel as well.
    pub const DEVICE: u32 = 0x0100_0000;
    /// Ours, with [`DEVICE`]: take over the device that is named, whose tapdisk died.
    pub const TAKE_OVER: u32 = 0x0200_0000;
    /// Ours, with [`DEVICE`] and [`TAKE_OVER`]: do not open anything, take the device away.
    pub const REMOVE: u32 = 0x0400_0000;
}

/// Bits of a VBD's state in LIST (§5.13).
pub mod state {
    /// The queue was killed.
    pub const DEAD: u32 = 0x001;
    /// The images are closed.
    pub const CLOSED: u32 = 0x002;
    /// Waiting for pending requests.
    pub const QUIESCE_REQUESTED: u32 = 0x004;
    /// No requests are issued.
    pub const QUIESCED: u32 = 0x008;
    /// A pause was asked for and is not complete.
    pub const PAUSE_REQUESTED: u32 = 0x010;
    /// Paused.
    pub const PAUSED: u32 = 0x020;
    /// A signal asked for shutdown while requests were pending.
    pub const SHUTDOWN_REQUESTED: u32 = 0x040;
    /// Unused.
    pub const LOCKING: u32 = 0x080;
    /// The watchdog has written its report once.
    pub const LOG_DROPPED: u32 = 0x100;
    /// The last RESUME failed.
    pub const RESUME_FAILED: u32 = 0x200;

    /// Names of the bits, lowest first, for people.
    pub const NAMES: [(u32, &str); 10] = [
        (DEAD, "dead"),
        (CLOSED, "closed"),
        (QUIESCE_REQUESTED, "quiesce-requested"),
        (QUIESCED, "quiesced"),
        (PAUSE_REQUESTED, "pause-requested"),
        (PAUSED, "paused"),
        (SHUTDOWN_REQUESTED, "shutdown-requested"),
        (LOCKING, "locking"),
        (LOG_DROPPED, "log-dropped"),
        (RESUME_FAILED, "resume-failed"),
    ];

    /// The machine text of a state, C's `%#x`: lower-case hex with `0x`, but plain `0` for zero.
    pub fn hex(state: u32) -> String {
        if state == 0 { "0".to_owned() } else { format!("{state:#x}") }
    }

    /// The names of the bits that are set, joined with commas; `running` when none is.
    pub fn names(state: u32) -> String {
        let set: Vec<&str> =
            NAMES.iter().filter(|(bit, _)| state & bit != 0).map(|(_, name)| *name).collect();
        if set.is_empty() { "running".to_owned() } else { set.join(",") }
    }
}

/// The log text of a message type (§3.2); `unknown` for a number that has none.
pub fn type_name(number: u16) -> &'static str {
    use kind::*;
    match number {
        ERROR => "error",
        PID => "pid",
        PID_RSP => "pid response",
        ATTACH => "attach",
        ATTACH_RSP => "attach response",
        OPEN => "open",
        OPEN_RSP => "open response",
        PAUSE => "pause",
        PAUSE_RSP => "pause response",
        RESUME => "resume",
        RESUME_RSP => "resume response",
        CLOSE => "close",
        CLOSE_RSP => "close response",
        DETACH => "detach",
        DETACH_RSP => "detach response",
        LIST_MINORS => "list minors",
        LIST_MINORS_RSP => "list minors response",
        LIST => "list",
        LIST_RSP => "list response",
        STATS => "stats",
        STATS_RSP => "stats response",
        FORCE_SHUTDOWN => "force shutdown",
        XENBLKIF_CONNECT => "sring connect",
        XENBLKIF_CONNECT_RSP => "sring connect rsp",
        XENBLKIF_DISCONNECT => "sring disconnect",
        XENBLKIF_DISCONNECT_RSP => "sring disconnect rsp",
        DISK_INFO => "disk info",
        DISK_INFO_RSP => "disk info rsp",
        EXIT => "exit",
        COMMIT => "commit",
        COMMIT_RSP => "commit response",
        QUERY_COMMIT_JOB => "query commit job",
        QUERY_COMMIT_JOB_RSP => "query commit job response",
        CANCEL_COMMIT_JOB => "cancel commit job",
        CANCEL_COMMIT_JOB_RSP => "cancel commit job response",
        UPGRADE => "upgrade",
        UPGRADE_RSP => "upgrade response",
        LIMIT => "limit",
        LIMIT_RSP => "limit response",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_text_is_the_original_s() {
        assert_eq!(state::hex(0), "0");
        assert_eq!(state::hex(state::CLOSED), "0x2");
        assert_eq!(state::hex(state::PAUSED | state::QUIESCED | state::CLOSED), "0x2a");
    }

    #[test]
    fn state_names() {
        assert_eq!(state::names(0), "running");
        assert_eq!(state::names(0x22a), "closed,quiesced,paused,resume-failed");
    }

    #[test]
    fn type_names() {
        let names: Vec<&str> = (0..=37).map(type_name).collect();
        assert_eq!((names[0], names[2], names[37]), ("unknown", "unknown", "unknown"));
        assert_eq!((names[1], names[23], names[29]), ("error", "force shutdown", "disk info rsp"));
    }
}
