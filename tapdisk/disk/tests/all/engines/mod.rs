//! The disk engines against real files: every test runs on io_uring and on Linux AIO.
mod io;
mod memory;
mod space;
mod support;
mod wait;
