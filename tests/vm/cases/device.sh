# The machine without Xen: tapdisk's own block devices (tap-ctl create --device), by ublk and by the
# kernel's NBD client. File systems, a tapdisk that is killed under a mounted one, pause, discard,
# 4096-byte sectors, refusals.
# shellcheck shell=bash disable=SC2119,SC2120,SC2012
# shellcheck source=tests/vm/cases/lib.sh
# Emulated, and kills and recoveries take their time on a busy host.
export case_limit=${case_limit:-480}
. /share/vm/cases/lib.sh

clean_up() {
    umount -l /mnt
    pidof systemd-udevd && udevadm control --exit
    local tapdisk
    for tapdisk in $(pidof tapdisk); do
        kill -9 "$tapdisk"
    done
    local record
    for record in /run/blktap-control/device*; do
        [ -e "$record" ] || continue
        tap-ctl recover -m "${record##*/device}" && tap-ctl list | sed -n 's/^pid=\([0-9]*\) minor=\([0-9]*\) .*/\1 \2/p' |
            while read -r pid minor; do tap-ctl close -f -p "$pid" -m "$minor"; done
    done
    for tapdisk in $(pidof tapdisk); do
        kill -9 "$tapdisk"
    done
    nbd-client -d /dev/nbd0
    rm -f /etc/modprobe.d/no-nbd.conf
    modprobe -r nbd scsi_debug
    modprobe ublk_drv
    rm -rf /srv/* /run/blktap-control/*
}

show_state() {
    tap-ctl list --devices
    ls -l /dev/ublk* /run/blktap-control
    dmesg | tail -n 25
    tail -n 30 /var/log/blktap/*.log
}

# Starts a tapdisk with a block device; sets disk, pid and minor.
device() { # type:path, more options of tap-ctl create
    disk=$(tap-ctl create -a "$@" --device) || fail "tap-ctl create -a $* --device"
    [ -b "$disk" ] || fail "$disk is no block device"
    find_it
}

find_it() {
    local row
    row=$(tap-ctl list --devices | grep "^device=$disk ") || fail "tap-ctl list does not show $disk"
    pid=$(echo "$row" | sed -n 's/.* pid=\([0-9]*\) .*/\1/p')
    minor=$(echo "$row" | sed -n 's/.* minor=\([0-9]*\) .*/\1/p')
}

gone() {
    [ ! -e "$disk" ] || fail "$disk is still there"
    same "devices at the end" "" "$(tap-ctl list --devices)"
}

fill() { fill_disk 16 /usr/sbin -- "$@"; }

