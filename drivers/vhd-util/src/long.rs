//! Long options of the commands that the original does not have, or that go beyond it. They are taken
//! off the command line before the original's letters are read.
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Takes a flag off the line; whether it was there.
pub(crate) fn flag(args: &mut Vec<OsString>, name: &str) -> bool {
    let before = args.len();
    args.retain(|a| a != name);
    args.len() < before
}

/// Takes an option with a value off the line, as `--name value` or `--name=value`; the last one counts.
///
/// # Errors
/// What is wrong, as getopt says it.
pub(crate) fn value(
    command: &str,
    args: &mut Vec<OsString>,
    name: &str,
) -> Result<Option<OsString>, String> {
    let joined = format!("{name}=");
    let mut found = None;
    let mut at = 0;
    while at < args.len() {
        if args[at] == name {
            if at + 1 == args.len() {
                return Err(format!("{command}: option '{name}' requires an argument\n"));
            }
            found = args.drain(at..at + 2).nth(1);
        } else if let Some(value) = args[at].as_bytes().strip_prefix(joined.as_bytes()) {
            found = Some(OsString::from_vec(value.to_vec()));
            args.remove(at);
        } else {
            at += 1;
        }
    }
    Ok(found)
}

/// A number of bytes: digits, and K, M, G or T for powers of 1024.
pub(crate) fn bytes(text: &std::ffi::OsStr) -> Option<u64> {
    let text = text.to_str()?;
    let (digits, shift) = match text.char_indices().next_back()? {
        (at, 'k' | 'K') => (&text[..at], 10),
        (at, 'm' | 'M') => (&text[..at], 20),
        (at, 'g' | 'G') => (&text[..at], 30),
        (at, 't' | 'T') => (&text[..at], 40),
        _ => (text, 0),
    };
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| digits.parse::<u64>().ok()?.checked_mul(1 << shift)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(args: &[&str]) -> Vec<OsString> {
        args.iter().map(OsString::from).collect()
    }

    #[test]
    fn long_options_are_taken_off_the_line() {
        let mut args = line(&["-n", "x", "--rate", "5", "--rate=7M", "--json", "-s"]);
        assert_eq!(value("c", &mut args, "--rate"), Ok(Some("7M".into())));
        assert!(flag(&mut args, "--json") && !flag(&mut args, "--json"));
        assert_eq!(args, line(&["-n", "x", "-s"]));
        let mut args = line(&["--rate"]);
        assert!(value("c", &mut args, "--rate").is_err());
    }

    #[test]
    fn sizes_have_suffixes_and_nothing_else() {
        for (text, want) in [("0", Some(0)), ("12k", Some(12 << 10)), ("3G", Some(3 << 30))] {
            assert_eq!(bytes(text.as_ref()), want);
        }
        for text in ["", "k", "-1", "1.5M", "9999999999999999T", "5MB"] {
            assert_eq!(bytes(text.as_ref()), None, "{text}");
        }
    }
}
