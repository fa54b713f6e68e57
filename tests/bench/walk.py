#!/usr/bin/env python3
"""The files of ours that one warm read of 4 KiB of a guest passes: `make bench-walk`.

valgrind runs request-walk (tests/src/bin/request-walk.rs), a build with line numbers: a guest in
memory, its ring, the engine, a VHD that has the block, io_uring over a real file. A file counts
once, if a line of it is executed, inlined or not, between the guest's request and its answer.
What only stands in for the guest and for Xen's devices (xen/xen/src/fake, the programs of tests)
does not count.
"""
import argparse
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# What the house was to reach (docs/measurements.md, "Files that a read passes").
GOAL = 14
LEFT_OUT = ("tests/", "xen/xen/src/fake/")


def executed(text):
    """Files with lines that were executed, and how many lines each."""
    names, lines, current, skip = {}, {}, None, False
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key in ("fl", "fi", "fe", "cfi", "cfl"):
            number, _, name = value.partition(" ")
            if name:
                names[number] = name
            if not key.startswith("c"):
                current = names[number]
        elif key == "calls":
            skip = True
        elif line[:1].isdigit() or line.startswith(("+", "-", "*")):
            # The line after `calls` is what was called; its cost is not here.
            if not skip and current:
                lines.setdefault(current, set()).add(line.split()[0])
            skip = False
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bin", help="the folder of the programs, built with line numbers (debug)")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "callgrind"
        command = ["valgrind", "--tool=callgrind", "--collect-atstart=no", "--compress-pos=no",
                   "--toggle-collect=*counted_read*", f"--callgrind-out-file={out}",
                   str(pathlib.Path(words.bin) / "request-walk"), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not out.exists():
            sys.exit(f"bench-walk: {' '.join(command)} failed:\n{done.stderr}")
        found = executed(out.read_text(encoding="utf-8"))
    ours = {}
    for name, lines in found.items():
        path = pathlib.PurePath(name)
        inside = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        if inside.is_absolute() or not (ROOT / inside).exists():
            continue
        # The compiler has no line for what it made itself, and writes 0.
        lines = lines - {"0"}
        if lines and not str(inside).startswith(LEFT_OUT):
            ours[str(inside)] = ours.get(str(inside), set()) | lines
    count = {name: len(lines) for name, lines in ours.items()}
    rows = sorted(count.items(), key=lambda row: (-row[1], row[0]))
    for name, lines in rows:
        print(f"{lines:4} {name}")
    most = sum(lines for _, lines in rows[:GOAL])
    print(f"{len(rows)} files (goal: {GOAL}); {GOAL} of them have {most} of {sum(count.values())} "
          "executed lines")


if __name__ == "__main__":
    main()
