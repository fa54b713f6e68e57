//! What the offline tools share: options as getopt reads them, the two output streams, and what is
//! set up first.
//!
//! The originals use getopt with short options, and their callers know its habits: clusters
//! (`-vpf`), values in the same word or the next, options after operands, `--` as the end of
//! options. Long options exist only where a tool of ours has something new.
#![deny(unsafe_code)]

mod options;
mod process;
mod term;

pub use options::{HELP, JSON, Long, Options, Spec, Takes, number};
pub use process::{begin, explain_signals};
pub use term::Term;

/// Errno of wrong usage.
pub const EINVAL: i32 = 22;

/// An errno as an exit code: cut to eight bits, as `exit` does.
pub fn exit_code(errno: i32) -> std::process::ExitCode {
    std::process::ExitCode::from(u8::try_from(errno & 0xff).unwrap_or(u8::MAX))
}
