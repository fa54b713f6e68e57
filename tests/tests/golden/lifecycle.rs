//! `tap-ctl-lifecycle`: every command in every state of a disk.
use tests::rig::golden::{Difference, Ours, replay};
use tests::rig::{Engine, Rig};

/// Sockets are for nobody else to look at (docs/security.md).
const SOCKETS: &str = "sockets have mode 0600, not what the umask leaves";
/// (docs/security.md)
const SWEPT: &str = "what a dead tapdisk left goes with the next create, destroy or free";

/// (docs/compatibility.md)
const NUMBERS: &str = "what is no number is refused; the original takes it for minor 0";
const RELATIVE: &str = "relative to where tap-ctl is called; the original looks in the root folder";

const DIFFERENCES: &[Difference] = &[
    Difference { step: 13, ours: Ours::Instead(&["tap-ctl", "free", "-m", "0"]), why: NUMBERS },
    Difference { step: 17, ours: Ours::Says(run_dir!(attached "@P1@")), why: SOCKETS },
    Difference {
        step: 53,
        ours: Ours::Instead(&["tap-ctl", "open", "-p", "@P3@", "-m", "0", "-a", "aio:@W@/none"]),
        why: RELATIVE,
    },
    Difference {
        step: 56,
        ours: Ours::Code(libc::EINVAL),
        why: "qcow2 is a type, as in XCP-ng's builds, and the image is none",
    },
    Difference { step: 66, ours: Ours::Says(run_dir!(open "@P3@")), why: SWEPT },
    Difference { step: 77, ours: Ours::Instead(&["tap-ctl", "list", "-m", "0"]), why: NUMBERS },
    Difference {
        step: 80,
        ours: Ours::Refuses(libc::ENODEV, 0),
        why: "statistics of an unknown minor: the original prints two newlines and succeeds",
    },
    Difference { step: 91, ours: Ours::Says(run_dir!(open "@P3@")), why: SWEPT },
    Difference {
        step: 122,
        ours: Ours::Refuses(0, 0),
        why: "pause -t works; the original has forgotten a break and prints its usage",
    },
    Difference {
        step: 124,
        ours: Ours::Says("pid=@P3@ minor=0 state=0x2a\n"),
        why: "step 122 has paused the disk, and a paused disk that is closed stays paused",
    },
    Difference { step: 125, ours: Ours::Says(run_dir!(attached "@P3@")), why: SWEPT },
    Difference { step: 131, ours: Ours::Says(run_dir!(a minor)), why: SWEPT },
    Difference { step: 135, ours: Ours::Says(run_dir!(no minors)), why: SWEPT },
];

#[test]
fn the_life_of_a_disk_as_recorded() {
    let rig = Rig::new(Engine::Uring);
    super::images(&rig);
    replay(&rig, "lifecycle", DIFFERENCES);
}
