//! What a replacement of `vhd-util` has to do: groups A to G of docs/spec/corpus.md, in our own
//! form, with the real program and qemu-img as the second party. Numbers like C05 are the corpus's.
//!
//! B05, G13 and G14 are about `coalesce` and stand with its tests.
mod beside;
mod chains;
mod commands;
mod damage;
mod devices;
mod interop;
mod layout;
mod manager;
mod parents;
mod storage_manager;
mod tables;

use tests::rig::vhdgen::Gen;
use tests::rig::{Engine, Outcome, Rig, files};

/// A folder with our vhd-util; no daemon runs.
struct Bench(Rig);

impl Bench {
    fn new() -> Bench {
        Bench(Rig::new(Engine::Aio))
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path(name)
    }

    /// The folder as `vhd-util` prints it.
    fn home(&self) -> String {
        self.0.work().canonicalize().unwrap().display().to_string()
    }

    /// Runs `vhd-util` with words.
    #[track_caller]
    fn run(&self, line: &str) -> Outcome {
        let words: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        self.0.vhd_util(&words)
    }

    /// It must succeed; its output.
    #[track_caller]
    fn ok(&self, line: &str) -> String {
        self.run(line).ok().out.trim_end_matches('\n').to_string()
    }

    /// It must end with a code; its output.
    #[track_caller]
    fn fails(&self, code: i32, line: &str) -> String {
        self.run(line).exits(code).out
    }

    /// The first byte of a sector of the disk, which must be full of it.
    #[track_caller]
    fn sector(&self, name: &str, sector: u64) -> u8 {
        let out = self.run(&format!("read -n {name} -r {sector}")).ok();
        assert_eq!(out.bytes.len(), 512);
        assert!(out.bytes.iter().all(|byte| *byte == out.bytes[0]), "one value: {out:?}");
        out.bytes[0]
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn u32(&self, name: &str, at: u64) -> u32 {
        u32::from_be_bytes(files::bytes_at(&self.path(name), at, 4).try_into().unwrap())
    }

    fn size(&self, name: &str) -> u64 {
        files::size(&self.path(name))
    }

    /// qemu-img, which must succeed.
    #[track_caller]
    fn qemu_img(&self, line: &str) -> Outcome {
        let words: Vec<&str> = line.split(' ').collect();
        tests::rig::qemu_img(&self.0.work(), &words)
    }

    /// A qemu-io command on a VHD.
    #[track_caller]
    fn qemu_io(&self, name: &str, command: &str) {
        let target = self.path(name).display().to_string();
        tests::rig::qemu_io("vpc", &target, &[command]);
    }
}

/// An image that differs in some fields.
fn with(mut image: Gen, change: impl FnOnce(&mut Gen)) -> Gen {
    change(&mut image);
    image
}
