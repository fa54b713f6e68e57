//! Negotiations with servers of every kind, byte by byte. The server's end is the test's; what it
//! will say is written before the client begins, so that nothing has to be timed.
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::*;
use nbd_proto::{self as proto, answer, feature, info, option};

const SIZE: u64 = 3 << 20;
const FLAGS: u16 = feature::HAS_FLAGS | feature::SEND_FLUSH;

/// Opens `nbd:x` and then the server's end of it.
struct Server {
    stream: UnixStream,
    stash: Arc<Stash>,
}

impl Server {
    fn saying(script: &[&[u8]]) -> Server {
        let (mut stream, theirs) = UnixStream::pair().unwrap();
        script.iter().for_each(|part| stream.write_all(part).unwrap());
        let stash = Arc::new(Stash::default());
        stash.put_back(b"x", theirs.into());
        Server { stream, stash }
    }

    fn open(&self, path: &str) -> Result<RemoteImage, OpenError> {
        RemoteImage::open_within(Duration::from_millis(40), Path::new(path), true, &self.stash)
    }

    /// Why it is refused.
    fn refused(&self) -> String {
        let error = self.open("x").unwrap_err();
        assert_eq!(error.errno, libc::EPERM, "{error}");
        assert!(error.text.starts_with("nbd:x: "), "{error}");
        error.text
    }

    /// Everything that the client said until now, and the end of its side.
    fn heard(mut self) -> Vec<u8> {
        drop(self.stash);
        let mut all = Vec::new();
        self.stream.read_to_end(&mut all).unwrap();
        all
    }
}

fn oldstyle(bytes: u64) -> Vec<u8> {
    let head = [proto::GREETING, proto::OLDSTYLE_MAGIC, bytes].map(u64::to_be_bytes).concat();
    [&head[..], &[0; 128]].concat()
}

fn newstyle(flags: u16) -> Vec<u8> {
    let head = [proto::GREETING, proto::OPTION_MAGIC].map(u64::to_be_bytes).concat();
    [&head[..], &flags.to_be_bytes()].concat()
}

fn fixed() -> Vec<u8> {
    newstyle(proto::FIXED_NEWSTYLE | proto::NO_ZEROES)
}

fn reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let head = [option, kind, data.len() as u32].map(u32::to_be_bytes).concat();
    [&proto::OPTION_REPLY_MAGIC.to_be_bytes()[..], &head, data].concat()
}

fn export(bytes: u64, flags: u16) -> Vec<u8> {
    let data = [&info::EXPORT.to_be_bytes()[..], &bytes.to_be_bytes(), &flags.to_be_bytes()];
    reply(option::GO, answer::INFO, &data.concat())
}

fn blocks(smallest: u32, largest: u32) -> Vec<u8> {
    let sizes = [smallest, 4096, largest].map(u32::to_be_bytes).concat();
    reply(option::GO, answer::INFO, &[&info::BLOCK_SIZE.to_be_bytes()[..], &sizes].concat())
}

fn ack() -> Vec<u8> {
    reply(option::GO, answer::ACK, &[])
}

fn unknown() -> Vec<u8> {
    reply(option::GO, answer::ERR_UNSUP, b"what?")
}

/// The answer to EXPORT_NAME, without zeros.
fn name_answer(bytes: u64) -> Vec<u8> {
    [&bytes.to_be_bytes()[..], &FLAGS.to_be_bytes()].concat()
}

fn asked(option: u32, data: &[u8]) -> Vec<u8> {
    let head = [option, data.len() as u32].map(u32::to_be_bytes).concat();
    [b"IHAVEOPT", &head[..], data].concat()
}

fn farewell() -> Vec<u8> {
    request(command::DISC, 0).to_vec()
}

#[test]
fn an_oldstyle_server_is_understood() {
    let server = Server::saying(&[&oldstyle(SIZE + 511)]);
    let image = server.open("x").unwrap();
    assert_eq!(image.sectors(), SIZE / 512);
    assert_eq!((image.offer.unit, image.offer.can_flush()), (512, false));
    image.flush().unwrap();
    drop(image);
    assert_eq!(server.heard(), farewell());
}

