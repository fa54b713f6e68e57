//! Rings that end while their disk is used, in every way and at any moment, again and again.
//!
//! A round: a disk, threads that read and write it (direct and through the page cache), others that
//! open it, read sysfs, ask for the minor; then the end. All of them must come back, and the minor
//! must be free.
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tests::rig::blktap::{Control, PAGE, Ring, disk_name, op};
use tests::sim::rng::Rng;

use crate::session::{Outcome, Page, SOON, Session, block_ioctl, honest, open_direct, said, until};

const BLKFLSBUF: u64 = 0x1261;

pub fn main(words: &[String]) -> Outcome {
    let [seed, rounds, store] = words else { return Err("teardown SEED ROUNDS STORE".to_string()) };
    let number = |w: &String| w.parse::<u64>().map_err(|_| format!("{w} is no number"));
    let (seed, rounds) = (number(seed)?, number(rounds)?);
    let started = Instant::now();
    let mut ways = [0; 4];
    for round in 0..rounds {
        let mut rng = Rng::new(seed + round);
        let way = rng.below(4);
        ways[way as usize] += 1;
        let outcome = match way {
            0 => killed(&mut rng, store),
            _ => in_process(&mut rng, way),
        };
        outcome.map_err(|e| format!("seed {} (way {way}): {e}", seed + round))?;
    }
    honest()?;
    let [killed, unmapped, closed, nonsense] = ways;
    println!(
        "{rounds} rings ended under I/O in {} s: {killed} killed, {unmapped} unmapped, {closed} closed, {nonsense} by nonsense",
        started.elapsed().as_secs()
    );
    Ok(())
}

/// Those who use a disk. They go on after errors, as programs do, until told to stop.
struct Users {
    stop: Arc<AtomicBool>,
    threads: Vec<(&'static str, JoinHandle<()>)>,
}

impl Users {
    fn of(minor: u32, disk: &str, rng: &mut Rng) -> Result<Users, String> {
        let mut users = Users { stop: Arc::default(), threads: Vec::new() };
        for n in 0..rng.below(4) + 1 {
            let disk = open_direct(disk, true)?;
            let mut rng = Rng::new(rng.next());
            users.add("direct", move || direct(&disk, n, &mut rng));
        }
        if rng.below(2) == 0 {
            let disk = said(disk, OpenOptions::new().read(true).write(true).open(disk))?;
            let mut rng = Rng::new(rng.next());
            users.add("buffered", move || buffered(&disk, &mut rng));
        }
        let path = disk.to_string();
        users.add("opener", move || {
            if let Ok(mut disk) = File::open(&path) {
                let mut sector = [0; 512];
                let _ = disk.read(&mut sector);
            }
        });
        users.add("sysfs", move || {
            let tap = format!("/sys/class/blktap2/blktap!blktap{minor}");
            for file in ["debug", "task", "name"] {
                let _ = fs::read(format!("{tap}/{file}"));
            }
            let _ = fs::read("/sys/class/blktap2/devices");
            let queue = format!("/sys/block/{}/queue", disk_name(minor));
            let _ = fs::read(format!("{queue}/scheduler"));
        });
        Ok(users)
    }

    fn add(&mut self, name: &'static str, mut work: impl FnMut() + Send + 'static) {
        let stop = self.stop.clone();
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                work();
            }
        });
        self.threads.push((name, thread));
    }

    fn gone(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        let end = Instant::now() + SOON;
        for (name, thread) in self.threads {
            while !thread.is_finished() {
                if Instant::now() > end {
                    return Err(format!("{name} hangs"));
                }
                thread::sleep(Duration::from_millis(1));
            }
            thread.join().map_err(|_| format!("{name} panicked"))?;
        }
        Ok(())
    }
}

fn direct(disk: &File, n: u64, rng: &mut Rng) {
    let mut page = Box::new(Page([n as u8; PAGE]));
    let at = rng.below(1024) * PAGE as u64;
    let _ = match rng.below(3) {
        0 => disk.write_all_at(&page.0, at),
        1 => disk.sync_data(),
        _ => disk.read_exact_at(&mut page.0, at),
    };
}

