//! Running the built `tap-ctl` in a run-time directory of its own.
#![allow(dead_code, reason = "each test program uses a part")]

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use tap_ctl::messages::{MESSAGE_BYTES, Message, Request, validate_request};
use tap_ctl::paths::RunDir;
use test_support::program;

/// What a run gave.
#[derive(Debug, PartialEq, Eq)]
pub struct Run {
    pub rc: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    pub fn ok(stdout: &str) -> Run {
        Run { rc: 0, stdout: stdout.into(), stderr: String::new() }
    }

    /// A run-time failure: one line on stderr.
    pub fn failed(rc: i32, line: &str) -> Run {
        Run { rc, stdout: String::new(), stderr: format!("{line}\n") }
    }
}

/// A temporary run-time directory.
pub struct Setup {
    dir: tempfile::TempDir,
}

impl Setup {
    pub fn new() -> Setup {
        Setup { dir: tempfile::tempdir().expect("temporary directory") }
    }

    /// Files of the test beside the run-time directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn run_dir(&self) -> RunDir {
        RunDir::at(&self.path("run"))
    }

    pub fn run(&self, args: &[&str]) -> Run {
        self.run_env(args, &[])
    }

    pub fn run_with_input(&self, args: &[&str], input: &[u8]) -> Run {
        self.execute(args, &[], input)
    }

    pub fn run_env(&self, args: &[&str], env: &[(&str, &str)]) -> Run {
        self.execute(args, env, &[])
    }

    fn execute(&self, args: &[&str], env: &[(&str, &str)], input: &[u8]) -> Run {
        let mut command = Command::new(program!("tap-ctl"));
        command.args(args).env("TAPDISK_RUN_DIR", self.run_dir().path()).env("LC_ALL", "C");
        command.env_remove("TAP_CTL_VERBOSE").env_remove("TAPDISK_PROGRAM");
        command.envs(env.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("tap-ctl starts");
        // Most commands do not read their input, so EPIPE is in order.
        let _ = child.stdin.take().expect("piped").write_all(input);
        let output = child.wait_with_output().expect("tap-ctl ends");
        Run {
            rc: output.status.code().expect("an exit code"),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    /// A tapdisk that answers `count` connections at `ctl<pid>` by a script, then is gone. What
    /// it was asked is the thread's result.
    pub fn tapdisk(
        &self,
        pid: i32,
        count: usize,
        mut answer: impl FnMut(&Request, &mut UnixStream) + Send + 'static,
    ) -> JoinHandle<Vec<Request>> {
        let run = self.run_dir();
        run.create(0o700).expect("run-time directory");
        let listener = UnixListener::bind(run.ctl(pid)).expect("bind");
        std::thread::spawn(move || {
            let mut asked = Vec::new();
            for _ in 0..count {
                let (mut stream, _) = listener.accept().expect("accept");
                let mut frame = [0; MESSAGE_BYTES];
                std::io::Read::read_exact(&mut stream, &mut frame).expect("a whole request");
                let request = validate_request(&frame).expect("a valid request");
                asked.push(request);
                answer(&request, &mut stream);
            }
            asked
        })
    }
}

/// Send a message.
pub fn send(stream: &mut UnixStream, message: &Message) {
    stream.write_all(message.as_bytes()).expect("send");
}
