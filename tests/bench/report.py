"""Medians, the tables, and how far from the targets the numbers are. Nothing here fails a build."""

import dataclasses
import statistics

KINDS = ("raw", "vhd")
ORIGINAL = "blktap"
# What every engine of ours is to reach, in times blktap's rate.
OVER_ORIGINAL = {
    "randread-4k-d32": {"raw": 3.2, "vhd": 3.0}, "randwrite-4k-d32": {"raw": 2.2, "vhd": 2.2},
    "randread-4k-d1": 1.2, "randwrite-4k-d1": 1.2, "randread-64k-d8": 1.3, "randwrite-64k-d8": 1.4,
    "read-1m-d8": 1.2, "write-1m-d8": 1.2,
}


@dataclasses.dataclass
class Target:
    """`got` against `want`; a larger figure is better unless `at_most`. `got` is None if it was not measured.

    `raw_file` is what fio on the raw file reaches in the same ratio: where it is below `want`, the machine's disk,
    not the server, is the limit.
    """

    what: str
    want: float
    got: float | None
    unit: str = "x"
    at_most: bool = False
    raw_file: float | None = None

    def met(self):
        """Whether the figure is reached."""
        return self.got <= self.want if self.at_most else self.got >= self.want

    def line(self):
        """One line of the table of targets."""
        limit = f"{'<=' if self.at_most else '>='} {self.want:.2f} {self.unit}"
        if self.got is None:
            return f"  {self.what:<56} {limit:>12}  not measured"
        off = (self.got / self.want - 1) * 100
        beside = f"; fio on the raw file: {self.raw_file:.2f} x" if self.raw_file else ""
        return f"  {self.what:<56} {limit:>12}  {self.got:>8.2f} {self.unit:<3} " \
               f"{'met' if self.met() else 'NOT MET':<8} ({off:+.0f} %{beside})"


def median_of(points):
    """The median of each figure over the repetitions, as a dict."""
    fields = ("iops", "mb_s", "p50_us", "p99_us", "cpu_us")
    result = {}
    for field in fields:
        values = [getattr(point, field) for point in points if getattr(point, field) is not None]
        result[field] = statistics.median(values) if values else None
    rates = [point.iops for point in points]
    result["spread"] = (max(rates) - min(rates)) / result["iops"] if result["iops"] else 0.0
    result["reps"] = len(points)
    return result


class Results:
    """(image, workload, server) → the median of its points, or the sentence why there are none."""

    def __init__(self, tapdisk):
        self.tapdisk = tapdisk
        self.medians = {}
        self.failures = {}
        self.singles = {}

    def get(self, image, workload, server, field="iops"):
        """One figure, or None."""
        return self.medians.get((image, workload, server), {}).get(field)

    def best_qemu(self, image, workload, pick=max, field="iops"):
        """The better of qemu-nbd's engines."""
        values = [self.get(image, workload, name, field) for name in ("qemu-uring", "qemu-native")]
        values = [value for value in values if value]
        return pick(values) if values else None

    def over_qemu(self, what, want, image, workload, other=None):
        """The target `want` times qemu-nbd's rate: that of one engine, or of the better one."""
        theirs = self.get(image, workload, other) if other else self.best_qemu(image, workload)
        file = self.get(image, workload, "fio-raw")
        return Target(what, want, self.ratio(image, workload, theirs),
                      raw_file=file / theirs if file and theirs else None)

    def ratio(self, image, workload, other):
        """tapdisk's rate over another server's, or over a number."""
        ours = self.get(image, workload, self.tapdisk)
        theirs = self.get(image, workload, other) if isinstance(other, str) else other
        return ours / theirs if ours and theirs else None


def _number(value, form):
    return form.format(value) if value is not None else "-"


def table(results, image, workload, servers):
    """The lines for one workload on one image."""
    lines = [f"{image} {workload}",
             f"  {'server':<16} {'IOPS':>9} {'MB/s':>8} {'p50 us':>8} {'p99 us':>8} {'CPU us/req':>10} "
             f"{'spread':>7}  {results.tapdisk} is"]
    for name in servers:
        key = (image, workload, name)
        if key in results.medians:
            got = results.medians[key]
            factor = results.ratio(image, workload, name)
            beside = f"{factor:.2f} x this" if factor and name != results.tapdisk else ""
            lines.append(f"  {name:<16} {got['iops']:>9.0f} {got['mb_s']:>8.1f} {got['p50_us']:>8.0f} "
                         f"{got['p99_us']:>8.0f} {_number(got['cpu_us'], '{:.1f}'):>10} "
                         f"{got['spread'] * 100:>6.0f}%  {beside}")
        if key in results.failures:
            lines.append(f"  {name:<16} NOT MEASURED: {results.failures[key]}")
    return "\n".join(lines)