fn buffered(disk: &File, rng: &mut Rng) {
    let bytes = vec![7; 65536];
    let _ = disk.write_all_at(&bytes, rng.below(128) * 65536);
    let _ = match rng.below(4) {
        0 => disk.sync_all(),
        1 => block_ioctl(disk, BLKFLSBUF),
        _ => Ok(()),
    };
}

/// A little time for the others, another one each round.
fn a_while(rng: &mut Rng) {
    thread::sleep(Duration::from_micros(rng.below(20_000)));
}

/// A server in a process of its own, killed.
fn killed(rng: &mut Rng, store: &str) -> Outcome {
    let control = said("control device", Control::open())?;
    let minor = said("ALLOC_TAP", control.allocate())?.minor;
    // Some never answer, some stop after a while, some go on: I/O is in flight in every case.
    let answers = [0, 1, 40, 100_000][rng.below(4) as usize];
    let mut server = serve(store, minor, answers)?;
    let mut line = String::new();
    let output = server.stdout.as_mut().expect("a pipe");
    said("the server's first line", BufReader::new(output).read_line(&mut line))?;
    let disk = line.split_whitespace().nth(1).ok_or("the server has not started")?.to_string();
    until("the disk's node", || fs::metadata(&disk).is_ok())?;
    let users = Users::of(minor, &disk, rng)?;
    a_while(rng);
    said("kill", server.kill())?;
    said("wait", server.wait())?;
    // At once: it waits for the disk's end.
    let freed = control.free(minor);
    users.gone()?;
    said("FREE_TAP", freed)?;
    same_as_before(minor, &disk)
}

fn serve(store: &str, minor: u32, answers: u64) -> Result<Child, String> {
    let own = said("own program", std::env::current_exe())?;
    let mut command = Command::new(own);
    command.args(["serve", store, &format!("minor={minor}"), &format!("answers={answers}")]);
    // SAFETY: a system call with numbers: it ends with this process, also when that is killed by
    // its limit.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    };
    said("server", command.stdout(Stdio::piped()).spawn())
}

/// A server in this process: a thread answers; the ring ends under it.
fn in_process(rng: &mut Rng, way: u64) -> Outcome {
    let Session { control, minor, mut ring } = Session::new()?;
    let disk = format!("/dev/xen/blktap-2/tapdev{minor}");
    let users = Users::of(minor, &disk, rng)?;
    let end = Instant::now() + Duration::from_micros(rng.below(20_000));
    let lazy = rng.below(3);
    while Instant::now() < end {
        answer_some(&mut ring, lazy, rng)?;
        let _ = ring.poll(1);
    }
    match way {
        1 => said("munmap", ring.unmap())?,
        2 => {}
        _ => {
            ring.set_rsp_prod(ring.answered.wrapping_add(40));
            if ring.respond().is_ok() {
                return Err("nonsense was taken".to_string());
            }
        }
    }
    a_while(rng);
    drop(ring);
    let freed = control.free(minor);
    users.gone()?;
    said("FREE_TAP", freed)?;
    same_as_before(minor, &disk)
}

fn answer_some(ring: &mut Ring, lazy: u64, rng: &mut Rng) -> Outcome {
    while let Some(request) = ring.take() {
        if lazy > 0 && rng.below(4) < lazy {
            continue;
        }
        let status = if request.operation == op::FLUSH { 0 } else { -(rng.below(8) as i16 / 7) };
        ring.answer(&request, status);
    }
    said("RESPOND", ring.respond())
}

fn same_as_before(minor: u32, disk: &str) -> Outcome {
    for path in [
        disk.to_string(),
        format!("/dev/xen/blktap-2/blktap{minor}"),
        format!("/sys/class/blktap2/blktap!blktap{minor}"),
        format!("/sys/block/{}", disk_name(minor)),
    ] {
        if fs::metadata(&path).is_ok() {
            return Err(format!("{path} is still there"));
        }
    }
    let _ = std::io::stdout().flush();
    Ok(())
}
