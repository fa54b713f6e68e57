//! What an image says of its parent, said by a stranger: where it may lead, and what it does to
//! those who read of it.
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::symlink;

use tests::rig::vhdgen::{Gen, Locator, id};
use tests::rig::{MIB, Outcome, files, programs, run};

use super::{Bench, with};

/// What is said on either stream.
trait Told {
    fn told(self, text: &str) -> Self;
}

impl Told for Outcome {
    #[track_caller]
    fn told(self, text: &str) -> Outcome {
        assert!(self.out.contains(text) || self.err.contains(text), "no {text:?}: {self:?}");
        self
    }
}

/// The id of a raw parent.
const RAW: [u8; 16] = [0; 16];

/// An image that names this parent.
fn child(b: &Bench, name: &str, parent: &str, of: [u8; 16]) {
    fs::create_dir_all(b.path(name).parent().unwrap()).unwrap();
    Gen::child(4 * MIB, parent, of).id(2).sectors(0, &[(9, 0x42)]).write(&b.path(name));
}

/// Every command that would open the parent is refused, and says so on the terminal; what only
/// tells of the parent gives its name. The parent stays as it was.
fn refused(b: &Bench, name: &str, parent: &str) {
    let before = fs::read(b.path(parent)).ok();
    for line in [
        "coalesce -n",
        "query -d -n",
        "fill -n",
        "read -r 0 -n",
        "map -n",
        "compact -n",
        "check -n",
        "convert -O raw -N o.raw -n",
        "convert -N o.vhd -n",
    ] {
        let outcome = b.run(&format!("{line} {name}")).exits(13);
        let said = [outcome.out.as_str(), outcome.err.as_str()].concat();
        assert!(said.contains("/etc/tapdisk-rs/parents"), "{line}: {outcome:?}");
    }
    assert!(!b.path("o.raw").exists() && !b.path("o.vhd").exists());
    let canonical = fs::canonicalize(b.path(parent)).unwrap();
    assert_eq!(b.ok(&format!("query -p -n {name}")), canonical.to_str().unwrap());
    b.ok(&format!("query -p -u -n {name}"));
    b.ok(&format!("scan -f {name}"));
    let line = b.ok(&format!("scan -v -a -c {name}"));
    assert!(line.contains("scan-error=-13"), "{line}");
    assert!(fs::read(b.path(parent)).ok() == before, "{parent} was changed");
}

#[test]
fn a_parent_elsewhere_is_opened_by_no_command() {
    let b = Bench::new();
    fs::create_dir_all(b.path("else/deep")).unwrap();
    fs::write(b.path("else/secret"), vec![0x77; 4 << 20]).unwrap();
    Gen::new(4 * MIB).id(1).full(0, 0x31).write(&b.path("else/deep/base.vhd"));
    let secret = format!("{}/else/secret", b.home());
    child(&b, "in/abs.vhd", &secret, RAW);
    refused(&b, "in/abs.vhd", "else/secret");
    child(&b, "in/dots.vhd", "../in/../else/secret", RAW);
    refused(&b, "in/dots.vhd", "else/secret");
    // An id that is known to more than its owner is no key to the whole machine.
    child(&b, "in/id.vhd", "../else/deep/base.vhd", id(1));
    refused(&b, "in/id.vhd", "else/deep/base.vhd");
    // A link in the directory leads out of it.
    symlink(&secret, b.path("in/link")).unwrap();
    child(&b, "in/linked.vhd", "link", RAW);
    refused(&b, "in/linked.vhd", "in/link");
    // In the middle of a chain as well.
    Gen::child(4 * MIB, "abs.vhd", id(2)).id(3).write(&b.path("in/leaf.vhd"));
    b.run("convert -O raw -N o.raw -n in/leaf.vhd").exits(13).told("abs.vhd");
    b.run(&format!("coalesce -n in/leaf.vhd --into {secret}")).exits(13);
}

