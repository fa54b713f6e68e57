//! Loads and a watchman for the machine of `tests/vm/pressure.sh`, where memory is short on
//! purpose.
//!
//! ```text
//! pressure hog MIB SECONDS SEED           anonymous memory, written and compared over and over
//! pressure files FOLDER MIB SECONDS SEED  dirty files of a file system, written, compared, removed; never flushed
//! pressure watch DEVICE PID SECONDS       says what the device moved; ends the machine if it moves nothing for long
//! pressure dm NAME TABLE                  a device-mapper device of one target; if it is there, another target for it
//! pressure dm-remove NAME                 takes it away
//! pressure flags PID                      the kernel's flags of each thread
//! ```
//! What is compared is made of seed and place, so that nothing has to be remembered.
use std::process::ExitCode;

use tests::pressure::{dm, files, hog, threads, watch};

fn number(words: &[String], at: usize) -> Result<u64, String> {
    let word = words.get(at).ok_or("a number is missing")?;
    word.parse().map_err(|_| format!("{word} is no number"))
}

fn run(words: &[String]) -> Result<String, String> {
    let [what, rest @ ..] = words else {
        return Err("usage: pressure hog|files|watch|dm|dm-remove|flags …".into());
    };
    match what.as_str() {
        "hog" => hog::run(number(rest, 0)?, number(rest, 1)?, number(rest, 2)?),
        "files" => {
            let folder = rest.first().ok_or("a folder is missing")?;
            files::run(folder.as_ref(), number(rest, 1)?, number(rest, 2)?, number(rest, 3)?)
        }
        "watch" => {
            let device = rest.first().ok_or("a device is missing")?;
            watch::run(device, number(rest, 1)?, number(rest, 2)?)
        }
        "dm" => match rest {
            [name, table] => dm::create(name, table).map_err(|e| format!("{name}: {e}")),
            _ => Err("dm NAME TABLE".into()),
        },
        "dm-remove" => {
            let name = rest.first().ok_or("dm-remove NAME")?;
            dm::remove(name).map(|()| String::new()).map_err(|e| format!("{name}: {e}"))
        }
        "flags" => Ok(threads::flags(number(rest, 0)?)),
        other => Err(format!("there is no {other}")),
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("pressure: {why}");
            ExitCode::FAILURE
        }
    }
}
