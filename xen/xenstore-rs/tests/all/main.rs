//! The client against a xenstored in this process, and against one that sends anything.

mod common;
mod hostile;
mod store;
