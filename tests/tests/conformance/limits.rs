//! `tap-ctl limit`: bytes and operations a second. What is asserted of time is that nothing is
//! faster than its limit: that does not depend on how busy the machine is.
use std::time::{Duration, Instant};

use tests::both_engines;
use tests::rig::{MIB, Served};

fn limit(served: &Served<'_>, words: &[&str]) -> serde_json::Value {
    let said = served.tell("limit", &[words, &["--json"]].concat()).ok();
    serde_json::from_str(&said.out).unwrap_or_else(|why| panic!("{why}: {said:?}"))
}

fn takes(work: impl FnOnce()) -> Duration {
    let since = Instant::now();
    work();
    since.elapsed()
}

both_engines! {
    fn a_disk_is_as_fast_as_its_limits(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "64"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        let mut disk = served.client();
        disk.fill(0, 32 * MIB, 1).unwrap();
        assert_eq!(limit(&served, &[])["write_bps"], 0);
        assert!(served.stats().get("limits").is_none(), "{}", served.stats());
        // 8 MiB a second, and a tenth of a second of that at once.
        let now = limit(&served, &["--write-bps", "8Mi"]);
        assert_eq!((&now["write_bps"], &now["burst_ms"]), (&(8 << 20).into(), &100.into()));
        let took = takes(|| disk.fill(0, 8 * MIB, 2).unwrap());
        assert!(took >= Duration::from_millis(880), "{took:?}");
        let stats = served.stats();
        assert_eq!(stats["limits"]["bytes_per_second"], serde_json::json!([0, 8 << 20]), "{stats}");
        assert!(stats["limits"]["waited"][1].as_u64() > Some(0), "{stats}");
        assert_eq!(stats["limits"]["waited"][0], 0, "nobody waits to read: {stats}");
        // Of operations, too; one of 256 KiB is four.
        limit(&served, &["--write-bps", "0", "--read-iops", "100"]);
        let took = takes(|| disk.expect(0, 8 * MIB, 2));
        assert!(took >= Duration::from_millis(1150), "128 of 64 KiB: {took:?}");
        // It stays over a pause.
        served.pause();
        served.unpause(&[]);
        assert_eq!(limit(&served, &[])["read_iops"], 100);
        let took = takes(|| (0..60).for_each(|i| disk.expect(i * 4096, 512, 2)));
        assert!(took >= Duration::from_millis(480), "{took:?}");
        limit(&served, &["--none"]);
        assert!(served.stats().get("limits").is_none());
        let refused = served.tell("limit", &["--read-bps", "fast"]).exits(libc::EINVAL);
        assert!(refused.err.contains("--read-bps fast: a number"), "{refused:?}");
        served.tell("limit", &["--none", "--read-bps", "1"]).exits(libc::EINVAL);
        let said = served.tell("limit", &[]).ok().out;
        assert!(said.starts_with("read-bps=none write-bps=none read-iops=none"), "{said}");
        served.destroy();
    }

    /// A disk that is slow by its limit is paused and closed at once, and its neighbour in other
    /// processes has nothing to do with it: what waits is let go.
    fn what_waits_for_a_limit_holds_up_no_pause(rig) {
        rig.vhd_util(&["create", "-n", "a.vhd", "-s", "64"]).ok();
        let served = rig.serve(&rig.name("vhd", "a.vhd"), &[]);
        limit(&served, &["--write-bps", "64Ki"]);
        let mut disk = served.client();
        let writer = std::thread::spawn(move || {
            // At this limit it would take four minutes.
            disk.fill(0, 16 * MIB, 7).unwrap();
            disk
        });
        let since = Instant::now();
        while served.stats()["limits"]["waiting"].as_u64() < Some(4) {
            assert!(since.elapsed() < Duration::from_secs(30), "{}", served.stats());
        }
        served.pause();
        assert!(since.elapsed() < Duration::from_secs(60), "a pause waits for nobody's limit");
        served.unpause(&[]);
        limit(&served, &["--none"]);
        let mut disk = writer.join().unwrap();
        disk.expect(0, 16 * MIB, 7);
        served.destroy();
    }
}