#[test]
fn what_the_kernel_makes_up_is_no_parent_even_where_all_is_listed() {
    let b = Bench::new();
    for path in ["/proc/self/environ", "/proc/1/mem", "/sys/kernel/notes"] {
        child(&b, "c.vhd", path, RAW);
        for all in ["", "/"] {
            let mut command = b.0.command(&programs().vhd_util);
            command.args(["read", "-r", "0", "-n", "c.vhd"]).env("TAPDISK_PARENTS", all);
            run(&mut command, b"").exits(13).told("no file of a file system for data");
        }
    }
    child(&b, "c.vhd", "/dev/null", RAW);
    b.run("read -r 0 -n c.vhd").exits(2);
}

#[test]
fn the_owner_lists_places_for_parents() {
    let b = Bench::new();
    fs::create_dir_all(b.path("bases")).unwrap();
    fs::write(b.path("bases/raw.img"), vec![0x77; 4 << 20]).unwrap();
    child(&b, "in/c.vhd", &format!("{}/bases/raw.img", b.home()), RAW);
    let read = |list: &str| {
        let mut command = b.0.command(&programs().vhd_util);
        command.args(["read", "-r", "0", "-n", "in/c.vhd"]).env("TAPDISK_PARENTS", list);
        run(&mut command, b"")
    };
    let home = b.home();
    assert_eq!(read(&format!("/nowhere:{home}/bases")).ok().bytes, [0x77; 512]);
    read(&format!("{home}/base")).exits(13);
    read("bases").exits(13).told("no absolute path");
}

#[test]
fn who_makes_a_child_vouches_for_its_parent_and_a_copy_has_nobodys_word() {
    let b = Bench::new();
    if !tests::rig::places::root("trusted attributes") {
        return;
    }
    fs::create_dir_all(b.path("bases/deep")).unwrap();
    fs::create_dir_all(b.path("in")).unwrap();
    fs::write(b.path("bases/deep/raw.img"), vec![0x77; 4 << 20]).unwrap();
    Gen::new(4 * MIB).id(1).full(0, 0x31).write(&b.path("bases/deep/p.vhd"));
    b.ok("snapshot -n in/c.vhd -p bases/deep/p.vhd");
    b.ok("snapshot -n in/r.vhd -p bases/deep/raw.img -m");
    assert_eq!((b.sector("in/c.vhd", 0), b.sector("in/r.vhd", 0)), (0x31, 0x77));
    fs::copy(b.path("in/r.vhd"), b.path("in/copy.vhd")).unwrap();
    b.run("read -n in/copy.vhd -r 0").exits(13);
    // What was a stranger's becomes one's own by the command that the refusal names.
    b.ok("modify -n in/copy.vhd -p bases/deep/raw.img -m");
    assert_eq!(b.sector("in/copy.vhd", 0), 0x77);
    // The word is for one parent: whoever writes another into a locator gains nothing.
    fs::write(b.path("bases/oother.img"), vec![0x55; 4 << 20]).unwrap();
    let text = fs::read(b.path("in/r.vhd")).unwrap();
    let at = text.windows(12).position(|part| part == b"deep/raw.img").unwrap();
    files::poke(&b.path("in/r.vhd"), at as u64, b"./oother.img");
    assert_eq!(b.sector("in/r.vhd", 0), 0x77);
    fs::remove_file(b.path("bases/deep/raw.img")).unwrap();
    b.run("read -n in/r.vhd -r 0").exits(13).told("oother.img");
}

#[test]
fn what_no_tapdisk_opens_as_a_parent_is_not_written_into_a_child() {
    let b = Bench::new();
    Gen::new(4 * MIB).id(1).full(0, 0x31).write(&b.path("p.vhd"));
    b.ok("snapshot -n c.vhd -p p.vhd");
    files::sparse(&b.path("empty.raw"), 0);
    let before = b.bytes("c.vhd");
    // A file of sysfs says that it has 4096 bytes.
    for parent in ["/sys/kernel/uevent_seqnum", "/dev/shm/../../sys/kernel/uevent_seqnum"] {
        let modified = b.run(&format!("modify -n c.vhd -p {parent} -m"));
        modified.exits(13).told("no file of a file system for data");
        let made = b.run(&format!("snapshot -n new.vhd -p {parent} -m"));
        made.exits(13).told("no file of a file system for data");
    }
    b.run("modify -n c.vhd -p empty.raw -m").exits(22).told("not even one sector");
    b.run("modify -n c.vhd -p /proc/version -m").exits(22).told("not even one sector");
    assert!(b.bytes("c.vhd") == before);
    assert!(!b.path("new.vhd").exists());
    assert_eq!(b.sector("c.vhd", 0), 0x31);
}

