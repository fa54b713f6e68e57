//! Every error that README.md names for the ioctls, and open.
use std::ffi::CString;
use std::fs;
use std::path::Path;

use libc::{EACCES, EBUSY, EEXIST, EFAULT, EINVAL, ENODEV, ENOTTY};
use tests::rig::blktap::{
    Control, FOLDER, Info, PAGE, Ring, call, disk_name, flag, ioctl, plain_ioctl, sysfs,
};

use crate::session::{Outcome, Session, in_child, info, refused, said, until};

pub fn main() -> Outcome {
    control_device()?;
    ring_device()?;
    sizes()?;
    flags()?;
    busy_disk()?;
    old_form()?;
    sysfs_files()
}

fn minors() -> usize {
    let entries = fs::read_dir("/sys/class/blktap2").map(|d| {
        d.flatten().filter(|e| e.file_name().to_string_lossy().starts_with("blktap")).count()
    });
    entries.unwrap_or(0)
}

fn control_device() -> Outcome {
    let control = said("control device", Control::open())?;
    refused("an unknown ioctl", ENOTTY, plain_ioctl(&control.0, 202, 0))?;
    refused("ioctl 0", ENOTTY, plain_ioctl(&control.0, 0, 0))?;
    let before = minors();
    refused("ALLOC_TAP to nowhere", EFAULT, plain_ioctl(&control.0, call::ALLOC, 0))?;
    if minors() != before {
        return Err("ALLOC_TAP to nowhere left a minor".to_string());
    }
    for minor in [16384, u32::MAX] {
        refused("FREE_TAP of a minor beyond all", EINVAL, control.free(minor))?;
    }
    let beyond = plain_ioctl(&control.0, call::FREE, 1 << 32);
    refused("FREE_TAP of 1 << 32", EINVAL, beyond)?;
    refused("FREE_TAP of a minor that nobody has", ENODEV, control.free(16383))?;

    let handle = said("ALLOC_TAP", control.allocate())?;
    let devices = said("/proc/devices", fs::read_to_string("/proc/devices"))?;
    for (major, name) in [(handle.ring_major, "blktap2"), (handle.bdev_major, "tapdev")] {
        if !devices.lines().any(|l| l.trim() == format!("{major} {name}")) {
            return Err(format!("major {major} is not {name}'s"));
        }
    }
    let ring = said("open", Ring::open(handle.minor))?;
    refused("FREE_TAP of an open ring", EBUSY, control.free(handle.minor))?;
    drop(ring);
    said("FREE_TAP", control.free(handle.minor))?;
    refused("FREE_TAP again", ENODEV, control.free(handle.minor))?;

    // A node of a minor that does not exist, as an older tap-ctl leaves them behind.
    let node = format!("{FOLDER}/blktap16000");
    let name = CString::new(node.clone()).expect("no zero byte");
    // SAFETY: a path and numbers.
    unsafe {
        libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(handle.ring_major, 16000))
    };
    let outcome = refused("open of a minor that nobody has", ENODEV, Ring::open(16000));
    let _ = fs::remove_file(node);
    outcome
}

fn ring_device() -> Outcome {
    let control = said("control device", Control::open())?;
    let minor = said("ALLOC_TAP", control.allocate())?.minor;
    let mut ring = said("open", Ring::open(minor))?;
    refused("a second open", EBUSY, Ring::open(minor))?;
    for number in [call::RESPOND, call::CREATE, call::CREATE_OLD, call::REMOVE] {
        refused("an ioctl before mmap", EACCES, plain_ioctl(&ring.file, number, 0))?;
    }
    if said("poll", ring.poll(0))? != 0 {
        return Err("an unmapped ring is readable".to_string());
    }
    said("mmap", ring.map())?;
    // (2 is FIGETBSZ, which the kernel answers for every file.)
    for number in [0, 3, 200, 203, 204, 205, 206, 210] {
        refused("an unknown ioctl", ENOTTY, plain_ioctl(&ring.file, number, 0))?;
    }
    said("RESPOND without anything", ring.respond())?;
    said("REMOVE_DEVICE without a disk", ring.remove())?;
    refused("CREATE_DEVICE from nowhere", EFAULT, plain_ioctl(&ring.file, call::CREATE, 0))?;
    refused("the old form from nowhere", EFAULT, plain_ioctl(&ring.file, call::CREATE_OLD, 0))?;
    // The mapping belongs to this process alone.
    let denied = || ring.respond().is_err_and(|e| e.raw_os_error() == Some(EACCES));
    if !in_child(denied) {
        return Err("a process without the mapping may RESPOND".to_string());
    }
    drop(ring);
    said("FREE_TAP", control.free(minor))
}

