//! The steps of a disk: what is written to the store and said to the tapdisk.
//!
//! Nothing is ever written into a directory that has gone: every transaction looks first whether
//! the node is there and names the frontend that the step is about.

use crate::config::{DeviceId, decimal};
use crate::decide::{Known, Ring};
use crate::desk::Desk;
use crate::offers::{self, Disk, Offer};
use crate::ring::{Fault, Rings, tap_of_print};
use crate::tapdisk;
use crate::trouble::{Cause, Trouble};
use crate::view::{Mode, Reader, Tap, TapId, View, state, text};
use slog::{info, warn};
use tap_ctl::error::Error as TapError;
use tap_ctl::messages::{ImageInfo, Rates, Request, amount};
use xenstore::{Access, Error, Permission, Transaction};

/// The name of our own note about the connected ring.
const RING_KEY: &str = "tapback-ring";

/// A disk to do steps on.
pub(crate) struct Steps<'a> {
    pub desk: &'a Desk,
    pub log: &'a slog::Logger,
    pub id: DeviceId,
    /// `backend/vbd3/5/51712`.
    pub path: &'a str,
    pub frontend: &'a str,
}

impl Steps<'_> {
    pub async fn announce(&self) -> Result<(), Trouble> {
        let offers = offers::for_the_ring(&self.desk.config);
        self.within(async |tx| self.offer(tx, &offers).await).await
    }

    pub async fn enter(&self, state: u32) -> Result<(), Trouble> {
        self.within(async |tx| tx.write(&self.key("state"), state.to_string().as_bytes()).await)
            .await
    }

    /// State 6 for those who wait for that, and no `hotplug-status` for those who wait for that
    /// (§8).
    pub async fn abandon(&self) -> Result<(), Trouble> {
        self.within(async |tx| {
            tx.write(&self.key("state"), state::CLOSED.to_string().as_bytes()).await?;
            tx.rm(&self.key("hotplug-status")).await.map(drop)
        })
        .await
    }

    /// Ask about the disk, and write whose process it is.
    pub async fn meet(&self, tap: TapId) -> Result<(), Trouble> {
        self.image(tap).await?;
        self.within(async |tx| tx.write(&self.key("kthread-pid"), &digits(tap.pid)).await).await
    }

    /// Have the tapdisk leave the ring. One that is gone, or knows of no ring, has.
    pub async fn disconnect(&self, known: &Known, view: &View) -> Result<(), Trouble> {
        let noted = || view.ring_key.as_deref().and_then(tap_of_print);
        let named = || match view.tap {
            Tap::At(tap) => Some(tap),
            Tap::Absent | Tap::Bad(_) => None,
        };
        let tap = match known.ring {
            Ring::Up(tap) | Ring::Unsure(Some(tap)) => Some(tap),
            Ring::Unsure(None) => noted().or_else(named),
            Ring::Down => None,
        };
        let Some(tap) = tap else { return Ok(()) };
        if self.leave(tap).await? {
            info!(self.log, "disconnected from {tap}");
        }
        Ok(())
    }

    /// Have the tapdisk connect to the rings, then tell the guest, in one transaction.
    pub async fn connect(&self, tap: TapId, known: &Known, view: &View) -> Result<(), Trouble> {
        let queues = self.desk.config.queues;
        let rings = Rings::read(&self.desk.store, self.frontend, queues).await;
        let rings = rings.map_err(|fault| match fault {
            Fault::Frontend(text) => Trouble::frontend(text),
            Fault::Store(error) => error.into(),
        })?;
        let disk = self.disk(tap, view).await?;
        let print = rings.print(tap);
        let found = self.join(tap, &rings, view, known, &print).await?;
        self.limit(tap).await;
        let pages = 1 << rings.order;
        let (how, count) = (if found { "found" } else { "made" }, rings.queues.len());
        info!(self.log, "connection {how}: {tap}, {count} rings of {pages} pages, {}",
            rings.proto_name(); "sectors" => disk.image.sectors);
        if found && view.ring_key.is_some() {
            return Ok(());
        }
        self.tell_guest(disk, &print).await
    }

    async fn tell_guest(&self, disk: Disk, print: &str) -> Result<(), Trouble> {
        let offers = offers::for_the_disk(&self.desk.config, disk);
        let own = [Permission::new(Access::None, self.desk.own_domid())];
        self.within(async |tx| {
            self.offer(tx, &offers).await?;
            tx.write(&self.key(RING_KEY), print.as_bytes()).await?;
            tx.set_permissions(&self.key(RING_KEY), &own).await?;
            tx.write(&self.key("state"), state::CONNECTED.to_string().as_bytes()).await
        })
        .await
    }

    /// Connect, `true`: it was connected already, and rightly. A tapdisk that knows a ring of this
    /// disk which is not the frontend's of now has to leave that one first.
    async fn join(
        &self,
        tap: TapId,
        rings: &Rings,
        view: &View,
        known: &Known,
        print: &str,
    ) -> Result<bool, Trouble> {
        let ours = matches!(known.ring, Ring::Unsure(_))
            && view.backend == Some(state::CONNECTED)
            && view.ring_key.as_deref().is_none_or(|noted| noted == print);
        match self.connect_all(tap, rings).await {
            Ok(Joined::New) if ours => {
                // The guest has used this ring, and a tapdisk begins at its index 0. So too where
                // there is no note: a tapback of the original has connected it, which leaves none.
                self.leave(tap).await?;
                let text =
                    format!("{tap} has lost the guest's ring; the guest has to make it anew");
                return Err(Trouble { cause: Cause::Frontend, errno: libc::ENOTCONN, text });
            }
            Ok(Joined::New) => return Ok(false),
            Ok(Joined::Known) if ours => return Ok(true),
            Ok(Joined::Known | Joined::Mixed) => {}
            Err(error) if refusal(&error).is_none() => return Err(error.into()),
            Err(error) if !matches!(known.ring, Ring::Unsure(_)) => {
                self.leave(tap).await?;
                return Err(refused(error));
            }
            Err(_) => {}
        }
        self.leave(tap).await?;
        match self.connect_all(tap, rings).await {
            Ok(Joined::New) => Ok(false),
            Ok(Joined::Known | Joined::Mixed) => {
                self.leave(tap).await?;
                let text = format!(
                    "{tap} does not take {} rings of one disk; with tapdisks of the original, \
                     start tapback with --queues 1",
                    rings.queues.len()
                );
                Err(Trouble { cause: Cause::Frontend, errno: libc::EALREADY, text })
            }
            Err(error) => {
                if refusal(&error).is_some() {
                    self.leave(tap).await?;
                }
                Err(refused(error))
            }
        }
    }

    async fn connect_all(&self, tap: TapId, rings: &Rings) -> Result<Joined, TapError> {
        let poll =
            (self.number("polling-duration").await, self.number("polling-idle-threshold").await);
        let (mut new, mut known) = (0, 0);
        for number in 0..QUEUE_NUMBERS {
            let message = rings.message(self.id.domid, self.id.devid, number, poll);
            let Some(blkif) = message else { break };
            let request = Request::Connect { minor: tap.minor, blkif };
            match self.order(tap, &request).await {
                Ok(()) => new += 1,
                Err(error) if refusal(&error) == Some(libc::EALREADY) => known += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(match (new, known) {
            (_, 0) => Joined::New,
            (0, _) => Joined::Known,
            _ => Joined::Mixed,
        })
    }

    /// `false`: there was no ring, or no tapdisk.
    async fn leave(&self, tap: TapId) -> Result<bool, Trouble> {
        let DeviceId { domid, devid } = self.id;
        match self.order(tap, &Request::Disconnect { domid, devid }).await {
            Ok(()) => Ok(true),
            // Nobody is there, or went away while we asked.
            Err(TapError::Connect { .. } | TapError::Send { .. } | TapError::NoReply { .. }) => {
                Ok(false)
            }
            Err(TapError::Refused { errno: libc::ENODEV | libc::ESRCH | libc::ENOENT, .. }) => {
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn order(&self, tap: TapId, request: &Request) -> Result<(), TapError> {
        let Desk { reactor, config, .. } = self.desk;
        tapdisk::order(reactor, &config.run, tap.pid, request, config.limits.order).await
    }

    async fn image(&self, tap: TapId) -> Result<ImageInfo, Trouble> {
        let Desk { reactor, config, .. } = self.desk;
        let asked = tapdisk::disk_info(reactor, &config.run, tap.pid, tap.minor, config.limits.ask);
        let image = asked.await?;
        if image.sectors == 0 || image.sector_size < 512 {
            let text = format!("{tap} has no open image; see tap-ctl list -p {}", tap.pid);
            return Err(Trouble::tapdisk(libc::ENOMEDIUM, text));
        }
        Ok(image)
    }

    /// Sizes are those of now, so a medium that was changed shows its own.
    async fn disk(&self, tap: TapId, view: &View) -> Result<Disk, Trouble> {
        let image = self.image(tap).await?;
        let reader =
            Reader { store: &self.desk.store, path: self.path, run: &self.desk.config.run };
        let kind = match reader.key("device-type").await? {
            Some(kind) => Some(kind),
            // xenopsd writes it for the frontend only; there it is the guest's to change, and its
            // only to be fooled.
            None => {
                let path = format!("{}/device-type", self.frontend);
                self.desk.store.read(&path).await?.map(|bytes| text(&bytes))
            }
        };
        let discard = reader.key("discard-enable").await?;
        Ok(Disk {
            image,
            read_only: view.mode == Mode::ReadOnly,
            cdrom: kind.as_deref() == Some("cdrom"),
            discard: discard.as_deref() != Some("0"),
        })
    }

    /// Gives the disk the limits that stand beside its other keys. What makes no sense, or a
    /// tapdisk that knows no limits, is no reason to refuse a guest its disk.
    async fn limit(&self, tap: TapId) {
        let mut rates = Rates::default();
        let places = rates.bytes.iter_mut().chain(&mut rates.ops).chain([&mut rates.burst_ms]);
        let names = ["read-bps", "write-bps", "read-iops", "write-iops", "burst-ms"];
        for (name, place) in names.into_iter().zip(places) {
            let key = format!("limit-{name}");
            let Ok(Some(value)) = self.desk.store.read(&self.key(&key)).await else { continue };
            let value = text(&value);
            *place = amount(value.trim());
            if place.is_none() {
                warn!(self.log, "{key} is no number: {}", show::line(value.as_bytes()));
            }
        }
        if rates == Rates::default() {
            return;
        }
        match self.order(tap, &Request::Limit { minor: tap.minor, rates }).await {
            Ok(()) => info!(self.log, "{tap} has limits: {rates:?}"),
            Err(error) => warn!(self.log, "{tap} has no limits: {error}"),
        }
    }

    /// A number that is only advice: 0 if it is absent or none.
    async fn number(&self, name: &str) -> u32 {
        let value = self.desk.store.read(&self.key(name)).await;
        value.ok().flatten().and_then(|bytes| decimal(&text(&bytes))).unwrap_or(0)
    }

    /// Say what is wrong where toolstacks look.
    pub async fn publish(&self, trouble: &Trouble) -> Result<(), Trouble> {
        let sentence = format!("{} {}", trouble.errno, trouble.text);
        self.within(async |tx| {
            if trouble.is_hotplugs() {
                tx.write(&self.key("hotplug-error"), trouble.text.as_bytes()).await?;
            }
            tx.write(&self.error_path("/error"), sentence.as_bytes()).await
        })
        .await
    }

    /// Take it back, with the domain's folder if this was the last in it: a driver domain may have
    /// so many nodes and no more.
    pub async fn unpublish(&self) -> Result<(), Trouble> {
        let folder = format!("error/{}/{}", self.desk.root(), self.id.domid);
        let removed = self.desk.store.transact(async |tx| {
            tx.rm(&self.error_path("")).await?;
            match tx.directory(&folder).await? {
                Some(others) if others.is_empty() => tx.rm(&folder).await.map(drop),
                Some(_) | None => Ok(()),
            }
        });
        removed.await?;
        self.within(async |tx| tx.rm(&self.key("hotplug-error")).await.map(drop)).await
    }

    /// As the kernel's own backends have it.
    fn error_path(&self, key: &str) -> String {
        format!("error/{}{key}", self.path)
    }

    fn key(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    /// Keys that the frontend may read and nobody else.
    async fn offer(&self, tx: &Transaction, offers: &[Offer]) -> Result<(), Error> {
        let list = Permission::readable_by(self.desk.own_domid(), self.id.domid);
        for (name, value) in offers {
            tx.write(&self.key(name), value.as_bytes()).await?;
            tx.set_permissions(&self.key(name), &list).await?;
        }
        Ok(())
    }

    /// In one transaction, if the node is still there and still names this frontend; else nothing
    /// is done, and the next look finds out why.
    async fn within(
        &self,
        body: impl AsyncFn(&Transaction) -> Result<(), Error>,
    ) -> Result<(), Trouble> {
        let done = self.desk.store.transact(async |tx| {
            let frontend = tx.read(&self.key("frontend")).await?;
            match frontend.as_deref() == Some(self.frontend.as_bytes()) {
                true => body(tx).await,
                false => Ok(()),
            }
        });
        done.await.map_err(|error: Error| error.into())
    }
}

/// More than a frontend can have.
const QUEUE_NUMBERS: u32 = crate::config::QUEUES_MAX + 1;

/// What a tapdisk said to the rings of a disk.
enum Joined {
    New,
    Known,
    Mixed,
}

/// The errno of a tapdisk that answered.
fn refusal(error: &TapError) -> Option<i32> {
    match error {
        TapError::Refused { errno, .. } => Some(*errno),
        _ => None,
    }
}

/// Grants and ports that cannot be used are the frontend's; what the tapdisk lacks may come back.
fn refused(error: TapError) -> Trouble {
    let fault = matches!(
        refusal(&error),
        Some(
            libc::EINVAL
                | libc::EPROTO
                | libc::EPROTONOSUPPORT
                | libc::EFAULT
                | libc::ENXIO
                | libc::EIO
                | libc::EPERM
                | libc::ESRCH
        )
    );
    let trouble = Trouble::from(error);
    match fault {
        true => Trouble { cause: Cause::Frontend, ..trouble },
        false => trouble,
    }
}

fn digits(number: i32) -> Vec<u8> {
    number.to_string().into_bytes()
}
