#!/usr/bin/env python3
"""tapdisk beside qemu-nbd, nbdkit and fio on the raw file: `make bench`.

Every figure is a median over repetitions in which all servers take their turn, so that drift of the machine hits all
alike; compare ratios within one run, not numbers of two runs. A target that is not met is reported, never an error;
a tapdisk that fails to serve is one (exit 1).
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

import images
import nbd
import report
import servers
from load import Fio, Load, LoadError
from servers import ServerError

K, M = 1 << 10, 1 << 20

WORKLOADS = {
    "randread-4k-d32": Load("randread", 4 * K, 32),
    "randwrite-4k-d32": Load("randwrite", 4 * K, 32),
    "randread-4k-d1": Load("randread", 4 * K, 1),
    "randwrite-4k-d1": Load("randwrite", 4 * K, 1),
    "randread-64k-d8": Load("randread", 64 * K, 8),
    "randwrite-64k-d8": Load("randwrite", 64 * K, 8),
    "read-1m-d8": Load("read", M, 8),
    "write-1m-d8": Load("write", M, 8),
}
FIO_RAW = "fio-raw"
# Disks that are created one after the other.
DISKS = 100


def arguments():
    """The command line."""
    here = os.path.dirname(os.path.abspath(__file__))
    target = os.environ.get("CARGO_TARGET_DIR") or os.path.join(here, "..", "..", "target")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", default=os.path.join(target, "release"), help="where tap-ctl, tapdisk, vhd-util are")
    parser.add_argument("--dir", default=os.path.join(target, "bench"), help="where the images go: on the disk to measure")
    parser.add_argument("--reps", type=int, default=5, help="repetitions per figure (5)")
    parser.add_argument("--seconds", type=float, default=3, help="time per repetition (3)")
    parser.add_argument("--size", type=int, default=2048, metavar="MIB", help="size of the images (2048)")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT",
                        help="only what contains TEXT, of: image/workload, start, create, memory (may be repeated)")
    parser.add_argument("--engine", default="", help="tapdisk's disk engine: uring, aio, or both as uring,aio "
                        "(default: what tapdisk chooses); the first one is held against the targets")
    parser.add_argument("--original", metavar="PREFIX", default=os.environ.get("BENCH_ORIGINAL"),
                        help="where blktap is installed (PREFIX/sbin/tap-ctl, "
                        "PREFIX/libexec/tapdisk), to be measured beside ours (BENCH_ORIGINAL)")
    parser.add_argument("--without", action="append", default=[], metavar="SERVER", help="leave a server out")
    parser.add_argument("--json", metavar="FILE", help="write all results there as well")
    options = parser.parse_args()
    if options.reps < 1 or options.seconds <= 0 or options.size < 16 or options.size % 4:
        parser.error("--reps and --seconds must be positive, --size at least 16 and a multiple of 4")
    return options


class Bench:
    """One run: the servers, the images as they are needed, the results."""

    def __init__(self, options, run_dir):
        self.options = options
        self.size = options.size * M
        self.fio = Fio(run_dir, options.seconds)
        self.tapdisks = [servers.Tapdisk(options.bin, run_dir, engine or None) for engine in options.engine.split(",")]
        self.original = [servers.Original(options.original)] if options.original else []
        others = [servers.QemuNbd("io_uring", run_dir), servers.QemuNbd("native", run_dir), servers.Nbdkit(run_dir)]
        everybody = self.tapdisks + self.original + others
        self.servers = [server for server in everybody if server.name not in options.without]
        limits = [servers.NbdkitNull(run_dir), servers.Copy(options.bin, run_dir)]
        self.limits = [server for server in limits if server.name not in options.without]
        self.results = report.Results(self.tapdisks[0].name)
        self.cache = {}

    def wanted(self, name):
        """Whether --only lets this through."""
        return not self.options.only or any(text in name for text in self.options.only)

    def image(self, name):
        """An image, made when first asked for."""
        if name not in self.cache:
            print(f"making {name} ...", file=sys.stderr, flush=True)
            if name == "raw":
                self.cache[name] = images.make_raw(self.options.dir, self.size)
            elif name == "vhd":
                self.cache[name] = images.make_full_vhd(self.options.dir, self.image("raw"))
            elif name == "qcow2":
                self.cache[name] = images.make_full_qcow2(self.options.dir, self.image("raw"))
            elif name.endswith("-qcow2"):
                self.cache.update(images.make_qcow2_chains(self.options.dir, self.image("qcow2"),
                                                           self._write_pieces))
            else:
                self.cache.update(images.make_chains(self.options.dir, self.image("vhd"), self.tapdisks[0],
                                                     self._write_pieces))
        return self.cache[name]

    def _write_pieces(self, image, pieces, seed):
        with self.tapdisks[0].serve(image) as export:
            self.fio.on_server(Load("randwrite", 64 * K, 8, pieces), export, seed)

    def workload(self, image_name, name, load, contenders, fresh=None):
        """All repetitions of one workload, the servers taking turns; prints the table."""
        if not self.wanted(f"{image_name}/{name}"):
            return
        points = collections.defaultdict(list)
        for repetition in range(self.options.reps):
            shift = repetition % len(contenders)
            for server in contenders[shift:] + contenders[:shift]:
                key = (image_name, name, server if server == FIO_RAW else server.name)
                if key in self.results.failures:
                    continue
                try:
                    points[key].append(self._point(server, image_name, load, fresh, repetition + 1))
                except (ServerError, LoadError, OSError, subprocess.SubprocessError) as error:
                    self.results.failures[key] = str(error)
        for key, got in points.items():
            if got:
                self.results.medians[key] = report.median_of(got)
        names = [server if server == FIO_RAW else server.name for server in contenders]
        print(report.table(self.results, image_name, name, names) + "\n", flush=True)

    def _point(self, server, image_name, load, fresh, seed):
        if server == FIO_RAW:
            return self.fio.on_file(load, self.image("raw").path, seed)
        if why := server.missing():
            raise ServerError(why)
        image = fresh() if fresh else self.image(image_name)
        images.settle(image)
        with server.serve(image) as export:
            point = self.fio.on_server(load, export, seed)
        images.settle(image)
        return point

    def run(self):
        """Everything that --only lets through."""
        for image_name in report.KINDS:
            for name, load in WORKLOADS.items():
                contenders = [server for server in self.servers if server.handles(servers.Image("", image_name))]
                if FIO_RAW not in self.options.without:
                    contenders = contenders + [FIO_RAW]
                if image_name == "raw":
                    contenders = contenders + self.limits
                self.workload(image_name, name, load, contenders)
        qcow2 = servers.Image("", "qcow2")
        qcow2_servers = [server for server in self.servers if server.handles(qcow2)]
        vhd_servers = [server for server in self.servers if server.handles(servers.Image("", "vhd"))]
        for name in ("randread-4k-d32", "randwrite-4k-d32"):
            self.workload("qcow2", name, WORKLOADS[name], qcow2_servers)
        first = {
            "first-writes": Load("randwrite", 4 * K, 32,
                                 requests=max(self.size // (2 * M), 1) * 16),
            "first-writes-1m": Load("write", M, 8, requests=self.size // M),
        }
        for name, load in first.items():
            self.workload("empty-vhd", name, load, vhd_servers,
                          fresh=lambda: images.make_empty_vhd(self.options.dir, self.size))
            self.workload("empty-qcow2", name, load, qcow2_servers,
                          fresh=lambda: images.make_empty_qcow2(self.options.dir, self.size))
            self.workload("over-qcow2", name, load, qcow2_servers,
                          fresh=lambda: images.make_empty_qcow2(self.options.dir, self.size,
                                                                self.image("raw")))
        self.chains("")
        self.chains("-qcow2")
        self.start_time()
        self.create_time()
        self.idle_memory()

    def chains(self, kind):
        """The same load on a chain of one and of CHAIN, alternating."""
        names = [f"chain-1{kind}", f"chain-{images.CHAIN}{kind}"]
        name = "randread-4k-d32"
        if not any(self.wanted(f"{chain}/{name}") for chain in names):
            return
        points = collections.defaultdict(list)
        ours = self.tapdisks[0]
        for repetition in range(self.options.reps):
            for chain in names if repetition % 2 == 0 else reversed(names):
                key = (chain, name, ours.name)
                try:
                    points[key].append(self._point(ours, chain, WORKLOADS[name], None, repetition + 1))
                except (ServerError, LoadError, OSError, subprocess.SubprocessError) as error:
                    self.results.failures[key] = str(error)
                    break
        for chain in names:
            key = (chain, name, ours.name)
            if points[key]:
                self.results.medians[key] = report.median_of(points[key])
            print(report.table(self.results, chain, name, [ours.name]) + "\n", flush=True)

    def single(self, what, unit, measure, count):
        """The median of one figure per server: measure(server) → number."""
        got = {}
        for server in self.servers:
            if not server.handles(servers.Image("", "vhd")):
                continue
            try:
                if why := server.missing():
                    raise ServerError(why)
                values = [measure(server) for _ in range(count)]
            except (ServerError, OSError, subprocess.SubprocessError, nbd.NbdError) as error:
                self.results.failures[("vhd", what, server.name)] = str(error)
                print(f"{what}, {server.name}: NOT MEASURED: {error}", flush=True)
                continue
            got[server.name] = statistics.median(values)
            print(f"{what}, {server.name}: {got[server.name]:.1f} {unit} "
                  f"(median of {count}, worst {max(values):.1f})", flush=True)
        self.results.singles[f"{what} {unit}"] = got
        print()

    def start_time(self):
        """From the start of the command that makes the disk to its first 4 KiB in the client's hands."""
        if not self.wanted("start"):
            return
        image = images.make_empty_vhd(self.options.dir, self.size)

        def measure(server):
            begin = time.monotonic()
            with server.serve(image) as export:
                nbd.first_bytes(export.socket)
                return (time.monotonic() - begin) * 1e3

        self.single("start to first bytes", "ms", measure, 20)

    def create_time(self):
        """What one `tap-ctl create` takes while 100 disks are made, one after the other."""
        if not self.wanted("create"):
            return
        paths = [images.make_empty_vhd(self.options.dir, 64 * M, f"many-{i}.vhd") for i in range(DISKS)]
        for server in self.tapdisks + self.original:
            made, times = [], []
            try:
                if why := server.missing():
                    raise ServerError(why)
                for image in paths:
                    begin = time.monotonic()
                    made.append(server.create(image)[1])
                    times.append((time.monotonic() - begin) * 1e3)
                got = statistics.median(times)
                self.results.singles.setdefault("create ms", {})[server.name] = got
                print(f"create, {server.name}: {got:.1f} ms (median of {DISKS}, worst {max(times):.1f})", flush=True)
            except (ServerError, OSError, subprocess.SubprocessError) as error:
                self.results.failures[("vhd", "create", server.name)] = str(error)
                print(f"create, {server.name}: NOT MEASURED: {error}", flush=True)
            finally:
                for minor in made:
                    server.destroy(server.find_socket(minor)[1], minor)

    def idle_memory(self):
        """Memory of a server with one idle 1 GiB VHD: all that is resident, and what is its own."""
        if not self.wanted("memory"):
            return
        image = images.make_empty_vhd(self.options.dir, 1 << 30)

        def measure(server, field):
            with server.serve(image) as export:
                memory = export.memory_kib(field) / 1024
                nbd.first_bytes(export.socket)  # it was up, and not still on its way
                return memory

        for what, field in (("idle resident memory", "VmRSS"), ("idle private memory", "RssAnon")):
            self.single(what, "MiB", lambda server, field=field: measure(server, field), min(self.options.reps, 5))