fn sizes() -> Outcome {
    let session = Session::mapped()?;
    let base = info();
    let wrong = [
        ("no capacity", Info { capacity: 0, ..base }),
        ("sector size 0", Info { sector_size: 0, ..base }),
        ("sector size 256", Info { sector_size: 256, ..base }),
        ("sector size 513", Info { sector_size: 513, ..base }),
        ("sector size 8192", Info { sector_size: 8192, ..base }),
        ("half a sector at the end", Info { sector_size: 4096, capacity: 32764, ..base }),
        ("more bytes than there are numbers", Info { capacity: 1 << 55, ..base }),
        ("all ones as capacity", Info { capacity: u64::MAX, ..base }),
        ("physical size 0", Info { flags: flag::PHYSICAL, ..base }),
        ("physical size 1000", Info { flags: flag::PHYSICAL, phys_block_size: 1000, ..base }),
        ("physical size 128 KiB", Info { flags: flag::PHYSICAL, phys_block_size: 1 << 17, ..base }),
        (
            "physical below logical",
            Info { flags: flag::PHYSICAL, phys_block_size: 512, sector_size: 4096, ..base },
        ),
        ("trims of 1000 bytes", Info { trim_block_size: 1000, ..base }),
        ("trims below a sector", Info { trim_block_size: 512, sector_size: 1024, ..base }),
    ];
    for (what, mut info) in wrong {
        refused(what, EINVAL, session.ring.create(&mut info))?;
    }
    let name = disk_name(session.minor);
    if Path::new(&format!("/sys/block/{name}")).exists() {
        return Err("a refused CREATE_DEVICE left a disk".to_string());
    }
    for (info, file, expected) in [
        (Info { sector_size: 4096, ..base }, "queue/logical_block_size", "4096"),
        (Info { physical_sector_size: 4096, ..base }, "queue/physical_block_size", "4096"),
        // What the other form has there may be anything.
        (Info { physical_sector_size: 0xdead_beef, ..base }, "queue/physical_block_size", "512"),
        (
            Info {
                flags: flag::PHYSICAL,
                phys_block_size: 2048,
                physical_sector_size: 4096,
                ..base
            },
            "queue/physical_block_size",
            "2048",
        ),
        (Info { trim_block_size: 65536, ..base }, "queue/discard_granularity", "65536"),
        (base, "queue/discard_granularity", "512"),
        (Info { flags: 0, ..base }, "queue/discard_max_bytes", "0"),
        (Info { flags: 0, ..base }, "queue/write_cache", "write through"),
        (Info { flags: flag::FLUSH, ..base }, "queue/write_cache", "write back"),
        (Info { flags: flag::FLUSH, ..base }, "queue/fua", "0"),
        (Info { flags: flag::FLUSH | flag::FUA, ..base }, "queue/fua", "1"),
        (Info { flags: 0, ..base }, "queue/write_zeroes_max_bytes", "0"),
        (Info { flags: flag::READ_ONLY, ..base }, "ro", "1"),
        (base, "ro", "0"),
        (base, "size", "32768"),
        (base, "queue/max_hw_sectors_kb", "44"),
    ] {
        let mut info = info;
        said(file, session.ring.create(&mut info))?;
        let found = said(file, sysfs(&format!("/sys/block/{name}/{file}")))?;
        if found != expected {
            return Err(format!("{file} is {found}, not {expected}"));
        }
        until("REMOVE_DEVICE", || session.ring.remove().is_ok())?;
    }
    session.end()
}

