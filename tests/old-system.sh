#!/usr/bin/env bash
# The programs for old systems (packaging/portable.sh) with the system calls of Linux 4.19, dom0's
# in XCP-ng 8.3: the demo, the recorded runs of the original, daemon and tools, images on devices,
# crashes, damage.
#
#   old-system.sh PROGRAMS     the folder that portable.sh has filled
#
# That the C library is an old one is checked by what the programs need of it (packaging/glibc.sh);
# no system of that age is at hand here to run them in.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
programs=$(cd "$1" && pwd)
cargo=${CARGO:-cargo}
target=${CARGO_TARGET_DIR:-$here/target}
filter=$target/debug/old-kernel
work=$(mktemp -d "${TMPDIR:-/tmp}/tapdisk-old.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$here"

fail() {
    echo "old-system: FAILED: $*" >&2
    exit 1
}

[ "$(uname -m)" = x86_64 ] ||
    { echo "old-system: SKIPPED: the old systems are x86_64, and so is the filter" >&2; exit 0; }

# What decides what may be packed, first: it has to find what is too new.
packaging/glibc.sh 2.17 "$programs"/*
for limit in 2.2.5 2.16; do
    if said=$(packaging/glibc.sh $limit "$programs/tapdisk" 2>&1); then
        fail "glibc.sh finds nothing of 2.17 in $programs/tapdisk"
    fi
    [[ $said == *"needs GLIBC_2.17, limit GLIBC_$limit: "*clock_gettime* ]] ||
        fail "glibc.sh does not name the symbols: $said"
done
if packaging/glibc.sh 2.17 "$here/Makefile" 2>/dev/null; then
    fail "glibc.sh takes a text for a program"
fi
echo 'int main(void) { return 0; }' | cc -x c -o "$work/native" -
if [ "$(getconf GNU_LIBC_VERSION | sed 's/.* 2\.//')" -ge 34 ] && packaging/glibc.sh 2.17 "$work/native" 2>/dev/null; then
    fail "glibc.sh takes a program that this machine's compiler has linked"
fi

"$cargo" build --quiet --workspace --bins
"$filter" --check
mkdir "$work/bin"
for program in "$programs"/*; do
    printf '#!/bin/sh\nexec "%s" "%s" "$@"\n' "$filter" "$program" >"$work/bin/${program##*/}"
done
chmod 755 "$work/bin/"*

# What these systems' C library and kernel make of it is on the daemon's list, or it dies.
export TAPDISK_SANDBOX=kill
tests/demo.sh "$work/bin" >"$work/log" 2>&1 || { cat "$work/log"; fail "the demo"; }
grep -q 'linux-aio: io_uring fails here' "$work/log" ||
    fail "the demo did not run on what an old kernel has"
echo "old-system: the demo passes"

export TAPDISK_TESTS_BIN=$work/bin
"$cargo" test --quiet -p tap-ctl --tests
"$cargo" test --quiet -p vhd-util --tests
"$cargo" test --quiet -p cbt-util -p td-util --tests
"$cargo" test --quiet -p tapback --test all program
# Not in it: who is left with how many descriptors, as the filter's own shell needs some; and
# daemon_locks, whose storage hangs: with Linux AIO a killed process waits for it.
"$cargo" test --quiet -p tapdisk --test all daemon_ -- --skip daemon_locks:: \
    --skip daemon_rings:: --skip a_start_that_fails_says_why_and_leaves_nothing
"$cargo" test --quiet -p tests --test golden
# Of each pair of cases one: under the filter both are on Linux AIO, and this one finds that out by
# itself.
"$cargo" test --quiet -p tests --test conformance -- --skip ::aio
echo "old-system: daemon and tools pass with glibc 2.17's symbols and Linux 4.19's system calls"
