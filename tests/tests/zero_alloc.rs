//! The proof of no allocation and no page fault: 100,000 requests for each format × engine × chain
//! depth, with the counters that `tap-ctl stats` shows. Faults and allocations of the control path
//! between the two looks are kept out by looking several times before.
use serde_json::Value;
use tests::load::Load;
use tests::rig::{Engine, Rig, Served, files, qemu_img, qemu_io};

const WARM_UP: u32 = 20_000;
const REQUESTS: u32 = 100_000;
const DISK_MIB: &str = "64";
/// Measurements in which the kernel moved pages, before that is no excuse any more.
const TRIES_MAX: u32 = 5;

/// An image with `depth` layers, each with some data of its own.
fn chain(rig: &Rig, format: &str, depth: u32) -> String {
    let path = |i: u32| rig.path(&format!("{format}{i}")).display().to_string();
    if format == "aio" {
        let file = std::fs::File::create(path(1)).expect("an image");
        file.set_len(64 << 20).expect("an image");
    } else {
        rig.vhd_util(&["create", "-n", &path(1), "-s", DISK_MIB]).ok();
    }
    let kind = |i: u32| if i == 1 { format } else { "vhd" };
    for i in 2..=depth {
        // What each layer has of its own makes the reads of the next ones go down to it.
        let disk = rig.serve(&format!("{}:{}", kind(i - 1), path(i - 1)), &[]);
        let mut load = Load::connect(&disk.socket(), u64::from(i)).expect("a client");
        load.mixed(320, 32).expect("requests");
        drop(load);
        disk.destroy();
        let (child, parent) = (path(i), path(i - 1));
        let mut args = vec!["snapshot", "-n", &child, "-p", &parent];
        if kind(i - 1) == "aio" {
            args.push("-m");
        }
        rig.vhd_util(&args).ok();
    }
    format!("{}:{}", kind(depth), path(depth))
}

fn number(stats: &Value, path: &str) -> u64 {
    stats.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("stats have {path}"))
}

fn prove(engine: Engine, format: &str, depth: u32) {
    let rig = Rig::new(engine);
    let image = chain(&rig, format, depth);
    measure(engine, &image, &rig.serve(&image, &[]), REQUESTS);
}

/// Requests on a disk that is served, and what they cost.
fn measure(engine: Engine, image: &str, disk: &Served<'_>, requests: u32) {
    let engine = name_of(engine);
    let mut load = Load::connect(&disk.socket(), 42).expect("a client");
    load.reads_only = image.ends_with("[\"-R\"]");
    load.mixed(WARM_UP, 32).expect("the warm-up");
    (0..5).for_each(|_| drop(disk.stats()));
    let (mut before, mut after);
    let mut tries = 0;
    loop {
        let moved = pages_moved();
        before = disk.stats();
        load.mixed(requests, 32).expect("the requests");
        after = disk.stats();
        // The kernel puts free memory together by moving pages, locked ones as well
        // (vm.compact_unevictable_allowed); whoever touches one at that moment waits for it, which
        // counts as a fault. With builds and machines beside it that happens. It asks for no memory.
        let faulted = number(&after, "/faults/minor") > number(&before, "/faults/minor");
        tries += 1;
        if !faulted || pages_moved() == moved || tries == TRIES_MAX {
            break;
        }
        println!("{engine} {image}: the kernel moved pages meanwhile; once more");
    }
    for counter in ["/sealed/allocations", "/faults/major", "/faults/minor"] {
        let (old, new) = (number(&before, counter), number(&after, counter));
        assert_eq!(new - old, 0, "{engine} {image}: {counter} went from {old} to {new}");
    }
    let allocations = number(&after, "/sealed/allocations");
    assert_eq!(
        allocations, 0,
        "{engine} {image}: allocations in the sealed part, warm-up included"
    );
    assert_eq!(after.pointer("/engine/name").and_then(Value::as_str), Some(engine));
    let (arena, locked) =
        (number(&after, "/memory/arena_bytes"), number(&after, "/memory/locked_bytes"));
    assert!(locked >= arena, "{engine} {image}: {locked} bytes locked of an arena of {arena}");
    let ops = |stats: &Value| {
        let all = ["read", "write", "flush", "discard", "zero"];
        all.iter().map(|op| number(stats, &format!("/perf/ops/{op}"))).sum::<u64>()
    };
    let served = ops(&after) - ops(&before);
    assert!(served >= u64::from(requests), "{served} requests were served");
    println!("{engine} {image}: {served} requests, 0 allocations, 0 faults, {locked} bytes locked");
}

