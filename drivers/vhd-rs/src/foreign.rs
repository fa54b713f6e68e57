//! What a file is that has no footer of a VHD: other formats and archives are told by their first
//! bytes.
//!
//! Only the words for people depend on this, nothing is opened by it: a guest may write such bytes,
//! too.
use crate::error::VhdError;
use image::Storage;
use std::path::Path;

const CONVERT: &str = "convert it with qemu-img convert -O vpc -o force_size=on";
const UNPACK: &str = "unpack it first";
const RAW: &str = "serve it as aio:, or restore the image from a backup if it was a fixed VHD";
const AGAIN: &str = "get the image again: this is what came instead of it";

/// Bytes that tell a format, and where they are.
struct Mark {
    at: u64,
    bytes: &'static [u8],
    what: &'static str,
    remedy: &'static str,
}

const fn mark(at: u64, bytes: &'static [u8], what: &'static str, remedy: &'static str) -> Mark {
    Mark { at, bytes, what, remedy }
}

/// The surest first: a boot sector may lie in front of anything.
const MARKS: &[Mark] = &[
    mark(0, b"vhdxfile", "a VHDX image", CONVERT),
    mark(0, b"QFI\xfb\0\0\0\x01", "a qcow image", CONVERT),
    mark(0, b"QFI\xfb", "a qcow2 image", CONVERT),
    mark(0, b"QED\0", "a QED image", CONVERT),
    mark(0, b"KDMV", "a VMDK image", CONVERT),
    mark(0, b"COWD", "a VMDK image", CONVERT),
    mark(0, b"# Disk DescriptorFile", "the description of a VMDK image", CONVERT),
    mark(64, b"\x7f\x10\xda\xbe", "a VDI image", CONVERT),
    mark(0, b"WithoutFreeSpace", "a Parallels image", CONVERT),
    mark(0, b"WithouFreSpacExt", "a Parallels image", CONVERT),
    mark(0, b"\x1f\x8b", "compressed by gzip", UNPACK),
    mark(0, b"BZh", "compressed by bzip2", UNPACK),
    mark(0, b"\xfd7zXZ\0", "compressed by xz", UNPACK),
    mark(0, b"\x28\xb5\x2f\xfd", "compressed by zstd", UNPACK),
    mark(0, b"\x04\x22\x4d\x18", "compressed by lz4", UNPACK),
    mark(0, b"PK\x03\x04", "a zip archive", UNPACK),
    mark(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", UNPACK),
    mark(257, b"ustar", "a tar archive (an XVA export is one, too)", UNPACK),
    mark(0, b"LUKS\xba\xbe", "a LUKS volume", "open it with cryptsetup, and serve that as aio:"),
    mark(32769, b"CD001", "an ISO 9660 image", "serve it as aio:"),
    mark(512, b"LABELONE", "a physical volume of LVM", "name a logical volume on it"),
    mark(0, b"<!", "a web page", AGAIN),
    mark(0, b"<?xml", "an XML text", AGAIN),
    mark(0, b"<html", "a web page", AGAIN),
    mark(0, b"<HTML", "a web page", AGAIN),
    mark(512, b"EFI PART", "a raw disk with a partition table", RAW),
    mark(510, b"\x55\xaa", "a raw disk with a boot sector", RAW),
];

/// The error that names another format, if this is one that is known.
pub(crate) fn named(storage: &dyn Storage, name: &Path) -> Option<VhdError> {
    let there = |mark: &&Mark| {
        let mut bytes = vec![0; mark.bytes.len()];
        storage.read_exact_at(mark.at, &mut bytes).is_ok() && bytes == mark.bytes
    };
    let Mark { what, remedy, .. } = MARKS.iter().find(there)?;
    Some(VhdError::Foreign { name: name.into(), what, remedy })
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::MemStorage;

    fn text(at: usize, bytes: &[u8]) -> Option<String> {
        let mut all = vec![0; at];
        all.extend_from_slice(bytes);
        named(&MemStorage::new(all, false), Path::new("x.vhd")).map(|e| e.to_string())
    }

    #[test]
    fn every_mark_tells_its_own_format_where_the_file_ends_with_it() {
        for mark in MARKS {
            let at = usize::try_from(mark.at).unwrap();
            let said = text(at, mark.bytes).unwrap();
            assert_eq!(said, format!("x.vhd is {}, not a VHD; {}", mark.what, mark.remedy));
        }
    }

    #[test]
    fn what_nobody_knows_has_no_name() {
        for bytes in [&b""[..], b"hello\n", b"BZ", b"conectix"] {
            assert_eq!(text(0, bytes), None, "{bytes:?}");
        }
    }
}
