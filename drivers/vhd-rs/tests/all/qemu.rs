//! Round trips with `qemu-img` (format `vpc`), where it is installed.

use std::path::Path;
use std::process::Command;
use vhd_rs::chain::Chain;
use vhd_rs::files;

fn qemu_img(args: &[&str], dir: &Path) -> bool {
    let out = Command::new("qemu-img").args(args).current_dir(dir).output();
    match out {
        Ok(out) => {
            assert!(out.status.success(), "qemu-img {args:?}: {out:?}");
            true
        }
        Err(_) => {
            assert!(std::env::var_os("CI").is_none(), "CI must have qemu-img");
            eprintln!("SKIPPED: qemu-img is not installed");
            false
        }
    }
}

fn contents(path: &Path, bytes: usize) -> Vec<u8> {
    let chain = Chain::open(path).unwrap();
    let mut buf = vec![0; bytes];
    chain.read(0, &mut buf).unwrap();
    buf
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|n| if n % (3 << 20) < 5000 { (n / 512 % 251) as u8 } else { 0 }).collect()
}

#[test]
fn images_of_qemu_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let data = pattern(10 << 20);
    std::fs::write(dir.path().join("in.raw"), &data).unwrap();
    for (name, options) in [("d.vhd", "force_size=on"), ("f.vhd", "force_size=on,subformat=fixed")]
    {
        let args = ["convert", "-f", "raw", "-O", "vpc", "-o", options, "in.raw", name];
        if !qemu_img(&args, dir.path()) {
            return;
        }
        let path = dir.path().join(name);
        assert!(contents(&path, 10 << 20) == data, "{name}");
        let file = vhd_rs::chain::open_file(&path, false).unwrap();
        let o = vhd_rs::CheckOptions { ignore_times: true, ..<_>::default() };
        let report = vhd_rs::check(&file, &path, &o).unwrap();
        // A geometry of 127 GiB for 10 MiB is what the strict list always says of such images.
        assert_eq!(report.fault.unwrap().0, "primary footer invalid: geometry too large");
    }
}

#[test]
fn our_images_are_read_by_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let block = |n, s: &[(u32, u8)]| (n, crate::common::Block::Some(s.to_vec()));
    let image = crate::common::build(
        10,
        &[block(1, &[(3, 0x31), (4095, 0x32)]), block(4, &[(0, 7)])],
        None,
    );
    let path = dir.path().join("t.vhd");
    std::fs::write(&path, image).unwrap();
    files::create(&dir.path().join("fixed.vhd"), 4 << 20, None, true).unwrap();
    for name in ["t.vhd", "fixed.vhd"] {
        if !qemu_img(&["convert", "-f", "vpc", "-O", "raw", name, "out.raw"], dir.path()) {
            return;
        }
        let out = std::fs::read(dir.path().join("out.raw")).unwrap();
        assert!(contents(&dir.path().join(name), out.len()) == out, "{name}");
    }
}
