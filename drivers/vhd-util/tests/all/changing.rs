//! Images that change while they are looked at: another program writes over them, cuts them and
//! makes them whole again. Every command ends, by an exit code of its own, says a sentence if it
//! fails, and changes nothing.

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use crate::common::folder;
use test_support::rng::Rng;

/// Looks at `leaf.vhd` and its parent, or makes something new of them.
const COMMANDS: [&str; 9] = [
    "query -n leaf.vhd -v -p -f -s -S -d",
    "check -n leaf.vhd -p",
    "read -n leaf.vhd -p -b 0 -m 0 -t 0",
    "read -n leaf.vhd -r 0 -c 64",
    "scan -f -p -m *.vhd",
    "info -n leaf.vhd --json",
    "map -n leaf.vhd",
    "snapshot -n new.vhd -p leaf.vhd",
    "convert -n leaf.vhd -f vhd -N new.raw -O raw",
];
const ROUNDS: usize = 20;
/// A panic of Rust's.
const PANICKED: i32 = 101;

#[test]
fn commands_end_in_order_while_the_image_changes_underneath() {
    let d = folder();
    d.put("disk.raw", &[0x55; 6 << 20]);
    d.ok("convert -n disk.raw -f raw -N base.vhd -O vhd");
    d.ok("snapshot -n leaf.vhd -p base.vhd");
    let names = ["base.vhd", "leaf.vhd"];
    let whole = names.map(|name| d.get(name));
    let (over, changes) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut codes = std::collections::BTreeMap::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng::new(7);
            let files = names.map(|name| {
                std::fs::File::options().write(true).open(d.path().join(name)).unwrap()
            });
            while !over.load(Ordering::Relaxed) {
                let which = rng.below(2) as usize;
                let (file, bytes) = (&files[which], &whole[which]);
                let length = bytes.len() as u64;
                match rng.below(4) {
                    0 => file.set_len(rng.below(length)).unwrap(),
                    1 => {
                        let junk = [rng.below(256) as u8; 700];
                        file.write_all_at(&junk, rng.below(8192)).unwrap();
                    }
                    2 => file.write_all_at(&[0xff; 512], length - 512).unwrap(),
                    _ => file.write_all_at(bytes, 0).unwrap(),
                }
                changes.fetch_add(1, Ordering::Relaxed);
            }
        });
        for command in COMMANDS.iter().cycle().take(COMMANDS.len() * ROUNDS) {
            let (code, _, err) = d.bytes(command);
            assert!(code != PANICKED && !err.contains("panicked"), "{command}: {code}: {err}");
            assert!(code == 0 || !err.is_empty() || !command.contains("-N"), "{command}: {code}");
            *codes.entry((*command, code == 0)).or_insert(0) += 1;
            for made in ["new.vhd", "new.raw"] {
                let _ = std::fs::remove_file(d.path().join(made));
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(changes.load(Ordering::Relaxed) > 100, "the images did change");
    let failed = codes.iter().filter(|((_, ok), _)| !ok).map(|(_, count)| count).sum::<i32>();
    assert!(failed > 0, "some of it must have been seen: {codes:?}");
    // Once it is left alone, all is as before.
    for (name, bytes) in names.iter().zip(&whole) {
        d.put(name, bytes);
    }
    d.ok("check -n leaf.vhd -p");
}
