//! Damaged BATs, bitmaps and batmaps: group E, and I25. A sector that cannot be read is an error;
//! the rest of the disk goes on.
use tests::both_engines;
use tests::rig::vhdgen::Gen;
use tests::rig::{MIB, files};

/// Where entry `n` of the BAT is.
fn entry(n: u64) -> u64 {
    1536 + 4 * n
}

both_engines! {
    /// E01, I25: an error, neither zeros nor a crash; and no write goes there either.
    fn an_entry_beyond_the_end_of_the_file(rig) {
        let image = rig.path("x.vhd");
        Gen::new(10 * MIB).sectors(0, &[(0, 0x11)]).write(&image);
        files::poke(&image, entry(1), &(1u32 << 20).to_be_bytes());
        for options in [&["-R"][..], &[]] {
            let Ok(served) = rig.try_serve(&rig.name("vhd", "x.vhd"), options) else { continue };
            let mut disk = served.client();
            disk.expect(0, 512, 0x11);
            assert!(disk.read(2 * MIB, 512).is_err());
            if options.is_empty() {
                assert!(disk.fill(2 * MIB, 512, 1).is_err());
                disk.fill(512, 512, 0x12).unwrap();
            }
            disk.expect(0, 512, 0x11);
            disk.expect(4 * MIB, 6 * MIB, 0);
            // A request over good and bad ground fails; the connection goes on.
            assert!(disk.read(2 * MIB - 512, 1024).is_err());
            disk.expect(0, 512, 0x11);
            served.destroy();
        }
        assert!(files::size(&image) < 3 * MIB, "nothing was written far beyond the end");
        rig.assert_nothing_left();
    }

    /// E02: a block over the header would let a guest write the metadata.
    fn an_entry_inside_the_metadata(rig) {
        for place in [0u32, 1, 2, 3, 4] {
            let image = rig.path("x.vhd");
            Gen::new(10 * MIB).sectors(1, &[(0, 0x11)]).write(&image);
            files::poke(&image, entry(0), &place.to_be_bytes());
            let before = files::bytes_at(&image, 0, 3584);
            if let Ok(served) = rig.try_serve(&rig.name("vhd", "x.vhd"), &[]) {
                let mut disk = served.client();
                assert!(disk.read(0, 512).is_err(), "{place}");
                assert!(disk.fill(0, 512, 1).is_err(), "{place}");
                disk.expect(2 * MIB, 512, 0x11);
                served.destroy();
            }
            assert_eq!(before, files::bytes_at(&image, 0, 3584), "{place}");
            rig.assert_nothing_left();
        }
    }

    /// E04: of blocks that overlap none can be trusted, so both may read as errors, and no write
    /// goes there; the other blocks go on.
    fn blocks_that_overlap(rig) {
        let image = rig.path("x.vhd");
        let both = Gen::new(10 * MIB).full(0, 0x11).full(1, 0x12).full(2, 0x13);
        let layout = both.write(&image);
        let place = layout.blocks[0].1 + 8;
        files::poke(&image, entry(1), &place.to_be_bytes());
        if let Ok(served) = rig.try_serve(&rig.name("vhd", "x.vhd"), &[]) {
            let mut disk = served.client();
            disk.expect(4 * MIB, 2 * MIB, 0x13);
            if let Ok(first) = disk.read(0, 512) {
                assert_eq!(first, [0x11; 512]);
            }
            assert!(disk.fill(2 * MIB, 512, 0x22).is_err());
            disk.fill(4 * MIB, 512, 0x23).unwrap();
            disk.expect(4 * MIB, 512, 0x23);
            served.destroy();
        }
        assert_eq!(files::bytes_at(&image, layout.block(0) + 9 * 512, 512), [0x11; 512]);
        rig.assert_nothing_left();
    }

    /// E05: entries beyond the disk are not looked at.
    fn entries_beyond_the_disk(rig) {
        let image = rig.path("x.vhd");
        let mut larger = Gen::new(10 * MIB).sectors(0, &[(0, 0x11)]);
        larger.entries = Some(50);
        larger.write(&image);
        files::poke(&image, entry(20), &2u32.to_be_bytes());
        let served = rig.serve(&rig.name("vhd", "x.vhd"), &[]);
        let mut disk = served.client();
        assert_eq!(disk.size, 10 * MIB);
        disk.expect(0, 512, 0x11);
        disk.expect(512, 10 * MIB - 512, 0);
        disk.fill(8 * MIB, 2 * MIB, 0x12).unwrap();
        disk.expect(8 * MIB, 2 * MIB, 0x12);
        served.destroy();
        rig.vhd_util(&["check", "-n", "x.vhd"]).ok();
    }

    /// E07: see also I10 in `io`: the map itself, its header, and a header that points nowhere.
    fn batmaps_that_lie(rig) {
        let lies =
            [(512, &[0xff][..]), (24, &[0; 4]), (8, &[0xff; 8]), (16, &[0x7f; 4]), (0, b"x")];
        for (at, bytes) in lies {
            let image = rig.path("x.vhd");
            let layout = Gen::new(10 * MIB).sectors(0, &[(5, 0x11)]).full(2, 0x5a).write(&image);
            files::poke(&image, layout.batmap + at, bytes);
            let served = rig.serve(&rig.name("vhd", "x.vhd"), &[]);
            let mut disk = served.client();
            disk.expect(4 * MIB, 2 * MIB, 0x5a);
            disk.expect(0, 5 * 512, 0);
            disk.expect(5 * 512, 512, 0x11);
            disk.fill(6 * 512, 512, 0x12).unwrap();
            disk.expect(6 * 512, 512, 0x12);
            served.destroy();
            let served = rig.serve(&rig.name("vhd", "x.vhd"), &["-R"]);
            served.client().expect(5 * 512, 512, 0x11);
            served.client().expect(6 * 512, 512, 0x12);
            served.client().expect(4 * MIB, 2 * MIB, 0x5a);
            served.destroy();
        }
    }

    /// E08: every bit stands for a sector of 512 bytes, the most significant bit first.
    fn each_bit_is_a_sector(rig) {
        let image = rig.path("x.vhd");
        let odd: Vec<(u32, u8)> = (0..64).map(|n| (n * 2 + 1, 0x40 + n as u8)).collect();
        let layout = Gen::new(10 * MIB).sectors(0, &odd).write(&image);
        assert_eq!(files::bytes_at(&image, layout.block(0), 1), [0x55]);
        let served = rig.serve(&rig.name("vhd", "x.vhd"), &[]);
        let mut disk = served.client();
        let all = disk.read(0, 128 * 512).unwrap();
        for (sector, bytes) in all.chunks(512).enumerate() {
            let byte = if sector % 2 == 1 { 0x40 + sector as u8 / 2 } else { 0 };
            assert!(bytes.iter().all(|found| *found == byte), "sector {sector}");
        }
        disk.fill(8 * 512, 512, 0x99).unwrap();
        served.destroy();
        assert_eq!(files::bytes_at(&image, layout.block(0), 2), [0x55, 0xd5]);
    }

    /// E11: a batmap of which the original covers only a part by its checksum.
    fn a_batmap_just_over_a_sector(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "8194"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        disk.fill(8192 * MIB, 2 * MIB, 0x11).unwrap();
        disk.expect(8192 * MIB, 2 * MIB, 0x11);
        disk.expect(8190 * MIB, 2 * MIB, 0);
        served.destroy();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok().says("a.vhd is valid");
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &["-R"]);
        served.client().expect(8192 * MIB, 2 * MIB, 0x11);
    }

    /// A bitmap that says "all there" over a block that the file does not hold whole: an error, not
    /// zeros.
    fn a_block_that_is_cut_off(rig) {
        let image = rig.path("x.vhd");
        let layout = Gen::new(10 * MIB).full(0, 0x11).full(1, 0x12).write(&image);
        let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
        file.set_len(layout.block(1) + 512 + MIB).unwrap();
        if let Ok(served) = rig.try_serve(&rig.name("vhd", "x.vhd"), &["-R"]) {
            let mut disk = served.client();
            disk.expect(0, 2 * MIB, 0x11);
            assert!(disk.read(3 * MIB + 512, 512).is_err());
            disk.expect(0, 2 * MIB, 0x11);
            served.destroy();
        }
        // Opened for writing it grows to its whole length, and the log names what becomes zeros.
        rig.serve(&rig.name("vhd", "x.vhd"), &[]).destroy();
        assert!(rig.log().contains("sectors 6144 to 8191 of the disk are gone with the end"));
    }
}
