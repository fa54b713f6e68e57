//! `/dev/nbdN`: the kernel's own NBD client, given connections to our NBD server.
use tap_ctl::messages::{Device, DeviceOptions};

use super::{HostDevice, Progress, QUEUES_MAX, Site, check_and_stop, ublk};
use crate::kernel_nbd::{Plan, connect, disconnect};
use crate::vbd::Frontends;
use frontend::Frontend;
use frontend::ublk::DeviceError;
use request::Slots;

/// This kind.
pub struct NbdDevice;

impl HostDevice for NbdDevice {
    fn number(&self, device: Device) -> Option<u32> {
        match device {
            Device::Nbd(number) => Some(number),
            Device::Ublk(_) | Device::Tap(_) => None,
        }
    }

    fn suits(&self, options: Option<&DeviceOptions>, _minor_of_module: Option<u16>) -> bool {
        options.is_some_and(is_named)
    }

    fn make(&'static self, site: &mut Site<'_>) -> Progress {
        let plan = plan(site);
        let socket = site.env.run.nbd(site.env.pid, site.minor);
        let work = move || connect(&socket, &plan);
        Progress::work(site.env, work, |site, connected| match connected {
            Ok(number) => {
                *site.device = Some(Device::Nbd(number));
                super::write_record(site);
                Progress::There
            }
            Err(error) => Progress::NotThere(error),
        })
    }

    fn end(&'static self, site: &mut Site<'_>, force: bool) -> Progress {
        check_and_stop(self, site, force)
    }

    fn stop(&self, number: u32) -> Result<(), DeviceError> {
        disconnect(number)
    }

    fn remove_dead(&self, number: u32) -> Result<(), DeviceError> {
        disconnect(number)
    }

    /// They come as those of any other client.
    fn frontend<'a>(&self, _frontends: &'a mut Frontends) -> Option<&'a mut dyn Frontend> {
        None
    }
}

/// Named, or what there is while there is no ublk.
pub(super) fn is_named(options: &DeviceOptions) -> bool {
    match options.driver {
        0 => !ublk::is_there(),
        driver => driver == 2,
    }
}

fn plan(site: &Site<'_>) -> Plan {
    let opened = site.opened.expect("it is being opened");
    let options = opened.device.expect("it was asked for");
    let engine = &site.data.as_ref().expect("it is being opened").engine;
    Plan {
        number: options.number(),
        connections: options.queues.min(QUEUES_MAX as u8),
        read_only: engine.read_only(),
        sector_size: engine.sector_size(),
        take_over: opened.take_over,
        record: site.env.run.device(site.minor),
    }
}
