#!/usr/bin/env python3
"""Memory pressure: machines with little memory whose memory becomes free only through a disk that a user-space
process serves, and the same machines with controls, which must hang or be killed.

    pressure.py [--reps N] [--full] [--each] [--only REGEX] [--json]

  --reps N    every machine so many times (default 1); a control that does not fail is booted twice more, since
              whether a thread of it waits for memory in the few seconds of a load is a matter of chance, and the
              table says how often it failed of how many
  --full      every scenario with both devices, both engines and both formats, and all controls
  --each      the control with one protection left out at a time, to learn which of them matters where
  --only      scenario device engine format daemon, as they are printed, must match
  --json      the table as JSON on standard output

Devices are ublk, or blktap: our kernel module's ring (xen/blktap-dkms). A scenario (cases/pressure.sh) proves something
only if its control fails in it, and for the right reason: the OOM killer took the daemon, or the device had requests in
flight and moved nothing while a task hung. So the run fails if a protected machine does not survive, and if of a
scenario's controls with one device and one engine none failed. The machines' consoles stay in
$CARGO_TARGET_DIR/vm/pressure. The programs are those of `make build`, and the control's of
`cargo build --features unprotected` in a target folder of its own, which this builds.
"""
import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", TOP / "target"))
LOGS = TARGET / "vm" / "pressure"
SCENARIOS = ["swap", "files", "stack", "burst"]
# Of a machine, in the order of its words.
WORDS = ("scenario", "device", "engine", "format", "daemon", "without")
# With the module's ring, what is not left to --full: the engine of each scenario's control, if it
# has one.
RING_CONTROLS = {"swap": "uring", "stack": "aio"}
# What the control can go without (tapdisk/host/src/protection.rs).
PROTECTIONS = ["lock", "flusher", "oom", "reserve", "priority", "free"]
MEMORY_MIB = 192
LIMIT_SECONDS = 420
# How often a control is booted until it fails.
CONTROL_TRIES = 3


def jobs_of(args):
    """Tuples as of WORDS; `without`: what the control goes without, all if empty."""
    every = [(engine, kind) for engine in ("uring", "aio") for kind in ("raw", "vhd")]
    jobs = []
    for scenario in SCENARIOS:
        def add(device, variants, daemon, without=""):
            jobs.extend((scenario, device, engine, kind, daemon, without) for engine, kind in variants)

        if args.each:
            for protection in PROTECTIONS:
                add("ublk", [("uring", "vhd")], "unprotected", protection)
        elif args.full:
            for device in ("ublk", "blktap"):
                add(device, every, "protected")
                add(device, every, "unprotected")
            add("nbd", [("uring", "raw"), ("uring", "vhd")], "qemu-nbd")
        else:
            add("ublk", [("uring", "vhd"), ("aio", "raw")], "protected")
            add("ublk", [("uring", "raw"), ("aio", "raw")], "unprotected")
            # Alternately what the two above have not.
            add("blktap", [("aio", "vhd") if scenario in ("swap", "burst") else ("uring", "raw")], "protected")
            if scenario in RING_CONTROLS:
                add("blktap", [(RING_CONTROLS[scenario], "raw")], "unprotected")
    wanted = re.compile(args.only or "")
    return [job for job in jobs if wanted.search(" ".join(job).strip())]


