//! Replays a recording of the original's command line against our programs.
//!
//! ```text
//!   data/golden-*.json ─► step: argv, rc, out, err ─► our tap-ctl ─► compare ─► Difference? ─► report
//!                         @W@ @RUN@ @P1@ … stand for folders and pids; pids are learned on the way
//! ```
//! What a tapdisk of ours refuses it explains in a line of its own on standard error, which is not
//! compared. A step that differs on purpose is listed by the test with what ours does and why. A
//! listed difference that does not occur fails too, so that the list stays true. All steps are run
//! before the test fails.
use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use super::daemon::Rig;
use test_support::{Outcome, PATIENCE, files, run, sys};

/// A deliberate difference from the original.
#[derive(Clone, Copy, Debug)]
pub struct Difference {
    /// Number of the step in the recording.
    pub step: u64,
    /// What ours does.
    pub ours: Ours,
    /// Why.
    pub why: &'static str,
}

/// What ours does in a step.
#[derive(Clone, Copy, Debug)]
pub enum Ours {
    /// Another exit code, with its text on standard error; standard output is the same.
    Code(i32),
    /// Refuses with an exit code what the original accepts; nothing on standard output, and as many
    /// of the following steps, which need the success, are left out.
    Refuses(i32, usize),
    /// The same exit code, but this output.
    Says(&'static str),
    /// The same exit code, and an output that is not compared.
    SaysMore,
    /// The same exit code and output, and a sentence with these words on standard error.
    Warns(&'static str),
    /// Another exit code, and nothing is compared.
    Otherwise(i32),
    /// What was recorded holds for these words; those of the recording mean something else.
    Instead(&'static [&'static str]),
}

/// Replays `data/golden-<name>.json`.
///
/// # Panics
/// With every step that differs and is not listed, and every listed one that does not.
pub fn replay(rig: &Rig, name: &str, differences: &[Difference]) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/golden-{name}.json"));
    let text = fs::read_to_string(&file).expect("a recording");
    let steps: Vec<Value> = serde_json::from_str(&text).expect("a recording is JSON");
    let mut player = Player { rig, names: HashMap::new(), complaints: Vec::new(), run: 0 };
    player.name("@W@", rig.work().display().to_string());
    player.name("@RUN@", rig.run_dir().display().to_string());
    let mut skip = 0;
    for step in &steps {
        if let Some(action) = step["do"].as_str() {
            if skip == 0 || matches!(action, "clear" | "settle") {
                player.act(action, step);
            }
            continue;
        }
        if skip > 0 {
            skip -= 1;
            continue;
        }
        let number = step["n"].as_u64().expect("a step has a number");
        let listed = differences.iter().find(|difference| difference.step == number);
        player.play(step, listed);
        if let Some(Difference { ours: Ours::Refuses(_, steps), .. }) = listed {
            skip = *steps;
        }
    }
    assert!(player.run * 10 > steps.len() * 5, "only {} steps were run", player.run);
    let Player { complaints, run, .. } = player;
    let shown = complaints.join("\n");
    assert!(complaints.is_empty(), "{} of {run} steps differ:\n{shown}", complaints.len());
}

struct Player<'a> {
    rig: &'a Rig,
    names: HashMap<String, String>,
    complaints: Vec<String>,
    run: usize,
}

