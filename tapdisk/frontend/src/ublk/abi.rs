//! The numbers and layouts of linux/ublk_cmd.h (Linux 6.0 to 6.12), and nothing else.
//!
//! Structures that the kernel reads or writes through a pointer are `repr(C)` and checked below;
//! the two that travel inside a submission entry are made as bytes.
use std::mem::{offset_of, size_of};

/// Where control commands go.
pub const CONTROL_PATH: &str = "/dev/ublk-control";

/// `_IOWR('u', number, bytes)` of asm-generic/ioctl.h.
const fn read_write(number: u32, bytes: usize) -> u32 {
    (3 << 30) | ((bytes as u32) << 16) | ((b'u' as u32) << 8) | number
}

/// `_IOR('u', number, bytes)`.
const fn read(number: u32, bytes: usize) -> u32 {
    (2 << 30) | ((bytes as u32) << 16) | ((b'u' as u32) << 8) | number
}

/// A control command: its number, and whether the kernel answers through its buffer only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    number: u32,
    reads: bool,
}

impl Command {
    const fn new(number: u32, reads: bool) -> Command {
        Command { number, reads }
    }

    /// As an ioctl (Linux 6.4 and later), or as the plain number of the first kernels.
    pub fn code(self, encoded: bool) -> u32 {
        match (encoded, self.reads) {
            (false, _) => self.number,
            (true, true) => read(self.number, CONTROL_BYTES),
            (true, false) => read_write(self.number, CONTROL_BYTES),
        }
    }
}

/// What the kernel knows of a device.
pub const GET_DEV_INFO: Command = Command::new(0x02, true);
/// Makes `/dev/ublkcN`.
pub const ADD_DEV: Command = Command::new(0x04, false);
/// Removes it, when nobody has it open any more.
pub const DEL_DEV: Command = Command::new(0x05, false);
/// Makes `/dev/ublkbN`, once all queues are served.
pub const START_DEV: Command = Command::new(0x06, false);
/// Removes it.
pub const STOP_DEV: Command = Command::new(0x07, false);
/// Size, sectors and features.
pub const SET_PARAMS: Command = Command::new(0x08, false);
/// Lets a new server open a device whose server died.
pub const START_USER_RECOVERY: Command = Command::new(0x10, false);
/// Goes on with it.
pub const END_USER_RECOVERY: Command = Command::new(0x11, false);

/// Commands of the data path: wait for a request, or answer one and wait for the next.
const FETCH: u32 = 0x20;
const COMMIT_AND_FETCH: u32 = 0x21;

/// The code of FETCH.
pub fn fetch(encoded: bool) -> u32 {
    if encoded { read_write(FETCH, IO_BYTES) } else { FETCH }
}

/// The code of COMMIT_AND_FETCH.
pub fn commit(encoded: bool) -> u32 {
    if encoded { read_write(COMMIT_AND_FETCH, IO_BYTES) } else { COMMIT_AND_FETCH }
}

/// A FETCH that has a request.
pub const RESULT_REQUEST: i32 = 0;

/// Features of a device.
pub mod feature {
    /// A device outlives its server.
    pub const USER_RECOVERY: u64 = 1 << 3;
    /// What a dead server had taken is given to the next one.
    pub const USER_RECOVERY_REISSUE: u64 = 1 << 4;
    /// Command codes are ioctls.
    pub const IOCTL_ENCODE: u64 = 1 << 6;
}

/// States of a device.
pub mod state {
    /// Added, or stopped.
    pub const DEAD: u16 = 0;
    /// Served.
    pub const LIVE: u16 = 1;
    /// Its server died, and it waits for another.
    pub const QUIESCED: u16 = 2;
}

/// Operations: bits 0 to 7 of `op_flags`.
pub mod op {
    /// Read.
    pub const READ: u8 = 0;
    /// Write.
    pub const WRITE: u8 = 1;
    /// Flush.
    pub const FLUSH: u8 = 2;
    /// Discard.
    pub const DISCARD: u8 = 3;
    /// Zeros.
    pub const WRITE_ZEROES: u8 = 5;
    /// In `op_flags`: force unit access.
    pub const FUA: u32 = 1 << 13;
    /// In `op_flags`: zeros shall keep their space.
    pub const NOUNMAP: u32 = 1 << 15;
}

/// Attributes of a disk.
pub mod attribute {
    /// Writes are refused.
    pub const READ_ONLY: u32 = 1 << 0;
    /// Flushes mean something.
    pub const VOLATILE_CACHE: u32 = 1 << 2;
    /// Writes may be FUA.
    pub const FUA: u32 = 1 << 3;
}

/// What a device is, for ADD_DEV and GET_DEV_INFO.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's names")]
pub struct DevInfo {
    pub queues: u16,
    pub depth: u16,
    pub state: u16,
    pub pad0: u16,
    /// Bytes of the longest request with data.
    pub io_bytes_max: u32,
    /// −1: any.
    pub device: u32,
    pub server_pid: i32,
    pub pad1: u32,
    pub features: u64,
    /// Not looked at by the kernel.
    pub ours: u64,
    pub owner: [u32; 2],
    pub reserved: [u64; 2],
}