def prepare():
    """The folder that every machine gets a copy of."""
    cargo = os.environ.get("CARGO", "cargo")
    # Built without the whole program's optimisation: it is quicker, and the control's speed does
    # not matter.
    quick = dict(os.environ, CARGO_PROFILE_RELEASE_LTO="off", CARGO_PROFILE_RELEASE_CODEGEN_UNITS="16")
    target = TARGET / "unprotected"
    build = [cargo, "build", "--release", "-p", "tapdisk", "--bin", "tapdisk", "--features", "unprotected"]
    subprocess.run(build + ["--target-dir", target], cwd=TOP, env=quick, check=True, stdout=sys.stderr)
    base = LOGS / "base"
    shutil.rmtree(base, ignore_errors=True)
    shutil.copytree(HERE, base / "vm")
    install = ["make", "--no-print-directory", "-C", TOP, "install", f"DESTDIR={base}/programs", "PREFIX=/usr"]
    subprocess.run(install, check=True, stdout=sys.stderr)
    shutil.copy(TARGET / "release" / "pressure", base / "programs/usr/bin/pressure")
    module = subprocess.run([HERE / "module.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    shutil.copy(module, base / "blktap.ko")
    (base / "unprotected").mkdir()
    shutil.copy(target / "release/tapdisk", base / "unprotected/tapdisk")
    said = subprocess.run([base / "unprotected/tapdisk", "--version"], capture_output=True, text=True, check=True)
    assert "UNPROTECTED" in said.stdout, "the control says what it is"
    said = subprocess.run([base / "programs/usr/libexec/tapdisk", "--version"], capture_output=True, text=True, check=True)
    assert "UNPROTECTED" not in said.stdout, "the program to be installed is no control"
    return base


def boot(base, job, rep):
    name = "-".join(word for word in job if word) + (f".{rep}" if rep else "")
    share = LOGS / name
    shutil.rmtree(share, ignore_errors=True)
    subprocess.run(["cp", "-al", base, share], check=True)
    words = " ".join(job).strip()
    command = f"cp -a programs/. / && exec bash vm/cases/pressure.sh {words}"
    options = ["-p", "-q", "-t", str(LIMIT_SECONDS), "-m", str(MEMORY_MIB), "-d", "1024"]
    begun = time.monotonic()
    with open(share / "boot.log", "w", encoding="utf-8") as log:
        ended = subprocess.run([HERE / "boot.sh", *options, share, command], stdout=log, stderr=log, check=False)
    verdict = judge(share, ended.returncode)
    verdict["seconds"] = round(time.monotonic() - begun)
    shutil.rmtree(share / "programs", ignore_errors=True)
    shutil.rmtree(share / "unprotected", ignore_errors=True)
    print(f"pressure: {words}: {verdict['outcome']} ({verdict['seconds']} s) {verdict['why']}", file=sys.stderr)
    return verdict


def boot_until_evidence(base, job, rep):
    """The verdicts on a machine, more than one if it is a control that did not fail at first."""
    verdicts = []
    while not verdicts or (len(verdicts) < CONTROL_TRIES and not is_evidence(job, verdicts[-1])):
        verdicts.append(boot(base, job, rep * CONTROL_TRIES + len(verdicts)))
    return verdicts


def is_evidence(job, verdict):
    # The protected program has one try, and of a single protection left out the table is to tell
    # how often it mattered.
    _, _, _, _, daemon, without = job
    return daemon == "protected" or without or verdict["outcome"] in ("hung", "killed")


def judge(share, status):
    """What became of a machine: survived, hung, killed (of the last two the right reason was seen), or failed."""
    said = {}
    if (share / "result").exists():
        for line in (share / "result").read_text(errors="replace").splitlines():
            key, _, value = line.partition(" ")
            said[key] = value
    console = (share / "console.log").read_text(errors="replace")
    pid = said.get("pid", "none")
    if "survived" in said and status == 0:
        moved, longest = int(said["bytes"]), int(said["longest_ms"])
        why = f"{moved >> 20} MiB moved, {longest / 1000:.1f} s without a byte at most"
        return {"outcome": "survived", "why": why, "bytes": moved, "longest_ms": longest}
    killed = re.findall(r"ut of memory: Killed process (\d+) \(([^)]*)\)", console)
    if any(victim == pid for victim, _ in killed):
        return {"outcome": "killed", "why": "the OOM killer took the daemon"}
    stall = re.search(r"pressure: stall: (\S+) moved nothing for \d+ s, (\d+) requests in flight", console)
    died = re.search(r"Kernel panic - not syncing: (.*)", console)
    blocked = re.findall(r"INFO: task (\S+):\d+ blocked for more than", console)
    # Where a thread is that waits for memory, or for a page of its own.
    waits = r".*(?:_alloc|alloc_pages|reclaim|free_pages|mm_fault|swap_|folio_wait|bio_alloc).*"
    threads = re.findall(rf"pressure: daemon {pid} thread \d+ (\S+) state \S in ({waits})", console)
    if stall and died and threads:
        where = f"{threads[0][0]} in {' < '.join(threads[0][1].strip().split(' < ')[:9])}"
        return {"outcome": "hung", "why": f"{stall[2]} requests wait; {where}", "blocked": blocked}
    why = said.get("failed") or (f"panic: {died[1]}, blocked: {blocked}" if died else f"status {status}")
    if died and stall:
        why += ", the device waits, but no thread of the daemon does"
    return {"outcome": "failed", "why": why}


def table(rows):
    head = (*WORDS, "survived", "hung", "killed", "failed")
    lines = [head]
    for row in rows:
        counts = [f"{row[word]} of {row['of']}" if row[word] else "-" for word in head[len(WORDS):]]
        lines.append(tuple(row[word] or "-" for word in WORDS) + tuple(counts))
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip() for line in lines)


def wrong(rows):
    """Sentences; none if the run is evidence."""
    found = []
    controls = {}
    for row in rows:
        name = " ".join(row[word] for word in WORDS[:4])
        if row["daemon"] == "protected" and row["survived"] != row["of"]:
            found.append(f"{name}: the protected tapdisk survived {row['survived']} of {row['of']}")
        if row["daemon"] == "unprotected":
            group = " ".join(row[word] for word in WORDS[:3])
            controls[group] = controls.get(group, 0) + row["hung"] + row["killed"]
    for scenario in {row["scenario"] for row in rows if row["daemon"] == "protected"}:
        if not any(group.startswith(scenario) for group in controls):
            found.append(f"{scenario}: no control was booted: the scenario is no evidence")
    found += [f"{group}: no control failed: the scenario is no evidence" for group, n in controls.items() if not n]
    return found


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--reps", type=int, default=1)
    words.add_argument("--full", action="store_true")
    words.add_argument("--each", action="store_true")
    words.add_argument("--only")
    words.add_argument("--json", action="store_true")
    args = words.parse_args()
    jobs = jobs_of(args)
    if not jobs or args.reps < 1:
        sys.exit("pressure.py: nothing to do")
    LOGS.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    base = prepare()
    subprocess.run([HERE / "image.sh"], check=True, stdout=subprocess.DEVNULL)
    lanes = int(os.environ.get("TAPDISK_VM_LANES", os.cpu_count() or 1))
    with ThreadPoolExecutor(lanes) as pool:
        runs = [(job, pool.submit(boot_until_evidence, base, job, rep)) for rep in range(args.reps) for job in jobs]
    rows = []
    for job in jobs:
        verdicts = [verdict for one, run in runs if one == job for verdict in run.result()]
        row = dict(zip(WORDS, job))
        row |= {"of": len(verdicts), "runs": verdicts}
        row |= {o: sum(v["outcome"] == o for v in verdicts) for o in ("survived", "hung", "killed", "failed")}
        rows.append(row)
    complaints = [] if args.each else wrong(rows)
    if args.json:
        print(json.dumps({"rows": rows, "wrong": complaints}, indent=1))
    else:
        print(table(rows))
    for sentence in complaints:
        print(f"pressure: {sentence}", file=sys.stderr)
    print(f"pressure: {sum(row['of'] for row in rows)} machines in {time.monotonic() - begun:.0f} s", file=sys.stderr)
    sys.exit(1 if complaints else 0)


if __name__ == "__main__":
    main()
