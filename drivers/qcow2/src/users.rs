//! Who is at work on which clusters of the disk: the plans that are not over.
//!
//! A change of a place that stays is made beside others; one that makes a cluster appear, go, or
//! show other parts is alone on its clusters until the table says so on the disk.

use crate::num::wide;

/// Plans at work at once, at most: those of all slots of a disk, and more.
pub const USERS_MAX: usize = 1024;

/// What a plan does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// Data at a place that stays, or nothing.
    Beside,
    /// Parts of clusters, from part `from` of the first to before part `to` of the last, are in the
    /// file from cluster `host` on.
    Data { host: u64, from: u64, to: u64 },
    /// Parts read as zeros, and keep what place they have.
    Zeros { from: u64, to: u64 },
    /// Whole clusters read as zeros, and have no place (`marked`), or are as if never written.
    Vanish { marked: bool },
    /// An L2 table of the driver's own is made in cluster `host`.
    Table { table: u64, host: u64 },
    /// A count block.
    Block { block: u64, host: u64 },
    /// Counts of clusters of the file go down; `free`: to nothing.
    Down { free: bool },
}

/// Clusters of the file whose counts are to go down once the plan is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The first.
    pub host: u64,
    /// How many; 0: none.
    pub count: u64,
    /// Why.
    pub why: Why,
}

/// Why counts are to go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Zeros were asked for: who still reads there may find them.
    Zeroed,
    /// What was there is somewhere else now: who still reads there must find it.
    Moved,
    /// Nothing ever pointed there.
    Unused,
}

impl Gone {
    /// Nothing goes.
    pub const NONE: Gone = Gone { host: 0, count: 0, why: Why::Unused };

    /// Whether a cluster is one of these.
    pub fn has(self, host: u64) -> bool {
        (self.host..self.host + self.count).contains(&host)
    }
}

/// A plan at work.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// Its clusters of the disk.
    pub first: u64,
    /// How many.
    pub count: u64,
    /// Nobody else is on them.
    pub alone: bool,
    /// What it does.
    pub what: What,
    /// What goes with it.
    pub gone: Gone,
    /// Clusters that it took for data or a table, and that are nobody's if it fails before a table
    /// points there.
    pub taken: Gone,
    /// A table may say so on the disk.
    pub pointed: bool,
}

/// All of them, by the number that their plans carry.
#[derive(Debug)]
pub struct Users {
    places: Vec<Option<User>>,
    /// Places from here on are empty.
    end: usize,
    count: usize,
}

impl Default for Users {
    fn default() -> Users {
        Users { places: vec![None; USERS_MAX], end: 0, count: 0 }
    }
}

impl Users {
    /// Whether there is no room for another.
    pub fn is_full(&self) -> bool {
        self.count == USERS_MAX
    }

    /// Whether a cluster of the disk is in use in a way that keeps another from it, who wants to be
    /// `alone`.
    pub fn keep(&self, cluster: u64, alone: bool) -> bool {
        self.places[..self.end].iter().flatten().any(|user| {
            (alone || user.alone) && (user.first..user.first + user.count).contains(&cluster)
        })
    }

    /// A plan begins.
    pub fn enter(&mut self, user: User) -> u64 {
        let free = self.places.iter().position(Option::is_none);
        let place = free.expect("fewer plans than users");
        self.places[place] = Some(user);
        (self.end, self.count) = (self.end.max(place + 1), self.count + 1);
        wide(place)
    }

    /// One of them.
    pub fn get(&mut self, number: u64) -> &mut User {
        let place = usize::try_from(number).ok().and_then(|place| self.places.get_mut(place));
        place.and_then(Option::as_mut).expect("a plan entered")
    }

    /// It is over.
    pub fn leave(&mut self, number: u64) -> User {
        let user = *self.get(number);
        self.places[usize::try_from(number).expect("it was found there")] = None;
        self.count -= 1;
        while self.end > 0 && self.places[self.end - 1].is_none() {
            self.end -= 1;
        }
        user
    }
}
