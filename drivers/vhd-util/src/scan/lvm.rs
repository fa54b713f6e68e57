//! Logical volumes, active or not: where their bytes lie on the physical volumes, as LVM's tools
//! tell.
//!
//! Reading them there needs no activation and no device node. What an earlier reader left in the
//! page cache of a physical volume may be older than what was written through the logical volume,
//! on this machine or on another one, so it is dropped first.
use image::Storage;
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use vhd_rs::VhdError;

const EINVAL: i32 = 22;

/// The volumes of a group.
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) volumes: Vec<Volume>,
}

/// A logical volume. One that does not begin with a linear segment is read by its node.
#[derive(Clone)]
pub(crate) struct Volume {
    pub(crate) name: String,
    bytes: u64,
    segments: Vec<Segment>,
}

/// A linear part of a volume.
#[derive(Clone)]
struct Segment {
    start: u64,
    bytes: u64,
    device: Rc<File>,
    at: u64,
}

/// A physical volume: its file and where its extents begin.
type Physical = (Rc<File>, u64);

impl Group {
    /// Asks LVM about a group.
    ///
    /// # Errors
    /// EINVAL for a group that is not there or that LVM does not describe; those of the physical
    /// volumes.
    pub(crate) fn read(name: &str) -> Result<Group, VhdError> {
        let mut extent_bytes = 0;
        let mut physical: HashMap<String, Physical> = HashMap::new();
        for row in ask("vgs", "vg_extent_size,pv_name,pe_start", name)? {
            let [extent, device, start] = fields(&row, name)?;
            extent_bytes = number(extent, name)?;
            let file = open(Path::new(device))?;
            physical.insert(device.into(), (Rc::new(file), number(start, name)?));
        }
        let mut volumes: Vec<Volume> = Vec::new();
        for row in ask("lvs", "lv_name,lv_size,segtype,seg_start,seg_size,devices", name)? {
            let [lv, bytes, kind, start, length, devices] = fields(&row, name)?;
            if volumes.last().is_none_or(|v| v.name != lv) {
                let bytes = number(bytes, name)?;
                volumes.push(Volume { name: lv.into(), bytes, segments: Vec::new() });
            }
            let place = place(devices, extent_bytes, &physical).filter(|_| kind == "linear");
            if let (Some((device, at)), Some(volume)) = (place, volumes.last_mut()) {
                let (start, bytes) = (number(start, name)?, number(length, name)?);
                volume.segments.push(Segment { start, bytes, device, at });
            }
        }
        volumes.retain(|v| v.is_linear() || v.path(name).exists());
        Ok(Group { name: name.into(), volumes })
    }

    /// The volume that a device-mapper name of this group stands for: `VG-LV` with dashes doubled.
    pub(crate) fn volume_of(&self, mapped: &str) -> Option<String> {
        let group = self.name.replace('-', "--");
        let volume = mapped.strip_prefix(&group)?.strip_prefix('-')?;
        Some(volume.replace("--", "-"))
    }
}

fn open(path: &Path) -> Result<File, VhdError> {
    let file = vhd_rs::chain::open_file(path, false)?;
    vhd_rs::chain::forget_cached(&file);
    Ok(file)
}

/// Rows of a report, fields between bars.
fn ask(program: &str, columns: &str, group: &str) -> Result<Vec<String>, VhdError> {
    let failed = |why: String| VhdError::request(Path::new(group), EINVAL, why);
    let mut command = Command::new(program);
    command.args(["--noheadings", "--nosuffix", "--units", "b", "--separator", "|", "-o", columns]);
    let out = command.arg(group).env("LC_ALL", "C").env("LVM_SUPPRESS_FD_WARNINGS", "1").output();
    let out = out.map_err(|e| failed(format!("could not run {program}: {e}; install LVM")))?;
    if !out.status.success() {
        let text = show::line(out.stderr.trim_ascii());
        return Err(failed(format!("{program} knows no such volume group: {text}")));
    }
    let text = String::from_utf8_lossy(&out.stdout);
    Ok(text.lines().map(|l| l.trim().to_string()).filter(|l| !l.is_empty()).collect())
}

fn fields<'a, const N: usize>(row: &'a str, group: &str) -> Result<[&'a str; N], VhdError> {
    let all: Vec<&str> = row.split('|').map(str::trim).collect();
    all.try_into().map_err(|_| {
        let why =
            format!("LVM's report has a row that cannot be read: {}", show::bytes(row.as_bytes()));
        VhdError::request(Path::new(group), EINVAL, why)
    })
}

fn number(text: &str, group: &str) -> Result<u64, VhdError> {
    text.parse().map_err(|_| {
        let why = format!("LVM's report has {text} where a number of bytes belongs");
        VhdError::request(Path::new(group), EINVAL, why)
    })
}

/// `/dev/sda(12)`: extent 12 of a physical volume.
fn place(
    devices: &str,
    extent_bytes: u64,
    physical: &HashMap<String, Physical>,
) -> Option<(Rc<File>, u64)> {
    let (device, extent) = devices.strip_suffix(')')?.rsplit_once('(')?;
    let (file, start) = physical.get(device)?;
    let extent: u64 = extent.parse().ok()?;
    Some((Rc::clone(file), start.checked_add(extent.checked_mul(extent_bytes)?)?))
}

impl Volume {
    /// Whether its bytes lie on the physical volumes as they are.
    pub(crate) fn is_linear(&self) -> bool {
        self.segments.iter().any(|s| s.start == 0)
    }

    /// Its node, if it were active.
    pub(crate) fn path(&self, group: &str) -> PathBuf {
        Path::new("/dev").join(group).join(&self.name)
    }
}

impl Storage for Volume {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let here = self.segments.iter().find(|s| s.start <= at && at < s.start + s.bytes);
            let Some(segment) = here else { break };
            let skip = at - segment.start;
            let room = usize::try_from(segment.bytes - skip).unwrap_or(usize::MAX);
            let end = buf.len().min(done.saturating_add(room));
            let part = buf.get_mut(done..end).unwrap_or_default();
            let got = Storage::read_at(&*segment.device, segment.at + skip, part)?;
            done += got;
            if got == 0 {
                break;
            }
        }
        Ok(done)
    }
    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes)
    }
    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn is_device(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_names_are_those_of_their_group() {
        let group = Group { name: "VG-x".into(), volumes: Vec::new() };
        assert_eq!(group.volume_of("VG--x-VHD--1--2").as_deref(), Some("VHD-1-2"));
        assert_eq!(group.volume_of("VG--y-VHD--1"), None);
    }

    #[test]
    fn extents_become_bytes() {
        let file = Rc::new(tempfile::tempfile().unwrap());
        let physical = HashMap::from([("/dev/a(b)".to_string(), (file, 1 << 20))]);
        let (_, at) = place("/dev/a(b)(3)", 4 << 20, &physical).unwrap();
        assert_eq!(at, (1 << 20) + (12 << 20));
        assert!(place("/dev/other(3)", 4 << 20, &physical).is_none());
        assert!(place("/dev/a(b)(-1)", 4 << 20, &physical).is_none());
    }
}
