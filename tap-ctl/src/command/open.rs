//! `tap-ctl open`, and the options that `create` has too.

use super::PLAIN;
use super::allocate::print_path;
use crate::cli::args::Args;
use crate::cli::{Command, Context, MINOR, Opt, PID, Takes, flag, long, print, value};
use crate::failure::{Failure, Outcome};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use tap_ctl::client::Payload;
use tap_ctl::messages::{Device, DeviceOptions, ImageInfo, NO_PARENT, Params, Text, flag as bit};
use tap_ctl::wiped::Wiped;

pub static COMMAND: Command = Command {
    name: "open",
    usage: "usage: open <-p pid> <-m minor> <-a type:/path/to/file> [-R readonly] [-e <minor> stack on existing tapdisk for the parent chain] [-r turn on read caching into leaf node] [-2 <path> use secondary image (in mirror mode if no -s)] [-s fail over to the secondary image on ENOSPC] [-t request timeout in seconds] [-D no O_DIRECT] [-C </path/to/logfile> insert log layer to track changed blocks] [-E read encryption key from stdin]",
    about: "open an image on an attached disk",
    details: WAITS,
    options: &OPTIONS,
    examples: &[
        ("open -p 4711 -m 0 -a vhd:/images/disk.vhd", "open a VHD and its parents"),
        ("open -p 4711 -m 0 -a aio:/dev/vg/lv -R", "open a block device read-only"),
        ("open -p 4711 -m 0 -a vhd:/images/secret.vhd -E <key.bin", "open an encrypted VHD"),
        ("open -p 4711 -m 0 -a vhd:/images/disk.vhd --device", "prints /dev/ublkb0"),
    ],
    run,
    ..PLAIN
};

/// What happens where somebody else has the image (docs/locks.md).
pub const WAITS: &str = "\
While another process writes the image, the disk is there and its requests wait until that process
lets go; standard error says who it is. Requests that a killed tapdisk left on their way are waited
for first.
Of nbd: images neither is known: after a kill the server may still be working on them (-t limits
this disk's own requests only), so use one that ends a client's requests with its connection.
What is opened with a catch (no mirror, another process that writes, damage that reads as errors,
an image of another format that is served raw) is told on standard error, in the log and by stats.";

pub const IMAGE: Opt = value('a', "TYPE:PATH", "the image, such as vhd:/path or aio:/path");
pub const READ_ONLY: Opt = flag('R', "open read-only");
pub const PARENT: Opt =
    value('e', "MINOR", "open this image only, above the disk MINOR of another tapdisk");
pub const LEAF_CACHE: Opt = flag('r', "store what is read from the parents in the leaf");
pub const SECONDARY: Opt = value('2', "TYPE:PATH", "mirror writes to this image; null means none");
pub const STANDBY: Opt =
    flag('s', "with -2: do not mirror, but fail over to it when space runs out");
pub const REQUEST_TIMEOUT: Opt = value(
    't',
    "SECONDS",
    "time after which a request counts as stuck (default 120); of nbd: images, see open",
);
pub const BUFFERED: Opt = flag('D', "read parents through the page cache");
pub const LOG: Opt = value('C', "PATH", "track changed blocks in this log");

pub const READ_KEY: Opt = flag('E', "read the key, 32 or 64 raw bytes, from stdin to its end");
pub const DEVICE: Opt = long(
    "device",
    Takes::Nothing,
    "serve it as a block device of this host too, and print its path: /dev/ublkbN, without ublk /dev/nbdN, with the blktap module its own /dev/xen/blktap-2/tapdevN",
);
pub const DEVICE_NAME: Opt =
    long("device-name", Takes::Value("PATH"), "the same, with this name: /dev/ublkb7 or /dev/nbd3");
pub const QUEUES: Opt = long(
    "queues",
    Takes::Value("N"),
    "queues of /dev/ublkbN, 1 to 4 and no more than processors (default: up to 2)",
);

static OPTIONS: [Opt; 15] = [
    PID.required(),
    MINOR.required(),
    IMAGE.required(),
    READ_ONLY,
    PARENT,
    LEAF_CACHE,
    SECONDARY,
    STANDBY,
    REQUEST_TIMEOUT,
    BUFFERED,
    LOG,
    DEVICE,
    DEVICE_NAME,
    QUEUES,
    READ_KEY,
];

/// The original reads at most this much; only the two lengths below are keys.
const KEY_READ_MAX: usize = 1024;

fn run(context: &Context, args: &Args) -> Outcome {
    let key = key(args.count("E"))?;
    let (pid, minor) = (args.pid()?, args.minor()?);
    let (params, log) = params(args)?;
    let payload = Payload { log_path: log.as_ref(), key: key.as_deref() };
    let client = context.client()?;
    let opened = client.open(pid, minor, &params, payload);
    let info = opened.map_err(|error| explained(&params, error.into()))?;
    if let Err(failure) = print_device(&params, &info, None) {
        let _ = client.close(pid, minor, true, None);
        return Err(failure);
    }
    Ok(())
}

/// A refusal that may be about the block device: not every tapdisk says what it is about.
pub fn explained(params: &Params, failure: Failure) -> Failure {
    match failure {
        Failure::Error { errno, sentence, said, loud } if params.has(bit::DEVICE) => {
            let there = |path: &str| std::path::Path::new(path).exists();
            let drivers = there("/dev/ublk-control") || there("/sys/module/nbd");
            let why = no_device(errno, tap_ctl::sys::euid() == 0, drivers, loud);
            let sentence = why.map_or(sentence.clone(), |why| format!("{sentence}; {why}"));
            Failure::Error { errno, sentence, said, loud }
        }
        other => other,
    }
}

fn no_device(errno: i32, root: bool, drivers: bool, explained: bool) -> Option<&'static str> {
    match errno {
        _ if explained && root && drivers => None,
        libc::EEXIST | libc::EBUSY => Some("the block device may be in use"),
        _ if !root => Some("block devices are made by root"),
        _ if !drivers => Some(
            "no driver for block devices is loaded: modprobe ublk_drv (Linux 6.0), or modprobe nbd",
        ),
        _ => Some("whether image or block device, the tapdisk's log says"),
    }
}