case_file_system_on_ublk() {
    vhd-util create -n /srv/disk.vhd -s 192
    device vhd:/srv/disk.vhd
    case $disk in /dev/ublkb*) ;; *) fail "$disk is not ublk's" ;; esac
    fill
    e2fsck -fn "$disk"
    tap-ctl stats -p "$pid" -m "$minor" | grep -o '"device": {.*' >&2
    give_back
    gone
    vhd-util check -n /srv/disk.vhd
    qemu-img convert -f vpc -O raw /srv/disk.vhd /srv/disk.raw
    files_are_there /srv/disk.raw
    rm /srv/*
}

# A chain of qcow2 whose middle goes into its parent under a mounted file system.
case_qcow2_on_ublk_and_a_commit_under_it() {
    qcow2-util create -f qcow2 /srv/base.qcow2 192M
    device qcow2:/srv/base.qcow2
    fill
    give_back
    gone
    qcow2-util create -f qcow2 -F qcow2 -b base.qcow2 /srv/middle.qcow2
    device qcow2:/srv/middle.qcow2
    mount "$disk" /mnt
    noise "of the middle" 8 /srv/noise
    cp /srv/noise /mnt/middle
    umount /mnt
    give_back
    gone
    qcow2-util create -f qcow2 -F qcow2 -b middle.qcow2 /srv/leaf.qcow2
    device qcow2:/srv/leaf.qcow2
    mount "$disk" /mnt
    tap-ctl commit -p "$pid" -m "$minor" -a /srv/middle.qcow2
    cp /srv/noise /mnt/leaf
    await 120 "the end of the commit" sh -c "tap-ctl query -p $pid -m $minor | grep concluded"
    rm /srv/middle.qcow2
    cmp /srv/noise /mnt/middle
    cmp /srv/noise /mnt/leaf
    umount /mnt
    e2fsck -fn "$disk"
    give_back
    gone
    qemu-img check /srv/base.qcow2
    qemu-img check /srv/leaf.qcow2
    qemu-img convert -f qcow2 -O raw /srv/leaf.qcow2 /srv/disk.raw
    files_are_there /srv/disk.raw
    rm /srv/*
}

# What a guest has written to its disk's first sector is none of dom0's business.
case_no_partitions_are_looked_for() {
    truncate -s 8M /srv/disk.raw
    # One partition of a megabyte, from the second on.
    printf '\0\0\0\0\203\0\0\0\0\10\0\0\0\10\0\0' | dd of=/srv/disk.raw bs=1 seek=446 conv=notrunc status=none
    printf '\125\252' | dd of=/srv/disk.raw bs=1 seek=510 conv=notrunc status=none
    losetup -P /dev/loop5 /srv/disk.raw
    [ -e /sys/block/loop5/loop5p1 ] || fail "the kernel does not take it for a partition table"
    losetup -d /dev/loop5
    device aio:/srv/disk.raw
    [ -e "/sys/block/${disk#/dev/}" ] || fail "$disk is not in /sys/block"
    same "partitions" "" "$(ls -d "/sys/block/${disk#/dev/}/${disk#/dev/}"p* 2>/dev/null)"
    give_back
    gone
    rm /srv/*
}

# Killed with -9 while a mounted file system is written to: the next tapdisk takes over, and the
# writer sees nothing.
case_killed_under_a_mounted_file_system() {
    # Others make errors on purpose.
    dmesg -C
    vhd-util create -n /srv/disk.vhd -s 256
    device vhd:/srv/disk.vhd
    mke2fs -q -t ext4 "$disk"
    mount "$disk" /mnt
    local round
    for round in 1 2 3; do
        noise "round $round" 8 /srv/noise
        (
            for part in 1 2 3; do
                cp /srv/noise "/mnt/noise$round.$part"
                sync -f /mnt
            done
        ) 2>/srv/writer &
        local writer=$!
        sleep 0.5
        kill -9 "$pid"
        await 20 "the end of tapdisk" sh -c "! [ -e /proc/$pid ]"
        same "list of a dead tapdisk's device" "device=$disk minor=$minor" "$(tap-ctl list --devices)"
        if tap-ctl free -m "$minor"; then fail "free of a minor whose device waits"; fi
        same "the device comes back" "$disk" "$(tap-ctl recover -m "$minor")"
        find_it
        wait $writer || fail "the writer: $(cat /srv/writer)"
        for part in 1 2 3; do
            cmp /srv/noise "/mnt/noise$round.$part"
        done
    done
    if dmesg | grep -E 'I/O error|EXT4-fs error'; then fail "the kernel saw an error"; fi
    umount /mnt
    e2fsck -fn "$disk"
    give_back
    gone
    vhd-util check -n /srv/disk.vhd
    qemu-img convert -f vpc -O raw /srv/disk.vhd /srv/disk.raw
    e2fsck -fn /srv/disk.raw
    rm /srv/*
}

case_pause_and_snapshot_under_a_mounted_file_system() {
    vhd-util create -n /srv/base.vhd -s 192
    device vhd:/srv/base.vhd
    mke2fs -q -t ext4 "$disk"
    mount "$disk" /mnt
    noise before 4 /mnt/before
    sync -f /mnt
    tap-ctl pause -p "$pid" -m "$minor"
    noise during 4 /srv/noise
    cp /srv/noise /mnt/during &
    local writer=$!
    (sync -f /mnt) &
    local syncer=$!
    vhd-util snapshot -n /srv/leaf.vhd -p /srv/base.vhd
    tap-ctl unpause -p "$pid" -m "$minor" -a vhd:/srv/leaf.vhd
    wait $writer $syncer
    # The record follows: the next tapdisk opens the leaf.
    kill -9 "$pid"
    await 20 "the end of tapdisk" sh -c "! [ -e /proc/$pid ]"
    tap-ctl recover -m "$minor"
    find_it
    tap-ctl list | grep "args=vhd:/srv/leaf.vhd" >/dev/null || fail "the leaf is not what is served"
    cmp /srv/noise /mnt/during
    umount /mnt
    e2fsck -fn "$disk"
    give_back
    gone
    rm /srv/*
}

# The tapdisk goes on with another program under a mounted file system: the same process, and the
# writer sees nothing. For /dev/nbdN as well, which is a client like any other.
case_upgraded_under_a_mounted_file_system() {
    dmesg -C
    local driver program=/srv/libexec/tapdisk before
    mkdir /srv/libexec
    for driver in ublk nbd; do
        vhd-util create -n /srv/disk.vhd -s 192
        if [ $driver = nbd ]; then
            modprobe -r ublk_drv
            modprobe nbd
        fi
        device vhd:/srv/disk.vhd
        before=$pid
        mke2fs -q -t ext4 "$disk"
        mount "$disk" /mnt
        noise "under $driver" 4 /srv/noise
        (
            for part in 1 2 3 4 5 6; do
                cp /srv/noise "/mnt/noise$part"
                sync -f /mnt
            done
            touch /srv/written
        ) 2>/srv/writer &
        local writer=$! upgrades=0
        while [ ! -e /srv/written ] || [ $upgrades -lt "${UPGRADES:-12}" ]; do
            # Another file each time, as a package brings one.
            cp /usr/libexec/tapdisk $program.new
            mv $program.new $program
            tap-ctl upgrade -p "$pid" --program $program >/srv/said || fail "upgrade $upgrades"
            upgrades=$((upgrades + 1))
        done
        wait $writer || fail "the writer: $(cat /srv/writer)"
        echo "$upgrades upgrades, the last: $(cat /srv/said)" >&2
        find_it
        same "the process after $upgrades upgrades" "$before" "$pid"
        same "its program" $program "$(readlink "/proc/$pid/exe")"
        for part in 1 2 3 4 5 6; do
            cmp /srv/noise "/mnt/noise$part"
        done
        umount /mnt
        e2fsck -fn "$disk"
        give_back
        [ $driver = nbd ] || gone
        vhd-util check -n /srv/disk.vhd
        same "errors of the kernel" "" "$(kernel_complaints)"
        rm -f /srv/disk.vhd /srv/written /srv/noise
    done
    modprobe -r nbd
    modprobe ublk_drv
    rm -r /srv/*
}

case_in_use_is_not_taken_away() {
    truncate -s 64M /srv/disk.raw
    device aio:/srv/disk.raw
    mke2fs -q -t ext4 "$disk"
    mount "$disk" /mnt
    local status=0
    tap-ctl destroy -p "$pid" -m "$minor" || status=$?
    same "destroy of a mounted disk" 16 "$status"
    echo still >/mnt/there
    sync -f /mnt
    tap-ctl pause -p "$pid" -m "$minor"
    status=0
    tap-ctl close -p "$pid" -m "$minor" || status=$?
    same "close of a mounted, paused disk" 16 "$status"
    tap-ctl unpause -p "$pid" -m "$minor"
    umount /mnt
    e2fsck -fn "$disk"
    give_back
    gone
    # Without a way to say no: forced, with requests in flight.
    device aio:/srv/disk.raw
    dd if=/dev/zero of="$disk" bs=64k count=400 oflag=direct 2>/dev/null &
    local writer=$!
    sleep 0.3
    tap-ctl close -f -p "$pid" -m "$minor"
    wait $writer || true
    gone
    tap-ctl detach -p "$pid" -m "$minor"
    tap-ctl free -m "$minor"
    rm /srv/*
}

case_discard_and_zeros_reach_the_image() {
    vhd-util create -n /srv/disk.vhd -s 192
    device vhd:/srv/disk.vhd
    noise gone 64 /srv/noise
    dd if=/srv/noise of="$disk" bs=1M oflag=direct status=none
    sync
    local before after
    before=$(du -m /srv/disk.vhd | cut -f1)
    blkdiscard -o $((16 << 20)) -l $((16 << 20)) "$disk"
    blkdiscard -z -o $((32 << 20)) -l $((16 << 20)) "$disk"
    after=$(du -m /srv/disk.vhd | cut -f1)
    [ "$after" -lt $((before - 12)) ] || fail "discard freed nothing: $before MiB before, $after MiB after"
    cmp -n $((16 << 20)) /srv/noise "$disk"
    cmp -n $((16 << 20)) "$disk" /dev/zero $((32 << 20)) 0
    cmp -n $((16 << 20)) /srv/noise "$disk" $((48 << 20)) $((48 << 20))
    give_back
    vhd-util check -n /srv/disk.vhd
    rm /srv/*
}

case_sectors_of_4096_bytes_and_read_only() {
    scsi_disk dev_size_mb=256 sector_size=4096 lbpu=1
    local large=/dev/$scsi_disk
    # No more queues than processors: TAPDISK_VM_CPUS of the host.
    device "aio:$large" --queues 4
    same "sector size" 4096 "$(blockdev --getss "$disk")"
    same "queues" "$(nproc)" "$(ls "/sys/block/${disk#/dev/}/mq" | wc -l)"
    fill
    give_back
    device "aio:$large" -R
    same "read-only" 1 "$(blockdev --getro "$disk")"
    mount -o ro "$disk" /mnt
    (cd /mnt && sha256sum --quiet -c /srv/sums)
    umount /mnt
    give_back
    gone
    modprobe -r scsi_debug
    rm /srv/*
}

case_refusals_are_sentences_and_leave_nothing() {
    # An image of its own: that of the first disk would be waited for.
    truncate -s 16M /srv/disk.raw /srv/other.raw
    device aio:/srv/disk.raw
    local said status=0
    said=$(TAP_CTL_VERBOSE=1 tap-ctl create -a aio:/srv/other.raw --device-name "$disk" 2>&1) ||
        status=$?
    case $said in *"in use"*) ;; *) fail "tap-ctl says: $said" ;; esac
    same "a device number in use" 17 "$status"
    same "disks" 1 "$(tap-ctl list | wc -l)"
    give_back
    same "the name is free again" "$disk" "$(tap-ctl create -a aio:/srv/disk.raw --device-name "$disk")"
    find_it
    give_back
    gone
    rm /srv/*
}

case_no_privilege_and_lost_storage() {
    truncate -s 16M /srv/disk.raw
    chmod 666 /srv/disk.raw
    install -d -o 65534 -m 700 /tmp/user
    local said status=0
    said=$(TAP_CTL_VERBOSE=1 XDG_RUNTIME_DIR=/tmp/user setpriv --reuid 65534 --regid 65534 --clear-groups \
        tap-ctl create -a aio:/srv/disk.raw --device 2>&1) || status=$?
    same "an ordinary user ($said)" 13 "$status"
    case $said in *"block devices are made by root"*) ;; *) fail "tap-ctl says: $said" ;; esac
    await 20 "the end of tapdisk" sh -c '! pidof tapdisk'
    same "files of an ordinary user" "" "$(find /tmp/user ! -type d ! -name '*.log')"
    scsi_disk dev_size_mb=16
    local store=$scsi_disk
    device "aio:/dev/$store"
    same "FUA" 1 "$(cat "/sys/block/${disk#/dev/}/queue/fua")"
    same "cache" "write back" "$(cat "/sys/block/${disk#/dev/}/queue/write_cache")"
    dd if=/dev/zero of="$disk" bs=4k count=4 oflag=direct,dsync status=none
    echo 1 >"/sys/block/$store/device/delete"
    if dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null; then fail "a lost disk was read"; fi
    promises_kept
    # The last flush fails, and is told; everything goes nevertheless.
    status=0
    tap-ctl close -p "$pid" -m "$minor" || status=$?
    same "close of a lost disk" 5 "$status"
    gone
    tap-ctl detach -p "$pid" -m "$minor"
    tap-ctl free -m "$minor"
    modprobe -r scsi_debug
    rm -rf /srv/* /tmp/user
}

# An older kernel: no ublk, so the kernel's NBD client is what --device takes; killed and recovered
# as well.
case_nbd_where_there_is_no_ublk() {
    modprobe -r ublk_drv
    mkdir -p /etc/modprobe.d
    # The kernel would load it when it is asked for.
    echo "install nbd /bin/false" >/etc/modprobe.d/no-nbd.conf
    local said status=0
    truncate -s 64M /srv/disk.raw
    said=$(TAP_CTL_VERBOSE=1 tap-ctl create -a aio:/srv/disk.raw --device 2>&1) || status=$?
    case $said in *"modprobe ublk_drv"*) ;; *) fail "tap-ctl says: $said" ;; esac
    same "neither driver" 2 "$status"
    same "disks" "" "$(tap-ctl list)"
    grep -h "modprobe ublk_drv" /var/log/blktap/* || fail "no sentence about the drivers: $said"
    rm /srv/disk.raw /etc/modprobe.d/no-nbd.conf
    vhd-util create -n /srv/disk.vhd -s 192
    device vhd:/srv/disk.vhd
    case $disk in /dev/nbd*) ;; *) fail "$disk is not the NBD client's" ;; esac
    fill
    mount "$disk" /mnt
    noise more 8 /srv/noise
    (cp /srv/noise /mnt/more && sync -f /mnt) &
    local writer=$!
    sleep 0.3
    kill -9 "$pid"
    await 20 "the end of tapdisk" sh -c "! [ -e /proc/$pid ]"
    same "the device comes back" "$disk" "$(tap-ctl recover -m "$minor")"
    find_it
    wait $writer
    cmp /srv/noise /mnt/more
    status=0
    tap-ctl destroy -p "$pid" -m "$minor" || status=$?
    same "destroy of a mounted disk" 16 "$status"
    umount /mnt
    e2fsck -fn "$disk"
    give_back
    same "devices at the end" "" "$(tap-ctl list --devices)"
    vhd-util check -n /srv/disk.vhd
    modprobe -r nbd
    modprobe ublk_drv
    rm /srv/*
}

case_doctor_finds_all_protections_held() {
    truncate -s 64M /srv/disk.raw
    device aio:/srv/disk.raw
    dd if=/dev/zero of="$disk" bs=4k count=100 oflag=direct status=none
    tap-ctl doctor
    tap-ctl doctor --json | grep '"state":"held"' >/dev/null
    echo 0 >"/proc/$pid/oom_score_adj"
    local status=0
    tap-ctl doctor -p "$pid" >/srv/said || status=$?
    same "doctor with a protection missing" 1 "$status"
    grep -q "missing *oom-score" /srv/said || fail "the OOM score was not noticed: $(cat /srv/said)"
    give_back
    rm /srv/*
}

# -r keeps what is read from the parent, though a tag's slot is never given back.
case_local_cache_fills_through_a_device() {
    vhd-util create -n /srv/base.vhd -s 64
    device vhd:/srv/base.vhd
    noise base 32 /srv/noise
    dd if=/srv/noise of="$disk" bs=1M oflag=direct status=none
    give_back
    vhd-util snapshot -n /srv/leaf.vhd -p /srv/base.vhd
    device vhd:/srv/leaf.vhd -r
    cmp -n $((32 << 20)) /srv/noise "$disk"
    give_back
    local kept
    kept=$(du -m /srv/leaf.vhd | cut -f1)
    [ "$kept" -ge 8 ] || fail "only $kept MiB of 32 were kept"
    vhd-util check -n /srv/leaf.vhd
    qemu-img convert -f vpc -O raw /srv/leaf.vhd /srv/disk.raw
    cmp -n $((32 << 20)) /srv/noise /srv/disk.raw
    rm /srv/*
}

# Asked to end while its device is in use, a tapdisk leaves the device to the next one.
case_ended_under_a_mounted_file_system() {
    vhd-util create -n /srv/disk.vhd -s 64
    device vhd:/srv/disk.vhd
    mke2fs -q -t ext4 "$disk"
    mount "$disk" /mnt
    noise ended 4 /srv/noise
    cp /srv/noise /mnt/before
    kill -INT "$pid"
    await 20 "the end of tapdisk" sh -c "! [ -e /proc/$pid ]"
    vhd-util check -n /srv/disk.vhd
    cp /srv/noise /mnt/after
    (sync -f /mnt) &
    local syncer=$!
    same "the device comes back" "$disk" "$(tap-ctl recover -m "$minor")"
    find_it
    wait $syncer
    cmp /srv/noise /mnt/before
    cmp /srv/noise /mnt/after
    umount /mnt
    e2fsck -fn "$disk"
    give_back
    gone
    rm /srv/*
}

# The image is lost with its tapdisk: the device goes, and nothing stays.
case_removed_when_the_image_is_lost() {
    truncate -s 16M /srv/disk.raw
    device aio:/srv/disk.raw
    kill -9 "$pid"
    await 20 "the end of tapdisk" sh -c "! [ -e /proc/$pid ]"
    rm /srv/disk.raw
    (dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct && touch /srv/read) &
    local reader=$! status=0
    tap-ctl recover -m "$minor" || status=$?
    same "recover without the image" 2 "$status"
    same "the device waits on" "device=$disk minor=$minor" "$(tap-ctl list --devices)"
    tap-ctl recover -m "$minor" --remove
    wait $reader || true
    [ ! -e /srv/read ] || fail "a read of a removed device succeeded"
    gone
    same "minors" "" "$(tap-ctl list)"
}

# As every distribution runs it: it looks at a device as soon as that is there, and at its end, and
# our rules are for it: no scheduler, and what a guest has written names nothing of the host.
case_udev_looks_on() {
    /usr/lib/systemd/systemd-udevd --daemon
    local round
    for round in 1 2 3 4 5 6; do
        truncate -s 64M /srv/disk.raw
        mke2fs -q -t ext4 -L "udev$round" /srv/disk.raw
        device aio:/srv/disk.raw
        # Every other time it is gone again while udev still looks.
        if [ $((round % 2)) -eq 0 ]; then
            udevadm settle --timeout=60
            without_scheduler
            same "what udev took from a guest's disk" "" \
                "$(udevadm info -q property "$disk" | grep -e '^ID_FS_' -e '^DEVLINKS=.*by-')"
            kill -9 "$pid"
            await 20 "the end of tapdisk" sh -c "! [ -e /proc/$pid ]"
            same "the device comes back" "$disk" "$(tap-ctl recover -m "$minor")"
            find_it
            mount "$disk" /mnt
            date >/mnt/date
            umount /mnt
            udevadm settle --timeout=60
            without_scheduler
        fi
        give_back
        gone
    done
    udevadm control --exit
    await 20 "the end of udev" sh -c '! pidof systemd-udevd'
    rm /srv/*
}

without_scheduler() {
    local all
    all=$(cat "/sys/block/${disk#/dev/}/queue/scheduler")
    case $all in *'[none]'*) ;; *) fail "schedulers of $disk: $all" ;; esac
}

case_both_disk_engines() {
    local engine
    for engine in uring aio; do
        truncate -s 64M /srv/disk.raw
        export TAPDISK_ENGINE=$engine
        device aio:/srv/disk.raw
        fill
        give_back
        files_are_there /srv/disk.raw
        rm /srv/*
    done
}

modprobe -a loop sd_mod ublk_drv
run_cases "$@"
