//! Every command and option in words: the one table that `--help`, the man page and the completions
//! are made of.

/// A command.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) options: &'static [Flag],
}

/// An option: as it is written, what follows it (empty for nothing), and what it does.
pub(crate) type Flag = (&'static str, &'static str, &'static str);

/// What the argument of an option is, for completions.
pub(crate) const FILE: &str = "FILE";

const NAME: Flag = ("-n", FILE, "the image");
const PROGRESS: Flag =
    ("--progress", "", "progress on standard error: a bar on a terminal, else JSON lines");
const RATE: Flag = ("--rate", "BYTES", "at most that many bytes a second (K, M, G, T)");
const JSON: Flag = ("--json", "", "as JSON");
const KEY: Flag = ("-k", FILE, "the key of an encrypted image, 32 or 64 bytes");
const KEY_STDIN: Flag = ("-E", "", "the key is on standard input");

pub(crate) const ENTRIES: &[Entry] = &[
    Entry {
        name: "create",
        about: "make an image",
        options: &[
            NAME,
            ("-s", "MIB", "size of the disk, rounded up to 2 MiB"),
            ("-S", "MIB", "make the metadata large enough for resize -f up to that size"),
            ("-r", "", "a fixed image, all its zeros written"),
        ],
    },
    Entry {
        name: "snapshot",
        about: "make a differencing image over a parent",
        options: &[
            ("-n", FILE, "the new image"),
            ("-p", FILE, "the parent"),
            ("-m", "", "the parent is raw"),
            ("-l", "N", "refuse if the parent's chain has N images already"),
            ("-S", "MIB", "make the metadata large enough for resize -f up to that size"),
            ("-e", "", "this parent, even if it is empty and has a parent itself"),
        ],
    },
    Entry {
        name: "query",
        about: "print facts about an image, a line for each, in this order",
        options: &[
            NAME,
            ("-v", "", "size of the disk in MiB"),
            ("-s", "", "bytes that the image takes"),
            ("-p", "", "the parent"),
            ("-f", "", "the hidden flag"),
            ("-m", "", "the marker"),
            ("-d", "", "length of the chain"),
            ("-a", "", "allocated blocks"),
            ("-S", "", "largest size in MiB for resize -f"),
            ("-u", "", "with -p: the parent as it is stored"),
            ("-b", "", "believe the copy of the footer"),
            ("--json", "", "one object with these facts, or with all"),
        ],
    },
    Entry {
        name: "read",
        about: "look into an image",
        options: &[
            NAME,
            ("-p", "", "footer, header, locators and batmap as text"),
            ("-t", "SECTOR", "where sectors of the disk are"),
            ("-b", "BLOCK", "where blocks are"),
            ("-B", "", "bytes: a bit for each block, set if it is allocated"),
            ("-m", "BLOCK", "bytes: bitmaps of blocks"),
            ("-i", "SECTOR", "whether sectors are in the image"),
            ("-e", "SECTOR", "runs of sectors that are in the image"),
            ("-a", "", "bytes: the batmap"),
            ("-j", "BLOCK", "whether the batmap says that blocks are full"),
            ("-d", "BLOCK", "bytes: data of blocks"),
            ("-r", "SECTOR", "bytes: sectors of the disk, through the chain"),
            ("-R", "BYTE", "bytes: bytes of the disk, through the chain"),
            ("-c", "N", "how many of them"),
            ("-x", "", "numbers in hexadecimal"),
            ("-C", "", "accepted; nothing is slower without it"),
            ("-k", FILE, "with -r and -R: the key of an encrypted image, 32 or 64 bytes"),
            KEY_STDIN,
        ],
    },
    Entry {
        name: "set",
        about: "set a field",
        options: &[NAME, ("-f", "FIELD", "hidden or marker"), ("-v", "N", "from 0 to 255")],
    },
    Entry {
        name: "repair",
        about: "write both footers anew and cut a file to its end",
        options: &[NAME, ("-b", "", "believe the copy of the footer")],
    },
    Entry {
        name: "resize",
        about: "make the disk larger",
        options: &[
            NAME,
            ("-s", "MIB", "the new size, rounded up to 2 MiB"),
            ("-j", FILE, "a journal: a new file, or a device"),
            ("-f", "", "without a journal, where the metadata has room"),
        ],
    },
    Entry {
        name: "revert",
        about: "take an interrupted resize back",
        options: &[NAME, ("-j", FILE, "the journal of the resize")],
    },
    Entry {
        name: "fill",
        about: "make all blocks present",
        options: &[
            NAME,
            ("-b", "", "allocate only; blocks show what lies on the medium"),
            ("-f", "SECTOR", "with -b: from this sector on"),
            ("-t", "SECTOR", "with -b: up to this sector"),
            ("-B", "", "with -b: accepted; 2 TiB stays the limit of a table"),
            KEY,
            KEY_STDIN,
        ],
    },
    Entry {
        name: "coalesce",
        about: "merge an image into its parent",
        options: &[
            NAME,
            ("-s", "", "accepted; space under clear bits is never written"),
            ("-p", "", "progress on standard output"),
            ("--into", FILE, "into this ancestor instead of the parent"),
            PROGRESS,
            RATE,
            JSON,
        ],
    },
    Entry {
        name: "modify",
        about: "change parent or end, or give all blocks back",
        options: &[
            NAME,
            ("-p", FILE, "the new parent"),
            ("-m", "", "the new parent is raw"),
            ("-s", "BYTES", "write the footer so that the image ends there"),
            ("-z", "", "give all blocks back"),
        ],
    },
    Entry {
        name: "scan",
        about: "print a line for each of many images; FILES may follow",
        options: &[
            ("-m", "PATTERN", "files, or with -l volumes, whose names match"),
            ("-f", "", "fast: believe the copy of the footer"),
            ("-c", "", "go on after an error"),
            ("-l", "GROUP", "volumes of an LVM group, active or not"),
            ("-p", "", "as a tree"),
            ("-a", "", "their parents as well"),
            ("-v", "", "whole paths"),
            ("-M", "", "marker and key hash as well"),
            ("--json", "", "a JSON object for each image, with whole paths, instead of its line"),
        ],
    },
    Entry {
        name: "check",
        about: "find what is wrong with an image; nothing is changed",
        options: &[
            NAME,
            ("-i", "", "a missing trailing footer is no fault"),
            ("-I", "", "do not compare ids of parents"),
            ("-t", "", "times in the future are no fault"),
            ("-p", "", "the parents as well"),
            ("-b", "", "all data that no bit speaks of must be zeros"),
            ("-B", "", "do not look for blocks upon each other"),
            ("-s", "", "print how much is allocated and written"),
            ("--json", "", "one object: what is wrong with which image"),
        ],
    },
    Entry {
        name: "key",
        about: "the key hash of an encrypted image",
        options: &[
            ("-C", "", "print the hash of a key"),
            ("-s", "", "set the hash of an empty image"),
            ("-c", "", "compare a key with the hash"),
            ("-p", "", "print nonce and hash, or none"),
            NAME,
            ("-k", FILE, "the key, in IMAGE,aes-xts-plain,256.key or 512"),
            ("-H", "HEX", "the hash itself"),
            ("-N", "HEX", "the nonce; zeros without it"),
            ("--json", "", "with -p: as JSON"),
        ],
    },
    Entry {
        name: "copy",
        about: "copy an image without parent",
        options: &[
            NAME,
            ("-N", FILE, "the copy, which must not exist"),
            ("-k", FILE, "encrypt with this key of 32 or 64 bytes"),
            ("-E", "", "encrypt with a key on standard input"),
        ],
    },
    Entry {
        name: "convert",
        about: "write a disk, with all its parents, in another form",
        options: &[
            NAME,
            ("-N", FILE, "the new image"),
            ("-O", "FORMAT", "vhd, fixed or raw"),
            ("-f", "FORMAT", "what the image is: vhd or raw"),
            KEY,
            KEY_STDIN,
            PROGRESS,
            RATE,
            JSON,
        ],
    },
    Entry {
        name: "compact",
        about: "give blocks of zeros back and make the file shorter",
        options: &[NAME, PROGRESS, JSON],
    },
    Entry { name: "info", about: "what is known about an image", options: &[NAME, JSON] },
    Entry {
        name: "map",
        about: "which image of a chain has which range of the disk",
        options: &[NAME, ("-f", "FORMAT", "what the image is: vhd or raw"), JSON],
    },
];
