#!/usr/bin/env python3
"""vhd-util beside qemu-img and the disk's own limit: `make bench-vhd`.

Coalesce is measured in MB/s of data that the child has, from a cold child to data on the disk, beside `qemu-img convert
-f vpc -O raw` of the same child, `qemu-img commit` of an overlay with the same data, and the rate at which fio reads one
file and writes another at once. What only fills the page cache has copied nothing, so all times end when the data is on
the disk: vhd-util waits for that by itself, qemu-img is followed by an fsync (convert is shown as typed as well). For
scattered data fio also copies as many random pages of 4 KiB: what the disk can do with such requests at all. All take
turns; figures are medians. There are as many repetitions as --minutes leave time for, at most --reps. A target that is not
met is reported, never an error.
"""

import argparse
import collections
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

import vhdfill
from report import Target

MIB = 1 << 20
OURS, CONVERT, CONVERTED, COMMIT, LIMIT, SCATTERED = (
    "vhd-util coalesce", "qemu-img convert, page cache only", "qemu-img convert, to the disk", "qemu-img commit, to the disk",
    "fio copy limit", "fio copy of random 4 KiB pages")
ROWS = (OURS, CONVERTED, COMMIT, LIMIT, SCATTERED, CONVERT)
# Enough to tell the disk's limit.
LIMIT_BYTES_MAX = 1 << 30
SCATTERED_BYTES_MAX = 128 << 20
SCAN, QUERIES = 1000, 100


def arguments():
    """The command line."""
    here = os.path.dirname(os.path.abspath(__file__))
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(here, "..", "..", "target")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(target, "release"), help="where vhd-util is")
    parser.add_argument("--dir", default=os.path.join(target, "bench"), help="where the images go: on the disk to measure")
    parser.add_argument("--reps", type=int, default=5, help="repetitions per figure, at most (5)")
    parser.add_argument("--minutes", type=float, default=11, help="time for all patterns of coalesce (11)")
    parser.add_argument("--size", type=int, default=4096, metavar="MIB", help="size of the disks (4096)")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT",
                        help="only what contains TEXT, of: a pattern's name, scan, query (may be repeated)")
    parser.add_argument("--json", metavar="FILE", help="write all results there as well")
    options = parser.parse_args()
    if options.reps < 1 or options.size < 16 or options.size % 2:
        parser.error("--reps must be positive, --size an even number from 16 on")
    return options


def settle(path):
    """Brings the file to the disk and out of the page cache, so that no run pays for the one before."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def timed(command):
    """Seconds a command takes, and its largest resident memory in MiB; its output is thrown away."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    took = time.monotonic() - begin
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}: {error.decode().strip()}")
    return took, usage.ru_maxrss / 1024


