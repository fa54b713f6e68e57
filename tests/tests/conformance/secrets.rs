//! What a core of a daemon would hold (docs/security.md): neither keys nor data of guests. The
//! kernel leaves out the mappings that are marked so (`dd` in smaps), and nothing else; so this
//! looks at the rest of a living one.
use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use tests::both_engines;
use tests::rig::nbd::Verb;
use tests::rig::places::root;
use tests::rig::{MIB, files};

/// Of a guest, in every sector that it writes here.
const MARK: &[u8] = b"a guest's own words, nobody else's";
const KIB: u64 = 1 << 10;

/// A range of addresses that a core has: readable and not marked.
fn dumped(pid: i32) -> Vec<(u64, u64)> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("its mappings");
    let mut ranges = Vec::new();
    let mut here = None;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if first == "VmFlags:" {
            let flags: Vec<&str> = words.collect();
            let left_out = flags.iter().any(|flag| ["dd", "io", "pf"].contains(flag));
            ranges.extend(here.take().filter(|_| !left_out && flags.contains(&"rd")));
        } else if let Some((from, to)) = first.split_once('-') {
            let number = |text| u64::from_str_radix(text, 16).expect("an address");
            here = Some((number(from), number(to)));
        }
    }
    ranges
}

/// How often each text is in what a core would have; and how many bytes that is.
fn find(pid: i32, texts: &[&[u8]]) -> (Vec<usize>, usize) {
    let memory = File::open(format!("/proc/{pid}/mem")).expect("its memory");
    let mut found = vec![0; texts.len()];
    let mut bytes = 0;
    for (from, to) in dumped(pid) {
        let mut part = vec![0; usize::try_from(to - from).expect("a length")];
        // Some mappings of the kernel's cannot be read.
        if memory.read_exact_at(&mut part, from).is_err() {
            continue;
        }
        bytes += part.len();
        for (count, text) in found.iter_mut().zip(texts) {
            *count += part.windows(text.len()).filter(|window| window == text).count();
        }
    }
    (found, bytes)
}

/// Every size that takes another way: through the buffer of a client, past it, in pieces.
fn talk(disk: &mut tests::rig::nbd::Client) {
    for (at, kib) in [(0, 1), (64, 4), (128, 60), (1024, 64), (2048, 256)] {
        let data: Vec<u8> = MARK.iter().copied().cycle().take((kib * KIB) as usize).collect();
        disk.write(at * KIB, &data).expect("written");
        assert_eq!(disk.read(at * KIB, data.len() as u32).expect("read"), data);
    }
    disk.command(Verb::Flush, 0, 0, 0).expect("flushed");
}

both_engines! {
    fn a_core_has_neither_key_nor_data(rig) {
        if !root("the memory of a daemon") {
            return;
        }
        for bytes in [32, 64] {
            let name = format!("{bytes}.vhd");
            // Nothing that is in some table of a library's.
            let byte = |i: u32| ((i * 167 + 91) ^ (i * i * 13)) as u8;
            let key: Vec<u8> = (0..bytes).map(byte).collect();
            fs::write(rig.path("key"), &key).unwrap();
            rig.vhd_util(&["create", "-n", &name, "-s", "10"]).ok();
            let hash = rig.vhd_util(&["key", "-C", "-k", "key"]).ok().out;
            rig.vhd_util(&["key", "-s", "-n", &name, "-H", hash.trim()]).ok();
            let served = rig.serve_with_key(&rig.name("vhd", &name), &key).expect("its key");
            let mut disk = served.client();
            talk(&mut disk);
            served.pause();
            served.unpause(&[]);
            talk(&mut disk);
            // Not even a quarter or half of it: the first round key of AES is a piece of the key.
            let secrets: Vec<&[u8]> = key.chunks(16).chain([MARK]).collect();
            let (found, looked) = find(served.pid, &secrets);
            assert!(looked > 100 << 10, "{looked} bytes of a core are no core");
            assert_eq!(found, vec![0; secrets.len()], "{bytes} bytes of key: its pieces, data");
            served.destroy();
        }
    }

    /// The same for a disk that another server has: its answers come through a buffer of the
    /// connection's.
    fn a_core_has_no_data_of_a_remote_image(rig) {
        if !root("the memory of a daemon") {
            return;
        }
        files::sparse(&rig.path("a.img"), 8 * MIB);
        let far = rig.serve(&rig.name("aio", "a.img"), &[]);
        let near = rig.serve(&format!("nbd:{}", far.socket().display()), &[]);
        talk(&mut near.client());
        for served in [&far, &near] {
            let (found, looked) = find(served.pid, &[MARK]);
            assert!(looked > 100 << 10 && found == [0], "{looked} bytes, data {found:?} times");
        }
        near.destroy();
        far.destroy();
    }

    /// What a dead daemon has left in shared memory and in the run directory goes with the next
    /// command.
    fn nothing_of_a_dead_daemon_stays(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "4"]).ok();
        for next in ["create", "destroy", "free"] {
            let living = rig.serve(&rig.name("vhd", "a.vhd"), &["-R"]);
            let dead = rig.serve(&rig.name("vhd", "a.vhd"), &["-R"]);
            let (pid, minor) = (dead.pid, dead.minor.to_string());
            let left = |pid: i32| {
                let folder = format!("/dev/shm/td3-{pid}");
                let page = format!("/dev/shm/metrics/tap-{pid}-{minor}");
                let own = |name: &String| {
                    let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
                    digits.split('.').next() == Some(&pid.to_string())
                };
                let run = fs::read_dir(rig.run_dir()).unwrap().flatten();
                let sockets = run.filter_map(|entry| entry.file_name().into_string().ok());
                let shared = [folder, page].iter().filter(|path| fs::exists(path).unwrap()).count();
                [shared, sockets.filter(own).count()]
            };
            assert_eq!(left(pid), [2, 6]);
            rig.signal(pid, libc::SIGKILL);
            rig.wait_gone(pid);
            // Shared memory is the host's: the command of a test beside may be the next one.
            assert_eq!(left(pid)[1], 6, "a kill takes nothing along");
            match next {
                "create" => rig.serve(&rig.name("vhd", "a.vhd"), &["-R"]).destroy(),
                "destroy" => {
                    rig.serve(&rig.name("vhd", "a.vhd"), &["-R"]);
                    let told = dead.tell("destroy", &[]);
                    assert!([2, 111].contains(&told.code), "{told:?}");
                }
                _ => drop(rig.tap_ctl(&["free", "-m", &minor]).ok()),
            }
            assert_eq!(left(pid), [0, 0], "after {next}");
            let kept = left(living.pid);
            assert_eq!(kept, [1, 6], "a living one keeps its own (the page is another's)");
            drop(dead);
            living.destroy();
        }
        rig.assert_nothing_left();
    }
}
