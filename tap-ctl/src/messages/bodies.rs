//! The bodies of messages, each at the offsets of `control-socket.md` §3.1.

use super::text::{TEXT_BYTES, Text};
use super::{Device, DeviceOptions, Frame, flag};

/// [`Params::prt_devnum`] of a request without a parent minor.
pub const NO_PARENT: u32 = 0xffff_ffff;

/// A string field has no NUL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBody {
    /// Offset of the string field in the message, in bytes.
    pub offset: usize,
}

/// A structure that a message can carry.
pub trait Body: Sized {
    /// Put the fields into a frame. Bytes of other fields are left alone.
    fn write_to(&self, frame: &mut Frame);
    /// Take the fields out of a frame.
    ///
    /// # Errors
    /// A string field without a terminating NUL.
    fn read_from(frame: &Frame) -> Result<Self, BadBody>;
}

/// Request of OPEN and RESUME.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    /// Bits of [`flag`].
    pub flags: u32,
    /// Minor; clients set it, daemons ignore it.
    pub devnum: u32,
    /// 0; ignored.
    pub domid: u32,
    /// `type:path`; empty in RESUME: reopen the former one.
    pub path: Text,
    /// Minor used as parent, or [`NO_PARENT`]; see [`Params::parent`].
    pub prt_devnum: u32,
    /// Request timeout in seconds; 0: the default.
    pub req_timeout: u16,
    /// `type:path` or `null`; means something with [`flag::SECONDARY`] only.
    pub secondary: Text,
    /// Ours: means something with [`flag::DEVICE`] only.
    pub device: DeviceOptions,
}

impl Default for Params {
    fn default() -> Params {
        Params {
            flags: 0,
            devnum: 0,
            domid: 0,
            path: Text::EMPTY,
            prt_devnum: NO_PARENT,
            req_timeout: 0,
            secondary: Text::EMPTY,
            device: DeviceOptions::default(),
        }
    }
}

impl Params {
    /// The minor to use as parent. The daemon decides by the value alone (≥ 0 as `i32` means
    /// "use it"), not by [`flag::REUSE_PRT`] (§3.1).
    pub fn parent(&self) -> Option<u32> {
        (self.prt_devnum <= i32::MAX as u32).then_some(self.prt_devnum)
    }

    /// Are all bits of `flags` set?
    pub fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }
}

impl Body for Params {
    fn write_to(&self, frame: &mut Frame) {
        put(frame, 8, self.flags.to_ne_bytes());
        put(frame, 12, self.devnum.to_ne_bytes());
        put(frame, 16, self.domid.to_ne_bytes());
        put(frame, 20, *self.path.field());
        put(frame, 276, self.prt_devnum.to_ne_bytes());
        put(frame, 280, self.req_timeout.to_ne_bytes());
        put(frame, 282, *self.secondary.field());
        put(frame, 538, [self.device.driver, self.device.queues]);
        put(frame, 540, self.device.number.to_ne_bytes());
    }

    /// Without [`flag::SECONDARY`] the secondary is not looked at and taken as empty.
    fn read_from(frame: &Frame) -> Result<Params, BadBody> {
        let flags = u32::from_ne_bytes(take(frame, 8));
        let secondary = flags & flag::SECONDARY != 0;
        Ok(Params {
            flags,
            devnum: u32::from_ne_bytes(take(frame, 12)),
            domid: u32::from_ne_bytes(take(frame, 16)),
            path: text(frame, 20)?,
            prt_devnum: u32::from_ne_bytes(take(frame, 276)),
            req_timeout: u16::from_ne_bytes(take(frame, 280)),
            secondary: if secondary { text(frame, 282)? } else { Text::EMPTY },
            device: device_options(frame, flags),
        })
    }
}

/// Reply of OPEN and DISK_INFO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageInfo {
    /// Size in units of 512 bytes, whatever the sector size.
    pub sectors: u64,
    /// Logical sector size in bytes.
    pub sector_size: u32,
    /// Flag bits of Xen's `info` node; normally 0.
    pub info: u32,
    /// Ours: the block device, if one was asked for.
    pub device: Option<Device>,
}

impl Body for ImageInfo {
    fn write_to(&self, frame: &mut Frame) {
        put(frame, 8, self.sectors.to_ne_bytes());
        put(frame, 16, self.sector_size.to_ne_bytes());
        put(frame, 20, self.info.to_ne_bytes());
        put_device(frame, 24, self.device);
    }

    fn read_from(frame: &Frame) -> Result<ImageInfo, BadBody> {
        Ok(ImageInfo {
            sectors: u64::from_ne_bytes(take(frame, 8)),
            sector_size: u32::from_ne_bytes(take(frame, 16)),
            info: u32::from_ne_bytes(take(frame, 20)),
            device: device(frame, 24),
        })
    }
}