/// What a disk is, for SET_PARAMS: the basic and the discard parameters.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's names")]
pub struct Params {
    pub bytes: u32,
    pub types: u32,
    pub attributes: u32,
    pub logical_shift: u8,
    pub physical_shift: u8,
    pub io_opt_shift: u8,
    pub io_min_shift: u8,
    pub sectors_max: u32,
    pub chunk_sectors: u32,
    pub sectors: u64,
    pub virt_boundary: u64,
    pub discard_alignment: u32,
    pub discard_granularity: u32,
    pub discard_sectors_max: u32,
    pub zeroes_sectors_max: u32,
    pub discard_segments_max: u16,
    pub reserved: u16,
    pub pad: u32,
}

/// The types in [`Params`].
pub const PARAMS_BASIC_AND_DISCARD: u32 = 0b11;

/// A request, as the kernel leaves it in the mapped table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's names")]
pub struct IoDesc {
    pub op_flags: u32,
    pub sectors: u32,
    pub start: u64,
    pub address: u64,
}

/// Bytes of `struct ublksrv_ctrl_cmd`.
pub const CONTROL_BYTES: usize = 32;
/// Bytes of `struct ublksrv_io_cmd`.
pub const IO_BYTES: usize = 16;
/// Descriptors of a queue in the mapped table: each queue's part begins after room for so many.
pub const DEPTH_MAX: usize = 4096;

const _: () = assert!(size_of::<DevInfo>() == 64);
const _: () = assert!(offset_of!(DevInfo, io_bytes_max) == 8);
const _: () = assert!(offset_of!(DevInfo, device) == 12);
const _: () = assert!(offset_of!(DevInfo, features) == 24);
const _: () = assert!(offset_of!(DevInfo, owner) == 40);
const _: () = assert!(size_of::<Params>() == 64);
const _: () = assert!(offset_of!(Params, sectors_max) == 16);
const _: () = assert!(offset_of!(Params, sectors) == 24);
const _: () = assert!(offset_of!(Params, discard_alignment) == 40);
const _: () = assert!(offset_of!(Params, discard_segments_max) == 56);
const _: () = assert!(size_of::<IoDesc>() == 24);
const _: () = assert!(offset_of!(IoDesc, start) == 8);

/// `struct ublksrv_ctrl_cmd` in the 80 bytes of a large submission entry: device, no queue, buffer,
/// one word of data.
pub fn control_bytes(device: u32, buffer: (u64, u16), data: u64) -> [u8; 80] {
    let mut bytes = [0; 80];
    bytes[0..4].copy_from_slice(&device.to_ne_bytes());
    bytes[4..6].copy_from_slice(&u16::MAX.to_ne_bytes());
    bytes[6..8].copy_from_slice(&buffer.1.to_ne_bytes());
    bytes[8..16].copy_from_slice(&buffer.0.to_ne_bytes());
    bytes[16..24].copy_from_slice(&data.to_ne_bytes());
    bytes
}

/// `struct ublksrv_io_cmd`.
pub fn io_bytes((queue, tag): (u16, u16), result: i32, address: u64) -> [u8; IO_BYTES] {
    let mut bytes = [0; IO_BYTES];
    bytes[0..2].copy_from_slice(&queue.to_ne_bytes());
    bytes[2..4].copy_from_slice(&tag.to_ne_bytes());
    bytes[4..8].copy_from_slice(&result.to_ne_bytes());
    bytes[8..16].copy_from_slice(&address.to_ne_bytes());
    bytes
}

/// Bytes of the mapped table of a queue, in whole pages.
pub fn table_bytes(depth: u16) -> usize {
    (usize::from(depth) * size_of::<IoDesc>()).next_multiple_of(4096)
}

/// Where the table of a queue is, for mmap.
pub fn table_offset(queue: u16) -> u64 {
    let each = (DEPTH_MAX * size_of::<IoDesc>()).next_multiple_of(4096);
    u64::from(queue) * each as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_header() {
        // As `strace -e raw` shows them of other servers.
        assert_eq!(ADD_DEV.code(true), 0xc020_7504);
        assert_eq!(GET_DEV_INFO.code(true), 0x8020_7502);
        assert_eq!(ADD_DEV.code(false), 4);
        assert_eq!((fetch(true), commit(true)), (0xc010_7520, 0xc010_7521));
        assert_eq!((fetch(false), commit(false)), (0x20, 0x21));
    }

    #[test]
    fn commands_have_their_fields_in_place() {
        let control = control_bytes(7, (0x1122_3344_5566_7788, 64), 4711);
        assert_eq!(control[0..8], [7, 0, 0, 0, 0xff, 0xff, 64, 0]);
        assert_eq!(control[8..16], 0x1122_3344_5566_7788u64.to_ne_bytes());
        assert_eq!(control[16..24], 4711u64.to_ne_bytes());
        assert!(control[24..].iter().all(|byte| *byte == 0));
        let io = io_bytes((1, 2), -5, 9);
        assert_eq!(io, [1, 0, 2, 0, 0xfb, 0xff, 0xff, 0xff, 9, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!((table_bytes(64), table_offset(2)), (4096, 2 * 98304));
    }
}
