# Sourced by the lists of cases, inside the machine. A list defines functions named case_*, in the
# order in which they run, and ends with `run_cases "$@"`. Each case runs in a shell of its own with
# a limit, so that one that fails or hangs takes nothing away from the next; its last act is
# `nothing_left`.
# shellcheck shell=bash

# A case may take this long on a busy host; the usual is a twentieth of it.
limit=${case_limit:-900}
results=/share/results

# Of this kernel, since the last dmesg -C.
kernel_complaints() {
    dmesg | grep -E 'I/O error|EXT4-fs error|WARNING:|BUG:' || true
}

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# Waits until a command succeeds; for what sends no event.
await() { # seconds, what is awaited, command ...
    local until=$((SECONDS + $1)) what=$2 -
    set +x
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || fail "$what: not within the limit"
        sleep 0.1
    done
}

same() { # what, expected, found
    [ "$2" = "$3" ] || fail "$1: expected $2, found $3"
}

# Ends with a status and a sentence on standard error.
refused() { # status, words, command ...
    local status=0 wanted=$1 words=$2 said
    shift 2
    said=$(TAP_CTL_VERBOSE=1 "$@" 2>&1) || status=$?
    same "status of $* ($said)" "$wanted" "$status"
    case $said in *"$words"*) ;; *) fail "$* says: $said" ;; esac
}

sum_of() { sha256sum <"$1" | cut -c1-64; }

# Bytes that compress badly and are the same at every run.
noise() { # seed, MiB, file
    local i -
    set +x
    for ((i = 0; i < $2; i++)); do
        # One MiB made of a hash that no other MiB has.
        head -c 1048576 < <(yes "$(echo "$1 $i" | sha256sum)" 2>/dev/null || true)
    done >"$3"
}

# shellcheck disable=SC2154 # disk is the list's
# A file system on $disk with files in it, whose sums are kept: noise, and a copy of these files and
# folders.
fill_disk() { # MiB of noise, what to copy ... [-- options of mke2fs]
    local mib=$1
    shift
    local -a copied=()
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        copied+=("$1")
        shift
    done
    mke2fs -q -t ext4 "${@:2}" "$disk"
    mount "$disk" /mnt
    noise files "$mib" /mnt/noise
    cp -a "${copied[@]}" /mnt
    # Large, and more of the same.
    rm -rf /mnt/sbin/xen* /mnt/sbin/qemu*
    (cd /mnt && find . -type f -print0 | sort -z | xargs -0 sha256sum) >/srv/sums
    umount /mnt
}

# The same files are there, seen by other programs: a raw image is mounted through a loop device.
files_are_there() { # raw image
    e2fsck -fn "$1"
    mount -o loop,ro "$1" /mnt
    (cd /mnt && sha256sum --quiet -c /srv/sums)
    umount /mnt
}

# A disk of the kernel's own that holds its data in memory and can be made with any sectors; sets
# scsi_disk, its name.
scsi_disk() { # parameters of scsi_debug
    modprobe scsi_debug "$@"
    await 20 "the scsi_debug disk" sh -c 'ls /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/'
    # shellcheck disable=SC2012,SC2034
    scsi_disk=$(ls /sys/bus/pseudo/drivers/scsi_debug/adapter*/host*/target*/*/block/)
}

# Starts a tapdisk for an image; sets pid, minor and socket.
serve() { # type:path, more options of tap-ctl create
    local device
    device=$(tap-ctl create -a "$@") || fail "tap-ctl create -a $*"
    minor=${device##*-}
    pid=$(tap-ctl list -m "$minor" | sed -n 's/^pid=\([0-9]*\) .*/\1/p')
    socket=/run/blktap-control/nbd$pid.$minor
    [ -S "$socket" ] || fail "no socket $socket"
}

# What tapdisk promises of its data path: it asks for no memory while it serves, and waits for no
# page.
promises_kept() {
    local stats
    stats=$(tap-ctl stats -p "$pid" -m "$minor")
    case $stats in
        *'"sealed": { "allocations": 0 }'*'"faults": { "major": 0,'*) ;;
        *) fail "allocations or page faults while serving: $stats" ;;
    esac
}

give_back() {
    promises_kept
    tap-ctl destroy -p "$pid" -m "$minor"
}

# No tapdisk, no socket, no mount, no client: the machine is as it was.
nothing_left() {
    local left
    await 20 "the last tapdisk's end" sh -c '! pidof tapdisk'
    left=$(tap-ctl list)
    same "tap-ctl list at the end" "" "$left"
    left=$(find /run/blktap-control -name 'nbd[0-9]*' -o -name 'ctl[0-9]*')
    same "sockets at the end" "" "$left"
    left=$(grep -E ' (/mnt|/media)' /proc/mounts || true)
    same "mounts at the end" "" "$left"
    nothing_more_left
}

# What else a list knows that must not be left.
nothing_more_left() { :; }

# After a failure: what a person would want to see. A list may define more.
show_state() {
    tap-ctl list 2>&1 || true
    dmesg | tail -n 15
    tail -n 20 /var/log/blktap/*.log 2>/dev/null || true
}

# After a failure, so that the next case starts from nothing. A list may define more.
clean_up() { :; }

# The kernel reports what must never happen, whatever the case was about.
kernel_is_well() {
    local bad
    bad=$(dmesg | grep -E 'BUG:|Oops|general protection|blocked for more than|segfault' || true)
    same "the kernel's messages" "" "$bad"
}

run_one() {
    set -eEuo pipefail
    trap 'echo "FAILED: line $LINENO: $BASH_COMMAND" >&2' ERR
    # Seconds before every step, to see what took long.
    PS4='[$SECONDS s] '
    set -x
    "case_$1"
    nothing_left
    kernel_is_well
}

run_cases() {
    local name started
    if [ "${1:-}" = one ]; then
        run_one "$2"
        exit 0
    fi
    local -a chosen=("$@")
    [ $# -gt 0 ] || mapfile -t chosen < <(sed -n 's/^case_\([a-z0-9_]*\)() {$/\1/p' "$0")
    printf '%s\n' "${chosen[@]}" >"$results.planned"
    : >"$results"
    for name in "${chosen[@]}"; do
        started=$SECONDS
        echo "--- $name"
        if timeout -k 10 "$limit" bash "$0" one "$name" </dev/null >"/share/$name.log" 2>&1; then
            echo "ok $name $((SECONDS - started))" | tee -a "$results"
        else
            show_state >>"/share/$name.log" 2>&1
            clean_up >>"/share/$name.log" 2>&1
            dmesg -C
            echo "FAILED $name $((SECONDS - started))" | tee -a "$results"
        fi
    done
    ! grep -q '^FAILED' "$results"
}
