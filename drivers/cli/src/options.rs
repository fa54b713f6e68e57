//! Options as glibc's getopt reads them.
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

/// Which options a command takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spec {
    /// Letters as for getopt: `:` follows those with a value.
    pub letters: &'static str,
    /// Options with long names, which only new commands and new options have.
    pub long: &'static [Long],
}

impl From<&'static str> for Spec {
    fn from(letters: &'static str) -> Spec {
        Spec { letters, long: &[] }
    }
}

/// An option with a long name.
#[derive(Clone, Copy, Debug)]
pub struct Long {
    /// Without the two dashes.
    pub name: &'static str,
    /// What [`Options::has`] and [`Options::value`] find it by; no letter of the same command.
    pub key: char,
    /// What may follow it.
    pub takes: Takes,
}

/// What may follow an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// Nothing.
    Nothing,
    /// A value, as `--x VALUE` or `--x=VALUE`.
    Value,
    /// A value or nothing, as `--x=VALUE` or `--x`, whose value is then empty.
    Perhaps,
}

/// `--json`, the same for all tools.
pub const JSON: Long = Long { name: "json", key: '{', takes: Takes::Nothing };
/// `--help`, the same for all tools.
pub const HELP: Long = Long { name: "help", key: '?', takes: Takes::Nothing };

/// Options and operands of one command line, in order.
#[derive(Debug, Default)]
pub struct Options {
    found: Vec<(char, OsString)>,
    operands: Vec<OsString>,
}

impl Options {
    /// Reads the words after a command's name, which getopt's messages begin with.
    ///
    /// # Errors
    /// What getopt says on standard error.
    pub fn parse(
        command: &str,
        spec: impl Into<Spec>,
        words: &[OsString],
    ) -> Result<Options, String> {
        let spec = spec.into();
        let mut out = Options::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_bytes() {
                b"--" => out.operands.extend(words.by_ref().cloned()),
                [b'-', b'-', name @ ..] => out.long(command, spec.long, name, &mut words)?,
                [b'-', cluster @ ..] if !cluster.is_empty() => {
                    out.cluster(command, spec.letters.as_bytes(), cluster, &mut words)?;
                }
                _ => out.operands.push(word.clone()),
            }
        }
        Ok(out)
    }

    /// `--name`, `--name=VALUE`, `--name VALUE`.
    fn long<'a>(
        &mut self,
        command: &str,
        known: &[Long],
        word: &[u8],
        words: &mut impl Iterator<Item = &'a OsString>,
    ) -> Result<(), String> {
        let mut parts = word.splitn(2, |byte| *byte == b'=');
        let (name, joined) = (parts.next().unwrap_or_default(), parts.next());
        // getopt without long options reads `--x` as the option `-`.
        let long = known.iter().find(|long| long.name.as_bytes() == name);
        let Long { name, key, takes } = *long.ok_or_else(|| invalid(command, b'-'))?;
        let joined = joined.map(|bytes| OsString::from_vec(bytes.to_vec()));
        let value = match (takes, joined) {
            (Takes::Nothing, Some(_)) => {
                return Err(format!("{command}: option '--{name}' doesn't allow an argument\n"));
            }
            (Takes::Value, None) => words
                .next()
                .cloned()
                .ok_or_else(|| format!("{command}: option '--{name}' requires an argument\n"))?,
            (_, joined) => joined.unwrap_or_default(),
        };
        self.found.push((key, value));
        Ok(())
    }

    /// `-ab`, `-nVALUE`, `-n VALUE`.
    fn cluster<'a>(
        &mut self,
        command: &str,
        letters: &[u8],
        cluster: &[u8],
        words: &mut impl Iterator<Item = &'a OsString>,
    ) -> Result<(), String> {
        let mut left = cluster;
        while let [letter, tail @ ..] = left {
            let at = letters.iter().position(|c| c == letter && *c != b':');
            let at = at.ok_or_else(|| invalid(command, *letter))?;
            let letter = char::from(*letter);
            if letters.get(at + 1) != Some(&b':') {
                self.found.push((letter, OsString::new()));
                left = tail;
                continue;
            }
            let missing = || format!("{command}: option requires an argument -- '{letter}'\n");
            let value = match tail {
                [] => words.next().cloned().ok_or_else(missing)?,
                tail => OsString::from_vec(tail.to_vec()),
            };
            self.found.push((letter, value));
            return Ok(());
        }
        Ok(())
    }

    /// Whether an option was given.
    pub fn has(&self, letter: char) -> bool {
        self.found.iter().any(|(l, _)| *l == letter)
    }

    /// The value of an option; the last one counts.
    pub fn value(&self, letter: char) -> Option<&OsStr> {
        let found = self.found.iter().rev().find(|(l, _)| *l == letter);
        found.map(|(_, v)| v.as_os_str())
    }

    /// All values of an option, in order.
    pub fn values(&self, letter: char) -> impl Iterator<Item = &OsStr> {
        let found = self.found.iter().filter(move |(l, _)| *l == letter);
        found.map(|(_, v)| v.as_os_str())
    }

    /// A value as a path.
    pub fn path(&self, letter: char) -> Option<PathBuf> {
        self.value(letter).map(PathBuf::from)
    }

    /// The same as a number: `None` without the option, `Some(None)` for anything that is not a
    /// decimal number of the type, whole. (The originals take text as 0.)
    pub fn number<T: std::str::FromStr>(&self, letter: char) -> Option<Option<T>> {
        self.value(letter).map(number)
    }

    /// Words that belong to no option.
    pub fn operands(&self) -> &[OsString] {
        &self.operands
    }
}

