//! `coalesce`: an image into its parent, or with `--into` into an ancestor.
use crate::EINVAL;
use crate::options::{self, JSON, Long, Takes, Term};
use crate::progress::{PROGRESS, Pace, RATE};
use cli::Spec;
use serde_json::json;
use std::ffi::OsString;
use vhd_rs::coalesce::{self, Failure, Progress, Step};

const USAGE: &str = "options: <-n name> [-s sparse] [-p progress] [-h help]\n";

/// `--into ANCESTOR`.
const INTO: Long = Long { name: "into", key: '>', takes: Takes::Value };

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    // -o, -a and -x are in the original's table, each with an argument, and lead to nothing.
    let spec = Spec { letters: "n:o:a:x:sph", long: &[INTO, PROGRESS, RATE, JSON] };
    let o = match options::given_no_help("coalesce", spec, args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let mut pace = match Pace::of(&o, USAGE, term) {
        Ok(pace) => pace,
        Err(code) => return code,
    };
    let (into, as_json) = (o.path(INTO.key), o.has(JSON.key));
    let Some(name) = o.path('n').filter(|_| !"oax".chars().any(|letter| o.has(letter))) else {
        return term.usage(USAGE);
    };
    let mut said = Said {
        sparse: o.has('s') && !as_json,
        percent: o.has('p') && !as_json,
        upto: 0,
        begun: false,
    };
    let options =
        coalesce::Options { into, sparse: o.has('s'), rate: pace.rate, others: term.others };
    let done = coalesce::coalesce(&name, &options, &mut |p| {
        said.tell(p, term);
        pace.bar.tell(p);
    });
    pace.bar.end();
    match done {
        Ok(done) if as_json => {
            term.json(&json!({ "sectors": done.sectors, "bytes_written": done.bytes }));
            0
        }
        Ok(done) => {
            said.end(term);
            term.say(&format!("Coalesced {} sectors", done.sectors));
            0
        }
        Err(e) if as_json => term.failed_as(true, "", &e.name, &e.error),
        Err(e) => failed(&e, term),
    }
}

/// What the original says while it works.
struct Said {
    sparse: bool,
    percent: bool,
    /// The next block to be told.
    upto: u32,
    begun: bool,
}

impl Said {
    /// A share of the disk for every block that is behind us, as the original before each block.
    fn tell(&mut self, p: &Progress, term: &mut Term) {
        if self.sparse && !self.begun {
            term.say("opening for sparse writes\n");
        }
        self.begun = true;
        let upto = (p.upto + 1).min(p.blocks_disk);
        if !self.percent || self.upto >= upto {
            return;
        }
        for block in self.upto..upto {
            let part = f64::from(block) / f64::from(p.blocks_disk) * 100.0;
            term.bytes(format!("\r{part:6.2}%").as_bytes());
        }
        self.upto = upto;
        term.flush();
    }

    fn end(&self, term: &mut Term) {
        if self.percent {
            term.bytes(b"\r100.00%\n");
        }
    }
}

fn failed(e: &Failure, term: &mut Term) -> i32 {
    let (name, errno) = (show::path(&e.name), e.error.errno());
    let line = match e.step {
        Step::Open => format!("error opening {name}: -{errno}\n"),
        Step::NoParent => "coalescing of non-differencing disks is not supported\n".to_string(),
        Step::FindParent => format!("error finding {name} parent: -{errno}\n"),
        Step::Move => String::new(),
    };
    debug_assert!(e.step != Step::NoParent || errno == EINVAL);
    term.failed(&format!("{line}error coalescing: -{errno}\n"), &e.error)
}
