#!/usr/bin/env bash
# QEMU's own test suite for block devices against our daemon and tools: the tests that need no
# virtual machine.
#
#   run.sh [raw | vhd | chain | vpc | qemu] ...     all but qemu when none is named
#
#   raw, vhd, chain   the list for raw images over NBD, where tapdisk stands in for qemu-nbd and serves a raw
#                     image, a VHD with the same contents, or the top of a chain of three
#   vpc               the list for VHDs, where each qemu-io works on the image through tapdisk, and vhd-util checks
#                     the image after it
#   qemu              both lists with QEMU's own programs: what they do where nothing of ours is in the way
#
# The suite is QEMU's source package (Debian's), fetched through an apt of its own into the cache
# and never a part of this project; qemu-img, qemu-io and qemu-nbd are the installed ones.
# docs/foreign-suites.md has the lists with their reasons. BIN: where our programs are
# (target/release).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
BIN=${BIN:-${CARGO_TARGET_DIR:-$top/target}/release}
suite_release=trixie

say() { echo "iotests: $*" >&2; }
die() {
    say "$*"
    exit 1
}
cannot() {
    say "$1"
    die "QEMU's tests cannot be had; without a network, copy $cache from a machine where this has worked"
}
cache=${XDG_CACHE_HOME:-${HOME:?set HOME or XDG_CACHE_HOME}/.cache}/tapdisk-rs/iotests
# shellcheck source=tests/vm/apt.sh
. "$top/tests/vm/apt.sh"

# For raw images over NBD.
raw_list=(001 002 003 004 005 008 009 010 011 021 032 033 077 083 104 123 197 215 259)
# For VHDs in files.
vpc_list=(001 002 003 008 009 010 011 012 021 032 033 052 072 088 135 159 170 197 215 226)
# These bring a server of their own, or open the images in ways that no shim sees: nothing of ours
# is used.
not_ours='raw:083 raw:259 vhd:083 vhd:259 chain:083 chain:259 vpc:033 vpc:135 vpc:226'
# Known failures, each with its reason in docs/foreign-suites.md.
known='chain:104 vpc:088'

# The suite, one copy a version, without the rest of QEMU.
fetch() {
    local new=$cache/new
    command -v apt-get >/dev/null || cannot "this is no Debian: there is no apt-get here"
    rm -rf "$new"
    mkdir -p "$new"
    (
        private_apt "$cache/apt" deb-src "$suite_release"
        say "fetching QEMU's source package ($suite_release) into $cache"
        apt-get update -qq -o APT::Update::Error-Mode=any >&2 || cannot "apt-get update failed"
        cd "$new"
        apt-get source -qq --download-only qemu >&2 || cannot "apt-get source failed"
        tar xf qemu_*.orig.tar.* --wildcards '*/tests/qemu-iotests/*' '*/python/*' '*/VERSION'
        rm -f qemu_*
        mv qemu-* qemu
    )
    # The suite waits a second for its server, and hopes; ours may take longer where the machine is
    # busy.
    sed -i 's/^\( *\)sleep 1 # FIXME: qemu-nbd needs to be listening.*/\1_wait_for_nbd/' \
        "$new/qemu/tests/qemu-iotests/common.rc"
    grep -q '^ *_wait_for_nbd$' "$new/qemu/tests/qemu-iotests/common.rc" ||
        die "the suite starts its server in another way: look at common.rc in $new"
    cat >>"$new/qemu/tests/qemu-iotests/common.rc" <<'WAIT'

_wait_for_nbd()
{
    local i
    for i in $(seq 1200); do
        [ ! -e "$SOCK_DIR/nbd" ] || return 0
        sleep 0.05
    done
    echo "no NBD server within a minute"
}
WAIT
    rm -rf "$cache/qemu"
    mv "$new/qemu" "$cache/qemu"
}

for tool in qemu-img qemu-io qemu-nbd python3 flock; do
    command -v "$tool" >/dev/null || die "$tool is missing: tests/deps.sh test"
done
for tool in tap-ctl tapdisk vhd-util; do
    [ -x "$BIN/$tool" ] || die "$BIN/$tool is not there: make"
done
mkdir -p "$cache"
exec 9>"$cache/lock"
flock -n 9 || { say "another run fetches the suite; waiting for it" && flock 9; }
[ -e "$cache/qemu/tests/qemu-iotests/check" ] || fetch
exec 9>&-