/// Reply of ERROR and of everything that has no other reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// 0, or a positive errno.
    pub error: i32,
}

impl Body for Response {
    fn write_to(&self, frame: &mut Frame) {
        put(frame, 8, self.error.to_ne_bytes());
    }

    fn read_from(frame: &Frame) -> Result<Response, BadBody> {
        Ok(Response { error: i32::from_ne_bytes(take(frame, 8)) })
    }
}

/// One of the replies of LIST: a VBD, or the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListEntry {
    /// How many VBDs are still to come, with this one; 0 at the end.
    pub count: i32,
    /// Minor; −1 at the end.
    pub minor: i32,
    /// Bits of [`state`](super::state).
    pub state: u32,
    /// `type:path`, empty if not open.
    pub path: Text,
    /// Ours: the block device, if there is one.
    pub device: Option<Device>,
}

impl ListEntry {
    /// The entry that ends a list (§5.7).
    pub const END: ListEntry =
        ListEntry { count: 0, minor: -1, state: 0, path: Text::EMPTY, device: None };
}

impl Body for ListEntry {
    fn write_to(&self, frame: &mut Frame) {
        put(frame, 8, self.count.to_ne_bytes());
        put(frame, 12, self.minor.to_ne_bytes());
        put(frame, 16, self.state.to_ne_bytes());
        put(frame, 20, *self.path.field());
        put_device(frame, 276, self.device);
    }

    fn read_from(frame: &Frame) -> Result<ListEntry, BadBody> {
        Ok(ListEntry {
            count: i32::from_ne_bytes(take(frame, 8)),
            minor: i32::from_ne_bytes(take(frame, 12)),
            state: u32::from_ne_bytes(take(frame, 16)),
            path: text(frame, 20)?,
            device: device(frame, 276),
        })
    }
}

/// Reply of STATS: `length` bytes of text follow the message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatInfo {
    /// Length of the text, in bytes.
    pub length: u64,
}

impl Body for StatInfo {
    fn write_to(&self, frame: &mut Frame) {
        put(frame, 16, self.length.to_ne_bytes());
    }

    fn read_from(frame: &Frame) -> Result<StatInfo, BadBody> {
        Ok(StatInfo { length: u64::from_ne_bytes(take(frame, 16)) })
    }
}

/// Request of XENBLKIF_CONNECT; XENBLKIF_DISCONNECT uses `domid` and `devid` only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blkif {
    /// Frontend domain.
    pub domid: u32,
    /// Virtual device number.
    pub devid: u32,
    /// Grant references of the ring pages; the first 2^order are valid.
    pub gref: [u32; 8],
    /// log2 of the page count, 0…3. Not checked here.
    pub order: u32,
    /// 1 native, 2 x86_32, 3 x86_64. Not checked here.
    pub proto: u32,
    /// Event-channel pool; empty: the default.
    pub pool: Text,
    /// Remote event channel port.
    pub port: u32,
    /// Microseconds; 0: never poll.
    pub poll_duration: u32,
    /// Percent.
    pub poll_idle_threshold: u32,
    /// Ours (docs/rings.md): which of the frontend's queues this ring is, from 0.
    /// The original sends 0 here and does not look at it.
    pub queue: u32,
    /// Ours: how many queues the frontend has; 0 and 1 both mean one.
    pub queues: u32,
}

impl Body for Blkif {
    fn write_to(&self, frame: &mut Frame) {
        put(frame, 8, self.domid.to_ne_bytes());
        put(frame, 12, self.devid.to_ne_bytes());
        for (i, gref) in self.gref.iter().enumerate() {
            put(frame, 16 + 4 * i, gref.to_ne_bytes());
        }
        put(frame, 48, self.order.to_ne_bytes());
        put(frame, 52, self.proto.to_ne_bytes());
        put(frame, 56, *self.pool.field());
        put(frame, 312, self.port.to_ne_bytes());
        put(frame, 316, self.poll_duration.to_ne_bytes());
        put(frame, 320, self.poll_idle_threshold.to_ne_bytes());
        put(frame, 324, self.queue.to_ne_bytes());
        put(frame, 328, self.queues.to_ne_bytes());
    }

