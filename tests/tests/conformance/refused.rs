//! What every refusal must be: the right exit code, a sentence on standard error and in the log
//! that names what is wrong, then the original's line, and not a byte changed, no daemon, socket or
//! marker left.
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use tests::rig::Rig;

/// Of larger files only the beginning is compared.
const COMPARED_BYTES: u64 = 64 << 20;

/// Demands that an image is refused with an errno and a sentence with these words, read-only as
/// well.
#[track_caller]
pub fn refused(rig: &Rig, image: &str, errno: i32, words: &[&str]) {
    refused_with(rig, image, &[], errno, words);
    refused_with(rig, image, &["-R"], errno, words);
}

/// The same with options of `tap-ctl create`.
#[track_caller]
pub fn refused_with(rig: &Rig, image: &str, options: &[&str], errno: i32, words: &[&str]) {
    let before = Files::of(&rig.work());
    let logged = rig.log();
    let outcome = match rig.try_serve(image, options) {
        Ok(_) => panic!("{image} {options:?} is opened"),
        Err(outcome) => outcome,
    };
    assert_eq!(outcome.code, errno, "{outcome:?}\n{}", rig.log());
    assert!(outcome.out.is_empty(), "{outcome:?}");
    let lines: Vec<&str> = outcome.err.lines().collect();
    let [reason, last] = lines[..] else { panic!("a reason and the original's line: {outcome:?}") };
    assert_eq!(last, strerror(errno), "{outcome:?}");
    let has = |line: &str| words.iter().all(|word| line.contains(word));
    assert!(reason.contains(" refused open ") && has(reason), "{words:?}: {outcome:?}");
    rig.assert_nothing_left();
    let log = rig.log();
    let new: Vec<&str> = log.lines().filter(|line| !logged.contains(line)).collect();
    let told = new.iter().any(|line| has(line));
    assert!(told, "no line with all of {words:?} in\n{}", new.join("\n"));
    assert!(Files::of(&rig.work()) == before, "{image}: a refusal has changed files");
}

/// The text of an errno.
pub fn strerror(errno: i32) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// All files of a folder: size and beginning.
#[derive(PartialEq, Eq)]
struct Files(BTreeMap<PathBuf, (u64, Vec<u8>)>);

impl Files {
    fn of(folder: &Path) -> Files {
        let names = fs::read_dir(folder).unwrap().flatten().map(|name| name.path());
        let read = |path: PathBuf| {
            let mut bytes = Vec::new();
            let file = File::open(&path).unwrap();
            let size = file.metadata().unwrap().len();
            file.take(COMPARED_BYTES).read_to_end(&mut bytes).unwrap();
            (path, (size, bytes))
        };
        Files(names.filter(|path| path.is_file()).map(read).collect())
    }
}
