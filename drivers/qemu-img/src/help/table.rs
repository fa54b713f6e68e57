//! Every command and option in words: the one table that `--help`, the man page and the completions
//! are made of.

/// A command.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    /// What stands behind the options.
    pub(crate) operands: &'static str,
    pub(crate) about: &'static str,
    pub(crate) options: &'static [Flag],
}

/// An option: as it is written, what follows it (empty for nothing), and what it does.
pub(crate) type Flag = (&'static str, &'static str, &'static str);

const FORMAT: Flag = ("-f", "FORMAT", "the image is qcow2 or raw (else it is looked at)");
const OUTPUT: Flag = ("--output", "json|human", "as JSON, or for people");
const QUIET: Flag = ("-q", "", "no words but errors");
const SHARE: Flag = ("-U", "", "also while another process writes the image");
const PROGRESS: Flag = ("-p", "", "progress on standard output");
const OPTIONS: Flag = (
    "-o",
    "OPTIONS",
    "cluster_size=, refcount_bits=, compat=, extended_l2=, lazy_refcounts=, preallocation=, with \
     commas between",
);

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "check",
        operands: "IMAGE",
        about: "examine an image; exit code 0: it is well, 2: it is corrupt, 3: clusters leak",
        options: &[
            FORMAT,
            ("-r", "leaks|all", "repair what can be repaired"),
            OUTPUT,
            QUIET,
            SHARE,
        ],
    },
    Entry {
        name: "commit",
        operands: "IMAGE",
        about: "copy what an image has into its parent",
        options: &[FORMAT, ("-d", "", "keep the image as it is (needed)"), PROGRESS, QUIET],
    },
    Entry {
        name: "compare",
        operands: "IMAGE IMAGE",
        about: "whether two disks show the same; exit code 1: they do not",
        options: &[
            FORMAT,
            ("-F", "FORMAT", "the format of the second image"),
            ("-s", "", "sizes count, too"),
            QUIET,
            SHARE,
        ],
    },
    Entry {
        name: "convert",
        operands: "IMAGE NEW",
        about: "copy a disk with all its parents into a new image",
        options: &[
            FORMAT,
            ("-O", "FORMAT", "of the new image: raw, qcow2"),
            OPTIONS,
            PROGRESS,
            QUIET,
        ],
    },
    Entry {
        name: "create",
        operands: "IMAGE [SIZE]",
        about: "make an image, raw or qcow2",
        options: &[
            ("-f", "FORMAT", "raw (if nothing is said) or qcow2"),
            ("-b", "IMAGE", "what lies below it"),
            ("-F", "FORMAT", "the format of that"),
            ("-u", "", "do not look for it"),
            OPTIONS,
            QUIET,
        ],
    },
    Entry {
        name: "info",
        operands: "IMAGE",
        about: "what an image is",
        options: &[FORMAT, ("--backing-chain", "", "and what its parents are"), OUTPUT, SHARE],
    },
    Entry {
        name: "map",
        operands: "IMAGE",
        about: "which image of a chain has which part of the disk",
        options: &[
            FORMAT,
            ("--start-offset", "BYTE", "from there on"),
            ("--max-length", "BYTES", "so far"),
            OUTPUT,
            SHARE,
        ],
    },
    Entry {
        name: "measure",
        operands: "[IMAGE]",
        about: "how large an image becomes",
        options: &[
            ("--size", "BYTES", "of a disk of this size, in place of an image"),
            FORMAT,
            ("-O", "FORMAT", "of the new image: raw, qcow2"),
            OPTIONS,
            OUTPUT,
            SHARE,
        ],
    },
    Entry {
        name: "rebase",
        operands: "IMAGE",
        about: "say what lies below an image, and change no data",
        options: &[
            ("-u", "", "only the name (needed)"),
            FORMAT,
            ("-b", "IMAGE", "what lies below it from now on; empty: nothing"),
            ("-F", "FORMAT", "the format of that"),
            QUIET,
        ],
    },
    Entry {
        name: "resize",
        operands: "IMAGE [+]SIZE",
        about: "make a disk larger",
        options: &[FORMAT, QUIET],
    },
    Entry {
        name: "snapshot",
        operands: "IMAGE",
        about: "internal snapshots",
        options: &[("-l", "", "list them"), FORMAT, SHARE],
    },
];
