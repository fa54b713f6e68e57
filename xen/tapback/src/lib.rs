//! tapback: the xenstore half of a guest's disk. It watches the disks of all guests, leads each
//! through xenbus' handshake, and tells the disk's tapdisk to connect to the guest's ring. It never
//! touches a ring or an image.
//!
//! ```text
//!   watches ──► desk ──► a bell a disk
//!                          │
//!   device: look (view) ─► decide ─► do one step (steps) ─► look again …  until there is nothing to do
//!                          pure        │ xenstore            │ tapdisk's control socket
//! ```
//!
//! A disk is judged by what the store says *now*, never by which event came: so it does not matter
//! in which order a toolstack writes, which events were merged, or whether this process was just
//! started. Each disk is a task of its own; a tapdisk that does not answer holds up its own disk
//! and no other.
#![deny(unsafe_code)]

pub mod bell;
pub mod config;
pub mod daemon;
pub mod decide;
mod desk;
mod device;
pub mod instance;
pub mod log;
mod offers;
mod reactor;
mod record;
pub mod ring;
mod steps;
pub mod sys;
mod tapdisk;
mod tasks;
mod trouble;
pub mod view;
