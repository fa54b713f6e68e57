use super::*;
use slog::{info, warn};
use std::fs;

const NOON: LocalTime = LocalTime { month: 10, day: 5, clock: [12, 3, 4], millis: 7 };

fn log() -> (tempfile::TempDir, Log, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let unusable = PathBuf::from("/proc/none");
    let log = Log::open(42, vec![unusable, dir.path().join("log")], false);
    let path = dir.path().join("log/tapdisk.42.log");
    (dir, log, path)
}

#[test]
fn a_packet_is_what_syslog_expects() {
    let line = |level, text| String::from_utf8(syslog::packet(&NOON, 42, level, text)).unwrap();
    assert_eq!(line(Level::Info, "hello"), "<30>Nov  5 12:03:04 tapdisk[42]: hello");
    assert_eq!(line(Level::Warning, "bad"), "<28>Nov  5 12:03:04 tapdisk[42]: tap-err:bad");
    assert_eq!(line(Level::Info, &"x".repeat(2000)).len(), 1024);
}

#[test]
fn without_a_warning_there_is_no_file() {
    let (_dir, log, path) = log();
    info!(log.logger(), "all is well");
    assert!(!path.exists());
    log.close();
    assert!(!path.exists());
}

#[test]
fn a_warning_stays_and_has_a_first_and_a_last_line() {
    let (_dir, log, path) = log();
    warn!(log.logger(), "cannot open the image"; "path" => "/x");
    log.close();
    let text = fs::read_to_string(path).unwrap();
    let lines: Vec<&str> = text.lines().map(|line| &line[32.min(line.len())..]).collect();
    assert!(lines[0].ends_with("tapdisk[42]: log start, level 0"), "{text}");
    assert!(lines[1].ends_with("cannot open the image, path /x"), "{text}");
    assert!(lines[2].ends_with("tapdisk[42]: closing log, 1 errors"), "{text}");
}

#[test]
fn a_note_is_there_until_a_clean_end() {
    let (_dir, log, path) = log();
    log.note("a limit is small");
    assert!(fs::read_to_string(&path).unwrap().contains("a limit is small"));
    log.close();
    assert!(!path.exists());
}

#[test]
fn a_report_keeps_the_file() {
    let (_dir, log, path) = log();
    log.report("one\ntwo");
    log.close();
    assert_eq!(fs::read_to_string(path).unwrap().lines().count(), 4);
}

#[test]
fn while_a_disk_is_served_lines_wait_and_a_flood_is_cut() {
    let (_dir, log, path) = log();
    log.set_serving(true);
    (0..1000).for_each(|i| warn!(log.logger(), "line {i}"));
    assert!(!path.exists());
    log.set_serving(false);
    let text = fs::read_to_string(path).unwrap();
    assert!(text.len() < 17 << 10 && text.contains("lines were dropped"), "{}", text.len());
}

#[test]
fn after_a_rename_reopening_starts_a_new_file() {
    let (_dir, log, path) = log();
    log.report("one");
    let old = path.with_extension("old");
    fs::rename(&path, &old).unwrap();
    log.reopen();
    assert!(fs::read_to_string(old).unwrap().contains("one"));
    assert!(fs::read_to_string(path).unwrap().contains("log start"));
}

#[test]
fn a_strangers_file_in_the_place_of_a_log_is_left_alone() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let inside = |name: &str| dir.path().join(name);
    fs::write(inside("precious"), "precious").unwrap();
    for kind in ["link", "hard link", "pipe", "folder"] {
        let open = inside(kind);
        fs::create_dir(&open).unwrap();
        let trap = open.join("tapdisk.42.log");
        match kind {
            "link" => symlink(inside("precious"), &trap).unwrap(),
            "hard link" => fs::hard_link(inside("precious"), &trap).unwrap(),
            "pipe" => {
                let made = std::process::Command::new("mkfifo").arg(&trap).status().unwrap();
                assert!(made.success());
            }
            _ => fs::create_dir(&trap).unwrap(),
        }
        let log = Log::open(42, vec![open, inside("safe")], false);
        warn!(log.logger(), "{kind}");
        log.close();
        assert!(fs::read_to_string(inside("safe/tapdisk.42.log")).unwrap().contains(kind));
        assert_eq!(fs::read(inside("precious")).unwrap(), b"precious", "{kind}");
    }
}
