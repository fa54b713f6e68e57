//! A disk with a remote (file 0) and a local file (file 1), and the server's end of the connection.
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use disk::probe::{AnyDisk, EngineKind, choose};
use disk::remote::{Ended, Offer, Peer, Remote};
use host::arena::{Arena, Buf};
use request::disk::{Disk, FileId, Kind, Op, Tag};

pub const DEPTH: u32 = 32;
pub const PATIENCE: Duration = Duration::from_secs(120);
/// What no test waits longer for.
pub const LIMIT: Duration = Duration::from_secs(20);

/// Transmission flags: has flags, flush, trim, write-zeroes.
pub const ALL: u16 = 1 | 1 << 2 | 1 << 5 | 1 << 6;

pub const READ: u16 = 0;
pub const WRITE: u16 = 1;
pub const FLUSH: u16 = 3;
pub const TRIM: u16 = 4;
pub const ZEROES: u16 = 6;

pub struct Bench {
    pub disk: Remote<AnyDisk>,
    pub far: UnixStream,
    pub ended: Ended,
    _local: std::fs::File,
}

/// A request as the server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub flags: u16,
    pub command: u16,
    pub handle: [u8; 8],
    pub at: u64,
    pub bytes: u32,
}

pub fn offer() -> Offer {
    Offer { bytes: 64 << 20, flags: ALL, unit: 512, longest: 32 << 20 }
}

/// Runs a test on both engines.
pub fn each(test: impl Fn(&dyn Fn(Offer) -> Bench)) {
    for kind in [EngineKind::Uring, EngineKind::Aio] {
        test(&|offer| Bench::new(kind, offer));
    }
}

impl Bench {
    pub fn new(kind: EngineKind, offer: Offer) -> Bench {
        let arena = Arena::new(4 << 20).unwrap();
        let disk = choose(arena, DEPTH, 4, Some(kind)).unwrap().disk;
        let mut disk = Remote::open(disk, DEPTH).unwrap();
        let (far, near) = UnixStream::pair().unwrap();
        far.set_read_timeout(Some(LIMIT)).unwrap();
        let ended = Ended::default();
        let peer = Peer { fd: Arc::new(near.into()), offer, ended: ended.clone() };
        disk.set_remotes(vec![(FileId(0), peer)], PATIENCE).unwrap();
        let local = tempfile::tempfile().unwrap();
        local.set_len(1 << 20).unwrap();
        disk.set_files(&[-1, local.as_raw_fd()]).unwrap();
        Bench { disk, far, ended, _local: local }
    }

    /// Pushes an operation on the remote. The buffer of tag n is n · 64 KiB into the arena.
    pub fn push(&mut self, tag: Tag, kind: Kind, at: u64, bytes: u32) {
        let buf =
            if matches!(kind, Kind::Read | Kind::Write) { buf(tag, bytes) } else { Buf::NONE };
        self.disk.push(tag, Op { file: FileId(0), kind, at, buf });
    }

    /// Submits, and gives what has finished.
    pub fn turn(&mut self) -> Vec<(Tag, Result<u32, i32>)> {
        self.disk.submit().unwrap();
        std::iter::from_fn(|| self.disk.reap()).collect()
    }

    /// Turns until so many have finished.
    pub fn finish(&mut self, count: usize) -> Vec<(Tag, Result<u32, i32>)> {
        let mut all = Vec::new();
        let end = std::time::Instant::now() + LIMIT;
        while all.len() < count {
            all.extend(self.turn());
            assert!(std::time::Instant::now() < end, "{all:?} of {count}");
        }
        assert_eq!(all.len(), count);
        all.sort_unstable();
        all
    }

    /// The next request, which was sent.
    pub fn request(&mut self) -> Request {
        let mut raw = [0; 28];
        self.far.read_exact(&mut raw).unwrap();
        assert_eq!(raw[..4], 0x2560_9513u32.to_be_bytes());
        Request {
            flags: u16::from_be_bytes([raw[4], raw[5]]),
            command: u16::from_be_bytes([raw[6], raw[7]]),
            handle: raw[8..16].try_into().unwrap(),
            at: u64::from_be_bytes(raw[16..24].try_into().unwrap()),
            bytes: u32::from_be_bytes(raw[24..].try_into().unwrap()),
        }
    }

    pub fn data(&mut self, bytes: u32) -> Vec<u8> {
        let mut data = vec![0; bytes as usize];
        self.far.read_exact(&mut data).unwrap();
        data
    }

    pub fn say(&mut self, bytes: &[u8]) {
        self.far.write_all(bytes).unwrap();
    }

    /// The local file works.
    #[track_caller]
    pub fn assert_local_works(&mut self) {
        let tag = DEPTH - 1;
        let op = Op { file: FileId(1), kind: Kind::Read, at: 0, buf: buf(tag, 512) };
        self.disk.push(tag, op);
        assert_eq!(self.finish(1), [(tag, Ok(512))]);
    }

    pub fn fill(&mut self, tag: Tag, bytes: u32, value: u8) {
        self.disk.arena().slice_mut(buf(tag, bytes)).fill(value);
    }

    pub fn holds(&self, tag: Tag, bytes: u32, value: u8) -> bool {
        self.disk.arena_ref().slice(buf(tag, bytes)).iter().all(|byte| *byte == value)
    }
}

pub fn buf(tag: Tag, bytes: u32) -> Buf {
    Buf { offset: tag << 16, bytes }
}

/// A simple reply.
pub fn reply(handle: [u8; 8], error: u32) -> Vec<u8> {
    [&0x6744_6698u32.to_be_bytes()[..], &error.to_be_bytes(), &handle].concat()
}
