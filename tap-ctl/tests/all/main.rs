//! The program as scripts and people run it, over daemons that the tests play. One
//! program: linking is most of a small change's loop.
mod common;
mod registry;
mod spawn;
mod tapdisk;
mod usage;
