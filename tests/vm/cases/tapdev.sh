# The machine without Xen, with our kernel module (xen/blktap-dkms): disks by tap-ctl and tapdisk as
# releases 3.x made them, block devices /dev/xen/blktap-2/tapdevN. File systems, patterns, chains,
# pause, flush, trim and zeros, kills, refusals. What the module itself does with a process that is
# not tapdisk: blktap.sh. A module that cannot keep a ring for an upgrade, as the original's:
# module: BLKTAP_RING_KEEP=219
# shellcheck shell=bash disable=SC2119,SC2120,SC2012
# shellcheck source=tests/vm/cases/lib.sh
export case_limit=${case_limit:-240}
. /share/vm/cases/lib.sh

nodes=/dev/xen/blktap-2

clean_up() {
    umount -l /mnt
    local tapdisk minor
    for tapdisk in $(pidof tapdisk); do
        kill -9 "$tapdisk"
    done
    sleep 1
    for minor in $(tap-ctl list | sed -n 's/.*minor=\([0-9]*\).*/\1/p'); do
        tap-ctl free -m "$minor"
    done
    modprobe -r scsi_debug
    rm -rf /srv/* /run/blktap-control/*
}

show_state() {
    tap-ctl list
    ls -l $nodes /sys/class/blktap2 /run/blktap-control
    grep -H . /sys/class/blktap2/blktap*/debug
    dmesg | tail -n 25
    tail -n 30 /var/log/blktap/*.log
}

nothing_more_left() {
    same "minors at the end" "" "$(ls -d /sys/class/blktap2/blktap* 2>/dev/null || true)"
    same "nodes at the end" "" "$(find $nodes ! -type d ! -name control)"
    same "tapdisk's complaints" "" "$(grep -h -i 'panic' /var/log/blktap/*.log || true)"
}

# Starts a tapdisk with the module's block device; sets disk, pid and minor.
device() { # type:path, more options of tap-ctl create
    disk=$(tap-ctl create -a "$@") || fail "tap-ctl create -a $*"
    case $disk in "$nodes"/tapdev*) ;; *) fail "tap-ctl create says $disk" ;; esac
    [ -b "$disk" ] || fail "$disk is no block device"
    minor=${disk##*tapdev}
    find_pid
}

# What lsof -t says.
holders() { # path
    find /proc/[0-9]*/fd -lname "$1" 2>/dev/null | cut -d / -f 3 | sort -u
}

find_pid() {
    pid=$(tap-ctl list -m "$minor" | sed -n 's/^pid=\([0-9]*\) .*/\1/p')
    [ -n "$pid" ] || fail "no tapdisk has minor $minor"
    same "who has the ring" "$pid" "$(cat "/sys/class/blktap2/blktap!blktap$minor/task")"
    # The storage manager (3.2.12-19 and later) asks lsof, and must get one number.
    same "who has its node open" "$pid" "$(holders "$nodes/blktap$minor")"
}

fill() { fill_disk 3 "$(command -v vhd-util)" "$(command -v tap-ctl)" -- "$@"; }

