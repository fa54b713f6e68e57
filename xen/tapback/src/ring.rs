//! What a frontend wrote about its rings. All of it is the guest's, so all of it is checked:
//! numbers, page orders and counts are refused before anything is made of them.

use crate::config::{QUEUES_MAX, decimal};
use crate::view::{TapId, is_denied, shown, text};
use std::fmt::Write as _;
use tap_ctl::messages::{Blkif, Text};
use xenstore::{Error, Store};

/// log2 of the most pages of a ring.
pub const ORDER_MAX: u32 = 3;

/// `proto` of the message; the first is the build's own, which on x86 no frontend names.
const NATIVE: u32 = 1;
const X86_32: u32 = 2;
const X86_64: u32 = 3;

/// One ring and its event channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Grant references of its 2^order pages.
    pub refs: Vec<u32>,
    /// The guest's port.
    pub port: u32,
}

/// All rings of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rings {
    /// log2 of the pages of each.
    pub order: u32,
    /// Number of the layout, as the message has it.
    pub proto: u32,
    /// 1 to [`QUEUES_MAX`].
    pub queues: Vec<Queue>,
}

/// Why there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The frontend wrote nonsense, or too little.
    Frontend(String),
    /// xenstore failed.
    Store(Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Fault {
        match is_denied(&error) {
            true => Fault::Frontend(error.to_string()),
            false => Fault::Store(error),
        }
    }
}

impl Rings {
    /// Read them.
    ///
    /// # Errors
    /// See [`Fault`].
    pub async fn read(store: &Store, frontend: &str, queues: u32) -> Result<Rings, Fault> {
        let keys = Keys { store, frontend };
        let order = keys.number("ring-page-order").await?.unwrap_or(0);
        if order > ORDER_MAX {
            return Err(Fault::Frontend(format!("ring-page-order is {order}, above {ORDER_MAX}")));
        }
        let proto = proto(keys.read("protocol").await?.as_deref())?;
        let count = keys.number("multi-queue-num-queues").await?.unwrap_or(1);
        let offered = queues.clamp(1, QUEUES_MAX);
        if count == 0 || count > offered {
            let reason = format!("multi-queue-num-queues is {count}, not 1 to {offered}");
            return Err(Fault::Frontend(reason));
        }
        let mut queues = Vec::new();
        for number in 0..count {
            // One queue has no folder of its own.
            let folder = if count == 1 { String::new() } else { format!("queue-{number}/") };
            queues.push(keys.queue(&folder, order).await?);
        }
        Ok(Rings { order, proto, queues })
    }

    /// The layout's name.
    pub fn proto_name(&self) -> &'static str {
        match self.proto {
            X86_32 => "x86_32",
            X86_64 => "x86_64",
            _ => "native",
        }
    }

    /// One line that names these rings and their tapdisk, to know them again after a restart.
    pub fn print(&self, tap: TapId) -> String {
        let mut line = format!("{}.{} {} {}", tap.pid, tap.minor, self.proto, self.order);
        for queue in &self.queues {
            let refs: Vec<String> = queue.refs.iter().map(u32::to_string).collect();
            // Writing to a string cannot fail.
            let _ = write!(line, " {}:{}", queue.port, refs.join(","));
        }
        line
    }

    /// The order to connect to one of them.
    pub fn message(&self, domid: u32, devid: u32, number: u32, poll: (u32, u32)) -> Option<Blkif> {
        let queue = self.queues.get(number as usize)?;
        let mut gref = [0; 8];
        gref.iter_mut().zip(&queue.refs).for_each(|(slot, gref)| *slot = *gref);
        Some(Blkif {
            domid,
            devid,
            gref,
            order: self.order,
            proto: self.proto,
            pool: Text::EMPTY,
            port: queue.port,
            poll_duration: poll.0,
            poll_idle_threshold: poll.1,
            queue: number,
            // The original's message for the original's case.
            queues: match self.queues.len() {
                1 => 0,
                count => u32::try_from(count).ok()?,
            },
        })
    }
}

