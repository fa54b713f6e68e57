//! Header extensions (spec/qcow2.md §2.1): type, length, data, padded to eight bytes, until one of
//! type 0 or the end of what may hold them. SM writes into them by itself (spec/qcow2.md §5.3), so
//! what does not fit ends them and is no error.

/// The format of the backing file.
pub const BACKING_FORMAT: u32 = 0xe279_2aca;
/// Names of feature bits.
pub const FEATURE_NAMES: u32 = 0x6803_f857;
/// The data file's name.
pub const DATA_FILE: u32 = 0x4441_5441;
/// Where persistent bitmaps are.
pub const BITMAPS: u32 = 0x2385_2875;
/// XCP-ng's: whether SM hides the image ("vate").
pub const HIDDEN: u32 = 0x7661_7465;
/// Bytes of a row of names.
const ROW: usize = 48;

/// The extensions in the bytes between header and backing name.
pub fn extensions(bytes: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (head, behind) = rest.split_at_checked(8)?;
        let word = |at: usize| u32::from_be_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let (kind, len) = (word(0), usize::try_from(word(4)).ok()?);
        let data = behind.get(..len).filter(|_| kind != 0)?;
        rest = behind.get(len.next_multiple_of(8)..).unwrap_or_default();
        Some((kind, data))
    })
}

/// The name that a table of names has for a bit; `class` is 0 for what must be understood.
pub fn name_of(table: &[u8], class: u8, bit: u8) -> Option<String> {
    let row = table.chunks_exact(ROW).find(|row| row[..2] == [class, bit])?;
    let name = row[2..].split(|byte| *byte == 0).next().unwrap_or_default();
    (!name.is_empty()).then(|| show::line(name).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_end_where_they_say_or_where_the_bytes_do() {
        let one = [&HIDDEN.to_be_bytes()[..], &[0, 0, 0, 3, 1, 2, 3, 0, 0, 0, 0, 0]].concat();
        let all: Vec<_> = extensions(&one).collect();
        assert_eq!(all, [(HIDDEN, &[1, 2, 3][..])]);
        let long = [&HIDDEN.to_be_bytes()[..], &[0xff; 12]].concat();
        assert_eq!(extensions(&long).count(), 0, "a length beyond the bytes");
        assert_eq!(extensions(&[0; 64]).count(), 0, "an end at once");
        assert_eq!(extensions(&[1; 7]).count(), 0);
    }

    #[test]
    fn bits_have_names() {
        let mut row = [0; ROW];
        row[..6].copy_from_slice(&[0, 17, b'c', b'o', b'w', b's']);
        assert_eq!(name_of(&row, 0, 17).as_deref(), Some("cows"));
        assert_eq!(name_of(&row, 1, 17), None);
        assert_eq!(name_of(&row[..40], 0, 17), None);
    }
}
