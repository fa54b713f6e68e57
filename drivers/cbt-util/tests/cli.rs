//! The command as its callers see it: group H of the corpus, and where this tool goes further.
use std::fs::OpenOptions;
use std::process::{Command, Stdio};

use test_support::{Folder, program};

/// A new folder, empty.
fn folder() -> Folder {
    Folder::of(program!("cbt-util"))
}

/// The usage on standard output, where the original has it, of a command that is wrong.
fn usage(d: &Folder, code: i32, line: &str) -> String {
    let (found, out, err) = d.run(line);
    assert_eq!(found, code, "{line}: {err}");
    assert!(out.starts_with("usage: cbt-util "), "{line}: {out}");
    out
}

/// Cuts a log, or makes it longer.
fn set_len(d: &Folder, name: &str, bytes: u64) {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(d.file(name));
    file.unwrap().set_len(bytes).unwrap();
}

const NONE: &str = "00000000-0000-0000-0000-000000000000\n";
const ID: &str = "00112233-4455-6677-8899-aabbccddeeff";

#[test]
fn a_new_log_has_the_originals_bytes() {
    let d = folder();
    d.ok("create -n a.log -s 16777216");
    assert_eq!(d.get("a.log"), include_bytes!("data/cbt-16M.log"));
    d.ok("create -n b.log -s 10485760");
    let all = d.get("b.log");
    assert_eq!((all.len(), all[..40] == [0; 40]), (68, true));
    assert_eq!(all[40..48], [0, 0, 0xa0, 0, 0, 0, 0, 0]);
    let answers = [("p", NONE), ("c", NONE), ("f", "0\n"), ("s", "10485760\n")];
    for (field, answer) in answers {
        assert_eq!(d.ok(&format!("get -n b.log -{field}")), answer);
    }
}

#[test]
fn sizes_are_rounded_up_to_blocks_and_bytes() {
    let d = folder();
    for (disk, length) in
        [(1, 49), (524_288, 49), (524_289, 50), (2_190_433_320_960_u64, 4_177_968)]
    {
        d.ok(&format!("create -n a.log -s {disk}"));
        assert_eq!(d.get("a.log").len(), length, "{disk}");
    }
}

#[test]
fn an_existing_log_is_emptied() {
    let d = folder();
    d.put("a.log", &[0xff; 4096]);
    d.ok("create -n a.log -s 16777216");
    assert_eq!(d.get("a.log"), include_bytes!("data/cbt-16M.log"));
}

#[test]
fn growing_keeps_bits_and_shrinking_is_refused() {
    let d = folder();
    d.ok("create -n a.log -s 65536");
    d.poke("a.log", 48, &[1]);
    d.ok("set -n a.log -s 10485760");
    assert_eq!((d.get("a.log").len(), &d.get("a.log")[48..51]), (68, &[1, 0, 0][..]));
    d.ok("set -n a.log -s 10485760");
    let before = d.get("a.log");
    let text = "Size smaller than current file size (10485760)\n";
    assert_eq!(d.fails(22, "set -n a.log -s 5"), text);
    assert_eq!(d.get("a.log"), before);
}

#[test]
fn the_bitmap_is_printed_raw() {
    let d = folder();
    d.ok("create -n a.log -s 10485760");
    d.poke("a.log", 49, &[0x85]);
    let ran = d.bytes("get -n a.log -b");
    assert_eq!((ran.0, ran.1.len(), &ran.1[..2]), (0, 20, &[0, 0x85][..]));
    // A log on a volume is longer than its bitmap.
    set_len(&d, "a.log", 4 << 20);
    assert_eq!(d.bytes("get -n a.log -b"), ran);
}

#[test]
fn fields_are_set_one_by_one_and_together() {
    let d = folder();
    d.ok("create -n a.log -s 65536");
    d.ok(&format!("set -n a.log -c {}", ID.to_uppercase()));
    assert_eq!(d.ok("get -n a.log -c"), format!("{ID}\n"));
    assert_eq!(d.ok("get -n a.log -p"), NONE);
    d.ok(&format!("set -f1 -p {ID} -n a.log -s 65537"));
    assert_eq!(d.ok("get -n a.log -p"), format!("{ID}\n"));
    assert_eq!(d.ok("get -fn a.log"), "1\n");
    assert_eq!(d.ok("get -n a.log -s"), "65537\n");
    d.ok(&format!("set -n a.log -c {NONE}"));
    assert_eq!(d.ok("get -n a.log -c"), NONE);
    d.ok("set -n a.log -f -7");
    assert_eq!(d.ok("get -n a.log -f"), "-7\n");
}