class Bench:
    """One run in a directory of its own."""

    def __init__(self, options):
        self.options = options
        self.vhd_util = os.path.join(options.bin, "vhd-util")
        self.medians = {}
        self.limits = {}
        self.patterns_left = sum(self.wanted(pattern.name) for pattern in vhdfill.PATTERNS)
        self.deadline = time.monotonic() + options.minutes * 60

    def path(self, name):
        """A file of this run."""
        return os.path.join(self.options.dir, name)

    def tool(self, *arguments):
        """Runs our vhd-util."""
        subprocess.run([self.vhd_util, *arguments], check=True, stdout=subprocess.DEVNULL)

    def wanted(self, name):
        """Whether --only lets this through."""
        return not self.options.only or any(text in name for text in self.options.only)

    # ---- coalesce ------------------------------------------------------------------------------------------------

    def make(self, pattern):
        """An empty base, a child with the pattern's data, and for `commit` an overlay with the same."""
        print(f"making {pattern.name} ...", file=sys.stderr, flush=True)
        for name in ("empty.vhd", "base.vhd", "child.vhd", "overlay.qcow2", "base.raw", "out.raw"):
            if os.path.exists(self.path(name)):
                os.unlink(self.path(name))
        self.tool("create", "-n", self.path("base.vhd"), "-s", str(self.options.size))
        self.tool("snapshot", "-n", self.path("child.vhd"), "-p", self.path("base.vhd"))
        shutil.copyfile(self.path("base.vhd"), self.path("empty.vhd"))
        moved = vhdfill.fill(self.path("child.vhd"), pattern)
        if pattern.piece >= MIB:
            size = self.options.size * MIB
            with open(self.path("base.raw"), "wb") as file:
                file.truncate(size)
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", self.path("base.raw"),
                            self.path("overlay.qcow2")], check=True)
            writes = "".join(f"write -q -P {piece % 255 + 1} {piece * pattern.piece} {pattern.piece}\n"
                             for piece in pattern.pieces(size, 1))
            subprocess.run(["qemu-io", "-f", "qcow2", self.path("overlay.qcow2")], input=writes, text=True, check=True,
                           stdout=subprocess.DEVNULL)
            shutil.copyfile(self.path("overlay.qcow2"), self.path("overlay.keep"))
        return moved

    def coalesce(self):
        """Into an empty base; vhd-util waits for the disk by itself."""
        shutil.copyfile(self.path("empty.vhd"), self.path("base.vhd"))
        settle(self.path("base.vhd"))
        settle(self.path("child.vhd"))
        took, _ = timed([self.vhd_util, "coalesce", "-n", self.path("child.vhd")])
        return {OURS: took}

    def convert(self):
        """Of the child alone, which qemu-img takes for a disk without parent."""
        settle(self.path("child.vhd"))
        out = self.path("out.raw")
        begin = time.monotonic()
        took, _ = timed(["qemu-img", "convert", "-f", "vpc", "-O", "raw", self.path("child.vhd"), out])
        settle(out)
        durable = time.monotonic() - begin
        os.unlink(out)
        return {CONVERT: took, CONVERTED: durable}

    def commit(self):
        """Of a qcow2 overlay: qemu knows no parents of VHDs."""
        shutil.copyfile(self.path("overlay.keep"), self.path("overlay.qcow2"))
        with open(self.path("base.raw"), "wb") as file:
            file.truncate(self.options.size * MIB)
        settle(self.path("overlay.qcow2"))
        begin = time.monotonic()
        timed(["qemu-img", "commit", "-q", "-f", "qcow2", self.path("overlay.qcow2")])
        settle(self.path("base.raw"))
        return {COMMIT: time.monotonic() - begin}

    def limit(self, moved):
        """Seconds for as many bytes at the rate of the slower of a reader and a writer at once."""
        size = min(max(moved, 256 * MIB), LIMIT_BYTES_MAX)
        for name in ("limit.in", "limit.out"):
            if not os.path.exists(self.path(name)) or os.path.getsize(self.path(name)) < size:
                with open(self.path(name), "wb") as file:
                    for _ in range(size // MIB):
                        file.write(os.urandom(MIB))
            settle(self.path(name))
        os.unlink(self.path("limit.out"))
        job = ["--ioengine=io_uring", "--direct=1", "--bs=1M", "--iodepth=8", f"--size={size}"]
        return {LIMIT: moved / self.copy_rate("read", "write", job)}

    def scattered(self, moved):
        """The same for random pages, in the files that `limit` made."""
        job = ["--ioengine=io_uring", "--direct=1", "--bs=4k", "--iodepth=64", f"--size={256 * MIB}",
               f"--io_size={min(moved, SCATTERED_BYTES_MAX)}"]
        return {SCATTERED: moved / self.copy_rate("randread", "randwrite", job)}

    def copy_rate(self, read, write, job):
        """Bytes a second of the slower of two jobs at once."""
        command = ["fio", "--output-format=json", "--name=in", f"--rw={read}", f"--filename={self.path('limit.in')}", *job,
                   "--name=out", f"--rw={write}", f"--filename={self.path('limit.out')}", "--end_fsync=1", *job]
        told = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return min(told["jobs"][0]["read"]["bw_bytes"], told["jobs"][1]["write"]["bw_bytes"])

    def pattern(self, pattern):
        """All repetitions of one pattern, the contenders taking turns; prints the table."""
        if not self.wanted(pattern.name):
            return
        end = time.monotonic() + (self.deadline - time.monotonic()) / self.patterns_left
        self.patterns_left -= 1
        moved = self.make(pattern)
        turns = [self.coalesce, self.convert, lambda: self.limit(moved)]
        if pattern.piece >= MIB:
            turns.append(self.commit)
        else:
            turns.append(lambda: self.scattered(moved))
        rates = collections.defaultdict(list)
        for repetition in range(self.options.reps):
            begin = time.monotonic()
            shift = repetition % 3 if repetition else 0
            for turn in turns[shift:] + turns[:shift]:
                for name, took in turn().items():
                    rates[name].append(moved / took / 1e6)
            if 2 * time.monotonic() - begin > end:
                break
        done = len(rates[OURS])
        print(f"{pattern.name}: {moved // MIB} MiB of {self.options.size} MiB, {done} repetition{'s'[:done > 1]}")
        ours = statistics.median(rates[OURS])
        for name in ROWS:
            if not rates[name]:
                continue
            middle = statistics.median(rates[name])
            self.medians[(pattern.name, name)] = middle
            spread = (max(rates[name]) - min(rates[name])) / middle * 100
            beside = "" if name == OURS else f"vhd-util is {ours / middle:.2f} x this"
            print(f"  {name:<34} {middle:>7.0f} MB/s {spread:>5.0f}%  {beside}")
        print(flush=True)

    # ---- scan and query ------------------------------------------------------------------------------------------

    def scan(self):
        """`scan` of many files, and its memory."""
        if not self.wanted("scan"):
            return
        many = self.path("many")
        os.mkdir(many)
        first = os.path.join(many, "0000.vhd")
        self.tool("create", "-n", first, "-s", "10240")
        for number in range(1, SCAN):
            shutil.copyfile(first, os.path.join(many, f"{number:04}.vhd"))
        command = [self.vhd_util, "scan", "-f", "-m", os.path.join(many, "*.vhd")]
        points = [timed(command) for _ in range(max(self.options.reps, 5))]
        self.limits["scan s"] = statistics.median(took for took, _ in points)
        self.limits["scan MiB"] = max(memory for _, memory in points)
        print(f"scan of {SCAN} files: {self.limits['scan s'] * 1e3:.0f} ms, {self.limits['scan MiB']:.1f} MiB\n", flush=True)

    def query(self):
        """`query` as the storage manager asks."""
        if not self.wanted("query"):
            return
        path = self.path("query.vhd")
        self.tool("create", "-n", path, "-s", "10240")
        times = [timed([self.vhd_util, "query", "--debug", "-vsafp", "-n", path])[0] for _ in range(QUERIES)]
        self.limits["query ms"] = statistics.median(times) * 1e3
        print(f"query: {self.limits['query ms']:.2f} ms\n", flush=True)

    def targets(self):
        """What the project wants to reach, each with what was measured."""
        out = []
        for pattern in vhdfill.PATTERNS:
            got = {name: self.medians.get((pattern.name, name)) for name in (OURS, CONVERTED, LIMIT)}
            for name, want in ((CONVERTED, 3), (LIMIT, 0.8)):
                ratio = got[OURS] / got[name] if got[OURS] and got[name] else None
                out.append(Target(f"{pattern.name}: / {name}", want, ratio))
        out.append(Target(f"scan of {SCAN} files", 1, self.limits.get("scan s"), "s", at_most=True))
        out.append(Target(f"memory of a scan of {SCAN} files", 32, self.limits.get("scan MiB"), "MiB", at_most=True))
        out.append(Target("query", 3, self.limits.get("query ms"), "ms", at_most=True))
        return out


def main():
    """Runs the benchmark; the images are removed at the end, whatever happens."""
    options = arguments()
    for program in ("fio", "qemu-img", "qemu-io"):
        if not shutil.which(program):
            sys.exit(f"bench: {program} is not installed: run 'make deps'")
    os.makedirs(options.dir, exist_ok=True)
    options.dir = tempfile.mkdtemp(prefix="vhd-", dir=options.dir)
    try:
        bench = Bench(options)
        bench.query()
        bench.scan()
        for pattern in vhdfill.PATTERNS:
            bench.pattern(pattern)
        print("Targets")
        for target in bench.targets():
            if target.got is not None or not options.only:
                print(target.line())
        if options.json:
            with open(options.json, "w", encoding="utf-8") as file:
                json.dump({"options": vars(options), "limits": bench.limits, "medians": [
                    {"pattern": pattern, "name": name, "mb_s": got} for (pattern, name), got in bench.medians.items()
                ]}, file, indent=1)
    finally:
        shutil.rmtree(options.dir, ignore_errors=True)


if __name__ == "__main__":
    main()