#[test]
fn a_child_on_a_device_has_its_parents_on_devices_of_its_kind_by_id_only() {
    let b = Bench::new();
    if !tests::rig::places::root("loop devices with parents") {
        return;
    }
    let device = |name: &str| {
        files::sparse(&b.path(name), 16 * MIB);
        tests::rig::places::LoopDevice::over(&b.path(name), 512)
    };
    let (parent, leaf, other) = (device("p.img"), device("c.img"), device("o.img"));
    let (p, c, o) = (parent.name(), leaf.name(), other.name());
    b.ok(&format!("create -n {p} -s 8"));
    b.ok(&format!("snapshot -n {c} -p {p}"));
    b.ok(&format!("query -n {c} -d"));
    // A raw device is shown to the guest whatever is on it: nobody vouches for a device.
    let refusal = format!("snapshot -n {c} -p {o} -m");
    b.run(&refusal).exits(13).told("/etc/tapdisk-rs/parents").told(&o);
    let mut command = b.0.command(&programs().vhd_util);
    command.args(refusal.split(' ')).env("TAPDISK_PARENTS", &o);
    run(&mut command, b"").ok();
    // A file's parent is no device.
    child(&b, "f.vhd", &o, RAW);
    b.run("read -r 0 -n f.vhd").exits(13);
}

#[test]
fn a_locator_to_another_id_is_passed_over_for_one_that_fits() {
    let b = Bench::new();
    fs::create_dir_all(b.path("right")).unwrap();
    Gen::new(4 * MIB).id(9).full(0, 0x99).write(&b.path("p.vhd"));
    Gen::new(4 * MIB).id(1).full(0, 0x31).write(&b.path("right/p.vhd"));
    let wide = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let locators = vec![
        Locator { code: *b"MacX", space: None, bytes: b"file://./p.vhd".to_vec() },
        Locator { code: *b"W2ku", space: None, bytes: wide(".\\p.vhd") },
        Locator { code: *b"W2ru", space: None, bytes: wide(".\\right\\p.vhd") },
    ];
    let c = with(Gen::child(4 * MIB, "p.vhd", id(1)).id(2), |g| g.locators = Some(locators));
    c.write(&b.path("c.vhd"));
    assert_eq!(b.sector("c.vhd", 0), 0x31);
    let right = format!("{}/right/p.vhd", b.home());
    assert_eq!(b.ok("query -n c.vhd -p"), right);
    assert_eq!(b.ok("query -n c.vhd -d"), "chain depth: 2");
    b.ok("check -n c.vhd -p");
    b.ok("coalesce -n c.vhd");
    // With none that fits, the first that is there is told of.
    fs::remove_file(b.path("right/p.vhd")).unwrap();
    b.run("convert -O raw -N o.raw -n c.vhd").exits(22).told("has the id");
}

#[test]
fn an_id_of_zeros_is_never_written_into_a_child() {
    let b = Bench::new();
    let nameless = with(Gen::new(4 * MIB).full(0, 0x11), |g| g.uuid = RAW);
    nameless.write(&b.path("n.vhd"));
    Gen::new(4 * MIB).id(1).write(&b.path("g.vhd"));
    b.ok("snapshot -e -n d.vhd -p g.vhd");
    let before = fs::read(b.path("d.vhd")).unwrap();
    b.run("snapshot -n c.vhd -p n.vhd").exits(22).told("vhd-util repair");
    b.run("modify -n d.vhd -p n.vhd").exits(22).told("vhd-util repair");
    assert!(!b.path("c.vhd").exists() && fs::read(b.path("d.vhd")).unwrap() == before);
    // A child that an older version made over one: the container is not its disk, and nothing
    // merges into it.
    child(&b, "old.vhd", "n.vhd", RAW);
    let whole = fs::read(b.path("n.vhd")).unwrap();
    for line in ["read -r 0 -n", "coalesce -n", "convert -N o.vhd -n"] {
        b.run(&format!("{line} old.vhd")).exits(22).told("all zeros");
    }
    assert!(fs::read(b.path("n.vhd")).unwrap() == whole);
}

