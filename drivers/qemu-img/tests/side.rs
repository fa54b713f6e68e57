//! The same commands by QEMU's qemu-img and by ours under its name: the same standard output and
//! the same exit code.
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What came of a command.
#[derive(Debug, PartialEq, Eq)]
struct Ran {
    code: Option<i32>,
    out: String,
    err: String,
}

struct Bench {
    dir: tempfile::TempDir,
    ours: PathBuf,
}

fn run(program: &Path, dir: &Path, words: &[&str]) -> Ran {
    let output = Command::new(program).args(words).current_dir(dir).env("TZ", "UTC").output();
    let output = output.unwrap_or_else(|e| panic!("{} (qemu-utils): {e}", program.display()));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) }
}

fn split(line: &str) -> Vec<&str> {
    line.split(' ').map(|word| if word == "''" { "" } else { word }).collect()
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().expect("a directory");
        let ours = dir.path().join("qemu-img");
        symlink(env!("CARGO_BIN_EXE_qcow2-util"), &ours).expect("a link");
        std::fs::create_dir(dir.path().join("d")).expect("a directory");
        Bench { dir, ours }
    }

    fn at(&self) -> PathBuf {
        self.dir.path().join("d")
    }

    fn qemu(&self, line: &str) -> Ran {
        run(Path::new("qemu-img"), &self.at(), &split(line))
    }

    fn our(&self, line: &str) -> Ran {
        run(&self.ours, &self.at(), &split(line))
    }

    /// Has to go well with QEMU's.
    fn make(&self, line: &str) {
        let ran = self.qemu(line);
        assert_eq!(ran.code, Some(0), "{line}: {}", ran.err);
    }

    fn io(&self, image: &str, commands: &[&str]) {
        let mut words = vec!["-f", "qcow2"];
        words.extend(commands.iter().flat_map(|command| ["-c", command]));
        words.push(image);
        let ran = run(Path::new("qemu-io"), &self.at(), &words);
        assert!(ran.code == Some(0) && !ran.out.contains("failed"), "{}{}", ran.out, ran.err);
    }

    /// Both on the same images, which stay as they are.
    fn same(&self, line: &str) -> Ran {
        let (theirs, ours) = (self.qemu(line), self.our(line));
        assert_eq!(ours.out, theirs.out, "{line}: {} {}", ours.err, theirs.err);
        assert_eq!(ours.code, theirs.code, "{line}: {} {}", ours.err, theirs.err);
        assert_eq!(ours.err.is_empty(), theirs.err.is_empty(), "{line}: {}", ours.err);
        ours
    }

    /// The same, and the same sentence.
    fn exactly(&self, line: &str) {
        let ours = self.same(line);
        assert_eq!(ours.err, self.qemu(line).err, "{line}");
    }

    /// Each on images of its own, as they were before; the images that were made stay for `then`.
    fn each(&self, line: &str, then: impl Fn(&Bench, &str)) {
        let kept = self.dir.path().join("kept");
        let copy = |from: &Path, to: &Path| {
            let _ = std::fs::remove_dir_all(to);
            std::fs::create_dir(to).expect("a directory");
            for entry in std::fs::read_dir(from).expect("it is there").flatten() {
                std::fs::copy(entry.path(), to.join(entry.file_name())).expect("copied");
            }
        };
        copy(&self.at(), &kept);
        let theirs = self.qemu(line);
        then(self, "theirs");
        copy(&kept, &self.at());
        let ours = self.our(line);
        then(self, "ours");
        copy(&kept, &self.at());
        assert_eq!(plain(&ours.out), plain(&theirs.out), "{line}: {} {}", ours.err, theirs.err);
        assert_eq!(ours.code, theirs.code, "{line}: {} {}", ours.err, theirs.err);
    }
}

/// Without the line that only XCP-ng's says, and how many corruptions were repaired: QEMU counts
/// flags that it made wrong itself a moment before.
fn plain(out: &str) -> String {
    let own = |line: &&str| {
        !line.starts_with('(') && *line != "\n" && !line.trim_end().ends_with(" corruptions")
    };
    out.split_inclusive('\n').filter(own).collect()
}

