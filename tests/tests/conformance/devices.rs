//! Small file systems and block devices, which only root can make: I23, I38, I41; sectors of 4096
//! bytes.
use std::fs;

use tests::both_engines;
use tests::rig::nbd::Verb;
use tests::rig::places::{LoopDevice, SmallFileSystem, root};
use tests::rig::{MIB, files};

/// ENOSPC
const NO_SPACE: u32 = 28;

both_engines! {
    /// I23: the request that finds no space fails, the others go on, the image stays whole.
    fn out_of_space(rig) {
        if !root("a small file system for a full disk") {
            return;
        }
        let small = SmallFileSystem::mount(&rig.path("m"), 6 * MIB);
        rig.vhd_util(&["create", "-n", "m/a.vhd", "-s", "100"]).ok();
        // What is never acknowledged need not wait for space for two minutes.
        let served = rig.serve(&rig.name("vhd", "m/a.vhd"), &["-t", "2"]);
        let mut disk = served.client();
        disk.fill(0, 2 * MIB, 0x11).unwrap();
        assert_eq!(disk.fill(20 * MIB, 8 * MIB, 0x22), Err(NO_SPACE));
        disk.expect(0, 2 * MIB, 0x11);
        disk.fill(0, 512, 0x12).unwrap();
        disk.expect(0, 512, 0x12);
        // Which of the failed request's blocks are there is open; each byte is old or new.
        let part = disk.read(20 * MIB, 8 << 20).unwrap();
        assert!(part.iter().all(|byte| [0, 0x22].contains(byte)));
        served.destroy();
        rig.vhd_util(&["check", "-n", "m/a.vhd", "-i"]).ok();
        drop(small);
        rig.assert_nothing_left();
    }

    /// Space that comes back is used: nothing stays broken after ENOSPC.
    fn space_that_comes_back(rig) {
        if !root("a small file system for a full disk") {
            return;
        }
        let _small = SmallFileSystem::mount(&rig.path("m"), 8 * MIB);
        fs::write(rig.path("m/ballast"), vec![1; 5 << 20]).unwrap();
        rig.vhd_util(&["create", "-n", "m/a.vhd", "-s", "20"]).ok();
        let served = rig.serve(&rig.name("vhd", "m/a.vhd"), &["-t", "2"]);
        let mut disk = served.client();
        assert_eq!(disk.fill(0, 4 * MIB, 0x22), Err(NO_SPACE));
        fs::remove_file(rig.path("m/ballast")).unwrap();
        disk.fill(4 * MIB, 2 * MIB, 0x33).unwrap();
        disk.expect(4 * MIB, 2 * MIB, 0x33);
        served.destroy();
        rig.vhd_util(&["check", "-n", "m/a.vhd"]).ok();
    }

    /// I38: the footer is in the last sector, and stale bytes under clear bits are not seen.
    fn a_vhd_on_a_block_device(rig) {
        if !root("a loop device with a VHD") {
            return;
        }
        let file = rig.path("lv.img");
        fs::write(&file, vec![0xee; 40 << 20]).unwrap();
        let device = LoopDevice::over(&file, 512);
        let (name, end) = (device.name(), 40 * MIB - 512);
        rig.vhd_util(&["create", "-n", &name, "-s", "10"]).ok();
        assert_eq!(files::bytes_at(device.path(), end, 8), b"conectix");
        rig.vhd_util(&["query", "-n", &name, "-vs"]).ok().says("10\n3584");
        let served = rig.serve(&format!("vhd:{name}"), &[]);
        let mut disk = served.client();
        disk.expect(0, 10 * MIB, 0);
        disk.fill(1536, 512, 0x11).unwrap();
        disk.expect(0, 1536, 0);
        disk.expect(1536, 512, 0x11);
        disk.expect(2048, 10 * MIB - 2048, 0);
        served.destroy();
        rig.vhd_util(&["check", "-n", &name]).ok();
        rig.vhd_util(&["query", "-n", &name, "-s"]).ok().says("2101760");
        let copy = files::bytes_at(device.path(), 0, 512);
        assert_eq!(copy, files::bytes_at(device.path(), end, 512));
        rig.vhd_util(&["read", "-n", &name, "-e", "0", "-c", "20480"]).ok().says("3 1");
        let sector = rig.vhd_util(&["read", "-n", &name, "-r", "4", "-c", "1"]).ok();
        assert_eq!(sector.bytes, [0; 512]);
    }

    /// I41: a block that would cover the footer is refused with ENOSPC.
    fn a_block_device_that_ends_with_the_last_block(rig) {
        if !root("a loop device that is too small for its VHD") {
            return;
        }
        let file = rig.path("lv.img");
        files::sparse(&file, 4_202_496);
        let device = LoopDevice::over(&file, 512);
        rig.vhd_util(&["create", "-n", &device.name(), "-s", "10"]).ok();
        let image = format!("vhd:{}", device.name());
        let served = rig.serve(&image, &["-t", "2"]);
        let mut disk = served.client();
        disk.fill(0, 2 * MIB, 0x11).unwrap();
        let second = disk.fill(2 * MIB, 2 * MIB, 0x22);
        assert_eq!(second, Err(NO_SPACE));
        disk.expect(0, 2 * MIB, 0x11);
        served.destroy();
        rig.vhd_util(&["check", "-n", &device.name()]).ok();
        let served = rig.serve(&image, &["-R"]);
        served.client().expect(0, 2 * MIB, 0x11);
        served.destroy();
    }

    /// A raw block device: size, trim, zero.
    fn a_raw_block_device(rig) {
        if !root("a loop device as raw disk") {
            return;
        }
        let file = rig.path("lv.img");
        fs::write(&file, vec![0xee; 8 << 20]).unwrap();
        let device = LoopDevice::over(&file, 512);
        let served = rig.serve(&format!("aio:{}", device.name()), &[]);
        let mut disk = served.client();
        assert_eq!((disk.size, disk.block[0]), (8 * MIB, 512));
        disk.fill(512, 512, 0x11).unwrap();
        let before = files::disk_usage(&file);
        disk.command(Verb::Trim, 0, 4 * MIB, 4 * MIB).unwrap();
        disk.command(Verb::Zero, 0, MIB, MIB).unwrap();
        disk.flush().unwrap();
        disk.expect(0, 512, 0xee);
        disk.expect(512, 512, 0x11);
        disk.expect(1024, MIB - 1024, 0xee);
        disk.expect(MIB, MIB, 0);
        disk.expect(2 * MIB, 2 * MIB, 0xee);
        served.destroy();
        assert!(files::disk_usage(&file) <= before - 4 * MIB, "BLKDISCARD gives space back");
        assert_eq!(files::bytes_at(&file, MIB, 512), [0; 512]);
    }

    /// A raw device with sectors of 4096 bytes: told to the client, smaller requests refused or
    /// exact.
    fn a_raw_4096_byte_sector_device(rig) {
        if !root("a loop device with sectors of 4096 bytes") {
            return;
        }
        let file = rig.path("lv.img");
        fs::write(&file, vec![0xee; 8 << 20]).unwrap();
        let device = LoopDevice::over(&file, 4096);
        let served = rig.serve(&format!("aio:{}", device.name()), &[]);
        let mut disk = served.client();
        assert_eq!((disk.size, disk.block[0]), (8 * MIB, 4096));
        disk.fill(4096, 4096, 0x11).unwrap();
        disk.fill(8 * MIB - 4096, 4096, 0x12).unwrap();
        disk.expect(4096, 4096, 0x11);
        let widened = disk.fill(512, 512, 0x13).is_ok();
        let first = disk.read(0, 4096).unwrap();
        let small = if widened { 0x13 } else { 0xee };
        assert!(first[..512] == [0xee; 512] && first[512..1024] == [small; 512]);
        assert!(first[1024..] == [0xee; 3072]);
        disk.command(Verb::Zero, 0, MIB, MIB).unwrap();
        disk.expect(MIB, MIB, 0);
        disk.flush().unwrap();
        served.destroy();
        assert_eq!(files::bytes_at(device.path(), 4096, 4096), [0x11; 4096]);
    }

    /// A VHD places bitmaps and footers in single sectors of 512 bytes, which such a device cannot
    /// write alone. The original refuses it.
    fn vhd_on_a_4096_byte_sector_device(rig) {
        if !root("a loop device with sectors of 4096 bytes") {
            return;
        }
        let file = rig.path("lv.img");
        files::sparse(&file, 40 * MIB);
        {
            let device = LoopDevice::over(&file, 512);
            rig.vhd_util(&["create", "-n", &device.name(), "-s", "10"]).ok();
        }
        let device = LoopDevice::over(&file, 4096);
        let image = format!("vhd:{}", device.name());
        let served = rig.serve(&image, &[]);
        let mut disk = served.client();
        disk.fill(512, 512, 0x11).unwrap();
        disk.fill(3 * MIB, 2 * MIB, 0x22).unwrap();
        served.pause();
        served.unpause(&[]);
        disk.expect(0, 512, 0);
        disk.expect(512, 512, 0x11);
        disk.expect(1024, 3 * MIB - 1024, 0);
        disk.expect(3 * MIB, 2 * MIB, 0x22);
        disk.expect(5 * MIB, 5 * MIB, 0);
        served.destroy();
        let served = rig.serve(&image, &["-R"]);
        served.client().expect(512, 512, 0x11);
        served.destroy();
        drop(device);
        let device = LoopDevice::over(&file, 512);
        rig.vhd_util(&["check", "-n", &device.name()]).ok();
        rig.assert_nothing_left();
    }
}