#[test]
fn a_modern_server_is_asked_for_an_export_and_its_blocks() {
    let said = [fixed(), blocks(4096, 100_000), export(SIZE + 512, FLAGS), ack()];
    let server = Server::saying(&said.each_ref().map(|part| &part[..]));
    let image = server.open("x:exportname=d").unwrap();
    assert_eq!(image.offer, Offer { bytes: SIZE + 512, flags: FLAGS, unit: 4096, longest: 98_304 });
    assert_eq!(image.sectors(), SIZE / 512, "whole blocks");
    drop(image);
    let go = asked(option::GO, &[0, 0, 0, 1, b'd', 0, 1, 0, 3]);
    assert_eq!(server.heard(), [vec![0, 0, 0, 3], go, farewell()].concat());
}

#[test]
fn a_server_that_does_not_know_go_is_asked_the_old_way() {
    let server = Server::saying(&[&fixed(), &unknown(), &name_answer(SIZE)]);
    let image = server.open("x").unwrap();
    assert_eq!((image.sectors(), image.offer.can_flush()), (SIZE / 512, true));
    drop(image);
    let said = [
        vec![0, 0, 0, 3],
        asked(option::GO, &[0, 0, 0, 0, 0, 1, 0, 3]),
        asked(option::EXPORT_NAME, b""),
    ];
    assert_eq!(server.heard(), [said.concat(), farewell()].concat());
}

#[test]
fn a_server_before_fixed_newstyle_sends_zeros_behind_its_flags() {
    let server = Server::saying(&[&newstyle(0), &name_answer(SIZE), &[0; 124]]);
    assert_eq!(server.open("x:exportname=old").unwrap().sectors(), SIZE / 512);
    let said = [vec![0; 4], asked(option::EXPORT_NAME, b"old"), farewell()].concat();
    assert_eq!(server.heard(), said);
}

#[test]
fn what_cannot_be_used_is_refused_with_a_sentence() {
    let refusal = |kind: u32| [fixed(), reply(option::GO, kind, b"so\nthere")].concat();
    let offered = |bytes: u64, smallest: u32, largest: u32| {
        [fixed(), export(bytes, FLAGS), blocks(smallest, largest), ack()].concat()
    };
    let many = [fixed(), (0..70).flat_map(|_| export(SIZE, FLAGS)).collect()].concat();
    let large = [&fixed()[..], &reply(option::GO, answer::INFO, &[])[..16], &[0xff; 4]].concat();
    for (script, why) in [
        (b"SSH-2.0-OpenSSH".to_vec(), "no NBD server"),
        (b"NBDMAGICIHAVEBUG".to_vec(), "style"),
        (oldstyle(511), "less than one sector"),
        (oldstyle(1 << 63), "no disk"),
        (refusal(answer::ERR_POLICY), "policy forbids it: so\\nthere"),
        (refusal(answer::ERR_UNKNOWN), "no export named \"\""),
        (refusal(answer::ERR_TLS_REQD), "TLS"),
        (refusal(answer::ERR_SHUTDOWN), "shutting down"),
        (refusal(answer::ERR_BLOCK_SIZE_REQD), "block sizes"),
        (refusal(0x8000_1234), "refuses (0x80001234)"),
        (refusal(answer::SERVER), "makes no sense"),
        ([fixed(), ack()].concat(), "does not tell the size"),
        ([fixed(), reply(option::LIST, answer::ACK, &[])].concat(), "was not asked"),
        ([fixed(), vec![7; 20]].concat(), "was not asked"),
        (many, "more than 64 answers"),
        (large, "too much"),
        (offered(SIZE, 8192, 1 << 20), "blocks of 8192"),
        (offered(SIZE, 3, 1 << 20), "blocks of 3"),
        (offered(SIZE, 0, 1 << 20), "blocks of 0"),
        (offered(SIZE, 512, 511), "less than 512 bytes at once"),
        (offered(4095, 4096, 1 << 20), "less than one sector"),
        (b"NBDMAG".to_vec(), "nothing in time, at the greeting"),
        (fixed(), "nothing in time, at an answer"),
    ] {
        let said = Server::saying(&[&script]).refused();
        assert!(said.contains(why), "wanted {why}, got {said}");
    }
}

#[test]
fn a_server_that_goes_away_is_told_from_one_that_is_silent() {
    let server = Server::saying(&[&fixed(), &unknown()]);
    server.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(server.refused().contains("no export named"));
    let server = Server::saying(&[b"NBDMAGIC"]);
    server.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(server.refused().contains("closed the connection at the greeting"));
}

#[test]
fn an_oldstyle_server_has_no_names() {
    let server = Server::saying(&[&oldstyle(SIZE)]);
    let error = server.open("x:exportname=d").unwrap_err();
    assert!(error.text.contains("leave the exportname out"), "{error}");
}

