#!/usr/bin/env bash
# The demo by someone with less than root and the usual limits: an ordinary user, with the usual
# locked-memory limit and with smaller ones, and root without the capabilities that a container
# takes away. With the usual limit it has to work. With less it has to work or to end with a
# sentence that names RLIMIT_MEMLOCK (or `ulimit -l`), and to leave nothing behind.
#
#   ordinary-user.sh [DIR]     DIR holds tap-ctl, tapdisk and vhd-util (default: target/release)
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
bin=${1:-${CARGO_TARGET_DIR:-$here/target}/release}
usual_kib=8192
work=$(mktemp -d /tmp/tapdisk-user.XXXXXX)
trap 'rm -rf "$work"' EXIT

# The user may not be able to look into this tree, so the programs go along.
chmod 755 "$work"
mkdir "$work/bin" "$work/tmp"
cp "$bin/tap-ctl" "$bin/tapdisk" "$bin/vhd-util" "$work/bin/"
cp "$here/tests/demo.sh" "$work/"
chmod -R a+rX "$work"
chmod 1777 "$work/tmp"

if [ "$(id -u)" -eq 0 ]; then
    user=nobody
    as_user=(setpriv --reuid=nobody --regid=nogroup --clear-groups --)
else
    user=$(id -un)
    as_user=()
fi
uid=$(id -u "$user")

# Runs the demo in a bare environment; its output goes to $work/log.
demo() { # memlock-kib or '-' for the present limit, run directory, command prefix ...
    local kib=$1 run_dir=$2
    shift 2
    (
        cd "$work"
        [ "$kib" = - ] || ulimit -l "$kib"
        exec "$@" env -i PATH="$PATH" TMPDIR="$work/tmp" ${run_dir:+TAPDISK_RUN_DIR="$run_dir"} \
            bash "$work/demo.sh" "$work/bin"
    ) >"$work/log" 2>&1
}

fail() {
    cat "$work/log"
    echo "ordinary-user: FAILED: $*" >&2
    exit 1
}

# No daemon of ours may outlive the demo, and no socket.
nothing_left() { # run directory
    local exe left
    for exe in /proc/[0-9]*/exe; do
        [ "$(readlink "$exe" 2>/dev/null || true)" != "$work/bin/tapdisk" ] ||
            fail "a tapdisk was left running ($exe)"
    done
    left=$(find "$1" \( -name 'ctl[0-9]*' -o -name 'nbd[0-9]*' -o -name 'tapdisk-[0-9]*' \) 2>/dev/null || true)
    [ -z "$left" ] || fail "left behind: $left"
}

must_work() { # what, run directory (empty: default), demo arguments
    local what=$1 run_dir=$2 kib=$3
    shift 3
    demo "$kib" "$run_dir" "$@" || fail "$what"
    nothing_left "${run_dir:-/tmp/blktap-control-$uid}"
    echo "ordinary-user: works: $what"
}

works_or_says_why() {
    local what=$1 run_dir=$2 kib=$3
    shift 3
    if demo "$kib" "$run_dir" "$@"; then
        nothing_left "${run_dir:-/tmp/blktap-control-$uid}"
        echo "ordinary-user: works: $what"
    elif grep -Eq 'RLIMIT_MEMLOCK|ulimit -l|memlock' "$work/log"; then
        nothing_left "${run_dir:-/tmp/blktap-control-$uid}"
        echo "ordinary-user: refused with a reason: $what:"
        grep -Em1 'RLIMIT_MEMLOCK|ulimit -l|memlock' "$work/log" | sed 's/^/    /'
    else
        fail "$what: it neither works nor names the limit"
    fi
}

hard=$(ulimit -Hl)
if [ "$hard" != unlimited ] && [ "$hard" -lt "$usual_kib" ]; then
    echo "ordinary-user: this shell may lock only $hard KiB, so that is what counts as usual here"
    usual_kib=$hard
fi

mkdir -m 1777 "$work/run"
must_work "user $user, $usual_kib KiB may be locked" "" "$usual_kib" "${as_user[@]}"
must_work "user $user, run directory of their choice" "$work/run/own" "$usual_kib" "${as_user[@]}"
for kib in 4096 1024 512 64 0; do
    [ "$kib" -lt "$usual_kib" ] || continue
    works_or_says_why "user $user, $kib KiB may be locked" "" "$kib" "${as_user[@]}"
done
if [ "$(id -u)" -eq 0 ]; then
    must_work "root without CAP_SYS_RESOURCE and CAP_SYS_NICE, as in a container" "$work/run/root" "$usual_kib" \
        setpriv --bounding-set=-sys_resource,-sys_nice --
    works_or_says_why "root without CAP_SYS_RESOURCE and CAP_IPC_LOCK, 512 KiB" "$work/run/root2" 512 \
        setpriv --bounding-set=-sys_resource,-ipc_lock --
else
    echo "ordinary-user: SKIPPED: root without capabilities (this needs to be started as root)"
fi