/// Prints the block device, if one was asked for; the kernel module's by the name of its node.
///
/// # Errors
/// ENOSYS: there is none, since the tapdisk is one that knows nothing of them.
pub fn print_device(params: &Params, info: &ImageInfo, node: Option<&Path>) -> Outcome {
    match (info.device, node) {
        _ if !params.has(bit::DEVICE) => Ok(()),
        (Some(Device::Tap(_)), Some(node)) => {
            print_path(node);
            Ok(())
        }
        (Some(device), _) => {
            print(&format!("{device}\n"));
            Ok(())
        }
        (None, _) => {
            let sentence = "this tapdisk makes no block devices: it is of another version";
            Err(Failure::new(libc::ENOSYS, sentence))
        }
    }
}

/// The device of `--device`, `--device-name` and `--queues`.
fn device(args: &Args) -> Result<Option<DeviceOptions>, Failure> {
    let wrong = |sentence: String| Failure::new(libc::EINVAL, sentence);
    let mut options = match args.value("device-name") {
        None if !args.has("device") => return Ok(None),
        None => DeviceOptions::default(),
        Some(path) => {
            let device = path.to_str().and_then(Device::of_path);
            let path = show::path(path);
            let sentence =
                format!("--device-name {path}: not of the form /dev/ublkb7 or /dev/nbd3");
            DeviceOptions::exactly(device.ok_or_else(|| wrong(sentence))?)
        }
    };
    if let Some(queues) = args.number("queues")? {
        if !(1..=4).contains(&queues) {
            return Err(wrong(format!("--queues {queues}: a device has 1 to 4 queues")));
        }
        options.queues = queues as u8;
    }
    Ok(Some(options))
}

/// The options that `open` and `create` share, and the path of the log.
pub fn params(args: &Args) -> Result<(Params, Option<Text>), Failure> {
    let path = args.image("a")?.ok_or(Failure::Usage)?;
    let secondary = args.image("2")?;
    let parent = args.number("e")?;
    let device = device(args)?;
    let flags = [
        (args.has("R"), bit::RDONLY),
        (parent.is_some(), bit::REUSE_PRT),
        (args.has("r"), bit::ADD_LCACHE),
        (secondary.is_some(), bit::SECONDARY),
        (args.has("s"), bit::STANDBY),
        (args.has("D"), bit::NO_O_DIRECT),
        (device.is_some(), bit::DEVICE),
    ];
    let params = Params {
        flags: flags.iter().filter(|(set, _)| *set).fold(0, |flags, (_, bit)| flags | bit),
        path,
        prt_devnum: parent.map_or(NO_PARENT, |minor| minor as u32),
        req_timeout: args.number("t")?.unwrap_or(0).clamp(0, u16::MAX.into()) as u16,
        secondary: secondary.unwrap_or(Text::EMPTY),
        device: device.unwrap_or_default(),
        ..Params::default()
    };
    Ok((params, args.path("C")?))
}

/// Read the key to the end of stdin, so that it may come in pieces.
pub fn key(times: usize) -> Result<Option<Wiped>, Failure> {
    if times == 0 {
        return Ok(None);
    }
    let wrong =
        Failure::Line { exit: 1, line: "Unsupported keysize, use either 256 bit or 512 bit key" };
    // Not through std's reader, which would keep a copy.
    let stdin = std::io::stdin().as_fd().try_clone_to_owned();
    let read = stdin.and_then(|fd| Wiped::read(&mut File::from(fd), KEY_READ_MAX + 1));
    match (times, read) {
        (1, Ok(key)) if matches!(key.len(), 32 | 64) => Ok(Some(key)),
        _ => Err(wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_what_may_be_wrong_with_the_device() {
        let why = |errno, root, drivers| no_device(errno, root, drivers, false).unwrap();
        assert!(why(libc::EEXIST, true, true).contains("in use"));
        assert!(why(libc::ENOENT, true, false).contains("modprobe ublk_drv"));
        assert!(why(libc::EACCES, false, true).contains("root"));
        assert_eq!(no_device(libc::EEXIST, true, true, true), None, "the tapdisk has said it");
        let failure = || Failure::new(libc::EPERM, "refused");
        let said = |failure: Failure| match failure {
            Failure::Error { errno, sentence, .. } => (errno, sentence),
            other => panic!("{other:?}"),
        };
        let plain = said(explained(&Params::default(), failure()));
        assert_eq!(plain, (libc::EPERM, "refused".into()));
        let wanted = Params { flags: bit::DEVICE, ..Params::default() };
        let (errno, sentence) = said(explained(&wanted, failure()));
        assert_eq!(errno, libc::EPERM);
        assert!(sentence.starts_with("refused; ") && sentence.len() > 20, "{sentence}");
    }
}
