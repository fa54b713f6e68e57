//! Tokens of the poll: those of each disk come in a row.

/// How many a disk has.
pub const VBD_TOKENS: usize = 1 << 8;
/// The first token of the first disk.
pub const VBD_TOKENS_BASE: usize = 1 << 16;
