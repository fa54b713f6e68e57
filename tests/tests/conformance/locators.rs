//! How a child finds its parent: F07, F08; order and damage of locators.
use std::process::Command;

use tests::both_engines;
use tests::rig::vhdgen::{Gen, Locator, id};
use tests::rig::{MIB, Rig, files, run, tool};

use super::refused::refused;

fn parent(rig: &Rig, name: &str) {
    Gen::new(10 * MIB).id(1).sectors(0, &[(0, 0x31)]).write(&rig.path(name));
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// Serves `c.vhd` and reads the parent's sector.
#[track_caller]
fn finds_its_parent(rig: &Rig) {
    let served = rig.serve(&rig.name("vhd", "c.vhd"), &[]);
    served.client().expect(0, 512, 0x31);
    served.client().expect(512, 512, 0);
    served.destroy();
}

fn child(rig: &Rig, creator: &[u8; 4], locators: Vec<Locator>) {
    let mut c = Gen::child(10 * MIB, "p.vhd", id(1)).id(2);
    c.creator.0 = *creator;
    c.locators = Some(locators);
    c.write(&rig.path("c.vhd"));
}

both_engines! {
    /// F07: locators are tried in their order until one leads to a file.
    fn the_next_locator_is_tried(rig) {
        parent(rig, "p.vhd");
        let layout = Gen::child(10 * MIB, "p.vhd", id(1)).id(2).write(&rig.path("c.vhd"));
        files::poke(&rig.path("c.vhd"), layout.locators[0], b"file://./q.vhd");
        finds_its_parent(rig);
    }

    /// F08: only a Windows path with a drive, backslashes, and its space in sectors.
    fn a_windows_path(rig) {
        std::fs::create_dir(rig.path("d")).unwrap();
        parent(rig, "d/p.vhd");
        let path = format!("C:{}", rig.path("d/p.vhd").display()).replace('/', "\\");
        let locator = Locator { code: *b"W2ku", space: Some(1), bytes: wide(&path) };
        child(rig, b"win ", vec![locator]);
        finds_its_parent(rig);
    }

    /// A relative Windows path alone.
    fn a_relative_windows_path(rig) {
        std::fs::create_dir(rig.path("d")).unwrap();
        parent(rig, "d/p.vhd");
        let bytes = wide(".\\d\\p.vhd");
        child(rig, b"win ", vec![Locator { code: *b"W2ru", space: None, bytes }]);
        finds_its_parent(rig);
    }

    /// Paths are relative to the child, wherever the daemon runs.
    fn a_path_above_the_child(rig) {
        std::fs::create_dir_all(rig.path("d/e")).unwrap();
        parent(rig, "d/p.vhd");
        let c = Gen::child(10 * MIB, "../p.vhd", id(1)).id(2);
        c.write(&rig.path("d/e/c.vhd"));
        let served = rig.serve(&rig.name("vhd", "d/e/c.vhd"), &[]);
        served.client().expect(0, 512, 0x31);
    }

    /// A child reached through a link is where the link leads.
    fn a_child_behind_a_link(rig) {
        std::fs::create_dir(rig.path("d")).unwrap();
        parent(rig, "d/p.vhd");
        Gen::child(10 * MIB, "p.vhd", id(1)).id(2).write(&rig.path("d/c.vhd"));
        std::os::unix::fs::symlink("d/c.vhd", rig.path("c.vhd")).unwrap();
        finds_its_parent(rig);
    }

    /// Blanks, other alphabets and a colon.
    fn unusual_names(rig) {
        for name in ["a parent.vhd", "родитель.vhd", "p:1=2.vhd"] {
            parent(rig, name);
            Gen::child(10 * MIB, name, id(1)).id(2).write(&rig.path("c.vhd"));
            finds_its_parent(rig);
        }
    }

    /// Locators that make no sense are passed over.
    fn senseless_locators_before_a_good_one(rig) {
        parent(rig, "p.vhd");
        child(rig, b"tap\0", vec![
            Locator { code: *b"Wi2r", space: None, bytes: b"old".to_vec() },
            Locator { code: *b"W2ku", space: None, bytes: vec![0x00, 0xd8, 0x41] },
            Locator { code: *b"W2ru", space: None, bytes: Vec::new() },
            Locator { code: *b"MacX", space: None, bytes: b"http://p.vhd".to_vec() },
            Locator { code: *b"MacX", space: None, bytes: b"file://./p.vhd".to_vec() },
        ]);
        finds_its_parent(rig);
    }

    /// A child without any locator.
    fn no_locator(rig) {
        parent(rig, "q.vhd");
        child(rig, b"tap\0", Vec::new());
        let outcome = rig.try_serve(&rig.name("vhd", "c.vhd"), &[]).err().expect("refused");
        assert!([2, 22].contains(&outcome.code), "{outcome:?}");
        assert!(rig.log().contains("c.vhd"), "{}", rig.log());
        rig.assert_nothing_left();
    }

    /// Locators whose texts lie outside the file, or are longer than any path.
    fn locators_outside_the_file(rig) {
        let outside = [(u64::MAX - 511, 14u32), (1 << 40, 14), (2048, u32::MAX), (2048, 1 << 20)];
        for (place, length) in outside {
            parent(rig, "p.vhd");
            child(rig, b"tap\0", vec![
                Locator { code: *b"MacX", space: None, bytes: b"file://./p.vhd".to_vec() },
            ]);
            let image = rig.path("c.vhd");
            tests::rig::vhdgen::poke_header(&image, 576 + 8, &length.to_be_bytes());
            tests::rig::vhdgen::poke_header(&image, 576 + 16, &place.to_be_bytes());
            let before = std::fs::read(&image).unwrap();
            let outcome = rig.try_serve(&rig.name("vhd", "c.vhd"), &[]).err().expect("refused");
            assert!([2, 5, 22, 36].contains(&outcome.code), "{place} {length}: {outcome:?}");
            assert!(std::fs::read(&image).unwrap() == before);
            rig.assert_nothing_left();
        }
    }

    /// A parent that is not a VHD although the child says so.
    fn a_parent_that_is_no_vhd(rig) {
        files::sparse(&rig.path("p.vhd"), 10 * MIB);
        Gen::child(10 * MIB, "p.vhd", id(1)).id(2).write(&rig.path("c.vhd"));
        refused(rig, &rig.name("vhd", "c.vhd"), 22, &["p.vhd", "footer"]);
    }

    /// A directory or a FIFO is no parent: the same as none. Opening the FIFO would wait for ever.
    fn a_parent_that_is_no_file(rig) {
        Gen::child(10 * MIB, "p.vhd", id(1)).id(2).write(&rig.path("c.vhd"));
        std::fs::create_dir(rig.path("p.vhd")).unwrap();
        refused(rig, &rig.name("vhd", "c.vhd"), libc::ENOENT, &["c.vhd", "parent"]);
        std::fs::remove_dir(rig.path("p.vhd")).unwrap();
        run(Command::new(tool("mkfifo")).arg(rig.path("p.vhd")), b"").ok();
        refused(rig, &rig.name("vhd", "c.vhd"), libc::ENOENT, &["c.vhd", "parent"]);
    }
}