/// Pages that the kernel of this host has moved so far.
fn pages_moved() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").expect("the kernel's counters");
    let line = text.lines().find_map(|line| line.strip_prefix("pgmigrate_success "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

fn name_of(engine: Engine) -> &'static str {
    match engine {
        Engine::Uring => "io_uring",
        Engine::Aio => "linux-aio",
    }
}

fn depths(engine: Engine, format: &str) {
    for depth in [1, 5, 30] {
        prove(engine, format, depth);
    }
}

#[test]
fn vhd_on_io_uring() {
    depths(Engine::Uring, "vhd");
}

#[test]
fn vhd_on_linux_aio() {
    depths(Engine::Aio, "vhd");
}

#[test]
fn raw_and_vhd_over_raw_on_io_uring() {
    depths(Engine::Uring, "aio");
}

#[test]
fn raw_and_vhd_over_raw_on_linux_aio() {
    depths(Engine::Aio, "aio");
}

/// The layers that options put beside the images: log, local cache, mirror, all at once; and
/// encryption.
fn beside(engine: Engine) {
    let rig = Rig::new(engine);
    let path = |name: &str| rig.path(name).display().to_string();
    files::sparse(&rig.path("log"), 48 + 128);
    files::poke(&rig.path("log"), 40, &(64_u64 << 20).to_le_bytes());
    rig.vhd_util(&["create", "-n", "mirror.vhd", "-s", DISK_MIB]).ok();
    let image = chain(&rig, "vhd", 3);
    let (log, mirror) = (path("log"), rig.name("vhd", "mirror.vhd"));
    let (log, cache, mirror) = (["-C", &log], ["-r"], ["-2", &mirror]);
    let all = [&log[..], &cache, &mirror].concat();
    for options in [&log[..], &cache, &mirror, &all] {
        let disk = rig.serve(&image, options);
        measure(engine, &format!("{image} {options:?}"), &disk, REQUESTS / 4);
        disk.destroy();
    }
    files::unpack("encrypted-512.vhd.gz", &rig.path("e.vhd"));
    let (image, key) = (rig.name("vhd", "e.vhd"), Vec::from_iter(0..64));
    let disk = rig.serve_with_key(&image, &key).expect("the key fits");
    measure(engine, &image, &disk, REQUESTS / 4);
    disk.destroy();
}

#[test]
fn what_stands_beside_images_on_io_uring() {
    beside(Engine::Uring);
}

#[test]
fn what_stands_beside_images_on_linux_aio() {
    beside(Engine::Aio);
}

/// Plain clusters, packed ones and holes, over a raw parent: read; and written, which copies, makes
/// clusters and tables, gives them back and counts them down.
fn qcow2(engine: Engine) {
    let rig = Rig::new(engine);
    std::fs::write(rig.path("r.raw"), vec![7; 64 << 20]).expect("a parent");
    let create = |options: &str| {
        let words = ["create", "-q", "-f", "qcow2", "-b", "r.raw", "-F", "raw", "-o", options];
        qemu_img(&rig.work(), &[&words[..], &["l.qcow2", "64M"]].concat());
    };
    create("compat=1.1");
    let mut changes: Vec<String> =
        (0..200).map(|i| format!("write -c -P {i} {} 64k", i * 5 * 65536)).collect();
    changes.extend((0..60).map(|i| format!("write -P {i} {} 100k", i * 1_000_448)));
    let changes: Vec<&str> = changes.iter().map(String::as_str).collect();
    qemu_io("qcow2", &rig.path("l.qcow2").display().to_string(), &changes);
    let image = rig.name("qcow2", "l.qcow2");
    for options in [&["-R"][..], &[]] {
        let disk = rig.serve(&image, options);
        measure(engine, &format!("{image} {options:?}"), &disk, REQUESTS / 4);
        disk.destroy();
    }
    for options in ["cluster_size=4096", "extended_l2=on,cluster_size=16k", "compat=0.10"] {
        create(options);
        let disk = rig.serve(&image, &[]);
        measure(engine, &format!("{image} {options}"), &disk, REQUESTS / 4);
        disk.destroy();
        qemu_img(&rig.work(), &["check", "-q", "-f", "qcow2", "l.qcow2"]);
    }
}

#[test]
fn qcow2_on_io_uring() {
    qcow2(Engine::Uring);
}

#[test]
fn qcow2_on_linux_aio() {
    qcow2(Engine::Aio);
}

/// A disk that another tapdisk serves, as an image and as the parent of a VHD.
fn remotes(engine: Engine) {
    let rig = Rig::new(engine);
    let far = rig.serve(&chain(&rig, "aio", 1), &[]);
    let image = format!("nbd:{}", far.socket().display());
    let disk = rig.serve(&image, &[]);
    measure(engine, &image, &disk, REQUESTS);
    disk.destroy();
    let (leaf, parent) = (rig.path("leaf"), rig.path("aio1"));
    let (leaf, parent) = (leaf.display().to_string(), parent.display().to_string());
    // It is served meanwhile, and written by nobody.
    rig.vhd_util(&["snapshot", "-n", &leaf, "-p", &parent, "-m", "-e"]).ok();
    let minor = far.minor.to_string();
    let disk = rig.serve(&format!("vhd:{leaf}"), &["-e", &minor]);
    measure(engine, "vhd over nbd", &disk, REQUESTS / 4);
    disk.destroy();
}

#[test]
fn nbd_and_vhd_over_nbd_on_io_uring() {
    remotes(Engine::Uring);
}

#[test]
fn nbd_and_vhd_over_nbd_on_linux_aio() {
    remotes(Engine::Aio);
}
