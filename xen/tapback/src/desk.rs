//! What all disks share, and how they are found: the connection to xenstore, the watch on all
//! backends, and who is rung for which event.

use crate::bell::Bell;
use crate::config::{Config, DeviceId, decimal};
use crate::decide::Known;
use crate::device::Device;
use crate::reactor::Reactor;
use crate::record::Record;
use crate::tasks::Tasks;
use crate::view::View;
use mio::{Registry, Token};
use slog::{Logger, debug, error, info};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::{Duration, Instant};
use xenstore::{Error, Fired, Link, Store, Watch};

/// Fires when a domain goes (xenstore.txt, "special paths").
const RELEASE: &str = "@releaseDomain";
/// Pause between tries to reach a xenstored that is gone.
const RECONNECT: Duration = Duration::from_millis(500);
/// Keys of a backend whose change means something; all others are ours, or read when they are
/// needed.
const KEYS: [&str; 7] = [
    "frontend",
    "hotplug-status",
    "mode",
    "online",
    "physical-device",
    "physical-device-path",
    "params",
];

pub(crate) struct Desk {
    pub config: Config,
    pub store: Store,
    pub reactor: Reactor,
    pub log: Logger,
    pub record: Record,
    tasks: Tasks,
    own_domid: Cell<u32>,
    devices: RefCell<BTreeMap<DeviceId, Rc<Bell>>>,
    /// Whom the watches on frontends ring.
    fronts: RefCell<HashMap<u64, Rc<Bell>>>,
    /// The watches on backends and on domains that go.
    root: Cell<u64>,
    release: Cell<u64>,
    /// There may be disks that nobody knows of, or the connection is lost.
    scan: Bell,
    /// For people: one line a disk.
    lines: RefCell<BTreeMap<DeviceId, String>>,
}

impl Desk {
    pub fn new(config: Config, reactor: Reactor, tasks: Tasks, log: Logger) -> Rc<Desk> {
        let record = Record::new(&config.run, &config.name);
        Rc::new(Desk {
            config,
            store: Store::new(),
            reactor,
            log,
            record,
            tasks,
            own_domid: Cell::new(0),
            devices: RefCell::default(),
            fronts: RefCell::default(),
            root: Cell::new(0),
            release: Cell::new(0),
            scan: Bell::default(),
            lines: RefCell::default(),
        })
    }

    /// `backend/vbd3`, below our own domain's folder wherever that is.
    pub fn root(&self) -> String {
        format!("backend/{}", self.config.name)
    }

    pub fn own_domid(&self) -> u32 {
        self.own_domid.get()
    }

    /// Keep a connection, and know every disk. `ready` is called when the first scan is over.
    pub async fn tend(self: Rc<Self>, registry: Registry, token: Token, ready: impl FnOnce()) {
        let mut ready = Some(ready);
        loop {
            match self.connect(&registry, token).await {
                Ok(_watches) => {
                    // Some may have lost their nodes while nobody was here.
                    self.record.ids().into_iter().for_each(|id| self.wake(id));
                    let mut result = self.find().await;
                    if let (Ok(()), Some(ready)) = (&result, ready.take()) {
                        ready();
                    }
                    while result.is_ok() && self.store.is_connected() {
                        self.scan.heard().await;
                        result = self.find().await;
                    }
                    match result {
                        Err(error) if !error.is_lost() => error!(self.log, "{error}"),
                        _ => {}
                    }
                }
                Err(error) => debug!(self.log, "{error}"),
            }
            self.reactor.until(Instant::now() + RECONNECT).await;
        }
    }

    async fn connect(
        &self,
        registry: &Registry,
        token: Token,
    ) -> Result<[Option<Watch>; 2], Error> {
        if !self.store.is_connected() {
            let link = Link::open(&self.config.places)?;
            let lost = |error: std::io::Error| Error::Lost { reason: error.to_string() };
            self.store.connect(link, registry, token).map_err(lost)?;
        }
        let own = self.store.read("domid").await?.unwrap_or_default();
        self.own_domid.set(std::str::from_utf8(&own).ok().and_then(decimal).unwrap_or(0));
        let (root, release) = (self.store.watch_number(), self.store.watch_number());
        self.root.set(root);
        self.release.set(release);
        let backends = self.store.watch(&self.root(), root).await?;
        let domains = match self.store.watch(RELEASE, release).await {
            Ok(watch) => Some(watch),
            Err(error) if error.is_lost() => return Err(error),
            // A driver domain may not; its toolstack removes what has gone.
            Err(error) => {
                debug!(self.log, "{error}");
                None
            }
        };
        info!(self.log, "serving {} in domain {}", self.root(), self.own_domid.get());
        self.ring_all();
        Ok([Some(backends), domains])
    }

