//! Kills and power cuts under a tapdisk on a real file system. As root.
//!
//! ```text
//! crashes cuts STORE [key=value ...]    STORE (ext4, xfs) on a loop device over a logging file server
//! crashes kills STORE [key=value ...]   STORE on a loop device over a file
//! keys: count=100 seed=1 lives=12 engine=uring|aio piece=512
//! ```
//! A guest that forges footers writes whole blocks and parts of them, zeros, trims and flushes,
//! between pauses, kills and closes. After each crash `vhd-util check`, `query` and `scan` and
//! `qemu-img info` and `map` must find a whole image, and what was flushed (after a kill: what was
//! answered) is there. Kills come while writes, a pause, a resume or a close are on their way. A
//! power cut happens on paper: of the log everything up to a flush is on the medium, and of what
//! follows, up to some point, a random part, in pieces of 512 bytes. The programs are those of
//! `TAPDISK_TESTS_BIN`.
mod disk;
mod store;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use disk::{Model, SIZE_MIB, Writer};
use store::Store;
use tests::rig::{Engine, Outcome, Rig, Served, programs, run, tool};
use tests::sim::rng::Rng;

/// What was asked for.
struct Job {
    store: String,
    count: u64,
    seed: u64,
    lives: u64,
    engine: Engine,
    /// So many bytes are written whole or not at all.
    piece: usize,
}

fn job(store: &str, words: &[String]) -> Result<Job, String> {
    if !["ext4", "xfs"].contains(&store) {
        return Err(format!("{store} is not ext4 or xfs"));
    }
    let engine = Engine::Uring;
    let mut job = Job { store: store.into(), count: 100, seed: 1, lives: 12, engine, piece: 512 };
    for word in words {
        let (key, value) = word.split_once('=').ok_or(format!("{word} is no key=value"))?;
        let number = || value.parse().map_err(|_| format!("{word} holds no number"));
        match (key, value) {
            ("count", _) => job.count = number()?,
            ("seed", _) => job.seed = number()?,
            ("lives", _) => job.lives = number()?,
            ("piece", _) => job.piece = (number()? as usize).max(512),
            ("engine", "uring") => job.engine = Engine::Uring,
            ("engine", "aio") => job.engine = Engine::Aio,
            _ => return Err(format!("{word} is no key with a value")),
        }
    }
    Ok(job)
}

/// A file system that is mounted until this is dropped.
struct Mounted<'a> {
    device: PathBuf,
    folder: &'a Path,
}

/// The loop devices over a file.
fn holders(file: &Path) -> String {
    run(Command::new(tool("losetup")).arg("-j").arg(file), b"").ok().out.trim().to_string()
}

/// Nobody but this process and its children sees what is mounted from now on. Who copies the mounts
/// for a name space of his own (a container, a chroot of another test) would keep a file system
/// alive after it is unmounted here, and the next cut would look at that one.
fn hide_mounts() -> Result<(), String> {
    // SAFETY: no pointers; nothing else runs yet.
    let mut done = unsafe { libc::unshare(libc::CLONE_NEWNS) };
    if done == 0 {
        let (none, flags) = (std::ptr::null(), libc::MS_REC | libc::MS_SLAVE);
        // SAFETY: the root's name, and nothing else that is read.
        done = unsafe { libc::mount(none, c"/".as_ptr(), none, flags, none.cast()) };
    }
    let error = std::io::Error::last_os_error();
    if done == 0 { Ok(()) } else { Err(format!("cannot mount for itself alone: {error}")) }
}

