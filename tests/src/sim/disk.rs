//! A disk in memory under the engine: completes what is queued in seeded random order, cuts
//! transfers short, fails, runs out of space, and can lose power.
use std::cell::RefCell;
use std::io;
use std::os::fd::RawFd;

use host::arena::{Arena, Buf};
use image::Storage;
use request::disk::FileInfo;
use request::disk::{Disk, Kind, Op, Tag};

use super::rng::Rng;

/// What goes wrong, each once in so many times (0: never).
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// EIO.
    pub eio: u64,
    /// Transfers cut short.
    pub short: u64,
    /// EAGAIN.
    pub again: u64,
    /// ENOSPC of a growth.
    pub nospace: u64,
    /// ENOSPC of a write to a file.
    pub full: u64,
    /// The file system cannot punch or zero ranges.
    pub no_zero: bool,
    /// Reads that take much longer than anything else.
    pub slow_reads: bool,
    /// The file that cannot be read.
    pub unreadable: Option<u8>,
    /// Flushes that lie (a planted bug of the disk).
    pub lazy_flush: bool,
}

/// The bytes of one file: as the operations that completed left them, and what of that is not on
/// the medium yet.
#[derive(Clone, Debug)]
pub struct SimFile {
    /// As seen by reads.
    pub bytes: Vec<u8>,
    /// On the medium for certain: with what is not flushed, these are the bytes above. None as long
    /// as all of them are, so that half of all disks have everything once.
    medium: Option<Vec<u8>>,
    unflushed: Unflushed,
    /// A block device.
    pub device: bool,
    /// Bytes of a physical sector: operations are made of these, and each lands whole or not.
    pub unit: usize,
}

/// Units written since the last flush, in order.
#[derive(Clone, Debug, Default)]
struct Unflushed {
    /// Where each belongs, and its length.
    places: Vec<(usize, usize)>,
    /// Their bytes, one after the other: an allocation for each took longer than the write.
    bytes: Vec<u8>,
    /// How many there were before these.
    gone: usize,
}

impl Unflushed {
    fn len(&self) -> usize {
        self.places.len()
    }

    /// What has been written by now: whatever another flush does meanwhile, one that is asked for
    /// now need not do more.
    fn mark(&self) -> usize {
        self.gone + self.len()
    }

    /// How many of these are older than a mark.
    fn before(&self, mark: usize) -> usize {
        mark.saturating_sub(self.gone).min(self.len())
    }

    /// Forgets the first so many.
    fn forget(&mut self, count: usize) {
        let bytes: usize = self.places.drain(..count).map(|(_, len)| len).sum();
        self.bytes.drain(..bytes);
        self.gone += count;
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let mut rest = &self.bytes[..];
        self.places.iter().map(move |(at, len)| {
            let (unit, behind) = rest.split_at(*len);
            rest = behind;
            (*at, unit)
        })
    }

    /// The first so many, and what lies side by side as one: most units of a large write.
    fn runs(&self, count: usize) -> impl Iterator<Item = (usize, &[u8])> {
        let (mut places, mut rest) = (&self.places[..count], &self.bytes[..]);
        std::iter::from_fn(move || {
            let (at, _) = *places.first()?;
            let mut end = at;
            while let Some(((next, len), behind)) = places.split_first().filter(|p| p.0.0 == end) {
                (end, places) = (next + len, behind);
            }
            let (run, behind) = rest.split_at(end - at);
            rest = behind;
            Some((at, run))
        })
    }
}

impl SimFile {
    /// A file or device with these bytes on the medium.
    pub fn new(bytes: Vec<u8>, device: bool) -> SimFile {
        SimFile { bytes, medium: None, unflushed: Unflushed::default(), device, unit: 512 }
    }

    /// The same with sectors of `unit` bytes. A device ends with a whole one, and with the 512
    /// bytes it ended with before: a footer.
    pub fn with_unit(mut self, unit: usize) -> SimFile {
        self.unit = unit;
        let bytes = self.bytes.len();
        if self.device && !bytes.is_multiple_of(unit) {
            self.bytes.resize(bytes.next_multiple_of(unit) - 512, 0xee);
            self.bytes.extend_from_within(bytes - 512..bytes);
            self.medium = None;
        }
        self
    }

