//! Usage, help and argument errors, against what the original (4.0.8) printed and returned.
//!
//! `data/usage.json` has its recorded runs: arguments, exit code, stdout, stderr.

use crate::common::{Run, Setup};
use serde_json::Value;

/// Recorded runs that are meant to differ, with the reason.
const DIFFERENT: [(&[&str], &str); 1] = [(
    &["pause", "-p", "1", "-m", "1", "-t", "5"],
    "the original cannot take -t: it prints its usage; here it works as in close",
)];

fn recorded() -> Vec<Value> {
    let text = include_str!("../data/usage.json");
    serde_json::from_str::<Vec<Value>>(text).expect("the recording is JSON")
}

fn arguments(case: &Value) -> Vec<&str> {
    let args = case["args"].as_array().expect("an array").iter();
    args.map(|arg| arg.as_str().expect("a string")).collect()
}

#[test]
fn everything_is_as_recorded() {
    let setup = Setup::new();
    let cases = recorded();
    assert_eq!(cases.len(), 57);
    for case in &cases {
        let args = arguments(case);
        if DIFFERENT.iter().any(|(different, _)| args == *different) {
            continue;
        }
        let expected = Run {
            rc: case["rc"].as_i64().expect("a number") as i32,
            stdout: case["stdout"].as_str().expect("a string").to_owned(),
            stderr: case["stderr"].as_str().expect("a string").to_owned(),
        };
        assert_eq!(setup.run(&args), expected, "tap-ctl {args:?}");
    }
}

#[test]
fn every_deliberate_difference_is_recorded_and_real() {
    let setup = Setup::new();
    for (args, reason) in DIFFERENT {
        let case = recorded().into_iter().find(|case| arguments(case) == args);
        let case = case.expect("recorded");
        let now = setup.run(args);
        assert_ne!(case["stderr"].as_str(), Some(now.stderr.as_str()), "no longer: {reason}");
    }
    let pause = setup.run(&["pause", "-p", "1", "-m", "1", "-t", "5"]);
    assert_eq!(pause, Run::failed(2, "No such file or directory"), "-t is understood");
}

#[test]
fn an_unknown_command_is_help_whatever_its_length() {
    let setup = Setup::new();
    let help = setup.run(&[]);
    for word in ["x", &"x".repeat(24), &"x".repeat(25), &"x".repeat(5000)] {
        assert_eq!(setup.run(&[word]), help);
    }
}

#[test]
fn options_cluster_and_permute() {
    let setup = Setup::new();
    let absent = Run::failed(2, "No such file or directory");
    for line in ["close -p1 -m0 -f", "close x -fp 1 y -m 0", "close -m0 -p 1 -- -Z"] {
        let args: Vec<&str> = line.split(' ').collect();
        assert_eq!(setup.run(&args), absent, "{line}");
    }
}

/// The original reads them as far as they go, else as 0: somebody else's disk.
#[test]
fn what_is_no_number_names_no_disk() {
    let setup = Setup::new();
    for (args, option) in [
        (["close", "-p", "1x", "-m", "0"], "-p"),
        (["destroy", "-p", "1", "-m", ""], "-m"),
        (["pause", "-p", "1", "-m", "abc"], "-m"),
        (["detach", "-p", "", "-m", "0"], "-p"),
    ] {
        let run = setup.run(&args);
        assert_eq!((run.rc, run.stdout.as_str()), (22, ""), "{args:?}");
        let says = format!("tap-ctl {}: {option} \"", args[0]);
        assert!(run.stderr.starts_with(&says), "{args:?}: {run:?}");
    }
}

/// A tapdisk has another working directory than who names an image.
#[test]
fn images_may_be_named_from_where_one_is() {
    let setup = Setup::new();
    let here = std::env::current_dir().expect("a folder");
    let path = "x".repeat(255 - "vhd:/".len() - here.as_os_str().len());
    let open = |image: &str| setup.run(&["open", "-p", "1", "-m", "0", "-a", image]);
    let absent = Run::failed(2, "No such file or directory");
    assert_eq!(open(&format!("vhd:{path}")), absent, "it has room");
    assert_eq!(open(&format!("vhd:{path}x")), Run::failed(36, "File name too long"));
    let long = format!("nbd:{}:10809", "h".repeat(255 - "nbd::10809".len()));
    assert_eq!(open(&long), absent, "a host is no file");
}

#[test]
fn minus_one_is_not_given() {
    let setup = Setup::new();
    for line in ["close -p -1 -m 0", "close -p 1 -m -1", "free -m -1", "stats -p 1 -m -1"] {
        let args: Vec<&str> = line.split(' ').collect();
        let run = setup.run(&args);
        assert_eq!(run.rc, 22);
        assert!(run.stderr.starts_with("usage: "), "{line}: {}", run.stderr);
    }
}

