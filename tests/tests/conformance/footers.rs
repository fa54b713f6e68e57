//! Damaged footers and headers: group D, and I35. What can be recovered is served, the rest is
//! refused with a sentence that names the file and the field.
use std::fs;

use tests::both_engines;
use tests::rig::vhdgen::{Gen, poke_footer, poke_footers, poke_header};
use tests::rig::{MIB, Rig, files};

use super::refused::refused;

/// An image with a sector and a full block, as `x.vhd`; its trailing footer.
fn image(rig: &Rig) -> (std::path::PathBuf, u64) {
    let path = rig.path("x.vhd");
    Gen::new(10 * MIB).sectors(0, &[(0, 0x11)]).full(2, 0x5a).write(&path);
    let end = files::size(&path) - 512;
    (path, end)
}

/// Serves `x.vhd`, reads what `image` has put there, writes a sector, and checks the image
/// afterwards.
#[track_caller]
fn is_served(rig: &Rig) {
    let before = fs::read(rig.path("x.vhd")).unwrap();
    let served = rig.serve(&rig.name("vhd", "x.vhd"), &["-R"]);
    let mut disk = served.client();
    assert_eq!(disk.size, 10 * MIB);
    disk.expect(0, 512, 0x11);
    disk.expect(512, 4 * MIB - 512, 0);
    disk.expect(4 * MIB, 2 * MIB, 0x5a);
    served.destroy();
    assert!(fs::read(rig.path("x.vhd")).unwrap() == before, "read-only changes nothing");
    let served = rig.serve(&rig.name("vhd", "x.vhd"), &[]);
    served.client().fill(512, 512, 0x12).unwrap();
    served.destroy();
    let served = rig.serve(&rig.name("vhd", "x.vhd"), &["-R"]);
    served.client().expect(0, 512, 0x11);
    served.client().expect(512, 512, 0x12);
    served.destroy();
}