# As SM 3.x does: the pool has the repository's id, its size is written when the minor is in it.
case_pools_as_storage_managers_name_them() {
    local control='/sys/class/misc/blktap!control' sr=6a1d9f10-13c3-4a4e-92a4-4d4a5a0a3c55 one two
    tap-ctl allocate
    tap-ctl allocate
    one='/sys/class/blktap2/blktap!blktap0/pool' two='/sys/class/blktap2/blktap!blktap1/pool'
    same "pools at first" "default default" "$(cat "$one" "$two" | xargs)"
    printf %s $sr >"$one"
    printf %s $sr >"$two"
    same "pools" "$sr $sr" "$(cat "$one" "$two" | xargs)"
    printf %s 2816 >"$control/pools/$sr/size"
    tap-ctl free -m 0
    same "its size" 2816 "$(cat "$control/pools/$sr/size")"
    tap-ctl free -m 1
    same "pools without minors" default "$(ls "$control/pools")"

    # What new minors get, and a disk that is served in it.
    printf %s $sr >"$control/default_pool"
    same "pools" $sr "$(ls "$control/pools")"
    truncate -s 64M /srv/disk.raw
    device aio:/srv/disk.raw
    same "the disk's pool" $sr "$(cat '/sys/class/blktap2/blktap!blktap0/pool')"
    same "pages of its ring" 352 "$(cat "$control/pools/$sr/size")"
    printf %s default >"$control/default_pool"
    disk-load write "$disk" depth=16 seed=3
    disk-load check "$disk" depth=16 seed=3
    tap-ctl destroy -p "$pid" -m "$minor"
    same "pools at the end" default "$(ls "$control/pools")"
    rm /srv/*
}

case_commands_as_releases_3_have_them() {
    same "check" ok "$(tap-ctl check)"
    same "major" "$(sed -n 's/ tapdev$//p' /proc/devices | tr -d ' ')" "$(tap-ctl major)"
    rm -f $nodes/control
    same "allocate" $nodes/tapdev0 "$(tap-ctl allocate)"
    same "allocate" $nodes/tapdev1 "$(tap-ctl allocate)"
    same "a name of one's own" /srv/mine "$(tap-ctl allocate -d /srv/mine)"
    same "nodes" "600 600 600" "$(stat -c %a $nodes/control $nodes/blktap1 /srv/mine | xargs)"
    same "the ring's node" "$(sed -n 's/ blktap2$//p' /proc/devices | tr -d ' ') 1" \
        "$(printf '%d %d' 0x"$(stat -c %t $nodes/blktap1)" 0x"$(stat -c %T $nodes/blktap1)")"
    same "list" "minor=0 minor=1 minor=2" "$(tap-ctl list | xargs)"
    truncate -s 16M /srv/disk.raw
    local pid
    pid=$(tap-ctl spawn)
    tap-ctl attach -p "$pid" -m 1
    same "list" "pid=$pid minor=1 state=0" "$(tap-ctl list -m 1)"
    same "the ring's holder" "$pid" "$(cat '/sys/class/blktap2/blktap!blktap1/task')"
    refused 16 "tapdisk $pid has the ring" tap-ctl free -m 1
    tap-ctl open -p "$pid" -m 1 -a aio:/srv/disk.raw
    same "list" "pid=$pid minor=1 state=0 args=aio:/srv/disk.raw" "$(tap-ctl list -m 1)"
    same "size" 16777216 "$(blockdev --getsize64 $nodes/tapdev1)"
    tap-ctl stats -p "$pid" -m 1 --json | grep '"tap":{"errors":0,.*"minor":1' >/dev/null || fail "no tap in stats"
    tap-ctl close -p "$pid" -m 1 -t 120
    [ ! -e /sys/block/tda ] || fail "the block device is there after close"
    # Again, through the same ring.
    tap-ctl open -p "$pid" -m 1 -a aio:/srv/disk.raw
    dd if=$nodes/tapdev1 of=/dev/null bs=1M iflag=direct status=none
    tap-ctl close -p "$pid" -m 1
    tap-ctl detach -p "$pid" -m 1
    tap-ctl free -m 1
    refused 19 "does not free minor 1" tap-ctl free -m 1
    same "allocate" $nodes/tapdev1 "$(tap-ctl allocate)"
    for minor in 0 1 2; do
        tap-ctl free -m $minor
    done
    [ ! -e $nodes/blktap1 ] || fail "the ring's node is left"
    rm /srv/*
}

case_file_system_and_chain_compared_with_qemu_img() {
    vhd-util create -n /srv/base.vhd -s 48
    device vhd:/srv/base.vhd
    fill
    e2fsck -fn "$disk"
    give_back
    vhd-util snapshot -n /srv/leaf.vhd -p /srv/base.vhd
    device vhd:/srv/leaf.vhd
    disk-load write "$disk" depth=32 bytes=$((8 << 20)) seed=5
    disk-load check "$disk" depth=32 bytes=$((8 << 20)) seed=5
    dd if="$disk" bs=1M iflag=direct status=none | sum_of /dev/stdin >/srv/sum
    give_back
    vhd-util check -n /srv/leaf.vhd
    # qemu-img knows no differencing disks of this format: through the parent.
    vhd-util coalesce -n /srv/leaf.vhd
    qemu-img convert -f vpc -O raw /srv/base.vhd /srv/disk.raw
    same "what qemu-img reads" "$(cat /srv/sum)" "$(head -c $((48 << 20)) /srv/disk.raw | sum_of /dev/stdin)"
    rm /srv/*
}

case_pause_and_snapshot_under_a_mounted_file_system() {
    vhd-util create -n /srv/base.vhd -s 96
    device vhd:/srv/base.vhd
    mke2fs -q -t ext4 "$disk"
    mount "$disk" /mnt
    noise before 4 /mnt/before
    sync -f /mnt
    tap-ctl pause -p "$pid" -m "$minor"
    same "state" "state=0x2a" "$(tap-ctl list -m "$minor" | grep -o 'state=[^ ]*')"
    noise during 4 /srv/noise
    cp /srv/noise /mnt/during &
    local writer=$!
    (sync -f /mnt) &
    local syncer=$!
    vhd-util snapshot -n /srv/leaf.vhd -p /srv/base.vhd
    tap-ctl unpause -p "$pid" -m "$minor" -a vhd:/srv/leaf.vhd
    wait $writer $syncer
    cmp /srv/noise /mnt/during
    umount /mnt
    e2fsck -fn "$disk"
    give_back
    [ "$(du -m /srv/leaf.vhd | cut -f1)" -ge 4 ] || fail "nothing was written to the leaf"
    rm /srv/*
}

case_flush_trim_and_zeros_reach_the_image() {
    vhd-util create -n /srv/disk.vhd -s 96
    device vhd:/srv/disk.vhd
    local queue
    queue=/sys/dev/block/$((0x$(stat -c %t "$disk"))):$minor/queue
    same "cache" "write back" "$(cat "$queue/write_cache")"
    same "FUA" 1 "$(cat "$queue/fua")"
    noise gone 24 /srv/noise
    dd if=/srv/noise of="$disk" bs=1M oflag=direct status=none
    sync
    local before after
    before=$(du -m /srv/disk.vhd | cut -f1)
    blkdiscard -o $((8 << 20)) -l $((8 << 20)) "$disk"
    blkdiscard -z -o $((16 << 20)) -l $((4 << 20)) "$disk"
    after=$(du -m /srv/disk.vhd | cut -f1)
    [ "$after" -lt $((before - 6)) ] || fail "trim freed nothing: $before MiB before, $after MiB after"
    cmp -n $((8 << 20)) /srv/noise "$disk"
    cmp -n $((4 << 20)) "$disk" /dev/zero $((16 << 20)) 0
    cmp -n $((4 << 20)) /srv/noise "$disk" $((20 << 20)) $((20 << 20))
    dd if=/dev/zero of="$disk" bs=4k count=8 seek=100 oflag=direct,dsync conv=notrunc status=none
    tap-ctl stats -p "$pid" -m "$minor" --json >/srv/stats
    local kind
    for kind in write trim flush zero; do
        case $kind in trim) kind=discard ;; esac
        grep -Eq "\"requests\":\{[^}]*\"$kind\":[1-9]" <(sed 's/.*"tap"://' /srv/stats) ||
            fail "no $kind came: $(sed 's/.*"tap"://' /srv/stats)"
    done
    give_back
    vhd-util check -n /srv/disk.vhd
    rm /srv/*
}

case_sectors_of_4096_bytes_and_read_only() {
    scsi_disk dev_size_mb=64 sector_size=4096 lbpu=1
    local large=/dev/$scsi_disk
    device "aio:$large"
    same "sector size" 4096 "$(blockdev --getss "$disk")"
    fill
    give_back
    device "aio:$large" -R
    same "read-only" 1 "$(blockdev --getro "$disk")"
    mount -o ro "$disk" /mnt
    (cd /mnt && sha256sum --quiet -c /srv/sums)
    umount /mnt
    give_back
    modprobe -r scsi_debug
    rm /srv/*
}

# The module fails what is outstanding and takes the disk away; nothing hangs, and the minor can be
# freed.
case_killed_under_a_mounted_file_system() {
    dmesg -C
    vhd-util create -n /srv/disk.vhd -s 96
    device vhd:/srv/disk.vhd
    mke2fs -q -t ext4 "$disk"
    mount "$disk" /mnt
    noise killed 8 /srv/noise
    cp /srv/noise /mnt/before
    sync -f /mnt
    (while cp /srv/noise /mnt/during && sync -f /mnt; do :; done) 2>/srv/writer &
    local writer=$!
    sleep 0.5
    kill -9 "$pid"
    wait $writer
    await 20 "the end of tapdisk" sh -c "! [ -e /proc/$pid ]"
    same "list" "minor=$minor" "$(tap-ctl list)"
    # As ever: list skips them, and the next tapdisk has other names.
    rm -f /run/blktap-control/nbd*"$pid".* "/run/blktap-control/ctl$pid" "/run/blktap-control/nbdclient$pid"
    umount /mnt
    await 20 "the end of the disk" sh -c '! [ -e /sys/block/tda ]'
    tap-ctl free -m "$minor"
    device vhd:/srv/disk.vhd
    e2fsck -fy "$disk" || [ $? -le 1 ]
    mount "$disk" /mnt
    cmp /srv/noise /mnt/before
    umount /mnt
    give_back
    vhd-util check -n /srv/disk.vhd
    dmesg -C
    rm /srv/*
}

# Another program, under a mounted file system and a load: the module keeps ring, device and
# requests.
case_upgraded_while_it_is_in_use() {
    dmesg -C
    local program=/srv/libexec/tapdisk before upgrades writer load
    mkdir /srv/libexec
    cp /usr/libexec/tapdisk $program
    vhd-util create -n /srv/disk.vhd -s 96
    device vhd:/srv/disk.vhd
    before=$pid
    mke2fs -q -t ext4 "$disk"
    mount "$disk" /mnt
    noise upgraded 8 /srv/noise
    cp /srv/noise /mnt/before
    (
        i=0
        while [ -e /srv/libexec ]; do
            cp /srv/noise "/mnt/$i" && sync -f /mnt && cmp /srv/noise "/mnt/$i" || exit 1
            i=$(((i + 1) % 3))
        done
    ) &
    writer=$!
    dd if="$disk" of=/dev/null bs=64k iflag=direct status=none &
    load=$!
    for upgrades in $(seq "${UPGRADES:-20}"); do
        cp /usr/libexec/tapdisk $program.new
        mv $program.new $program
        tap-ctl upgrade -p "$pid" --program $program || fail "upgrade $upgrades"
        find_pid
        same "the process" "$before" "$pid"
        same "the ring" "ring: mapped" "$(head -n 1 "/sys/class/blktap2/blktap!blktap$minor/debug")"
        kill -0 $writer || fail "the writer ended at upgrade $upgrades"
    done
    wait $load || fail "a reader of the device"
    mv /srv/libexec /srv/over
    wait $writer || fail "the writer"
    same "its program" /srv/over/tapdisk "$(readlink "/proc/$pid/exe")"
    cmp /srv/noise /mnt/before
    umount /mnt
    e2fsck -fn "$disk"
    # It ends as it does without an upgrade.
    give_back
    vhd-util check -n /srv/disk.vhd
    # A program that says it could and ends: the module fails what waits, and nothing hangs.
    device vhd:/srv/disk.vhd
    mount "$disk" /mnt
    printf '#!/bin/sh\necho tapdisk 9 can resume\n' >/srv/over/tapdisk
    (while cp /srv/noise /mnt/during && sync -f /mnt; do :; done) 2>/srv/writer &
    writer=$!
    ! tap-ctl upgrade -p "$pid" --program /srv/over/tapdisk || fail "a script has taken over"
    await 20 "the end of tapdisk" sh -c "! [ -e /proc/$pid ]"
    wait $writer
    umount /mnt
    await 20 "the end of the disk" sh -c '! [ -e /sys/block/tda ]'
    rm -f /run/blktap-control/*"$pid"*
    tap-ctl free -m "$minor"
    device vhd:/srv/disk.vhd
    e2fsck -fy "$disk" || [ $? -le 1 ]
    give_back
    vhd-util check -n /srv/disk.vhd
    dmesg -C
    rm -r /srv/*
}

# The other program fails when it has the ring and everything else: the old one gets it back, under
# a mounted file system and a load.
case_upgraded_to_a_program_that_fails_when_it_has_the_ring() {
    dmesg -C
    local before upgrades writer status
    vhd-util create -n /srv/disk.vhd -s 96
    export TAPDISK_RESUME_FAULT=late
    device vhd:/srv/disk.vhd
    unset TAPDISK_RESUME_FAULT
    before=$pid
    mke2fs -q -t ext4 "$disk"
    mount "$disk" /mnt
    noise given-back 8 /srv/noise
    touch /srv/goes-on
    (
        i=0
        while [ -e /srv/goes-on ]; do
            cp /srv/noise "/mnt/$i" && sync -f /mnt && cmp /srv/noise "/mnt/$i" || exit 1
            i=$(((i + 1) % 3))
        done
    ) &
    writer=$!
    for upgrades in 1 2 3 4 5; do
        status=0
        tap-ctl upgrade -p "$pid" --program /usr/libexec/tapdisk-debug 2>/srv/said || status=$?
        same "an upgrade that fails late" 5 "$status"
        grep -q "a planted fault; the old one goes on" /srv/said || fail "it says $(cat /srv/said)"
        find_pid
        same "the process" "$before" "$pid"
        same "its program" /usr/libexec/tapdisk "$(readlink "/proc/$pid/exe")"
        same "the ring" "ring: mapped" "$(head -n 1 "/sys/class/blktap2/blktap!blktap$minor/debug")"
        kill -0 $writer || fail "the writer ended at upgrade $upgrades"
    done
    rm /srv/goes-on
    wait $writer || fail "the writer"
    umount /mnt
    e2fsck -fn "$disk"
    give_back
    vhd-util check -n /srv/disk.vhd
    dmesg -C
    rm /srv/*
}

# With a module that cannot keep a ring, as the original's: the device that nobody uses goes and
# comes again; one that is in use keeps its tapdisk as it is.
case_upgraded_with_a_ring_of_another_module() {
    modprobe -r blktap
    insmod /share/modules/BLKTAP_RING_KEEP=219.ko
    dmesg -C
    local program=/srv/libexec/tapdisk before status=0 upgrades said
    mkdir /srv/libexec
    cp /usr/libexec/tapdisk $program
    vhd-util create -n /srv/disk.vhd -s 96
    device vhd:/srv/disk.vhd
    before=$pid
    fill
    mount "$disk" /mnt
    tap-ctl upgrade -p "$pid" --program $program 2>/srv/said || status=$?
    said=$(cat /srv/said)
    same "an upgrade while it is mounted" 16 "$status"
    case $said in *"$disk is in use"*) ;; *) fail "tap-ctl says: $said" ;; esac
    echo "goes on" >/mnt/goes-on
    sync -f /mnt
    umount /mnt
    for upgrades in 1 2 3 4 5; do
        cp /usr/libexec/tapdisk $program.new
        mv $program.new $program
        tap-ctl upgrade -p "$pid" --program $program || fail "upgrade $upgrades"
        find_pid
        same "the process" "$before" "$pid"
        [ -b "$disk" ] || fail "$disk is not there after upgrade $upgrades"
        mount "$disk" /mnt
        same "a file" "goes on" "$(cat /mnt/goes-on)"
        umount /mnt
    done
    same "its program" $program "$(readlink "/proc/$pid/exe")"
    same "errors of the kernel" "" "$(kernel_complaints)"
    give_back
    vhd-util check -n /srv/disk.vhd
    rm -r /srv/*
    rmmod blktap
    modprobe blktap
}

case_in_use_is_not_taken_away() {
    truncate -s 64M /srv/disk.raw
    device aio:/srv/disk.raw
    mke2fs -q -t ext4 "$disk"
    mount "$disk" /mnt
    # As long as somebody waits: 110, and the disk stays.
    refused 110 "did not answer close in time" tap-ctl close -p "$pid" -m "$minor" -t 1
    await 10 "the close is given up" sh -c "tap-ctl list -m $minor | grep -q 'state=0 args='"
    echo still >/mnt/there
    sync -f /mnt
    refused 22 "refused detach" tap-ctl detach -p "$pid" -m "$minor"
    # Paused as well.
    tap-ctl pause -p "$pid" -m "$minor"
    refused 110 "did not answer close in time" tap-ctl close -p "$pid" -m "$minor" -t 1
    await 10 "the close is given up" sh -c "tap-ctl list -m $minor | grep -q 'state=0x2a args='"
    tap-ctl unpause -p "$pid" -m "$minor"
    # A close that waits is done when the user is gone.
    tap-ctl close -p "$pid" -m "$minor" -t 60 &
    local closer=$!
    sleep 0.5
    umount /mnt
    wait $closer || fail "close after umount"
    same "closed" "pid=$pid minor=$minor state=0x2" "$(tap-ctl list -m "$minor")"
    e2fsck -fn /srv/disk.raw
    # Forced, with requests in flight.
    tap-ctl open -p "$pid" -m "$minor" -a aio:/srv/disk.raw
    dd if=/dev/zero of="$disk" bs=64k count=400 oflag=direct 2>/dev/null &
    local writer=$!
    sleep 0.3
    tap-ctl close -f -p "$pid" -m "$minor"
    wait $writer || true
    same "closed" "pid=$pid minor=$minor state=0x2" "$(tap-ctl list -m "$minor")"
    # The ring is made anew.
    tap-ctl open -p "$pid" -m "$minor" -a aio:/srv/disk.raw
    dd if="$disk" of=/dev/null bs=1M iflag=direct status=none
    give_back
    dmesg -C
    rm /srv/*
}

case_ended_by_a_signal_while_in_use() {
    truncate -s 32M /srv/disk.raw
    device aio:/srv/disk.raw
    noise signal 2 /srv/noise
    exec 7<>"$disk"
    cat /srv/noise >&7
    kill -INT "$pid"
    await 20 "the end of tapdisk" sh -c "! [ -e /proc/$pid ]"
    exec 7>&-
    same "list" "minor=$minor" "$(tap-ctl list)"
    tap-ctl free -m "$minor"
    cmp -n $((2 << 20)) /srv/noise /srv/disk.raw
    dmesg -C
    rm /srv/*
}

case_refusals_are_sentences_and_leave_nothing() {
    truncate -s 16M /srv/disk.raw
    refused 2 "No such file" tap-ctl create -a vhd:/srv/none.vhd
    same "minors" "" "$(tap-ctl list)"
    # A ring that somebody has.
    local first second
    tap-ctl allocate
    first=$(tap-ctl spawn)
    second=$(tap-ctl spawn)
    tap-ctl attach -p "$first" -m 0
    refused 22 "process $first has its ring" tap-ctl attach -p "$second" -m 0
    grep -h "another process has the ring of minor 0" /var/log/blktap/*.log
    refused 22 "refused attach" tap-ctl attach -p "$second" -m 9
    tap-ctl detach -p "$first" -m 0
    kill -INT "$second"
    tap-ctl free -m 0
    await 20 "the end of both" sh -c '! pidof tapdisk'
    # The storage vanishes: errors, and everything can be taken away.
    scsi_disk dev_size_mb=16
    local store=$scsi_disk
    device "aio:/dev/$store"
    dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct
    echo 1 >"/sys/block/$store/device/delete"
    if dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null; then fail "a lost disk was read"; fi
    same "list" "pid=$pid minor=$minor state=0 args=aio:/dev/$store" "$(tap-ctl list)"
    # The last flush fails, and is told; everything goes nevertheless.
    promises_kept
    refused 5 "refused close" tap-ctl close -p "$pid" -m "$minor"
    same "closed" "pid=$pid minor=$minor state=0x2" "$(tap-ctl list)"
    tap-ctl detach -p "$pid" -m "$minor"
    tap-ctl free -m "$minor"
    modprobe -r scsi_debug
    dmesg -C
    rm /srv/*
}

# Nonsense in the ring page ends the service of that ring alone; a new one is made. And the module
# may ask for the end.
case_nonsense_in_the_ring_and_a_request_to_end() {
    vhd-util create -n /srv/disk.vhd -s 16
    device vhd:/srv/disk.vhd
    local page
    page=$(sed -n "s/^\([0-9a-f]*\)-.*blktap$minor.*/\1/p" "/proc/$pid/maps" | head -n 1)
    # The producer index, as no kernel of ours writes it; the next event makes the daemon look.
    printf '\377\377\0\0' | dd of="/proc/$pid/mem" bs=1 seek=$((0x$page)) conv=notrunc status=none
    tap-ctl list
    await 10 "the end of the ring" sh -c "! [ -e /sys/block/tda ]"
    same "list" "pid=$pid minor=$minor state=0 args=vhd:/srv/disk.vhd" "$(tap-ctl list)"
    qemu-img info "nbd+unix:///?socket=/run/blktap-control/nbd$pid.$minor" >/dev/null
    refused 1 "ring-served" tap-ctl doctor -p "$pid"
    tap-ctl close -p "$pid" -m "$minor"
    tap-ctl open -p "$pid" -m "$minor" -a vhd:/srv/disk.vhd
    dd if="$disk" of=/dev/null bs=1M iflag=direct status=none
    find_pid
    echo 1 >"/sys/class/blktap2/blktap!blktap$minor/remove"
    await 10 "the close that the module asked for" sh -c "tap-ctl list | grep -q 'state=0x2$'"
    tap-ctl detach -p "$pid" -m "$minor"
    tap-ctl free -m "$minor"
    await 10 "the log" grep -h "its producer index says" /var/log/blktap/*.log
    dmesg -C
    rm /srv/*
}

case_beside_nbd_clients_and_a_device_that_is_named() {
    vhd-util create -n /srv/disk.vhd -s 64
    device vhd:/srv/disk.vhd
    noise both 4 /srv/noise
    dd if=/srv/noise of="$disk" bs=1M oflag=direct status=none
    qemu-img convert -f raw -O raw "nbd+unix:///?socket=/run/blktap-control/nbd$pid.$minor" /srv/copy
    cmp -n $((4 << 20)) /srv/noise /srv/copy
    give_back
    # --device is the module's where the minor is; another is made by its name.
    same "--device" $nodes/tapdev0 "$(tap-ctl create -a vhd:/srv/disk.vhd --device)"
    minor=0
    find_pid
    same "list --devices" "device=$nodes/tapdev0" "$(tap-ctl list --devices | cut -d' ' -f1)"
    give_back
    same "--device-name" /dev/ublkb3 "$(tap-ctl create -a vhd:/srv/disk.vhd --device-name /dev/ublkb3)"
    find_pid
    cmp -n $((4 << 20)) /srv/noise /dev/ublkb3
    [ ! -e /sys/block/tda ] || fail "two block devices of one disk"
    give_back
    rm /srv/*
}

case_many_disks_come_and_go() {
    local i count=8
    for ((i = 0; i < count; i++)); do
        truncate -s 4M "/srv/$i.raw"
        tap-ctl create -a "aio:/srv/$i.raw" >>/srv/names &
    done
    wait
    same "disks" "$count" "$(sort -u /srv/names | wc -l)"
    tap-ctl list | sed -n 's/pid=\([0-9]*\) minor=\([0-9]*\) .*/\1 \2/p' >/srv/all
    while read -r disk; do
        dd if=/dev/zero of="$disk" bs=64k oflag=direct status=none 2>/dev/null || true &
    done </srv/names
    wait
    while read -r pid minor; do
        tap-ctl destroy -p "$pid" -m "$minor" &
    done </srv/all
    wait
    rm /srv/*
}

case_both_disk_engines() {
    local engine
    for engine in uring aio; do
        truncate -s 64M /srv/disk.raw
        export TAPDISK_ENGINE=$engine
        device aio:/srv/disk.raw
        fill
        tap-ctl doctor -p "$pid"
        give_back
        files_are_there /srv/disk.raw
        rm /srv/*
    done
}

modprobe -a loop sd_mod ublk_drv blktap
run_cases "$@"
