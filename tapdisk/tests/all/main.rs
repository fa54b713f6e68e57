//! The daemon as a process, spoken to as its users speak to it. One program: linking is most of a
//! small change's loop.
mod confined;
mod daemon_hanging;
mod daemon_images;
mod daemon_lifecycle;
mod daemon_locks;
mod daemon_process;
mod daemon_protocol;
mod daemon_remote;
mod daemon_rings;
mod daemon_strangers;
mod daemon_support;
