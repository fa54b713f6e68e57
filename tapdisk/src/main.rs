//! The daemon; see the library.

/// Counts, or ends the process, when the path of a request allocates.
#[global_allocator]
static ALLOCATOR: tapdisk::sealed::Sealable = tapdisk::sealed::Sealable;

fn main() -> std::process::ExitCode {
    tapdisk::process::main()
}
