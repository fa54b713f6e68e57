//! tapback between a xenstored, tapdisks, toolstacks and guests that are all in this process.

mod closing;
mod connecting;
mod failures;
mod guest;
mod many;
mod program;
mod restarts;
mod rig;
mod tapdisk;
mod toolstack;
