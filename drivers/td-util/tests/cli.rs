//! The command as its callers see it.
use std::process::Command;

use test_support::{Folder, program};

/// A new folder, empty.
fn folder() -> Folder {
    Folder::of(program!("td-util"))
}

#[test]
fn what_is_no_command_ends_with_255() {
    let d = folder();
    for wrong in ["", "create", "bogus", "bogus vhd 1 f", "create qcow2 1 f", "create -r vhd 1 f"] {
        let (code, out, err) = d.run(wrong);
        assert_eq!((code, out.as_str()), (255, ""), "{wrong}");
        assert!(err.contains("usage: td-util COMMAND TYPE"), "{wrong}: {err}");
        assert_eq!(err.contains("invalid COMMAND bogus"), wrong.starts_with("bogus"), "{err}");
    }
    assert!(d.ok("--help").starts_with("usage: td-util COMMAND TYPE"));
    assert!(d.ok("--version").starts_with("td-util "));
}

#[test]
fn wrong_operands_and_options_end_with_22_and_help_with_0() {
    let d = folder();
    for wrong in [
        "create vhd",
        "create vhd 10",
        "create vhd ten f",
        "create vhd 10 f g",
        "create vhd -Z 10 f",
        "create aio -r 0 f",
        "snapshot vhd f",
        "snapshot vhd -l x f g",
        "snapshot aio f g",
        "query vhd",
        "query vhd f g",
        "query aio -p f",
        "set aio f hidden 1",
        "set vhd f hidden",
        "set vhd f hidden 256",
        "set vhd f bogus 1",
    ] {
        let (code, out, _) = d.run(wrong);
        let words = format!("usage: td-util {} ", wrong.split(' ').next().unwrap());
        assert!(code == 22 && out.contains(&words), "{wrong}: {code} {out}");
    }
    for command in ["create", "snapshot", "query", "set"] {
        let usage = d.ok(&format!("{command} vhd -h"));
        assert!(usage.starts_with(&format!("usage: td-util {command} vhd")), "{usage}");
    }
    assert_eq!(d.run("create vhd -b 10 f").0, 22);
    assert!(std::fs::read_dir(d.path()).unwrap().next().is_none(), "nothing was made");
}

#[test]
fn a_fresh_vhd_answers_as_for_the_old_storage_manager() {
    let d = folder();
    d.ok("create vhd 10 a.vhd");
    assert_eq!(std::fs::metadata(d.file("a.vhd")).unwrap().len(), 3584);
    let all = "10\na.vhd has no parent\nhidden: 0\n";
    assert_eq!(d.ok("query vhd -vpf a.vhd"), all);
    assert_eq!(d.ok("query vhd -vpfb a.vhd"), all);
    assert_eq!(d.ok("query vhd a.vhd -d -v"), "10\nchain depth: 1\n");
    assert_eq!(d.ok("query vhd a.vhd"), "");
    d.ok("set vhd a.vhd hidden 1");
    assert_eq!(d.ok("query vhd -f a.vhd"), "hidden: 1\n");
}

#[test]
fn a_fixed_vhd_and_a_raw_image_are_written_whole() {
    let d = folder();
    d.ok("create vhd -r 4 f.vhd");
    assert_eq!(std::fs::metadata(d.file("f.vhd")).unwrap().len(), (4 << 20) + 512);
    let sparse = "Cannot create sparse aio image\n";
    assert_eq!(d.run("create aio 10 a.raw"), (22, String::new(), sparse.into()));
    assert!(!d.file("a.raw").exists());
    d.ok("create aio -r 10 a.raw");
    let raw = std::fs::read(d.file("a.raw")).unwrap();
    assert!(raw.len() == 10 << 20 && raw.iter().all(|b| *b == 0));
    use std::os::unix::fs::MetadataExt;
    assert!(std::fs::metadata(d.file("a.raw")).unwrap().blocks() * 512 >= 10 << 20);
    assert_eq!(d.ok("query aio -v a.raw"), "10\n");
    assert_eq!(d.ok("query aio a.raw"), "");
}

