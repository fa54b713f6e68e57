//! Memory for keys: pages of their own that are locked, in no core, and wiped before they are given
//! back (docs/security.md).
//!
//! What works with a key leaves pieces of it in its stack frames: [`on_clean_stack`] wipes those.
#![allow(unsafe_code)]
use std::fmt;
use std::hint::black_box;
use std::io::{self, Read};
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

const PAGE_BYTES: usize = 4096;
/// More than anything that works with a key takes.
const STACK_BYTES: usize = 16 << 10;

/// Private pages. A process that gets none ends, as it does where the allocator gets none.
fn pages(bytes: usize) -> MmapMut {
    let map = MmapMut::map_anon(bytes.max(1)).expect("memory for a page");
    // Of an ordinary user with a small RLIMIT_MEMLOCK it may be swapped out.
    let _ = map.lock();
    for advice in [Advice::DontDump, Advice::DontFork] {
        map.advise(advice).expect("what every Linux since 3.4 takes");
    }
    map
}

fn wipe(map: &mut MmapMut) {
    map.fill(0);
    black_box(&mut map[..]);
}

/// Secret bytes. They are never shown.
pub struct Bytes {
    map: MmapMut,
    len: usize,
}

impl Bytes {
    /// A copy. What was copied is the caller's to wipe.
    pub fn copy_of(bytes: &[u8]) -> Bytes {
        let mut map = pages(bytes.len());
        map[..bytes.len()].copy_from_slice(bytes);
        Bytes { map, len: bytes.len() }
    }

    /// What can be read, `max` bytes at most. A buffer of the reader's own would keep a copy.
    ///
    /// # Errors
    /// Those of reading.
    pub fn read(from: &mut impl Read, max: usize) -> io::Result<Bytes> {
        let mut bytes = Bytes { map: pages(max), len: 0 };
        while bytes.len < max {
            match from.read(&mut bytes.map[bytes.len..max]) {
                Ok(0) => break,
                Ok(n) => bytes.len += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map[..self.len]
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Bytes) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Bytes {}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} secret bytes", self.len)
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        wipe(&mut self.map);
    }
}

/// A secret value, such as the round keys of a cipher.
pub struct Secret<T> {
    map: MmapMut,
    value: PhantomData<T>,
}

impl<T> Secret<T> {
    /// Keeps what `make` gives. The stack that it was made on is wiped.
    pub fn new(make: impl FnOnce() -> T) -> Secret<T> {
        const { assert!(align_of::<T>() <= PAGE_BYTES) };
        let mut map = pages(size_of::<T>());
        let to = map.as_mut_ptr().cast::<T>();
        // SAFETY: the mapping is as long as a T and begins at a page, which is aligned enough
        // (checked above); nothing is in it yet, and `drop` ends the value once.
        on_clean_stack(|| unsafe { to.write(make()) });
        Secret { map, value: PhantomData }
    }
}

impl<T> Deref for Secret<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `new` wrote a T there, which lives until `drop`; `&self` keeps changes away.
        unsafe { &*self.map.as_ptr().cast() }
    }
}

impl<T> DerefMut for Secret<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as of `deref`; `&mut self` keeps every other reference away.
        unsafe { &mut *self.map.as_mut_ptr().cast() }
    }
}

impl<T> Drop for Secret<T> {
    fn drop(&mut self) {
        // SAFETY: the value that `new` wrote, ended once; nobody can name it any more.
        unsafe { self.map.as_mut_ptr().cast::<T>().drop_in_place() };
        wipe(&mut self.map);
    }
}

/// Does something with a key, and wipes the stack that it took.
pub fn on_clean_stack<T>(act: impl FnOnce() -> T) -> T {
    let done = apart(act);
    wipe_stack();
    done
}

/// A frame of its own, so that it lies where `wipe_stack` has its array.
#[inline(never)]
fn apart<T>(act: impl FnOnce() -> T) -> T {
    act()
}

#[inline(never)]
fn wipe_stack() {
    let mut stack = [0u8; STACK_BYTES];
    black_box(&mut stack);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VmFlags of the mapping that an address lies in.
    fn flags(at: *const u8) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in smaps.lines() {
            let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
            let number = |text: &str| usize::from_str_radix(text, 16).ok();
            if let Some((from, to)) = range.and_then(|(a, b)| Some((number(a)?, number(b)?))) {
                inside = (from..to).contains(&(at as usize));
            }
            if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| inside) {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        panic!("no mapping there");
    }

    #[test]
    fn pages_of_keys_are_in_no_core_and_in_no_child() {
        let bytes = Bytes::copy_of(&[7; 64]);
        let secret = Secret::new(|| [7u8; 8192]);
        for at in [bytes.as_ptr(), secret.as_ptr()] {
            let flags = flags(at);
            let has = |flag: &str| flags.iter().any(|f| f == flag);
            assert!(has("dd") && has("dc"), "{flags:?}");
        }
        assert_eq!((&bytes[..], secret[8191]), (&[7; 64][..], 7));
        assert_eq!(format!("{bytes:?}"), "64 secret bytes");
    }

    #[test]
    fn so_many_bytes_are_read_and_no_more() {
        let mut from = std::io::repeat(1).take(70);
        assert_eq!(Bytes::read(&mut from, 65).unwrap().len(), 65);
        assert_eq!(Bytes::read(&mut from, 65).unwrap()[..], [1; 5]);
        assert_eq!(Bytes::copy_of(&[]).len(), 0);
    }

    #[test]
    fn a_secret_value_is_ended_once() {
        let ends = std::cell::Cell::new(0);
        struct Counted<'a>(&'a std::cell::Cell<u32>);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let mut secret = Secret::new(|| (Counted(&ends), 1));
        secret.1 = 2;
        assert_eq!((secret.1, ends.get()), (2, 0));
        drop(secret);
        assert_eq!(ends.get(), 1);
    }
}
