//! `repair`: both footers written anew at their places, and a batmap that was spoiled.
use crate::options::{self, Term};
use std::ffi::OsString;
use vhd_rs::rebuild::{self, Rebuilt};
use vhd_rs::rescue::{Lost, Why};
use vhd_rs::{edit, files, lock};

const USAGE: &str = "options: <-n name> <-b use the back-up footer> [-h help]\n";

pub(crate) fn run(args: &[OsString], term: &mut Term) -> i32 {
    let o = match options::given_no_help("repair", "n:bh", args, USAGE, term) {
        Ok(o) => o,
        Err(code) => return code,
    };
    let Some(name) = o.path('n') else { return term.usage(USAGE) };
    let done = lock::open_to_change(&name, term.others).and_then(|file| {
        let uuid = files::new_uuid(&name)?;
        let lost = edit::lost(&file, &name, o.has('b'))?;
        edit::repair(&file, &name, o.has('b'), uuid)?;
        for lost in &lost {
            term.complain(&format!("{}: {}\n", show::path(&name), not_brought_back(lost)));
        }
        rebuild::batmap(&file, &name)
    });
    match done {
        Ok(rebuilt) => {
            if let Some(what) = of_the_batmap(rebuilt) {
                term.complain(&format!("{}: {what}\n", show::path(&name)));
            }
            0
        }
        Err(e) => term.not_opened(&name, &e),
    }
}

/// What a person has to know of the batmap.
fn of_the_batmap(rebuilt: Rebuilt) -> Option<String> {
    match rebuilt {
        Rebuilt::Nothing | Rebuilt::Whole => None,
        Rebuilt::WithoutMarks => Some(
            "the batmap was made anew; a marker or the hash of a key that was in it is lost".into(),
        ),
        Rebuilt::Unread(block) => Some(format!(
            "block {block} cannot be read, so the batmap was not made anew; see vhd-util check"
        )),
    }
}

/// What becomes of sectors that the image should have and has not.
fn not_brought_back(lost: &Lost) -> String {
    let now = match lost.why {
        Why::Cut => "they read as zeros from now on",
        Why::Block | Why::Metadata | Why::Nowhere => {
            "a repair does not bring them back; vhd-util convert gives the rest"
        }
    };
    format!("{lost}; {now}")
}
