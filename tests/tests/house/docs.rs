//! Links and citations lead somewhere, and lines end at 100 columns.
//!
//! ```text
//!   *.md ─► Page: headings, anchors, section numbers ─► Pages
//!   *.md, sources ─► lines joined, code blocks left out ─► links, "page.md §n", page.md, "Heading"
//! ```
//! A page is cited by its name alone or with folders: it is looked for beside the file, in the
//! root, in `docs` and in `docs/spec`. A § without a page is one of the page cited last in that
//! source, else of its folder's (`FACTS_OF`); in a page of `docs/spec` it is that page's own.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::root;

const COLUMNS: usize = 100;
/// Source lines that are longer, nearly all of them comments. It may only become smaller: lower it
/// with each change that wraps some.
const LONG_SOURCE_LINES_MAX: usize = 555;
/// Pages of other projects that are cited by name.
const FOREIGN: &[&str] = &["doc/proto.md"];
/// Whose sections a folder's § are of, where its files name no page.
const FACTS_OF: &[(&str, &str)] = &[
    ("drivers/vhd-rs/", "docs/spec/vhd.md"),
    ("tap-ctl/src/client", "docs/spec/control-socket.md"),
    ("tap-ctl/src/messages", "docs/spec/control-socket.md"),
    ("tapdisk/src/control", "docs/spec/control-socket.md"),
    ("xen/tapback/", "docs/spec/xenstore-tapback.md"),
];
/// Folders that are no part of the tree.
const NOT_OURS: &[&str] = &["target", "vendor", "node_modules", "__pycache__"];
/// Groups of a version in the changelog, in their order.
const GROUPS: &[&str] = &["Added", "Changed", "Fixed", "Security"];
const SOURCES: &[&str] = &["rs", "sh", "py", "c", "h"];

/// What can be pointed at in a page.
#[derive(Default)]
struct Page {
    headings: BTreeSet<String>,
    anchors: BTreeSet<String>,
    sections: BTreeSet<String>,
}

/// All pages, by their path from the root.
type Pages = BTreeMap<String, Page>;

/// A file's text with its lines joined, and where each began.
struct Joined {
    text: String,
    begins: Vec<(usize, usize)>,
}

impl Joined {
    fn line(&self, at: usize) -> usize {
        let next = self.begins.partition_point(|(begin, _)| *begin <= at);
        self.begins[next.saturating_sub(1)].1
    }
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a readable folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if name.starts_with('.') || NOT_OURS.contains(&name.as_str()) || path.is_symlink() {
            continue;
        }
        if path.is_dir() { files(&path, found) } else { found.push(path) }
    }
}

/// Files of the tree with one of these endings: path from the root, and text.
fn texts(endings: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    files(&root(), &mut found);
    found.sort();
    let wanted = |path: &PathBuf| {
        path.extension().is_some_and(|ending| endings.iter().any(|wanted| ending == *wanted))
    };
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root()).expect("inside").to_string_lossy().into_owned();
        (name, fs::read_to_string(&path).expect("a text"))
    };
    found.into_iter().filter(wanted).map(read).collect()
}

/// Lines of a page with their numbers from 1, without its code blocks.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_code = false;
    text.lines().enumerate().filter_map(move |(at, line)| {
        let fence = line.trim_start().starts_with("```");
        in_code ^= fence;
        (!fence && !in_code).then_some((at + 1, line))
    })
}