    /// Go through all backends: those that are not known get a task, the others a ring of their
    /// bell.
    async fn find(self: &Rc<Self>) -> Result<(), Error> {
        let root = self.root();
        for domid in self.store.directory(&root).await?.unwrap_or_default() {
            if self.config.only.is_some_and(|only| decimal(&domid) != Some(only)) {
                continue;
            }
            let devices = self.store.directory(&format!("{root}/{domid}")).await?;
            for devid in devices.unwrap_or_default() {
                if let Some(id) = DeviceId::parse(&domid, &devid) {
                    self.wake(id);
                }
            }
        }
        Ok(())
    }

    /// The connection is gone.
    pub fn lost(&self, error: &Error) {
        error!(self.log, "{error}; disks that are connected stay so");
        self.scan.ring();
    }

    /// A watch has fired.
    pub fn fired(self: &Rc<Self>, fired: &Fired) {
        if fired.watch == self.root.get() {
            self.backend_changed(&fired.path);
        } else if fired.watch == self.release.get() {
            self.ring_all();
        } else if let Some(bell) = self.fronts.borrow().get(&fired.watch) {
            bell.ring();
        }
    }

    fn backend_changed(self: &Rc<Self>, path: &str) {
        let root = self.root();
        let Some(rest) = path.strip_prefix(&root) else { return };
        let mut names = rest.split('/').skip(1);
        let (Some(domid), Some(devid)) = (names.next(), names.next()) else {
            // Something above the disks: some may be new, and some gone.
            self.ring_all();
            self.scan.ring();
            return;
        };
        let key = names.next();
        if let Some(id) = DeviceId::parse(domid, devid)
            && key.is_none_or(|key| KEYS.contains(&key))
        {
            self.wake(id);
        }
    }

    /// Ring a disk's bell; one that is not known gets a task.
    fn wake(self: &Rc<Self>, id: DeviceId) {
        if self.config.only.is_some_and(|only| only != id.domid) {
            return;
        }
        let mut devices = self.devices.borrow_mut();
        if let Some(bell) = devices.get(&id) {
            bell.ring();
            return;
        }
        let bell = Rc::new(Bell::default());
        devices.insert(id, Rc::clone(&bell));
        self.tasks.spawn(Device::new(Rc::clone(self), id, bell).live());
    }

    fn ring_all(&self) {
        self.devices.borrow().values().for_each(|bell| bell.ring());
    }

    /// A disk's task is over.
    pub fn forget(&self, id: DeviceId, watch: Option<u64>) {
        self.devices.borrow_mut().remove(&id);
        self.lines.borrow_mut().remove(&id);
        if let Some(number) = watch {
            self.unlisten(number);
        }
    }

    pub fn listen(&self, watch: u64, bell: &Rc<Bell>) {
        self.fronts.borrow_mut().insert(watch, Rc::clone(bell));
    }

    pub fn unlisten(&self, watch: u64) {
        self.fronts.borrow_mut().remove(&watch);
    }

    /// For [`Desk::report`].
    pub fn note(&self, id: DeviceId, view: &View, known: &Known) {
        let line = format!(
            "frontend {:?}, backend {:?}, online {}, hotplug {}, {:?}, ring {:?}",
            view.front, view.backend, view.online, view.hotplug, view.tap, known.ring
        );
        self.lines.borrow_mut().insert(id, line);
    }

    /// Everything into the log.
    pub fn report(&self) {
        let lines = self.lines.borrow();
        info!(
            self.log,
            "{} disks, connected to xenstore: {}",
            lines.len(),
            self.store.is_connected()
        );
        for (id, line) in lines.iter() {
            info!(self.log, "{}/{id}: {line}", self.root());
        }
    }
}
