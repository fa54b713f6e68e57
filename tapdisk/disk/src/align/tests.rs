//! Conflicts, lack of buffers and odd transfers, over a disk that does what it is told, when it is
//! told.
use super::*;

const FILE: FileId = FileId(0);
const DEPTH: u32 = 16;
/// Memory of the tests' own, before the bounce buffers: 16 pieces of 8 KiB and one of 128 KiB.
const OWN_BYTES: u32 = (16 * 8 + 128) << 10;

struct Script {
    arena: Arena,
    bytes: Vec<u8>,
    queued: VecDeque<(Tag, Op)>,
    finished: VecDeque<(Tag, Result<u32, i32>)>,
    /// Of each transfer at most so many bytes are moved.
    most: usize,
}

impl Script {
    fn complete(&mut self, result: Option<i32>) {
        let (tag, op) = self.queued.pop_front().expect("something is in flight");
        let unit = |n: u64| n.is_multiple_of(4096);
        let (at, n) = (op.at as usize, (op.buf.bytes as usize).min(self.most));
        let done = match op.kind {
            _ if result.is_some() => Err(result.unwrap()),
            Kind::Read => {
                assert!(unit(op.at) && unit(op.buf.bytes.into()) && unit(op.buf.offset.into()));
                let at = at.min(self.bytes.len());
                let n = n.min(self.bytes.len() - at);
                let buf = op.buf.part(0, n as u32);
                self.arena.slice_mut(buf).copy_from_slice(&self.bytes[at..at + n]);
                Ok(n as u32)
            }
            Kind::Write => {
                assert!(unit(op.at) && unit(op.buf.bytes.into()) && unit(op.buf.offset.into()));
                self.bytes.resize(self.bytes.len().max(at + n), 0);
                self.bytes[at..at + n].copy_from_slice(self.arena.slice(op.buf.part(0, n as u32)));
                Ok(n as u32)
            }
            Kind::Zero { bytes, .. } if !unit(op.at) || !unit(bytes) => Err(libc::EINVAL),
            Kind::Zero { bytes, .. } | Kind::Discard { bytes } => {
                assert!(unit(op.at) && unit(bytes));
                self.bytes[at..at + bytes as usize].fill(0);
                Ok(0)
            }
            Kind::Sync | Kind::Grow { .. } => Ok(0),
        };
        self.finished.push_back((tag, done));
    }
}

impl Disk for Script {
    fn push(&mut self, tag: Tag, op: Op) {
        self.queued.push_back((tag, op));
        assert!(self.queued.len() <= DEPTH as usize, "the inner depth is the outer depth");
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn reap(&mut self) -> Option<(Tag, Result<u32, i32>)> {
        self.finished.pop_front()
    }
    fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }
    fn arena_ref(&self) -> &Arena {
        &self.arena
    }
    fn set_files(&mut self, _: &[RawFd]) -> io::Result<()> {
        Ok(())
    }
    fn wake_fd(&self) -> RawFd {
        -1
    }
    fn name(&self) -> &'static str {
        "script"
    }
}

/// A disk of `bytes` ones, in units of 4096, with some bounce buffers.
fn disk(bytes: usize, bounces: u32) -> Aligned<Script> {
    let reserve = Buf { offset: OWN_BYTES, bytes: bounces * BOUNCE_BYTES };
    let arena = Arena::new((OWN_BYTES + reserve.bytes) as usize).unwrap();
    let (queued, finished) = (VecDeque::new(), VecDeque::new());
    let script = Script { arena, bytes: vec![1; bytes], queued, finished, most: usize::MAX };
    let mut disk = Aligned::open(script, reserve, DEPTH);
    if bounces > 0 {
        disk.set_alignments(&[4096]).unwrap();
    }
    disk
}

fn memory(tag: Tag, bytes: u32) -> Buf {
    let piece = Buf { offset: tag * 8192, bytes: 128 << 10 };
    piece.part(0, bytes)
}

fn op(kind: Kind, at: u64, buf: Buf) -> Op {
    Op { file: FILE, kind, at, buf }
}