/// A decimal number, with a minus where the type has one.
pub fn number<T: std::str::FromStr>(word: &OsStr) -> Option<T> {
    word.to_str().filter(|text| !text.starts_with('+')).and_then(|text| text.parse().ok())
}

fn invalid(command: &str, letter: u8) -> String {
    let mut text = format!("{command}: invalid option -- '");
    text.push(char::from(letter));
    text + "'\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Long = Long { name: "rate", key: '/', takes: Takes::Value };
    const PROGRESS: Long = Long { name: "progress", key: '%', takes: Takes::Perhaps };
    const SPEC: Spec = Spec { letters: "n:vs:", long: &[JSON, RATE, PROGRESS] };

    fn parse(words: &[&str]) -> Result<Options, String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        Options::parse("x", SPEC, &words)
    }

    #[test]
    fn clusters_and_joined_values_are_read() {
        let o = parse(&["-vs5", "-n", "-7", "rest", "--json", "-", "--", "-v"]).unwrap();
        assert!(o.has('v') && o.has(JSON.key) && !o.has('q'));
        assert_eq!(o.number::<u64>('s'), Some(Some(5)));
        assert_eq!(o.number::<u64>('n'), Some(None));
        assert_eq!(o.number::<i32>('n'), Some(Some(-7)));
        assert_eq!(o.number::<i32>('q'), None);
        assert_eq!(o.operands(), ["rest", "-", "-v"]);
    }

    #[test]
    fn the_last_value_counts() {
        let o = parse(&["-n", "a", "-nb"]).unwrap();
        assert_eq!(o.path('n'), Some(PathBuf::from("b")));
        assert_eq!(o.values('n').collect::<Vec<_>>(), ["a", "b"]);
        let o = parse(&["-n", "--json"]).unwrap();
        assert_eq!((o.path('n'), o.has(JSON.key)), (Some(PathBuf::from("--json")), false));
    }

    #[test]
    fn long_options_have_values_in_the_same_word_or_the_next() {
        let o = parse(&["--rate", "5", "--rate=7M", "--progress", "--progress=a=b"]).unwrap();
        assert_eq!(o.value('/'), Some(OsStr::new("7M")));
        assert_eq!(o.value('%'), Some(OsStr::new("a=b")));
        let o = parse(&["--progress", "x"]).unwrap();
        assert_eq!((o.value('%'), o.operands().len()), (Some(OsStr::new("")), 1));
        assert_eq!(parse(&["--rate"]).unwrap_err(), "x: option '--rate' requires an argument\n");
        let text = "x: option '--json' doesn't allow an argument\n";
        assert_eq!(parse(&["--json=1"]).unwrap_err(), text);
    }

    #[test]
    fn complaints_are_those_of_getopt() {
        assert_eq!(parse(&["-vZ"]).unwrap_err(), "x: invalid option -- 'Z'\n");
        assert_eq!(parse(&["-:"]).unwrap_err(), "x: invalid option -- ':'\n");
        assert_eq!(parse(&["--bogus"]).unwrap_err(), "x: invalid option -- '-'\n");
        assert_eq!(parse(&["-vn"]).unwrap_err(), "x: option requires an argument -- 'n'\n");
    }

    #[test]
    fn numbers_are_whole_words_of_digits() {
        let number = |text: &str| number::<u64>(OsStr::new(text));
        assert_eq!(number("0010"), Some(10));
        for bad in ["", "+1", "-1", "1 ", " 1", "1k", "0x1", "18446744073709551616"] {
            assert_eq!(number(bad), None, "{bad}");
        }
    }
}
