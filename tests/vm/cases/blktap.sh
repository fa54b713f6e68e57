# The machine without Xen: our blktap module (xen/blktap-dkms). First the module alone, with a
# server of the tests (blktap-ring), then tapdisk on it.
# shellcheck shell=bash disable=SC2119,SC2120
# shellcheck source=tests/vm/cases/lib.sh
# The kernel for debugging (debug-kernel.sh) does all of it as well, some times slower.
leaks=/sys/kernel/debug/kmemleak
slower=1
if [ -e $leaks ]; then
    slower=4
    # Each case does it itself, when there is little to look at: it takes minutes with all minors
    # there.
    echo scan=off >$leaks
fi
export case_limit=${case_limit:-$((480 * slower))}
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
        [ ! -e "$tap" ] || blktap-ring free "${tap##*blktap}"
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
    bad=$(dmesg | grep -E 'BUG|WARNING:|Oops|general protection|blocked for more than|segfault|possible recursive|inconsistent lock|possible circular|ODEBUG|suspicious RCU|Call Trace' || true)
    same "the kernel's messages" "" "$bad"
    # What is older than five seconds, so that the last case looks for all.
    [ ! -e $leaks ] || echo scan >$leaks
    [ ! -e $leaks ] || same "memory that nobody refers to" "" "$(cat $leaks)"
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

# A file system on the module with our own server: every byte comes back, and the file is what the
# disk was.
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

# Every error of the interface, sizes and flags as the block layer sees them, sysfs.
case_ring_errors() {
    blktap-ring errors
}