def targets(results):
    """The table of what the project wants to reach, each with what was measured."""
    out = []
    for kind in KINDS:
        read, write = "randread-4k-d32", "randwrite-4k-d32"
        out.append(results.over_qemu(f"{kind} {read} / qemu-nbd io_uring", 3, kind, read, "qemu-uring"))
        out.append(Target(f"{kind} {read} / fio on the raw file", 0.7, results.ratio(kind, read, "fio-raw")))
        for name, factor in ((write, {"raw": 2.5, "vhd": 10}[kind]), ("randread-4k-d1", 1.3),
                             ("randwrite-4k-d1", 1.3), ("randread-64k-d8", 2), ("randwrite-64k-d8", 2),
                             ("read-1m-d8", 2), ("write-1m-d8", 2)):
            out.append(results.over_qemu(f"{kind} {name} / better qemu-nbd", factor, kind, name))
        for name in (read, write):
            ours = results.get(kind, name, results.tapdisk, "cpu_us")
            theirs = results.best_qemu(kind, name, min, "cpu_us")
            out.append(Target(f"{kind} {name} server CPU per request / qemu-nbd", 1 / 3,
                              ours / theirs if ours and theirs else None, at_most=True))
    out += qcow2_targets(results)
    out.append(results.over_qemu("first writes into an empty VHD / better qemu-nbd", 8, "empty-vhd", "first-writes"))
    long, short = (results.get(name, "randread-4k-d32", results.tapdisk) for name in ("chain-30", "chain-1"))
    out.append(Target("chain of 30 / chain of 1, randread-4k-d32", 0.95, long / short if long and short else None))
    memory = results.singles.get("idle resident memory MiB", {}).get(results.tapdisk)
    out.append(Target("resident memory of an idle disk", 8, memory, "MiB", at_most=True))
    own = results.singles.get("idle private memory MiB", {}).get(results.tapdisk)
    out.append(Target("private memory of an idle VHD disk", 3, own, "MiB", at_most=True))
    create = results.singles.get("create ms", {}).get(results.tapdisk)
    out.append(Target("tap-ctl create, of 100 disks", 10, create, "ms", at_most=True))
    start = results.singles.get("start to first bytes ms", {}).get(results.tapdisk)
    out.append(Target("tap-ctl create to first byte", 15, start, "ms", at_most=True))
    return out


def qcow2_targets(results):
    """The same for qcow2."""
    out = []
    ours = results.tapdisk
    for name in ("randread-4k-d32", "randwrite-4k-d32"):
        uring = "qemu-uring"
        out.append(results.over_qemu(f"qcow2 {name} / qemu-nbd io_uring", 3, "qcow2", name, uring))
        got, theirs = (results.get("qcow2", name, server, "cpu_us") for server in (ours, uring))
        out.append(Target(f"qcow2 {name} server CPU per request / qemu-nbd io_uring", 1 / 3,
                          got / theirs if got and theirs else None, at_most=True))
        got, raw = (results.get(image, name, ours) for image in ("qcow2", "raw"))
        ratio = got / raw if got and raw else None
        out.append(Target(f"qcow2 {name} / raw, both ours", 0.9, ratio))
    for image, want, what in (("empty-qcow2", 4, "nothing"), ("over-qcow2", 2, "a raw parent")):
        title = f"first writes of qcow2 over {what} / qemu-nbd io_uring"
        out.append(results.over_qemu(title, want, image, "first-writes", "qemu-uring"))
    long, short = (results.get(f"chain-{n}-qcow2", "randread-4k-d32", ours) for n in (30, 1))
    out.append(Target("qcow2 chain of 30 / chain of 1, randread-4k-d32", 0.95,
                      long / short if long and short else None))
    return out


def over_original(results, tapdisks):
    """The same for blktap, for each engine of ours; nothing if blktap was not named."""
    rows = [(kind, name, want[kind] if isinstance(want, dict) else want)
            for kind in KINDS for name, want in OVER_ORIGINAL.items()]
    rows.append(("empty-vhd", "first-writes-1m", 1.5))
    out = []
    for kind, name, want in rows:
        theirs = results.get(kind, name, ORIGINAL)
        for ours in tapdisks if theirs else []:
            rate = results.get(kind, name, ours)
            got = rate / theirs if rate else None
            out.append(Target(f"{kind} {name}: {ours} / {ORIGINAL}", want, got))
    return out


def as_json(results, options, versions):
    """Everything, for another program."""
    return {
        "options": options,
        "versions": versions,
        "medians": [dict(zip(("image", "workload", "server"), key), **got) for key, got in results.medians.items()],
        "failures": [dict(zip(("image", "workload", "server"), key), reason=why)
                     for key, why in results.failures.items()],
        "singles": results.singles,
        "targets": [dict(dataclasses.asdict(target), met=None if target.got is None else target.met())
                    for target in targets(results)],
    }
