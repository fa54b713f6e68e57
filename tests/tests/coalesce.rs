//! Coalesce and its relatives on real files and devices: killed at random moments, on full disks,
//! on block devices, between formats.
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tests::rig::places::{LoopDevice, SmallFileSystem, root};
use tests::rig::vhdgen::{Gen, id};
use tests::rig::{Engine, MIB, Rig, files, qemu_img, slow};
use tests::sim::rng::Rng;
use vhd_rs::chain::Chain;

/// Size of the disks.
const SIZE: u64 = 64 * MIB;
const BLOCKS: u64 = SIZE / (2 * MIB);

/// What an image shows.
fn shown(path: &Path) -> Vec<u8> {
    let chain = Chain::open(path).expect("a chain");
    let mut bytes = vec![0; chain.sectors() as usize * 512];
    chain.read(0, &mut bytes).expect("it can be read");
    bytes
}

/// A generated image with blocks by seed: some full, some with a few sectors.
fn with_blocks(mut image: Gen, rng: &mut Rng) -> Gen {
    for block in 0..BLOCKS as u32 {
        let byte = 1 + rng.below(200) as u8;
        match rng.below(3) {
            0 => {}
            1 => image = image.full(block, byte),
            _ => {
                let sectors: Vec<(u32, u8)> = (0..4096)
                    .filter(|s| s / 64 % 3 == block % 3 || s % 97 == block)
                    .map(|s| (s, byte.wrapping_add((s / 8) as u8)))
                    .collect();
                image = image.sectors(block, &sectors);
            }
        }
    }
    image
}

/// g.vhd ◄ p.vhd ◄ c.vhd
fn chain(rig: &Rig, seed: u64) {
    let mut rng = Rng::new(seed);
    with_blocks(Gen::new(SIZE).id(1), &mut rng).write(&rig.path("g.vhd"));
    with_blocks(Gen::child(SIZE, "g.vhd", id(1)).id(2), &mut rng).write(&rig.path("p.vhd"));
    with_blocks(Gen::child(SIZE, "p.vhd", id(2)).id(3), &mut rng).write(&rig.path("c.vhd"));
}

#[test]
fn killed_at_any_moment_it_is_started_again() {
    let rig = Rig::new(Engine::Aio);
    chain(&rig, 7);
    let want = shown(&rig.path("c.vhd"));
    let program = &tests::rig::programs().vhd_util;
    let (mut rng, mut killed) = (Rng::new(11), 0);
    for round in 0..if slow("most kills of a coalesce") { 60 } else { 10 } {
        let mut command = rig.command(program);
        // At full depth, and so slowly that the kill surely comes first.
        let rate = ["--rate", "64M"];
        command.args(["coalesce", "-n", "c.vhd"]).args(&rate[..if round % 2 == 0 { 0 } else { 2 }]);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("vhd-util starts");
        // Not a wait for anything: the moment of the kill is what chance decides.
        std::thread::sleep(Duration::from_micros(rng.below(100_000)));
        child.kill().expect("a process to kill");
        killed += u32::from(!child.wait().expect("it ends").success());
        assert!(shown(&rig.path("c.vhd")) == want, "the disk is another one after a kill");
        rig.vhd_util(&["check", "-n", "p.vhd", "-i"]).ok();
    }
    println!("{killed} kills came before the end");
    assert!(killed >= 5, "the slow ones come before the end");
    rig.vhd_util(&["coalesce", "-n", "c.vhd"]).ok();
    assert!(shown(&rig.path("p.vhd")) == want, "the parent shows what the child showed");
    rig.vhd_util(&["check", "-n", "p.vhd"]).ok().says("p.vhd is valid");
}

#[test]
fn into_an_ancestor_goes_everything_between() {
    let rig = Rig::new(Engine::Aio);
    chain(&rig, 8);
    let want = shown(&rig.path("c.vhd"));
    let kept = std::fs::read(rig.path("p.vhd")).expect("a file");
    rig.vhd_util(&["coalesce", "-n", "c.vhd", "--into", "nope.vhd"]).exits(2);
    rig.vhd_util(&["coalesce", "-n", "p.vhd", "--into", "c.vhd"]).exits(22);
    rig.vhd_util(&["coalesce", "-n", "c.vhd", "--into", "g.vhd"]).ok();
    assert!(shown(&rig.path("g.vhd")) == want);
    assert!(std::fs::read(rig.path("p.vhd")).expect("a file") == kept, "it was only read");
    rig.vhd_util(&["check", "-n", "g.vhd"]).ok();
}

