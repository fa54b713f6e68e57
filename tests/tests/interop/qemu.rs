//! Images of qemu-img through our daemon, and images of ours through qemu.
use std::fs;

use tests::both_engines;
use tests::rig::{MIB, Rig, files, qemu_img, qemu_io};
use tests::sim::rng::Rng;

/// Bytes that a seed determines, with a hole in the middle.
fn content(seed: u64, mib: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; usize::try_from(mib * MIB).unwrap()];
    let third = bytes.len() / 3;
    for (i, word) in bytes.chunks_mut(8).enumerate() {
        if i * 8 < third || i * 8 >= 2 * third {
            word.copy_from_slice(&rng.next().to_le_bytes());
        }
    }
    bytes
}

/// Creates an image with qemu-img, writes through us, and reads it with qemu.
fn created_by_qemu(rig: &Rig, options: &str) {
    let create = ["create", "-q", "-f", "vpc", "-o", options, "q.vhd", "10M"];
    qemu_img(&rig.work(), &create);
    let image = rig.path("q.vhd").display().to_string();
    qemu_io("vpc", &image, &["write -P 0xab 1M 64k"]);
    let served = rig.serve(&rig.name("vhd", "q.vhd"), &[]);
    let mut disk = served.client();
    let info = qemu_img(&rig.work(), &["info", "-f", "vpc", "--output=json", "q.vhd"]);
    let info: serde_json::Value = serde_json::from_str(&info.out).unwrap();
    assert_eq!(info["virtual-size"], disk.size, "{options}");
    disk.expect(0, MIB, 0);
    disk.expect(MIB, 65536, 0xab);
    disk.expect(MIB + 65536, MIB, 0);
    let end = disk.size - 512;
    for (at, bytes, byte) in [(512, 512, 0x11), (3 * MIB - 512, 1024, 0x22), (end, 512, 0x33)] {
        disk.fill(at, bytes, byte).unwrap();
    }
    served.destroy();
    let last = format!("read -P 0x33 {end} 512");
    let view = [
        "read -P 0 0 512",
        "read -P 0x11 512 512",
        "read -P 0xab 1M 64k",
        "read -P 0x22 3145216 1k",
        "read -P 0 4M 4M",
        &last,
    ];
    qemu_io("vpc", &image, &view);
    qemu_io("vpc", &image, &["write -P 0x44 512 512", "write -P 0x45 8M 1M"]);
    let served = rig.serve(&rig.name("vhd", "q.vhd"), &["-R"]);
    served.client().expect(512, 512, 0x44);
    served.client().expect(8 * MIB, MIB, 0x45);
    served.destroy();
}

both_engines! {
    fn dynamic_by_geometry(rig) {
        created_by_qemu(rig, "subformat=dynamic");
    }

    fn dynamic_by_size(rig) {
        created_by_qemu(rig, "subformat=dynamic,force_size=on");
    }

    fn fixed_by_geometry(rig) {
        created_by_qemu(rig, "subformat=fixed");
    }

    fn fixed_by_size(rig) {
        created_by_qemu(rig, "subformat=fixed,force_size=on");
    }

    /// From raw through qemu into a VHD, and through us and NBD back to raw.
    fn converted_there_and_back(rig) {
        fs::write(rig.path("r.raw"), content(1, 12)).unwrap();
        for subformat in ["dynamic", "fixed"] {
            let options = format!("subformat={subformat},force_size=on");
            let convert = ["convert", "-f", "raw", "-O", "vpc", "-o", &options, "r.raw", "q.vhd"];
            qemu_img(&rig.work(), &convert);
            let served = rig.serve(&rig.name("vhd", "q.vhd"), &["-R"]);
            let back = ["convert", "-f", "raw", "-O", "raw", &served.uri(), "back.raw"];
            qemu_img(&rig.work(), &back);
            served.destroy();
            let [back, first] = ["back.raw", "r.raw"].map(|name| fs::read(rig.path(name)).unwrap());
            assert!(back == first);
        }
    }

    /// From raw through us and NBD into a VHD of ours, which qemu finds equal; and into a raw disk.
    fn converted_into_ours(rig) {
        fs::write(rig.path("r.raw"), content(2, 12)).unwrap();
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "12"]).ok();
        files::sparse(&rig.path("b.raw"), 12 * MIB);
        for (kind, name, format) in [("vhd", "a.vhd", "vpc"), ("aio", "b.raw", "raw")] {
            let served = rig.serve(&rig.name(kind, name), &[]);
            let copy = ["convert", "-n", "-f", "raw", "-O", "raw", "r.raw", &served.uri()];
            qemu_img(&rig.work(), &copy);
            qemu_img(&rig.work(), &["compare", "-f", "raw", "-F", "raw", "r.raw", &served.uri()]);
            served.destroy();
            qemu_img(&rig.work(), &["compare", "-f", "raw", "-F", format, "r.raw", name]);
        }
        rig.vhd_util(&["check", "-n", "a.vhd"]).ok();
        // The hole of 4 MiB in the middle has stayed one.
        rig.vhd_util(&["query", "-n", "a.vhd", "-a"]).ok().says("4");
    }
}
