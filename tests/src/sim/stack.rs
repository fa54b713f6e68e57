//! What stands beside the chain of a simulated disk: encryption, the local cache, a secondary, a
//! log of changes. Its chances are its own, so that old seeds stay what they were.
use std::sync::{Arc, Mutex};

use engine::chain::Role;
use engine::throttle::Rates;
use image::Span;
use image::{Changes, Cipher, Purpose};

use super::model::{ANY, ZERO};
use super::rng::Rng;

/// A second image that is written. It is the last file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Second {
    /// What for.
    pub purpose: Purpose,
    /// Remote (raw, never read), or a VHD.
    pub remote: bool,
    /// It has taken over.
    pub taken_over: bool,
}

/// What a world has.
pub struct Stack {
    /// VHDs are encrypted.
    pub encrypted: bool,
    /// What is read from below is kept in the leaf.
    pub local_cache: bool,
    /// The secondary.
    pub second: Option<Second>,
    /// Leaves are committed now and then, by this chance.
    commits: Option<Rng>,
    /// The second image gets what the leaf has, and every change, now.
    pub base: bool,
    /// Whether it does from the next time on that the chain is opened, if that is no chance.
    pub base_next: Option<bool>,
    /// Which parent holds a page is remembered.
    pub remembers: bool,
    /// Sectors that were marked before they changed.
    pub marked: Marks,
    /// Sectors that were acknowledged since the remote mirror is there.
    pub mirrored: Vec<bool>,
}

/// Stands in for the cipher of all VHDs: what it makes of a sector depends on the sector's number,
/// and is noise to whoever reads without it. AES took a third of the simulator's time; that it is
/// right is tried elsewhere.
#[derive(Clone, Copy, Debug)]
pub struct Noise;

impl Noise {
    fn mix(sector: u64, data: &mut [u8]) {
        const ODD: u64 = 0x9e37_79b9_7f4a_7c15;
        for (sector, bytes) in (sector..).zip(data.chunks_exact_mut(512)) {
            let mut key = (sector + 1).wrapping_mul(ODD);
            for word in bytes.as_chunks_mut::<8>().0 {
                *word = (u64::from_le_bytes(*word) ^ key).to_le_bytes();
                key = key.wrapping_add(ODD);
            }
        }
    }
}

impl Cipher for Noise {
    fn encrypt(&self, sector: u64, data: &mut [u8]) {
        Noise::mix(sector, data);
    }
    fn decrypt(&self, sector: u64, data: &mut [u8]) {
        Noise::mix(sector, data);
    }
}

/// A log of changes in memory.
#[derive(Clone, Debug, Default)]
pub struct Marks(Arc<Mutex<Vec<bool>>>);

impl Stack {
    /// By chance: most seeds have nothing, so that nothing hides what is wrong without it.
    pub fn new(seed: u64, sectors: u64) -> Stack {
        let mut rng = Rng::new(seed ^ 0x57ac);
        let second = match rng.below(8) {
            0 => Some((Purpose::Mirror, false)),
            1 => Some((Purpose::Mirror, true)),
            2 => Some((Purpose::Standby, false)),
            _ => None,
        };
        let second = second.map(|(purpose, remote)| Second { purpose, remote, taken_over: false });
        let encrypted = rng.one_in(5);
        Stack {
            encrypted,
            local_cache: rng.one_in(4),
            remembers: rng.one_in(2),
            second,
            commits: None,
            base: false,
            base_next: None,
            marked: Marks(Arc::new(Mutex::new(vec![false; sectors as usize]))),
            mirrored: vec![false; sectors as usize],
        }
    }

    /// The same, with nothing but commits.
    pub fn that_commits(self, seed: u64) -> Stack {
        let commits = Some(Rng::new(seed ^ 0x636f_6d6d));
        Stack { commits, encrypted: false, local_cache: false, second: None, ..self }
    }

    /// Whether the chain that is opened now is one whose leaf is committed.
    pub fn choose_base(&mut self, files: usize) {
        let chance = self.commits.as_mut().is_some_and(|rng| rng.below(4) > 0);
        self.base = self.base_next.take().unwrap_or(chance) && files > 1;
    }

    /// Whether the owner takes base for the disk once the commit is over.
    pub fn wants_base(&mut self) -> bool {
        self.commits.as_mut().is_some_and(|rng| rng.one_in(2))
    }

    /// Whether a snapshot is taken (another one) while no daemon is there.
    pub fn wants_snapshot(&mut self) -> bool {
        self.commits.as_mut().is_some_and(|rng| rng.one_in(4))
    }

    /// Rates that make some requests wait, now and then.
    pub fn rates(&mut self) -> Rates {
        let Some(rng) = &mut self.commits else { return Rates::default() };
        if !rng.one_in(4) {
            return Rates::default();
        }
        let mut rate = |most: u64| if rng.one_in(2) { 1 + rng.below(most) } else { 0 };
        Rates { bytes: [rate(1 << 22), rate(1 << 22)], ops: [rate(100), rate(100)], burst_ms: 10 }
    }

    /// The cipher of every VHD.
    pub fn cipher(&self) -> Option<Noise> {
        self.encrypted.then_some(Noise)
    }

    /// The order in which `files` are read.
    pub fn order(&self, files: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..files).collect();
        let Some(second) = self.second else { return order };
        let last = order.pop().expect("the secondary is a file");
        match second {
            Second { taken_over: true, .. } => order.insert(0, last),
            Second { purpose: Purpose::Mirror, remote: false, .. } => order.insert(1, last),
            _ => {}
        }
        order
    }

    /// What file `i` is to the chain, whose last file is `last`.
    pub fn role(&self, i: usize, last: usize) -> Role {
        match self.second.filter(|_| i == last) {
            Some(Second { purpose: Purpose::Mirror, remote, .. }) => {
                Role::Mirror { read: !remote, remote }
            }
            Some(_) => Role::Standby,
            None if i == 1 && self.base => Role::Base,
            None if i == 0 => Role::Top { keeps: self.local_cache },
            None => Role::Parent,
        }
    }

    /// Whether a crash leaves the secondary useless: a mirror may hold what was never acknowledged
    /// and is not in the leaf, which would come to light under the next snapshot. Who mirrors makes
    /// it anew.
    pub fn stale_mirror(&self) -> bool {
        self.second.is_some_and(|s| s.purpose == Purpose::Mirror && !s.remote && !s.taken_over)
    }

    /// What a discarded sector may hold.
    pub fn discarded(&self, device: bool, exact: bool) -> u64 {
        // Zeros that were not encrypted are noise to who decrypts them.
        // A discard in base may be none in the leaf, and the other way round.
        let second = self.second.is_some_and(|second| second.remote || !exact);
        let second = second || self.commits.is_some();
        if device || self.encrypted || second { ANY } else { ZERO }
    }
}

impl Marks {
    /// Whether every sector of a span is marked.
    pub fn all(&self, span: Span) -> bool {
        let marked = self.0.lock().expect("no panic while it is held");
        marked[range(span)].iter().all(|marked| *marked)
    }
}

impl Changes for Marks {
    fn mark(&mut self, span: Span) {
        let mut marked = self.0.lock().expect("no panic while it is held");
        marked[range(span)].fill(true);
    }
}

fn range(span: Span) -> std::ops::Range<usize> {
    span.start as usize..span.end() as usize
}
