//! Whether an image keeps its promises.
use std::collections::HashMap;

/// What is wrong with an image's counts, where nothing worse is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Marked for whoever writes it next.
    pub dirty: bool,
    /// Clusters that count more than there are references.
    pub leaks: u64,
    /// Those that count less.
    pub low: u64,
}

fn word(bytes: &[u8], at: u64) -> u64 {
    let at = usize::try_from(at).unwrap_or(usize::MAX);
    let bytes = bytes.get(at..at.saturating_add(8)).unwrap_or(&[0; 8]);
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

fn half(bytes: &[u8], at: usize) -> u64 {
    word(bytes, at as u64) >> 32
}

/// Where a reference comes from.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    references: u64,
    /// All of them are of packed data.
    packed: bool,
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// Looks at every reference and every count.
///
/// # Errors
/// A sentence about what is broken, beyond counts.
pub fn check(bytes: &[u8]) -> Result<Verdict, String> {
    let bits = half(bytes, 20) as u32;
    let cluster = 1u64 << bits;
    let version = half(bytes, 4);
    let features = if version == 3 { word(bytes, 72) } else { 0 };
    let order = if version == 3 { half(bytes, 96) as u32 } else { 4 };
    let extended = features & 16 != 0;
    let mut used: HashMap<u64, Used> = HashMap::new();
    let mut refer = |what: &str, byte: u64, packed: bool| {
        let host = byte / cluster;
        if !packed && !byte.is_multiple_of(cluster) {
            return Err(format!("{what} points at byte {byte}"));
        }
        let one = used.entry(host).or_insert(Used { packed: true, references: 0 });
        *one = Used { references: one.references + 1, packed: one.packed && packed };
        match one.references > 1 && !one.packed {
            true => Err(format!("{what} shares cluster {host}")),
            false => Ok(()),
        }
    };
    refer("the header", 0, false)?;
    let (table, clusters) = (word(bytes, 48), half(bytes, 56));
    (0..clusters).try_for_each(|i| refer("the table", table + i * cluster, false))?;
    let blocks: Vec<u64> =
        (0..clusters * cluster / 8).map(|i| word(bytes, table + i * 8)).collect();
    let present = blocks.iter().filter(|block| **block != 0);
    present.clone().try_for_each(|block| refer("the table", *block, false))?;
    let (l1, entries) = (word(bytes, 40), half(bytes, 36));
    let l1_clusters = (entries * 8).div_ceil(cluster);
    (0..l1_clusters).try_for_each(|i| refer("the L1", l1 + i * cluster, false))?;
    let stride = if extended { 16 } else { 8 };
    for i in 0..entries {
        let table = word(bytes, l1 + i * 8);
        if table == 0 {
            continue;
        }
        if table & 1 << 63 == 0 {
            return Err(format!("L1 entry {i} is not COPIED"));
        }
        refer("the L1", table & OFFSET, false)?;
        for j in 0..cluster / stride {
            let at = (table & OFFSET) + j * stride;
            let (entry, parts) = (word(bytes, at), word(bytes, at + 8));
            let host = entry & OFFSET;
            if extended && parts & (parts >> 32) & 0xffff_ffff != 0 {
                return Err(format!("entry {j} of table {i} has parts of two kinds: {parts:#x}"));
            }
            if entry & 1 << 62 != 0 {
                let shift = 62 - (bits - 8);
                let at = entry & ((1 << shift) - 1);
                let more = (entry & !(1 << 62)) >> shift;
                let last = (at / 512 * 512 + (more + 1) * 512 - 1) / cluster;
                (at / cluster..=last)
                    .try_for_each(|host| refer("packed data", host * cluster, true))?;
            } else if host != 0 {
                if entry & 1 << 63 == 0 {
                    return Err(format!("entry {j} of table {i} is not COPIED"));
                }
                refer("an L2 table", host, false)?;
            } else if extended && parts & 0xffff_ffff != 0 {
                return Err(format!("entry {j} of table {i} has parts and no cluster"));
            }
        }
    }
    counts(bytes, (cluster, order), (&blocks, &used))
        .map(|verdict| Verdict { dirty: features & 1 != 0, ..verdict })
}

fn counts(
    bytes: &[u8],
    (cluster, order): (u64, u32),
    (blocks, used): (&[u64], &HashMap<u64, Used>),
) -> Result<Verdict, String> {
    let per_block = (cluster * 8) >> order;
    let width = 1u64 << order;
    let mut verdict = Verdict::default();
    let end = blocks.iter().rposition(|block| *block != 0).map_or(0, |i| i as u64 + 1) * per_block;
    let last = used.keys().max().map_or(0, |host| host + 1);
    for host in 0..end.max(last) {
        let used = used.get(&host).copied().unwrap_or_default();
        let block = blocks.get((host / per_block) as usize).copied().unwrap_or(0);
        if block == 0 {
            if used.references > 0 {
                return Err(format!("cluster {host} has no count block"));
            }
            continue;
        }
        let bit = (host % per_block) << order;
        let at = block + bit / 64 * 8;
        let low = match order {
            // From the least significant bit of its byte on.
            0..=2 => 56 - bit % 64 / 8 * 8 + bit % 8,
            _ => 64 - bit % 64 - width,
        };
        let counted = word(bytes, at) >> low & (u64::MAX >> (64 - width));
        verdict.leaks += u64::from(counted > used.references);
        verdict.low += u64::from(counted < used.references);
    }
    Ok(verdict)
}
