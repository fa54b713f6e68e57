//! The control socket's messages, on both sides of it.
use tap_ctl::messages::{
    Blkif, Body, Frame, ImageInfo, ListEntry, MESSAGE_BYTES, Message, Params, Response, StatInfo,
    TapdiskPid, Text, flag, kind, validate_request,
};
use tapdisk::control::frame::{Parsed, REQUEST_BYTES_MAX, parse};
use tests::fuzz::{Target, as_it_is, outcome};

const CONTROL: Target = Target {
    name: "control",
    bytes_max: REQUEST_BYTES_MAX + 64,
    memory_max: 1 << 20,
    seeds,
    words: &[b"vhd:/x\0", b"/\0", &[0; 8]],
    seal: as_it_is,
    run,
};

#[test]
fn control() {
    CONTROL.check(100_000);
}

/// Each type of message, and an OPEN with everything behind it.
fn seeds() -> Vec<Vec<u8>> {
    let message = |number| Message::new(number, 3).encode().to_vec();
    let mut seeds: Vec<Vec<u8>> = (0..32).map(message).collect();
    let path = Text::new(b"vhd:/x").expect("a path");
    let flags = flag::ADD_LOG | flag::OPEN_ENCRYPTED | flag::SECONDARY;
    let params = Params { flags, path, ..Params::default() };
    let mut open = Message::with(kind::OPEN, 3, &params).encode().to_vec();
    open.extend_from_slice(&[b"/log\0".as_slice(), &[0; 251], &[32], &[7; 32]].concat());
    open.truncate(REQUEST_BYTES_MAX);
    seeds.push(open);
    seeds
}

fn body<B: Body>(frame: &Frame) -> bool {
    let message = Message::decode(frame);
    match message.body::<B>() {
        Ok(body) => {
            // What is written is read back, whatever was around it.
            let again = Message::with(message.kind(), message.cookie(), &body);
            again.body::<B>().is_ok()
        }
        Err(bad) => bad.offset < MESSAGE_BYTES,
    }
}

fn run(bytes: &[u8]) -> u64 {
    let told = match parse(bytes) {
        Parsed::More(want) => {
            assert!(want > bytes.len() && want <= REQUEST_BYTES_MAX, "{want} of {}", bytes.len());
            format!("more {}", want.div_ceil(256))
        }
        Parsed::Refused(reply) => {
            assert_eq!(reply.body(), Ok(Response { error: libc::EINVAL }));
            assert!(reply.reason().is_some_and(|reason| !reason.is_empty()));
            format!("refused {}", reply.cookie() != 0)
        }
        Parsed::Request(request) => {
            let (request, extra) = *request;
            let again = validate_request(&request.to_message().encode());
            assert_eq!(again.as_ref(), Ok(&request), "a request survives being sent on");
            format!("{} {}", request.kind(), extra != Default::default())
        }
    };
    if let Some(frame) = bytes.first_chunk::<MESSAGE_BYTES>() {
        let sound = [
            body::<Params>(frame),
            body::<ImageInfo>(frame),
            body::<Response>(frame),
            body::<ListEntry>(frame),
            body::<StatInfo>(frame),
            body::<Blkif>(frame),
            body::<TapdiskPid>(frame),
        ];
        assert_eq!(sound, [true; 7]);
        if let Err(refused) = validate_request(frame) {
            assert_eq!(refused.reply(frame).kind(), kind::ERROR);
        }
    }
    // Numbers are types of messages here.
    outcome(&told.bytes().map(|b| char::from(b | 0x40)).collect::<String>())
}
