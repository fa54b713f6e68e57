//! `tap-ctl-lifecycle`: every command in every state of a disk.
use tests::rig::golden::{Difference, Ours, replay};
use tests::rig::{Engine, Rig};

const DIFFERENCES: &[Difference] = &[
    Difference {
        step: 80,
        ours: Ours::Refuses(libc::ENODEV, 0),
        why: "statistics of an unknown minor: the original prints two newlines and succeeds",
    },
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
];

#[test]
fn the_life_of_a_disk_as_recorded() {
    let rig = Rig::new(Engine::Uring);
    super::images(&rig);
    replay(&rig, "lifecycle", DIFFERENCES);
}