impl Player<'_> {
    fn name(&mut self, name: &str, value: String) {
        self.names.insert(name.into(), value);
    }

    /// Puts values in for names; unknown ones stay.
    fn filled(&self, text: &str) -> String {
        self.names.iter().fold(text.to_owned(), |text, (name, value)| text.replace(name, value))
    }

    fn pid(&self, step: &Value) -> i32 {
        let name = step["what"].as_str().expect("an action on a process");
        self.names.get(name).and_then(|pid| pid.parse().ok()).expect("a pid that was learned")
    }

    /// What the recorder did between the commands.
    fn act(&mut self, action: &str, step: &Value) {
        match action {
            "kill" => {
                self.rig.signal(self.pid(step), libc::SIGKILL);
                self.rig.wait_gone(self.pid(step));
            }
            "gone" => self.rig.wait_gone(self.pid(step)),
            "settle" => self.rig.wait_all_gone(),
            "bind" => {
                let minor = step["minor"].as_u64().and_then(|minor| u16::try_from(minor).ok());
                // A disk that was refused has none; its steps complain, or are left out.
                if let Some(pid) = self.rig.pid_of(minor.expect("a minor")) {
                    self.name(step["what"].as_str().expect("a name"), pid.to_string());
                }
            }
            "clear" => self.rig.clear(),
            "unpack" => {
                let words = step["what"].as_str().expect("image and file").split_once(' ');
                let (image, file) = words.expect("image and file");
                files::unpack(&format!("{image}.vhd.gz"), &self.rig.path(file));
            }
            _ => panic!("{action} is no action"),
        }
    }

    fn play(&mut self, step: &Value, listed: Option<&Difference>) {
        self.run += 1;
        let text = |key: &str| self.filled(step[key].as_str().unwrap_or_default());
        let argv = step["argv"].as_array().expect("a command").iter();
        let mut argv: Vec<String> = argv.map(|arg| self.filled(arg.as_str().unwrap())).collect();
        let instead = match listed {
            Some(Difference { ours: Ours::Instead(words), .. }) => Some(*words),
            _ => None,
        };
        if let Some(words) = instead {
            argv = words.iter().map(|word| self.filled(word)).collect();
        }
        let terminal = step["tty"] == true;
        let outcome = self.execute(&argv, terminal, &text("stdin"));
        let mut want = Want {
            code: i32::try_from(step["rc"].as_i64().expect("an exit code")).expect("an exit code"),
            out: Some(text("out")),
            err: Some(text("err")),
            more: argv[..2.min(argv.len())] == ["tap-ctl", "stats"],
            lines: argv[0] == "sh",
            blanks: terminal,
            warns: "",
        };
        let same = want.clone().is(&outcome, &mut HashMap::new());
        if let Some(Difference { ours, .. }) = listed {
            want.change(*ours);
            want.out = want.out.map(|text| self.filled(&text));
        }
        let mut learned = HashMap::new();
        let right = want.is(&outcome, &mut learned);
        if right {
            self.names.extend(learned);
        }
        let number = &step["n"];
        match (right, listed) {
            (false, _) => {
                self.complaints.push(format!("[{number}] wanted {want:?}\n  got {outcome:?}"))
            }
            (true, Some(difference)) if same && instead.is_none() => self.complaints.push(format!(
                "[{number}] is listed as different ({}), but is the same: {outcome:?}",
                difference.why
            )),
            (true, _) => {}
        }
    }

    fn execute(&self, argv: &[String], terminal: bool, input: &str) -> Outcome {
        match (argv[0].as_str(), terminal) {
            ("tap-ctl", true) => self.rig.tap_ctl_on_terminal(&argv[1..]),
            ("tap-ctl", false) => self.rig.tap_ctl_with(&argv[1..], input.as_bytes()),
            ("@BIN@/libexec/tapdisk", _) => {
                run(self.rig.command(&super::programs().tapdisk).args(&argv[1..]), b"")
            }
            (program, _) => run(Command::new(super::tool(program)).args(&argv[1..]), b""),
        }
    }
}

/// What is wanted of a step.
#[derive(Clone, Debug)]
struct Want {
    code: i32,
    out: Option<String>,
    err: Option<String>,
    /// Statistics: a JSON object that may have more fields at its end.
    more: bool,
    /// Lines in any order: pids may sort in another way.
    lines: bool,
    /// A terminal's table: the width of a pid is open.
    blanks: bool,
    /// Words on standard error.
    warns: &'static str,
}

