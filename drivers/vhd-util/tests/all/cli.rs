//! The command as its callers see it: recorded texts and exit codes of the original, and the places
//! where this one differs on purpose.

use crate::common::folder;
use std::path::Path;

const USAGE: &str = "usage: vhd-util COMMAND [OPTIONS]\nCOMMAND := { create | snapshot | query | \
    read | set | repair | resize | fill | coalesce | modify | scan | check | revert | key | copy }\n";

#[test]
fn no_command_and_an_unknown_one_succeed_with_the_usage() {
    let d = folder();
    assert_eq!(d.run(""), (0, USAGE.into(), String::new()));
    assert_eq!(d.run("bogus"), (0, USAGE.into(), "invalid COMMAND bogus\n".into()));
}

#[test]
fn wrong_options_give_the_usage_and_22() {
    let d = folder();
    for command in ["create", "snapshot", "query", "read", "set", "repair", "check"] {
        let (code, out, err) = d.run(command);
        assert_eq!((code, err.as_str()), (22, ""), "{command}");
        assert!(out.starts_with("options:"), "{out}");
        let (code, again, err) = d.run(&format!("{command} -Z"));
        assert_eq!((code, again), (22, out.clone()));
        assert_eq!(err, format!("{command}: invalid option -- 'Z'\n"));
        let help = d.run(&format!("{command} -h"));
        let code = if matches!(command, "snapshot" | "query" | "check") { 0 } else { 22 };
        assert_eq!(help, (code, out, String::new()));
    }
}

#[test]
fn a_fresh_image_answers_like_the_original() {
    let d = folder();
    d.ok("create --debug -n d.vhd -s 16");
    assert_eq!(std::fs::metadata(d.path().join("d.vhd")).unwrap().len(), 3584);
    let all = "16\n3584\nd.vhd has no parent\nhidden: 0\nmarker: 0\nchain depth: 1\n0\n16\n";
    assert_eq!(d.ok("query -n d.vhd -vspfdSma"), all);
    assert_eq!(d.ok("query -vsaf -n --debug d.vhd"), "16\n3584\nhidden: 0\n0\n");
    assert_eq!(d.ok("check -n d.vhd"), "d.vhd is valid\n");
    assert_eq!(d.ok("query -n d.vhd"), "");
    let dump = d.ok("read -p -n d.vhd");
    assert!(dump.contains("\nDisk type           : Dynamic hard disk\n"), "{dump}");
    assert!(dump.contains("\nGeometry            : Cyl: 481, Hds: 4, Sctrs: 17\n"));
    assert!(dump.ends_with("Checksum            : 0xffffffff|0xffffffff (Good!)\n\n"));
}

#[test]
fn create_refuses_what_makes_no_sense() {
    let d = folder();
    let smaller = "Error: <-S size> must be greater than <-s size>\n";
    assert_eq!(d.run("create -n x -s 64 -S 16"), (22, smaller.into(), String::new()));
    let missing = "/nodir/x.vhd: failed to create: -2\n";
    assert_eq!(d.run("create -n /nodir/x.vhd -s 5"), (2, String::new(), missing.into()));
    assert_eq!(d.run("create -n x -s -5").0, 22);
    // The original takes text as 0 and knows no largest size.
    assert_eq!(d.run("create -n x -s abc").0, 22);
    assert_eq!(d.run("create -n x -s 2088962").0, 22);
    assert!(!d.path().join("x").exists());
    d.ok("create -n x -s 2088960");
}

#[test]
fn what_cannot_be_opened_has_its_number() {
    let d = folder();
    std::fs::write(d.path().join("txt"), "hello\n").unwrap();
    std::fs::create_dir(d.path().join("dir")).unwrap();
    for (name, errno) in [("txt", 5), ("dir", 21), ("nope", 2), ("/dev/null", 32)] {
        let text = format!("error opening {name}: -{errno}\n");
        let (code, out, err) = d.run(&format!("query -n {name} -v"));
        assert_eq!((code, out), (errno, text));
        assert!(err.starts_with(name) && err.ends_with('\n'), "a sentence says why: {err}");
    }
    assert_eq!(d.run("check -n nope").1, "cannot stat nope: 2\n");
    let text = "Failed to open nope: -2\n\nnope appears invalid; dumping headers\n\n";
    let (code, out, _) = d.run("read -p -n nope");
    assert_eq!((code, out.as_str()), (2, text));
}

#[test]
fn snapshots_know_their_parents() {
    let d = folder();
    d.ok("create -n p.vhd -s 10");
    d.ok("snapshot -n c.vhd -p p.vhd");
    let home = d.path().display().to_string();
    assert_eq!(d.ok("query -n c.vhd -pu"), "./p.vhd\n");
    assert_eq!(d.ok("query -n c.vhd -pd"), format!("{home}/p.vhd\nchain depth: 2\n"));
    assert_eq!(d.ok("check -p -n c.vhd"), format!("c.vhd is valid\n{home}/p.vhd is valid\n"));
    assert!(d.ok("read -p -n c.vhd").contains("       decoded name : ./p.vhd\n"));
    let deep = "snapshot depth exceeded: current depth: 2, limit: 2\n";
    let (code, out, _) = d.run("snapshot -e -n e.vhd -p c.vhd -l 2");
    assert_eq!((code, out.as_str()), (28, deep));
    std::fs::remove_file(d.path().join("p.vhd")).unwrap();
    let gone = "query failed\nerror checking chain depth: -2\n";
    let (code, out, err) = d.run("query -n c.vhd -pd");
    assert_eq!((code, out.as_str()), (2, gone));
    assert!(err.contains("tried ./p.vhd") && err.contains("vhd-util modify -p"), "{err}");
    assert_eq!(d.run("check -n c.vhd").0, 2);
}