#[test]
fn what_cannot_go_well_leaves_the_parent_as_it_was() {
    let rig = Rig::new(Engine::Aio);
    Gen::new(4 * MIB).id(1).full(0, 1).write(&rig.path("small.vhd"));
    let child = Gen::child(8 * MIB, "small.vhd", id(1));
    child.clone().sectors(0, &[(1, 5)]).sectors(2, &[(2, 4)]).write(&rig.path("c.vhd"));
    Gen::child(4 * MIB, "small.vhd", id(9)).full(1, 2).write(&rig.path("other.vhd"));
    Gen::child(4 * MIB, "self.vhd", id(4)).id(4).full(1, 2).write(&rig.path("self.vhd"));
    let before = std::fs::read(rig.path("small.vhd")).expect("a file");
    rig.vhd_util(&["coalesce", "-n", "c.vhd"]).exits(34).says("error coalescing: -34");
    rig.vhd_util(&["coalesce", "-n", "other.vhd"]).exits(22);
    rig.vhd_util(&["coalesce", "-n", "self.vhd"]).exits(40);
    assert!(std::fs::read(rig.path("small.vhd")).expect("a file") == before);
    // Only what lies beyond the end is in the way.
    child.sectors(0, &[(1, 5)]).write(&rig.path("c.vhd"));
    rig.vhd_util(&["coalesce", "-n", "c.vhd"]).ok().says("Coalesced 1 sectors");
}

#[test]
fn on_a_full_file_system_the_parent_stays_good() {
    if !root("a full file system") {
        return;
    }
    let rig = Rig::new(Engine::Aio);
    let small = SmallFileSystem::mount(&rig.path("small"), 16 * MIB);
    let mut child = Gen::child(SIZE, "small/p.vhd", id(2));
    for block in 0..12 {
        child = child.full(block, 1 + block as u8);
    }
    child.write(&rig.path("c.vhd"));
    Gen::new(SIZE).id(2).full(20, 9).write(&rig.path("small/p.vhd"));
    files::sparse(&rig.path("small/ballast"), 0);
    let want = shown(&rig.path("c.vhd"));
    rig.vhd_util(&["coalesce", "-n", "c.vhd"]).exits(28).says("error coalescing: -28");
    rig.vhd_util(&["check", "-n", "small/p.vhd"]).ok().says("small/p.vhd is valid");
    assert!(shown(&rig.path("c.vhd")) == want);
    let mut grow = rig.command(&tests::rig::tool("mount"));
    grow.args(["-o", "remount,size=64m"]).arg(rig.path("small"));
    tests::rig::run(&mut grow, b"").ok();
    rig.vhd_util(&["coalesce", "-n", "c.vhd"]).ok().says("Coalesced 49152 sectors");
    assert!(shown(&rig.path("small/p.vhd")) == want);
    drop(small);
}

#[test]
fn between_block_devices_it_is_the_same() {
    if !root("block devices") {
        return;
    }
    let rig = Rig::new(Engine::Aio);
    let devices: Vec<LoopDevice> = ["p", "c"]
        .map(|name| {
            files::sparse(&rig.path(name), SIZE + 4 * MIB);
            // Stale bytes everywhere, as on a volume that was another's.
            for at in (0..SIZE).step_by(1 << 20) {
                files::poke(&rig.path(name), at, &[0xdb; 1 << 20]);
            }
            LoopDevice::over(&rig.path(name), 512)
        })
        .into();
    let (parent, child) = (devices[0].name(), devices[1].name());
    rig.vhd_util(&["create", "-n", &parent, "-s", "64"]).ok();
    rig.vhd_util(&["snapshot", "-n", &child, "-p", &parent]).ok();
    let served = rig.serve(&format!("vhd:{child}"), &[]);
    let mut client = served.client();
    client.fill(3 * MIB, 5 * MIB, 0x21).expect("a write");
    client.fill(20 * MIB + 512, 4096, 0x22).expect("a write");
    let want = client.dump();
    drop(client);
    served.destroy();
    rig.vhd_util(&["coalesce", "-n", &child]).ok().says("Coalesced 10248 sectors");
    assert!(shown(devices[0].path()) == want);
    // -b: what lies under clear bits is zeros, so that programs that ignore bitmaps read right.
    rig.vhd_util(&["check", "-n", &parent, "-b"]).ok();
}

#[test]
fn conversions_show_the_same_disk() {
    let rig = Rig::new(Engine::Aio);
    chain(&rig, 9);
    let want = shown(&rig.path("c.vhd"));
    for (format, name) in [("vhd", "d.vhd"), ("fixed", "f.vhd"), ("raw", "r.raw")] {
        rig.vhd_util(&["convert", "-n", "c.vhd", "-N", name, "-O", format]).ok();
        rig.vhd_util(&["convert", "-n", "c.vhd", "-N", name, "-O", format]).exits(17);
    }
    assert!(shown(&rig.path("d.vhd")) == want && shown(&rig.path("f.vhd")) == want);
    assert!(std::fs::read(rig.path("r.raw")).expect("a file") == want);
    rig.vhd_util(&["check", "-n", "d.vhd"]).ok().says("d.vhd is valid");
    rig.vhd_util(&["convert", "-n", "r.raw", "-f", "raw", "-N", "again.vhd"]).ok();
    assert!(shown(&rig.path("again.vhd")) == want);
    let work = rig.work();
    qemu_img(&work, &["compare", "-f", "raw", "-F", "vpc", "r.raw", "again.vhd"]).ok();
    qemu_img(&work, &["compare", "-f", "raw", "-F", "vpc", "r.raw", "d.vhd"]).ok();
}

