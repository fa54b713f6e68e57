//! Devices that a tapdisk had begun to make, or had nearly taken away, when it was killed:
//! `/dev/ublkcN` without a `/dev/ublkbN`. Nobody can use them and nobody recovers them, so whoever
//! makes the next device removes them first.
//!
//! They are known by what we put into the field that the kernel keeps for servers: our mark, and
//! the process.
use std::fs::File;

use super::abi::{self, DevInfo, state};
use super::device::{char_path, is_running};
use super::sys::Control;

/// Folder of the kernel with a name `ublkcN` for each.
const CLASS: &str = "/sys/class/ublk-char";
/// "TAPD": the upper half of the field; the lower half is the process.
const MARK: u64 = 0x5441_5044 << 32;

/// What a device of this process carries.
pub fn mark() -> u64 {
    MARK | u64::from(std::process::id())
}

/// The process that made a device, if it was a tapdisk.
fn maker(ours: u64) -> Option<i32> {
    let low = (ours & 0xffff_ffff) as u32;
    (ours & !0xffff_ffff == MARK).then(|| i32::try_from(low).ok())?
}

/// Removes them, as far as that can be done; a device that is left takes a number, and nothing
/// else.
pub fn remove(control: &mut Control) {
    let entries = std::fs::read_dir(CLASS).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    for number in names.filter_map(|name| name.strip_prefix("ublkc")?.parse().ok()) {
        let mut info = DevInfo::default();
        let asked = control.info(abi::GET_DEV_INFO, number, &mut info);
        let dead = maker(info.ours).is_some_and(|pid| !is_running(pid));
        // A device opens once: then nobody has it, not even a process that we cannot see.
        let idle = || File::options().read(true).write(true).open(char_path(number)).is_ok();
        if asked.is_ok() && info.state == state::DEAD && dead && idle() {
            let _ = control.number(abi::DEL_DEV, number, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_of_ours_names_its_maker() {
        assert_eq!(maker(mark()), i32::try_from(std::process::id()).ok());
        assert_eq!((maker(0), maker(7), maker(MARK << 1 | 7)), (None, None, None));
    }
}
