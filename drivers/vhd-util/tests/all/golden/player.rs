//! Replays a recording of the original's `vhd-util` against ours.
//!
//! ```text
//!   data/golden-*.json ─► do: sh, write ─► argv, stdin ─► our vhd-util ─► rc, out (err) ─► Difference?
//! ```
//! A step that differs on purpose is listed by the test, with what ours does and why. A listed
//! difference that does not occur fails too, so that the list stays true. All steps are run before
//! the test fails.
//!
//! Standard error: where the original says something about its use of options, ours says the same.
//! Otherwise ours may explain a failure in a sentence and is silent about success.
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use image::blocking::Writer;
use serde_json::Value;
use sha2::{Digest, Sha256};
use test_support::program;
use vhd_rs::driver::Vhd;
use vhd_rs::{OpenOptions, open};

/// A deliberate difference from the original.
pub struct Difference {
    /// Numbers of the steps in the recording.
    pub steps: &'static [u64],
    /// What ours does.
    pub ours: Ours,
    /// Why.
    pub why: &'static str,
}

/// What ours does in a step.
#[derive(Clone, Copy)]
pub enum Ours {
    /// Another exit code; standard output is the same.
    Code(i32),
    /// An exit code and this output.
    Says(i32, &'static str),
    /// An exit code and these bytes.
    Bytes(i32, &'static [u8]),
    /// The same exit code, and the same lines in another order (scans).
    Sorted,
    /// An exit code; the output is the original's with this instead of that.
    Replaced(i32, &'static str, &'static str),
}

/// Replays `data/golden-<name>.json`, the steps that `keep` wants.
///
/// # Panics
/// With every step that differs and is not listed, and every listed one that does not.
pub fn replay(name: &str, differences: &[Difference], keep: impl Fn(u64) -> bool) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/golden-{name}.json"));
    let text = std::fs::read_to_string(&file).unwrap();
    let steps: Vec<Value> = serde_json::from_str(&text).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let player = Player { work: dir.path().canonicalize().unwrap() };
    let mut complaints = Vec::new();
    let mut run = 0;
    for step in &steps {
        if let Some(action) = step["do"].as_str() {
            player.act(action, step["what"].as_str().unwrap());
            continue;
        }
        let number = step["n"].as_u64().unwrap();
        let listed = differences.iter().find(|d| d.steps.contains(&number));
        run += 1;
        let outcome = player.play(step);
        if !keep(number) {
            continue;
        }
        complaints.extend(judge(step, listed, &outcome).map(|text| format!("[{number}] {text}")));
    }
    assert!(run > 10, "only {run} steps were run");
    let shown = complaints.join("\n");
    assert!(complaints.is_empty(), "{} of {run} steps differ:\n{shown}", complaints.len());
}

struct Player {
    work: PathBuf,
}

/// What a command did.
#[derive(PartialEq, Eq)]
struct Outcome {
    code: i32,
    out: Vec<u8>,
    err: String,
}

impl Player {
    fn act(&self, action: &str, what: &str) {
        match action {
            "sh" => {
                self.command("sh").args(["-c", what]).output().unwrap();
            }
            "write" => self.write(what),
            _ => panic!("{action} is no action"),
        }
    }

    /// As `qemu-io` through a tapdisk did: `FILE -P PATTERN OFFSET LENGTH`.
    fn write(&self, what: &str) {
        let words: Vec<&str> = what.split(' ').collect();
        let [file, "-P", pattern, at, bytes] = words[..] else { panic!("{what}") };
        let pattern = match pattern.strip_prefix("0x") {
            Some(hex) => u8::from_str_radix(hex, 16).unwrap(),
            None => pattern.parse().unwrap(),
        };
        let name = self.work.join(file);
        let file = File::options().read(true).write(true).open(&name).unwrap();
        let options = OpenOptions { for_io: true, ..OpenOptions::default() };
        let mut image = Vhd::new(open(&file, &name, &options).unwrap());
        let mut writer = Writer::new(&mut image, &file).unwrap();
        let data = vec![pattern; size(bytes) as usize];
        // A piece at a time, as it came through the ring: what fills blocks must not matter.
        for (n, piece) in data.chunks(64 << 10).enumerate() {
            writer.write(size(at) / 512 + n as u64 * 128, piece).unwrap();
        }
        writer.close().unwrap();
    }

    fn command(&self, program: &str) -> Command {
        let ours = program!("vhd-util");
        let mut path = std::ffi::OsString::from(ours.parent().unwrap());
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let mut command = Command::new(program);
        command.current_dir(&self.work).env("PATH", path).env("TZ", "UTC").env("LC_ALL", "C");
        command
    }

