//! The canary: each planted ordering bug must be found by the simulator, or the simulator proves
//! nothing.
use engine::Bug;
use image::{
    Action, Closing, Image, Meta, MetaList, MetaRef, Order, Plan, Run, Span, Step, Stop, Want,
};
use tests::sim::{Setup, find_planted, run};

/// Seeds within which a planted bug must be found.
const SEEDS: u64 = 400;

/// A driver with bug number `N`.
struct Buggy<const N: u8>(Box<dyn Image>);

const NEW_BITMAP_NOT_WRITTEN: u8 = 1;
const BAT_WITH_THE_DATA: u8 = 2;
const BITS_NOT_WRITTEN: u8 = 3;
const BITS_WITH_THE_DATA: u8 = 4;
const BITS_OF_OTHERS_TRUSTED: u8 = 5;
const SPACE_REUSED_AT_ONCE: u8 = 6;
const NO_BARRIER: u8 = 7;
const SUCCESS_AFTER_FAILURE: u8 = 8;
const SPACE_REUSED_BEFORE_A_FLUSH: u8 = 9;
const DOUBT_NOT_SETTLED: u8 = 10;
const OLD_ENDS_TAKEN_FOR_BLANK: u8 = 11;

impl<const N: u8> Image for Buggy<N> {
    fn sectors(&self) -> u64 {
        self.0.sectors()
    }
    fn map(&self, meta: &dyn Meta, span: Span) -> Result<Run, Stop> {
        self.0.map(meta, span)
    }
    fn plan(&mut self, meta: &mut dyn Meta, span: Span, want: Want) -> Result<Plan, Stop> {
        let mut plan = self.0.plan(&mut Liar::<N>(meta), span, want)?;
        let appears = plan.count > 0
            && !plan.along.is_empty()
            && plan.free.is_none()
            && plan.pins.iter().count() == 2;
        let bits = plan.along.is_empty() && plan.free.is_none() && plan.pins.iter().count() == 1;
        if N == NEW_BITMAP_NOT_WRITTEN && appears {
            plan.along = MetaList::EMPTY;
        }
        if (N == BAT_WITH_THE_DATA && appears) || (N == BITS_WITH_THE_DATA && bits) {
            let early = self.0.landed(meta, &plan, 1);
            let both: Vec<MetaRef> = plan.along.iter().chain(early.writes.iter()).collect();
            plan.along = MetaList::from([both.first().copied(), both.get(1).copied()]);
        }
        if N == DOUBT_NOT_SETTLED && plan.action == Action::Nothing && plan.count > 0 {
            plan.along = if plan.free.is_none() { MetaList::EMPTY } else { plan.along };
        }
        if N == NO_BARRIER {
            plan.order = Order::Any;
        }
        Ok(plan)
    }
    fn landed(&mut self, meta: &mut dyn Meta, plan: &Plan, number: u8) -> Step {
        let bits = plan.along.is_empty() && plan.free.is_none();
        let step = self.0.landed(&mut Liar::<N>(meta), plan, number);
        if N == BITS_NOT_WRITTEN && bits { Step::NONE } else { step }
    }
    fn finish(&mut self, meta: &mut dyn Meta, plan: &Plan, ok: bool) -> bool {
        self.0.finish(&mut Liar::<N>(meta), plan, ok || N == SUCCESS_AFTER_FAILURE)
    }
    fn closing(&mut self) -> Closing {
        self.0.closing()
    }
}

/// A view that lies where the bug needs it.
struct Liar<'a, const N: u8>(&'a mut dyn Meta);

