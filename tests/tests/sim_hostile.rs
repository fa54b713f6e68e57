//! Seeds of a guest that writes footers, headers and tables everywhere, over crashes at every
//! point; `SIM_SEEDS=n` and `SIM_FIRST=n` for long runs. Each planted bug of growth and opening
//! must be found.
use image::{Closing, Image, Meta, Plan, Run, Span, Step, Stop, Want};
use tests::sim::hostile::{Setup, run};
use tests::sim::{Counts, each};

/// Seeds within which a planted bug must be found.
const SEEDS: u64 = 300;

#[test]
fn no_guest_chooses_what_its_image_is() {
    let seen = each("hostile", Counts { same: 600, fresh: 700 }, |seed| run(Setup::new(seed)));
    let (seeds, crashes) = (seen.len() as u64, seen.iter().sum::<u64>());
    println!("{seeds} seeds, {crashes} crashes");
    assert!(crashes > 3 * seeds, "the disk is crashed often enough");
}

/// A driver that does not say what its file ends with: the end moves without the footer.
struct Endless(Box<dyn Image>);

impl Image for Endless {
    fn sectors(&self) -> u64 {
        self.0.sectors()
    }
    fn map(&self, meta: &dyn Meta, span: Span) -> Result<Run, Stop> {
        self.0.map(meta, span)
    }
    fn plan(&mut self, meta: &mut dyn Meta, span: Span, want: Want) -> Result<Plan, Stop> {
        self.0.plan(meta, span, want)
    }
    fn landed(&mut self, meta: &mut dyn Meta, plan: &Plan, step: u8) -> Step {
        self.0.landed(meta, plan, step)
    }
    fn finish(&mut self, meta: &mut dyn Meta, plan: &Plan, ok: bool) -> bool {
        self.0.finish(meta, plan, ok)
    }
    fn closing(&mut self) -> Closing {
        self.0.closing()
    }
}

fn must_find(name: &str, what: &str, setup: impl Fn(u64) -> Setup) {
    let find = |seed| run(setup(seed)).err().filter(|why| why.contains(what));
    let found = (0..SEEDS).find_map(|seed| find(seed).map(|why| (seed, why)));
    let (seed, why) = found.unwrap_or_else(|| panic!("{name}: not found in {SEEDS} seeds"));
    println!("{name}: seed {seed}: {why}");
}

#[test]
fn every_planted_bug_of_ends_and_copies_is_found() {
    let end = "do not end with the footer";
    must_find("a file grows without its footer", end, |seed| Setup {
        wrap: |image| Box::new(Endless(image)),
        ..Setup::new(seed)
    });
    must_find("a damaged copy is not healed at open", "another footer", |seed| Setup {
        unhealed: true,
        ..Setup::new(seed)
    });
    must_find("marks stay while blocks go", "batmap shows unallocated", |seed| Setup {
        unhealed: true,
        ..Setup::new(seed)
    });
    let sum = "batmap is invalid: invalid checksum";
    must_find("a checksum does not wait for its map", sum, |seed| Setup {
        hasty: true,
        ..Setup::new(seed)
    });
    must_find("the new end is not flushed before the old one goes", end, |seed| Setup {
        lazy_flush: true,
        ..Setup::new(seed)
    });
}
