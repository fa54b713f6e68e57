//! Measures of the sources that may become smaller, never larger.
//!
//! Each constant is what there was when it was written down last; whoever brings one down writes
//! the new number. Only what is built into programs and libraries counts: tests are cut off.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use super::{crates, root, sources};

/// Functions of more than [`FUNCTION_LINES`] lines.
const LONG_FUNCTIONS_MAX: usize = 0;
const FUNCTION_LINES: usize = 70;
/// Files of more than [`FILE_LINES`] lines.
const LONG_FILES_MAX: usize = 5;
const FILE_LINES: usize = 500;
/// Conversions with `as` between numbers, which may cut.
const CASTS_MAX: usize = 526;
/// `#[allow(…)]` without a reason or a comment.
const ALLOWS_MAX: usize = 0;
/// Folders and files directly in the source of one of the daemon's crates that use each other in a
/// circle, in pairs.
const CIRCLES_MAX: usize = 0;

/// A source without its tests: name, and lines.
struct Source {
    name: String,
    lines: Vec<String>,
}

/// Programs and libraries; what is for tests alone is none.
fn programs() -> Vec<Source> {
    let mut found: Vec<PathBuf> = Vec::new();
    for (name, dir) in crates() {
        if !["tests", "test-support", "xenstore-fake"].contains(&name.as_str()) {
            sources(&dir.join("src"), &mut found);
        }
    }
    let of_tests = |path: &PathBuf| {
        path.ends_with("tests.rs") || path.components().any(|part| part.as_os_str() == "tests")
    };
    found.retain(|path| !of_tests(path));
    found.sort();
    let all: Vec<Source> = found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(root()).expect("inside").to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).expect("a source file");
            let lines = text.lines().take_while(|line| *line != "#[cfg(test)]");
            Source { name, lines: lines.map(str::to_owned).collect() }
        })
        .collect();
    assert!(all.len() > 250, "the sources were found");
    all
}

/// Without what follows two slashes.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or("")
}

/// `name:line: lines` of every function, by its indentation: rustfmt puts the end under the
/// beginning.
fn functions(source: &Source) -> Vec<(usize, usize)> {
    let mut all = Vec::new();
    for (at, line) in source.lines.iter().enumerate() {
        let text = line.trim_start();
        let begins =
            ["fn ", "pub fn ", "pub(super) fn ", "pub(crate) fn ", "const fn ", "unsafe fn "]
                .iter()
                .any(|word| text.starts_with(word));
        if !begins {
            continue;
        }
        let indent = &line[..line.len() - text.len()];
        let end = format!("{indent}}}");
        let rest = &source.lines[at..];
        // One of a trait may have no body.
        let body = rest.iter().map(|line| code(line).trim_end()).find_map(|line| {
            let ends = line.ends_with(';') || line.ends_with('}');
            if line.ends_with('{') { Some(true) } else { ends.then_some(false) }
        });
        let lines = rest.iter().position(|line| *line == end);
        if let (Some(true), Some(lines)) = (body, lines) {
            all.push((at + 1, lines + 1));
        }
    }
    all
}

/// At most so many, and which.
fn at_most(most: usize, found: &[String]) {
    let count = found.len();
    assert!(count <= most, "{count}, there were {most}:\n{}", found.join("\n"));
}

#[test]
fn functions_do_not_become_long() {
    let mut long = Vec::new();
    let mut seen = 0;
    for source in programs() {
        for (at, lines) in functions(&source) {
            seen += 1;
            if lines > FUNCTION_LINES {
                long.push(format!("{}:{at}: {lines} lines", source.name));
            }
        }
    }
    assert!(seen > 2500, "functions are seen: {seen}");
    at_most(LONG_FUNCTIONS_MAX, &long);
}

#[test]
fn files_do_not_become_long() {
    let long: Vec<String> = programs()
        .iter()
        .filter(|source| source.lines.len() > FILE_LINES)
        .map(|source| format!("{}: {} lines", source.name, source.lines.len()))
        .collect();
    at_most(LONG_FILES_MAX, &long);
}