/// A heading as it is read: without the marks of code, emphasis and links.
fn plain(heading: &str) -> String {
    let mut out = String::new();
    let mut rest = heading;
    while let Some((before, after)) = rest.split_once("](") {
        out.push_str(before);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    out.push_str(rest);
    out.replace(['`', '[', ']'], "").replace("**", "").trim().to_string()
}

/// The anchor that a forge makes of a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The number that a text begins with: `12`, `5.3`, `a.1`; and what is behind it.
fn number(text: &str) -> Option<(&str, &str)> {
    let mut end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    if end == 0 && text.starts_with(|c: char| c.is_ascii_lowercase()) {
        end = 1;
        if text[1..].starts_with(|c: char| c.is_alphanumeric()) {
            return None;
        }
    }
    if end == 0 {
        return None;
    }
    while let Some(more) = text[end..].strip_prefix('.') {
        let digits = more.find(|c: char| !c.is_ascii_digit()).unwrap_or(more.len());
        if digits == 0 {
            break;
        }
        end += 1 + digits;
    }
    Some(text.split_at(end))
}

fn page(text: &str) -> Page {
    let mut page = Page::default();
    let mut section = String::new();
    for (_, line) in prose(text) {
        let title = line.trim_start_matches('#');
        if line.starts_with('#') && title.starts_with(' ') {
            let title = plain(title);
            let mut made = anchor(&title);
            if page.anchors.contains(&made) {
                made.push_str("-1");
            }
            page.anchors.insert(made);
            section.clear();
            if let Some((n, rest)) = number(&title)
                && (rest.starts_with(". ") || (rest.starts_with(' ') && n != "a"))
            {
                section = n.to_string();
                page.sections.insert(section.clone());
            }
            page.headings.insert(title);
        } else if !section.is_empty()
            && let Some((n, rest)) = number(line)
            && rest.starts_with(". ")
        {
            // An item of a numbered list: `operations.md §12.6`.
            page.sections.insert(format!("{section}.{n}"));
        }
    }
    page
}

fn joined<'a>(lines: impl Iterator<Item = (usize, &'a str)>) -> Joined {
    let mut all = Joined { text: String::new(), begins: vec![(0, 1)] };
    for (number, line) in lines {
        let line = line.trim_start();
        let mark = ["//!", "///", "//", "#", "*"].into_iter().find(|mark| line.starts_with(mark));
        let line = mark.map_or(line, |mark| &line[mark.len()..]);
        all.begins.push((all.text.len(), number));
        all.text.push_str(line.trim());
        all.text.push(' ');
    }
    all
}

/// A path without `.` and `..`; `None` if it leaves the tree.
fn tidy(path: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn beside(file: &str, path: &str) -> Option<String> {
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder);
    tidy(&format!("{folder}/{path}"))
}

/// The page that a name means in a file.
fn named(file: &str, name: &str, pages: &Pages) -> Option<String> {
    let places = [
        beside(file, name),
        tidy(name),
        tidy(&format!("docs/{name}")),
        tidy(&format!("docs/spec/{name}")),
    ];
    places.into_iter().flatten().find(|place| pages.contains_key(place))
}

/// Text without what stands between back-ticks, at the same places.
fn without_code(text: &str) -> String {
    let mut code = false;
    let hide = |c: char| {
        code ^= c == '`';
        if code { " ".repeat(c.len_utf8()) } else { c.to_string() }
    };
    text.chars().map(hide).collect()
}

/// Links of a page that lead nowhere.
fn dead_links(file: &str, text: &str, pages: &Pages, exists: &dyn Fn(&str) -> bool) -> Vec<String> {
    let all = joined(prose(text));
    let shown = without_code(&all.text);
    let mut faults = Vec::new();
    for (at, _) in shown.match_indices("](") {
        let Some((target, _)) = shown[at + 2..].split_once(')') else { continue };
        if target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let (path, wanted) = target.split_once('#').unwrap_or((target, ""));
        let place = if path.is_empty() { Some(file.to_string()) } else { beside(file, path) };
        let known = place.as_ref().and_then(|place| pages.get(place));
        let there = known.is_some() || place.is_some_and(|place| exists(&place));
        if !there || (!wanted.is_empty() && known.is_none_or(|p| !p.anchors.contains(wanted))) {
            faults.push(format!("{file}:{}: the link to {target} is dead", all.line(at)));
        }
    }
    faults
}

/// The numbers behind a §: `5.9–5.10`, `1, §3`, `9.1, 9.3`.
fn numbers(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = text.trim_start_matches(['§', ' ']);
    while let Some((n, after)) = number(rest) {
        found.push(n);
        let Some(more) = after.strip_prefix('–').or_else(|| after.strip_prefix(", ")) else {
            break;
        };
        if after.starts_with(',') && number(more).is_none_or(|(n, _)| !n.contains('.')) {
            break;
        }
        rest = more;
    }
    found
}

/// The name of a page that ends at `.md` at `at`, where it is one and ours.
fn name_at(text: &str, at: usize) -> Option<&str> {
    let part = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
    let begin = at - text[..at].chars().rev().take_while(|c| part(*c)).count();
    let (name, behind) = (&text[begin..at + 3], &text[at + 3..]);
    let mut behind = behind.trim_start_matches('.').chars();
    let longer = behind.next().is_some_and(|c| part(c) || c == '@');
    // An ending alone, a pattern, an address.
    let other = text[..begin].ends_with(['*', ':', '<', '$', '}', '@', '{']) || begin == at;
    (!longer && !other && !FOREIGN.contains(&name)).then_some(name)
}

