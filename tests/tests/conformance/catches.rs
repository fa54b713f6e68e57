//! What is accepted with a catch: the disk is served, the exit code is 0, standard output is the
//! original's, and the sentence is on the standard error of who asked, in the statistics and in the
//! log.
use tests::both_engines;
use tests::rig::{MIB, Rig, Served, files};

/// Opens a disk once more, as a pause and an unpause do, and demands so many sentences, with these
/// words.
#[track_caller]
fn told_again(rig: &Rig, served: &Served<'_>, count: usize, words: &[&str]) {
    served.pause();
    let told = served.tell("unpause", &[]).ok();
    assert_eq!(told.out, "", "{told:?}");
    let lines: Vec<&str> = told.err.lines().collect();
    assert_eq!(lines.len(), count, "{told:?}");
    assert!(words.iter().all(|word| told.err.contains(word)), "{words:?}: {told:?}");
    assert_eq!(served.stats()["notes"], serde_json::json!(lines), "{}", served.stats());
    let log = rig.log();
    assert!(lines.iter().all(|line| log.contains(line)), "{log}");
}

/// Makes a disk and demands one with these words.
#[track_caller]
fn served_with<'a>(rig: &'a Rig, image: &str, options: &[&str], words: &[&str]) -> Served<'a> {
    let served = rig.serve(image, options);
    told_again(rig, &served, 1, words);
    served
}

both_engines! {
    fn a_disk_without_a_catch_says_nothing(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "4"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        served.pause();
        let told = served.tell("unpause", &[]).ok();
        assert!(told.out.is_empty() && told.err.is_empty(), "{told:?}");
        assert!(served.stats().get("notes").is_none(), "{}", served.stats());
        served.destroy();
    }

    fn a_raw_view_of_an_image_says_so(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "4"]).ok();
        let created = rig.tap_ctl(&["create", "-a", &rig.name("aio", "a.vhd")]).ok();
        let path = rig.path("a.vhd");
        let disk = format!("vhd:{} serves the disk", path.display());
        assert!(created.err.contains(&disk) && created.err.lines().count() == 1, "{created:?}");
        let minor = created.out.trim_end().rsplit('-').next().expect("a path ends with the minor");
        let pid = rig.pid_of(minor.parse().expect("a minor")).expect("listed").to_string();
        rig.tap_ctl(&["destroy", "-p", &pid, "-m", minor]).ok();
        let words = ["format vhd", "served raw", &disk];
        served_with(rig, &rig.name("aio", "a.vhd"), &["-R"], &words).destroy();
        // What only looks a little like it is a disk like others.
        files::sparse(&rig.path("b.img"), MIB);
        std::fs::write(rig.path("c.img"), [&b"conectiy"[..], &[0; 4088]].concat()).unwrap();
        for name in ["b.img", "c.img"] {
            let served = rig.serve(&rig.name("aio", name), &[]);
            assert!(served.stats().get("notes").is_none(), "{}", served.stats());
            served.destroy();
        }
    }

    fn a_mirror_that_is_not_there_says_so(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "4"]).ok();
        let far = format!("nbd:{}", rig.path("nobody.sock").display());
        let words = ["there is no mirror", "nobody.sock"];
        served_with(rig, &rig.name("vhd", "a.vhd"), &["-2", &far], &words).destroy();
    }

    fn an_image_that_is_written_elsewhere_says_so(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "4"]).ok();
        let writer = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let words = ["a.vhd is being written by tapdisk", &writer.pid.to_string()];
        served_with(rig, &rig.name("vhd", "a.vhd"), &["-R"], &words).destroy();
        writer.destroy();
    }

    fn damage_that_is_served_says_so(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "4"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        served.client().fill(0, MIB, 1).unwrap();
        served.destroy();
        // A block's entry points behind the end.
        let mut bytes = std::fs::read(rig.path("a.vhd")).unwrap();
        let table = u64::from_be_bytes(bytes[528..536].try_into().unwrap()) as usize;
        bytes[table..table + 4].copy_from_slice(&0x0070_0000_u32.to_be_bytes());
        std::fs::write(rig.path("a.vhd"), bytes).unwrap();
        let words = ["a.vhd", "outside the file", "vhd-util check"];
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &["-R"]);
        told_again(rig, &served, 2, &words);
        served.destroy();
    }
}
