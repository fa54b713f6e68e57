//! `/dev/ublkbN`: the driver ublk hands us the requests of its block device.
//!
//! ```text
//!   make: add, or take over ─► a slot for each tag, and fetch ─► record ─► start ─► There
//! ```
use mio::unix::SourceFd;
use mio::{Interest, Token};
use tap_ctl::messages::{Device, DeviceOptions};

use super::{HostDevice, Progress, QUEUES_MAX, Site, Wait, check_and_stop, nbd};
use crate::tokens::VBD_TOKENS;
use crate::vbd::{DataPath, Env, Frontends};
use frontend::Frontend;
use frontend::ublk::abi::CONTROL_PATH;
use frontend::ublk::device::{self, Added, DeviceError, Shape};
use frontend::ublk::{Ring, TAGS_MAX, Ublk};
use request::Slots;

/// Of the tokens of a disk, the one of its block device.
pub const DEVICE_TOKEN: usize = VBD_TOKENS - 4;
const _: () = assert!(DEVICE_TOKEN >= frontend::nbd::TOKENS);

/// This kind.
pub struct UblkDevice;

impl HostDevice for UblkDevice {
    fn number(&self, device: Device) -> Option<u32> {
        match device {
            Device::Ublk(number) => Some(number),
            Device::Nbd(_) | Device::Tap(_) => None,
        }
    }

    fn suits(&self, options: Option<&DeviceOptions>, _minor_of_module: Option<u16>) -> bool {
        options.is_some_and(|options| !nbd::is_named(options))
    }

    fn own_slots(&self) -> u16 {
        TAGS_MAX
    }

    fn make(&'static self, site: &mut Site<'_>) -> Progress {
        let opened = site.opened.expect("it is being opened");
        let options = opened.device.expect("it was asked for");
        let shape = shape(site.data.as_ref().expect("it is being opened"), &options);
        let (take_over, number) = (opened.take_over, options.number());
        let work = move || match (take_over, number) {
            (true, Some(number)) => device::take_over(number, &shape),
            _ => device::add(number, &shape),
        };
        Progress::work(site.env, work, move |site, added| match added {
            Ok(added) => serve(self, site, added),
            Err(error) => Progress::NotThere(error),
        })
    }

    fn end(&'static self, site: &mut Site<'_>, force: bool) -> Progress {
        check_and_stop(self, site, force)
    }

    fn stop(&self, number: u32) -> Result<(), DeviceError> {
        device::stop(number)
    }

    fn remove_dead(&self, number: u32) -> Result<(), DeviceError> {
        device::remove_dead(number)
    }

    fn frontend<'a>(&self, frontends: &'a mut Frontends) -> Option<&'a mut dyn Frontend> {
        frontends.ublk.as_deref_mut().map(|device| device as &mut dyn Frontend)
    }

    fn is_idle(&self, frontends: &Frontends, delete: bool) -> bool {
        let device = frontends.ublk.as_ref();
        device.is_none_or(|device| device.idle() && (!delete || device.has_ended()))
    }

    fn let_go(&self, site: &mut Site<'_>) {
        let Some(device) = site.frontends.ublk.take() else { return };
        let fd = device.commands().raw_fd();
        let _ = site.env.registry.deregister(&mut SourceFd(&fd));
        device.end(&mut site.data.as_mut().expect("a device is served").engine);
    }

    fn delete(&self) -> Option<fn(u32) -> Result<(), DeviceError>> {
        Some(device::delete)
    }
}

/// Whether this kernel has the driver.
pub(super) fn is_there() -> bool {
    std::path::Path::new(CONTROL_PATH).exists()
}

/// Takes a slot for each tag and fetches: from now on the device can start.
fn serve(kind: &'static UblkDevice, site: &mut Site<'_>, added: Added) -> Progress {
    let (number, taken_over, pid) = (added.number, site.takes_over(), site.env.pid);
    let token = Token(site.token + DEVICE_TOKEN);
    let data = site.data.as_mut().expect("it is being opened");
    let device = match fetch(site.env, data, added, token) {
        Ok(device) => device,
        Err(error) => {
            let end = super::deleting(site, move || match taken_over {
                true => Ok(()),
                false => device::delete(number),
            });
            return Progress::broken(error, end);
        }
    };
    site.frontends.ublk = Some(Box::new(device));
    *site.device = Some(Device::Ublk(number));
    // Before it starts: the kernel reads from it then, and if we are killed in the middle the
    // device stays, with that read, and somebody must find it.
    super::write_record(site);
    let work = move || device::go(number, pid, taken_over);
    Progress::work(site.env, work, move |site, started| match started {
        Ok(()) => Progress::There,
        // It waits for another tapdisk, as before.
        Err(error) if taken_over => Progress::Broken(error, Wait::Idle { kind, delete: false }),
        Err(error) => Progress::broken(error, super::stop(kind, site, true)),
    })
}

/// The device for a disk: its tags are shared among its queues.
fn shape(data: &DataPath, options: &DeviceOptions) -> Shape {
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    // The driver makes no more queues than there are processors.
    let queues_max = u16::try_from(processors).unwrap_or(QUEUES_MAX).min(QUEUES_MAX);
    let queues = match u16::from(options.queues) {
        0 => queues_max.min(2),
        n => n.min(queues_max),
    };
    let engine = &data.engine;
    Shape {
        sectors: engine.sectors(),
        sector_size: engine.sector_size(),
        read_only: engine.read_only(),
        queues,
        depth: TAGS_MAX / queues,
    }
}

fn fetch(
    env: &Env,
    data: &mut DataPath,
    added: Added,
    token: Token,
) -> std::result::Result<Ublk<Ring>, DeviceError> {
    let failed = |what: &str, errno: i32| {
        let error = std::io::Error::from_raw_os_error(errno);
        DeviceError { errno, text: format!("the block device cannot be served: {what}: {error}") }
    };
    let io = |what: &'static str| {
        move |error: std::io::Error| failed(what, error.raw_os_error().unwrap_or(libc::EIO))
    };
    let tags = added.queues.0.saturating_mul(added.queues.1);
    let ring = Ring::open(added.device, added.queues, added.encoded).map_err(io("its ring"))?;
    let fd = ring.raw_fd();
    let started = Ublk::start(ring, tags, &mut data.engine).map_err(io("its requests"))?;
    let device = started.ok_or_else(|| failed("slots for its tags", libc::ENOBUFS))?;
    if device.is_ending() {
        device.end(&mut data.engine);
        return Err(failed("the kernel refuses to wait for requests", libc::ENODEV));
    }
    if let Err(error) = env.registry.register(&mut SourceFd(&fd), token, Interest::READABLE) {
        device.end(&mut data.engine);
        return Err(io("polling")(error));
    }
    Ok(device)
}
