#!/usr/bin/env bash
# In a machine with little memory: one scenario in which the memory of the machine can only become
# free through a disk that a user-space process serves. Started by tests/vm/pressure.py.
#
#   pressure.sh SCENARIO DEVICE ENGINE FORMAT DAEMON [LEFT_OUT]
#
#   SCENARIO swap, files, stack, burst      DEVICE ublk, blktap (our module), nbd      ENGINE uring, aio      FORMAT raw, vhd
#   DAEMON   protected (the program that is installed), unprotected (the control; LEFT_OUT: which protections
#            it goes without, all by default), qemu-nbd (with the kernel's NBD client), loop (the kernel's own
#            driver, for comparison)
#
# A task that hangs ends the machine. What came of the rest is in /share/result, a line `key value`
# each.
# shellcheck disable=SC2012
set -euo pipefail
# shellcheck source=tests/vm/cases/lib.sh
. /share/vm/cases/lib.sh
scenario=$1 device=$2 engine=$3 format=$4 daemon=$5 left_out=${6:-}
seconds=${SECONDS_OF_LOAD:-10}
result=/share/result
: >$result

note() { echo "$*" >>$result; }

fail() {
    note "failed $*"
    echo "pressure: FAILED: $*"
    exit 1
}
trap 'fail "line $LINENO: $BASH_COMMAND"' ERR

hung_tasks_end_the_machine() {
    sysctl -q kernel.hung_task_check_interval_secs=5 kernel.hung_task_timeout_secs=20 kernel.hung_task_panic=1 \
        kernel.soft_watchdog=1 kernel.watchdog_thresh=30 kernel.softlockup_panic=1 kernel.panic_on_oops=1 kernel.panic=1
    same "hung tasks end the machine" 1 "$(cat /proc/sys/kernel/hung_task_panic)"
}

mib_available() { awk '/^MemAvailable/ { print int($2 / 1024) }' /proc/meminfo; }

# ---- the disk ------------------------------------------------------------------------------------------------
image_mib=512

# The image is on a disk of its own; sparse, so that writes allocate blocks of its file system.
make_image() {
    local store=/dev/vdb
    if [ "$scenario" = stack ]; then
        echo 1 >/sys/module/dm_mod/parameters/reserved_bio_based_ios
        store=$(pressure dm under "0 $(blockdev --getsz /dev/vdb) linear /dev/vdb 0")
    fi
    if [ "$format" = block ]; then
        image=$store
        return
    fi
    if [ "$scenario" = stack ] && [ "$format" = raw ]; then
        image=$store
        return
    fi
    mke2fs -q -t ext4 "$store"
    mkdir -p /store
    mount "$store" /store
    image=/store/disk.$format
    case $format in
        raw) truncate -s ${image_mib}M "$image" ;;
        vhd) vhd-util create -n "$image" -s $image_mib ;;
    esac
}

# The daemon is started in the group of processes that is short of memory, if there is one.
serve_device() {
    [ "$scenario" != files ] || echo $BASHPID >/sys/fs/cgroup/pressed/cgroup.procs
    case $daemon in
        qemu-nbd)
            local aio=native
            [ "$engine" = aio ] || aio=io_uring
            qemu-nbd -c /dev/nbd0 -f "${format/vhd/vpc}" --cache=none --aio=$aio "$image" >/share/qemu-nbd.log 2>&1
            disk=/dev/nbd0
            await 20 "nbd0" test -e /sys/block/nbd0/pid
            pid=$(pidof qemu-nbd)
            ;;
        loop)
            disk=$(losetup -f --show --direct-io=on "$image")
            # It has no process; its worker is one of many.
            pid=2
            ;;
        *)
            export TAPDISK_ENGINE=$engine
            [ -z "$left_out" ] || export UNPROTECTED=$left_out
            local type=vhd
            [ "$format" = vhd ] || type=aio
            disk=$(tap-ctl create -a "$type:$image" --device)
            case $device:$disk in
                ublk:/dev/ublkb* | blktap:/dev/xen/blktap-2/tapdev*) ;;
                *) fail "$disk is no device of $device" ;;
            esac
            read -r pid minor < <(tap-ctl list | sed -n 's/^pid=\([0-9]*\) minor=\([0-9]*\) .*/\1 \2/p')
            ;;
    esac
    note "pid $pid"
    note "disk $disk"
}

sectors() { blockdev --getsz "$1"; }

# Two disks out of one.
split_device() { # device
    local half=$(($(sectors "$1") / 2))
    swap=$(pressure dm swap "0 $half linear $1 0")
    files=$(pressure dm files "0 $half linear $1 $half")
}

# ---- loads ---------------------------------------------------------------------------------------------------
loads=()
load() { # command ...
    "$@" >>/share/loads 2>&1 &
    loads+=($!)
}

# All of them end well.
wait_for_loads() {
    local one status
    for one in "${loads[@]}"; do
        status=0
        wait "$one" || status=$?
        [ $status -eq 0 ] || fail "a load ended with $status: $(tail -n 1 /share/loads)"
    done
    loads=()
}

# In three parts.
hogs() { # seconds, hundredths of the memory that is available
    local each=$(($(mib_available) * $2 / 300)) n
    for n in 1 2 3; do
        load pressure hog $each "$1" $n
    done
}

writers() { # seconds
    load pressure files /mnt 64 "$1" 11
    load pressure files /mnt 32 "$1" 12
}

swap_on() {
    mkswap "$1" >/dev/null
    swapon "$1"
}

scenario_swap() {
    swap_on "$disk"
    hogs "$seconds" 130
    wait_for_loads
    swapoff "$disk"
}

