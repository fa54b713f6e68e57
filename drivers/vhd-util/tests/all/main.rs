//! The program as scripts and people run it. One
//! program: linking is most of a small change's loop.
mod changing;
mod check;
mod cli;
mod common;
mod golden;
mod json;
mod keys;
mod odd;
mod signals;
