//! `tap-ctl metrics`: the counters of all disks as OpenMetrics text, for node_exporter's textfile
//! collector or anybody else who scrapes. It asks the tapdisks for their statistics; nothing of it
//! is on the way of a request.

mod families;

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::PLAIN;
use super::list::{Row, collect};
use crate::cli::args::Args;
use crate::cli::{Command, Context, Listed, Opt, PID, Takes, long, write};
use crate::failure::{Failure, Outcome};
use families::Families;

pub static COMMAND: Command = Command {
    name: "metrics",
    usage: "usage: metrics [-p pid] [--output FILE]",
    about: "print the counters of all disks as OpenMetrics text",
    details: "With --output the file is replaced at once, as node_exporter's textfile collector \
              needs it: its name\nhas to end with .prom. Counters begin anew when a disk is opened.",
    options: &OPTIONS,
    examples: &[
        ("metrics", "look at them"),
        (
            "metrics --output /var/lib/prometheus/node-exporter/tapdisk.prom",
            "from a timer, every 15 s",
        ),
    ],
    listed: Listed::Extra,
    run,
    ..PLAIN
};

static OPTIONS: [Opt; 2] = [PID, long("output", Takes::Value("FILE"), "replace this file").or('o')];

fn run(context: &Context, args: &Args) -> Outcome {
    let client = context.client()?;
    let mut families = Families::default();
    for row in collect(&client, args.number("p")?)? {
        let (Some(pid), Some(minor)) = (row.pid, row.minor.and_then(|m| u16::try_from(m).ok()))
        else {
            continue;
        };
        // One that ends meanwhile, or is another program's, is left out.
        let stats = client.stats(pid, minor).ok();
        let stats = stats.and_then(|text| serde_json::from_slice(&text).ok());
        families.disk(&Disk::of(&row, pid, minor), &stats.unwrap_or_default());
    }
    let text = families.text();
    match args.value("output") {
        None => {
            let _ = write(text.as_bytes());
            Ok(())
        }
        Some(path) => {
            let path = Path::new(path);
            replace(path, text.as_bytes()).map_err(|error| {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                let sentence = format!("{}: cannot be written: {error}", show::path(path));
                Failure::new(errno, sentence).aloud()
            })
        }
    }
}

/// What a disk is called.
pub struct Disk {
    pub pid: i32,
    pub minor: u16,
    pub kind: String,
    pub path: String,
    pub state: u32,
}

impl Disk {
    fn of(row: &Row, pid: i32, minor: u16) -> Disk {
        let text = |bytes: Option<&[u8]>| String::from_utf8_lossy(bytes.unwrap_or_default()).into();
        let state = row.state.unwrap_or_default();
        Disk { pid, minor, kind: text(row.kind()), path: text(row.file()), state }
    }

    /// The storage manager's name of the disk, which is in the image's; else the image's own.
    pub fn vdi(&self) -> &str {
        const UUID: usize = 36;
        let name = self.path.rsplit('/').next().unwrap_or_default();
        let is_uuid = |text: &str| {
            text.bytes().enumerate().all(|(i, byte)| match i {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            })
        };
        let starts = 0..=name.len().saturating_sub(UUID);
        let mut found = starts.filter_map(|at| name.get(at..at + UUID));
        found.find(|text| is_uuid(text)).unwrap_or(name)
    }
}

/// Readers see the old text or the new one.
fn replace(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    // The collector looks at no name that ends like this.
    name.push(format!(".{}.tmp", std::process::id()));
    let beside: PathBuf = path.with_file_name(name);
    let mut file = std::fs::File::options();
    let file = file.write(true).create_new(true).mode(0o644).custom_flags(libc::O_NOFOLLOW);
    let written = file.open(&beside).and_then(|mut file| {
        file.write_all(text)?;
        std::fs::rename(&beside, path)
    });
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_called_as_the_storage_manager_calls_it() {
        let vdi = |path: &str| {
            let (kind, path) = (String::new(), path.to_owned());
            Disk { pid: 1, minor: 0, kind, path, state: 0 }.vdi().to_owned()
        };
        const UUID: &str = "0a1b2c3d-1111-2222-3333-444455556666";
        assert_eq!(vdi(&format!("/sr/{UUID}.vhd")), UUID);
        assert_eq!(vdi(&format!("/dev/VG_XenStorage-{UUID}/VHD-{UUID}")), UUID);
        for name in ["disk.vhd", "", "ä-long-name-that-is-no-identifier-at-all.qcow2"] {
            assert_eq!(vdi(&format!("/srv/{name}")), name);
        }
    }
}
