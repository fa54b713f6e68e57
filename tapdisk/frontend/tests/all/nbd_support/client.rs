//! The client's half of the protocol, byte by byte.
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use super::Bench;

pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;

pub mod cmd {
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const ZERO: u16 = 6;
    pub const STATUS: u16 = 7;
}

/// A client's socket; nothing here waits.
pub struct Client {
    pub socket: UnixStream,
    cookie: u64,
}

/// One reply to an option.
#[derive(Debug, PartialEq)]
pub struct OptionReply {
    pub option: u32,
    pub kind: u32,
    pub data: Vec<u8>,
}

/// One simple reply or one chunk.
#[derive(Debug, PartialEq)]
pub enum Reply {
    Simple { error: u32, cookie: u64 },
    Chunk { last: bool, kind: u16, cookie: u64, data: Vec<u8> },
}

impl Client {
    pub fn new(socket: UnixStream) -> Client {
        socket.set_nonblocking(true).unwrap();
        Client { socket, cookie: 0 }
    }

    /// Sends everything, turning the server as often as it takes.
    pub fn send(&mut self, bench: &mut Bench, mut bytes: &[u8]) {
        for _ in 0..100_000 {
            match self.socket.write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => panic!("send: {e}"),
            }
            if bytes.is_empty() {
                return;
            }
            bench.turn();
        }
        panic!("the server takes no more: {} bytes left", bytes.len());
    }

    /// Receives exactly so many bytes.
    pub fn recv(&mut self, bench: &mut Bench, n: usize) -> Vec<u8> {
        let mut bytes = vec![0; n];
        let mut have = 0;
        for _ in 0..100_000 {
            match self.socket.read(&mut bytes[have..]) {
                Ok(0) if have < n => panic!("closed after {have} of {n} bytes"),
                Ok(got) => have += got,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) => panic!("recv: {e}"),
            }
            if have == n {
                return bytes;
            }
            bench.turn();
        }
        panic!("the server says no more after {have} of {n} bytes");
    }

    /// The server has closed, and says nothing more.
    pub fn assert_closed(&mut self, bench: &mut Bench) {
        bench.settle();
        let mut rest = Vec::new();
        match self.socket.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "last words: {rest:?}"),
            Err(e) => assert_eq!(e.kind(), io::ErrorKind::ConnectionReset, "{e}"),
        }
    }

    /// Nothing to receive just now, and not closed.
    pub fn assert_silent(&mut self, bench: &mut Bench) {
        bench.settle();
        let e = self.socket.read(&mut [0]).expect_err("silence");
        assert_eq!(e.kind(), io::ErrorKind::WouldBlock);
    }

    pub fn greeting(&mut self, bench: &mut Bench) {
        let hello = self.recv(bench, 18);
        assert_eq!(&hello[..], b"NBDMAGICIHAVEOPT\0\x03");
    }

    pub fn negotiate(&mut self, bench: &mut Bench) {
        self.greeting(bench);
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(option(8, &[]));
        bytes.extend(option(10, &contexts("", &["base:allocation"])));
        bytes.extend(option(7, &info("", &[])));
        self.send(bench, &bytes);
        for expected in [(8, 1), (10, 4), (10, 1), (7, 3), (7, 3), (7, 1)] {
            let reply = self.option_reply(bench);
            assert_eq!((reply.option, reply.kind), expected);
        }
    }

    pub fn negotiate_simple(&mut self, bench: &mut Bench) {
        self.greeting(bench);
        let mut bytes = 3u32.to_be_bytes().to_vec();
        bytes.extend(option(1, b"any name"));
        self.send(bench, &bytes);
        self.recv(bench, 10);
    }

    pub fn option_reply(&mut self, bench: &mut Bench) -> OptionReply {
        let head = self.recv(bench, 20);
        assert_eq!(be64(&head, 0), 0x0003_e889_0455_65a9);
        let data = self.recv(bench, be32(&head, 16) as usize);
        OptionReply { option: be32(&head, 8), kind: be32(&head, 12), data }
    }

    pub fn next_cookie(&mut self) -> u64 {
        self.cookie += 1;
        self.cookie
    }

    /// Sends a request; its cookie.
    pub fn request(&mut self, b: &mut Bench, cmd: u16, flags: u16, at: u64, bytes: u32) -> u64 {
        let cookie = self.next_cookie();
        self.send(b, &request(cmd, flags, cookie, at, bytes));
        cookie
    }

    pub fn write(&mut self, bench: &mut Bench, flags: u16, at: u64, data: &[u8]) -> u64 {
        let cookie = self.next_cookie();
        let mut bytes = request(cmd::WRITE, flags, cookie, at, data.len() as u32);
        bytes.extend(data);
        self.send(bench, &bytes);
        cookie
    }

    /// One reply, with no data if it is a simple one.
    pub fn reply(&mut self, bench: &mut Bench) -> Reply {
        let magic = self.recv(bench, 4);
        match be32(&magic, 0) {
            0x6744_6698 => {
                let rest = self.recv(bench, 12);
                Reply::Simple { error: be32(&rest, 0), cookie: be64(&rest, 4) }
            }
            0x668e_33ef => {
                let rest = self.recv(bench, 16);
                let data = self.recv(bench, be32(&rest, 12) as usize);
                let kind = u16::from_be_bytes([rest[2], rest[3]]);
                assert!(rest[0] == 0 && rest[1] < 2, "chunk flags");
                Reply::Chunk { last: rest[1] == 1, kind, cookie: be64(&rest, 4), data }
            }
            other => panic!("wrong magic {other:#x}"),
        }
    }

    /// The error of a simple reply to the request.
    pub fn simple_error(&mut self, bench: &mut Bench, cookie: u64) -> u32 {
        match self.reply(bench) {
            Reply::Simple { error, cookie: got } => {
                assert_eq!(got, cookie);
                error
            }
            other => panic!("{other:?}"),
        }
    }

    /// The whole structured answer to one read: data, with failed ranges as errors.
    pub fn read_chunks(
        &mut self,
        bench: &mut Bench,
        cookie: u64,
        at: u64,
        bytes: usize,
    ) -> (Vec<u8>, Vec<(u32, u64)>) {
        let mut data = vec![0xcc; bytes];
        let mut errors = Vec::new();
        loop {
            let Reply::Chunk { last, kind, cookie: got, data: chunk } = self.reply(bench) else {
                panic!("a chunk");
            };
            assert_eq!(got, cookie);
            match kind {
                1 => {
                    let from = (be64(&chunk, 0) - at) as usize;
                    data[from..from + chunk.len() - 8].copy_from_slice(&chunk[8..]);
                }
                2 => {
                    let from = (be64(&chunk, 0) - at) as usize;
                    data[from..from + be32(&chunk, 8) as usize].fill(0);
                }
                0x8001 => errors.push((be32(&chunk, 0), u64::MAX)),
                0x8002 => {
                    assert_eq!(chunk.len(), 14);
                    errors.push((be32(&chunk, 0), be64(&chunk, 6)));
                }
                0 => assert!(last),
                other => panic!("chunk type {other}"),
            }
            if last {
                return (data, errors);
            }
        }
    }
}

