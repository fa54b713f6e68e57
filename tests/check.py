#!/usr/bin/env python3
"""The daily loop, `make check`: style, lints and the fast tests of what was touched.

Touched is what differs from BASE (the last commit, unless it is set), in git's eyes. A change of a
crate is tried by that crate's tests and by QUICK: those tests of what depends on it that are over
in seconds and see the most, side by side. A change that belongs to no crate (scripts, pages, manifests) is tried
by the rules of the house. With nothing touched, or with `--all`, everything is tried.

`make test` tries everything, in machines as well: this is no proof, it is quick.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
CARGO = os.environ.get("CARGO", "cargo")
# Of crates that depend on what was touched: test program, and what to run of it.
QUICK = {
    "tapdisk": [("lib", []), ("all", ["daemon_lifecycle"])],
    "tests": [("house", []), ("orders", []), ("canary", [])],
    "frontend": [("all", ["--skip", "real_clients"])],
    "disk": [("lib", [])],
    "engine": [("lib", [])],
    "vhd-rs": [("lib", [])],
    "vhd-util": [("all", ["check", "cli"])],
}
# A change of these is a change of everything.
ALL = ("Cargo.toml", "Cargo.lock", "rustfmt.toml", "clippy.toml")


def run(*command, **environment):
    """Runs a step, and says how long it took; ends here if it fails."""
    since = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False)
    print(f"check: {time.monotonic() - since:5.1f} s  {' '.join(command)}", flush=True)
    if done.returncode != 0:
        sys.exit(done.returncode)


def together(tests):
    """Builds test programs one by one, and runs them side by side: some of them mostly wait."""
    for command in tests:
        build = command[:command.index("--")] if "--" in command else command
        if "--doc" not in build:
            run(*build, "--no-run")

    def one(command):
        since = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TAPDISK_TESTS": "fast"},
                              check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return command, done, time.monotonic() - since

    failed = False
    with concurrent.futures.ThreadPoolExecutor((os.cpu_count() or 1) + 1) as pool:
        ends = [pool.submit(one, command) for command in tests]
        for end in concurrent.futures.as_completed(ends):
            command, done, took = end.result()
            sys.stdout.write(done.stdout.decode(errors="replace"))
            print(f"check: {took:5.1f} s  {' '.join(command)}", flush=True)
            failed |= done.returncode != 0
    if failed:
        sys.exit(1)


def output(*command):
    """What a command says."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def programs(target):
    """What cargo calls the tests of a target."""
    kind = target["kind"][0]
    if kind == "lib":
        return [("--lib",)] + [("--doc",)] * target["doctest"]
    return {"bin": [("--bins",)], "test": [("--test", target["name"])]}.get(kind, [])


def crates():
    """Folder, dependencies in the workspace, and test programs of each crate."""
    data = json.loads(output(CARGO, "metadata", "--no-deps", "--format-version", "1"))
    names = {package["name"] for package in data["packages"]}
    return {
        package["name"]: (
            pathlib.Path(package["manifest_path"]).parent.relative_to(ROOT),
            {dep["name"] for dep in package["dependencies"]} & names,
            sorted({which for target in package["targets"] for which in programs(target)}),
        )
        for package in data["packages"]
    }


def touched(base):
    """Files that differ from a commit, those that git does not know included."""
    names = output("git", "diff", "--name-only", base).splitlines()
    return names + output("git", "ls-files", "--others", "--exclude-standard").splitlines()


def owner(name, known):
    """The crate that a file is built into, or read by the tests of: that of the deepest folder."""
    path = pathlib.PurePath(name)
    if path.suffix != ".rs" and not {"data", "corpus"} & set(path.parts):
        return None
    inside = [crate for crate, (folder, *_) in known.items()
              if folder in path.parents]
    return max(inside, key=lambda crate: len(known[crate][0].parts), default=None)


def dependents(names, known):
    """All that is built of these."""
    found = set(names)
    while True:
        more = {crate for crate, (_, needs, _) in known.items() if needs & found} - found
        if not more:
            return found - set(names)
        found |= more


def everything():
    """All fast tests."""
    run(CARGO, "fmt", "--all", "--check")
    run(CARGO, "clippy", "--workspace", "--all-targets", "--", "-D", "warnings")
    run(CARGO, "build", "--workspace", "--bins")
    run(CARGO, "test", "--workspace", TAPDISK_TESTS="fast")


def quick(crate):
    """What is run of a crate that depends on what was touched."""
    for program, words in QUICK.get(crate, []):
        which = ["--lib"] if program == "lib" else ["--test", program]
        yield (CARGO, "test", "--quiet", "-p", crate, *which, "--", *words)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--all", action="store_true", help="everything, whatever was touched")
    words = parser.parse_args()
    names = [] if words.all else touched(os.environ.get("BASE", "HEAD"))
    if not names or any(name in ALL or name.endswith("/Cargo.toml") for name in names):
        return everything()
    known = crates()
    mine = {owner(name, known) for name in names} - {None}
    above = dependents(mine, known)
    print(f"check: touched: {', '.join(sorted(mine)) or 'no crate'}; "
          f"above: {', '.join(sorted(above)) or 'nothing'}", flush=True)
    run(CARGO, "fmt", "--all", "--check")
    tests = []
    if mine:
        packages = [word for crate in sorted(mine) for word in ("-p", crate)]
        run(CARGO, "clippy", "--quiet", *packages, "--all-targets", "--", "-D", "warnings")
        run(CARGO, "build", "--quiet", "--workspace", "--bins")
        tests += [(CARGO, "test", "--quiet", "-p", crate, *which)
                  for crate in sorted(mine) for which in known[crate][2]]
    if "tests" not in mine | above:
        tests.append((CARGO, "test", "--quiet", "-p", "tests", "--test", "house"))
    for crate in sorted(above):
        tests.extend(quick(crate))
    return together(tests)


if __name__ == "__main__":
    main()