#[test]
fn snapshots_name_the_child_first() {
    let d = folder();
    d.ok("create vhd 10 p.vhd");
    d.ok("snapshot vhd c.vhd p.vhd");
    let parent = d.file("p.vhd").display().to_string();
    assert_eq!(d.ok("query vhd -pd c.vhd"), format!("{parent}\nchain depth: 2\n"));
    let deep = "snapshot depth exceeded: current depth: 1, limit: 1\n";
    assert_eq!(d.run("snapshot vhd -l 1 e.vhd c.vhd"), (28, deep.into(), String::new()));
    d.ok("snapshot vhd -l 2 e.vhd c.vhd");
    // The empty snapshot in between is left out of the chain.
    assert_eq!(d.ok("query vhd -p e.vhd"), format!("{parent}\n"));
    d.ok("create aio -r 2 raw");
    d.ok("snapshot vhd -m r.vhd raw");
    assert_eq!(d.ok("query vhd -v r.vhd"), "2\n");
    std::fs::remove_file(d.file("p.vhd")).unwrap();
    let (code, out, _) = d.run("query vhd -pf c.vhd");
    assert_eq!((code, out.as_str()), (2, "query failed\nhidden: 0\n"));
}

#[test]
fn what_does_not_open_has_its_number() {
    let d = folder();
    std::fs::write(d.file("txt"), "hello\n").unwrap();
    for (line, name, errno) in
        [("query vhd -v", "none", 2), ("query vhd -v", "txt", 5), ("query aio -v", "none", 2)]
    {
        let (code, out, _) = d.run(&format!("{line} {name}"));
        assert_eq!((code, out), (errno, format!("failed opening {name}: -{errno}\n")), "{line}");
    }
    assert_eq!(d.run("query aio -v .").0, 21);
    assert_eq!(d.run("create vhd 10 none/a.vhd").0, 2);
    assert_eq!(d.run("create aio -r 10 none/a").0, 2);
    assert_eq!(d.run("snapshot vhd c.vhd none").0, 2);
    assert_eq!(d.run("set vhd none hidden 1").0, 2);
    assert_eq!(std::fs::read(d.file("txt")).unwrap(), b"hello\n");
}

#[test]
fn query_answers_with_an_object() {
    let d = folder();
    d.ok("create vhd 16 p.vhd");
    d.ok("snapshot vhd c.vhd p.vhd");
    let json = |line: &str| {
        let (code, out, _) = d.run(line);
        (code, serde_json::from_str::<serde_json::Value>(&out).unwrap())
    };
    // The empty parent is no reason to skip it: it has no parent itself.
    let all = serde_json::json!({
        "name": "c.vhd", "virtual_bytes": 16 << 20, "parent": d.file("p.vhd"), "hidden": 0,
        "chain_depth": 2,
    });
    assert_eq!(json("query vhd --json c.vhd"), (0, all));
    let one = serde_json::json!({ "name": "p.vhd", "parent": null });
    assert_eq!(json("query vhd -p --json p.vhd"), (0, one));
    d.ok("create aio -r 2 raw");
    let raw = serde_json::json!({ "name": "raw", "virtual_bytes": 2 << 20 });
    assert_eq!(json("query aio --json raw"), (0, raw));
    std::fs::remove_file(d.file("p.vhd")).unwrap();
    let (code, object) = json("query vhd -vp --json c.vhd");
    assert_eq!((code, &object["errors"]["parent"]["errno"]), (2, &serde_json::json!(2)));
    assert_eq!(json("query vhd --json none").0, 2);
    assert_eq!(d.run("create vhd --json 2 x").0, 22);
}

#[test]
fn what_is_no_file_is_refused_at_once() {
    let d = folder();
    d.ok("create vhd 4 p.vhd");
    assert!(Command::new("mkfifo").arg(d.file("pipe")).status().unwrap().success());
    std::fs::create_dir(d.file("folder")).unwrap();
    for (name, errno) in [("pipe", 22), ("folder", 21)] {
        for line in [
            "create vhd 4 X",
            "create aio -r 4 X",
            "snapshot vhd X p.vhd",
            "snapshot vhd new X",
            "snapshot vhd -m new X",
            "query vhd -v X",
            "query aio -v X",
            "set vhd X hidden 1",
        ] {
            let (code, out, err) = d.run(&line.replace('X', name));
            assert_eq!(code, errno, "{line}: {out}{err}");
            assert!((out + &err).contains(name), "{line}: {err}");
        }
    }
    assert_eq!(d.run("create vhd 0 new").0, 22, "a disk without sectors");
    assert!(!d.file("new").exists());
}

#[test]
fn a_limit_for_files_is_an_error_and_leaves_nothing_half() {
    let d = folder();
    for line in ["create aio -r 4 new", "create vhd -r 4 new"] {
        let mut shell = Command::new("sh");
        shell.args(["-c", "ulimit -f 2048; exec \"$0\" \"$@\""]).arg(d.program());
        let out = shell.args(line.split(' ')).current_dir(d.path()).output().unwrap();
        assert_eq!(out.status.code(), Some(27), "{line}: {:?}", out.stderr.escape_ascii());
        assert!(!out.stderr.is_empty() && !d.file("new").exists(), "{line}");
    }
}