# Sockets have short names, and some tests want a folder with no dot in its name.
work=$(mktemp -d /tmp/iotestsXXXXXX)
clean_up() {
    local pid minor
    for pid in $(cat "$work"/scratch/*.pid 2>/dev/null || true); do kill "$pid" 2>/dev/null || true; done
    tap-ctl list 2>/dev/null | sed -n 's/^pid=\([0-9]*\) minor=\([0-9]*\) .*/\1 \2/p' | while read -r pid minor; do
        tap-ctl destroy -p "$pid" -m "$minor" || true
    done
    rm -rf "$work"
}
trap clean_up EXIT
cp -r "$cache/qemu" "$work/qemu"
truncate -s 0 "$work/served" "$work/complaints"

export PATH=$BIN:$PATH TAPDISK_RUN_DIR=$work/run IOTESTS_WORK=$work
export QEMU_PROG=$here/no-vm QSD_PROG=$here/no-vm TEST_DIR=$work/scratch SOCK_DIR=$work/sock
QEMU_IMG_PROG=$(command -v qemu-img) IOTESTS_QEMU_IO=$(command -v qemu-io)
export QEMU_IMG_PROG IOTESTS_QEMU_IO
own_nbd=$(command -v qemu-nbd)
say "the suite of QEMU $(cat "$cache/qemu/VERSION"), programs: $(qemu-img --version | head -n 1)"

in_list() { # what, list
    case " $2 " in *" $1 "*) true ;; *) false ;; esac
}

# One test; the outcome is a word, what is wrong goes to standard error.
run_one() { # kind, test, options of check ...
    local kind=$1 test=$2 output=$work/output status=0
    shift 2
    truncate -s 0 "$work/served" "$work/complaints"
    (cd "$work/qemu/tests/qemu-iotests" && python3 ./check "$@" "$test") >"$output" 2>&1 || status=$?
    # The last server of a test ends after it; this waits for that.
    flock -w 60 "$work/lock" true || echo "$test: the last server does not end" >>"$work/complaints"
    if [ $status -ne 0 ] || [ -s "$work/complaints" ]; then
        outcome=FAILED
        { cat "$work/complaints" && tail -n 60 "$output"; } >&2
    elif grep -q "not run" "$output"; then
        outcome='not run'
    elif [ "$own" = no ] && [ ! -s "$work/served" ] && ! in_list "$kind:$test" "$not_ours"; then
        outcome='FAILED (nothing of ours was used)'
    else
        outcome=ok
    fi
}

failed=0
run_list() { # kind, options of check ... -- tests ...
    local kind=$1 passed=0 options=()
    shift
    while [ "$1" != -- ]; do options+=("$1") && shift; done
    shift
    local all=$#
    for test in "$@"; do
        run_one "$kind" "$test" "${options[@]}"
        if in_list "$kind:$test" "$known"; then
            case $outcome in
                FAILED) outcome='failed, as known' ;;
                *) outcome="FAILED: it is on the list of known failures and ended with: $outcome" ;;
            esac
        fi
        case $outcome in
            ok) passed=$((passed + 1)) ;;
            FAILED* | 'not run') failed=$((failed + 1)) ;;
        esac
        echo "iotests $kind: $test ... $outcome"
    done
    echo "iotests $kind: $passed of $all passed"
}

[ $# -gt 0 ] || set -- raw vhd chain vpc
for kind in "$@"; do
    own=no
    case $kind in
        raw | vhd | chain)
            export IOTESTS_KIND=$kind QEMU_NBD_PROG=$here/qemu-nbd QEMU_IO_PROG=$IOTESTS_QEMU_IO
            run_list "$kind" -raw -nbd -- "${raw_list[@]}"
            ;;
        vpc)
            export QEMU_NBD_PROG=$own_nbd QEMU_IO_PROG=$here/qemu-io
            run_list vpc -vpc -- "${vpc_list[@]}"
            ;;
        qemu)
            own=yes
            export QEMU_NBD_PROG=$own_nbd QEMU_IO_PROG=$IOTESTS_QEMU_IO
            run_list qemu-raw -raw -nbd -- "${raw_list[@]}"
            run_list qemu-vpc -vpc -- "${vpc_list[@]}"
            ;;
        *) die "there is no list $kind; raw, vhd, chain, vpc and qemu are" ;;
    esac
done
[ $failed -eq 0 ]