def versions():
    """What was measured with."""
    found = {}
    for program in ("fio", "qemu-nbd", "nbdkit"):
        if not shutil.which(program):
            found[program] = "NOT INSTALLED"
            continue
        done = subprocess.run([program, "--version"], check=False, stdout=subprocess.PIPE, text=True)
        found[program] = done.stdout.partition("\n")[0]
    found["kernel"] = os.uname().release.partition("-")[0]
    found["cpus"] = len(os.sched_getaffinity(0))
    return found


def conclude(bench, found):
    """The targets, the notes, the JSON file; returns the exit status."""
    print("Targets")
    ours = [server.name for server in bench.tapdisks]
    for target in report.targets(bench.results) + report.over_original(bench.results, ours):
        if target.got is not None or not bench.options.only:
            print(target.line())
    print("""
fio-raw is fio on the raw file, io_uring, direct. nbdkit reads and writes through the page cache,
the others do not. `ceiling` and `copy` are fio's nbd engine against servers without any I/O (nbdkit
null; one thread that only copies through the socket): no server can show more in this table.
`blktap` is the original, where --original names it.
spread = (largest - smallest) / median over the repetitions.""")
    if bench.options.json:
        with open(bench.options.json, "w", encoding="utf-8") as file:
            json.dump(report.as_json(bench.results, vars(bench.options), found), file, indent=1)
    broken = sorted(key for key in bench.results.failures if key[2].startswith("tapdisk"))
    for key in broken:
        print(f"FAILED: {' '.join(key)}: {bench.results.failures[key]}", file=sys.stderr)
    return 1 if broken else 0


def main():
    """Runs the benchmark; images and sockets are removed at the end, whatever happens."""
    options = arguments()
    found = versions()
    if found["fio"] == "NOT INSTALLED":
        sys.exit("bench: fio is not installed and nothing can be measured without it: run 'make deps'")
    if not shutil.which("qemu-img"):
        sys.exit("bench: qemu-img is not installed, and makes the images: run 'make deps'")
    print(", ".join(f"{name}: {value}" for name, value in found.items()))
    print(f"{options.reps} repetitions of {options.seconds:g} s, images of {options.size} MiB\n", flush=True)
    os.makedirs(options.dir, exist_ok=True)
    options.dir = tempfile.mkdtemp(prefix="run-", dir=options.dir)
    # Socket paths have to be short (sockaddr_un), so they do not go to the images.
    run_dir = tempfile.mkdtemp(prefix="tapbench-", dir="/tmp")
    try:
        bench = Bench(options, run_dir)
        bench.run()
        return conclude(bench, found)
    finally:
        shutil.rmtree(options.dir, ignore_errors=True)
        shutil.rmtree(run_dir, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
