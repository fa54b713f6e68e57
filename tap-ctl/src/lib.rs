//! What tapdisk and its callers have in common: the 544-byte control messages, the names in the
//! run-time directory, and a client that speaks to a running tapdisk.
//!
//! ```text
//!  tap-ctl (main.rs, command/)          tapdisk (another crate)
//!      │ client · registry · spawn          │
//!      └──────── paths · messages ──────────┘
//! ```
//!
//! The library knows the messages and never the daemon: nothing here opens an image.
//! The daemon uses [`messages`], [`paths`] and [`error`]; the rest is for clients.
#![deny(unsafe_code)]

/// In a tapdisk that was built as a control for tests, without its protections against memory
/// pressure, and in no other.
pub const UNPROTECTED: &str = "UNPROTECTED: built to hang under memory pressure, for tests only";

pub mod client;
pub mod error;
pub mod leftovers;
pub mod messages;
pub mod minors;
pub mod module;
pub mod own_dir;
pub mod paths;
pub mod record;
pub mod registry;
pub mod spawn;
pub mod sys;
pub mod upgrade;
pub mod wiped;