/// Pushes a write of bytes that are all `tag`.
fn write(disk: &mut Aligned<Script>, tag: Tag, at: u64, bytes: u32) {
    let buf = memory(tag, bytes);
    disk.arena().slice_mut(buf).fill(tag as u8);
    disk.push(tag, op(Kind::Write, at, buf));
}

fn read(disk: &mut Aligned<Script>, tag: Tag, at: u64, bytes: u32) {
    let buf = memory(tag, bytes);
    disk.arena().slice_mut(buf).fill(0xcc);
    disk.push(tag, op(Kind::Read, at, buf));
}

/// Completes the oldest inner operation; the outer one that is over by that.
fn next(disk: &mut Aligned<Script>) -> Option<(Tag, Result<u32, i32>)> {
    disk.inner().complete(None);
    let done = disk.reap();
    assert!(disk.reap().is_none(), "one completion ends one operation at most");
    done
}

/// Completes everything; what ended, in that order.
fn rest(disk: &mut Aligned<Script>) -> Vec<(Tag, Result<u32, i32>)> {
    let mut all: Vec<_> = std::iter::from_fn(|| disk.reap()).collect();
    while !disk.inner().queued.is_empty() {
        all.extend(next(disk));
    }
    let free = disk.bounces.len() == disk.bounces_max && disk.waiting.is_empty();
    assert!(free && disk.entries.iter().all(|e| e.state == State::Free), "nothing is left behind");
    all
}

fn in_flight(disk: &Aligned<Script>) -> Vec<(Tag, Kind)> {
    disk.inner_ref().queued.iter().map(|(tag, op)| (tag & !OURS, op.kind)).collect()
}

fn bytes(disk: &Aligned<Script>, at: usize) -> u8 {
    let sector = &disk.inner_ref().bytes[at..at + 512];
    assert!(sector.iter().all(|b| *b == sector[0]), "a sector is whole");
    sector[0]
}

#[test]
fn sectors_of_one_unit_are_rewritten_one_after_the_other() {
    let mut disk = disk(8192, 8);
    write(&mut disk, 2, 512, 512);
    write(&mut disk, 3, 1024, 512);
    write(&mut disk, 4, 4096 + 512, 512);
    assert_eq!(in_flight(&disk), [(2, Kind::Read), (4, Kind::Read)]);
    assert_eq!(rest(&mut disk), [(2, Ok(512)), (4, Ok(512)), (3, Ok(512))]);
    let found: Vec<u8> = [0, 512, 1024, 1536, 4096, 4608].map(|at| bytes(&disk, at)).to_vec();
    assert_eq!(found, [1, 2, 3, 1, 1, 4]);
}

#[test]
fn a_rewrite_and_a_whole_write_of_its_unit_wait_for_each_other() {
    let mut disk = disk(16384, 8);
    write(&mut disk, 2, 4096, 4096);
    write(&mut disk, 3, 512, 4096); // parts of the first two units
    write(&mut disk, 4, 0, 4096);
    write(&mut disk, 5, 8192, 4096);
    assert_eq!(in_flight(&disk), [(2, Kind::Write), (5, Kind::Write)]);
    assert_eq!(rest(&mut disk).iter().map(|d| d.0).collect::<Vec<_>>(), [2, 5, 3, 4]);
    let found = [0, 3584, 4096, 4608, 8192].map(|at| bytes(&disk, at));
    assert_eq!(found, [4, 4, 3, 2, 5]);
}

#[test]
fn zeroing_counts_as_writing() {
    let mut disk = disk(16384, 8);
    let zero = Kind::Zero { bytes: 8192, punch: true };
    disk.push(2, op(zero, 0, Buf::NONE));
    write(&mut disk, 3, 512, 512);
    disk.push(4, op(Kind::Discard { bytes: 4096 }, 0, Buf::NONE));
    assert_eq!(in_flight(&disk), [(2, zero)]);
    assert_eq!(rest(&mut disk), [(2, Ok(0)), (3, Ok(512)), (4, Ok(0))]);
}