/// Looks for citations in one file.
struct Reader<'a> {
    file: &'a str,
    all: &'a Joined,
    pages: &'a Pages,
    /// The page of a § that names none.
    own: Option<String>,
    /// The page of the next §.
    last: Option<String>,
    /// Where the last citation with a section ended.
    cited_to: usize,
    seen: usize,
    faults: Vec<String>,
}

impl Reader<'_> {
    fn read(&mut self) {
        let text = &self.all.text;
        let names = text.match_indices(".md").map(|(at, _)| (at, true));
        let signs = text.match_indices('§').map(|(at, _)| (at, false));
        let mut marks: Vec<(usize, bool)> = names.chain(signs).collect();
        marks.sort_unstable();
        for (at, is_name) in marks {
            if is_name { self.name(at) } else { self.sign(at) }
        }
    }

    fn fault(&mut self, at: usize, what: &str) {
        self.faults.push(format!("{}:{}: {what}", self.file, self.all.line(at)));
    }

    fn is_page(&self) -> bool {
        self.file.ends_with(".md")
    }

    fn name(&mut self, at: usize) {
        let text = &self.all.text;
        let Some(name) = name_at(text, at) else { return };
        let Some(found) = named(self.file, name, self.pages) else {
            return self.fault(at, &format!("there is no page {name}"));
        };
        self.seen += 1;
        let behind = text[at + 3..].trim_start_matches(['`', ')', ']']);
        if let Some((title, _)) = behind.strip_prefix(", \"").and_then(|t| t.split_once('"'))
            && !self.pages[&found].headings.contains(title)
        {
            self.fault(at, &format!("{found} has no \"{title}\""));
        }
        if !self.is_page() || behind.starts_with(" §") {
            self.last = Some(found);
            self.cited_to = text.len() - behind.len();
        }
    }

    fn sign(&mut self, at: usize) {
        let text = &self.all.text;
        // In a page a § is its own, unless it follows a name, or the number of one that did.
        let between = text.get(self.cited_to..at).unwrap_or("x");
        if self.is_page() && !matches!(between.trim(), "" | "," | "and" | "to") {
            self.last.clone_from(&self.own);
        }
        let wanted = numbers(&text[at..]);
        let Some(end) = wanted.last() else { return };
        if text[..at].ends_with("RFC 3164 ") {
            return;
        }
        self.cited_to = at + text[at..].find(end).unwrap_or(0) + end.len();
        self.seen += wanted.len();
        let Some(cited) = self.last.clone() else { return self.fault(at, "§ of which page?") };
        for n in wanted.iter().filter(|n| !self.pages[&cited].sections.contains(**n)) {
            self.fault(at, &format!("{cited} has no §{n}"));
        }
    }
}

/// Citations of a file that lead nowhere, and how many there are. `own` is the page of a § that
/// names none.
fn citations(file: &str, all: &Joined, own: Option<&str>, pages: &Pages) -> (usize, Vec<String>) {
    let (last, own) = (own.map(str::to_string), own.map(str::to_string));
    let (cited_to, seen, faults) = (0, 0, Vec::new());
    let mut reader = Reader { file, all, pages, own, last, cited_to, seen, faults };
    reader.read();
    (reader.seen, reader.faults)
}

/// Where lines are too long.
fn long_lines(file: &str, text: &str) -> Vec<String> {
    let long = |(at, line): (usize, &str)| {
        let columns = line.chars().count();
        (columns > COLUMNS).then(|| format!("{file}:{}: {columns} columns", at + 1))
    };
    text.lines().enumerate().filter_map(long).collect()
}