#[test]
fn fixed_images_are_quiet() {
    let d = folder();
    d.ok("create -n f.vhd -s 4 -r");
    assert_eq!(std::fs::metadata(d.path().join("f.vhd")).unwrap().len(), 4_194_816);
    assert_eq!(d.ok("check -n f.vhd"), "");
    let (code, out, _) = d.run("read -n f.vhd -p");
    assert_eq!((code, out.as_str()), (22, "Failed to get bat for f.vhd: -22\n"));
    d.ok("set -n f.vhd -f hidden -v 1");
    assert_eq!(d.ok("query -n f.vhd -f"), "hidden: 1\n");
}

#[test]
fn reading_looks_through_blocks_and_chains() {
    let d = folder();
    std::fs::write(d.path().join("raw"), vec![0x77; 4 << 20]).unwrap();
    d.ok("snapshot -n c.vhd -p raw -m");
    let (code, out, _) = d.bytes("read -n c.vhd -r 8190 -c 2");
    assert_eq!((code, out), (0, vec![0x77; 1024]));
    assert_eq!(d.bytes("read -n c.vhd -R 5 -c 3").1, [0x77; 3]);
    assert_eq!(d.run("read -n c.vhd -r 8191 -c 2").0, 34);
    assert_eq!(d.ok("read -n c.vhd -b 1"), "block: 1: offset: not allocated\n");
    let past = (34, String::new(), "block 3 past end of file\n".to_string());
    assert_eq!(d.run("read -n c.vhd -b 2"), past);
    assert_eq!(d.ok("read -n c.vhd -i 4097"), "block 1: sec: 1: 0\n");
    assert_eq!(d.bytes("read -n c.vhd -B").1, [0]);
    assert_eq!(d.bytes("read -n c.vhd -a").1, [0; 512]);
    let place = "logical sector 0x1001: block number: 0x1, sector offset: 0x1, \
        file offset: not allocated\n";
    assert_eq!(d.ok("read -x -n c.vhd -t 4097"), place);
}

#[test]
fn flags_are_set_in_both_footers_and_the_map_stays_whole() {
    let d = folder();
    d.ok("create -n a.vhd -s 16");
    d.ok("set -n a.vhd -f hidden -v 1");
    d.ok("set -n a.vhd -f marker -v 200");
    assert_eq!(d.ok("query -n a.vhd -fm"), "hidden: 1\nmarker: -56\n");
    assert_eq!(d.ok("check -n a.vhd"), "a.vhd is valid\n");
    let usage = "options: <-n name> <-f field> <-v value> [-h help]\n";
    let said = |text: &str| (22, format!("{text}{usage}"), String::new());
    assert_eq!(d.run("set -n a.vhd -f hidden -v 256"), said("invalid value 256\n"));
    assert_eq!(d.run("set -n a.vhd -f bogus -v 1"), said("invalid field bogus\n"));
}

#[test]
fn a_lost_footer_is_reported_and_repaired() {
    let d = folder();
    d.ok("create -n a.vhd -s 16");
    let good = std::fs::read(d.path().join("a.vhd")).unwrap();
    d.poke("a.vhd", 3072, &[0; 512]);
    assert_eq!(d.ok("query -n a.vhd -vs"), "16\n3584\n");
    let (code, out, _) = d.run("check -n a.vhd");
    let start = "primary footer invalid: invalid cookie\na.vhd appears invalid; dumping metadata\n\
        VHD Footer Summary:\n";
    assert_eq!(code, 22);
    assert!(out.starts_with(start), "{out}");
    assert_eq!(d.ok("check -i -n a.vhd"), "a.vhd is valid\n");
    d.ok("repair -n a.vhd");
    assert!(std::fs::read(d.path().join("a.vhd")).unwrap() == good);
    d.poke("a.vhd", 0, &[0; 512]);
    d.poke("a.vhd", 3072, &[0; 512]);
    let (code, out, err) = d.run("repair -n a.vhd");
    assert_eq!((code, out.as_str()), (22, "error opening a.vhd: -22\n"));
    assert!(err.contains("footer at byte 3072") && err.contains("backup"), "{err}");
}

#[test]
fn a_snapshot_onto_its_parent_is_refused() {
    let d = folder();
    d.ok("create -n p.vhd -s 10");
    let keep = std::fs::read(d.path().join("p.vhd")).unwrap();
    assert_eq!(d.run("snapshot -n p.vhd -p p.vhd").0, 22);
    assert!(std::fs::read(Path::new(&d.path()).join("p.vhd")).unwrap() == keep);
}

#[test]
fn help_names_exactly_the_options_that_are_taken() {
    let d = folder();
    let overview = d.ok("--help");
    let commands: Vec<&str> = overview.lines().filter_map(|l| l.strip_prefix("  ")).collect();
    assert!(commands.len() >= 19, "{overview}");
    for command in commands.iter().map(|line| line.split(' ').next().unwrap()) {
        let help = d.ok(&format!("{command} --help"));
        for letter in ('a'..='z').chain('A'..='Z').filter(|letter| *letter != 'h') {
            let listed = help.contains(&format!("\n  -{letter} "));
            let (_, _, err) = d.run(&format!("{command} -{letter}"));
            let taken = !err.contains("invalid option");
            // coalesce knows three that lead to nothing, as the original.
            let dead = command == "coalesce" && "oax".contains(letter);
            assert!(listed == taken || dead, "{command} -{letter}: {help}{err}");
        }
    }
    assert!(d.ok("--version").starts_with("vhd-util "));
    assert!(d.ok("man").starts_with(".TH VHD"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(d.ok(&format!("completions {shell}")).contains("coalesce"));
    }
}