#[test]
fn compact_gives_zeros_back_and_ends_the_file_earlier() {
    let rig = Rig::new(Engine::Aio);
    let mut image = Gen::new(SIZE).id(1);
    for block in 0..BLOCKS as u32 {
        image = image.full(block, if block % 2 == 0 { 0 } else { 7 });
    }
    image.sectors(0, &[(5, 3)]).write(&rig.path("d.vhd"));
    let want = shown(&rig.path("d.vhd"));
    let before = files::size(&rig.path("d.vhd"));
    let told = rig.vhd_util(&["compact", "-n", "d.vhd"]).ok();
    assert!(told.out.starts_with("Freed 15 blocks, moved "), "{told:?}");
    assert!(shown(&rig.path("d.vhd")) == want);
    rig.vhd_util(&["check", "-n", "d.vhd"]).ok().says("d.vhd is valid");
    let after = files::size(&rig.path("d.vhd"));
    assert!(after <= before - 15 * 2 * MIB, "{before} became {after}");
    rig.vhd_util(&["compact", "-n", "d.vhd"]).ok().mentions("Freed 0 blocks, moved 0;");
}

#[test]
fn zeros_take_no_space_in_the_parent() {
    let rig = Rig::new(Engine::Aio);
    Gen::new(SIZE).id(1).full(1, 8).write(&rig.path("p.vhd"));
    let child = Gen::child(SIZE, "p.vhd", id(1)).full(0, 0).full(1, 0).full(2, 5);
    child.write(&rig.path("c.vhd"));
    let want = shown(&rig.path("c.vhd"));
    rig.vhd_util(&["coalesce", "-n", "c.vhd"]).ok().says("Coalesced 12288 sectors");
    assert!(shown(&rig.path("p.vhd")) == want);
    rig.vhd_util(&["query", "-n", "p.vhd", "-a"]).ok().says("2");
    assert!(files::disk_usage(&rig.path("p.vhd")) < 3 * MIB, "block 1 is a hole now");
}

#[test]
fn a_map_and_a_summary_tell_where_everything_is() {
    let rig = Rig::new(Engine::Aio);
    Gen::new(8 * MIB).id(1).full(0, 1).write(&rig.path("p.vhd"));
    let child = Gen::child(8 * MIB, "p.vhd", id(1)).sectors(0, &[(8, 2), (9, 2)]);
    child.write(&rig.path("c.vhd"));
    let told = rig.vhd_util(&["map", "-n", "c.vhd", "--json"]).ok();
    let map: serde_json::Value = serde_json::from_str(&told.out).expect("JSON");
    let ranges: Vec<(u64, u64, Option<u64>)> = map["ranges"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|r| {
            let number = |name: &str| r[name].as_u64();
            (number("start").unwrap(), number("length").unwrap(), number("layer"))
        })
        .collect();
    let two = 2 * MIB;
    let want = [
        (0, 4096, Some(1)),
        (4096, 1024, Some(0)),
        (5120, two - 5120, Some(1)),
        (two, 3 * two, None),
    ];
    assert_eq!(ranges, want);
    rig.vhd_util(&["map", "-n", "c.vhd"]).ok().mentions("c.vhd").mentions("zeros");
    let told = rig.vhd_util(&["info", "-n", "c.vhd", "--json"]).ok();
    let info: serde_json::Value = serde_json::from_str(&told.out).expect("JSON");
    assert_eq!(
        (&info["type"], &info["virtual_bytes"], &info["chain_depth"], &info["parent"]["raw"]),
        (&"differencing".into(), &(8 * MIB).into(), &2.into(), &false.into())
    );
    rig.vhd_util(&["info", "-n", "nope"]).exits(2).says("error opening nope: -2");
}

#[test]
fn progress_goes_to_standard_error_and_a_rate_is_kept() {
    let rig = Rig::new(Engine::Aio);
    Gen::new(SIZE).id(1).write(&rig.path("p.vhd"));
    let mut child = Gen::child(SIZE, "p.vhd", id(1));
    for block in 0..12 {
        child = child.full(block, 1);
    }
    child.write(&rig.path("c.vhd"));
    let begun = std::time::Instant::now();
    let args = ["coalesce", "-n", "c.vhd", "--progress=json", "--rate", "24M"];
    let told = rig.vhd_util(&args).ok().says("Coalesced 49152 sectors");
    assert!(begun.elapsed() > Duration::from_millis(700), "24 MiB at 24 MiB/s take about a second");
    let lines: Vec<serde_json::Value> = told
        .err
        .lines()
        .map(|line| serde_json::from_str(line).expect("every line is JSON"))
        .collect();
    let last = lines.last().expect("a line");
    assert!(lines.len() >= 2 && last["percent"] == 100.0 && last["bytes"] == 24 * MIB, "{lines:?}");
    rig.vhd_util(&["coalesce", "-n", "c.vhd", "--rate", "fast"]).exits(22);
}