both_engines! {
    /// D01: an orderly close of a writable open puts the footer back, byte for byte.
    fn a_zeroed_trailing_footer(rig) {
        let (path, end) = image(rig);
        files::poke(&path, end, &[0; 512]);
        is_served(rig);
        rig.vhd_util(&["check", "-n", "x.vhd"]).ok().says("x.vhd is valid");
        assert_eq!(files::bytes_at(&path, 0, 512), files::bytes_at(&path, end, 512));
    }

    /// D02: the mark of an active writer.
    fn a_footer_that_an_active_writer_has_marked(rig) {
        let (path, end) = image(rig);
        files::poke(&path, end, &[0xc7; 512]);
        is_served(rig);
        rig.vhd_util(&["check", "-n", "x.vhd"]).ok().says("x.vhd is valid");
    }

    /// D04: no guesses.
    fn both_footers_lost(rig) {
        let (path, end) = image(rig);
        files::poke(&path, 0, &[0; 512]);
        files::poke(&path, end, &[0; 512]);
        refused(rig, &rig.name("vhd", "x.vhd"), 22, &["x.vhd", "footer"]);
    }

    /// D05.
    fn a_trailing_footer_with_a_wrong_checksum(rig) {
        let (path, end) = image(rig);
        files::poke(&path, end + 64, &[0; 4]);
        is_served(rig);
        rig.vhd_util(&["check", "-n", "x.vhd"]).ok().says("x.vhd is valid");
    }

    /// D07: images of old Microsoft programs end one byte early.
    fn a_footer_of_511_bytes(rig) {
        let (path, end) = image(rig);
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(end + 511).unwrap();
        is_served(rig);
        rig.vhd_util(&["check", "-n", "x.vhd"]).ok();
    }

    /// D08: valid footers that differ: the trailing one is the image's.
    fn footers_that_differ(rig) {
        let (path, end) = image(rig);
        poke_footer(&path, end, 85, &[1]);
        is_served(rig);
    }

    /// D10, D11: the header.
    fn a_damaged_header(rig) {
        for (field, bytes, word) in [
            (0, &b"XXXXXXXX"[..], "cookie"),
            (24, &[0, 2, 0, 0], "version"),
            (32, &[0, 0x20, 0, 1], "block"),
            (32, &[0, 0, 0, 0], "block"),
            (32, &[0xff, 0xff, 0xfe, 0], "block"),
        ] {
            let (path, _) = image(rig);
            poke_header(&path, field, bytes);
            refused(rig, &rig.name("vhd", "x.vhd"), 22, &["x.vhd", word]);
        }
        let (path, _) = image(rig);
        files::poke(&path, 512 + 36, &[1, 2, 3, 4]);
        refused(rig, &rig.name("vhd", "x.vhd"), 22, &["x.vhd", "checksum"]);
    }

    /// D13.
    fn a_bat_that_is_not_on_a_sector(rig) {
        let (path, _) = image(rig);
        poke_header(&path, 16, &1540u64.to_be_bytes());
        refused(rig, &rig.name("vhd", "x.vhd"), 22, &["x.vhd", "1540"]);
    }

    /// A BAT that lies beyond the end of the file, or at the end of all offsets.
    fn a_bat_outside_the_file(rig) {
        for at in [1u64 << 40, u64::MAX - 511, 0] {
            let (path, _) = image(rig);
            poke_header(&path, 16, &at.to_be_bytes());
            let outcome = rig.try_serve(&rig.name("vhd", "x.vhd"), &[]);
            let refused = outcome.err().unwrap_or_else(|| panic!("BAT at {at:#x} is accepted"));
            assert!([5, 22].contains(&refused.code), "{refused:?}");
            assert!(rig.log().contains("x.vhd"), "{}", rig.log());
            rig.assert_nothing_left();
        }
    }

    /// D14.
    fn a_bat_smaller_than_the_disk(rig) {
        let (path, _) = image(rig);
        poke_header(&path, 28, &3u32.to_be_bytes());
        refused(rig, &rig.name("vhd", "x.vhd"), 22, &["x.vhd", "3"]);
    }

    /// A BAT of 16 GiB, in an image of some MiB.
    fn a_bat_too_large_for_memory(rig) {
        let (path, _) = image(rig);
        poke_header(&path, 28, &u32::MAX.to_be_bytes());
        match rig.try_serve(&rig.name("vhd", "x.vhd"), &["-R"]) {
            // Only the entries for the disk count.
            Ok(served) => {
                served.client().expect(4 * MIB, 2 * MIB, 0x5a);
                served.destroy();
            }
            Err(refused) => assert!([5, 12, 22].contains(&refused.code), "{refused:?}"),
        }
    }

    /// D17: a time in the future matters to nobody who reads or writes.
    fn a_time_in_the_future(rig) {
        let (path, _) = image(rig);
        poke_footers(&path, 24, &[0xff, 0, 0, 0]);
        is_served(rig);
    }

    /// D19: newer and ancient creators are not opened for I/O.
    fn other_versions_of_the_creator(rig) {
        for version in [0x0001_0004u32, 0x0000_0001] {
            let (path, _) = image(rig);
            poke_footers(&path, 32, &version.to_be_bytes());
            refused(rig, &rig.name("vhd", "x.vhd"), 22, &["x.vhd", "version"]);
        }
        let (path, _) = image(rig);
        poke_footers(&path, 32, &0x0001_0001u32.to_be_bytes());
        let served = rig.serve(&rig.name("vhd", "x.vhd"), &["-R"]);
        served.client().expect(4 * MIB, 2 * MIB, 0x5a);
        served.destroy();
    }

    /// D22: tap 1.1 set the hidden flag without a new checksum.
    fn a_hidden_flag_without_a_checksum(rig) {
        let path = rig.path("x.vhd");
        let mut old = Gen::new(10 * MIB).sectors(0, &[(0, 0x11)]).full(2, 0x5a);
        (old.creator.1, old.batmap) = (0x0001_0001, false);
        old.write(&path);
        for at in [0, files::size(&path) - 512] {
            files::poke(&path, at + 85, &[1]);
        }
        let served = rig.serve(&rig.name("vhd", "x.vhd"), &["-R"]);
        served.client().expect(4 * MIB, 2 * MIB, 0x5a);
        served.destroy();
    }

    /// D23: better than the original, which refuses it.
    fn an_image_of_tap_without_a_batmap(rig) {
        let mut image = Gen::new(10 * MIB).sectors(0, &[(0, 0x11)]).full(2, 0x5a);
        image.batmap = false;
        image.write(&rig.path("x.vhd"));
        is_served(rig);
    }

    /// I35: a disabled image, or one whose resize was interrupted, is never opened for I/O.
    fn a_poisoned_image(rig) {
        let (path, _) = image(rig);
        poke_footers(&path, 0, b"v_poison");
        refused(rig, &rig.name("vhd", "x.vhd"), 22, &["x.vhd", "resize"]);
    }

    /// Footers whose disk type makes no sense here.
    fn unknown_disk_types(rig) {
        for kind in [0u32, 1, 5, 6, 7, u32::MAX] {
            let (path, _) = image(rig);
            poke_footers(&path, 60, &kind.to_be_bytes());
            refused(rig, &rig.name("vhd", "x.vhd"), 22, &["x.vhd", "type"]);
        }
    }

    /// Larger than 2040 GiB.
    fn a_disk_that_is_too_large(rig) {
        let (path, _) = image(rig);
        poke_footers(&path, 48, &(2_190_433_320_960u64 + 512).to_be_bytes());
        refused(rig, &rig.name("vhd", "x.vhd"), libc::EFBIG, &["x.vhd", "2040 GiB"]);
    }

    /// A file cut short at every place where something begins or ends.
    fn a_file_that_is_cut_short(rig) {
        let (path, end) = image(rig);
        let whole = fs::read(&path).unwrap();
        for length in [0, 1, 511, 512, 1023, 1024, 1535, 1536, 2047, 2048, 3000, 4096, end / 2] {
            fs::write(&path, &whole[..usize::try_from(length).unwrap()]).unwrap();
            for options in [&["-R"][..], &[]] {
                match rig.try_serve(&rig.name("vhd", "x.vhd"), options) {
                    // The copy of the footer, the header and the five entries of the BAT are whole.
                    // What is cut off is an error, never zeros.
                    Ok(served) => {
                        assert!(length >= 1536 + 20, "opened with {length} bytes");
                        let read = served.client().read(4 * MIB, 2 << 20);
                        assert!(read.is_err(), "{length}: cut off data are read");
                        served.destroy();
                    }
                    Err(refused) => {
                        assert!([5, 22, 32].contains(&refused.code), "{length}: {refused:?}");
                        assert!(fs::read(&path).unwrap() == whole[..length as usize]);
                    }
                }
                fs::write(&path, &whole[..usize::try_from(length).unwrap()]).unwrap();
            }
            rig.assert_nothing_left();
        }
    }
}