    /// What the engine is told of it. All devices are thin volumes here.
    pub fn info(&self) -> FileInfo {
        FileInfo { bytes: self.bytes.len() as u64, device: self.device, thin: self.device }
    }

    /// The same file or device with other bytes, all on the medium.
    pub fn rewritten(&self, bytes: Vec<u8>) -> SimFile {
        SimFile::new(bytes, self.device).with_unit(self.unit)
    }

    /// In the hands of who opens or closes the image in it.
    pub fn in_hand(&mut self) -> InHand<'_> {
        InHand(self.into())
    }

    /// All of it gets to the medium.
    pub fn settle(&mut self) {
        self.flush(self.unflushed.len());
    }

    fn write(&mut self, at: usize, data: &[u8], volatile: bool) {
        let parts = self.parts(at, data.len());
        if volatile {
            self.medium.get_or_insert_with(|| {
                let mut medium = Vec::with_capacity(self.bytes.capacity());
                medium.extend_from_slice(&self.bytes);
                medium
            });
        } else if let Some(medium) = &mut self.medium {
            put(medium, at, data);
        }
        put(&mut self.bytes, at, data);
        if !volatile {
            return;
        }
        self.unflushed.places.extend(parts.map(|(skip, len)| (at + skip, len)));
        self.unflushed.bytes.extend_from_slice(data);
    }

    /// The parts of a write that land whole or not. What makes a file longer does so when all of it
    /// has landed: the file system notes the new length last.
    fn parts(&self, at: usize, bytes: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let inside = match self.device {
            true => bytes,
            false => self.bytes.len().saturating_sub(at).min(bytes),
        };
        let longer = (inside < bytes).then_some((inside, bytes - inside));
        units(at, inside, self.unit).chain(longer)
    }

    fn flush(&mut self, upto: usize) {
        let Some(medium) = &mut self.medium else { return };
        for (at, run) in self.unflushed.runs(upto) {
            put(medium, at, run);
        }
        self.unflushed.forget(upto);
    }

    fn power_cut(&mut self, mut kept: impl FnMut(usize) -> bool) {
        let Some(medium) = &mut self.medium else { return };
        for (at, unit) in self.unflushed.iter().filter(|(at, _)| kept(*at)) {
            put(medium, at, unit);
        }
        // Only where something was not flushed the two differ: no need to copy all of it.
        self.bytes.truncate(medium.len());
        for (at, len) in &self.unflushed.places {
            let end = (at + len).min(medium.len());
            if *at < end {
                self.bytes[*at..end].copy_from_slice(&medium[*at..end]);
            }
        }
        self.unflushed.forget(self.unflushed.len());
    }
}

/// A file as it is, to be read by who opens images and by the blocking executor.
impl Storage for &SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let at = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let n = buf.len().min(self.bytes.len() - at);
        buf[..n].copy_from_slice(&self.bytes[at..at + n]);
        Ok(n)
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.len() as u64)
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn zero_at(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::EROFS))
    }
    fn is_device(&self) -> bool {
        self.device
    }
}

/// A file while an image in it is opened to be written, or closed, both of which end with a flush:
/// what is changed there is on the medium, and so is what was written before.
pub struct InHand<'a>(RefCell<&'a mut SimFile>);

impl Storage for InHand<'_> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        (&**self.0.borrow()).read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let file = &mut **self.0.borrow_mut();
        let at = usize::try_from(offset).map_err(io::Error::other)?;
        let end = at.checked_add(buf.len()).ok_or(io::ErrorKind::InvalidInput)?;
        if file.bytes.get(at..end) == Some(buf) {
            return Ok(());
        }
        if file.device && end > file.bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        file.settle();
        file.write(at, buf, false);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.borrow().bytes.len() as u64)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let file = &mut **self.0.borrow_mut();
        let len = usize::try_from(len).map_err(io::Error::other)?;
        if !file.device && file.bytes.len() != len {
            file.settle();
            file.bytes.resize(len, 0);
            if let Some(medium) = &mut file.medium {
                medium.resize(len, 0);
            }
        }
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn is_device(&self) -> bool {
        self.0.borrow().device
    }
}

