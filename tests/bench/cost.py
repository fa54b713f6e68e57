#!/usr/bin/env python3
"""Instructions of the daemon's own code for a request of 4 KiB: `make bench-cost`.

valgrind counts what request-cost executes (tests/src/bin/request-cost.rs: engine and driver over
memory, no kernel), once for few and once for many requests; the difference is what a request
costs. The number does not depend on how busy the machine is, so `make test` keeps it (--check):
a step that makes the path of a request longer is seen at once. tests/bench/cost.json has what it
was, and with which compiler; another compiler may differ by ten per cent, the same one by one.
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys

ROWS = [(image, verb) for image in ("raw", "vhd") for verb in ("read", "write")]
FEW, MANY = 2000, 12000
RECORD = pathlib.Path(__file__).with_name("cost.json")


def instructions(program, image, verb, requests):
    """What valgrind counts for so many requests, set-up included."""
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command += [program, image, verb, str(requests)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"I\s+refs:\s+([\d,]+)", done.stderr)
    if done.returncode != 0 or found is None:
        sys.exit(f"bench-cost: {' '.join(command)} failed:\n{done.stderr}")
    return int(found.group(1).replace(",", ""))


def compiler():
    """The compiler's version, as it says it."""
    cargo = os.environ.get("CARGO", "cargo")
    return subprocess.run([cargo, "--version"], capture_output=True, text=True,
                          check=True).stdout.split()[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("bin", help="the folder of the release programs")
    parser.add_argument("--check", action="store_true",
                        help="fail where a request costs more than is written down")
    parser.add_argument("--write", action="store_true", help="write the numbers down")
    parser.add_argument("--json", action="store_true", help="for programs")
    words = parser.parse_args()
    program = str(pathlib.Path(words.bin) / "request-cost")
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    known = record.get("instructions", {})
    slack = 1.01 if record.get("compiler") == compiler() else 1.10
    now, worse = {}, []
    for image, verb in ROWS:
        many = instructions(program, image, verb, MANY)
        each = (many - instructions(program, image, verb, FEW)) / (MANY - FEW)
        name = f"{image} {verb}"
        now[name] = round(each)
        if name in known and each > known[name] * slack:
            worse.append(f"{name}: {each:.0f} instructions, there were {known[name]}")
    if words.json:
        print(json.dumps({"compiler": compiler(), "instructions": now, "before": known}))
    else:
        print(f"instructions of a 4 KiB request, engine and driver (rustc {compiler()}):")
        for name, each in now.items():
            print(f"  {name:10}  {each:6}  (written down: {known.get(name, '-')})")
    if words.write:
        text = json.dumps({"compiler": compiler(), "instructions": now}, indent=4)
        RECORD.write_text(text + "\n", encoding="utf-8")
    if words.check and worse:
        sys.exit("bench-cost: the path of a request has become longer:\n  " + "\n  ".join(worse))
    if words.check and not known:
        sys.exit(f"bench-cost: {RECORD} has no numbers")


if __name__ == "__main__":
    main()
