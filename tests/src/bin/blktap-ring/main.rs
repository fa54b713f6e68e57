//! A process that serves a disk through the blktap module, for tests of the module alone: an honest
//! one, and some that are not.
//!
//! ```text
//! blktap-ring serve STORE [key=value ...]   serves a file until SIGTERM; prints `N device` first, counts last
//! blktap-ring free MINOR                    gives a minor back
//! blktap-ring errors                        every error of the interface, sizes, flags, sysfs
//! blktap-ring exhaust                       all 16384 minors
//! blktap-ring mappings FILE                 what may be done with the mapping; device I/O between it and a file
//! blktap-ring hostile SEED ROUNDS           nonsense in the ring
//! blktap-ring teardown SEED ROUNDS STORE    rings that end under I/O
//! blktap-ring failing calls|load MODULE     allocations that fail, one after the other (kernel for debugging)
//! ```
mod errors;
mod failing;
mod hostile;
mod mappings;
mod serve;
mod session;
mod teardown;

use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = words.split_first().map_or(("", &[][..]), |(c, r)| (c.as_str(), r));
    let outcome = match command {
        "serve" => serve::main(rest),
        "errors" => errors::main(),
        "free" => errors::free(rest),
        "exhaust" => errors::exhaust(),
        "mappings" => mappings::main(rest),
        "hostile" => hostile::main(rest),
        "teardown" => teardown::main(rest),
        "failing" => failing::main(rest),
        _ => Err(
            "usage: blktap-ring serve|free|errors|exhaust|mappings|hostile|teardown|failing ..."
                .to_string(),
        ),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("blktap-ring: {text}");
            ExitCode::FAILURE
        }
    }
}