fn flags() -> Outcome {
    let session = Session::mapped()?;
    let known = flag::READ_ONLY | flag::PHYSICAL | flag::FLUSH | flag::TRIM;
    let known = known | flag::ZEROES | flag::FUA | flag::LEVEL;
    for (given, accepted) in [
        (u64::MAX, known),
        (0x1f, 0xf),
        (flag::FUA, 0),
        (flag::FUA | flag::FLUSH, flag::FUA | flag::FLUSH),
        (0, 0),
        (1, 1),
    ] {
        let mut info = Info { flags: given, phys_block_size: 4096, ..info() };
        said("CREATE_DEVICE", session.ring.create(&mut info))?;
        if info.flags != accepted {
            return Err(format!(
                "of flags {given:#x}, {:#x} were accepted, not {accepted:#x}",
                info.flags
            ));
        }
        until("REMOVE_DEVICE", || session.ring.remove().is_ok())?;
    }

    // A caller whose structure cannot be written: fine as long as nothing has to be.
    // SAFETY: a new mapping.
    let page = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        libc::mmap(std::ptr::null_mut(), PAGE, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
    };
    assert_ne!(page, libc::MAP_FAILED);
    for (given, fine) in [(flag::FLUSH, true), (flag::FLUSH | 0x8000, false)] {
        // SAFETY: the page is ours, and big enough for the structure; the kernel only reads it.
        let result = unsafe {
            libc::mprotect(page, PAGE, libc::PROT_READ | libc::PROT_WRITE);
            page.cast::<Info>().write(Info { flags: given, ..info() });
            libc::mprotect(page, PAGE, libc::PROT_READ);
            ioctl(&session.ring.file, call::CREATE, page as usize)
        };
        if fine {
            said("CREATE_DEVICE from memory that cannot be written", result)?;
            until("REMOVE_DEVICE", || session.ring.remove().is_ok())?;
        } else {
            refused("flags that cannot be written back", EFAULT, result)?;
            if Path::new(&session.disk()).exists() {
                return Err("a disk was made all the same".to_string());
            }
        }
    }
    session.end()
}

fn busy_disk() -> Outcome {
    let mut session = Session::new()?;
    refused("a second disk", EEXIST, session.ring.create(&mut info()))?;
    refused("a second disk, old form", EEXIST, session.ring.create_old("x", 8, 512))?;
    let open = said("open of the disk", fs::File::open(session.disk()))?;
    refused("REMOVE_DEVICE of an open disk", EBUSY, session.ring.remove())?;
    if said("poll", session.ring.poll(0))? & libc::POLLPRI != 0 {
        return Err("POLLPRI while the disk is open".to_string());
    }
    // Whoever closes it last tells; a poller asleep at that moment is woken.
    let closer = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(open);
    });
    until("POLLPRI", || session.ring.poll(60_000).is_ok_and(|e| e & libc::POLLPRI != 0))?;
    closer.join().expect("no panic");
    until("REMOVE_DEVICE", || session.ring.remove().is_ok())?;
    if Path::new(&session.disk()).exists() {
        return Err("the node of a removed disk is there".to_string());
    }

    // A request that nobody has answered keeps the disk as well, and it can have another disk
    // afterwards.
    said("a second CREATE_DEVICE", session.ring.create(&mut info()))?;
    let reads = session.reads(1)?;
    let request = session.requests(1)?.remove(0);
    refused("REMOVE_DEVICE with a request outstanding", EBUSY, session.ring.remove())?;
    session.ring.answer(&request, 0);
    said("RESPOND", session.ring.respond())?;
    crate::session::ended("a read", &reads, 1, 0)?;
    session.end()
}

fn old_form() -> Outcome {
    let session = Session::mapped()?;
    refused("no sectors", EINVAL, session.ring.create_old("x", 0, 512))?;
    refused("a sector size of 64 bits", EINVAL, session.ring.create_old("x", 8, (1 << 32) + 512))?;
    said("the old form", session.ring.create_old("vhd:/some/disk.vhd", 2048, 512))?;
    let folder = format!("/sys/class/blktap2/blktap!blktap{}", session.minor);
    let name = said("name", sysfs(&format!("{folder}/name")))?;
    if name != "vhd:/some/disk.vhd" {
        return Err(format!("the name is {name}"));
    }
    let devices = said("devices", sysfs("/sys/class/blktap2/devices"))?;
    if !devices.lines().any(|l| l == format!("{} {name}", session.minor)) {
        return Err(format!("not in `devices`: {devices}"));
    }
    session.end()
}

