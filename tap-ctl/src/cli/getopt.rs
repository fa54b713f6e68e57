//! getopt as glibc does it: clusters, values in the same word or the next, options after operands,
//! `--` ends them. Beyond it: `--help`, `--version` and the long names of the table.

use super::args::Args;
use super::{Opt, Takes};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// What the words of a command line ask for.
pub enum Parsed {
    Args(Args),
    /// `-h`: the original's usage text.
    Usage,
    /// `--help`.
    Help,
    /// `--version`.
    Version,
}

/// Words that no option is.
enum Stop {
    Parsed(Parsed),
    /// getopt's message, without the name of the command.
    Complaint(String),
}

/// Parse the words after COMMAND. The first `-h`, `--help` or wrong option decides.
///
/// # Errors
/// getopt's message.
pub fn parse(options: &'static [Opt], words: &[OsString]) -> Result<Parsed, String> {
    let mut parser = Parser { options, words, next: 0, args: Args::default() };
    match parser.all() {
        Ok(()) => Ok(Parsed::Args(parser.args)),
        Err(Stop::Parsed(parsed)) => Ok(parsed),
        Err(Stop::Complaint(complaint)) => Err(complaint),
    }
}

struct Parser<'a> {
    options: &'static [Opt],
    words: &'a [OsString],
    next: usize,
    args: Args,
}

impl Parser<'_> {
    fn all(&mut self) -> Result<(), Stop> {
        while let Some(word) = self.take() {
            match word.as_bytes() {
                b"--" => {
                    let rest = self.words[self.next..].iter().cloned();
                    self.args.operands.extend(rest);
                    return Ok(());
                }
                [b'-', b'-', name @ ..] => self.long(name)?,
                [b'-', cluster @ ..] if !cluster.is_empty() => self.cluster(cluster)?,
                _ => self.args.operands.push(word),
            }
        }
        Ok(())
    }

    fn take(&mut self) -> Option<OsString> {
        let word = self.words.get(self.next)?.clone();
        self.next += 1;
        Some(word)
    }

    /// `-ab`, `-mVALUE`, `-m VALUE`.
    fn cluster(&mut self, mut rest: &[u8]) -> Result<(), Stop> {
        while let [byte, after @ ..] = rest {
            let letter = char::from(*byte);
            let opt = self.options.iter().find(|opt| opt.short == Some(letter));
            rest = match opt.map(|opt| (opt, opt.takes)) {
                None if letter == 'h' => return Err(Stop::Parsed(Parsed::Usage)),
                None => return Err(invalid(*byte)),
                Some((opt, Takes::Nothing)) => {
                    self.args.options.push((opt, None));
                    after
                }
                Some((opt, takes)) => {
                    let same_word = (!after.is_empty()).then(|| OsStr::from_bytes(after).into());
                    let value = self.value(takes, same_word);
                    if value.is_none() && matches!(takes, Takes::Value(_)) {
                        let text = format!("option requires an argument -- '{letter}'");
                        return Err(Stop::Complaint(text));
                    }
                    self.args.options.push((opt, value));
                    return Ok(());
                }
            };
        }
        Ok(())
    }

    /// `--name`, `--name=VALUE`, `--name VALUE`.
    fn long(&mut self, word: &[u8]) -> Result<(), Stop> {
        let mut parts = word.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default();
        let same_word = parts.next().map(|value| OsStr::from_bytes(value).to_owned());
        match name {
            b"help" => return Err(Stop::Parsed(Parsed::Help)),
            b"version" => return Err(Stop::Parsed(Parsed::Version)),
            _ => {}
        }
        let known = |opt: &&Opt| opt.long.is_some_and(|long| long.as_bytes() == name);
        // getopt without long options takes `--x` as the option `-`.
        let opt = self.options.iter().find(known).ok_or_else(|| invalid(b'-'))?;
        let name = String::from_utf8_lossy(name).into_owned();
        if opt.takes == Takes::Nothing && same_word.is_some() {
            return Err(Stop::Complaint(format!("option '--{name}' doesn't allow an argument")));
        }
        let value = self.value(opt.takes, same_word);
        if value.is_none() && matches!(opt.takes, Takes::Value(_)) {
            return Err(Stop::Complaint(format!("option '--{name}' requires an argument")));
        }
        self.args.options.push((opt, value));
        Ok(())
    }

    fn value(&mut self, takes: Takes, same_word: Option<OsString>) -> Option<OsString> {
        match (takes, same_word) {
            (Takes::Nothing, _) => None,
            (_, Some(value)) => Some(value),
            (Takes::Value(_), None) => self.take(),
            (Takes::Maybe(_), None) => {
                let next = self.words.get(self.next)?.to_str()?;
                next.parse::<f64>().ok().filter(|_| !next.starts_with('-'))?;
                self.take()
            }
        }
    }
}

fn invalid(byte: u8) -> Stop {
    Stop::Complaint(format!("invalid option -- '{}'", char::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::super::{flag, long, value};
    use super::*;

    static OPTIONS: [Opt; 4] = [
        value('m', "MINOR", ""),
        flag('f', ""),
        long("watch", Takes::Maybe("SECONDS"), "").or('w'),
        long("json", Takes::Nothing, ""),
    ];

    fn text(line: &str) -> String {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        match parse(&OPTIONS, &words) {
            Err(complaint) => complaint,
            Ok(Parsed::Usage) => "usage".into(),
            Ok(Parsed::Help) => "help".into(),
            Ok(Parsed::Version) => "version".into(),
            Ok(Parsed::Args(args)) => {
                let option = |(opt, value): &(&Opt, Option<OsString>)| {
                    let name = opt.short.map(String::from).or(opt.long.map(String::from));
                    let value = value.as_ref().map(|value| format!("={}", value.to_string_lossy()));
                    name.expect("a name") + &value.unwrap_or_default()
                };
                let options = args.options.iter().map(option);
                let operands =
                    args.operands.iter().map(|word| format!("[{}]", word.to_string_lossy()));
                options.chain(operands).collect::<Vec<_>>().join(" ")
            }
        }
    }

    #[test]
    fn short_options() {
        assert_eq!(text("-m 7 -f"), "m=7 f");
        assert_eq!(text("-fm7"), "f m=7");
        assert_eq!(text("-m -1"), "m=-1");
        assert_eq!(text("x -f y"), "f [x] [y]");
        assert_eq!(text("-f -- -f"), "f [-f]");
        assert_eq!(text("-"), "[-]");
    }

    #[test]
    fn the_first_wrong_option_or_help_decides() {
        assert_eq!(text("-Z -h"), "invalid option -- 'Z'");
        assert_eq!(text("-h -Z"), "usage");
        assert_eq!(text("-fh"), "usage");
        assert_eq!(text("-f -m"), "option requires an argument -- 'm'");
        assert_eq!(text("--bogus"), "invalid option -- '-'");
    }

    #[test]
    fn long_options() {
        assert_eq!(text("--json"), "json");
        assert_eq!(text("--json=x"), "option '--json' doesn't allow an argument");
        assert_eq!(text("--help"), "help");
        assert_eq!(text("-f --version"), "version");
    }

    #[test]
    fn a_value_that_may_follow_is_a_number() {
        assert_eq!(text("-w"), "w");
        assert_eq!(text("-w 0.5 -f"), "w=0.5 f");
        assert_eq!(text("--watch=2"), "w=2");
        assert_eq!(text("--watch 2"), "w=2");
        assert_eq!(text("-w x"), "w [x]");
        assert_eq!(text("-w -m 1"), "w m=1");
    }
}