#[test]
fn nothing_is_unwrapped_outside_tests() {
    let mut found = Vec::new();
    for source in programs() {
        for (at, line) in source.lines.iter().enumerate() {
            if code(line).contains(".unwrap()") {
                found.push(format!("{}:{}: {}", source.name, at + 1, line.trim()));
            }
        }
    }
    at_most(0, &found);
}

#[test]
fn casts_become_fewer() {
    const NUMBERS: [&str; 12] =
        ["u8", "u16", "u32", "u64", "usize", "u128", "i8", "i16", "i32", "i64", "isize", "i128"];
    let mut found = Vec::new();
    for source in programs() {
        for (at, line) in source.lines.iter().enumerate() {
            let words: Vec<&str> =
                code(line).split(|c: char| !c.is_alphanumeric() && c != '_').collect();
            let casts = words.windows(2).filter(|w| w[0] == "as" && NUMBERS.contains(&w[1]));
            found.extend(casts.map(|_| format!("{}:{}: {}", source.name, at + 1, line.trim())));
        }
    }
    assert!(!found.is_empty(), "casts are seen");
    at_most(CASTS_MAX, &found);
}

#[test]
fn what_is_allowed_has_a_reason() {
    let mut found = Vec::new();
    for source in programs() {
        for (at, line) in source.lines.iter().enumerate() {
            // What may be unsafe is a list of its own.
            let allows = line.contains("[allow(") && !line.contains("unsafe_code");
            let before = at.checked_sub(1).map_or("", |before| source.lines[before].trim());
            if allows && !line.contains("reason") && !before.starts_with("//") {
                found.push(format!("{}:{}: {}", source.name, at + 1, line.trim()));
            }
        }
    }
    at_most(ALLOWS_MAX, &found);
}

/// Which parts of a crate use which: `crate::PART` in a line of code.
fn uses(src: &str) -> BTreeMap<String, BTreeSet<String>> {
    let part = |name: &str| {
        let inside = name.strip_prefix(src)?;
        let first = inside.split('/').next()?;
        Some(first.trim_end_matches(".rs").to_owned())
    };
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for source in programs() {
        let Some(from) = part(&source.name) else { continue };
        let edges = all.entry(from.clone()).or_default();
        for line in &source.lines {
            for rest in code(line).split("crate::").skip(1) {
                let to: String =
                    rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                if to != from {
                    edges.insert(to);
                }
            }
        }
    }
    all
}

/// Pairs of parts of a crate that use each other, be it over others.
fn circles(src: &str) -> Vec<String> {
    let uses = uses(src);
    assert!(!uses.is_empty(), "{src} has parts");
    let reach = |from: &String| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(at) = next.pop() {
            for to in uses.get(&at).into_iter().flatten() {
                if uses.contains_key(to) && seen.insert(to.clone()) {
                    next.push(to.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> =
        uses.keys().map(|from| (from, reach(from))).collect();
    let mut circles = Vec::new();
    for (from, to) in &reached {
        for other in to.iter().filter(|other| *other > *from) {
            if reached[other].contains(*from) {
                circles.push(format!("{src}: {from} and {other}"));
            }
        }
    }
    circles
}

#[test]
fn parts_of_the_daemon_use_each_other_in_no_circles() {
    let daemon = crates().into_values().filter(|dir| dir.starts_with(root().join("tapdisk")));
    let sources: Vec<String> = daemon
        .map(|dir| dir.strip_prefix(root()).expect("inside").to_string_lossy().into_owned())
        .map(|dir| format!("{dir}/src/"))
        .collect();
    assert!(sources.len() > 5, "the daemon's crates were found: {sources:?}");
    let found: Vec<String> = sources.iter().flat_map(|src| circles(src)).collect();
    at_most(CIRCLES_MAX, &found);
}