/// The tapdisk in a [`Rings::print`].
pub fn tap_of_print(line: &str) -> Option<TapId> {
    let (pid, minor) = line.split(' ').next()?.split_once('.')?;
    let pid = decimal(pid)?.try_into().ok()?;
    Some(TapId { pid, minor: decimal(minor)?.try_into().ok()? })
}

/// Without the key: x86_32, as the original has it.
fn proto(name: Option<&str>) -> Result<u32, Fault> {
    match name {
        None | Some("x86_32-abi") => Ok(X86_32),
        Some("x86_64-abi") => Ok(X86_64),
        Some("arm-abi") => Ok(NATIVE),
        Some(other) => {
            Err(Fault::Frontend(format!("the protocol \"{}\" is not known", shown(other))))
        }
    }
}

struct Keys<'a> {
    store: &'a Store,
    frontend: &'a str,
}

impl Keys<'_> {
    async fn read(&self, name: &str) -> Result<Option<String>, Fault> {
        let value = self.store.read(&format!("{}/{name}", self.frontend)).await?;
        Ok(value.map(|bytes| text(&bytes)))
    }

    /// `None`: absent.
    async fn number(&self, name: &str) -> Result<Option<u32>, Fault> {
        let Some(text) = self.read(name).await? else { return Ok(None) };
        let bad = || Fault::Frontend(format!("{name} is \"{}\", not a number", shown(&text)));
        decimal(&text).map(Some).ok_or_else(bad)
    }

    async fn needed(&self, name: &str) -> Result<u32, Fault> {
        let missing = || Fault::Frontend(format!("{name} is missing"));
        self.number(name).await?.ok_or_else(missing)
    }

    async fn queue(&self, folder: &str, order: u32) -> Result<Queue, Fault> {
        let mut refs = Vec::new();
        if order == 0 {
            // Frontends that know of orders number even a single page.
            let plain = self.number(&format!("{folder}ring-ref")).await?;
            let numbered = format!("{folder}ring-ref0");
            refs.push(match plain {
                Some(gref) => gref,
                None => self
                    .number(&numbered)
                    .await?
                    .ok_or_else(|| Fault::Frontend(format!("{folder}ring-ref is missing")))?,
            });
        } else {
            for page in 0..1u32 << order {
                refs.push(self.needed(&format!("{folder}ring-ref{page}")).await?);
            }
        }
        Ok(Queue { refs, port: self.needed(&format!("{folder}event-channel")).await? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rings(queues: usize) -> Rings {
        let queue = |n: usize| Queue { refs: vec![10 + n as u32, 20], port: 7 + n as u32 };
        Rings { order: 1, proto: X86_64, queues: (0..queues).map(queue).collect() }
    }

    #[test]
    fn a_print_names_tapdisk_ports_and_references() {
        let tap = TapId { pid: 77, minor: 3 };
        let print = rings(2).print(tap);
        assert_eq!(print, "77.3 3 1 7:10,20 8:11,20");
        assert_eq!(tap_of_print(&print), Some(tap));
        for bad in ["", "x", "1.x 3", "-1.0", "99999999999.0"] {
            assert_eq!(tap_of_print(bad), None);
        }
    }

    #[test]
    fn one_queue_is_the_originals_message() {
        let blkif = rings(1).message(5, 768, 0, (8000, 50)).expect("there");
        assert_eq!((blkif.queue, blkif.queues, blkif.order, blkif.proto), (0, 0, 1, 3));
        assert_eq!((blkif.gref, blkif.port), ([10, 20, 0, 0, 0, 0, 0, 0], 7));
        assert_eq!((blkif.poll_duration, blkif.poll_idle_threshold), (8000, 50));
        let second = rings(2).message(5, 768, 1, (0, 0)).expect("there");
        assert_eq!((second.queue, second.queues, second.port), (1, 2, 8));
        assert_eq!(rings(2).message(5, 768, 2, (0, 0)), None);
    }

    #[test]
    fn protocols() {
        assert_eq!(proto(None), Ok(2));
        assert_eq!(proto(Some("x86_32-abi")), Ok(2));
        assert_eq!(proto(Some("x86_64-abi")), Ok(3));
        assert!(proto(Some("foo")).is_err());
    }
}