#[test]
fn a_fixed_image_without_all_its_bytes_is_read_by_nobody() {
    let b = Bench::new();
    b.ok("create -r -n full.vhd -s 4");
    let bytes = fs::read(b.path("full.vhd")).unwrap();
    fs::write(b.path("s.vhd"), &bytes[8192..]).unwrap();
    for format in ["raw", "fixed", "vhd"] {
        b.fails(22, &format!("convert -n s.vhd -N o -O {format}"));
        assert!(!b.path("o").exists());
    }
    b.fails(22, "snapshot -n c.vhd -p s.vhd");
    b.run("check -n s.vhd").exits(22).told("data missing");
}

#[test]
fn no_command_stores_what_a_wrong_parent_shows() {
    let b = Bench::new();
    Gen::new(4 * MIB).id(9).full(0, 0x99).write(&b.path("p.vhd"));
    child(&b, "c.vhd", "p.vhd", id(1));
    let before = fs::read(b.path("c.vhd")).unwrap();
    for line in ["fill -n", "compact -n", "coalesce -n", "read -r 0 -n", "map -n"] {
        b.run(&format!("{line} c.vhd")).exits(22).told("not the parent");
    }
    assert!(fs::read(b.path("c.vhd")).unwrap() == before);
}

#[test]
fn a_chain_does_not_grow_beyond_what_is_opened() {
    let b = Bench::new();
    b.ok("create -n 0.vhd -s 4");
    for i in 1..128 {
        b.ok(&format!("snapshot -e -n {i}.vhd -p {}.vhd", i - 1));
    }
    b.run("snapshot -e -n 128.vhd -p 127.vhd").exits(28).told("coalesce it first");
    assert!(!b.path("128.vhd").exists());
    b.ok("snapshot -e -n x.vhd -p 0.vhd");
    b.run("modify -n x.vhd -p 127.vhd").exits(28).told("coalesce it first");
    b.ok("modify -n x.vhd -p 126.vhd");
    assert_eq!(b.sector("127.vhd", 0), 0);
}

#[test]
fn a_raw_parents_odd_last_bytes_are_nobodys_sector() {
    let b = Bench::new();
    fs::write(b.path("raw.img"), vec![0x77; (1 << 20) + 700]).unwrap();
    b.ok("snapshot -n c.vhd -p raw.img -m");
    assert_eq!(files::bytes_at(&b.path("c.vhd"), 48, 8), ((1u64 << 20) + 512).to_be_bytes());
    assert_eq!(b.sector("c.vhd", 2048), 0x77);
    // A child that is larger, as an older version made it: zeros, whoever reads.
    child(&b, "l.vhd", "raw.img", RAW);
    assert_eq!((b.sector("l.vhd", 2048), b.sector("l.vhd", 2049)), (0x77, 0));
    b.ok("convert -O raw -N l.raw -n l.vhd");
    let flat = files::bytes_at(&b.path("l.raw"), (1 << 20) + 512, 512);
    assert_eq!(flat, [0; 512]);
    fs::write(b.path("tiny.img"), [1; 511]).unwrap();
    b.run("snapshot -n t.vhd -p tiny.img -m").exits(22).told("one sector");
    assert!(!b.path("t.vhd").exists());
}

#[test]
fn create_overwrites_nothing_that_others_stand_on() {
    let b = Bench::new();
    b.ok("create -n p.vhd -s 4");
    b.ok("fill -n p.vhd");
    b.ok("snapshot -n c.vhd -p p.vhd");
    let before = fs::read(b.path("p.vhd")).unwrap();
    for line in ["create -n p.vhd -s 4", "snapshot -n p.vhd -p c2.vhd"] {
        b.ok("create -n c2.vhd -s 4");
        b.run(line).exits(17).told("c.vhd");
    }
    assert!(fs::read(b.path("p.vhd")).unwrap() == before);
    fs::remove_file(b.path("c.vhd")).unwrap();
    b.ok("create -n p.vhd -s 4");
    // Whoever has it open, be it as a parent only, keeps it.
    fs::create_dir(b.path("away")).unwrap();
    b.ok("snapshot -n away/c.vhd -p p.vhd");
    let served = b.0.serve(&b.0.name("vhd", "away/c.vhd"), &[]);
    b.run("create -n p.vhd -s 4").exits(16).told("open");
    served.destroy();
    b.ok("create -n p.vhd -s 4");
}

