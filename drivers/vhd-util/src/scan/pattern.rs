//! Patterns of names as `glob(3)` with braces and `fnmatch(3)` with extended patterns read them.
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Whether a name fits a pattern of `*`, `?`, `[…]`, `\` and the extended groups `?(…)`, `*(…)`,
/// `+(…)`, `@(…)`, `!(…)` with alternatives between bars.
pub(crate) fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern {
        [] => name.is_empty(),
        [kind @ (b'?' | b'*' | b'+' | b'@' | b'!'), b'(', ..] => match group(&pattern[2..]) {
            Some((choices, rest)) => extended(*kind, &choices, rest, name),
            None => simple(pattern, name),
        },
        _ => simple(pattern, name),
    }
}

fn simple(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern, name) {
        ([b'*', rest @ ..], _) => (0..=name.len()).any(|n| matches(rest, &name[n..])),
        ([b'?', rest @ ..], [_, tail @ ..]) => matches(rest, tail),
        ([b'[', class @ ..], [c, tail @ ..]) => match bracket(class, *c) {
            Some((fits, rest)) => fits && matches(rest, tail),
            None => *c == b'[' && matches(class, tail),
        },
        ([b'\\', c, rest @ ..], [d, tail @ ..]) | ([c, rest @ ..], [d, tail @ ..]) => {
            c == d && matches(rest, tail)
        }
        _ => false,
    }
}

/// Whether `c` is in the class that `class` begins with, and what follows the class.
fn bracket(class: &[u8], c: u8) -> Option<(bool, &[u8])> {
    let (negated, mut left) = match class {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, class),
    };
    let mut fits = false;
    let mut first = true;
    loop {
        match left {
            [b']', rest @ ..] if !first => return Some((fits != negated, rest)),
            [from, b'-', to, rest @ ..] if *to != b']' => {
                fits |= (*from..=*to).contains(&c);
                left = rest;
            }
            [one, rest @ ..] => {
                fits |= *one == c;
                left = rest;
            }
            [] => return None,
        }
        first = false;
    }
}

/// The alternatives of a group, and what follows its parenthesis.
fn group(text: &[u8]) -> Option<(Vec<&[u8]>, &[u8])> {
    let (mut depth, mut start) = (0, 0);
    let mut choices = Vec::new();
    for (n, c) in text.iter().enumerate() {
        match c {
            b'(' => depth += 1,
            b')' if depth > 0 => depth -= 1,
            b')' => {
                choices.push(&text[start..n]);
                return Some((choices, &text[n + 1..]));
            }
            b'|' if depth == 0 => {
                choices.push(&text[start..n]);
                start = n + 1;
            }
            _ => {}
        }
    }
    None
}

fn extended(kind: u8, choices: &[&[u8]], rest: &[u8], name: &[u8]) -> bool {
    let one = |part: &[u8]| choices.iter().any(|choice| matches(choice, part));
    let splits = || (0..=name.len()).map(|n| name.split_at(n));
    match kind {
        b'!' => splits().any(|(part, tail)| !one(part) && matches(rest, tail)),
        b'@' => splits().any(|(part, tail)| one(part) && matches(rest, tail)),
        b'?' => {
            matches(rest, name) || splits().any(|(part, tail)| one(part) && matches(rest, tail))
        }
        _ => {
            let none = kind == b'*' && matches(rest, name);
            let again = |(part, tail): (&[u8], &[u8])| {
                let more = !part.is_empty() && extended(b'*', choices, rest, tail);
                one(part) && (more || matches(rest, tail))
            };
            none || splits().any(again)
        }
    }
}

/// Whether a pattern is more than a name.
fn magic(pattern: &[u8]) -> bool {
    pattern.iter().any(|c| matches!(c, b'*' | b'?' | b'['))
}

/// `{a,b}` written out; nested braces too.
fn braces(pattern: &[u8]) -> Vec<Vec<u8>> {
    let Some(open) = pattern.iter().position(|c| *c == b'{') else { return vec![pattern.into()] };
    let (mut depth, mut start) = (0, open + 1);
    let mut choices = Vec::new();
    for (n, c) in pattern.iter().enumerate().skip(open + 1) {
        match c {
            b'{' => depth += 1,
            b'}' if depth > 0 => depth -= 1,
            b',' if depth == 0 => {
                choices.push(&pattern[start..n]);
                start = n + 1;
            }
            b'}' => {
                choices.push(&pattern[start..n]);
                let whole = |choice: &&[u8]| [&pattern[..open], choice, &pattern[n + 1..]].concat();
                return choices.iter().flat_map(|c| braces(&whole(c))).collect();
            }
            _ => {}
        }
    }
    vec![pattern.into()]
}

/// The files a pattern stands for, sorted. One without wildcards stands for itself, whether it is
/// there or not.
pub(crate) fn files(pattern: &Path) -> Vec<PathBuf> {
    braces(pattern.as_os_str().as_bytes()).iter().flat_map(|p| one_pattern(p)).collect()
}

fn one_pattern(pattern: &[u8]) -> Vec<PathBuf> {
    let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
    if !magic(pattern) {
        return vec![path(pattern)];
    }
    let mut found = vec![if pattern.starts_with(b"/") { path(b"/") } else { PathBuf::new() }];
    for part in pattern.split(|c| *c == b'/').filter(|part| !part.is_empty()) {
        found = found.iter().flat_map(|dir| step(dir, part)).collect();
    }
    found.retain(|p| p.symlink_metadata().is_ok());
    found.sort_unstable();
    found
}

fn step(dir: &Path, part: &[u8]) -> Vec<PathBuf> {
    if !magic(part) {
        return vec![dir.join(OsString::from_vec(part.to_vec()))];
    }
    let here = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let entries = std::fs::read_dir(here).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name());
    let hidden = |name: &OsString| name.as_bytes().starts_with(b".") && !part.starts_with(b".");
    let fits = |name: &OsString| !hidden(name) && matches(part, name.as_bytes());
    names.filter(fits).map(|name| dir.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_their_patterns() {
        let fits = |pattern: &str, name: &str| matches(pattern.as_bytes(), name.as_bytes());
        for (pattern, name) in [
            ("VHD-*", "VHD-1"),
            ("*", ""),
            ("?x[a-c]", "1xb"),
            ("[!a]", "b"),
            ("[]x]", "]"),
            ("\\*", "*"),
            ("[", "["),
            ("@(VHD|LV)-*", "LV-1"),
            ("*(ab|c)d", "abcabd"),
            ("+(a)", "aaa"),
            ("?(x)y", "y"),
            ("!(LV-*)", "VHD-1"),
        ] {
            assert!(fits(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("VHD-*", "LV-1"),
            ("?", ""),
            ("[a-c]", "d"),
            ("\\*", "x"),
            ("@(VHD|LV)-*", "X-1"),
            ("+(a)", ""),
            ("!(LV-*)", "LV-1"),
        ] {
            assert!(!fits(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn braces_are_written_out() {
        let text = |pattern: &str| {
            let all = braces(pattern.as_bytes());
            all.into_iter().map(|p| String::from_utf8(p).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(text("a{b,c{d,e}}f"), ["abf", "acdf", "acef"]);
        assert_eq!(text("{a"), ["{a"]);
        assert_eq!(text("{a,b}{1,2}"), ["a1", "a2", "b1", "b2"]);
    }

    #[test]
    fn files_are_found_in_folders_and_hidden_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        for name in ["b.vhd", "a.vhd", ".c.vhd", "d.raw", "sub/e.vhd"] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let find = |pattern: &str| {
            let found = files(&dir.path().join(pattern));
            found.iter().map(|p| p.file_name().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(find("*.vhd"), ["a.vhd", "b.vhd"]);
        assert_eq!(find("*.{raw,vhd}"), ["d.raw", "a.vhd", "b.vhd"]);
        assert_eq!(find("none"), ["none"], "a name stands for itself");
        assert!(find("none*").is_empty());
        assert_eq!(find("*/../s*b/*.vhd"), ["e.vhd"]);
    }
}
