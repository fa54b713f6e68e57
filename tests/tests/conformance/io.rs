//! Reads and writes of single images: I01, I02, I10, I16, I17, I19, I20, I22, I26, I32, I34, I37.
use tests::both_engines;
use tests::rig::nbd::Verb;
use tests::rig::vhdgen::{Gen, fixed};
use tests::rig::{MIB, SECTOR, files, qemu_img, qemu_io};

/// EINVAL and ENOSPC, either of which answers a request beyond the end.
const BEYOND: [u32; 2] = [22, 28];

both_engines! {
    /// I01: bitmap in sector 7, data from sector 8, footer after 2 MiB; only the written sector's
    /// bit is set.
    fn one_sector_into_an_empty_image(rig) {
        let image = rig.path("a.vhd");
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        assert_eq!(disk.size, 10 * MIB);
        disk.fill(1536, 512, 0x11).unwrap();
        disk.expect(0, 1536, 0);
        disk.expect(1536, 512, 0x11);
        disk.expect(2048, 10 * MIB - 2048, 0);
        served.destroy();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok().says("a.vhd is valid");
        rig.vhd_util(&["read", "-n", "a.vhd", "-e", "0", "-c", "20480"]).ok().says("3 1");
        assert_eq!(files::size(&image), 2_101_760);
        assert_eq!(files::bytes_at(&image, 0, 512), files::bytes_at(&image, 2_101_248, 512));
        rig.assert_nothing_left();
    }

    /// I02.
    fn a_write_across_a_block_boundary(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        disk.fill(3 * MIB / 2, MIB, 0x22).unwrap();
        disk.expect(0, 3 * MIB / 2, 0);
        disk.expect(3 * MIB / 2, MIB, 0x22);
        disk.expect(5 * MIB / 2, 15 * MIB / 2, 0);
        served.destroy();
        rig.vhd_util(&["read", "-n", "a.vhd", "-e", "0", "-c", "20480"]).ok().says("3072 2048");
        rig.vhd_util(&["query", "-n", "a.vhd", "-a"]).ok().says("2");
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok();
    }

    /// I10: a batmap with a wrong checksum is distrusted, not fatal, also when the image is
    /// written.
    fn a_damaged_batmap_is_only_a_hint(rig) {
        let image = rig.path("x.vhd");
        let layout = Gen::new(10 * MIB).full(2, 0x5a).write(&image);
        files::poke(&image, layout.batmap + 512, &[0xff]);
        let served = rig.serve(&rig.name("vhd", "x.vhd"), &["-R"]);
        served.client().expect(4 * MIB, 2 * MIB, 0x5a);
        served.client().expect(0, 4 * MIB, 0);
        served.destroy();
        let served = rig.serve(&rig.name("vhd", "x.vhd"), &[]);
        served.client().fill(4 * MIB, 512, 0x66).unwrap();
        served.client().fill(0, 512, 0x67).unwrap();
        served.client().expect(4 * MIB + 512, 2 * MIB - 512, 0x5a);
        served.client().expect(512, 4 * MIB - 512, 0);
        served.destroy();
        rig.vhd_util(&["check", "-n", "x.vhd"]).ok();
    }

    /// I16.
    fn a_fixed_image(rig) {
        let image = rig.path("f.vhd");
        rig.vhd_util(&["create", "-n", "f.vhd", "-s", "4", "-r"]).ok();
        let served = rig.serve(&rig.name("vhd", "f.vhd"), &[]);
        let mut disk = served.client();
        assert_eq!(disk.size, 4 * MIB);
        disk.fill(0, 512, 0x11).unwrap();
        disk.fill(4_193_792, 512, 0x22).unwrap();
        disk.expect(512, 4_193_280, 0);
        served.destroy();
        assert_eq!(files::size(&image), 4_194_816);
        assert_eq!(files::bytes_at(&image, 4_194_304, 8), b"conectix");
        assert_eq!(files::bytes_at(&image, 4_193_792, 512), [0x22; 512]);
        rig.vhd_util(&["check", "-n", "f.vhd"]).ok();
    }

    /// A fixed image of another hand, that has no multiple of 2 MiB.
    fn a_fixed_image_of_any_size(rig) {
        let image = rig.path("f.vhd");
        fixed(5 * SECTOR).write(&image);
        let footer = files::bytes_at(&image, 5 * SECTOR, 512);
        let served = rig.serve(&rig.name("vhd", "f.vhd"), &[]);
        let mut disk = served.client();
        assert_eq!(disk.size, 5 * SECTOR);
        disk.fill(4 * SECTOR, 512, 0x33).unwrap();
        assert!(BEYOND.contains(&disk.fill(4 * SECTOR, 1024, 0x44).unwrap_err()));
        disk.expect(4 * SECTOR, 512, 0x33);
        served.destroy();
        assert_eq!(files::bytes_at(&image, 5 * SECTOR, 512), footer);
    }

    /// I17: sizes are served to the sector.
    fn a_raw_image(rig) {
        let image = rig.path("r.img");
        files::sparse(&image, 3_146_240);
        let served = rig.serve(&rig.name("aio", "r.img"), &[]);
        let mut disk = served.client();
        assert_eq!(disk.size, 3_146_240);
        disk.fill(512, 512, 0x11).unwrap();
        disk.fill(3_145_728, 512, 0x22).unwrap();
        disk.expect(0, 512, 0);
        disk.expect(3_145_728, 512, 0x22);
        assert!(BEYOND.contains(&disk.fill(3_145_728, 1024, 1).unwrap_err()));
        disk.expect(3_145_728, 512, 0x22);
        served.destroy();
        assert_eq!(files::size(&image), 3_146_240);
        assert_eq!(files::bytes_at(&image, 512, 512), [0x11; 512]);
    }

    /// I19: qemu places blocks right behind each other, so their data are on no page.
    fn blocks_that_qemu_placed(rig) {
        let image = rig.path("x.vhd");
        let name = image.display().to_string();
        Gen::new(10 * MIB).foreign(b"win ").write(&image);
        qemu_io("vpc", &name, &["write -P 0x66 0 2M", "write -P 0x67 2M 2M"]);
        let served = rig.serve(&rig.name("vhd", "x.vhd"), &[]);
        let mut disk = served.client();
        disk.expect(0, 2 * MIB, 0x66);
        disk.expect(2 * MIB, 2 * MIB, 0x67);
        disk.fill(2 * MIB, 512, 0x55).unwrap();
        disk.fill(4 * MIB, 2 * MIB, 0x55).unwrap();
        disk.expect(0, 2 * MIB, 0x66);
        disk.expect(2 * MIB, 512, 0x55);
        disk.expect(2 * MIB + 512, 2 * MIB - 512, 0x67);
        disk.expect(4 * MIB, 2 * MIB, 0x55);
        served.destroy();
        rig.vhd_util(&["check", "-n", "x.vhd"]).ok();
        let view = ["read -P 0x66 0 2M", "read -P 0x55 2M 512", "read -P 0x55 4M 2M"];
        qemu_io("vpc", &name, &view);
    }

    /// I20: what lies before a bitmap is padding only if the block is on a page.
    fn an_unaligned_block_of_the_original_leaves_its_neighbour_alone(rig) {
        let mut image = Gen::new(10 * MIB).full(0, 0x5a).full(1, 0x5a);
        image.aligned = false;
        let layout = image.write(&rig.path("x.vhd"));
        assert_ne!((layout.block(0) + 512) % 4096, 0);
        let served = rig.serve(&rig.name("vhd", "x.vhd"), &[]);
        let mut disk = served.client();
        disk.fill(2 * MIB, 512, 0x55).unwrap();
        disk.expect(0, 2 * MIB, 0x5a);
        disk.expect(2 * MIB, 512, 0x55);
        disk.expect(2 * MIB + 512, 2 * MIB - 512, 0x5a);
        served.destroy();
        rig.vhd_util(&["check", "-n", "x.vhd"]).ok();
    }

    /// I22: sixteen writes at once into one new block allocate it once; in the end it is full.
    fn many_writers_into_one_new_block(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        for i in 0..16u8 {
            let at = u64::from(i) * 131_072;
            disk.send(Verb::Write, 0, at, 131_072, &[i + 1; 131_072]);
        }
        for _ in 0..16 {
            assert_eq!(disk.receive().result, Ok(()));
        }
        for i in 0..16u8 {
            disk.expect(u64::from(i) * 131_072, 131_072, i + 1);
        }
        served.destroy();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok();
        rig.vhd_util(&["query", "-n", "a.vhd", "-a"]).ok().says("1");
        // The batmap says that block 0 is full.
        assert_eq!(files::bytes_at(&rig.path("a.vhd"), 2560, 1), [0x80]);
    }

    /// I26.
    fn the_last_sector_of_the_largest_image(rig) {
        const SIZE: u64 = 2_190_433_320_960;
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "2088960"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        assert_eq!(disk.size, SIZE);
        disk.fill(SIZE - 512, 512, 0x11).unwrap();
        disk.expect(SIZE - 512, 512, 0x11);
        disk.expect(SIZE - 1024, 512, 0);
        assert!(BEYOND.contains(&disk.read(SIZE, 512).unwrap_err()));
        served.destroy();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok();
        rig.vhd_util(&["read", "-n", "a.vhd", "-b", "1044479"]).ok().mentions("offset: ");
    }

    /// I32: a bad request is answered with an error and the connection goes on.
    fn requests_outside_the_disk(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        disk.fill(0, 1024, 0x11).unwrap();
        let end = 10 * MIB;
        for (at, bytes) in [(end, 512), (end - 512, 1024), (1 << 62, 512), (u64::MAX - 511, 512)] {
            assert_eq!(disk.read(at, bytes), Err(22), "{bytes} at {at}");
            let written = disk.fill(at, u64::from(bytes), 1).unwrap_err();
            assert!(BEYOND.contains(&written), "{bytes} at {at}: {written}");
            for verb in [Verb::Trim, Verb::Zero, Verb::BlockStatus, Verb::Cache] {
                let refused = disk.command(verb, 0, at, u64::from(bytes)).unwrap_err();
                assert!(BEYOND.contains(&refused), "{verb:?}: {bytes} at {at}: {refused}");
            }
        }
        disk.expect(0, 1024, 0x11);
        served.destroy();
    }

    /// I32: less than a sector is refused, or done exactly; never widened.
    fn requests_of_less_than_a_sector(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        assert_eq!(disk.block[0], 512, "the smallest request is told");
        disk.fill(0, 2048, 0x11).unwrap();
        for (at, bytes) in [(1, 512), (512, 1), (100, 100), (511, 2), (0, 513)] {
            if let Ok(data) = disk.read(at, bytes) {
                assert_eq!(data, vec![0x11; bytes as usize]);
            }
            let written = disk.fill(at, u64::from(bytes), 0x22).is_ok();
            let all = disk.read(0, 2048).unwrap();
            let range = at as usize..at as usize + bytes as usize;
            let changed = |i: usize| written && range.contains(&i);
            assert!((0..2048).all(|i| all[i] == if changed(i) { 0x22 } else { 0x11 }), "{range:?}");
            disk.fill(0, 2048, 0x11).unwrap();
        }
        served.destroy();
    }

    /// I34: a clear bit wins over what lies on the disk.
    fn stale_bytes_under_clear_bits_are_not_seen(rig) {
        let image = rig.path("x.vhd");
        let layout = Gen::new(10 * MIB).sectors(0, &[(0, 0x11), (5, 0x22)]).write(&image);
        files::poke(&image, layout.block(0) + 512 + 6 * 512, &[0x99; 1024]);
        let served = rig.serve(&rig.name("vhd", "x.vhd"), &[]);
        let mut disk = served.client();
        disk.expect(5 * 512, 512, 0x22);
        disk.expect(6 * 512, 1024, 0);
        disk.fill(7 * 512, 512, 0x33).unwrap();
        disk.expect(6 * 512, 512, 0);
        disk.expect(7 * 512, 512, 0x33);
        served.destroy();
    }

    /// I37: readers that ignore bitmaps see the same, because new blocks are clean.
    fn a_flat_image_reads_the_same_in_qemu(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "20"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        disk.fill(512, 512, 0x11).unwrap();
        disk.fill(3 * MIB, 3 * MIB, 0x12).unwrap();
        disk.fill(19 * MIB, MIB, 0x13).unwrap();
        let ours = disk.dump();
        served.destroy();
        qemu_img(&rig.work(), &["convert", "-f", "vpc", "-O", "raw", "a.vhd", "q.raw"]);
        assert!(std::fs::read(rig.path("q.raw")).unwrap() == ours);
    }
}
