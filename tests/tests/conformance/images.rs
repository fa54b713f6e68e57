//! Images of other hands: block sizes, creators, places of blocks.
use tests::both_engines;
use tests::rig::vhdgen::Gen;
use tests::rig::{MIB, Rig, files, qemu_img};

/// Writes here and there and demands that it is there after a reopen.
fn works(rig: &Rig, image: &Gen) {
    image.write(&rig.path("x.vhd"));
    let served = rig.serve(&rig.name("vhd", "x.vhd"), &[]);
    let mut disk = served.client();
    assert_eq!(disk.size, 10 * MIB);
    disk.expect(MIB, MIB, 0x5a);
    for (at, bytes, byte) in
        [(0, 512, 1), (MIB / 2 - 512, 1024, 2), (3 * MIB, 3 * MIB, 3), (10 * MIB - 512, 512, 4)]
    {
        disk.fill(at, bytes, byte).unwrap();
        disk.expect(at, bytes, byte);
    }
    served.destroy();
    let served = rig.serve(&rig.name("vhd", "x.vhd"), &["-R"]);
    let mut disk = served.client();
    disk.expect(0, 512, 1);
    disk.expect(512, MIB / 2 - 1024, 0);
    disk.expect(MIB / 2 - 512, 1024, 2);
    disk.expect(MIB / 2 + 512, MIB / 2 - 512, 0);
    disk.expect(MIB, MIB, 0x5a);
    disk.expect(3 * MIB, 3 * MIB, 3);
    disk.expect(6 * MIB, 4 * MIB - 512, 0);
    disk.expect(10 * MIB - 512, 512, 4);
    served.destroy();
    rig.vhd_util(&["check", "-n", "x.vhd"]).ok().says("x.vhd is valid");
}

both_engines! {
    /// Hyper-V made blocks of 512 KiB.
    fn blocks_of_half_a_mib(rig) {
        let mut image = Gen::new(10 * MIB).foreign(b"win ").full(2, 0x5a).full(3, 0x5a);
        image.block_bytes = 512 << 10;
        works(rig, &image);
    }

    /// The smallest sensible block, a page of data, and blocks larger than the usual.
    fn blocks_of_other_sizes(rig) {
        for block_bytes in [4096u64, 64 << 10, 1 << 20] {
            let mut image = Gen::new(10 * MIB).foreign(b"win ");
            image.block_bytes = block_bytes;
            for block in MIB / block_bytes..2 * MIB / block_bytes {
                image = image.full(u32::try_from(block).unwrap(), 0x5a);
            }
            match rig_can(rig, &image) {
                true => works(rig, &image),
                false => eprintln!("blocks of {block_bytes} bytes are refused"),
            }
        }
    }

    /// Without a trailing footer, as after a crash of the creator.
    fn no_trailing_footer(rig) {
        let sectors: Vec<(u32, u8)> = (2048..4096).map(|sector| (sector, 0x5a)).collect();
        let mut image = Gen::new(10 * MIB).sectors(0, &sectors);
        image.trailing = false;
        works(rig, &image);
    }

    /// A07: the size is the footer's, whoever made it.
    fn the_size_is_the_footers(rig) {
        for creator in [b"vpc ", b"win ", b"qemu", b"qem2", b"d2v ", b"vbox", b"caml", b"tap\0"] {
            let mut image = Gen::new(5 * MIB + 512);
            if creator != b"tap\0" {
                image = image.foreign(creator);
            }
            image.write(&rig.path("y.vhd"));
            let served = rig.serve(&rig.name("vhd", "y.vhd"), &[]);
            assert_eq!(served.client().size, 5 * MIB + 512, "{creator:?}");
            served.destroy();
        }
    }

    /// Blocks in any order, with gaps between them.
    fn blocks_in_any_order(rig) {
        let image = Gen::new(10 * MIB).full(4, 0x44).full(0, 0x40).full(2, 0x42);
        image.write(&rig.path("x.vhd"));
        let served = rig.serve(&rig.name("vhd", "x.vhd"), &[]);
        let mut disk = served.client();
        for (block, byte) in [(0, 0x40), (1, 0), (2, 0x42), (3, 0), (4, 0x44)] {
            disk.expect(block * 2 * MIB, 2 * MIB, byte);
        }
        disk.fill(2 * MIB, 2 * MIB, 0x41).unwrap();
        disk.expect(0, 2 * MIB, 0x40);
        disk.expect(2 * MIB, 2 * MIB, 0x41);
        served.destroy();
        rig.vhd_util(&["check", "-n", "x.vhd"]).ok();
    }

    /// A fixed image, read by qemu as it was written by us.
    fn a_fixed_image_of_ours_in_qemu(rig) {
        rig.vhd_util(&["create", "-n", "f.vhd", "-s", "4", "-r"]).ok();
        let served = rig.serve(&rig.name("vhd", "f.vhd"), &[]);
        served.client().fill(MIB, MIB, 0x77).unwrap();
        served.destroy();
        qemu_img(&rig.work(), &["convert", "-f", "vpc", "-O", "raw", "f.vhd", "f.raw"]);
        assert_eq!(files::size(&rig.path("f.raw")), 4 * MIB);
        assert_eq!(files::bytes_at(&rig.path("f.raw"), MIB, 1 << 20), vec![0x77; 1 << 20]);
    }
}

/// Whether an image is opened at all; a refusal must change nothing.
fn rig_can(rig: &Rig, image: &Gen) -> bool {
    image.write(&rig.path("x.vhd"));
    let before = std::fs::read(rig.path("x.vhd")).unwrap();
    match rig.try_serve(&rig.name("vhd", "x.vhd"), &["-R"]) {
        Ok(served) => {
            served.destroy();
            true
        }
        Err(refused) => {
            refused.exits(22);
            assert!(std::fs::read(rig.path("x.vhd")).unwrap() == before);
            rig.assert_nothing_left();
            false
        }
    }
}