    fn read_from(frame: &Frame) -> Result<Blkif, BadBody> {
        Ok(Blkif {
            domid: u32::from_ne_bytes(take(frame, 8)),
            devid: u32::from_ne_bytes(take(frame, 12)),
            gref: std::array::from_fn(|i| u32::from_ne_bytes(take(frame, 16 + 4 * i))),
            order: u32::from_ne_bytes(take(frame, 48)),
            proto: u32::from_ne_bytes(take(frame, 52)),
            pool: text(frame, 56)?,
            port: u32::from_ne_bytes(take(frame, 312)),
            poll_duration: u32::from_ne_bytes(take(frame, 316)),
            poll_idle_threshold: u32::from_ne_bytes(take(frame, 320)),
            queue: u32::from_ne_bytes(take(frame, 324)),
            queues: u32::from_ne_bytes(take(frame, 328)),
        })
    }
}

/// Reply of PID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapdiskPid {
    /// Process id of the daemon.
    pub pid: i32,
}

impl Body for TapdiskPid {
    fn write_to(&self, frame: &mut Frame) {
        put(frame, 8, self.pid.to_ne_bytes());
    }

    fn read_from(frame: &Frame) -> Result<TapdiskPid, BadBody> {
        Ok(TapdiskPid { pid: i32::from_ne_bytes(take(frame, 8)) })
    }
}

/// Ours: request of UPGRADE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    /// Its path.
    pub path: Text,
}

impl Body for Program {
    fn write_to(&self, frame: &mut Frame) {
        put(frame, 20, *self.path.field());
    }

    fn read_from(frame: &Frame) -> Result<Program, BadBody> {
        Ok(Program { path: text(frame, 20)? })
    }
}

/// Reply of QUERY_COMMIT_JOB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitStatus {
    /// Bytes that are done.
    pub current: u64,
    /// All.
    pub total: u64,
    /// `running`, `concluded` …
    pub status: Text,
}

impl CommitStatus {
    /// With a short word.
    pub fn new(status: &str, current: u64, total: u64) -> CommitStatus {
        CommitStatus { current, total, status: Text::new(status.as_bytes()).unwrap_or(Text::EMPTY) }
    }
}

impl Body for CommitStatus {
    fn write_to(&self, frame: &mut Frame) {
        put(frame, 8, self.current.to_ne_bytes());
        put(frame, 16, self.total.to_ne_bytes());
        put(frame, 24, *self.status.field());
    }

    fn read_from(frame: &Frame) -> Result<CommitStatus, BadBody> {
        let (current, total) =
            (u64::from_ne_bytes(take(frame, 8)), u64::from_ne_bytes(take(frame, 16)));
        Ok(CommitStatus { current, total, status: text(frame, 24)? })
    }
}

/// Ours: reply of UPGRADE, by the new program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upgraded {
    /// The longest time that a disk took no requests, in µs.
    pub pause_us: u64,
    /// Disks that are served.
    pub disks: u32,
    /// Version of the new program.
    pub version: Text,
}

impl Body for Upgraded {
    fn write_to(&self, frame: &mut Frame) {
        put(frame, 8, self.pause_us.to_ne_bytes());
        put(frame, 16, self.disks.to_ne_bytes());
        put(frame, 20, *self.version.field());
    }

    fn read_from(frame: &Frame) -> Result<Upgraded, BadBody> {
        Ok(Upgraded {
            pause_us: u64::from_ne_bytes(take(frame, 8)),
            disks: u32::from_ne_bytes(take(frame, 16)),
            version: text(frame, 20)?,
        })
    }
}

/// Offsets are constants of this file, tested below, so the slices cannot be out of range.
pub(super) fn put<const N: usize>(frame: &mut Frame, offset: usize, bytes: [u8; N]) {
    frame[offset..offset + N].copy_from_slice(&bytes);
}

pub(super) fn take<const N: usize>(frame: &Frame, offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&frame[offset..offset + N]);
    bytes
}

/// Without [`flag::DEVICE`] nothing is looked at.
fn device_options(frame: &Frame, flags: u32) -> DeviceOptions {
    if flags & flag::DEVICE == 0 {
        return DeviceOptions::default();
    }
    let [driver, queues] = take(frame, 538);
    DeviceOptions { driver, queues, number: u32::from_ne_bytes(take(frame, 540)) }
}

fn put_device(frame: &mut Frame, offset: usize, device: Option<Device>) {
    let [kind, number] = Device::words(device);
    put(frame, offset, kind.to_ne_bytes());
    put(frame, offset + 4, number.to_ne_bytes());
}

fn device(frame: &Frame, offset: usize) -> Option<Device> {
    let word = |at| u32::from_ne_bytes(take(frame, at));
    Device::of_words([word(offset), word(offset + 4)])
}

fn text(frame: &Frame, offset: usize) -> Result<Text, BadBody> {
    Text::from_field(&take::<TEXT_BYTES>(frame, offset)).ok_or(BadBody { offset })
}

#[cfg(test)]
mod tests;
