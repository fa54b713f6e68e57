//! Offsets of every field, against the tables of §3.1.

use super::*;
use crate::messages::MESSAGE_BYTES;

/// The offsets and values of the bytes that a body sets in a zero frame.
fn written<B: Body>(body: &B) -> Frame {
    let mut frame = [0; MESSAGE_BYTES];
    body.write_to(&mut frame);
    frame
}

/// Assert that exactly `fields` (offset, bytes) are set.
fn assert_fields<B: Body>(body: &B, fields: &[(usize, &[u8])]) {
    let mut expected = [0; MESSAGE_BYTES];
    for (offset, bytes) in fields {
        expected[*offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    assert_eq!(written(body), expected);
}

fn path(text: &str) -> Text {
    Text::new(text.as_bytes()).expect("a short text")
}

#[test]
fn params() {
    let params = Params {
        flags: flag::SECONDARY | flag::RDONLY,
        devnum: 0x0102_0304,
        domid: 0x0506_0708,
        path: path("vhd:/x"),
        prt_devnum: 0x090a_0b0c,
        req_timeout: 0x0d0e,
        secondary: path("nbd:y"),
        device: DeviceOptions::default(),
    };
    assert_fields(
        &params,
        &[
            (8, &0x82u32.to_ne_bytes()),
            (12, &0x0102_0304u32.to_ne_bytes()),
            (16, &0x0506_0708u32.to_ne_bytes()),
            (20, b"vhd:/x"),
            (276, &0x090a_0b0cu32.to_ne_bytes()),
            (280, &0x0d0eu16.to_ne_bytes()),
            (282, b"nbd:y"),
        ],
    );
    assert_eq!(Params::read_from(&written(&params)), Ok(params));
}

#[test]
fn params_default_asks_for_no_parent() {
    let frame = written(&Params::default());
    assert_eq!(frame[276..280], [0xff; 4]);
    assert_eq!(Params::read_from(&frame).expect("valid").parent(), None);
    assert_eq!(
        Params { prt_devnum: 0, ..Params::default() }.parent(),
        Some(0),
        "a client that leaves 0 asks for 0"
    );
}

#[test]
fn params_without_the_flag_ignore_the_secondary() {
    let mut frame = written(&Params::default());
    frame[282..538].fill(b'x');
    assert_eq!(Params::read_from(&frame), Ok(Params::default()));
    frame[8] = flag::SECONDARY as u8;
    assert_eq!(Params::read_from(&frame), Err(BadBody { offset: 282 }));
}

#[test]
fn params_need_a_terminated_path() {
    let mut frame = written(&Params::default());
    frame[20..276].fill(b'x');
    assert_eq!(Params::read_from(&frame), Err(BadBody { offset: 20 }));
}

#[test]
fn image() {
    let image =
        ImageInfo { sectors: 0x0102_0304_0506_0708, sector_size: 4096, info: 5, device: None };
    assert_fields(
        &image,
        &[
            (8, &0x0102_0304_0506_0708u64.to_ne_bytes()),
            (16, &4096u32.to_ne_bytes()),
            (20, &5u32.to_ne_bytes()),
        ],
    );
    assert_eq!(ImageInfo::read_from(&written(&image)), Ok(image));
}

#[test]
fn devices_are_in_bytes_that_the_original_leaves_zero() {
    let device = DeviceOptions { driver: 1, queues: 4, number: 8 };
    let params = Params { flags: flag::DEVICE, device, ..Params::default() };
    let frame = written(&params);
    assert_eq!(frame[538..544], [1, 4, 8, 0, 0, 0]);
    assert_eq!(Params::read_from(&frame), Ok(params));
    let image = ImageInfo { device: Some(Device::Ublk(7)), ..ImageInfo::default() };
    let frame = written(&image);
    assert_eq!((frame[24], frame[28]), (1, 7));
    assert_eq!(ImageInfo::read_from(&frame), Ok(image));
    let entry = ListEntry { device: Some(Device::Nbd(3)), ..ListEntry::END };
    let frame = written(&entry);
    assert_eq!((frame[276], frame[280]), (2, 3));
    assert_eq!(ListEntry::read_from(&frame), Ok(entry));
}

#[test]
fn params_without_the_flag_ask_for_no_device() {
    let mut frame = written(&Params::default());
    frame[538..544].fill(7);
    assert_eq!(Params::read_from(&frame), Ok(Params::default()));
}

#[test]
fn response() {
    assert_fields(&Response { error: 22 }, &[(8, &22i32.to_ne_bytes())]);
    assert_eq!(Response::read_from(&written(&Response { error: 22 })), Ok(Response { error: 22 }));
}

#[test]
fn list_entry() {
    let entry =
        ListEntry { count: 2, minor: 7, state: 0x2a, path: path("aio:/dev/x"), device: None };
    assert_fields(
        &entry,
        &[
            (8, &2i32.to_ne_bytes()),
            (12, &7i32.to_ne_bytes()),
            (16, &0x2au32.to_ne_bytes()),
            (20, b"aio:/dev/x"),
        ],
    );
    assert_eq!(ListEntry::read_from(&written(&entry)), Ok(entry));
    assert_fields(&ListEntry::END, &[(12, &[0xff; 4])]);
}

#[test]
fn stat() {
    assert_fields(&StatInfo { length: 513 }, &[(16, &513u64.to_ne_bytes())]);
    assert_eq!(
        StatInfo::read_from(&written(&StatInfo { length: 513 })),
        Ok(StatInfo { length: 513 })
    );
}

#[test]
fn blkif() {
    let blkif = Blkif {
        domid: 1,
        devid: 51712,
        gref: [11, 12, 13, 14, 15, 16, 17, 18],
        order: 3,
        proto: 2,
        pool: path("pool"),
        port: 9,
        poll_duration: 10,
        poll_idle_threshold: 50,
        queue: 1,
        queues: 4,
    };
    let grefs: Vec<u8> = (11u32..19).flat_map(|gref| gref.to_ne_bytes()).collect();
    assert_fields(
        &blkif,
        &[
            (8, &1u32.to_ne_bytes()),
            (12, &51712u32.to_ne_bytes()),
            (16, &grefs),
            (48, &3u32.to_ne_bytes()),
            (52, &2u32.to_ne_bytes()),
            (56, b"pool"),
            (312, &9u32.to_ne_bytes()),
            (316, &10u32.to_ne_bytes()),
            (320, &50u32.to_ne_bytes()),
            (324, &1u32.to_ne_bytes()),
            (328, &4u32.to_ne_bytes()),
        ],
    );
    assert_eq!(Blkif::read_from(&written(&blkif)), Ok(blkif));
}

#[test]
fn tapdisk_pid() {
    assert_fields(&TapdiskPid { pid: -2 }, &[(8, &(-2i32).to_ne_bytes())]);
    assert_eq!(
        TapdiskPid::read_from(&written(&TapdiskPid { pid: 77 })),
        Ok(TapdiskPid { pid: 77 })
    );
}