# Dirty pages may be most of the memory, and the group's limit is tight; the daemon is in the group.
scenario_files() {
    sysctl -q vm.dirty_background_ratio=50 vm.dirty_ratio=80
    mke2fs -q -t ext4 "$disk"
    mount "$disk" /mnt
    (
        echo $BASHPID >/sys/fs/cgroup/pressed/cgroup.procs
        writers "$seconds"
        wait_for_loads
    )
    umount /mnt
    e2fsck -fn "$disk" >/share/fsck 2>&1
}

# dm-crypt and dm-linear over the device, dm-linear under its image, both swap and file system.
scenario_stack() {
    local key crypt
    key=$(head -c 64 /dev/zero | tr '\0' 7 | head -c 64)
    crypt=$(pressure dm crypt "0 $(sectors "$disk") crypt aes-xts-plain64 $key 0 $disk 0")
    split_device "$crypt"
    swap_on "$swap"
    mke2fs -q -t ext4 "$files"
    mount "$files" /mnt
    hogs "$seconds" 120
    writers "$seconds"
    wait_for_loads
    swapoff "$swap"
    umount /mnt
    e2fsck -fn "$files" >/share/fsck 2>&1
}

# Bursts, and between them nothing until all that can shrink has shrunk.
scenario_burst() {
    split_device "$disk"
    swap_on "$swap"
    mke2fs -q -t ext4 "$files"
    mount "$files" /mnt
    local round
    for round in 1 2 3; do
        hogs $((seconds / 4)) 115
        writers $((seconds / 4))
        wait_for_loads
        sync -f /mnt
        echo 3 >/proc/sys/vm/drop_caches
        echo 1 >/proc/sys/vm/compact_memory
        sleep 2
        echo "burst $round is over"
    done
    swapoff "$swap"
    umount /mnt
    e2fsck -fn "$files" >/share/fsck 2>&1
}

# ---- what must hold ------------------------------------------------------------------------------------------
# Where requests were in flight, bytes moved.
moved_in_every_interval() {
    local stalls
    note "intervals $(awk '$2 > 0' /share/moved | wc -l)"
    note "bytes $(awk '{ sum += $1 } END { print sum + 0 }' /share/moved)"
    note "longest_ms $(awk 'END { print $3 + 0 }' /share/moved)"
    stalls=$(awk '$1 == 0 && $2 > 0' /share/moved | wc -l)
    same "intervals with requests in flight in which no byte moved" 0 "$stalls"
    [ "$(awk '{ sum += $1 } END { print int(sum / 1048576) }' /share/moved)" -ge 24 ] ||
        fail "less than 24 MiB moved: that was no pressure"
}

the_kernel_saw_no_error() {
    dmesg >/share/dmesg
    local bad
    bad=$(grep -E 'I/O error|EXT4-fs (error|warning)|Killed process|BUG:|blocked for more than|allocation failure' /share/dmesg | head -n 3 || true)
    [ -z "$bad" ] || fail "the kernel says: $bad"
}

daemon_is_well() {
    [ -e "/proc/$pid" ] || fail "the daemon is gone"
    case $daemon in
        protected)
            promises_kept
            tap-ctl doctor >/share/doctor || fail "tap-ctl doctor: $(grep missing /share/doctor)"
            ;;
        unprotected)
            ! tap-ctl doctor >/share/doctor || fail "tap-ctl doctor finds nothing missing in the control"
            ;;
        qemu-nbd) ;;
    esac
    tap-ctl stats -p "$pid" -m "${minor:-0}" >/share/stats 2>&1 || true
}

# `tap-ctl doctor` finds missing exactly what the control goes without.
doctor_tells_what_is_left_out() {
    tap-ctl doctor >/share/doctor.begin || true
    local pair wanted
    for pair in lock:memory-locked flusher:io-flusher oom:oom-score priority:real-time free:free-reserve; do
        wanted=held
        case ,${left_out:-lock,flusher,oom,priority,free}, in *,"${pair%%:*}",*) wanted=missing ;; esac
        grep -Eq "^ *$wanted +${pair#*:} " /share/doctor.begin || fail "tap-ctl doctor: ${pair#*:} is not $wanted"
    done
    grep -Eq '^ *missing +release-build ' /share/doctor.begin || fail "tap-ctl doctor takes the control for a release"
}

hung_tasks_end_the_machine
modprobe -a loop dm-mod dm-crypt
case $device in
    ublk) modprobe ublk_drv ;;
    blktap) insmod /share/blktap.ko ;;
    nbd) modprobe nbd max_part=0 nbds_max=1 ;;
esac
if [ "$daemon" = unprotected ]; then
    cp /share/unprotected/tapdisk /usr/libexec/tapdisk
fi
mount -t cgroup2 cgroup2 /sys/fs/cgroup
echo +memory >/sys/fs/cgroup/cgroup.subtree_control
mkdir /sys/fs/cgroup/pressed
make_image
[ "$scenario" != files ] || echo "${GROUP_MIB:-48}M" >/sys/fs/cgroup/pressed/memory.max
serve_device
# The script itself is not short of memory.
echo $BASHPID >/sys/fs/cgroup/cgroup.procs
free -m
[ "$daemon" != unprotected ] || doctor_tells_what_is_left_out
note "min_free_kbytes $(cat /proc/sys/vm/min_free_kbytes)"
# What the kernel calls it: the module's disks have other names than their nodes.
pressure watch "$(basename "$(readlink "/sys/dev/block/$((0x$(stat -c %t "$disk"))):$((0x$(stat -c %T "$disk")))")")" "$pid" 3600 >/share/moved &
watchman=$!
note "started"
"scenario_$scenario"
kill $watchman
wait $watchman
pressure flags "$pid" >/share/flags
the_kernel_saw_no_error
moved_in_every_interval
daemon_is_well
note "survived"