pub fn request(cmd: u16, flags: u16, cookie: u64, at: u64, bytes: u32) -> Vec<u8> {
    let mut raw = 0x2560_9513u32.to_be_bytes().to_vec();
    raw.extend(flags.to_be_bytes());
    raw.extend(cmd.to_be_bytes());
    raw.extend(cookie.to_be_bytes());
    raw.extend(at.to_be_bytes());
    raw.extend(bytes.to_be_bytes());
    raw
}

pub fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let mut raw = IHAVEOPT.to_be_bytes().to_vec();
    raw.extend(option.to_be_bytes());
    raw.extend((data.len() as u32).to_be_bytes());
    raw.extend(data);
    raw
}

pub fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut raw = string(name);
    raw.extend((wanted.len() as u16).to_be_bytes());
    wanted.iter().for_each(|w| raw.extend(w.to_be_bytes()));
    raw
}

pub fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut raw = string(name);
    raw.extend((queries.len() as u32).to_be_bytes());
    queries.iter().for_each(|q| raw.extend(string(q)));
    raw
}

pub fn string(text: &str) -> Vec<u8> {
    let mut raw = (text.len() as u32).to_be_bytes().to_vec();
    raw.extend(text.bytes());
    raw
}

pub fn be32(raw: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(raw[at..at + 4].try_into().unwrap())
}

pub fn be64(raw: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(raw[at..at + 8].try_into().unwrap())
}