#[test]
fn the_second_half_of_a_rewrite_is_submitted_before_the_caller_sleeps() {
    let mut disk = disk(8192, 1);
    write(&mut disk, 2, 512, 512);
    disk.submit().unwrap();
    assert!(!disk.has_finished());
    assert_eq!(next(&mut disk), None);
    assert!(disk.has_finished(), "the write is not submitted yet");
    disk.submit().unwrap();
    assert!(!disk.has_finished());
    rest(&mut disk);
}

#[test]
fn reads_wait_for_nobody() {
    let mut disk = disk(8192, 8);
    write(&mut disk, 2, 512, 512);
    read(&mut disk, 3, 512, 512);
    read(&mut disk, 4, 0, 4096);
    assert_eq!(in_flight(&disk), [(2, Kind::Read), (3, Kind::Read), (4, Kind::Read)]);
    rest(&mut disk);
    assert!(disk.arena().slice(memory(3, 512)).iter().all(|b| *b == 1));
}

#[test]
fn one_buffer_is_enough_and_is_handed_on_in_order() {
    let mut disk = disk(65536, 1);
    for tag in 0..DEPTH {
        if tag % 3 == 0 {
            read(&mut disk, tag, 512, 1024);
        } else {
            write(&mut disk, tag, u64::from(tag / 2) * 1024 + 512, 512);
        }
        assert_eq!(in_flight(&disk).len(), 1, "whoever has the buffer");
    }
    let ended: Vec<Tag> = rest(&mut disk).iter().map(|d| d.0).collect();
    assert_eq!(ended.len(), DEPTH as usize);
    let reads: Vec<Tag> = ended.iter().copied().filter(|tag| tag % 3 == 0).collect();
    assert!(reads.is_sorted(), "{reads:?}");
    // What waits for a lock has no buffer yet, so whole units and others go on.
    write(&mut disk, 2, 512, 512);
    write(&mut disk, 3, 512, 512);
    write(&mut disk, 4, 8192, 4096);
    assert_eq!(in_flight(&disk), [(2, Kind::Read), (4, Kind::Write)]);
    rest(&mut disk);
}

#[test]
fn an_error_passes_up_and_lets_the_others_go_on() {
    for fails in 0..2 {
        let mut disk = disk(8192, 1);
        write(&mut disk, 2, 512, 512);
        write(&mut disk, 3, 1024, 512);
        for _ in 0..fails {
            assert_eq!(next(&mut disk), None);
        }
        disk.inner().complete(Some(libc::EAGAIN));
        assert_eq!(disk.reap(), Some((2, Err(libc::EAGAIN))));
        assert_eq!(rest(&mut disk), [(3, Ok(512))]);
        assert_eq!([512, 1024].map(|at| bytes(&disk, at)), [1, 3]);
    }
}

#[test]
fn short_transfers_are_carried_on() {
    for most in [4097, 5000, 9000] {
        let mut disk = disk(65536, 2);
        disk.inner().most = most;
        write(&mut disk, 2, 512, 32768);
        assert_eq!(rest(&mut disk), [(2, Ok(32768))]);
        read(&mut disk, 3, 1024, 20480);
        assert_eq!(rest(&mut disk), [(3, Ok(20480))]);
        assert!(disk.arena().slice(memory(3, 20480)).iter().all(|b| *b == 2));
        assert_eq!([0, 512, 32768, 33280].map(|at| bytes(&disk, at)), [1, 2, 2, 1]);
    }
}

#[test]
fn a_short_read_before_a_rewrite_is_not_taken_for_the_end_of_the_file() {
    let mut disk = disk(8192, 1);
    write(&mut disk, 2, 512, 512);
    for most in [100, 4000, 700, 700, 4095] {
        disk.inner().most = most;
        assert_eq!(next(&mut disk), None);
        assert_eq!(in_flight(&disk), [(2, Kind::Read)]);
    }
    disk.inner().most = usize::MAX;
    assert_eq!(rest(&mut disk), [(2, Ok(512))]);
    assert_eq!([0, 512, 1024, 3584].map(|at| bytes(&disk, at)), [1, 2, 1, 1]);
}

