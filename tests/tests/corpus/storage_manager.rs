//! What a storage manager does to VHDs on logical volumes, call by call as in spec/vhd-util.md §5,
//! on block devices. A volume here is a loop device over a file, so that lvextend and lvreduce are
//! a new length of the file.
use std::fs;
use std::process::Command;

use tests::rig::places::{LoopDevice, root};
use tests::rig::{Engine, MIB, Rig, files, programs, run, tool};

/// Bytes that a volume is a multiple of.
const EXTENT: u64 = 4 * MIB;
/// Room for the metadata of 2 TiB, as `-S 2097152` asks for, and no block.
const OVERHEAD: u64 = 8 * MIB;

/// A logical volume.
struct Volume {
    file: std::path::PathBuf,
    device: LoopDevice,
}

impl Volume {
    fn create(rig: &Rig, name: &str, bytes: u64) -> Volume {
        let file = rig.path(name);
        files::sparse(&file, bytes);
        let device = LoopDevice::over(&file, 512);
        Volume { file, device }
    }

    fn name(&self) -> String {
        self.device.name()
    }

    /// lvextend or lvreduce.
    fn resize(&self, bytes: u64) {
        let file = fs::File::options().write(true).open(&self.file).unwrap();
        file.set_len(bytes).unwrap();
        run(Command::new(tool("losetup")).args(["-c", &self.name()]), b"").ok();
    }
}

/// A repository: SM's functions under SM's names, each with SM's own command line.
struct Sm<'a> {
    rig: &'a Rig,
}

impl Sm<'_> {
    fn call(&self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        self.rig.vhd_util(&words).ok().out
    }

    fn size_phys(&self, v: &Volume) -> u64 {
        self.call(&format!("query --debug -s -n {}", v.name())).trim().parse().unwrap()
    }

    /// Room for what a leaf will write: extend, wipe the last sector, move the footer.
    fn inflate(&self, v: &Volume, bytes: u64) {
        v.resize(bytes);
        files::poke(&v.file, bytes - 512, &[0; 512]);
        self.call(&format!("modify --debug -s {bytes} -n {}", v.name()));
    }

    fn deflate(&self, v: &Volume) {
        let bytes = self.size_phys(v).next_multiple_of(EXTENT);
        self.call(&format!("modify --debug -s {bytes} -n {}", v.name()));
        v.resize(bytes);
    }

    fn snapshot(&self, parent: &Volume, child: &Volume) {
        let (p, c) = (parent.name(), child.name());
        self.call(&format!("snapshot --debug -n {c} -p {p} -S 2097152 -e"));
        self.call(&format!("set --debug -n {p} -f hidden -v 1"));
    }

    /// `Coalesced (\d+) sectors`
    fn coalesce(&self, v: &Volume) -> u64 {
        let said = self.call(&format!("coalesce --debug -n {}", v.name()));
        said.strip_prefix("Coalesced ").unwrap().split(' ').next().unwrap().parse().unwrap()
    }

    fn set_parent(&self, v: &Volume, parent: &Volume) {
        self.call(&format!("modify --debug -p {} -n {}", parent.name(), v.name()));
    }

    fn parent(&self, v: &Volume) -> String {
        self.call(&format!("query --debug -p -n {}", v.name())).trim().to_string()
    }

    /// Makes all of a new disk present, with `byte` everywhere.
    fn present(&self, v: &Volume, disk: u64, byte: u8) {
        let (from, end) = (self.size_phys(v), files::size(&v.file) - 512);
        files::poke(&v.file, from, &vec![byte; (end - from) as usize]);
        self.call(&format!("fill --debug -n {} -b -f 0 -t {}", v.name(), disk / 512 - 1));
    }

    fn data(&self, v: &Volume, disk: u64) -> String {
        self.call(&format!("read --debug -n {} -r 0 -c {}", v.name(), disk / 512))
    }

    fn check(&self, v: &Volume) {
        self.call(&format!("check --debug -n {}", v.name()));
    }

    fn depth(&self, v: &Volume) -> String {
        self.call(&format!("query --debug -d -n {}", v.name())).trim().to_string()
    }
}