/// A chain of three, a raw image, and an overlay of that which is longer.
fn images(bench: &Bench) {
    bench.make("create -q -f qcow2 a.qcow2 64M");
    bench.make("create -q -f qcow2 -F qcow2 -b a.qcow2 b.qcow2");
    bench.make("create -q -f qcow2 -o compat=0.10 -F qcow2 -b ./b.qcow2 c.qcow2 80M");
    bench.make("create -q -f raw r.raw 1000000");
    bench.make("create -q -f qcow2 -F raw -b r.raw d.qcow2 2M");
    bench
        .make("create -q -f qcow2 -o extended_l2=on,cluster_size=16k,lazy_refcounts=on s.qcow2 9M");
    bench.io("a.qcow2", &["write -P 1 0 3M", "write -c -P 2 7M 64k", "write -P 3 60M 1M"]);
    bench.io("b.qcow2", &["write -P 4 1M 1M", "write -z 2M 1M", "write -P 5 5M 64k"]);
    bench.io("c.qcow2", &["write -P 6 70M 2M", "write -P 7 1500k 64k"]);
    bench.io("s.qcow2", &["write -P 8 0 1M", "write -P 8 4M 2k"]);
}

#[test]
fn what_is_told_of_images_is_the_same() {
    let bench = Bench::new();
    images(&bench);
    for image in ["a.qcow2", "b.qcow2", "c.qcow2", "d.qcow2", "r.raw", "s.qcow2"] {
        for line in [
            "info",
            "info --output=json",
            "info -U --backing-chain --output=json",
            "info --backing-chain",
            "map --output=json",
            "map",
            "check",
            "check -q",
            "check --output=json",
            "measure -O qcow2",
            "measure -O qcow2 --output=json -o cluster_size=4096",
            "measure -O raw",
        ] {
            bench.same(&format!("{line} {image}"));
        }
    }
    bench.same("info -f raw a.qcow2");
    bench.same("map -s 1M -l 2M --output=json b.qcow2");
    bench.same("map --start-offset 1M --max-length 3M b.qcow2");
    bench.make("snapshot -c one s.qcow2");
    bench.io("s.qcow2", &["write -P 9 0 64k"]);
    for line in [
        "snapshot -l s.qcow2",
        "info s.qcow2",
        "check s.qcow2",
        "info --output=json s.qcow2",
        "snapshot -l a.qcow2",
    ] {
        bench.same(line);
    }
    let absolute = bench.at().join("c.qcow2").display().to_string();
    bench.same(&format!("info --backing-chain --output=json {absolute}"));
    bench.same(&format!("map {absolute} --output=json"));
}

#[test]
fn a_disk_of_no_bytes_is_looked_at_too() {
    let bench = Bench::new();
    bench.make("create -q -f qcow2 z.qcow2 0");
    for line in ["info z.qcow2", "check z.qcow2", "map z.qcow2", "compare z.qcow2 z.qcow2"] {
        bench.same(line);
    }
    bench.same("map --output=json z.qcow2");
    bench.same("measure -O qcow2 z.qcow2");
    bench.each("resize z.qcow2 1M", |bench, _| bench.make("check z.qcow2"));
    for line in ["create -f qcow2 y.qcow2 0", "convert -O qcow2 z.qcow2 y.qcow2"] {
        bench.each(line, |bench, _| bench.make("check y.qcow2"));
    }
    bench.each("convert -O raw z.qcow2 y.raw", |bench, _| bench.make("info -f raw y.raw"));
}

#[test]
fn sizes_are_measured_the_same() {
    let bench = Bench::new();
    for line in [
        "measure -O qcow2 --size 1G",
        "measure -O qcow2 --output json -o cluster_size=65536 --size 17589500641280",
        "measure -O qcow2 -o extended_l2=on,cluster_size=16k --size 1T",
        "measure -O raw --size 1000",
        "measure --size 1.5G",
        "measure -O qcow2",
        "measure -O vmdk --size 1G",
    ] {
        bench.exactly(line);
    }
}

#[test]
fn comparisons_are_the_same() {
    let bench = Bench::new();
    images(&bench);
    bench.make("convert -O raw c.qcow2 c.raw");
    for line in [
        "compare a.qcow2 b.qcow2",
        "compare -f qcow2 -F raw c.qcow2 c.raw",
        "compare a.qcow2 r.raw",
        "compare r.raw d.qcow2",
        "compare -s r.raw d.qcow2",
        "compare -q a.qcow2 b.qcow2",
        "compare nix a.qcow2",
        "compare a.qcow2 a.qcow2",
    ] {
        bench.same(line);
    }
}