#[test]
fn what_cannot_be_parsed_changes_nothing() {
    let d = folder();
    d.ok("create -n a.log -s 65536");
    let before = d.get("a.log");
    // The original ignores such an id and reads text as 0.
    let said = d.fails(22, "set -n a.log -p 00112233-4455 -f 1");
    let text =
        "-p 00112233-4455 is no UUID: not of the form 01234567-89ab-cdef-0123-456789abcdef\n";
    assert_eq!(said, text);
    for wrong in ["-f yes", "-f 4294967296", "-s 0", "-s 1M", "-s -1", "", "-f 1 stray", "-Z"] {
        let said = usage(&d, 22, &format!("set -n a.log {wrong}"));
        assert!(said.starts_with("usage: cbt-util set -n FILE"), "{wrong}: {said}");
    }
    assert_eq!(d.get("a.log"), before);
}

#[test]
fn errors_have_their_numbers() {
    let d = folder();
    assert!(usage(&d, 22, "").starts_with("usage: cbt-util COMMAND [OPTIONS]\n"));
    assert_eq!(usage(&d, 0, "bogus"), usage(&d, 22, ""));
    assert_eq!(d.run("bogus").2, "Invalid COMMAND bogus\n");
    for wrong in ["get -n x", "get -n x -p -c", "get -p", "get -h", "create -n a.log"] {
        usage(&d, 22, wrong);
    }
    assert_eq!(d.run("get -Z").2, "get: invalid option -- 'Z'\n");
    for wrong in ["create -n a.log -s 0", "create -n a.log -s abc", "create -s 1", "coalesce -p x"]
    {
        usage(&d, 22, wrong);
    }
    assert!(!d.file("a.log").exists());
    assert!(d.fails(2, "get -n none -p").contains("none: could not open"));
    d.fails(2, "set -n none -f 1");
    d.fails(2, "create -n none/a.log -s 1");
    d.fails(2, "coalesce -p none -c none");
    d.fails(21, "get -n . -p");
}

#[test]
fn short_files_are_no_logs() {
    let d = folder();
    d.ok("create -n good.log -s 65536");
    set_len(&d, "t.log", 40);
    for command in ["get -n t.log -p", "set -n t.log -f 1", "dump -n t.log"] {
        let said = d.fails(5, command);
        assert_eq!(
            said,
            "t.log is not a whole changed-block log (40 bytes, header and bitmap need 48, \
             and the disk's size is not 0); make a new one with cbt-util create\n"
        );
    }
    // A header of zeros is no log yet, but may become one.
    set_len(&d, "t.log", 48);
    d.fails(5, "get -n t.log -b");
    assert_eq!(d.ok("get -n t.log -p"), NONE);
    d.ok("set -n t.log -s 65536");
    assert_eq!(d.bytes("get -n t.log -b").1, [0]);
    set_len(&d, "t.log", 48);
    assert_eq!(d.ok("get -n t.log -s"), "65536\n");
    d.ok("set -n t.log -f 1");
    for command in [
        "get -n t.log -b",
        "set -n t.log -s 99999",
        "coalesce -p t.log -c good.log",
        "dump -n t.log",
    ] {
        d.fails(5, command);
    }
    d.fails(5, "coalesce -p good.log -c t.log");
    assert_eq!(d.get("t.log").len(), 48);
}

#[test]
fn a_header_that_promises_a_bitmap_beyond_all_memory_is_refused() {
    let d = folder();
    d.ok("create -n t.log -s 65536");
    d.poke("t.log", 40, &[0xff; 8]);
    assert_eq!(d.ok("get -n t.log -s"), "18446744073709551615\n");
    d.fails(5, "get -n t.log -b");
    d.fails(27, "create -n a.log -s 18446744073709551615");
    assert!(!d.file("a.log").exists());
}

#[test]
fn coalesce_adds_the_parents_bits_to_the_child() {
    let d = folder();
    d.ok("create -n p.log -s 10485760");
    d.ok("create -n c.log -s 20971520");
    d.ok(&format!("set -n c.log -p {ID} -f 1"));
    d.poke("p.log", 50, &[0x81]);
    d.poke("c.log", 50, &[0x11]);
    d.poke("c.log", 80, &[0xff]);
    let mut wanted = d.get("c.log");
    let parent = d.get("p.log");
    wanted[50] = 0x91;
    d.ok("coalesce -p p.log -c c.log");
    assert_eq!((d.get("c.log"), d.get("p.log")), (wanted, parent));
    let text = "Parent bitmap larger than child bitmap";
    assert_eq!(d.fails(22, "coalesce -p c.log -c p.log"), text);
}