impl Want {
    fn change(&mut self, ours: Ours) {
        let message = |code| {
            if code == 0 {
                return Some(String::new());
            }
            let text = std::io::Error::from_raw_os_error(code).to_string();
            Some(format!("{}\n", text.split(" (os").next().unwrap_or_default()))
        };
        match ours {
            Ours::Code(code) => (self.code, self.err) = (code, message(code)),
            Ours::Refuses(code, _) => {
                (self.code, self.out, self.err) = (code, Some(String::new()), message(code));
            }
            Ours::Warns(words) => (self.err, self.warns) = (None, words),
            Ours::Says(text) => self.out = Some(text.into()),
            Ours::SaysMore => self.out = None,
            Ours::Otherwise(code) => (self.code, self.out, self.err) = (code, None, None),
            Ours::Instead(_) => {}
        }
    }

    /// Whether an outcome is that; learns the pids that stand for unknown names.
    fn is(&self, outcome: &Outcome, learned: &mut HashMap<String, String>) -> bool {
        let out = self.out.as_ref().is_none_or(|out| self.fits(out, &outcome.out, learned));
        let err = without_reason(&outcome.err);
        let err = self.err.as_ref().is_none_or(|wanted| matches(wanted, &err, learned));
        outcome.code == self.code && out && err && outcome.err.contains(self.warns)
    }

    fn fits(&self, out: &str, found: &str, learned: &mut HashMap<String, String>) -> bool {
        if self.more {
            let Some(known) = out.strip_suffix(" }\n\n") else { return out == found };
            let object = serde_json::from_str::<Value>(found.lines().next().unwrap_or_default());
            return found.starts_with(known) && found.ends_with(" }\n\n") && object.is_ok();
        }
        if self.lines {
            return sorted(out) == sorted(found);
        }
        if self.blanks {
            let squeeze = |text: &str| {
                text.split(' ').filter(|w| !w.is_empty()).collect::<Vec<_>>().join(" ")
            };
            return matches(&squeeze(out), &squeeze(found), learned);
        }
        matches(out, found, learned)
    }
}

/// Standard error without the line of ours that says what a tapdisk refuses, and why.
fn without_reason(err: &str) -> String {
    let is_reason = |line: &&str| line.starts_with("tap-ctl ") && line.contains(" refused ");
    err.split_inclusive('\n').filter(|line| !is_reason(line)).collect()
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

/// Whether `found` is `pattern` with a number for each name `@P…@`; the same name, the same number.
fn matches(pattern: &str, found: &str, learned: &mut HashMap<String, String>) -> bool {
    let Some((before, rest)) = pattern.split_once("@P") else { return pattern == found };
    let Some((name, after)) = rest.split_once('@') else { return false };
    let Some(found) = found.strip_prefix(before) else { return false };
    let digits = found.len() - found.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, found) = found.split_at(digits);
    if number.is_empty() {
        return false;
    }
    let known = learned.entry(format!("@P{name}@")).or_insert_with(|| number.to_owned());
    known == number && matches(after, found, learned)
}

impl Rig {
    /// Waits until every daemon has ended.
    #[track_caller]
    pub fn wait_all_gone(&self) {
        for (pid, process) in self.daemons() {
            let ended = sys::wait_readable(&process, PATIENCE);
            assert!(ended, "tapdisk {pid} does not end");
        }
    }

    /// Kills all daemons and empties the run directory.
    pub fn clear(&self) {
        self.daemons().iter().for_each(|(_, process)| sys::kill(process, libc::SIGKILL));
        self.wait_all_gone();
        let names = fs::read_dir(self.run_dir()).into_iter().flatten().flatten();
        for path in names.map(|name| name.path()) {
            let gone =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            gone.expect("the run directory can be emptied");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_number() {
        let fits = |pattern: &str, found: &str| matches(pattern, found, &mut HashMap::new());
        assert!(fits("pid=@P1@ x\npid=@P2@\n", "pid=12 x\npid=3\n"));
        assert!(fits("@P1@ @P1@", "7 7"));
        assert!(!fits("@P1@ @P1@", "7 8"));
        assert!(!fits("pid=@P1@", "pid="));
        assert!(!fits("a", "b"));
    }
}
