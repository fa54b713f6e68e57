# The machine without Xen: our blktap module (xen/blktap-dkms). First the module alone, with a server of the tests
# (blktap-ring), then tapdisk on it.
# shellcheck shell=bash disable=SC2119,SC2120
# shellcheck source=tests/vm/cases/lib.sh
export case_limit=${case_limit:-480}
. /share/vm/cases/lib.sh

nodes=/dev/xen/blktap-2
# Before the first tapdisk.
mkdir -p /run/blktap-control

clean_up() {
    umount -l /mnt
    local process tap
    for process in $(pidof tapdisk blktap-ring); do
        kill -9 "$process"
    done
    for tap in /sys/class/blktap2/blktap!blktap*; do
        [ ! -e "$tap" ] || tap-ctl free -m "${tap##*blktap}"
    done
    rm -rf /srv/* /run/blktap-control/*
}

show_state() {
    tap-ctl list
    ls -l $nodes
    grep -H . /sys/class/blktap2/devices /sys/class/blktap2/*/debug
    dmesg | tail -n 40
    tail -n 30 /var/log/blktap/*.log
}

# Everything the kernel complains of is an error here: the module is ours.
kernel_is_well() {
    local bad
    bad=$(dmesg | grep -E 'BUG|WARNING:|Oops|general protection|blocked for more than|segfault|possible recursive|inconsistent lock|possible circular|unreferenced object|suspicious RCU|Call Trace' || true)
    same "the kernel's messages" "" "$bad"
}

# No minor, no disk, no node is left.
nothing_more_left() {
    local left
    [ -e /sys/class/blktap2 ] || return 0
    await 20 "the last blktap-ring's end" sh -c '! pidof blktap-ring'
    left=$(find $nodes -mindepth 1 -name 'blktap*' -o -name 'tapdev*'; ls -d /sys/class/blktap2/blktap!blktap* /sys/block/td* 2>/dev/null || true)
    same "minors and disks at the end" "" "$left"
}

# Starts our own server on a file; sets server and disk. Its last words go to /srv/words.
ring() { # file, key=value ...
    rm -f /srv/words
    blktap-ring serve "$@" >/srv/words 2>/srv/errors &
    server=$!
    await 20 "blktap-ring's disk" sh -c "[ -s /srv/words ] || ! [ -e /proc/$server ]"
    [ -s /srv/words ] || fail "blktap-ring serve $*: $(cat /srv/errors)"
    read -r minor disk </srv/words
    await 10 "the node $disk" [ -b "$disk" ]
}

# Ends it as one should; what it counted is in /srv/words.
ring_ends() {
    kill -TERM "$server"
    wait "$server" || fail "blktap-ring: $(cat /srv/errors)"
    rm -f /srv/errors
}

counted() { # name
    sed -n "s/.*\\<$1=\\([0-9]*\\).*/\\1/p" /srv/words
}

case_ring_load() {
    modprobe blktap
    [ -c $nodes/control ] || fail "no $nodes/control"
    grep -q ' blktap/control$' /proc/misc || fail "not in /proc/misc"
    grep -q ' tapdev$' /proc/devices || fail "no major for disks"
}

# A file system on the module with our own server: every byte comes back, and the file is what the disk was.
case_ring_file_system() {
    truncate -s 128M /srv/disk
    ring /srv/disk
    disk-load write "$disk" depth=32 seed=3
    disk-load check "$disk" depth=32 seed=3
    mke2fs -q -t ext4 "$disk"
    mount "$disk" /mnt
    cp -a /usr/sbin /mnt/tree
    noise files 4 /mnt/noise
    (cd /mnt && find . -type f -print0 | sort -z | xargs -0 sha256sum) >/srv/sums
    umount /mnt
    mount "$disk" /mnt
    (cd /mnt && sha256sum --quiet -c /srv/sums)
    umount /mnt
    ring_ends
    e2fsck -fn /srv/disk
    rm /srv/*
}

case_ring_unload() {
    modprobe -r blktap
    [ ! -e /sys/class/blktap2 ] || fail "the class is still there"
    [ ! -e $nodes/control ] || fail "$nodes/control is still there"
    # For the cases that follow.
    modprobe blktap
}

run_cases "$@"
