//! Options as getopt reads them, and the two output streams.
use crate::EINVAL;
use std::ffi::{OsStr, OsString};
use std::io::{BufWriter, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use vhd_rs::VhdError;
use vhd_rs::lock::Others;

/// Standard output and error, and what was said for all commands. A reader that has gone away is no reason
/// to stop.
pub(crate) struct Term {
    out: BufWriter<std::io::Stdout>,
    /// `--ignore-lock`: an image that another process is writing is changed all the same.
    pub(crate) others: Others,
}

impl Term {
    pub(crate) fn new() -> Term {
        Term { out: BufWriter::new(std::io::stdout()), others: Others::Refuse }
    }

    /// Writes text to standard output.
    pub(crate) fn say(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    /// Writes bytes to standard output.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let _ = self.out.write_all(bytes);
    }

    /// Writes text to standard error.
    pub(crate) fn complain(&mut self, text: &str) {
        self.flush();
        let _ = std::io::stderr().write_all(text.as_bytes());
    }

    pub(crate) fn flush(&mut self) {
        let _ = self.out.flush();
    }

    /// Writes the line that callers know to standard output and the whole story to standard error; the
    /// exit code.
    pub(crate) fn failed(&mut self, line: &str, e: &VhdError) -> i32 {
        self.say(line);
        self.complain(&format!("{e}\n"));
        e.errno()
    }

    /// The same for an image that does not open.
    pub(crate) fn not_opened(&mut self, name: &Path, e: &VhdError) -> i32 {
        self.failed(&format!("error opening {}: -{}\n", name.display(), e.errno()), e)
    }

    /// The usage text of a command, and its exit code.
    pub(crate) fn usage(&mut self, text: &str) -> i32 {
        self.say(text);
        EINVAL
    }
}

/// Options of one command line, in order.
pub(crate) struct Options {
    found: Vec<(u8, OsString)>,
    /// Arguments that belong to no option; only `scan` takes any.
    pub(crate) rest: Vec<OsString>,
}

impl Options {
    /// Reads the options of a command; says what is wrong with them, or what they are (`-h`).
    ///
    /// # Errors
    /// The exit code when the command is over with that.
    pub(crate) fn given(
        command: &str,
        spec: &str,
        args: &[OsString],
        usage: &str,
        term: &mut Term,
    ) -> Result<Options, i32> {
        let options = Options::parse(command, spec, args).map_err(|text| {
            term.complain(&text);
            term.usage(usage)
        })?;
        if options.has('h') {
            term.say(usage);
            return Err(0);
        }
        Ok(options)
    }

    /// The same for a command whose help is wrong usage, as most of the original's are.
    ///
    /// # Errors
    /// The exit code when the command is over with that.
    pub(crate) fn given_no_help(
        command: &str,
        spec: &str,
        args: &[OsString],
        usage: &str,
        term: &mut Term,
    ) -> Result<Options, i32> {
        let options = Options::parse(command, spec, args).map_err(|text| {
            term.complain(&text);
            term.usage(usage)
        })?;
        if options.has('h') || !options.rest.is_empty() {
            Err(term.usage(usage))
        } else {
            Ok(options)
        }
    }

    /// Reads options of the letters in `spec`, where `:` follows those with an argument. They may
    /// come in any order and in clusters; `--` ends them.
    ///
    /// # Errors
    /// What getopt says on standard error.
    pub(crate) fn parse(command: &str, spec: &str, args: &[OsString]) -> Result<Options, String> {
        let mut out = Options { found: Vec::new(), rest: Vec::new() };
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            match arg.as_bytes() {
                b"--" => out.rest.extend(args.by_ref().cloned()),
                [b'-', cluster @ ..] if !cluster.is_empty() => {
                    out.cluster(command, spec.as_bytes(), cluster, &mut args)?;
                }
                _ => out.rest.push(arg.clone()),
            }
        }
        Ok(out)
    }

    fn cluster<'a>(
        &mut self,
        command: &str,
        spec: &[u8],
        cluster: &[u8],
        args: &mut impl Iterator<Item = &'a OsString>,
    ) -> Result<(), String> {
        let mut left = cluster;
        while let [letter, tail @ ..] = left {
            let at = spec.iter().position(|c| c == letter && *c != b':');
            let Some(at) = at else {
                let letter = char::from(*letter);
                return Err(format!("{command}: invalid option -- '{letter}'\n"));
            };
            if spec.get(at + 1) != Some(&b':') {
                self.found.push((*letter, OsString::new()));
                left = tail;
                continue;
            }
            let value = if tail.is_empty() {
                args.next().cloned().ok_or_else(|| {
                    let letter = char::from(*letter);
                    format!("{command}: option requires an argument -- '{letter}'\n")
                })?
            } else {
                OsString::from_vec(tail.to_vec())
            };
            self.found.push((*letter, value));
            return Ok(());
        }
        Ok(())
    }

    /// Whether an option was given.
    pub(crate) fn has(&self, letter: char) -> bool {
        self.found.iter().any(|(l, _)| char::from(*l) == letter)
    }

    /// The argument of an option; the last one counts.
    pub(crate) fn value(&self, letter: char) -> Option<&OsStr> {
        let found = self.found.iter().rev().find(|(l, _)| char::from(*l) == letter);
        found.map(|(_, v)| v.as_os_str())
    }

    /// The same as a path.
    pub(crate) fn path(&self, letter: char) -> Option<PathBuf> {
        self.value(letter).map(PathBuf::from)
    }

    /// The same as a decimal number: `None` without the option, `Some(None)` for anything else than
    /// digits. (The original takes text as 0.)
    pub(crate) fn number(&self, letter: char) -> Option<Option<u64>> {
        let text = self.value(letter)?.to_str();
        let digits = text.filter(|t| t.bytes().all(|b| b.is_ascii_digit()));
        Some(digits.and_then(|t| t.parse().ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Options, String> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        Options::parse("x", "n:vs:", &args)
    }

    #[test]
    fn clusters_and_joined_arguments_are_read() {
        let o = parse(&["-vs5", "-n", "-7", "rest", "--", "-v"]).unwrap();
        assert!(o.has('v'));
        assert_eq!(o.number('s'), Some(Some(5)));
        assert_eq!(o.number('n'), Some(None));
        assert_eq!(o.rest, ["rest", "-v"]);
    }

    #[test]
    fn complaints_are_those_of_getopt() {
        assert_eq!(parse(&["-Z"]).err().unwrap(), "x: invalid option -- 'Z'\n");
        assert_eq!(parse(&["-n"]).err().unwrap(), "x: option requires an argument -- 'n'\n");
    }
}