fn sysfs_files() -> Outcome {
    let mut session = Session::new()?;
    let folder = format!("/sys/class/blktap2/blktap!blktap{}", session.minor);
    let read = |file: &str| said(file, sysfs(&format!("{folder}/{file}")));
    let write = |file: &str, text: &str| fs::write(format!("{folder}/{file}"), text);
    for (file, expected) in [
        ("name", session.minor.to_string()),
        ("task", std::process::id().to_string()),
        ("pool", "default".to_string()),
    ] {
        let found = read(file)?;
        if found != expected {
            return Err(format!("{file} is {found}, not {expected}"));
        }
    }
    said("name", write("name", "aio:/a b\n"))?;
    if read("name")? != "aio:/a b" {
        return Err("the name did not stay".to_string());
    }
    refused("a name of 256 bytes", libc::ENAMETOOLONG, write("name", &"n".repeat(256)))?;
    pools(&folder)?;
    let debug = read("debug")?;
    if !debug.contains("ring: mapped") || !debug.contains("disk: yes") {
        return Err(format!("debug: {debug}"));
    }
    let free = "/sys/class/misc/blktap!control/pools/default/free";
    let before: u32 = said("free", sysfs(free))?.parse().map_err(|e| format!("free: {e}"))?;
    let reads = session.reads(2)?;
    let requests = session.requests(2)?;
    let after: u32 = said("free", sysfs(free))?.parse().map_err(|e| format!("free: {e}"))?;
    if before - after != 22 {
        return Err(format!("two requests use {} pages", before - after));
    }
    for request in &requests {
        session.ring.answer(request, 0);
    }
    said("RESPOND", session.ring.respond())?;
    crate::session::ended("a read", &reads, 2, 0)?;

    // `remove` asks; the process decides.
    session.ring.sleep_after(session.ring.taken);
    said("remove", write("remove", "1"))?;
    if said("poll", session.ring.poll(1000))? & libc::POLLIN == 0 || session.ring.message() != 3 {
        return Err("no message after a write to `remove`".to_string());
    }
    session.ring.clear_message();
    if said("poll", session.ring.poll(0))? & libc::POLLIN != 0 {
        return Err("readable after the message was read".to_string());
    }
    let verbosity = "/sys/class/blktap2/verbosity";
    for level in ["2", "0"] {
        said("verbosity", fs::write(verbosity, level))?;
        if said("verbosity", sysfs(verbosity))? != level {
            return Err("verbosity did not stay".to_string());
        }
    }
    session.end()?;
    if Path::new(&folder).exists() {
        return Err("the minor's folder in sysfs outlived it".to_string());
    }
    Ok(())
}

/// A minor is in a pool of any name, which is there while it is used, and has the size it was
/// given.
fn pools(folder: &str) -> Outcome {
    let pool = format!("{folder}/pool");
    let set = |name: &str| fs::write(&pool, name);
    let place = |name: &str| format!("/sys/class/misc/blktap!control/pools/{name}");
    let number = |name: &str, file: &str| said(file, sysfs(&format!("{}/{file}", place(name))));
    for name in ["6a1d9f10-13c3-4a4e-92a4-4d4a5a0a3c55", "a b\n", &"n".repeat(255), "x/y"] {
        said("a pool of any name", set(name))?;
        let name = name.trim_end().replace('/', "!");
        if said("pool", sysfs(&pool))? != name || !Path::new(&place(&name)).is_dir() {
            return Err(format!("there is no pool {name}"));
        }
        if number(&name, "size")? != "352" || number(&name, "free")? != "352" {
            return Err(format!("the pool {name} has not the pages of its ring"));
        }
        said("size", fs::write(format!("{}/size", place(&name)), "2816"))?;
        if number(&name, "size")? != "2816" || number(&name, "free")? != "2816" {
            return Err(format!("the size of {name} did not stay"));
        }
        for wrong in ["x", "-1", "", "99999999999"] {
            if fs::write(format!("{}/size", place(&name)), wrong).is_ok() && !wrong.is_empty() {
                return Err(format!("{wrong} is taken as a size"));
            }
        }
        said("the pool it was in", set("default\n"))?;
        if Path::new(&place(&name)).exists() {
            return Err(format!("the pool {name} is there and nobody is in it"));
        }
    }
    for (wrong, errno) in [("\n", EINVAL), (".", EINVAL), ("..", EINVAL)] {
        refused("a name that is none", errno, set(wrong))?;
    }
    refused("a name of 256 bytes", libc::ENAMETOOLONG, set(&"n".repeat(256)))
}

/// Gives back what another left.
pub fn free(words: &[String]) -> Outcome {
    let minor = words.first().and_then(|w| w.parse().ok()).ok_or("free MINOR")?;
    let control = said("control device", Control::open())?;
    said("FREE_TAP", control.free(minor))
}

/// All minors there are, and one more.
pub fn exhaust() -> Outcome {
    let control = said("control device", Control::open())?;
    let mut all = Vec::new();
    let full = loop {
        match control.allocate() {
            Ok(handle) => all.push(handle.minor),
            Err(e) => break e,
        }
    };
    let count = all.len();
    for minor in all {
        said("FREE_TAP", control.free(minor))?;
    }
    if count != 16384 || full.raw_os_error() != Some(libc::ENOMEM) {
        return Err(format!("after {count} minors: {full}"));
    }
    Ok(())
}