/// Bytes at a place; what lies beyond the end makes it longer, on the medium when it gets there.
fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    if at > bytes.len() {
        bytes.resize(at, 0);
    }
    let (inside, longer) = data.split_at(data.len().min(bytes.len() - at));
    bytes[at..at + inside.len()].copy_from_slice(inside);
    bytes.extend_from_slice(longer);
}

/// The parts of a range that land whole or not: (offset in the range, length).
fn units(at: usize, bytes: usize, unit: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut skip = 0;
    std::iter::from_fn(move || {
        let len = (unit - (at + skip) % unit).min(bytes - skip);
        skip += len;
        (len > 0).then_some((skip - len, len))
    })
}

thread_local! {
    /// Arenas of disks that are gone. To map, populate, lock and unmap one for each life took
    /// longer than the life.
    static ARENAS: RefCell<Vec<Arena>> = const { RefCell::new(Vec::new()) };
}

/// An arena that is used again when its disk is gone.
struct Lent(Option<Arena>);

impl Lent {
    /// One of zeros, as a new one is.
    fn new(bytes: usize) -> Lent {
        let bytes = bytes.next_multiple_of(4096);
        let used = ARENAS.with_borrow_mut(|arenas| {
            let i = arenas.iter().position(|arena| arena.bytes() == bytes)?;
            Some(arenas.swap_remove(i))
        });
        let zeros = |mut arena: Arena| {
            arena.slice_mut(Buf { offset: 0, bytes: bytes as u32 }).fill(0);
            arena
        };
        let arena = used.map_or_else(|| Arena::new(bytes).expect("memory for an arena"), zeros);
        Lent(Some(arena))
    }

    fn get(&self) -> &Arena {
        self.0.as_ref().expect("it is given back when the disk goes")
    }

    fn get_mut(&mut self) -> &mut Arena {
        self.0.as_mut().expect("it is given back when the disk goes")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let arena = self.0.take();
        // At the end of the thread there is nobody to keep it.
        let _ = ARENAS.try_with(|arenas| arenas.borrow_mut().extend(arena));
    }
}

/// The disk.
pub struct SimDisk {
    arena: Lent,
    /// The files of the chain; leaf first.
    pub files: Vec<SimFile>,
    queue: Vec<(Tag, Op, usize)>,
    ready: Vec<(Tag, Result<u32, i32>)>,
    /// Chance.
    pub rng: Rng,
    /// What goes wrong.
    pub faults: Faults,
    /// Writes sit in a cache that a power cut empties.
    pub volatile: bool,
    depth: usize,
    /// Operations completed.
    pub completed: u64,
}

impl SimDisk {
    /// A disk with these files; `depth` operations fit.
    pub fn new(arena_bytes: usize, files: Vec<SimFile>, depth: usize, rng: Rng) -> SimDisk {
        SimDisk {
            arena: Lent::new(arena_bytes),
            files,
            queue: Vec::new(),
            ready: Vec::new(),
            rng,
            faults: Faults::default(),
            volatile: false,
            depth,
            completed: 0,
        }
    }

    /// Whether something is queued that can complete.
    pub fn busy(&self) -> bool {
        !self.queue.is_empty() || !self.ready.is_empty()
    }