#[test]
fn wrong_words_are_refused_the_same() {
    let bench = Bench::new();
    images(&bench);
    for line in [
        "info nix",
        "info --output=json nix",
        "info",
        "info -f qcow2 r.raw",
        "info --output=foo a.qcow2",
        "check r.raw",
        "check",
        "check -f qcow2 r.raw",
        "map",
        "resize a.qcow2",
        "resize a.qcow2 1M",
        "resize nix 1G",
        "rebase",
        "rebase -u -b a.qcow2 b.qcow2",
        "commit nix -d",
        "commit -d a.qcow2",
        "create",
        "create -f qcow2 x.qcow2",
        "create -f qcow2 x.qcow2 1G 2G",
        "create -f qcow2 x.qcow2 10Q",
        "create -f qcow2 x.qcow2 9E",
        "create -f qcow2 -o cluster_size=500 x.qcow2 1G",
        "create -f qcow2 -o extended_l2=on,cluster_size=8k x.qcow2 1G",
        "create -f qcow2 -o refcount_bits=3 x.qcow2 1G",
        "create -f qcow2 -o refcount_bits=8,compat=0.10 x.qcow2 1G",
        "create -f qcow2 -o foo=1 x.qcow2 1G",
        "create -f qcow2 -b nix.qcow2 -F qcow2 x.qcow2",
        "create -f qcow2 -b a.qcow2 x.qcow2",
        "create -f qcow2 -o cluster_size=512 x.qcow2 130G",
        "create -f qcow2 /nodir/x 1G",
        "",
    ] {
        // The images that were not made are not there for the other.
        let _ = std::fs::remove_file(bench.at().join("x.qcow2"));
        let theirs = if line.is_empty() {
            run(Path::new("qemu-img"), &bench.at(), &[])
        } else {
            bench.qemu(line)
        };
        let _ = std::fs::remove_file(bench.at().join("x.qcow2"));
        let ours =
            if line.is_empty() { run(&bench.ours, &bench.at(), &[]) } else { bench.our(line) };
        assert_eq!(ours, theirs, "{line}");
        assert!(!bench.at().join("x.qcow2").exists(), "{line}: half an image stays");
    }
}

#[test]
fn new_images_are_told_the_same_and_are_the_same_to_qemu() {
    let bench = Bench::new();
    images(&bench);
    for line in [
        "create -f qcow2 x.qcow2 1G",
        "create -f qcow2 x.qcow2 1000000",
        "create -f qcow2 x.qcow2 4T -o cluster_size=2M",
        "create -f qcow2 -F qcow2 -b b.qcow2 -o cluster_size=65536 x.qcow2",
        "create -f qcow2 -F raw -b r.raw x.qcow2",
        "create -f qcow2 -b a.qcow2 -F qcow2 -o extended_l2=on -o cluster_size=16384 x.qcow2",
        "create -f qcow2 -o backing_file=a.qcow2,backing_fmt=qcow2 x.qcow2 1G",
        "create -f qcow2 x.qcow2 10M -o preallocation=full",
        "create -f qcow2 x.qcow2 10M -o preallocation=metadata,compat=1.1",
        "create -f qcow2 -o compat=0.10,size=5M x.qcow2",
        "create -f qcow2 -u -b nix.qcow2 -F qcow2 x.qcow2 1G",
        "create -q -f qcow2 x.qcow2 1G",
        "create -f raw x.qcow2 1000",
        "create x.qcow2 1000000",
    ] {
        let infos = std::cell::RefCell::new(Vec::new());
        bench.each(line, |bench, _| {
            let info = bench.qemu("info x.qcow2").out;
            let check = bench.qemu("check x.qcow2");
            // One has a parent that is not there.
            let fine = [Some(0), Some(63)].contains(&check.code) || line.contains("nix");
            assert!(fine, "{line}: {}", check.err);
            let told = |line: &&str| {
                ["virtual", "cluster", "backing", "    "]
                    .iter()
                    .any(|start| line.starts_with(start))
            };
            let told = info.lines().filter(told).filter(|line| !line.contains("disk size"));
            let told = told.filter(|line| !line.contains("file length"));
            infos.borrow_mut().push(told.collect::<Vec<_>>().join("\n"));
        });
        let infos = infos.into_inner();
        assert_eq!(infos[0], infos[1], "{line}");
    }
}