#[test]
fn a_running_disk_on_volumes_is_snapshotted_and_its_chain_coalesced() {
    if !root("a chain of VHDs on loop devices") {
        return;
    }
    let rig = Rig::new(Engine::Uring);
    let sm = Sm { rig: &rig };
    let full = 64 * MIB;
    let base = Volume::create(&rig, "base.lv", full);
    sm.call(&format!("create --debug -n {} -s 32 -S 2097152", base.name()));
    let served = rig.serve(&format!("vhd:{}", base.name()), &[]);
    let mut written: Vec<(u64, u8)> = Vec::new();
    let mut write = |served: &tests::rig::Served<'_>, at: u64, byte: u8| {
        served.client().fill(at * MIB, MIB, byte).unwrap();
        written.retain(|(old, _)| *old != at);
        written.push((at, byte));
    };
    (0..8).for_each(|at| write(&served, at, 1));

    // Two snapshots of the running disk: base ◄ middle ◄ leaf.
    let middle = Volume::create(&rig, "middle.lv", OVERHEAD);
    let leaf = Volume::create(&rig, "leaf.lv", OVERHEAD);
    for (parent, child, byte) in [(&base, &middle, 2), (&middle, &leaf, 3)] {
        served.pause();
        sm.snapshot(parent, child);
        sm.inflate(child, full);
        served.unpause(&["-a", &format!("vhd:{}", child.name())]);
        (byte..byte + 9).for_each(|at| write(&served, at.into(), byte));
        write(&served, 31, byte);
    }
    assert_eq!(sm.depth(&leaf), "chain depth: 3");

    // Inner coalesce while the leaf is written: middle into base, which is inflated for it and
    // deflated after.
    sm.deflate(&base);
    let size = sm.size_phys(&base) + sm.size_phys(&middle);
    sm.inflate(&base, size.next_multiple_of(EXTENT));
    let sectors = sm.coalesce(&middle);
    assert_eq!(sectors, 10 * MIB / 512);
    write(&served, 17, 4);
    served.pause();
    sm.set_parent(&leaf, &base);
    served.unpause(&[]);
    assert_eq!((sm.parent(&leaf), sm.depth(&leaf)), (base.name(), "chain depth: 2".to_string()));
    drop(middle);
    write(&served, 18, 5);

    // Leaf coalesce during a pause; the base becomes the leaf.
    served.pause();
    let size = sm.size_phys(&base) + sm.size_phys(&leaf);
    sm.inflate(&base, size.next_multiple_of(EXTENT));
    assert!(sm.coalesce(&leaf) >= 10 * MIB / 512);
    sm.call(&format!("set --debug -n {} -f hidden -v 0", base.name()));
    served.unpause(&["-a", &format!("vhd:{}", base.name())]);
    drop(leaf);
    let mut client = served.client();
    for (at, byte) in &written {
        client.expect(at * MIB, MIB, *byte);
    }
    client.expect(20 * MIB, 11 * MIB, 0);
    drop(client);
    served.destroy();
    sm.check(&base);
    sm.deflate(&base);
    sm.check(&base);
    rig.assert_nothing_left();
}

#[test]
fn a_parent_without_room_on_its_volume_fails_and_is_repaired() {
    if !root("loop devices that are too small") {
        return;
    }
    let rig = Rig::new(Engine::Aio);
    let sm = Sm { rig: &rig };
    let base = Volume::create(&rig, "base.lv", OVERHEAD);
    let child = Volume::create(&rig, "child.lv", 32 * MIB);
    sm.call(&format!("create --debug -n {} -s 16 -S 2097152", base.name()));
    sm.snapshot(&base, &child);
    sm.present(&child, 16 * MIB, b'Z');
    let coalesce = ["coalesce", "--debug", "-n", &child.name()];
    rig.vhd_util(&coalesce).exits(28).says("error coalescing: -28");
    sm.call(&format!("repair --debug -n {}", base.name()));
    sm.check(&base);
    sm.check(&child);
    sm.inflate(&base, 32 * MIB);
    assert_eq!(sm.coalesce(&child), 16 * MIB / 512);
    sm.check(&base);
    assert!(sm.data(&base, 16 * MIB) == "Z".repeat(16 << 20));
}

