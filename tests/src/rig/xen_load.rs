//! What an honest front end asks of its disk, with the data checked: by hostile-front after each
//! scenario, and by xen-front for the layouts and sizes of rings that Linux's blkfront does not use
//! here.
use std::ops::Range;

use xen_sys::blkif::{Segment, op, status};

use super::xen_front::{Answer, Front, Granted};

/// What is asked lies below this sector.
pub const SECTORS: u64 = 256;

/// Grants `count` pages of a front end.
///
/// # Errors
/// The device's.
pub fn pages(front: &Front, count: usize, writable: bool) -> Result<Granted, String> {
    Granted::new(&front.device, count, writable).map_err(|e| format!("grant: {e}"))
}

/// Segments (page, first sector, last sector) as they lie in a request or in an indirect page.
pub fn segments(list: &[(u32, u8, u8)]) -> Vec<u8> {
    let bytes = |&(gref, first, last)| Segment { gref, first, last, pad: 0 }.to_bytes();
    list.iter().flat_map(bytes).collect()
}

/// Puts one entry and demands its answer's status.
///
/// # Errors
/// A sentence: another status, or no answer.
pub fn demand(front: &mut Front, entry: &[u8], what: &str, want: i16) -> Result<(), String> {
    front.put(entry);
    front.notify().map_err(|e| e.to_string())?;
    let Answer { id, operation, status } = front.answers(1)?[0];
    let sent = u64::from_le_bytes(entry[id_of(entry)].try_into().expect("eight bytes"));
    // An indirect request is answered as the operation inside it (Linux's blkfront takes nothing
    // else).
    let asked = if entry[0] == op::INDIRECT { entry[1] } else { entry[0] };
    if (id, operation) != (sent, asked) {
        return Err(format!(
            "{what}: the answer is for operation {operation} of {id:#x}, not {asked} of {sent:#x}"
        ));
    }
    if status != want {
        return Err(format!("{what}: status {status}, not {want}"));
    }
    Ok(())
}

/// Where the id lies depends on the layout, and that is told by the entry's length.
fn id_of(entry: &[u8]) -> Range<usize> {
    if entry.len() == 112 { 8..16 } else { 4..12 }
}

/// Bytes of a page that no other seed has.
fn pattern(seed: u32) -> Vec<u8> {
    (0..4096u32).map(|i| (i * 7 + seed + i / 512) as u8).collect()
}

/// Every operation that is offered, on the first [`SECTORS`] sectors.
///
/// # Errors
/// A sentence: what was refused, or read otherwise than it was written.
pub fn load(front: &mut Front, seed: u32) -> Result<(), String> {
    direct(front, seed)?;
    indirect(front, seed)?;
    let flush = front.entry(op::FLUSH_DISKCACHE, 0, 78, 0, &[]);
    demand(front, &flush, "flush", status::OKAY)?;
    let barrier = front.entry(op::WRITE_BARRIER, 0, 79, 0, &[]);
    demand(front, &barrier, "barrier", status::OKAY)?;
    discard(front, seed)
}

/// Writes a page, reads it back into another in two halves that are turned around.
fn direct(front: &mut Front, seed: u32) -> Result<(), String> {
    let (out, back) = (pages(front, 1, false)?, pages(front, 1, true)?);
    let bytes = pattern(seed);
    out.put(0, &bytes);
    // More requests than the ring has entries, so that indices and slots wrap.
    for i in 0..u64::from(front.entries()) + 3 {
        let write = front.entry(op::WRITE, 1, i << 32 | i, 16, &segments(&[(out.refs[0], 0, 7)]));
        demand(front, &write, "write", status::OKAY)?;
    }
    let halves = segments(&[(back.refs[0], 4, 7), (back.refs[0], 0, 3)]);
    let read = front.entry(op::READ, 2, 77, 16, &halves);
    demand(front, &read, "read", status::OKAY)?;
    let turned = [&bytes[2048..], &bytes[..2048]].concat();
    if back.get(0, 4096) != turned {
        return Err(format!("seed {seed}: other bytes came back"));
    }
    Ok(())
}

/// The same with more segments than fit into an entry.
fn indirect(front: &mut Front, seed: u32) -> Result<(), String> {
    const COUNT: usize = 24;
    let list = pages(front, 1, false)?;
    let (out, back) = (pages(front, 8, false)?, pages(front, 8, true)?);
    for page in 0..8 {
        out.put(page * 4096, &pattern(seed + 1 + page as u32));
    }
    // Thirds of eight pages.
    let thirds = |refs: &[u32]| -> Vec<u8> {
        let parts = [(0u8, 2u8), (3, 5), (6, 7)];
        segments(&Vec::from_iter((0..COUNT).map(|i| (refs[i / 3], parts[i % 3].0, parts[i % 3].1))))
    };
    for (operation, refs) in [(op::WRITE, &out.refs), (op::READ, &back.refs)] {
        list.put(0, &thirds(refs));
        let entry = front.indirect(operation, 80, 64, COUNT as u16, &list.refs);
        demand(front, &entry, "indirect request", status::OKAY)?;
    }
    if back.get(0, 8 * 4096) != out.get(0, 8 * 4096) {
        return Err(format!("seed {seed}: other bytes came back from indirect segments"));
    }
    Ok(())
}

/// A discarded page reads as zeros or as before; its neighbours stay.
fn discard(front: &mut Front, seed: u32) -> Result<(), String> {
    let entry = front.entry(op::DISCARD, 0, 81, 72, &8u64.to_le_bytes());
    demand(front, &entry, "discard", status::OKAY)?;
    let back = pages(front, 3, true)?;
    let list: Vec<_> = back.refs.iter().map(|gref| (*gref, 0, 7)).collect();
    let read = front.entry(op::READ, 3, 82, 64, &segments(&list));
    demand(front, &read, "read of a discarded page", status::OKAY)?;
    let [before, own, after] = [0, 1, 2].map(|page| back.get(page * 4096, 4096));
    let zeros = own.iter().all(|byte| *byte == 0);
    if before != pattern(seed + 1) || after != pattern(seed + 3) {
        return Err(format!("seed {seed}: discard changed what lies beside its range"));
    }
    if !zeros && own != pattern(seed + 2) {
        return Err(format!("seed {seed}: a discarded page is neither zeros nor as before"));
    }
    Ok(())
}
