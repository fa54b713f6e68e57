//! Rings come and go (spec/control-socket.md §5.9–5.10).
use std::fmt;

use serde::{Deserialize, Serialize};
use xen::{BackRing, EventChannels, GrantTable, Layout, Port, RING_PAGES_MAX};

use super::notice::Tally;
use super::poll::PollPolicy;
use super::queue::{Queue, RingName};
use super::{RINGS_MAX, Rings};
use host::slab::free_index;

/// Queues of one device.
pub const QUEUES_MAX: u32 = 8;
/// The first domain number that is none (`DOMID_FIRST_RESERVED` of Xen's public/xen.h).
const DOMID_END: u32 = 0x7ff0;
/// Order of the largest ring: 8 pages.
const ORDER_MAX: u32 = RING_PAGES_MAX.ilog2();

/// A ring to be connected, checked as far as it goes without asking Xen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RingParams {
    /// Whose.
    pub name: RingName,
    /// References of its pages.
    refs: [u32; RING_PAGES_MAX],
    pages: usize,
    /// The guest's event channel port.
    port: u32,
    /// By its number, and what it means.
    protocol: u32,
    layout: Layout,
    pub(super) poll: PollPolicy,
}

/// A ring at rest, as one program leaves it and the next one takes it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RingState {
    domid: u16,
    devid: u32,
    queue: u32,
    refs: Vec<u32>,
    /// Our end of the event channel.
    port: Port,
    protocol: u32,
    poll_us: u32,
    poll_idle: u32,
    /// Requests taken and answered; of a ring that is not served any more nothing is said.
    requests: Option<u32>,
    tally: Tally,
}

impl RingState {
    /// Whose it is.
    pub fn name(&self) -> RingName {
        RingName { domid: self.domid, devid: self.devid, queue: self.queue }
    }
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

impl RingParams {
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
    ) -> Result<RingParams, ConnectError> {
        if order > ORDER_MAX {
            let text = format!("a ring of order {order}: at most {ORDER_MAX} is supported");
            return Err(ConnectError::new(libc::EINVAL, text));
        }
        let Some(layout) = Layout::of_protocol(protocol) else {
            let text =
                format!("protocol {protocol}: 1 (native), 2 (x86_32) and 3 (x86_64) are known");
            return Err(ConnectError::new(libc::EPROTONOSUPPORT, text));
        };
        let pages = 1 << order;
        Ok(RingParams { name, refs: *refs, pages, port, protocol, layout, poll })
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
    pub fn connect(&mut self, params: &RingParams) -> Result<(), ConnectError> {
        let name = params.name;
        if self.has(name) {
            let text = format!("the ring of {name} is connected already");
            return Err(ConnectError::new(libc::EALREADY, text));
        }
        let Some(index) = free_index(&mut self.queues, RINGS_MAX, Queue::is_over) else {
            let text = format!("{RINGS_MAX} rings are connected or still being drained");
            return Err(ConnectError::new(libc::ENOSPC, text));
        };
        let failed = |what: &str, error: &std::io::Error| {
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
            ConnectError::new(errno, format!("cannot {what} of {name}: {error}"))
        };
        let refs = &params.refs[..params.pages];
        let pages = self
            .xen
            .map(name.domid, refs)
            .map_err(|e| failed(&format!("map the ring pages {refs:?}"), &e))?;
        let port: Port = self
            .xen
            .bind(name.domid, params.port)
            .map_err(|e| failed(&format!("bind to the event channel port {}", params.port), &e))?;
        let ring = BackRing::new(pages, params.layout);
        let queue = Queue::new(index as u8, params, (ring, port));
        self.queues[index] = Some(queue);
        Ok(())
    }

    /// What another program needs to go on with the rings, all of which are at rest.
    pub fn states(&self) -> Vec<RingState> {
        let connected = self.queues.iter().flatten().filter(|queue| queue.ring.is_some());
        let state = |queue: &Queue| {
            let RingName { domid, devid, queue: number } = queue.name;
            let live = queue.ring.as_ref().filter(|_| !queue.broken);
            RingState {
                domid,
                devid,
                queue: number,
                refs: queue.params.refs[..queue.params.pages].to_vec(),
                port: queue.port,
                protocol: queue.params.protocol,
                poll_us: queue.params.poll.duration_us,
                poll_idle: queue.params.poll.idle_threshold,
                requests: live.map(|ring| ring.indices().0),
                tally: queue.tally,
            }
        };
        connected.map(state).collect()
    }

    /// Maps the pages of a ring again that another program served. Its port is bound.
    ///
    /// # Errors
    /// EINVAL for what is no ring, or what the kernel says.
    pub fn adopt(&mut self, state: &RingState) -> Result<(), ConnectError> {
        let name = state.name();
        let mut refs = [0; RING_PAGES_MAX];
        let pages = state.refs.len();
        if pages == 0 || pages > RING_PAGES_MAX || !pages.is_power_of_two() {
            let text = format!("a ring of {pages} pages, of {name}");
            return Err(ConnectError::new(libc::EINVAL, text));
        }
        refs[..pages].copy_from_slice(&state.refs);
        let poll = PollPolicy { duration_us: state.poll_us, idle_threshold: state.poll_idle };
        // The far end of the channel is known to the kernel alone.
        let params = RingParams::new(name, (pages.ilog2(), &refs), 0, state.protocol, poll)?;
        let Some(index) = free_index(&mut self.queues, RINGS_MAX, Queue::is_over) else {
            return Err(ConnectError::new(libc::ENOSPC, format!("more than {RINGS_MAX} rings")));
        };
        let mapped = self.xen.map(name.domid, &refs[..pages]).map_err(|error| {
            let errno = error.raw_os_error().unwrap_or(libc::EINVAL);
            ConnectError::new(errno, format!("cannot map the ring pages of {name}: {error}"))
        })?;
        let ring = BackRing::adopt(mapped, params.layout, state.requests.unwrap_or(0));
        let mut queue = Queue::new(index as u8, &params, (ring, state.port));
        queue.broken = state.requests.is_none();
        queue.tally = state.tally;
        // Whether its port is masked, and what it has told before, nobody knows any more.
        queue.fired = true;
        self.queues[index] = Some(queue);
        Ok(())
    }

    /// Lets go of all rings of a device. Requests in the engine go on and are not answered. False
    /// if there are none.
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