#[test]
fn dump_shows_areas_in_bytes() {
    let d = folder();
    d.ok("create -n a.log -s 600000");
    d.ok(&format!("set -n a.log -c {ID}"));
    d.poke("a.log", 48, &[0x03, 0xfe]);
    let text = d.ok("dump -n a.log");
    let wanted = format!(
        "Parent log   : none\nChild log    : {ID}\nConsistent   : 0\nDisk size    : 600000 bytes\n\
         Blocks       : 10 of 65536 bytes\nChanged      : 3 blocks, 141248 bytes\n  \
         131072 bytes at 0\n  10176 bytes at 589824\n"
    );
    assert_eq!(text, wanted);
    let json: serde_json::Value = serde_json::from_str(&d.ok("dump --json -n a.log")).unwrap();
    let wanted = serde_json::json!({
        "parent": null, "child": ID, "consistent": 0, "disk_bytes": 600_000,
        "block_bytes": 65536, "blocks": 10, "changed_blocks": 3, "changed_bytes": 141_248,
        "changed": [{"offset": 0, "length": 131_072}, {"offset": 589_824, "length": 10_176}],
    });
    assert_eq!(json, wanted);
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let d = folder();
    d.ok("create -n a.log -s 65536");
    assert!(Command::new("mkfifo").arg(d.file("pipe")).status().unwrap().success());
    std::os::unix::fs::symlink("/dev/null", d.file("null")).unwrap();
    std::fs::create_dir(d.file("folder")).unwrap();
    for (name, code) in [("pipe", 22), ("null", 22), ("folder", 21)] {
        for line in [
            "create -n X -s 65536",
            "get -n X -s",
            "set -n X -f 1",
            "dump -n X",
            "coalesce -p X -c a.log",
            "coalesce -p a.log -c X",
        ] {
            let said = d.fails(code, &line.replace('X', name));
            assert!(said.contains(name), "{said}");
        }
    }
    d.ok("dump -n a.log");
}

#[test]
fn help_and_version_are_results() {
    let d = folder();
    assert!(d.ok("--version").starts_with("cbt-util "));
    let help = d.ok("--help");
    for command in ["create", "set", "get", "coalesce", "dump"] {
        assert!(help.contains(&format!("\n{command} -")), "{help}");
        let own = d.ok(&format!("{command} --help"));
        assert!(own.starts_with(&format!("usage: cbt-util {command} -")), "{own}");
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let d = folder();
    d.ok("create -n a.log -s 65536");
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let status = d.command("get -n a.log -b").stdout(Stdio::from(full)).status().unwrap();
    assert_eq!(status.code(), Some(28));
}

#[test]
fn manual_and_completions_know_every_command_and_option() {
    let packaging = concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/");
    let d = folder();
    let help = d.ok("--help");
    let named = |name: &str| std::fs::read_to_string(format!("{packaging}{name}")).unwrap();
    let page = named("cbt-util.8").replace('\\', "");
    for line in help.lines().filter(|l| l.contains(" -")) {
        let (command, options) = line.split_once(' ').unwrap();
        let options = options.split(|c: char| " []|".contains(c)).filter(|w| w.starts_with('-'));
        let options: Vec<&str> = options.collect();
        assert!(!options.is_empty() && page.contains(&format!(".SS {command}\n")), "{command}");
        for name in ["cbt-util.bash", "cbt-util.zsh", "cbt-util.fish"] {
            let text = named(&format!("completions/{name}"));
            let mine: Vec<&str> = text.lines().filter(|l| l.contains(command)).collect();
            assert!(!mine.is_empty(), "{name} lacks {command}");
            for option in &options {
                let fish = format!(
                    " {} {}",
                    if option.len() > 2 { "-l" } else { "-s" },
                    option.trim_start_matches('-')
                );
                let has = mine.iter().any(|l| l.contains(option) || l.contains(&fish));
                assert!(has, "{name}: {command} lacks {option}");
            }
        }
        let section = page.split(&format!(".SS {command}\n")).nth(1).unwrap();
        let section = section.split("\n.S").next().unwrap();
        for option in options {
            assert!(section.contains(option), "the manual's {command} lacks {option}");
        }
    }
}

#[test]
fn get_prints_all_fields_as_json() {
    let d = folder();
    d.ok("create -n a.log -s 65536");
    let text = "{\"parent\": null, \"child\": null, \"consistent\": 0, \"disk_bytes\": 65536}\n";
    assert_eq!(d.ok("get -n a.log --json"), text);
    assert_eq!(d.run("get -n a.log --json -s").0, 22);
}

#[test]
fn a_limit_for_files_is_an_error_and_leaves_nothing_half() {
    let d = folder();
    // A log of 2 MiB, where 1 MiB is the limit.
    let mut shell = Command::new("sh");
    shell.args(["-c", "ulimit -f 2048; exec \"$0\" \"$@\""]).arg(d.program());
    shell.args(["create", "-n", "new", "-s", "1099511627776"]).current_dir(d.path());
    let out = shell.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(27), "{said}");
    assert!(said.contains("File too large") && !d.file("new").exists(), "{said}");
}