#[test]
fn minors_that_do_not_fit_the_message_are_refused() {
    let setup = Setup::new();
    for minor in ["65536", "-2", "99999999999"] {
        let run = setup.run(&["attach", "-p", "1", "-m", minor]);
        assert_eq!(run, Run::failed(22, "Invalid argument"), "{minor}");
    }
}

#[test]
fn paths_have_at_most_255_bytes() {
    let setup = Setup::new();
    let path = |len: usize| format!("vhd:/{}", "x".repeat(len - 5));
    let open = |path: &str| setup.run(&["open", "-p", "1", "-m", "0", "-a", path]);
    assert_eq!(open(&path(256)), Run::failed(36, "File name too long"));
    assert_eq!(
        open(&path(255)),
        Run::failed(2, "No such file or directory"),
        "gets as far as connect"
    );
    let long = path(256);
    for option in ["-2", "-C"] {
        let run = setup.run(&["open", "-p", "1", "-m", "0", "-a", "x:y", option, &long]);
        assert_eq!(run, Run::failed(36, "File name too long"), "{option}");
    }
}

#[test]
fn keys_have_32_or_64_bytes_and_come_once() {
    let setup = Setup::new();
    let wrong = Run {
        rc: 1,
        stdout: String::new(),
        stderr: "Unsupported keysize, use either 256 bit or 512 bit key\n".into(),
    };
    let open = ["open", "-p", "1", "-m", "0", "-a", "vhd:/x", "-E"];
    for len in [0, 31, 33, 63, 65, 2000] {
        assert_eq!(setup.run_with_input(&open, &vec![7; len]), wrong, "{len} bytes");
    }
    for len in [32, 64] {
        let run = setup.run_with_input(&open, &vec![7; len]);
        assert_eq!(run, Run::failed(2, "No such file or directory"), "{len} bytes");
    }
    let twice = [&open[..], &["-E"]].concat();
    assert_eq!(setup.run_with_input(&twice, &[7; 32]), wrong);
}

#[test]
fn long_help_lists_every_option_with_a_line() {
    let setup = Setup::new();
    let overview = setup.run(&["--help"]);
    assert_eq!((overview.rc, overview.stderr.as_str()), (0, ""));
    for command in ["list", "stats", "open", "completions", "man"] {
        assert!(overview.stdout.contains(&format!("\n  {command} ")), "{command}");
        let help = setup.run(&[command, "--help"]);
        assert_eq!(help.rc, 0);
        for part in ["usage: tap-ctl ", "\nOptions:\n", "\nExamples:\n", "--version"] {
            assert!(help.stdout.contains(part), "{command}: {part}");
        }
    }
}

#[test]
fn version() {
    let setup = Setup::new();
    let expected = concat!("tap-ctl ", env!("CARGO_PKG_VERSION"), "\n");
    for args in [&["--version"][..], &["list", "--version"]] {
        assert_eq!(setup.run(args), Run::ok(expected));
    }
}

#[test]
fn completions_and_man_page_name_every_command() {
    let setup = Setup::new();
    let texts =
        [&["completions", "bash"][..], &["completions", "zsh"], &["completions", "fish"], &["man"]];
    for args in texts {
        let text = setup.run(args);
        assert_eq!((text.rc, text.stderr.as_str()), (0, ""), "{args:?}");
        for command in ["list", "allocate", "unpause", "stats", "completions"] {
            assert!(text.stdout.contains(command), "{args:?}: {command}");
        }
    }
    assert_eq!(setup.run(&["completions"]).rc, 22);
    assert_eq!(setup.run(&["completions", "csh"]).rc, 22);
}

#[test]
fn bash_accepts_its_completions() {
    let script = Setup::new().run(&["completions", "bash"]).stdout;
    let bash = std::process::Command::new("bash").args(["-n", "-c", &script]).status();
    match bash {
        Ok(status) => assert!(status.success()),
        Err(error) => eprintln!("SKIPPED: no bash here: {error}"),
    }
}

#[test]
fn verbose_explains_before_the_recorded_line() {
    let setup = Setup::new();
    let run = setup.run_env(&["attach", "-p", "1", "-m", "0"], &[("TAP_CTL_VERBOSE", "1")]);
    let lines: Vec<&str> = run.stderr.lines().collect();
    assert_eq!((run.rc, lines.len(), lines[1]), (2, 2, "No such file or directory"));
    assert!(
        lines[0].contains("ctl1: No such file or directory; no tapdisk of that pid"),
        "{}",
        lines[0]
    );
}
