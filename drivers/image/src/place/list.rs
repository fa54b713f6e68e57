//! The places that the owner of the machine has listed: directories and devices, one a line.
use std::path::{Component, Path, PathBuf};

/// The list.
pub const LIST: &str = "/etc/tapdisk-rs/parents";
/// More places, with colons between them, for one command.
pub const VARIABLE: &str = "TAPDISK_PARENTS";

/// What is listed.
#[derive(Debug, Default)]
pub(super) struct List {
    roots: Vec<PathBuf>,
    /// What counts for nothing.
    pub(super) fault: Option<String>,
}

/// Reads the list; without one there is none.
pub(super) fn read() -> List {
    let text = match std::fs::read_to_string(LIST) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return List { fault: Some(format!("{LIST} cannot be read: {e}")), ..more() },
    };
    let mut list = more();
    for (n, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if !line.is_empty() && !line.starts_with('#') && !list.add(Path::new(line)) {
            list.fault =
                Some(format!("{LIST}: line {n} is no absolute path and counts for nothing"));
        }
    }
    list
}

fn more() -> List {
    let mut list = List::default();
    let value = std::env::var_os(VARIABLE).unwrap_or_default();
    for path in std::env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()) {
        if !list.add(&path) {
            list.fault = Some(format!("{VARIABLE}: {path:?} is no absolute path"));
        }
    }
    list
}

impl List {
    /// Takes a place, and where it leads if it is a link.
    fn add(&mut self, path: &Path) -> bool {
        let plain = path.components().all(|part| part != Component::ParentDir);
        if !path.is_absolute() || !plain {
            return false;
        }
        self.roots.extend(path.canonicalize().ok());
        self.roots.push(path.into());
        true
    }

    /// Whether a path is listed, or lies below what is.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.roots.iter().any(|root| path.starts_with(root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_stands_for_what_lies_below_it() {
        let mut list = List::default();
        assert!(list.add(Path::new("/srv/bases/")) && list.add(Path::new("/dev/vg")));
        assert!(!list.add(Path::new("srv")) && !list.add(Path::new("/srv/../etc")));
        for path in ["/srv/bases/a.vhd", "/srv/bases/d/a.vhd", "/dev/vg/lv"] {
            assert!(list.has(Path::new(path)), "{path}");
        }
        for path in ["/srv/basement/a.vhd", "/srv", "/dev/vg2/lv", "/etc/shadow"] {
            assert!(!list.has(Path::new(path)), "{path}");
        }
    }
}
