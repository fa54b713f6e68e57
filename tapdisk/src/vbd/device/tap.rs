//! `/dev/xen/blktap-2/tapdevN`: the block device behind a ring of the kernel module blktap2.
//!
//! ```text
//!   make: (ring mapped again, if it was lost) ─► created ─► There
//!   end:  remove ─┬─► Idle ─► Gone
//!           ▲     └─► in use: waits as long as somebody waits for it, then stays (EBUSY)
//!           └───────────┘
//! ```
//! Unlike other block devices this one ends with the tapdisk: the module fails what is outstanding.
use slog::warn;
use tap_ctl::messages::{Device, DeviceOptions};
use tap_ctl::module::Module;

use super::{HostDevice, Progress, Site, Wait};
use crate::vbd::Frontends;
use crate::vbd::tap::open_ring;
use frontend::Frontend;
use frontend::blktap::device::{Removed, Shape, create, remove, why_not_created};
use frontend::blktap::{OWN_SLOTS, Ring, Tap};
use frontend::ublk::DeviceError;
use frontend::ublk::device::sync;
use request::Slots;

/// Between two tries to take a block device away that is in use, in µs.
const IN_USE_US: u64 = 100_000;

/// This kind.
pub struct Tapdev;

impl HostDevice for Tapdev {
    fn number(&self, device: Device) -> Option<u32> {
        match device {
            Device::Tap(number) => Some(number),
            Device::Ublk(_) | Device::Nbd(_) => None,
        }
    }

    /// A disk of a minor of the module gets it, unless another is named.
    fn suits(&self, options: Option<&DeviceOptions>, minor_of_module: Option<u16>) -> bool {
        let any = |minor: u16, options: &DeviceOptions| match options.driver {
            0 => true,
            _ => options.exact() == Some(Device::Tap(minor.into())),
        };
        minor_of_module.is_some_and(|minor| options.is_none_or(|options| any(minor, options)))
    }

    fn own_slots(&self) -> u16 {
        OWN_SLOTS
    }

    fn outlives(&self) -> bool {
        false
    }

    fn make(&'static self, site: &mut Site<'_>) -> Progress {
        if site.frontends.tap.is_some() {
            return creating(site);
        }
        let (run, minor) = (site.env.run.clone(), site.minor);
        let work = move || match Module::find(&run) {
            Some(module) => open_ring(&module, minor),
            None => {
                let text = format!("minor {minor}: the blktap module is gone");
                Err(DeviceError { errno: libc::ENODEV, text })
            }
        };
        Progress::work(site.env, work, |site, ring| match ring {
            Ok(ring) => {
                site.frontends.take_tap(site.env, (site.minor, site.token), Tap::new(ring));
                creating(site)
            }
            Err(error) => Progress::NotThere(error),
        })
    }

    /// Where a signal ends the process, what was written to it comes first: it ends with us.
    fn end(&'static self, site: &mut Site<'_>, force: bool) -> Progress {
        let Some(handle) = site.frontends.tap.as_deref().and_then(Tap::side).map(Ring::handle)
        else {
            return idle(self);
        };
        let path = Device::Tap(site.minor.into()).to_string();
        let synced = site.stopping && !site.is_closed();
        let work = move || {
            if synced {
                sync(&path);
            }
            remove(&handle)
        };
        Progress::work(site.env, work, move |site, removed| ending(self, site, removed, force))
    }

    fn stop(&self, _number: u32) -> Result<(), DeviceError> {
        unreachable!("it has an end of its own")
    }

    fn remove_dead(&self, _number: u32) -> Result<(), DeviceError> {
        unreachable!("it goes with its tapdisk")
    }

    fn frontend<'a>(&self, frontends: &'a mut Frontends) -> Option<&'a mut dyn Frontend> {
        frontends.tap.as_deref_mut().map(|tap| tap as &mut dyn Frontend)
    }

    fn is_idle(&self, frontends: &Frontends, _delete: bool) -> bool {
        frontends.tap.as_ref().is_none_or(|tap| tap.idle())
    }
}

fn idle(kind: &'static Tapdev) -> Progress {
    Progress::Waits(Wait::Idle { kind, delete: true })
}

fn creating(site: &mut Site<'_>) -> Progress {
    let engine = &mut site.data.as_mut().expect("it is being opened").engine;
    let tap = site.frontends.tap.as_mut().expect("there is a ring");
    let handle = tap.side().map(Ring::handle);
    let started = tap.start(engine);
    let minor = site.minor;
    let name = site.opened.expect("it is being opened").options.name;
    let shape = Shape {
        sectors: engine.sectors(),
        sector_size: engine.sector_size(),
        read_only: engine.read_only(),
        name: name.as_bytes().to_vec(),
    };
    let work = move || {
        let Some(handle) = handle.filter(|_| started) else {
            let text = format!("minor {minor}: there are no slots for the ring");
            return Err(DeviceError { errno: libc::ENOBUFS, text });
        };
        create(&handle, &shape).map_err(|error| DeviceError {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            text: why_not_created(minor, &error),
        })
    };
    Progress::work(site.env, work, |site, created| match created {
        Ok(offers) => {
            *site.device = Some(Device::Tap(site.minor.into()));
            if let Some(tap) = &mut site.frontends.tap {
                tap.set_events(offers.events());
            }
            Progress::There
        }
        Err(error) => Progress::NotThere(error),
    })
}

/// What the module has said about the end.
fn ending(kind: &'static Tapdev, site: &mut Site<'_>, removed: Removed, force: bool) -> Progress {
    let minor = site.minor;
    let device = Device::Tap(minor.into());
    match removed {
        // Only until another program makes it again.
        Removed::InUse | Removed::WithRing if site.module.lends => {
            site.module.lends = false;
            let text = format!(
                "{device} is in use, or of a module that cannot take it away, and it goes with the \
                 program that serves it: it gets the new one when the disk is attached the next \
                 time"
            );
            Progress::Stays(site.refuse(DeviceError { errno: libc::EBUSY, text }))
        }
        Removed::Gone | Removed::WithRing => idle(kind),
        Removed::InUse if force || site.stopping => {
            warn!(site.env.log, "minor {minor}: {device} goes under its users, who see errors");
            site.frontends.drop_ring(site.env);
            idle(kind)
        }
        Removed::InUse if site.alone => {
            warn!(site.env.log, "minor {minor}: {device} is in use, and stays");
            Progress::Stays(libc::EBUSY)
        }
        Removed::InUse => Progress::Waits(Wait::InUse { kind, force, until: site.now + IN_USE_US }),
        Removed::Failed(errno) => {
            let error = std::io::Error::from_raw_os_error(errno);
            warn!(site.env.log, "minor {minor}: its block device goes with its ring: {error}");
            site.frontends.drop_ring(site.env);
            idle(kind)
        }
    }
}
