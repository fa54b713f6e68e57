//! `/dev/xen/evtchn`: event channels of a process. A read gives ports (u32) that fired, each masked
//! from then on; writing a port back unmasks it. The calls that bind return the local port.
use std::mem::{offset_of, size_of};

use crate::ioc;

/// Where the device is.
pub const PATH: &str = "/dev/xen/evtchn";

/// Binds a new port to one of another domain; [`BindInterdomain`].
pub const IOCTL_BIND_INTERDOMAIN: u64 = ioc(b'E', 1, size_of::<BindInterdomain>());
/// Makes a new port that another domain can bind to; [`BindUnboundPort`]. For front ends.
pub const IOCTL_BIND_UNBOUND_PORT: u64 = ioc(b'E', 2, size_of::<BindUnboundPort>());
/// Closes a port; [`Port`].
pub const IOCTL_UNBIND: u64 = ioc(b'E', 3, size_of::<Port>());
/// Tells the other end; [`Port`].
pub const IOCTL_NOTIFY: u64 = ioc(b'E', 4, size_of::<Port>());

/// Argument of [`IOCTL_BIND_INTERDOMAIN`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BindInterdomain {
    /// The other domain.
    pub remote_domain: u32,
    /// Its port.
    pub remote_port: u32,
}

/// Argument of [`IOCTL_BIND_UNBOUND_PORT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct BindUnboundPort {
    /// Who may bind to it.
    pub remote_domain: u32,
}

/// Argument of [`IOCTL_UNBIND`] and [`IOCTL_NOTIFY`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Port {
    /// Local port.
    pub port: u32,
}

const _: () = {
    assert!(size_of::<BindInterdomain>() == 8 && offset_of!(BindInterdomain, remote_port) == 4);
    assert!(size_of::<BindUnboundPort>() == 4 && size_of::<Port>() == 4);
    assert!(IOCTL_BIND_INTERDOMAIN == 0x08_4501 && IOCTL_BIND_UNBOUND_PORT == 0x04_4502);
    assert!(IOCTL_UNBIND == 0x04_4503 && IOCTL_NOTIFY == 0x04_4504);
};
