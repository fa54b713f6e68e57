//! A process that serves a disk through the blktap module, for tests of the module alone: an honest one, and some
//! that are not.
//!
//! ```text
//! blktap-ring serve STORE [key=value ...]   serves a file until SIGTERM; prints `N device` first, counts last
//! ```
mod serve;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match words.split_first() {
        Some((command, rest)) if command == "serve" => serve::main(rest),
        _ => Err("usage: blktap-ring serve STORE [key=value ...]".to_string()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("blktap-ring: {text}");
            ExitCode::FAILURE
        }
    }
}