fn pages(markdown: &[(String, String)]) -> Pages {
    markdown.iter().map(|(name, text)| (name.clone(), page(text))).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let markdown = texts(&["md"]);
    let pages = pages(&markdown);
    assert!(pages.len() > 25, "the pages were found");
    let exists = |place: &str| root().join(place).exists();
    let faults: Vec<String> =
        markdown.iter().flat_map(|(name, text)| dead_links(name, text, &pages, &exists)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_citation_of_a_page_and_section_leads_there() {
    let markdown = texts(&["md"]);
    let pages = pages(&markdown);
    let (mut faults, mut in_sources) = (Vec::new(), 0);
    for (name, text) in &markdown {
        let own = pages[name].sections.is_empty();
        let own = (!own).then_some(name.as_str());
        faults.extend(citations(name, &joined(prose(text)), own, &pages).1);
    }
    for (name, text) in texts(SOURCES) {
        if name == "tests/tests/house/docs.rs" {
            continue;
        }
        let own = FACTS_OF.iter().find(|(folder, _)| name.starts_with(folder)).map(|(_, p)| *p);
        let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
        let (seen, wrong) = citations(&name, &joined(lines), own, &pages);
        in_sources += seen;
        faults.extend(wrong);
    }
    assert!(in_sources > 200, "citations are seen in sources: {in_sources}");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn no_line_of_prose_is_longer_than_100_columns() {
    let faults: Vec<String> =
        texts(&["md"]).iter().flat_map(|(name, text)| long_lines(name, text)).collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn long_lines_of_sources_become_fewer() {
    let faults: Vec<String> =
        texts(SOURCES).iter().flat_map(|(name, text)| long_lines(name, text)).collect();
    assert!(
        faults.len() <= LONG_SOURCE_LINES_MAX,
        "{} lines, {LONG_SOURCE_LINES_MAX} were there before:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

/// What is wrong with the order of a changelog: versions, groups in one order, lines in groups.
fn strays(text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let (mut in_version, mut group) = (false, None);
    for (at, line) in text.lines().enumerate() {
        let fault = |what: &str| format!("CHANGELOG.md:{}: {what}: {line}", at + 1);
        if let Some(version) = line.strip_prefix("## ") {
            let number = version.split('.').all(|part| part.parse::<u32>().is_ok());
            if version != "Unreleased" && !number {
                faults.push(fault("no version"));
            }
            (in_version, group) = (true, None);
        } else if let Some(title) = line.strip_prefix("### ") {
            let place = GROUPS.iter().position(|group| *group == title);
            if !in_version || place.is_none() || place <= group {
                faults.push(fault("a group that is none, comes again, or is out of order"));
            }
            group = place;
        } else if line.starts_with("* ") && group.is_none() {
            faults.push(fault("in no group"));
        }
    }
    faults
}

#[test]
fn the_changelog_is_in_groups() {
    let text = fs::read_to_string(root().join("CHANGELOG.md")).expect("a changelog");
    let faults = strays(&text);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(text.lines().filter(|line| line.starts_with("* ")).count() > 50, "lines were seen");
    for wrong in [
        "## Unreleased\n* x",
        "## new",
        "### Added\n* x",
        "## 1.0\n### Fixed\n### Added",
        "## 1.0\n### Fixed\n### Fixed",
        "## 1.0\n### Other",
    ] {
        assert!(!strays(wrong).is_empty(), "{wrong}");
    }
}

#[test]
fn what_is_wrong_is_found() {
    let text = "# T\n\n## 1. One\n\n### 1.2 A `b`\n\n1. x\n";
    let pages = pages(&[("docs/spec/t.md".into(), text.into()), ("a.md".into(), "# A".into())]);
    let links = |text: &str| dead_links("a.md", text, &pages, &|place| place == "Makefile");
    assert_eq!(links("[x](docs/spec/t.md#12-a-b), [m](Makefile), [y](#a), `[z](z.md)`").len(), 0);
    for wrong in ["[x](b.md)", "[x](docs/spec/t.md#two)", "[x](#b)", "[x](../a.md)", "a\n[x](n)"] {
        assert_eq!(links(wrong).len(), 1, "{wrong}");
    }
    let cites = |file: &str, text: &str| {
        citations(file, &joined(text.lines().map(|line| (7, line))), None, &pages).1
    };
    for right in [
        "// spec/t.md §1, §1.2",
        "// `t.md` §1–1.2 and §1.2.1.",
        "// docs/spec/t.md\n// §1",
        "// t.md, \"1.2 A b\"",
        "// RFC 3164 §4.1.1, doc/proto.md",
    ] {
        assert_eq!(cites("x/y.rs", right), Vec::<String>::new(), "{right}");
    }
    for wrong in [
        "// spec/t.md §2",
        "// spec/u.md",
        "// t.md §1–3",
        "// t.md\n// §1.3",
        "// t.md, \"B\"",
        "// §1",
    ] {
        assert_eq!(cites("x/y.rs", wrong).len(), 1, "{wrong}");
    }
    assert_eq!(long_lines("a", &format!("{}\n{}", "x".repeat(100), "ä".repeat(101))).len(), 1);
}