#[test]
fn changed_images_show_the_same() {
    let bench = Bench::new();
    images(&bench);
    // d is over r: a chain that is longer than its parent.
    for (line, looks) in [
        ("resize a.qcow2 64M", &["a.qcow2"][..]),
        ("resize a.qcow2 +1M", &["a.qcow2", "b.qcow2"]),
        ("resize b.qcow2 2G", &["b.qcow2"]),
        ("resize c.qcow2 200M", &["c.qcow2"]),
        ("resize d.qcow2 5M", &["d.qcow2"]),
        ("resize -f raw r.raw 3M", &["r.raw", "d.qcow2"]),
        ("rebase -u -f qcow2 -F qcow2 -b a.qcow2 c.qcow2", &["c.qcow2"]),
        ("rebase -u -b '' b.qcow2", &["b.qcow2"]),
        ("rebase -u b.qcow2", &["b.qcow2"]),
        ("commit -f qcow2 c.qcow2 -d", &["b.qcow2", "c.qcow2"]),
        ("rebase -u -F qcow2 -b nix.qcow2 c.qcow2", &[]),
        ("commit -d b.qcow2", &["a.qcow2"]),
        ("commit -d d.qcow2", &["r.raw"]),
        ("convert -O raw c.qcow2 new", &["new"]),
        ("convert -f qcow2 -O qcow2 c.qcow2 new", &["new"]),
        ("convert -O qcow2 -o cluster_size=4k r.raw new", &["new"]),
    ] {
        let shown = std::cell::RefCell::new(Vec::new());
        bench.each(line, |bench, who| {
            for image in looks {
                let to = bench.dir.path().join("shown");
                let format = if *image == "r.raw" { "raw" } else { "qcow2" };
                let raw = *image == "new" && line.contains("-O raw");
                let format = if raw { "raw" } else { format };
                let path = to.display().to_string();
                bench.make(&format!("convert -f {format} -O raw {image} {path}"));
                shown.borrow_mut().push(std::fs::read(to).expect("made"));
                if format == "qcow2" {
                    let check = bench.qemu(&format!("check {image}"));
                    assert_eq!(check.code, Some(0), "{line} {who} {image}: {}", check.err);
                }
            }
        });
        let shown = shown.into_inner();
        let (theirs, ours) = shown.split_at(looks.len());
        for (image, (theirs, ours)) in looks.iter().zip(theirs.iter().zip(ours)) {
            assert!(theirs == ours, "{line}: {image} is another disk");
        }
    }
}

#[test]
fn repairs_end_the_same() {
    let bench = Bench::new();
    bench.make("create -q -f qcow2 k.qcow2 8M");
    bench.io("k.qcow2", &["write 0 64k", "write 1M 3M"]);
    let path = bench.at().join("k.qcow2");
    let good = std::fs::read(&path).expect("an image");
    for (at, count) in [(10, 0u16), (20, 3), (12, 2)] {
        let mut bytes = good.clone();
        bytes[131_072 + at..][..2].copy_from_slice(&count.to_be_bytes());
        std::fs::write(&path, bytes).expect("written");
        bench.same("check k.qcow2");
        bench.same("check --output=json k.qcow2");
        bench.each("check -r all -q k.qcow2", |bench, who| {
            assert_eq!(bench.qemu("check k.qcow2").code, Some(0), "{who}");
        });
    }
    let mut bytes = good;
    bytes[131_072 + 20..][..2].copy_from_slice(&3u16.to_be_bytes());
    std::fs::write(&path, bytes).expect("written");
    bench.each("check -f qcow2 -r all k.qcow2", |_, _| ());
    bench.each("check -r leaks k.qcow2", |_, _| ());
}

/// What XCP-ng's program says besides: the storage manager looks for it.
#[test]
fn a_commit_tells_how_far_it_is_under_the_one_name_only() {
    let bench = Bench::new();
    images(&bench);
    let out = bench.our("commit -f qcow2 b.qcow2 -d").out;
    assert!(out.starts_with('(') && out.contains("/67108864)\r"), "{out:?}");
    assert!(out.ends_with("(67108864/67108864)\r\nImage committed.\n"), "{out:?}");
    let util = Path::new(env!("CARGO_BIN_EXE_qcow2-util"));
    let ran = run(util, &bench.at(), &["commit", "-d", "b.qcow2"]);
    assert_eq!((ran.out.as_str(), ran.code), ("Image committed.\n", Some(0)));
}

#[test]
fn what_is_not_there_is_refused_with_a_sentence() {
    let bench = Bench::new();
    images(&bench);
    for line in [
        "amend -o compat=1.1 a.qcow2",
        "rebase -b a.qcow2 -F qcow2 c.qcow2",
        "commit c.qcow2",
        "commit -d -b a.qcow2 c.qcow2",
        "convert -O vmdk a.qcow2 x",
        "resize a.qcow2 --shrink 1M",
        "snapshot -d one s.qcow2",
        "create -f qcow2 -o compression_type=zstd x 1G",
        "info -f vmdk a.qcow2",
    ] {
        let ran = bench.our(line);
        assert_eq!(ran.code, Some(1), "{line}");
        assert!(ran.err.contains("use QEMU's qemu-img") || ran.err.contains("QEMU's qemu-img has"));
        assert_eq!(ran.out, "", "{line}");
    }
    let ran = bench.our("convert -O raw c.qcow2 b.qcow2");
    assert!(ran.code == Some(1) && ran.err.contains("or one below it"), "{}", ran.err);
    assert_eq!(bench.qemu("check b.qcow2").code, Some(0), "it is as it was");
}

