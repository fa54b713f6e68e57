//! Images that qemu makes, and what its tools say of images.
// Each test binary uses some of it.
#![allow(dead_code)]
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a program said.
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

/// Runs one of qemu's programs.
pub fn ran(program: &str, words: &[&str]) -> Ran {
    let output = Command::new(program).args(words).output();
    let output = output.unwrap_or_else(|e| panic!("{program} (package qemu-utils): {e}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let code = output.status.code().expect("it ended by itself");
    Ran { code, out: text(&output.stdout), err: text(&output.stderr) }
}

/// The same, and it has to go well.
pub fn run(program: &str, words: &[&str]) -> String {
    let Ran { code, out, err } = ran(program, words);
    assert!(code == 0 && !out.contains("failed"), "{program} {words:?}: {out} {err}");
    out
}

/// A path as a word.
pub fn word(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

/// Makes an image of 24 MiB, and does something with it.
pub fn made(dir: &Path, name: &str, options: &str, commands: &[&str]) -> PathBuf {
    let path = dir.join(name);
    let mut words = vec!["create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        words.extend(["-o", options]);
    }
    words.extend([word(&path), "24M"]);
    run("qemu-img", &words);
    io(&path, commands);
    path
}

/// Does something with an image.
pub fn io(path: &Path, commands: &[&str]) {
    for commands in commands.chunks(200) {
        let mut words = vec!["-f", "qcow2"];
        words.extend(commands.iter().flat_map(|command| ["-c", command]));
        words.push(word(path));
        run("qemu-io", &words);
    }
}

/// The disk as qemu reads it.
pub fn disk(path: &Path) -> Vec<u8> {
    let raw = path.with_extension("disk");
    run("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", word(path), word(&raw)]);
    std::fs::read(raw).expect("it was just made")
}

/// Eight bytes of an image.
pub fn word64(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Changes bytes of an image.
pub fn poke(path: &Path, at: u64, new: &[u8]) {
    let mut bytes = std::fs::read(path).expect("an image");
    let at = at as usize;
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
    std::fs::write(path, bytes).expect("written");
}

/// xorshift64*: enough for a test, and seeded.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) % sides
    }
}