impl<const N: u8> Meta for Liar<'_, N> {
    fn get(&self, r: MetaRef) -> Result<&[u8], Stop> {
        self.0.get(r)
    }
    fn edit(&mut self, r: MetaRef) -> &mut [u8] {
        self.0.edit(r)
    }
    fn create(&mut self, r: MetaRef) -> Result<&mut [u8], Stop> {
        self.0.create(r)
    }
    fn clean(&self, r: MetaRef) -> bool {
        N == BITS_OF_OTHERS_TRUSTED || self.0.clean(r)
    }
    fn grown(&self) -> u64 {
        self.0.grown()
    }
    fn now(&self) -> u64 {
        self.0.now()
    }
    fn durable(&self) -> u64 {
        let lies = [SPACE_REUSED_AT_ONCE, SPACE_REUSED_BEFORE_A_FLUSH];
        if lies.contains(&N) { u64::MAX } else { self.0.durable() }
    }
    fn blank_from(&self) -> u64 {
        if N == OLD_ENDS_TAKEN_FOR_BLANK { 0 } else { self.0.blank_from() }
    }
    fn oldest(&self) -> u64 {
        if N == SPACE_REUSED_AT_ONCE { u64::MAX } else { self.0.oldest() }
    }
}

fn must_find(name: &str, setup: impl Fn(u64) -> Setup) {
    find_planted(name, SEEDS, setup);
}

fn planted<const N: u8>(seed: u64) -> Setup {
    Setup { wrap: |image| Box::new(Buggy::<N>(image)), ..Setup::new(seed) }
}

fn planted_wide<const N: u8>(seed: u64) -> Setup {
    Setup { wide: true, ..planted::<N>(seed) }
}

fn bug_wide(bug: Bug) -> impl Fn(u64) -> Setup {
    move |seed| Setup { bug, ..Setup::wide(seed) }
}

#[test]
fn every_planted_bug_is_found() {
    must_find("a new block's bitmap is not written", planted::<NEW_BITMAP_NOT_WRITTEN>);
    must_find("the BAT is written with the data", planted::<BAT_WITH_THE_DATA>);
    must_find("bits are not written", planted::<BITS_NOT_WRITTEN>);
    must_find("bits are written with the data", planted::<BITS_WITH_THE_DATA>);
    must_find("bits that others are still writing are trusted", planted::<BITS_OF_OTHERS_TRUSTED>);
    must_find("freed space is used again at once", planted::<SPACE_REUSED_AT_ONCE>);
    must_find("no barrier over a volatile cache", planted::<NO_BARRIER>);
    must_find("a failed change is taken as done", planted::<SUCCESS_AFTER_FAILURE>);
    must_find("what is read is kept over a later change", |seed| Setup {
        careless_cache: true,
        ..Setup::new(seed)
    });
    must_find("places in the leaf are remembered", |seed| Setup {
        remembers_too_much: true,
        ..Setup::new(seed)
    });
    must_find("the disk's flush does nothing", |seed| Setup {
        lazy_flush: true,
        ..Setup::new(seed)
    });
}

#[test]
fn every_bug_planted_in_the_wide_world_is_found() {
    must_find("where a footer stood is taken for blank", |seed| Setup {
        unordered: Some(false),
        ..planted_wide::<OLD_ENDS_TAKEN_FOR_BLANK>(seed)
    });
    // On a device, since new blocks of a file go to blank places first.
    must_find("space is used again before a flush", |seed| Setup {
        unordered: Some(true),
        churn: true,
        ..planted_wide::<SPACE_REUSED_BEFORE_A_FLUSH>(seed)
    });
    must_find("marks stay while blocks go", |seed| Setup {
        marks_stay: true,
        unordered: Some(true),
        churn: true,
        ..Setup::wide(seed)
    });
    must_find("a zero leaves a doubt", |seed| Setup {
        eio: Some(8),
        ..planted_wide::<DOUBT_NOT_SETTLED>(seed)
    });
    must_find("a new block is not alone", |seed| Setup {
        appears_beside_others: true,
        eio: Some(8),
        ..Setup::wide(seed)
    });
    must_find("the local cache knows no barrier", bug_wide(Bug::KeptWithoutBarrier));
    must_find("the disk's flush does nothing, without barriers too", |seed| Setup {
        lazy_flush: true,
        ..Setup::wide(seed)
    });
}

#[test]
fn the_wrapper_alone_breaks_nothing() {
    for seed in 0..20 {
        run(planted::<0>(seed)).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        // As hard as where the bugs of the wide world are planted.
        let hard = Setup { eio: Some(8), churn: true, ..planted_wide::<0>(seed) };
        run(hard).unwrap_or_else(|why| panic!("hard seed {seed}: {why}"));
    }
}