# What may be done with the mapping; device I/O between its pages and a file, also while the ring
# goes away.
case_ring_mappings() {
    truncate -s 2M /srv/file
    blktap-ring mappings /srv/file
    rm /srv/*
}

# Flush, FUA, discard and zeroes come as such, and only when they were asked for.
case_ring_operations() {
    truncate -s 64M /srv/disk
    ring /srv/disk log=/srv/log
    blkdiscard -o 1M -l 2M "$disk"
    blkdiscard -z -o 4M -l 1M "$disk"
    fallocate -p -o 8M -l 64K "$disk"
    dd if=/dev/zero of="$disk" bs=64K count=1 oflag=direct,dsync status=none
    dd if=/dev/zero of="$disk" bs=64K count=1 oflag=direct conv=fsync status=none
    ring_ends
    grep -q '^3 2048 4096 0$' /srv/log || fail "no trim"
    grep -q '^4 8192 2048 [02]$' /srv/log || fail "no zeroes"
    grep -q '^4 16384 128 ' /srv/log || fail "no zeroes of fallocate"
    # 64 KiB in pieces of 44 KiB, each with FUA.
    same "a write with FUA" "1 0 88 1 1 88 40 1" "$(grep -m2 '^1 ' /srv/log | xargs)"
    [ "$(counted flush)" -ge 1 ] || fail "no flush after fsync"
    same "writes with FUA" 2 "$(counted fua)"

    # Without the flags none of it comes: the kernel writes zeros instead, and has nothing to flush.
    ring /srv/disk flags=0x400
    if blkdiscard "$disk"; then fail "a disk without TRIM was trimmed"; fi
    blkdiscard -z -o 4M -l 1M "$disk"
    dd if=/dev/zero of="$disk" bs=64K count=1 oflag=direct,dsync status=none
    ring_ends
    same "trims, zeroes, flushes and FUA" "0 0 0 0" "$(counted trim) $(counted zeroes) $(counted flush) $(counted fua)"
    [ "$(counted write)" -ge 24 ] || fail "zeros were not written"

    # FLUSH without FUA: a flush comes after the write.
    ring /srv/disk flags=0x404
    dd if=/dev/zero of="$disk" bs=4K count=1 oflag=direct,dsync status=none
    ring_ends
    same "FUA" 0 "$(counted fua)"
    [ "$(counted flush)" -ge 1 ] || fail "no flush in place of FUA"

    # "Not supported" once: the kernel goes on by writing, and does not ask again.
    ring /srv/disk unsupported=4 log=/srv/log
    blkdiscard -z -o 4M -l 64K "$disk"
    blkdiscard -z -o 4M -l 64K "$disk"
    same "limit of zeroes" 0 "$(cat /sys/block/tda/queue/write_zeroes_max_bytes)"
    ring_ends
    same "zeroes that were asked for" 1 "$(counted zeroes)"
    rm /srv/*
}

# One step below all others: the programs of before, that poll, and know no flags.
case_ring_old_protocol() {
    truncate -s 64M /srv/disk
    ring /srv/disk flags=0
    disk-load write "$disk" depth=32 seed=9
    disk-load check "$disk" depth=32 seed=9
    ring_ends
    rm /srv/*
}

# Sectors of 4096 bytes: nothing smaller is asked for; device I/O by the server on its data pages.
case_ring_large_sectors() {
    truncate -s 64M /srv/disk
    ring /srv/disk sector=4096 direct=1 log=/srv/log
    same "sector size" 4096 "$(blockdev --getss "$disk")"
    disk-load write "$disk" depth=32 seed=4
    mke2fs -q -t ext4 -b 4096 "$disk"
    mount "$disk" /mnt
    cp /usr/bin/bash /mnt/
    umount /mnt
    ring_ends
    if awk '$2 % 8 || $3 % 8 { bad = 1 } END { exit !bad }' /srv/log; then fail "parts of a sector"; fi
    e2fsck -fn /srv/disk
    rm /srv/*
}

# Read-only is what it says.
case_ring_read_only() {
    truncate -s 16M /srv/disk
    ring /srv/disk flags=0x401
    if dd if=/dev/zero of="$disk" bs=4K count=1 oflag=direct status=none; then fail "written to"; fi
    dd if="$disk" of=/dev/null bs=1M status=none
    ring_ends
    same "writes" 0 "$(counted write)"
    rm /srv/*
}

# Killed under a mounted file system in use: writers get errors, it can be unmounted, the minor is
# free, a new server serves the file, and the file system is as a power cut leaves it.
case_ring_killed_under_a_file_system() {
    truncate -s 64M /srv/disk
    local answers
    for answers in 100000 900 60; do
        ring /srv/disk
        mke2fs -q -F -t ext4 "$disk"
        ring_ends
        ring /srv/disk answers=$answers
        # With few answers it hangs until the kill; that is what is tried.
        (
            mount "$disk" /mnt && while echo more >>/mnt/file && sync -f /mnt; do :; done
        ) 2>/srv/writer &
        local writer=$!
        if [ $answers = 100000 ]; then
            await 60 "the file system" [ -s /mnt/file ]
        else
            await 60 "the last answer" grep -q 'answered [0-9]*, outstanding [1-9]' "/sys/class/blktap2/blktap!blktap$minor/debug"
        fi
        kill -9 "$server"
        wait "$server" || true
        wait $writer || true
        [ -s /srv/writer ] || fail "the writer saw no error"
        if grep -q ' /mnt ' /proc/mounts; then umount /mnt; fi
        blktap-ring free "$minor"
        [ ! -e "$disk" ] || fail "$disk is still there"
        e2fsck -fp /srv/disk || [ $? -le 2 ] || fail "the file system is broken"
    done
    rm /srv/*
}

# Nonsense in the ring, of every kind and by chance.
case_ring_hostile() {
    blktap-ring hostile 1 40
}

# Rings that end under I/O, hundreds of times.
case_ring_teardown() {
    truncate -s 16M /srv/disk
    blktap-ring teardown 1 $((400 / slower)) /srv/disk
    rm /srv/*
}

# All minors; then none is left.
case_ring_all_minors() {
    blktap-ring exhaust
}

# The module cannot go while anything of it is in use, and leaves nothing behind.
case_ring_unload() {
    truncate -s 16M /srv/disk
    ring /srv/disk
    if modprobe -r blktap; then fail "unloaded while a disk is served"; fi
    exec 8<"$disk"
    kill -9 "$server"
    wait "$server" || true
    blktap-ring free "$minor"
    # The disk is gone, and a process has it open.
    if modprobe -r blktap; then fail "unloaded while a dead disk is open"; fi
    exec 8<&-
    await 20 "unloading" modprobe -r blktap
    [ ! -e /sys/class/blktap2 ] || fail "the class is still there"
    [ ! -e $nodes/control ] || fail "$nodes/control is still there"
    if grep -E 'blktap|tapdev' /proc/devices /proc/misc; then fail "numbers are still taken"; fi
    local i
    for i in 1 2 3 4 5; do
        modprobe blktap
        modprobe -r blktap
    done
    rm /srv/*
    # For the cases that follow.
    modprobe blktap
}

run_cases "$@"