#[test]
fn a_resize_of_a_volume_is_taken_back_from_every_stop_at_attach() {
    if !root("loop devices with a journal volume") {
        return;
    }
    let rig = Rig::new(Engine::Aio);
    let sm = Sm { rig: &rig };
    for point in ["RESIZE_BEGIN", "RESIZE_DATA_MOVED", "RESIZE_METADATA_MOVED", "RESIZE_END"] {
        let disk = Volume::create(&rig, "disk.lv", 32 * MIB);
        let name = disk.name();
        sm.call(&format!("create --debug -n {name} -s 8"));
        sm.present(&disk, 8 * MIB, b'Z');
        let max: u64 = sm.call(&format!("query --debug -S -n {name}")).trim().parse().unwrap();
        assert_eq!(max, 8, "no room: this one needs a journal");
        let journal = Volume::create(&rig, "jvhd_1", 8 * MIB);
        let log = journal.name();
        let words = ["resize", "--debug", "-s", "4096", "-n", &name, "-j", &log];
        let mut command = rig.command(&programs().vhd_util);
        command.args(words).env(format!("VHD_UTIL_TEST_FAIL_{point}"), "1");
        run(&mut command, b"").exits(22).says(&format!("Failing at VHD_UTIL_TEST_FAIL_{point}"));
        // The next attach finds the journal.
        sm.call(&format!("revert --debug -n {name} -j {log}"));
        sm.check(&disk);
        assert_eq!(sm.call(&format!("query --debug -vsaf -n {name}")).lines().next(), Some("8"));
        assert!(sm.data(&disk, 8 * MIB) == "Z".repeat(8 << 20), "{point}");
    }
}

#[test]
fn hundreds_of_files_and_devices_are_scanned_in_one_call() {
    if !root("loop devices in a scan") {
        return;
    }
    let rig = Rig::new(Engine::Aio);
    let sm = Sm { rig: &rig };
    sm.call("create -n 000.vhd -s 64");
    let base = Volume::create(&rig, "base.lv", OVERHEAD);
    sm.call(&format!("create -n {} -s 64 -S 2097152", base.name()));
    let volumes: Vec<Volume> = (0..6)
        .map(|n| {
            let child = Volume::create(&rig, &format!("child{n}.lv"), OVERHEAD);
            sm.call(&format!("snapshot -n {} -p {} -S 2097152 -e", child.name(), base.name()));
            child
        })
        .collect();
    let first = rig.path("000.vhd");
    for n in 1..400 {
        fs::copy(&first, rig.path(&format!("{n:03}.vhd"))).unwrap();
    }
    fs::write(rig.path("200.vhd"), b"torn").unwrap();
    let names: Vec<String> = volumes.iter().map(Volume::name).collect();
    let line = format!("scan -f -c -m {}/*.vhd {}", rig.work().display(), names.join(" "));
    let out = sm.call(&line);
    assert_eq!(out.lines().count(), 406);
    // As SM parses it: words at blanks, each at its one equals sign.
    let (mut good, mut bad) = (0, 0);
    for line in out.lines() {
        let fields: Vec<(&str, &str)> =
            line.split(' ').filter_map(|word| word.split_once('=')).collect();
        let get = |key: &str| fields.iter().find(|(k, _)| *k == key).map(|(_, v)| *v);
        match get("scan-error") {
            Some(_) => bad += 1,
            None => {
                good += 1;
                assert_eq!(get("capacity"), Some("67108864"), "{line}");
                assert!(get("hidden") == Some("0") && get("parent").is_some(), "{line}");
            }
        }
    }
    assert_eq!((good, bad), (405, 1));
    let parent = base.name().rsplit('/').next().unwrap().to_string();
    assert_eq!(out.matches(&format!("parent={parent}\n")).count(), 6);
}
