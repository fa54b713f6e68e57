#!/usr/bin/env bash
# The main job before your eyes: a VHD is made, served by a tapdisk that tap-ctl starts, written and
# read over NBD, snapshotted under way, given back, and checked by other people's programs.
#
#   demo.sh [DIR]     DIR holds tap-ctl, tapdisk and vhd-util (default: target/release)
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
bin=${1:-${CARGO_TARGET_DIR:-$here/target}/release}
work=$(mktemp -d "${TMPDIR:-/tmp}/tapdisk-demo.XXXXXX")
pid='' minor=''

finish() {
    status=$?
    trap - EXIT
    # Only after a failure is there still a tapdisk.
    if [ -n "$pid" ]; then
        "$bin/tap-ctl" destroy -p "$pid" -m "$minor" || kill "$pid" || true
    fi
    rm -rf "$work"
    if [ "$status" -ne 0 ]; then
        echo "demo: FAILED (exit $status) in the step above" >&2
    fi
    exit "$status"
}
trap finish EXIT

number=0
step() {
    number=$((number + 1))
    printf '\n%d. %s\n' "$number" "$*"
}

# Shows a command as a person would type it, then runs it.
show() {
    local shown='' word
    for word in "$@"; do
        word=${word#"$bin/"}
        word=${word//"$work/"/}
        case $word in *[\ \?\&]*) word="'$word'" ;; esac
        shown+=" $word"
    done
    printf '   $%s\n' "$shown"
    "$@" | sed 's/^/     /'
}

die() {
    echo "demo: $*" >&2
    exit 1
}

# Starts a tapdisk for the image and sets pid, minor and uri.
serve() {
    local device listing
    printf '   $ tap-ctl create -a %s\n' "${1//"$work/"/}"
    device=$("$bin/tap-ctl" create -a "$1")
    printf '     %s\n' "$device"
    minor=${device##*-}
    listing=$("$bin/tap-ctl" list -m "$minor")
    printf '   $ tap-ctl list -m %s\n     %s\n' "$minor" "$listing"
    pid=$(sed -n 's/^pid=\([0-9]*\) .*/\1/p' <<<"$listing")
    [ -n "$pid" ] || die "tap-ctl list does not show the disk that tap-ctl create has made"
    socket=${device%/tapdisk/*}/nbd$pid.$minor
    [ -S "$socket" ] || die "no NBD socket at $socket"
    uri="nbd+unix:///?socket=$socket"
}

# A process that has ended, whether or not this machine's init has collected it.
ended() {
    ! grep -q '^State:[[:space:]]*[^ZX]' "/proc/$1/status" 2>/dev/null
}

give_back() {
    show "$bin/tap-ctl" destroy -p "$pid" -m "$minor"
    if "$bin/tap-ctl" list -m "$minor" | grep "pid=$pid " >/dev/null; then
        die "the disk is still listed"
    fi
    [ ! -e "$socket" ] || die "the socket $socket was left behind"
    ended "$pid" || timeout 10 tail -s 0.1 --pid="$pid" -f /dev/null || ended "$pid" ||
        die "tapdisk $pid is still running 10 s after tap-ctl destroy"
    pid=''
}

for program in tap-ctl tapdisk vhd-util; do
    [ -x "$bin/$program" ] || die "$bin/$program is not there: run 'make' first"
done
for program in qemu-img qemu-io nbdinfo; do
    command -v "$program" >/dev/null || die "$program is not installed: run 'make deps', or install qemu-utils and libnbd-bin"
done

echo "tapdisk demo, as $(id -un), locked-memory limit $(ulimit -l) KiB, files in $work"

step "Make an empty 64 MiB dynamic VHD: it takes only its metadata on the disk."
show "$bin/vhd-util" create -n "$work/base.vhd" -s 64
show "$bin/vhd-util" query -n "$work/base.vhd" -v -s
show qemu-img info "$work/base.vhd"

step "Serve it: tap-ctl starts a tapdisk of its own for the disk."
serve "vhd:$work/base.vhd"

step "What an NBD client sees."
show nbdinfo "$uri"

step "Write through NBD, and read it back."
show qemu-io -f raw -c "write -P 0x5a 1M 256k" -c "write -P 0xa5 33M 1536" -c flush "$uri"
show qemu-io -f raw -c "read -P 0x5a 1M 256k" -c "read -P 0xa5 33M 1536" -c "read -P 0 2M 64k" "$uri"

step "How the disk is doing."
if command -v python3 >/dev/null; then
    printf '   $ tap-ctl stats -p %s -m %s | python3 -m json.tool\n' "$pid" "$minor"
    "$bin/tap-ctl" stats -p "$pid" -m "$minor" | python3 -m json.tool | sed 's/^/     /'
else
    show "$bin/tap-ctl" stats -p "$pid" -m "$minor"
fi

step "Take a snapshot: pause, put a new layer on top, go on with that."
show "$bin/tap-ctl" pause -p "$pid" -m "$minor"
show "$bin/vhd-util" snapshot -n "$work/leaf.vhd" -p "$work/base.vhd"
sum=$(cksum <"$work/base.vhd")
show "$bin/tap-ctl" unpause -p "$pid" -m "$minor" -a "vhd:$work/leaf.vhd"
show "$bin/tap-ctl" list -m "$minor"

step "Write into the new layer; the snapshot below shows through where nothing was written."
show qemu-io -f raw -c "write -P 0x77 1M 4k" -c flush "$uri"
show qemu-io -f raw -c "read -P 0x77 1M 4k" -c "read -P 0x5a 1028k 252k" -c "read -P 0xa5 33M 1536" "$uri"

step "Give the disk back: the tapdisk ends."
give_back

step "Check both images; the base has not changed since the snapshot."
show "$bin/vhd-util" check -n "$work/base.vhd"
show "$bin/vhd-util" check -n "$work/leaf.vhd" -p
[ "$(cksum <"$work/base.vhd")" = "$sum" ] || die "base.vhd was written to under its snapshot"
echo "     base.vhd is byte for byte what it was"

step "Compare with a raw disk written by qemu-io alone: first the snapshot, read by qemu-img ..."
truncate -s 64M "$work/expected.raw"
show qemu-io -f raw -c "write -P 0x5a 1M 256k" -c "write -P 0xa5 33M 1536" "$work/expected.raw"
show qemu-img compare -f raw -F vpc "$work/expected.raw" "$work/base.vhd"

step "... then the layer on top of it, served once more (qemu-img cannot read a VHD chain)."
show qemu-io -f raw -c "write -P 0x77 1M 4k" "$work/expected.raw"
serve "vhd:$work/leaf.vhd"
show qemu-img compare -f raw -F raw "$work/expected.raw" "$uri"
give_back

printf '\nAll as it should be. The files in %s are removed now.\n' "$work"
