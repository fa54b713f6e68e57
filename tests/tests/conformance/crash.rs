//! Pauses and crashes: I11, I14, I40.
use tests::both_engines;
use tests::rig::{MIB, files};

both_engines! {
    /// I11: while paused the file is whole; while it runs the copy of the footer is good.
    fn a_pause_leaves_a_whole_image(rig) {
        let image = rig.path("a.vhd");
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        disk.fill(0, 65536, 0x11).unwrap();
        served.pause();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok().says("a.vhd is valid");
        rig.vhd_util(&["query", "-n", "a.vhd", "-a"]).ok().says("1");
        rig.tap_ctl(&["list", "-m", "0"]).ok().mentions("state=0x2a args=vhd:");
        served.unpause(&[]);
        disk.expect(0, 65536, 0x11);
        disk.fill(2 * MIB, 65536, 0x22).unwrap();
        rig.vhd_util(&["query", "-n", "a.vhd", "-v"]).ok().says("10");
        served.destroy();
        let end = files::size(&image) - 512;
        assert_eq!(files::bytes_at(&image, 0, 512), files::bytes_at(&image, end, 512));
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok();
        rig.assert_nothing_left();
    }

    /// A pause and a resume that changes nothing leave the image valid, also without a write after
    /// it.
    fn a_pause_without_writes(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        served.pause();
        served.unpause(&[]);
        served.destroy();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok().says("a.vhd is valid");
    }

    /// I14: what was acknowledged outlives the process, without any flush.
    fn killed_after_acknowledged_writes(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "50"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        disk.fill(512, 512, 0x11).unwrap();
        disk.fill(7 * MIB, 2 * MIB, 0x22).unwrap();
        disk.fill(20 * MIB, 2 * MIB, 0x33).unwrap();
        served.crash();
        rig.vhd_util(&["check", "-n", "a.vhd", "-i"]).ok().says("a.vhd is valid");
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        disk.expect(0, 512, 0);
        disk.expect(512, 512, 0x11);
        disk.expect(1024, 7 * MIB - 1024, 0);
        disk.expect(7 * MIB, 2 * MIB, 0x22);
        disk.expect(9 * MIB, 11 * MIB, 0);
        disk.expect(20 * MIB, 2 * MIB, 0x33);
        disk.expect(22 * MIB, 28 * MIB, 0);
        served.destroy();
        // Better than the original: any orderly close of a writable image restores the footer at
        // the end.
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok().says("a.vhd is valid");
        rig.assert_nothing_left();
    }

    /// I40.
    fn killed_after_unpause(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        disk.fill(0, 65536, 0x11).unwrap();
        served.pause();
        served.unpause(&[]);
        disk.fill(4 * MIB, 65536, 0x22).unwrap();
        served.crash();
        rig.vhd_util(&["query", "-n", "a.vhd", "-va"]).ok().says("10\n2");
        rig.vhd_util(&["check", "-n", "a.vhd", "-i"]).ok();
        rig.vhd_util(&["repair", "-n", "a.vhd"]).ok();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok().says("a.vhd is valid");
        let sector = rig.vhd_util(&["read", "-n", "a.vhd", "-r", "8192", "-c", "1"]).ok();
        assert_eq!(sector.bytes, [0x22; 512]);
    }

    /// Killed right after a resume, before any write: the mark of a running writer is all that is
    /// there.
    fn killed_after_unpause_without_writes(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        served.client().fill(0, 65536, 0x11).unwrap();
        served.pause();
        served.unpause(&[]);
        served.crash();
        rig.vhd_util(&["check", "-n", "a.vhd", "-i"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        served.client().expect(0, 65536, 0x11);
        served.destroy();
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok().says("a.vhd is valid");
    }

    /// SIGINT and SIGTERM close disks in an orderly way. For the original SIGTERM is a death like
    /// SIGKILL (operations.md §1.2).
    fn a_signal_ends_it_in_good_order(rig) {
        for signal in [libc::SIGINT, libc::SIGTERM] {
            rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
            let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
            served.client().fill(0, 65536, 0x11).unwrap();
            rig.signal(served.pid, signal);
            rig.wait_gone(served.pid);
            rig.vhd_util(&["check", "-n", "a.vhd"]).ok().says("a.vhd is valid");
            rig.tap_ctl(&["free", "-m", "0"]).ok();
            rig.assert_nothing_left();
        }
    }

    /// A resume with a disk of another size is refused with 124 and stays paused; the right one
    /// works.
    fn a_resume_with_another_size(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "10"]).ok();
        rig.vhd_util(&["create", "-n", "b.vhd", "-s", "12"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        disk.fill(0, 512, 0x11).unwrap();
        served.pause();
        let other = std::fs::read(rig.path("b.vhd")).unwrap();
        served.tell("unpause", &["-a", &rig.name("vhd", "b.vhd")]).exits(124);
        rig.tap_ctl(&["list"]).ok().mentions("state=0x22a args=vhd:").mentions("a.vhd");
        assert!(other == std::fs::read(rig.path("b.vhd")).unwrap(), "b.vhd was changed");
        served.unpause(&[]);
        disk.expect(0, 512, 0x11);
        served.destroy();
    }
}
