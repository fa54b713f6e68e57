//! `tap-ctl metrics`: what a collector reads, read by its library's own strict parser.
use std::fs;
use std::process::Command;

use test_support::run;
use tests::both_engines;
use tests::rig::MIB;

/// Every sample as `name{labels} value`, by the reference parser of OpenMetrics.
const READ: &str = "
import sys
from prometheus_client.openmetrics.parser import text_string_to_metric_families as families
for family in families(sys.stdin.read()):
    for s in family.samples:
        labels = sorted((k, v) for k, v in s.labels.items() if k not in ('pid', 'image'))
        labels = ','.join(f'{k}={v}' for k, v in labels)
        print(f'{family.type} {s.name}{{{labels}}} {float(s.value):g}')
";

fn parsed(text: &str) -> Vec<String> {
    // Debian's Python has the library.
    let read = run(Command::new("/usr/bin/python3").args(["-c", READ]), text.as_bytes()).ok();
    read.out.lines().map(str::to_owned).collect()
}

both_engines! {
    fn a_collector_reads_them(rig) {
        rig.vhd_util(&["create", "-n", "a \"b\"\\.vhd", "-s", "64"]).ok();
        let served = rig.serve(&rig.name("vhd", "a \"b\"\\.vhd"), &[]);
        let mut disk = served.client();
        disk.fill(0, MIB, 1).unwrap();
        disk.expect(0, MIB, 1);
        disk.flush().unwrap();
        served.tell("limit", &["--read-iops", "5000"]).ok();
        let text = rig.tap_ctl(&["metrics"]).ok().out;
        let samples = parsed(&text);
        let (who, vdi) = ("minor=0,", "vdi=a \"b\"\\.vhd}");
        let histogram = "histogram tapdisk_request_duration_seconds";
        for wanted in [
            format!("counter tapdisk_requests_total{{{who}op=write,{vdi} 16"),
            format!("counter tapdisk_requests_total{{{who}op=flush,{vdi} 1"),
            format!("counter tapdisk_bytes_total{{direction=read,{who}{vdi} 1.04858e+06"),
            format!("gauge tapdisk_chain_depth{{{who}{vdi} 1"),
            format!("gauge tapdisk_paused{{{who}{vdi} 0"),
            format!("counter tapdisk_sealed_allocations_total{{{who}{vdi} 0"),
            format!("gauge tapdisk_limit{{direction=read,{who}unit=operations,{vdi} 5000"),
            format!("{histogram}_count{{{who}op=read,{vdi} 16"),
        ] {
            assert!(samples.contains(&wanted), "{wanted} is not in\n{}", samples.join("\n"));
        }
        let buckets = samples.iter().filter(|s| s.contains("_bucket{") && s.contains("op=write"));
        assert_eq!(buckets.count(), 12, "eleven bounds and all");
        // Into a file, at once: a reader never sees half of it.
        let file = rig.path("tapdisk.prom");
        let name = file.display().to_string();
        rig.tap_ctl(&["metrics", "--output", &name]).ok();
        served.pause();
        rig.tap_ctl(&["metrics", "-o", &name]).ok();
        let samples = parsed(&fs::read_to_string(&file).unwrap());
        assert!(samples.iter().any(|s| s.starts_with("gauge tapdisk_paused") && s.ends_with(" 1")));
        let beside = fs::read_dir(rig.work()).unwrap().filter(|entry| {
            entry.as_ref().is_ok_and(|entry| entry.path().to_string_lossy().ends_with(".tmp"))
        });
        assert_eq!(beside.count(), 0);
        let refused = rig.tap_ctl(&["metrics", "-o", "/nowhere/x.prom"]).exits(libc::ENOENT);
        assert!(refused.err.contains("/nowhere/x.prom: cannot be written"), "{refused:?}");
        served.unpause(&[]);
        served.destroy();
        assert_eq!(rig.tap_ctl(&["metrics"]).ok().out, "# EOF\n", "nothing is there");
    }
}
