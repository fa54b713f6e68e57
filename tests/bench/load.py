"""The load: fio, through its nbd engine or directly on a file.

fio's nbd engine writes `fio: connected to NBD server` to stdout in front of the JSON, so the JSON goes to a file.
"""

import contextlib
import dataclasses
import json
import os
import subprocess


class LoadError(Exception):
    """fio failed, or its requests did."""


@dataclasses.dataclass(frozen=True)
class Load:
    """A pattern: `rw` as fio names it, block size in bytes, requests in flight.

    With `requests`, that many are made, each to a place not written before; otherwise the load runs by the clock.
    """

    rw: str
    block: int
    depth: int
    requests: int = 0


@dataclasses.dataclass
class Point:
    """What one run gave. Latencies in µs; `cpu_us` is the server's CPU time per request, if there is a server."""

    iops: float
    mb_s: float
    p50_us: float
    p99_us: float
    requests: int
    cpu_us: float | None = None


class Fio:
    """Runs loads; `work_dir` takes fio's output files."""

    def __init__(self, work_dir, seconds):
        self.work_dir = work_dir
        self.seconds = seconds

    def on_server(self, load, export, seed):
        """The load on a served image, with the server's CPU time."""
        before = export.cpu_seconds()
        point = self._run(load, ["--ioengine=nbd", f"--uri={export.uri}"], seed)
        point.cpu_us = (export.cpu_seconds() - before) * 1e6 / point.requests
        return point

    def on_file(self, load, path, seed):
        """The load on a file, past the page cache."""
        return self._run(load, ["--ioengine=io_uring", "--direct=1", f"--filename={path}"], seed)

    def _run(self, load, target, seed):
        output = os.path.join(self.work_dir, "fio.json")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(output)
        command = ["fio", "--name=bench", f"--rw={load.rw}", f"--bs={load.block}", f"--iodepth={load.depth}",
                   f"--randseed={seed}", "--output-format=json", f"--output={output}", *target]
        if load.requests:
            command += [f"--io_size={load.requests * load.block}"]
        else:
            command += ["--norandommap", "--time_based", f"--runtime={round(self.seconds * 1000)}ms"]
        done = subprocess.run(command, cwd=self.work_dir, check=False, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              timeout=self.seconds * 4 + 300)
        if done.returncode != 0 or not os.path.exists(output):
            raise LoadError(f"fio: exit {done.returncode}: {done.stdout.strip()[-300:]}")
        with open(output, encoding="utf-8") as file:
            try:
                job = json.load(file)["jobs"][0]
            except (ValueError, LookupError):
                raise LoadError(f"fio wrote no result: {done.stdout.strip()[-300:]}") from None
        return self._point(job, load)

    @staticmethod
    def _point(job, load):
        if job["error"]:
            raise LoadError(f"fio: requests failed with error {job['error']}")
        side = job["write" if "write" in load.rw else "read"]
        percentile = side["clat_ns"]["percentile"]
        return Point(iops=side["iops"], mb_s=side["io_bytes"] / 1e3 / max(side["runtime"], 1),
                     p50_us=percentile["50.000000"] / 1e3, p99_us=percentile["99.000000"] / 1e3,
                     requests=side["total_ios"])