    fn play(&self, step: &Value) -> Outcome {
        let work = self.work.display().to_string();
        let argv = step["argv"].as_array().unwrap().iter();
        let argv: Vec<String> = argv.map(|a| a.as_str().unwrap().replace("@W@", &work)).collect();
        let mut command = match argv[0].as_str() {
            "vhd-util" => self.command(&program!("vhd-util").display().to_string()),
            other => self.command(other),
        };
        command.args(&argv[1..]).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let input = step["stdin"].as_str().unwrap_or_default();
        // A command that does not read it closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let out = child.wait_with_output().unwrap();
        let named = |bytes: &[u8]| match std::str::from_utf8(bytes) {
            Ok(text) => normal(&text.replace(&work, "@W@")).into_bytes(),
            Err(_) => bytes.to_vec(),
        };
        let err = String::from_utf8_lossy(&named(&out.stderr)).into_owned();
        Outcome { code: out.status.code().unwrap_or(-1), out: named(&out.stdout), err }
    }
}

fn size(text: &str) -> u64 {
    let unit = match text.as_bytes().last() {
        Some(b'k') => 1 << 10,
        Some(b'M') => 1 << 20,
        _ => 1,
    };
    text.trim_end_matches(['k', 'M']).parse::<u64>().unwrap() * unit
}

/// Random and dated values of a dump by their names, as in the recordings.
fn normal(text: &str) -> String {
    text.split_inclusive('\n').map(normal_line).collect()
}

fn normal_line(line: &str) -> String {
    let Some((label, value)) = line.split_once(": ") else { return line.into() };
    let value = match label.trim_end() {
        "Checksum" => match value.split_once(' ') {
            Some((_, verdict)) => format!("@CK@ {verdict}"),
            None => value.into(),
        },
        "Timestamp" | "Parent timestamp" => "@TIME@\n".into(),
        "UUID" | "Parent UUID" if !value.starts_with("00000000-0000") => "@UUID@\n".into(),
        _ => value.into(),
    };
    format!("{label}: {value}")
}

fn judge(step: &Value, listed: Option<&Difference>, found: &Outcome) -> Option<String> {
    let code = i32::try_from(step["rc"].as_i64().unwrap()).unwrap();
    let same = code == found.code && is_output(step, &found.out) && error_fits(step, found);
    let argv = &step["argv"];
    let shown = || {
        let out = String::from_utf8_lossy(&found.out[..found.out.len().min(2000)]).into_owned();
        format!(
            "{argv}: got {}\n{out}  stderr {:?}\n wanted {code}\n{}  stderr {}",
            found.code,
            found.err,
            step["out"].as_str().unwrap_or("(bytes)"),
            step["err"]
        )
    };
    let Some(Difference { ours, why, .. }) = listed else { return (!same).then(shown) };
    let recorded = step["out"].as_str().unwrap_or_default();
    let right = match *ours {
        Ours::Code(ours) => found.code == ours && is_output(step, &found.out),
        Ours::Says(ours, text) => found.code == ours && found.out == text.as_bytes(),
        Ours::Bytes(ours, bytes) => found.code == ours && found.out == bytes,
        Ours::Sorted => found.code == code && sorted(recorded.as_bytes()) == sorted(&found.out),
        Ours::Replaced(ours, old, new) => {
            assert!(recorded.contains(old), "{argv}: nothing to replace");
            found.code == ours && found.out == recorded.replace(old, new).as_bytes()
        }
    };
    match (right, same) {
        (false, _) => Some(shown()),
        (true, true) => Some(format!("{argv} is listed as different ({why}), but is the same")),
        (true, false) => None,
    }
}

fn sorted(text: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = text.split(|b| *b == b'\n').collect();
    lines.sort_unstable();
    lines
}

fn is_output(step: &Value, found: &[u8]) -> bool {
    match step["sha256"].as_str() {
        Some(sum) => {
            let ours: String = Sha256::digest(found).iter().map(|b| format!("{b:02x}")).collect();
            step["len"] == found.len() && ours == sum
        }
        None => found == step["out"].as_str().unwrap_or_default().as_bytes(),
    }
}

fn error_fits(step: &Value, found: &Outcome) -> bool {
    let recorded = step["err"].as_str().unwrap_or_default();
    let of_options = ["invalid option", "requires an argument", "usage:", "COMMAND", "Must supply"];
    if of_options.iter().any(|words| recorded.contains(words)) {
        return found.err == recorded;
    }
    found.code != 0 || !recorded.is_empty() || found.err.is_empty()
}