    /// Whether something is queued that has not completed.
    pub fn busy_queue(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Completes one queued operation, chosen by chance.
    pub fn complete_one(&mut self) {
        if self.queue.is_empty() {
            return;
        }
        let mut i = self.rng.below(self.queue.len() as u64) as usize;
        for _ in 0..20 {
            if !self.faults.slow_reads || self.queue[i].1.kind != Kind::Read || self.rng.one_in(40)
            {
                break;
            }
            i = self.rng.below(self.queue.len() as u64) as usize;
        }
        let (tag, op, mark) = self.queue.swap_remove(i);
        let result = self.perform(&op, mark);
        self.completed += 1;
        self.ready.push((tag, result));
    }

    /// Completes the oldest queued operation of this kind; false if there is none.
    pub fn complete_first(&mut self, which: impl Fn(&Op) -> bool) -> bool {
        let Some(i) = self.queue.iter().position(|(_, op, _)| which(op)) else { return false };
        let (tag, op, mark) = self.queue.remove(i);
        let result = self.perform(&op, mark);
        self.ready.push((tag, result));
        true
    }

    /// The same, which lands and is answered with an error all the same.
    pub fn fail_first(&mut self, which: impl Fn(&Op) -> bool, errno: i32) -> bool {
        let Some(i) = self.queue.iter().position(|(_, op, _)| which(op)) else { return false };
        let (tag, op, mark) = self.queue.remove(i);
        self.perform(&op, mark).expect("it lands");
        self.ready.push((tag, Err(errno)));
        true
    }

    fn perform(&mut self, op: &Op, mark: usize) -> Result<u32, i32> {
        let faults = self.faults;
        if self.rng.one_in(faults.again) {
            return Err(libc::EAGAIN);
        }
        if self.rng.one_in(faults.eio) {
            self.partly(op);
            return Err(libc::EIO);
        }
        if op.kind == Kind::Read && faults.unreadable == Some(op.file.0) {
            return Err(libc::EIO);
        }
        let at = op.at as usize;
        let file = &mut self.files[usize::from(op.file.0)];
        if !accepted(file, op) {
            return Err(libc::EINVAL);
        }
        match op.kind {
            Kind::Read => {
                let at = at.min(file.bytes.len());
                let there = (file.bytes.len() - at).min(op.buf.bytes as usize);
                let n = cut_short(&mut self.rng, faults.short, there);
                let buf = op.buf.part(0, n as u32);
                self.arena.get_mut().slice_mut(buf).copy_from_slice(&file.bytes[at..at + n]);
                Ok(n as u32)
            }
            Kind::Write if !file.device && self.rng.one_in(faults.full) => {
                self.partly(op);
                Err(libc::ENOSPC)
            }
            Kind::Write => {
                let all = op.buf.bytes as usize;
                if file.device && at + all > file.bytes.len() {
                    return Err(libc::ENOSPC);
                }
                // A sector is written whole or not.
                let n = cut_short(&mut self.rng, faults.short, all);
                let n = n.next_multiple_of(file.unit).min(all);
                file.write(at, self.arena.get().slice(op.buf.part(0, n as u32)), self.volatile);
                Ok(n as u32)
            }
            Kind::Sync => {
                if !faults.lazy_flush {
                    file.flush(file.unflushed.before(mark));
                }
                Ok(0)
            }
            Kind::Grow { .. } if self.rng.one_in(faults.nospace) => Err(libc::ENOSPC),
            // Space is taken; the file is no longer.
            Kind::Grow { .. } => Ok(0),
            Kind::Zero { .. } if faults.no_zero => Err(libc::EOPNOTSUPP),
            Kind::Zero { bytes, .. } => {
                file.write(at, &vec![0; bytes as usize], self.volatile);
                Ok(0)
            }
            // A thin volume has no zeros without writing them, and takes discards.
            Kind::Discard { .. } if faults.no_zero && !file.device => Err(libc::EOPNOTSUPP),
            Kind::Discard { bytes } if faults.no_zero => {
                file.write(at, &vec![0; bytes as usize], self.volatile);
                Ok(0)
            }
            Kind::Discard { bytes } => {
                // A device may give anything back.
                let junk = if self.rng.one_in(2) { 0xdd } else { 0 };
                file.write(at, &vec![junk; bytes as usize], self.volatile);
                Ok(0)
            }
        }
    }

    /// What an operation that fails or is cut by a power loss leaves: some of its sectors.
    fn partly(&mut self, op: &Op) {
        let file = &mut self.files[usize::from(op.file.0)];
        let (zeros, all) = match op.kind {
            Kind::Write => (false, op.buf.bytes as usize),
            Kind::Zero { bytes, .. } | Kind::Discard { bytes } => (true, bytes as usize),
            Kind::Grow { .. } | Kind::Read | Kind::Sync => return,
        };
        let whole = self.rng.one_in(3);
        for (skip, len) in file.parts(op.at as usize, all) {
            let at = op.at as usize + skip;
            if (file.device && at + len > file.bytes.len()) || !(whole || self.rng.one_in(2)) {
                continue;
            }
            let data = if zeros {
                &vec![0; len][..]
            } else {
                self.arena.get().slice(op.buf.part(skip as u32, len as u32))
            };
            file.write(at, data, self.volatile);
        }
    }

    /// The process is killed: what is in flight lands whole, in parts or not; the disk's cache
    /// lives on.
    pub fn killed(mut self) -> Vec<SimFile> {
        for (_, op, _) in std::mem::take(&mut self.queue) {
            if self.rng.one_in(2) {
                self.partly(&op);
            }
        }
        self.files
    }

    /// Power goes: what is in flight lands whole, by sectors or not; what was not flushed may be
    /// lost.
    pub fn power_cut(mut self) -> (Vec<SimFile>, Rng) {
        for (_, op, _) in std::mem::take(&mut self.queue) {
            if self.rng.one_in(2) {
                self.partly(&op);
            }
        }
        for file in &mut self.files {
            file.power_cut(|_| self.rng.one_in(2));
        }
        (self.files, self.rng)
    }

    /// The process is killed: what is in flight lands whole, by sectors or not; the disk's cache
    /// lives on.
    pub fn kill(mut self) -> (Vec<SimFile>, Rng) {
        for (_, op, _) in std::mem::take(&mut self.queue) {
            if self.rng.one_in(2) {
                self.partly(&op);
            }
        }
        (self.files, self.rng)
    }

    /// The same, by rule: of what is in the cache only bytes that `kept` names get to the medium.
    pub fn power_cut_with(mut self, kept: impl Fn(usize) -> bool) -> Vec<SimFile> {
        self.files.iter_mut().for_each(|file| file.power_cut(&kept));
        self.files
    }
}

/// What the kernel accepts: whole sectors, in memory aligned to them; of a file any range to zero.
fn accepted(file: &SimFile, op: &Op) -> bool {
    let whole = |n: u64| n.is_multiple_of(file.unit as u64);
    match op.kind {
        Kind::Read | Kind::Write => {
            whole(op.at) && whole(op.buf.bytes.into()) && whole(op.buf.offset.into())
        }
        Kind::Zero { bytes, .. } | Kind::Discard { bytes } => {
            !file.device || (whole(op.at) && whole(bytes))
        }
        Kind::Sync | Kind::Grow { .. } => true,
    }
}

fn cut_short(rng: &mut Rng, chance: u64, bytes: usize) -> usize {
    if bytes > 512 && rng.one_in(chance) { 1 + rng.below(bytes as u64 - 1) as usize } else { bytes }
}

impl Disk for SimDisk {
    fn push(&mut self, tag: Tag, op: Op) {
        assert!(
            self.queue.len() + self.ready.len() < self.depth,
            "no more operations than promised"
        );
        let mark = self.files[usize::from(op.file.0)].unflushed.mark();
        self.queue.push((tag, op, mark));
    }
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn reap(&mut self) -> Option<(Tag, Result<u32, i32>)> {
        self.ready.pop()
    }
    fn arena(&mut self) -> &mut Arena {
        self.arena.get_mut()
    }
    fn arena_ref(&self) -> &Arena {
        self.arena.get()
    }
    fn set_files(&mut self, _: &[RawFd]) -> io::Result<()> {
        Ok(())
    }
    fn wake_fd(&self) -> RawFd {
        -1
    }
    fn name(&self) -> &'static str {
        "sim"
    }
}
