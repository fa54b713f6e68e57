//! The recordings, and where ours differs on purpose.
use super::player::{Difference, Ours, replay};

const BIG: &str = "the format ends at 2040 GiB; the original makes what its driver cannot fill";
const GONE: &str = "the image beyond 2040 GiB was not made";

const CREATE: &[Difference] = &[
    Difference {
        steps: &[15],
        ours: Ours::Code(22),
        why: "a disk of 0 bytes is refused; the original's driver does not open it either",
    },
    Difference {
        steps: &[22],
        ours: Ours::Code(22),
        why: "a size that is no number is refused; the original takes it as 0",
    },
    Difference { steps: &[38, 41, 44, 47, 50, 53], ours: Ours::Code(22), why: BIG },
    Difference {
        steps: &[39, 42, 45, 48, 51, 54],
        ours: Ours::Says(2, "error opening big.vhd: -2\n"),
        why: GONE,
    },
    Difference {
        steps: &[40, 43, 46, 49, 52, 55],
        ours: Ours::Says(
            2,
            "Failed to open big.vhd: -2\n\nbig.vhd appears invalid; dumping headers\n\n",
        ),
        why: GONE,
    },
];

const READ: &[Difference] = &[
    Difference {
        steps: &[38, 80, 122],
        ours: Ours::Bytes(0, &[0x11; 100]),
        why: "-R reads any bytes; the original fails where they are not whole sectors",
    },
    Difference {
        steps: &[39, 81, 123],
        ours: Ours::Bytes(0, &[0x12; 10]),
        why: "-R reads any bytes; the original fails where they are not whole sectors",
    },
];

const FLAGS: &[Difference] = &[
    Difference {
        steps: &[13],
        ours: Ours::Says(
            22,
            "invalid value abc\noptions: <-n name> <-f field> <-v value> [-h help]\n",
        ),
        why: "a value that is no number is refused; the original takes it as 0",
    },
    Difference {
        steps: &[53, 58],
        ours: Ours::Replaced(0, "failed to get batmap header\n", BATMAP),
        why: "setting a marker does not wipe the batmap",
    },
    Difference {
        steps: &[73],
        ours: Ours::Says(0, ""),
        why: "setting a marker has not wiped the batmap, so the image can be emptied",
    },
    Difference {
        steps: &[74],
        ours: Ours::Says(0, "5120\n0\n"),
        why: "step 73 has emptied the image",
    },
    Difference {
        steps: &[75],
        ours: Ours::Says(0, "z.vhd is valid\n"),
        why: "setting a marker has not wiped the batmap",
    },
    Difference { steps: &[76], ours: Ours::Bytes(0, &[0]), why: "step 73 has emptied the image" },
];

const BATMAP: &str = "VHD Batmap Summary:\n-------------------\nBatmap offset       : 2560\n\
    Batmap size (secs)  : 1\nBatmap version      : 0x00010002\n\
    Checksum            : @CK@ (Good!)\n\n";

const KEY: &[Difference] = &[Difference {
    steps: &[9],
    ours: Ours::Code(22),
    why: "a missing -k is wrong usage; the original opens a file named (null)",
}];

const ANY_BYTES: &str = "-R reads any bytes; the original fails where they are not whole sectors";

const FILL: &[Difference] = &[
    Difference {
        steps: &[7],
        ours: Ours::Says(0, "b.vhd is valid\n"),
        why: "fill -b leaves a trailing footer behind; the original overwrites it",
    },
    Difference {
        steps: &[12],
        ours: Ours::Code(34),
        why: "sectors past the end are refused; the original writes past its memory",
    },
    Difference {
        steps: &[17],
        ours: Ours::Says(0, "16810496\n8\n"),
        why: "blocks that are there stay; the original allocates them again and loses their data",
    },
    Difference { steps: &[22], ours: Ours::Bytes(0, &[5; 4]), why: ANY_BYTES },
    Difference { steps: &[28], ours: Ours::Bytes(0, &[9; 4]), why: ANY_BYTES },
    Difference { steps: &[34], ours: Ours::Bytes(0, &[8; 4]), why: ANY_BYTES },
    Difference { steps: &[41], ours: Ours::Says(22, "resize failed: -22\n"), why: BIG },
    Difference { steps: &[42], ours: Ours::Says(0, "8192\n"), why: "step 41 was refused" },
];

const COPY: &[Difference] = &[
    Difference { steps: &[5], ours: Ours::Bytes(0, &[0x33; 4]), why: ANY_BYTES },
    Difference {
        steps: &[42],
        ours: Ours::Code(0),
        why: "a key on standard input works; the original crashes after the copy",
    },
];

const ORDER: &str =
    "-f -m gives files in the order of their names; the original in that of the folder";

const SCAN: &[Difference] = &[
    Difference { steps: &[12, 42, 47, 78], ours: Ours::Sorted, why: ORDER },
    Difference {
        steps: &[6, 24],
        ours: Ours::Says(
            22,
            "vhd=base.vhd capacity=16777216 size=8405504 hidden=1 parent=none\n\
             vhd=empty.vhd capacity=16777216 size=5120 hidden=0 parent=leaf.vhd\n\
             vhd=@W@/fx.vhd scan-error=-22 error-message='opening file'\n",
        ),
        why: ORDER,
    },
    Difference {
        steps: &[36],
        ours: Ours::Says(
            22,
            "vhd=base.vhd capacity=16777216 size=8405504 hidden=1 marker=0 keyhash= parent=none\n\
             vhd=empty.vhd capacity=16777216 size=5120 hidden=0 marker=0 keyhash= parent=leaf.vhd\n\
             vhd=@W@/fx.vhd scan-error=-22 error-message='opening file'\n",
        ),
        why: ORDER,
    },
    Difference {
        steps: &[46],
        ours: Ours::Says(
            22,
            "vhd=base.vhd capacity=16777216 size=8405504 hidden=1 parent=none\n\
             vhd=empty.vhd capacity=16777216 size=5120 hidden=0 parent=leaf.vhd\n\
             vhd=fx.vhd scan-error=-22 error-message='opening file'\n",
        ),
        why: ORDER,
    },
    Difference {
        steps: &[66],
        ours: Ours::Replaced(0, "vhd=. capacity=0 size=0 hidden=1 parent=none\n", ""),
        why: "a file that is missing is not a second image named `.`",
    },
    Difference {
        steps: &[67],
        ours: Ours::Replaced(0, "vhd= scan-error=-2 error-message='resolving name'\n", ""),
        why: "a file that is missing is reported once",
    },
];

#[test]
fn usage_as_recorded() {
    replay("usage", &[], |_| true);
}

#[test]
fn creating_as_recorded() {
    replay("create", CREATE, |_| true);
}

#[test]
fn queries_as_recorded() {
    replay("query", &[], |_| true);
}

#[test]
fn reading_as_recorded() {
    replay("read", READ, |_| true);
}

#[test]
fn flags_repairs_and_parents_as_recorded() {
    replay("set-repair-modify", FLAGS, |_| true);
}

#[test]
fn keys_as_recorded() {
    replay("key", KEY, |_| true);
}
#[test]
fn filling_and_resizing_as_recorded() {
    replay("fill-resize-revert", FILL, |_| true);
}

#[test]
fn coalescing_and_copies_as_recorded() {
    replay("coalesce-copy", COPY, |_| true);
}

#[test]
fn scans_as_recorded() {
    replay("scan", SCAN, |_| true);
}
