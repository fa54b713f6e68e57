//! Images, byte by byte: reading, changing, damage, what others make of them. One
//! program: linking is most of a small change's loop.
mod chains;
mod common;
mod damage;
mod footers;
mod fuzz;
mod fuzz_changes;
mod golden;
mod places;
mod qemu;
mod reparent;
mod rescue;
mod resize;
mod unsupported;
mod vectors;
mod writer;