/// Somebody writes an image: it is read, and not changed.
#[test]
fn an_image_that_is_written_is_left_alone() {
    let bench = Bench::new();
    images(&bench);
    let path = bench.at().join("c.qcow2");
    let file = std::fs::File::options().read(true).write(true).open(path).expect("an image");
    assert!(image::try_lock(&file, true).expect("locks"));
    for line in [
        "resize c.qcow2 1G",
        "check -r all c.qcow2",
        "commit -d c.qcow2",
        "check c.qcow2",
        "create -f qcow2 c.qcow2 1G",
        "convert c.qcow2 new",
    ] {
        let ran = bench.our(line);
        assert_eq!(ran.code, Some(1), "{line}");
        let pid = std::process::id().to_string();
        assert!(ran.err.contains(&pid), "{line}: who it is: {}", ran.err);
        assert!(!ran.err.contains("--ignore-lock"), "{line}: that is vhd-util's: {}", ran.err);
    }
    for line in ["info c.qcow2", "map c.qcow2 --output=json", "check -U c.qcow2"] {
        assert_eq!(bench.our(line).code, Some(0), "{line}");
    }
}

/// Whatever an image says, it is an error with a sentence or an answer.
#[test]
fn no_image_makes_it_panic() {
    let bench = Bench::new();
    images(&bench);
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut roll = |sides: usize| {
        seed ^= seed >> 12;
        seed ^= seed << 25;
        seed ^= seed >> 27;
        (seed.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as usize % sides
    };
    let mut refused = 0;
    for image in ["a.qcow2", "s.qcow2"] {
        let good = std::fs::read(bench.at().join(image)).expect("an image");
        for _ in 0..40 {
            let mut bytes = good.clone();
            for _ in 0..1 + roll(6) {
                let most = [110, 120, 256 << 10][roll(3)];
                let at = roll(most.min(bytes.len()));
                bytes[at] = [0, 0xff, 1, 0x80, roll(256) as u8][roll(5)];
            }
            std::fs::write(bench.at().join("x.qcow2"), bytes).expect("written");
            for line in [
                "info --output=json",
                "map",
                "check",
                "measure -O qcow2",
                "snapshot -l",
                "rebase -u -F raw -b r.raw",
                "check -r all",
                "resize -f qcow2 --shrink",
            ] {
                let size = if line.starts_with("resize") { " 66M" } else { "" };
                let ran = bench.our(&format!("{line} x.qcow2{size}"));
                let code = ran.code.expect("it ends by itself");
                assert!(code <= 3 || code == 63, "{line}: {code} {}", ran.err);
                assert!(code == 0 || !ran.err.is_empty() || line == "check", "{line}");
                refused += u32::from(code == 1);
            }
        }
    }
    assert!(refused > 100, "some were refused: {refused}");
}

/// The name of a parent changes also beside a tapdisk that serves the image, beside others not.
#[test]
fn the_parent_of_an_image_that_a_tapdisk_serves_may_be_renamed() {
    use std::io::{BufRead, BufReader};
    use std::process::Stdio;

    let bench = Bench::new();
    images(&bench);
    let line = "rebase -u -f qcow2 -F qcow2 -b a.qcow2 c.qcow2";
    for (name, code) in [("tapdisk", 0), ("another", 1)] {
        // A shell that is called so, and has the image open and locked.
        let shell = bench.dir.path().join(name);
        std::fs::copy("/bin/sh", &shell).expect("a shell");
        let script = "exec 9<>c.qcow2 && flock 9 && echo ready && read x";
        let mut holder = Command::new(&shell);
        holder.args(["-c", script]).current_dir(bench.at());
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sh");
        let mut said = String::new();
        let out = holder.stdout.take().expect("a pipe");
        BufReader::new(out).read_line(&mut said).expect("it says so");
        assert_eq!(said, "ready\n");
        let ran = bench.our(line);
        assert_eq!(ran.code, Some(code), "{name}: {}", ran.err);
        for line in ["resize c.qcow2 1G", "commit -d c.qcow2", "convert c.qcow2 new"] {
            let ran = bench.our(line);
            assert!(ran.code == Some(1) && ran.err.contains(name), "{line}: {}", ran.err);
        }
        drop(holder.stdin.take());
        holder.wait().expect("it ends");
    }
}