/// A line of `scan` about another image, and what turns a terminal red.
const LINE: &str = "p.vhd\nvhd=victim.vhd capacity=4194304 size=3584 hidden=1 parent=none\x1b[31m";

#[test]
fn a_strangers_text_makes_no_lines_and_steers_no_terminal() {
    let b = Bench::new();
    Gen::new(4 * MIB).id(1).write(&b.path("p.vhd"));
    let locator = Locator { code: *b"MacX", space: None, bytes: format!("file://./{LINE}").into() };
    let evil = with(Gen::child(4 * MIB, "p.vhd", id(1)).id(2), |g| {
        g.locators = Some(vec![locator]);
        g.creator.0 = *b"a\nb\x1b";
    });
    evil.write(&b.path("evil.vhd"));
    let name: Vec<u8> = LINE.encode_utf16().flat_map(u16::to_be_bytes).collect();
    tests::rig::vhdgen::poke_header(&b.path("evil.vhd"), 64, &name);
    for line in [
        "scan -f -c",
        "scan -p -c",
        "scan -a -v -c",
        "scan -f --json",
        "query -p -n",
        "query -p -u -n",
        "read -p -n",
        "check -n",
        "info -n",
        "info --json -n",
        "map -n",
        "convert -N o.vhd -n",
    ] {
        let outcome = b.run(&format!("{line} evil.vhd"));
        for text in [&outcome.out, &outcome.err] {
            assert!(!text.contains("\nvhd=victim"), "{line}: {outcome:?}");
            assert!(!text.contains('\x1b'), "{line}: {outcome:?}");
        }
    }
    let dump = b.ok("read -p -n evil.vhd");
    assert!(dump.contains(r"Creator Application : 'a\nb\x1b'"), "{dump}");
    assert!(dump.contains(r"Parent name         : p.vhd\nvhd=victim.vhd"), "{dump}");
}

#[test]
fn a_locator_with_blanks_is_one_word_of_a_line() {
    let b = Bench::new();
    child(&b, "c.vhd", "p.vhd vhd=victim.vhd hidden=1", id(1));
    let line = b.ok("scan -f c.vhd");
    assert!(line.ends_with(r" parent=p.vhd\x20vhd\x3dvictim.vhd\x20hidden\x3d1"), "{line}");
}

#[test]
fn a_callers_name_stays_as_it_is_unless_it_would_make_a_line() {
    let b = Bench::new();
    b.ok("create -n p.vhd -s 4");
    let latin = std::ffi::OsString::from_vec(b"b\xfcro x.vhd".to_vec());
    let broken = std::ffi::OsString::from("a\nvhd=b \x1b[31m");
    for (name, shown) in [(latin, &b"vhd=b\xfcro x.vhd "[..]), (broken, br"vhd=a\nvhd=b \x1b[31m ")]
    {
        fs::copy(b.path("p.vhd"), b.0.work().join(&name)).unwrap();
        let mut scan = b.0.command(&programs().vhd_util);
        let outcome = run(scan.args(["scan", "-f"]).arg(&name), b"").ok();
        assert!(outcome.bytes.starts_with(shown), "{outcome:?}");
        assert_eq!(outcome.bytes.iter().filter(|byte| **byte == b'\n').count(), 1);
        let mut check = b.0.command(&programs().vhd_util);
        let outcome = run(check.args(["check", "-n"]).arg(&name), b"").ok();
        assert!(!outcome.bytes.contains(&0x1b), "{outcome:?}");
        let mut json = b.0.command(&programs().vhd_util);
        let outcome = run(json.args(["info", "--json", "-n"]).arg(&name), b"").ok();
        serde_json::from_slice::<serde_json::Value>(&outcome.bytes).expect("UTF-8 and JSON");
    }
}
