//! Whether a program file asks the linker to bind all functions before it starts (ELF, 64 bits).

const PT_DYNAMIC: u32 = 2;
const DT_NULL: u64 = 0;
const DT_BIND_NOW: u64 = 24;
const DT_FLAGS: u64 = 30;
const DT_FLAGS_1: u64 = 0x6fff_fffb;
const DF_BIND_NOW: u64 = 8;
const DF_1_NOW: u64 = 1;

/// `None` for what is no such file. A program without a dynamic part has nothing to bind.
pub fn binds_at_start(file: &[u8]) -> Option<bool> {
    // Magic, 64 bits, little-endian.
    if file.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(u64_at(file, 32)?).ok()?;
    let (bytes, count) = (u16_at(file, 54)?, u16_at(file, 56)?);
    let header = |i: u16| table.checked_add(usize::from(i) * usize::from(bytes));
    for at in (0..count).map(header) {
        let at = at?;
        if u32_at(file, at)? == PT_DYNAMIC {
            let start = usize::try_from(u64_at(file, at.checked_add(8)?)?).ok()?;
            let length = usize::try_from(u64_at(file, at.checked_add(32)?)?).ok()?;
            return Some(has_now(file.get(start..start.checked_add(length)?)?));
        }
    }
    Some(true)
}

fn has_now(dynamic: &[u8]) -> bool {
    let words = dynamic.chunks_exact(16).filter_map(|e| Some((u64_at(e, 0)?, u64_at(e, 8)?)));
    words.take_while(|(tag, _)| *tag != DT_NULL).any(|(tag, value)| match tag {
        DT_BIND_NOW => true,
        DT_FLAGS => value & DF_BIND_NOW != 0,
        DT_FLAGS_1 => value & DF_1_NOW != 0,
        _ => false,
    })
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one program header and these dynamic entries.
    fn program(kind: u32, entries: &[(u64, u64)]) -> Vec<u8> {
        let mut file = vec![0; 64 + 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32..40].copy_from_slice(&64u64.to_le_bytes());
        file[54..56].copy_from_slice(&56u16.to_le_bytes());
        file[56..58].copy_from_slice(&1u16.to_le_bytes());
        file[64..68].copy_from_slice(&kind.to_le_bytes());
        file[72..80].copy_from_slice(&120u64.to_le_bytes());
        file[96..104].copy_from_slice(&(entries.len() as u64 * 16).to_le_bytes());
        entries.iter().for_each(|(tag, value)| {
            file.extend(tag.to_le_bytes());
            file.extend(value.to_le_bytes());
        });
        file
    }

    #[test]
    fn the_flags_of_the_linker_are_found() {
        let dynamic = |entries: &[(u64, u64)]| binds_at_start(&program(PT_DYNAMIC, entries));
        assert_eq!(dynamic(&[(1, 1), (DT_FLAGS, 8), (0, 0)]), Some(true));
        assert_eq!(dynamic(&[(DT_FLAGS_1, 0x0800_0001)]), Some(true));
        assert_eq!(dynamic(&[(DT_BIND_NOW, 0)]), Some(true));
        assert_eq!(dynamic(&[(DT_FLAGS, 4), (0, 0), (DT_BIND_NOW, 0)]), Some(false));
        assert_eq!(binds_at_start(&program(1, &[])), Some(true), "static");
    }

    #[test]
    fn what_is_no_program_or_is_cut_short_is_unknown() {
        let whole = program(PT_DYNAMIC, &[(DT_BIND_NOW, 0)]);
        for length in [0, 5, 40, 70, 100, 130] {
            assert_eq!(binds_at_start(&whole[..length]), None, "{length} bytes");
        }
        assert_eq!(binds_at_start(b"#!/bin/sh\n"), None);
    }
}