#[test]
fn a_device_that_takes_nothing_does_not_hold_on_for_ever() {
    let mut disk = disk(8192, 1);
    write(&mut disk, 2, 512, 512);
    next(&mut disk);
    disk.inner().most = 0;
    assert_eq!(rest(&mut disk), [(2, Ok(0))]);
}

#[test]
fn the_end_of_a_file_inside_a_unit() {
    let mut disk = disk(4096 + 1024, 1);
    read(&mut disk, 2, 4096 + 512, 1024);
    assert_eq!(rest(&mut disk), [(2, Ok(512))]);
    read(&mut disk, 2, 4096 + 1024, 512);
    assert_eq!(rest(&mut disk), [(2, Ok(0))]);
    read(&mut disk, 2, 16384 + 512, 512);
    assert_eq!(rest(&mut disk), [(2, Ok(0))]);
    write(&mut disk, 3, 4096 + 2048, 512);
    assert_eq!(rest(&mut disk), [(3, Ok(512))]);
    assert_eq!(disk.inner_ref().bytes.len(), 8192);
    let found = [4608, 5120, 5632, 6144, 6656].map(|at| bytes(&disk, at));
    assert_eq!(found, [1, 0, 0, 3, 0]);
}

#[test]
fn misaligned_zeros_are_written_by_hand_and_discards_shrink() {
    let mut disk = disk(16384, 1);
    disk.push(2, op(Kind::Zero { bytes: 4096, punch: true }, 512, Buf::NONE));
    assert_eq!(rest(&mut disk), [(2, Err(libc::EOPNOTSUPP))]);
    disk.push(2, op(Kind::Discard { bytes: 8192 }, 512, Buf::NONE));
    assert_eq!(rest(&mut disk), [(2, Ok(0))]);
    assert_eq!([0, 4096, 8192].map(|at| bytes(&disk, at)), [1, 0, 1]);
    disk.push(2, op(Kind::Discard { bytes: 4096 }, 512, Buf::NONE));
    assert!(disk.has_finished() && in_flight(&disk).is_empty());
    assert_eq!(rest(&mut disk), [(2, Ok(0))]);
}

#[test]
fn memory_counts_and_the_longest_operations_are_cut() {
    let mut disk = disk(1 << 18, 1);
    let buf = memory(0, 16384).part(512, 8192);
    disk.arena().slice_mut(buf).fill(9);
    disk.push(2, op(Kind::Write, 4096, buf));
    assert_eq!(in_flight(&disk), [(2, Kind::Write)], "nothing to be read");
    assert_eq!(rest(&mut disk), [(2, Ok(8192))]);
    write(&mut disk, 3, 512, 128 << 10);
    assert_eq!(rest(&mut disk), [(3, Ok(BOUNCE_BYTES - 512))]);
    let found =
        [0, 512, BOUNCE_BYTES as usize - 512, BOUNCE_BYTES as usize].map(|at| bytes(&disk, at));
    assert_eq!(found, [1, 3, 3, 1]);
}

#[test]
fn files_of_small_sectors_and_flushes_go_straight_through() {
    let mut disk = disk(8192, 1);
    let other = Op { file: FileId(1), ..op(Kind::Write, 512, memory(0, 512)) };
    disk.push(77, other);
    disk.push(3, op(Kind::Sync, 0, Buf::NONE));
    disk.push(4, op(Kind::Grow { bytes: 512 }, 512, Buf::NONE));
    let tags: Vec<Tag> = disk.inner_ref().queued.iter().map(|(tag, _)| *tag).collect();
    assert_eq!(tags, [77, 3, 4]);
}

#[test]
fn what_cannot_be_served_is_refused_at_open() {
    let mut disk = disk(8192, 0);
    assert_eq!(disk.units[0], SECTOR);
    for units in [&[512, 4096][..], &[3 << 10], &[8192]] {
        let error = disk.set_alignments(units).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    }
    disk.set_alignments(&[0, 1, 512]).unwrap();
}