#[test]
fn a_read_only_export_is_left_with_a_farewell() {
    let flags = FLAGS | feature::READ_ONLY;
    let server = Server::saying(&[&fixed(), &export(SIZE, flags), &ack()]);
    assert_eq!(server.open("x").unwrap_err().errno, libc::EROFS);
    assert!(server.heard().ends_with(&farewell()));
}

#[test]
fn a_passed_descriptor_goes_back_after_a_farewell_and_greets_again() {
    let mut server = Server::saying(&[&oldstyle(SIZE)]);
    drop(server.open("x").unwrap());
    assert!(server.refused().contains("nothing in time"), "the server has not greeted again");
    // Nothing had been said, so the next try has it again.
    server.stream.write_all(&oldstyle(SIZE)).unwrap();
    let image = server.open("x").unwrap();
    assert!(server.refused().contains("no descriptor of this name"), "it is in use");
    image.ended.set();
    drop(image);
    assert!(server.refused().contains("no descriptor of this name"), "it is of no more use");
    assert_eq!(server.heard(), farewell());
}

#[test]
fn a_passed_descriptor_that_broke_off_in_the_middle_is_given_up() {
    let server = Server::saying(&[&fixed()[..10]]);
    assert!(server.refused().contains("nothing in time"));
    assert!(server.refused().contains("no descriptor of this name"));
}

#[test]
fn a_newer_descriptor_of_the_same_name_stays() {
    let server = Server::saying(&[&oldstyle(SIZE)]);
    let image = server.open("x").unwrap();
    let (_far, newer) = UnixStream::pair().unwrap();
    server.stash.put_back(b"x", newer.into());
    drop(image);
    assert_eq!(server.stash.take(b"x").map(|_| ()), Some(()));
    assert_eq!(server.stash.take(b"x").map(|_| ()), None);
}

#[test]
fn a_last_flush_tells_what_the_server_tells() {
    let answers = |error: u32, cookie: &[u8; 8]| {
        let reply = [&0x6744_6698u32.to_be_bytes()[..], &error.to_be_bytes(), cookie].concat();
        let server = Server::saying(&[&fixed(), &export(SIZE, FLAGS), &ack(), &reply]);
        let image = server.open("x").unwrap();
        let flushed = image.flush().map_err(|e| e.raw_os_error());
        (flushed, image.ended.is())
    };
    assert_eq!(answers(0, b"farewell"), (Ok(()), false));
    assert_eq!(answers(22, b"farewell"), (Ok(()), false), "it has none after all");
    assert_eq!(answers(28, b"farewell"), (Err(Some(libc::ENOSPC)), false));
    assert_eq!(answers(0, b"welcome!"), (Err(Some(libc::EPROTO)), true));
}

#[test]
fn what_is_no_socket_is_refused() {
    let server = Server::saying(&[]);
    let file = tempfile::tempfile().unwrap();
    server.stash.take(b"x").unwrap();
    server.stash.put_back(b"x", file.into());
    assert!(server.refused().contains("the connection broke at the greeting"));
}

/// Greetings of which some bytes are wrong or missing: an answer, in time, and no panic.
#[test]
fn damaged_greetings_are_refused_or_understood() {
    let good = [
        oldstyle(SIZE),
        [fixed(), blocks(512, 1 << 20), export(SIZE, FLAGS), ack()].concat(),
        [fixed(), unknown(), name_answer(SIZE), vec![0; 124]].concat(),
        [newstyle(0), name_answer(SIZE), vec![0; 124]].concat(),
    ];
    let mut seed = 1u64;
    let mut random = |n: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) as usize % n
    };
    let mut understood = 0;
    for i in 0..400 {
        let mut script = good[i % good.len()].clone();
        let at = random(script.len());
        script[at] ^= 1 << random(8);
        script.truncate(script.len() - random(3) * random(20));
        let server = Server::saying(&[&script]);
        server.stream.shutdown(std::net::Shutdown::Write).unwrap();
        match server.open("x") {
            Ok(image) => {
                assert!(image.sectors() > 0 && image.offer.longest >= image.offer.unit);
                understood += 1;
            }
            Err(error) => assert!(matches!(error.errno, libc::EPERM | libc::EROFS), "{error}"),
        }
    }
    assert!(understood > 20, "{understood} of 400");
}
