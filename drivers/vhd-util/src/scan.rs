//! `scan`: a line for every image of a repository, of files or of logical volumes.
//!
//! Names that the caller has given are written as they are; a caller that splits at blanks must not
//! have blanks in them. The name of a parent is an image's word: blanks and `=` in it are written
//! out.
mod image;
mod lvm;
mod pattern;
mod tree;

use self::image::{Image, Link, ScanOptions, Target, base, canonical, error_line};
use crate::options::{self, JSON, Options, Term};
use cli::Spec;
use lvm::Group;
use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use vhd_rs::VhdError;
use vhd_rs::scan::{Look, ScanFault};

const USAGE: &str = "usage: [OPTIONS] FILES\noptions: [-m match filter] [-f fast] \
    [-c continue on failure] [-l LVM volume] [-p pretty print] [-a scan parents] [-v verbose] \
    [-h help] [-M show markers]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match options::given(
        "scan",
        Spec { letters: "m:fcl:pavMh", long: &[JSON] },
        args,
        USAGE,
        term,
    ) {
        Ok(o) => o,
        Err(code) => return code,
    };
    if !o.has('m') && o.operands().is_empty() {
        return term.usage(USAGE);
    }
    let group = match o.value('l').map(|name| Group::read(&name.to_string_lossy())).transpose() {
        Ok(group) => group,
        Err(e) => {
            term.complain(&format!("{e}\nscan failed: -{}. Check syslog for details\n", e.errno()));
            return e.errno();
        }
    };
    let tree = o.has('p');
    let wanted = ScanOptions {
        // A tree wants to be right rather than early.
        look: if o.has('f') && !tree { Look::Fast } else { Look::Full },
        marks: o.has('M'),
        paths: o.has('v'),
        resolve: o.has('v') || o.has('a') || tree,
        json: o.has(JSON.key),
    };
    let mut scan = Scan {
        wanted,
        tree,
        parents: o.has('a'),
        go_on: o.has('c'),
        group,
        queue: Vec::new(),
        known: HashSet::new(),
        found: Vec::new(),
    };
    scan.targets(&o);
    let code = scan.all(term);
    if tree {
        term.bytes(&tree::lines(scan.found, wanted));
    }
    code
}

struct Scan {
    wanted: ScanOptions,
    /// Trees are written at the end.
    tree: bool,
    /// Parents are looked at as well.
    parents: bool,
    /// Errors do not end the scan.
    go_on: bool,
    group: Option<Group>,
    /// Grows while parents are found.
    queue: Vec<Target>,
    /// Canonical paths of the queue.
    known: HashSet<PathBuf>,
    found: Vec<Image>,
}

impl Scan {
    fn targets(&mut self, o: &Options) {
        match &self.group {
            None => {
                let matched = o.path('m').map(|p| pattern::files(&p)).unwrap_or_default();
                let named = o.operands().iter().map(PathBuf::from);
                self.queue.extend(matched.into_iter().chain(named).map(Target::file));
            }
            Some(group) => {
                let filter = o.value('m').map(|p| p.as_bytes().to_vec());
                let fits = |name: &str| {
                    let by_name = o.operands().iter().any(|r| base(Path::new(r)) == name);
                    by_name || filter.as_ref().is_some_and(|f| pattern::matches(f, name.as_bytes()))
                };
                let volumes = group.volumes.iter().filter(|v| fits(&v.name));
                self.queue.extend(volumes.map(|v| Target::volume(v, group)));
            }
        }
        if self.tree && self.group.is_none() {
            for target in &mut self.queue {
                target.path = canonical(&target.path);
                target.shown.clone_from(&target.path);
            }
            let mut seen = HashSet::new();
            self.queue.retain(|target| seen.insert(target.path.clone()));
        }
        if self.parents {
            self.known = self.queue.iter().map(|target| canonical(&target.path)).collect();
        }
    }

    fn all(&mut self, term: &mut Term) -> i32 {
        let mut next = 0;
        while let Some(target) = self.queue.get(next).cloned() {
            if let Some(errno) = term.failed_with() {
                return errno;
            }
            next += 1;
            match target.look(self.wanted, self.group.as_ref()) {
                Ok(image) => self.keep(image, term),
                Err(fault) => {
                    term.bytes(&error_line(&target.path, &fault, self.wanted));
                    if !self.go_on {
                        return self.stop(&fault, term);
                    }
                }
            }
        }
        0
    }

    fn stop(&self, fault: &ScanFault, term: &mut Term) -> i32 {
        let errno = fault.error.errno();
        term.complain(&format!("{}\n", fault.error));
        errno
    }

    fn keep(&mut self, image: Image, term: &mut Term) {
        if !self.tree {
            let mut line = image.line(self.wanted, None);
            line.push(b'\n');
            term.bytes(&line);
        }
        if let Some(link) = image.parent.as_ref().filter(|_| self.parents) {
            self.follow(link, term);
        }
        if self.tree {
            self.found.push(image);
        }
    }

    /// Puts a parent into the queue, once. A missing one is reported and ends nothing.
    fn follow(&mut self, link: &Link, term: &mut Term) {
        let Some(errno) = link.missing else {
            if self.known.insert(link.path.clone()) {
                self.queue.push(self.parent_target(link));
            }
            return;
        };
        let missing = std::io::Error::from_raw_os_error(errno);
        let error = VhdError::io(&link.path, "look at the file", 0, &missing);
        let fault = ScanFault { doing: "failure scanning target", error };
        let name = if self.tree { link.path.as_path() } else { Path::new(base(&link.path)) };
        term.bytes(&error_line(name, &fault, self.wanted));
    }

    fn parent_target(&self, link: &Link) -> Target {
        let name = base(&link.path).to_string_lossy();
        let volume = self.group.as_ref().and_then(|g| g.volumes.iter().find(|v| v.name == name));
        let shown = match self.wanted.look {
            Look::Full => link.path.clone(),
            Look::Fast => PathBuf::from(base(&link.path)),
        };
        Target { path: link.path.clone(), shown, raw: link.raw, volume: volume.cloned() }
    }
}
