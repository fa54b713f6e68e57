//! `tap-ctl-create`: creating disks of each kind and with each option, several disks in one daemon,
//! and a daemon that was killed.
use tests::rig::golden::{Difference, Ours, replay};
use tests::rig::{Engine, Rig};

/// Sockets are for nobody else to look at (docs/security.md).
const SOCKETS: &str = "sockets have mode 0600, not what the umask leaves";
/// (docs/security.md)
const SWEPT: &str = "what a dead tapdisk left goes with the next create, destroy or free";

/// (docs/compatibility.md)
const RELATIVE: &str = "relative to where tap-ctl is called; the original looks in the root folder";

const DIFFERENCES: &[Difference] = &[
    Difference {
        step: 11,
        ours: Ours::Refuses(libc::EINVAL, 4),
        why: "an empty raw file is no disk; the original serves 8 GiB of nothing",
    },
    Difference {
        step: 36,
        ours: Ours::Instead(&["tap-ctl", "create", "-a", "aio:@W@/none"]),
        why: RELATIVE,
    },
    Difference {
        step: 39,
        ours: Ours::Instead(&["tap-ctl", "create", "-a", "vhd:@W@/none"]),
        why: RELATIVE,
    },
    Difference {
        step: 44,
        ours: Ours::SaysMore,
        why: "our NBD server offers flush, FUA, trim, zero, block status, read-only and more",
    },
    Difference {
        step: 133,
        ours: Ours::Warns("requests wait until it lets go"),
        why: "two tapdisks on one image: the original writes with both, without a word",
    },
    Difference { step: 146, ours: Ours::Says(run_dir!(attached "@P19@")), why: SOCKETS },
    Difference { step: 149, ours: Ours::Says(run_dir!(open "@P28@")), why: SOCKETS },
    Difference { step: 154, ours: Ours::Says(run_dir!(no minors)), why: SWEPT },
    Difference {
        step: 175,
        ours: Ours::Refuses(libc::EINVAL, 0),
        why: "an encrypted image without its key is refused; the original serves noise",
    },
    Difference {
        step: 176,
        ours: Ours::Says("pid=@P22@ minor=0 state=0\n"),
        why: "step 175 has opened nothing",
    },
    Difference {
        step: 219,
        ours: Ours::Otherwise(0),
        why: "tapdisk -h: our daemon has other options",
    },
    Difference { step: 220, ours: Ours::Otherwise(22), why: "tapdisk -Z: the same, in its usage" },
    Difference { step: 221, ours: Ours::Otherwise(22), why: "tapdisk x: the same, in its usage" },
];

#[test]
fn creating_disks_as_recorded() {
    let rig = Rig::new(Engine::Aio);
    super::images(&rig);
    replay(&rig, "create", DIFFERENCES);
}
