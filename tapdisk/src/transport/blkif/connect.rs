//! Rings come and go (spec/control-socket.md §5.9–5.10).
use std::fmt;

use xen::{BackRing, EventChannels, GrantTable, Layout, Port, RING_PAGES_MAX};

use super::notice::Tally;
use super::poll::{PollPolicy, Polling};
use super::queue::{Queue, RingName};
use super::{RINGS_MAX, Rings};
use crate::places::free_place;

/// Queues of one device.
pub const QUEUES_MAX: u32 = 8;
/// The first domain number that is none (`DOMID_FIRST_RESERVED` of Xen's public/xen.h).
const DOMID_END: u32 = 0x7ff0;
/// Order of the largest ring: 8 pages.
const ORDER_MAX: u32 = RING_PAGES_MAX.ilog2();

/// A ring to be connected, checked as far as it goes without asking Xen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RingWish {
    /// Whose.
    pub name: RingName,
    /// References of its pages.
    refs: [u32; RING_PAGES_MAX],
    pages: usize,
    /// The guest's event channel port.
    port: u32,
    layout: Layout,
    poll: PollPolicy,
}

/// Why a ring is not connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectError {
    /// Positive errno.
    pub errno: i32,
    /// A sentence.
    pub text: String,
}

impl ConnectError {
    /// With a sentence.
    pub fn new(errno: i32, text: impl Into<String>) -> ConnectError {
        ConnectError { errno, text: text.into() }
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for ConnectError {}

impl fmt::Display for RingName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {}, device {}", self.domid, self.devid)?;
        if self.queue > 0 { write!(f, ", queue {}", self.queue) } else { Ok(()) }
    }
}

impl RingWish {
    /// The device and queue of a message: (domid, devid), (queue, queues).
    ///
    /// # Errors
    /// EINVAL for numbers that are none.
    pub fn name(
        (domid, devid): (u32, u32),
        (queue, queues): (u32, u32),
    ) -> Result<RingName, ConnectError> {
        let wrong = |text: String| ConnectError::new(libc::EINVAL, text);
        if domid >= DOMID_END {
            return Err(wrong(format!("{domid} is no domain")));
        }
        // 0 is what a sender says that knows nothing of queues.
        let queue = if queues <= 1 { 0 } else { queue };
        if queues > QUEUES_MAX || queue >= queues.max(1) {
            return Err(wrong(format!(
                "queue {queue} of {queues}: a device has at most {QUEUES_MAX} queues"
            )));
        }
        Ok(RingName { domid: domid as u16, devid, queue })
    }

    /// A ring of 2^`order` pages, the first of `refs`.
    ///
    /// # Errors
    /// EINVAL for an order above 3, EPROTONOSUPPORT for an unknown protocol.
    pub fn new(
        name: RingName,
        (order, refs): (u32, &[u32; RING_PAGES_MAX]),
        port: u32,
        protocol: u32,
        poll: PollPolicy,
    ) -> Result<RingWish, ConnectError> {
        if order > ORDER_MAX {
            let text = format!("a ring of order {order}: at most {ORDER_MAX} is supported");
            return Err(ConnectError::new(libc::EINVAL, text));
        }
        let Some(layout) = Layout::of_protocol(protocol) else {
            let text =
                format!("protocol {protocol}: 1 (native), 2 (x86_32) and 3 (x86_64) are known");
            return Err(ConnectError::new(libc::EPROTONOSUPPORT, text));
        };
        Ok(RingWish { name, refs: *refs, pages: 1 << order, port, layout, poll })
    }
}

impl<X: GrantTable + EventChannels> Rings<X> {
    /// Whether a ring is connected.
    pub fn has(&self, name: RingName) -> bool {
        self.each().any(|(known, _)| known == name)
    }

    /// The rings that are connected, each with what it has done.
    pub fn each(&self) -> impl Iterator<Item = (RingName, Tally)> + '_ {
        let connected = self.queues.iter().flatten().filter(|queue| queue.ring.is_some());
        connected.map(|queue| (queue.name, queue.tally))
    }

    /// Maps the pages of a ring and binds its port.
    ///
    /// # Errors
    /// EALREADY if it is connected, ENOSPC if there are too many, or what the kernel says.
    pub fn connect(&mut self, wish: &RingWish) -> Result<(), ConnectError> {
        let name = wish.name;
        if self.has(name) {
            let text = format!("the ring of {name} is connected already");
            return Err(ConnectError::new(libc::EALREADY, text));
        }
        let Some(place) = free_place(&mut self.queues, RINGS_MAX, Queue::is_over) else {
            let text = format!("{RINGS_MAX} rings are connected or still being drained");
            return Err(ConnectError::new(libc::ENOSPC, text));
        };
        let failed = |what: &str, error: &std::io::Error| {
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
            ConnectError::new(errno, format!("cannot {what} of {name}: {error}"))
        };
        let refs = &wish.refs[..wish.pages];
        let pages = self
            .xen
            .map(name.domid, refs)
            .map_err(|e| failed(&format!("map the ring pages {refs:?}"), &e))?;
        let port: Port = self
            .xen
            .bind(name.domid, wish.port)
            .map_err(|e| failed(&format!("bind to the event channel port {}", wish.port), &e))?;
        let ring = BackRing::new(pages, wish.layout);
        let queue = Queue::new(place as u8, name, (ring, port), Polling::new(wish.poll));
        self.queues[place] = Some(queue);
        Ok(())
    }

    /// Lets go of all rings of a device. Requests in the engine go on and are not answered. False if
    /// there are none.
    pub fn disconnect(&mut self, domid: u32, devid: u32) -> bool {
        self.let_go(|name| u32::from(name.domid) == domid && name.devid == devid)
    }

    /// Lets go of all rings.
    pub fn disconnect_all(&mut self) {
        self.let_go(|_| true);
    }

    fn let_go(&mut self, which: impl Fn(RingName) -> bool) -> bool {
        let mut any = false;
        let queues = self.queues.iter_mut().flatten().filter(|queue| queue.ring.is_some());
        for queue in queues.filter(|queue| which(queue.name)) {
            any = true;
            self.xen.unbind(queue.port);
            // Nothing is written to its pages from here on, so they can go at once.
            queue.ring = None;
            queue.polling.stop();
            queue.give_up(&mut self.parts);
        }
        any
    }

    /// Calls that were taken and not answered.
    pub fn in_flight(&self) -> usize {
        self.parts.calls.used()
    }
}