impl<'a> Mounted<'a> {
    fn over(device: &Path, folder: &'a Path) -> Result<Mounted<'a>, String> {
        // mount would take a loop device that has this file already, and with it a file system that
        // is still mounted somewhere: what it remembers would be looked at, not what the file
        // holds.
        let held = holders(device);
        if !held.is_empty() {
            return Err(format!("{} is still held: {held}", device.display()));
        }
        let mut mount = Command::new(tool("mount"));
        let done = run(mount.args(["-o", "loop"]).args([device, folder]), b"");
        if done.code != 0 {
            return Err(done.err.trim().to_string());
        }
        Ok(Mounted { device: device.into(), folder })
    }
}

impl Drop for Mounted<'_> {
    /// Requests of a killed daemon hold the file system until they are over.
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(60);
        loop {
            let done = run(Command::new(tool("umount")).arg(self.folder), b"");
            if done.code == 0 || std::thread::panicking() {
                break;
            }
            assert!(Instant::now() < until, "{done:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        // The device goes with the last that looks at it, udev perhaps.
        while !holders(&self.device).is_empty() && !std::thread::panicking() {
            assert!(Instant::now() < until, "{}", holders(&self.device));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn format(store: &str, file: &Path) {
    let mut mkfs = Command::new(tool(&format!("mkfs.{store}")));
    mkfs.arg("-q").arg(file);
    run(&mut mkfs, b"").ok();
}

/// What is wrong with what a program said, if anything.
fn short(done: Outcome, wanted: &str) -> String {
    if done.code == 0 && done.out.contains(wanted) {
        return String::new();
    }
    let first = |text: &str| text.lines().next().unwrap_or_default().to_string();
    format!("{}: {}, {}, {}", done.what, done.code, first(&done.out), first(&done.err))
}

/// What anybody finds wrong with the image; an empty text if nothing.
fn complaint(rig: &Rig, image: &Path) -> String {
    let name = image.display().to_string();
    let size = SIZE_MIB.to_string();
    let vhd_util = |args: &[&str], wanted: &str| {
        let done = rig.vhd_util(args);
        short(done, wanted)
    };
    let qemu_img = |what: &str, wanted: &str| {
        let mut qemu = Command::new(tool("qemu-img"));
        let done = run(qemu.args([what, "-f", "vpc", &name]), b"");
        short(done, wanted)
    };
    let capacity = format!("capacity={}", SIZE_MIB << 20);
    let all = [
        vhd_util(&["check", "-n", &name], "is valid"),
        vhd_util(&["query", "-n", &name, "-v"], &size),
        vhd_util(&["scan", "-f", "-m", &name], &capacity),
        qemu_img("info", &format!("virtual size: {size} MiB")),
        qemu_img("map", "Offset"),
    ];
    all.into_iter().find(|text| !text.is_empty()).unwrap_or_default()
}

/// What came of each crash.
#[derive(Default)]
struct Tally {
    found: BTreeMap<String, u64>,
    pages: u64,
}

impl Tally {
    fn add(&mut self, what: &str, outcome: Result<u64, String>) {
        match outcome {
            Ok(pages) => {
                self.pages += pages;
                *self.found.entry(format!("whole after {what}")).or_default() += 1;
            }
            Err(why) => {
                println!("{what}: {why}");
                *self.found.entry("WRONG".into()).or_default() += 1;
            }
        }
    }

    fn end(&self) -> bool {
        println!("{:?}; {} pages compared", self.found, self.pages);
        !self.found.contains_key("WRONG")
    }
}

/// The image as it stands, and what must be in it. A bad one goes to the folder of `CRASHES_KEEP`.
fn judge(rig: &Rig, image: &Path, expected: &BTreeMap<u64, u64>) -> Result<u64, String> {
    let judged = match complaint(rig, image) {
        none if none.is_empty() => disk::compare(image, expected),
        why => Err(why),
    };
    if let (Err(_), Some(folder)) = (&judged, std::env::var_os("CRASHES_KEEP")) {
        let name = format!("{}-{:?}.vhd", std::process::id(), Instant::now());
        let name = name.replace(|c: char| !c.is_ascii_alphanumeric() && c != '.', "-");
        std::fs::copy(image, Path::new(&folder).join(name)).expect("room to keep an image");
    }
    judged
}

// ---- power cuts --------------------------------------------------------------------------------

fn cuts(job: &Job) -> Result<bool, String> {
    let mut rng = Rng::new(job.seed);
    let home = tempfile::tempdir().map_err(|e| e.to_string())?;
    let blank = home.path().join("blank");
    tests::rig::files::sparse(&blank, 320 << 20);
    format(&job.store, &blank);
    let store = Store::mount(&home.path().join("store"), &blank).map_err(|e| e.to_string())?;
    let rig = Rig::new(job.engine);
    let (model, begin) = record(job, &rig, &store, &mut rng)?;
    let (records, flushes) = store.stop_recording();
    println!("{records} records, {} flushes, seed {}", flushes.len(), job.seed);

    let mut points: Vec<usize> =
        (0..job.count).map(|_| begin + rng.below((records - begin) as u64 + 1) as usize).collect();
    points.sort_unstable();
    let folder = home.path().join("cut");
    std::fs::create_dir(&folder).map_err(|e| e.to_string())?;
    let mut tally = Tally::default();
    for point in points {
        let part = [1, 2][rng.below(2) as usize];
        let flushed = store.cut(point, job.piece, |_| rng.one_in(part));
        let outcome = Mounted::over(&store.file(), &folder)
            .and_then(|_mounted| judge(&rig, &folder.join("a.vhd"), &model.flushed_at(point)));
        let outcome = outcome.map_err(|why| format!("record {point}, flushed {flushed}: {why}"));
        tally.add("a cut", outcome);
    }
    Ok(tally.end())
}

/// Lets the disk live on the store. What was written, and from which record on the image is there.
fn record(job: &Job, rig: &Rig, store: &Store, rng: &mut Rng) -> Result<(Model, usize), String> {
    let work = rig.work();
    let _mounted = Mounted::over(&store.file(), &work)?;
    rig.vhd_util(&["create", "-n", "a.vhd", "-s", &SIZE_MIB.to_string()]).ok();
    let synced = std::fs::File::open(&work).and_then(|folder| folder.sync_all());
    synced.map_err(|e| e.to_string())?;
    run(Command::new(tool("sync")).arg("-f").arg(rig.path("a.vhd")), b"").ok();
    let begin = store.records();
    let mut model = Model::default();
    for number in 0..job.lives {
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut writer = Writer::new(served.client(), &mut model, rng, || store.records());
        writer.check()?;
        writer.write(30);
        match number % 4 {
            0 => {
                drop(writer);
                served.pause();
                served.unpause(&[]);
                let mut writer = Writer::new(served.client(), &mut model, rng, || store.records());
                writer.write(10);
                drop(writer);
                served.destroy();
            }
            3 => {
                writer.throw(8);
                served.crash();
            }
            _ => {
                drop(writer);
                served.destroy();
            }
        }
    }
    Ok((model, begin))
}

// ---- kills -------------------------------------------------------------------------------------

fn kills(job: &Job) -> Result<bool, String> {
    let mut rng = Rng::new(job.seed);
    let home = tempfile::tempdir().map_err(|e| e.to_string())?;
    let file = home.path().join("store");
    tests::rig::files::sparse(&file, 320 << 20);
    format(&job.store, &file);
    let rig = Rig::new(job.engine);
    let work = rig.work();
    let _mounted = Mounted::over(&file, &work)?;
    rig.vhd_util(&["create", "-n", "a.vhd", "-s", &SIZE_MIB.to_string()]).ok();
    println!("{} kills, seed {}", job.count, job.seed);
    let mut model = Model::default();
    let mut tally = Tally::default();
    let mut last = [Duration::from_millis(20); 4];
    for _ in 0..job.count {
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut writer = Writer::new(served.client(), &mut model, &mut rng, || 0);
        if let Err(why) = writer.check() {
            tally.add("a kill", Err(why));
        }
        writer.write(6);
        let how = writer.rng().below(4) as usize;
        let wait = writer.rng().below(1024) as u32;
        let name = ["writes", "a pause", "a resume", "a close"][how];
        if how == 0 {
            writer.throw(12);
            served.crash();
        } else {
            drop(writer);
            last[how] = killed_within(&rig, served, how, last[how] * wait / 900);
        }
        tally.add(name, judge(&rig, &rig.path("a.vhd"), &model.answered()));
    }
    rig.serve(&rig.name("vhd", "a.vhd"), &[]).destroy();
    tally.add("the end", judge(&rig, &rig.path("a.vhd"), &model.answered()));
    Ok(tally.end())
}

/// Kills the daemon so long after a command to it began; how long the command took at most.
fn killed_within(rig: &Rig, served: Served<'_>, how: usize, wait: Duration) -> Duration {
    if how == 2 {
        served.pause();
    }
    let (pid, minor) = (served.pid.to_string(), served.minor.to_string());
    let mut command = rig.command(&programs().tap_ctl);
    command.args([["", "pause", "unpause", "destroy"][how], "-p", &pid, "-m", &minor]);
    command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let begun = Instant::now();
    let mut child = command.spawn().expect("tap-ctl is there");
    std::thread::sleep(wait);
    served.crash();
    let _ = child.wait();
    // What took longer was stopped by the kill, and what ended sooner was over.
    begun.elapsed().clamp(wait / 2, wait + Duration::from_millis(5))
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let job = |store, rest| hide_mounts().and_then(|()| job(store, rest));
    let done = match &words[..] {
        [what, store, rest @ ..] if what == "cuts" => job(store, rest).and_then(|job| cuts(&job)),
        [what, store, rest @ ..] if what == "kills" => job(store, rest).and_then(|job| kills(&job)),
        _ => Err("usage: crashes cuts|kills ext4|xfs [key=value ...]".into()),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("crashes: {why}");
            ExitCode::FAILURE
        }
    }
}
