//! What `--json` prints, and output that cannot be written.

use crate::common::folder;
use serde_json::{Value, json};
use std::process::Stdio;
use test_support::Folder;

/// A base and a child in it.
fn chain() -> Folder {
    let d = folder();
    d.ok("create -n p.vhd -s 16");
    d.ok("snapshot -n c.vhd -p p.vhd -e");
    d
}

#[test]
fn query_answers_with_an_object() {
    let d = chain();
    let home = d.path().display().to_string();
    let all = json!({
        "name": "c.vhd", "virtual_bytes": 16 << 20, "physical_bytes": 5120, "hidden": 0, "marker": 0,
        "parent": format!("{home}/p.vhd"), "chain_depth": 2, "allocated_blocks": 0,
        "resize_max_bytes": 16 << 20,
    });
    assert_eq!(d.json("query -n c.vhd --json"), (0, all));
    let some = json!({ "name": "p.vhd", "virtual_bytes": 16 << 20, "parent": null });
    assert_eq!(d.json("query --json -vp -n p.vhd"), (0, some));
    assert_eq!(d.json("query --json -pu -n c.vhd").1["parent"], "./p.vhd");
}

#[test]
fn what_cannot_be_learned_is_null_and_has_its_error() {
    let d = chain();
    std::fs::remove_file(d.path().join("p.vhd")).unwrap();
    let (code, object) = d.json("query -n c.vhd --json -vpd");
    assert_eq!(
        (code, &object["parent"], &object["virtual_bytes"]),
        (2, &Value::Null, &json!(16 << 20))
    );
    for name in ["parent", "chain_depth"] {
        assert_eq!(object["errors"][name]["errno"], 2);
        assert!(object["errors"][name]["message"].as_str().unwrap().contains("p.vhd"));
    }
    for command in ["query -n nope", "info -n nope", "map -n nope", "check -n nope"] {
        let (code, object) = d.json(&format!("{command} --json"));
        assert_eq!(
            (code, &object["name"], &object["error"]["errno"]),
            (2, &json!("nope"), &json!(2))
        );
    }
    d.ok("create -n f.vhd -s 2 -r");
    let (code, object) = d.json("query --json -n f.vhd");
    assert_eq!((code, &object["allocated_blocks"], object.get("errors")), (0, &Value::Null, None));
    assert_eq!(d.json("query --json -a -n f.vhd").0, 22);
}

#[test]
fn scan_prints_an_object_a_line() {
    let d = chain();
    d.put("bad.vhd", &[7; 4096]);
    d.ok("set -n p.vhd -f hidden -v 1");
    let lines = |line: &str| -> Vec<Value> {
        let out = d.run(line).1;
        out.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    };
    let seen = lines("scan -f -c --json -m *.vhd");
    let by_name = |name: &str| seen.iter().find(|o| o["name"] == name).unwrap().clone();
    let child = json!({ "name": "c.vhd", "capacity_bytes": 16 << 20, "size_bytes": 5120, "hidden": 0,
        "parent": "./p.vhd" });
    assert_eq!(by_name("c.vhd"), child);
    let bad = &by_name("bad.vhd")["error"];
    assert_eq!((&bad["errno"], &bad["step"]), (&json!(22), &json!("opening file")));
    let home = d.path().display().to_string();
    let tree = lines("scan -p -M --json p.vhd c.vhd");
    let of = |o: &Value| [o["name"].clone(), o["depth"].clone(), o["parent_found"].clone()];
    let expected = [
        [json!(format!("{home}/p.vhd")), json!(0), Value::Null],
        [json!(format!("{home}/c.vhd")), json!(1), json!(true)],
    ];
    assert_eq!(tree.iter().map(of).collect::<Vec<_>>(), expected);
    assert_eq!((&tree[0]["marker"], &tree[0]["key_hash"]), (&json!(0), &Value::Null));
    let (code, _, _) = d.run("scan --json bad.vhd c.vhd");
    assert_eq!(code, 22);
}

#[test]
fn check_says_which_image_is_not_valid() {
    let d = chain();
    let (code, good) = d.json("check -n c.vhd -p -s --json");
    assert_eq!(
        (code, &good["valid"], good["images"].as_array().unwrap().len()),
        (0, &json!(true), 2)
    );
    assert_eq!(good["images"][0]["allocated_sectors"], 0);
    d.poke("p.vhd", 600, &[1]);
    d.poke("c.vhd", 4608, &[0; 512]);
    let (code, bad) = d.json("check -n c.vhd --json");
    assert_eq!((code, &bad["valid"]), (22, &json!(false)));
    let fault = &bad["images"][0]["fault"];
    assert_eq!(fault["message"], "primary footer invalid: invalid cookie");
}

#[test]
fn long_commands_end_with_an_object() {
    let d = chain();
    let (code, done) = d.json("coalesce -n c.vhd --json -p -s");
    assert_eq!((code, done), (0, json!({ "sectors": 0, "bytes_written": 0 })));
    assert_eq!(
        d.json("convert -n c.vhd -N o.raw -O raw --json").1,
        json!({ "sectors": 0, "bytes_written": 0 })
    );
    assert_eq!(d.json("compact -n p.vhd --json").1["freed_blocks"], 0);
    let (code, failed) = d.json("coalesce -n p.vhd --json");
    assert_eq!((code, &failed["error"]["errno"]), (22, &json!(22)));
    let none = json!({ "nonce": null, "hash": null });
    assert_eq!(d.json("key -p -n p.vhd --json"), (0, none));
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    let d = chain();
    for line in [
        "query -n c.vhd -vs",
        "scan c.vhd",
        "read -n c.vhd -p",
        "read -n c.vhd -r 0 -c 32768",
        "--help",
    ] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = d.command(line);
        let out = command.stdout(Stdio::from(full)).stderr(Stdio::piped()).spawn().unwrap();
        let out = out.wait_with_output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(28), "{line}");
        assert!(said.contains("standard output: No space left on device"), "{line}: {said}");
    }
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let out = d.command("query -n c.vhd -vs").stdout(writer).status().unwrap();
    assert_eq!(out.code(), Some(32), "EPIPE");
}

#[test]
fn debug_may_stand_between_an_option_and_its_value_and_long_names_not() {
    let d = chain();
    assert_eq!(d.ok("query -v -n --debug c.vhd"), "16\n");
    let (code, _, err) = d.run("query -n c.vhd --nonsense");
    assert_eq!((code, err.as_str()), (22, "query: invalid option -- '-'\n"));
    let (code, _, err) = d.run("coalesce -n c.vhd --rate");
    assert_eq!((code, err.as_str()), (22, "coalesce: option '--rate' requires an argument\n"));
    assert_eq!(d.run("coalesce -n c.vhd --progress=loud").0, 22);
    assert_eq!(d.run("query -v -n --json").0, 2, "the value of -n, as getopt reads it");
}
