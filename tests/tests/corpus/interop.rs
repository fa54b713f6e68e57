//! Groups A and B: images of qemu read by us, images of ours read by qemu.
use tests::rig::MIB;
use tests::rig::vhdgen::Gen;

use super::Bench;

#[test]
fn a01_a_rounded_image_of_qemu_has_its_exact_size_and_a_partial_last_block() {
    let b = Bench::new();
    b.qemu_img("create -q -f vpc a.vhd 5M");
    assert_eq!(b.ok("query -n a.vhd -v"), "5");
    assert_eq!(b.ok("query -n a.vhd -s"), "2560");
    assert_eq!(b.ok("check -n a.vhd"), "a.vhd is valid");
    assert_eq!(b.u32("a.vhd", 540), 3);
}

#[test]
fn a02_only_check_objects_to_qemus_geometry() {
    let b = Bench::new();
    b.qemu_img("create -q -f vpc -o force_size=on a.vhd 10M");
    assert_eq!(b.ok("query -n a.vhd -v"), "10");
    let check = b.run("check -n a.vhd");
    assert!(check.code == 0 || check.out.contains("geometry too large"), "{check:?}");
    assert_eq!(b.sector("a.vhd", 0), 0);
}

#[test]
fn a04_what_qemu_converts_reads_back_the_same() {
    let b = Bench::new();
    let mut raw: Vec<u8> =
        (0..3_u64 << 20).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 7) as u8).collect();
    raw.extend(vec![0; 4 << 20]);
    raw.extend((0..3_u64 << 20).map(|n| (n.wrapping_mul(0x85eb_ca6b) >> 9) as u8 | 1));
    std::fs::write(b.path("r.raw"), &raw).unwrap();
    b.qemu_img("convert -f raw -O vpc -o force_size=on r.raw r.vhd");
    assert!(b.run("read -n r.vhd -r 0 -c 20480").ok().bytes == raw);
    assert_eq!(b.ok("query -n r.vhd -a"), "4");
}

#[test]
fn a05_qemus_unaligned_first_block() {
    let b = Bench::new();
    b.qemu_img("create -q -f vpc -o force_size=on a.vhd 10M");
    b.qemu_io("a.vhd", "write -P 0xab 1M 64k");
    let blocks = "block: 0: offset: 2048\nblock: 1: offset: not allocated";
    assert_eq!(b.ok("read -n a.vhd -b 0 -c 2"), blocks);
    assert_eq!((b.sector("a.vhd", 2048), b.sector("a.vhd", 2047)), (0xab, 0));
    assert_eq!(b.ok("read -n a.vhd -e 0 -c 20480"), "0 4096");
}

#[test]
fn a07_the_size_is_the_footers_current_size_for_every_creator() {
    let b = Bench::new();
    for creator in [b"vpc ", b"win ", b"qemu", b"d2v ", b"vbox", b"caml"] {
        Gen::new(10 * MIB).foreign(creator).write(&b.path("y.vhd"));
        assert_eq!(b.ok("query -n y.vhd -v"), "10");
    }
}

fn info(b: &Bench, options: &str, key: &str) -> String {
    let json = b.qemu_img(&format!("info {options}--output=json a.vhd")).out;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json[key].to_string()
}

#[test]
fn b01_qemu_sees_format_size_and_zeros_of_an_empty_image() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 100");
    assert_eq!(info(&b, "", "format"), "\"vpc\"");
    assert_eq!(info(&b, "", "virtual-size"), "104857600");
    b.qemu_img("convert -f vpc -O raw a.vhd a.raw");
    let raw = b.bytes("a.raw");
    assert!(raw.len() == 104_857_600 && raw.iter().all(|byte| *byte == 0));
}

#[test]
fn b02_sizes_round_up_to_2_mib() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 3");
    assert_eq!(b.ok("query -n a.vhd -vS"), "4\n4");
    assert_eq!(info(&b, "", "virtual-size"), "4194304");
}

#[test]
fn b04_a_fixed_image_is_data_and_a_footer() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 10 -r");
    assert_eq!(b.size("a.vhd"), 10_486_272);
    assert_eq!(info(&b, "-f vpc ", "virtual-size"), "10485760");
    assert_eq!(info(&b, "", "format"), "\"raw\"");
}

#[test]
fn b05_what_a_fill_leaves_is_what_qemu_reads() {
    // qemu does not look at bitmaps: a filled image and a copy have no bytes under clear bits.
    let b = Bench::new();
    Gen::new(10 * MIB).id(1).sectors(1, &[(5, 0x44)]).full(3, 0x5a).write(&b.path("p.vhd"));
    b.ok("copy -n p.vhd -N q.vhd");
    b.ok("fill -n p.vhd");
    let ours = b.run("read -n p.vhd -r 0 -c 20480").ok().bytes;
    for name in ["p", "q"] {
        b.qemu_img(&format!("convert -f vpc -O raw {name}.vhd {name}.raw"));
        assert!(b.bytes(&format!("{name}.raw")) == ours, "{name}");
    }
}

#[test]
fn b07_qemu_writes_into_an_image_that_has_a_block() {
    let b = Bench::new();
    Gen::new(10 * MIB).sectors(0, &[(0, 0x11)]).write(&b.path("x.vhd"));
    b.qemu_io("x.vhd", "write -P 0x66 4M 512");
    b.ok("check -n x.vhd");
    assert_eq!(b.ok("read -n x.vhd -e 0 -c 20480"), "0 1\n8192 4096");
    assert_eq!(b.ok("read -n x.vhd -b 2"), "block: 2: offset: 2101248");
}

#[test]
fn b08_qemu_writes_over_the_batmap_of_an_empty_image() {
    let b = Bench::new();
    b.ok("create -n a.vhd -s 10");
    b.qemu_io("a.vhd", "write -P 0xab 1M 64k");
    assert_eq!(b.u32("a.vhd", 1536), 4);
    assert_eq!(b.ok("query -n a.vhd -v"), "10");
    assert_eq!(b.sector("a.vhd", 2048), 0xab);
    // What is no batmap any more is not in the way of anything else.
    b.ok("query -n a.vhd -s");
    b.ok("repair -n a.vhd");
    b.ok("set -n a.vhd -f hidden -v 1");
    assert_eq!(b.sector("a.vhd", 2048), 0xab);
}
