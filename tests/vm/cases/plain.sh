# The machine without Xen: tapdisk's disks as block devices of the kernel, by its NBD client. File
# systems, the block layer's own sizes and queues, and real errors of devices, which no test on the
# host can make.
# shellcheck shell=bash
# shellcheck source=tests/vm/cases/lib.sh
. /share/vm/cases/lib.sh

disk=/dev/nbd0

clean_up() {
    umount -l /mnt
    nbd-client -d $disk
    local tapdisk
    for tapdisk in $(pidof tapdisk); do
        kill -9 "$tapdisk"
    done
    rm -rf /srv/* /run/blktap-control/*
}

attach() { # more options of nbd-client
    nbd-client -unix "$socket" $disk -timeout 60 "$@"
    await 20 "$disk has a size" sh -c "[ \$(cat /sys/block/nbd0/size) -gt 0 ]"
}

detach() {
    nbd-client -d $disk
    await 20 "$disk is free" sh -c "[ ! -e /sys/block/nbd0/pid ]"
}

fill() { fill_disk 24 /usr/sbin -- "$@"; }

case_raw_file_system_by_nbd() {
    truncate -s 192M /srv/disk.raw
    serve aio:/srv/disk.raw
    attach
    fill
    e2fsck -fn $disk
    detach
    give_back
    files_are_there /srv/disk.raw
    rm /srv/*
}

case_vhd_file_system_by_nbd() {
    vhd-util create -n /srv/disk.vhd -s 192
    serve vhd:/srv/disk.vhd
    attach
    fill
    e2fsck -fn $disk
    detach
    give_back
    vhd-util check -n /srv/disk.vhd
    qemu-img convert -f vpc -O raw /srv/disk.vhd /srv/disk.raw
    files_are_there /srv/disk.raw
    rm /srv/*
}

# Four sockets at once, and the kernel spreads its queues over them.
case_four_connections() {
    vhd-util create -n /srv/disk.vhd -s 64
    serve vhd:/srv/disk.vhd
    attach -C 4
    noise four 32 /srv/noise
    local part
    for part in 0 1 2 3; do
        dd if=/srv/noise of=$disk bs=64k skip=$((part * 128)) seek=$((part * 128)) count=128 oflag=direct status=none &
    done
    wait
    detach
    give_back
    vhd-util check -n /srv/disk.vhd
    qemu-img convert -f vpc -O raw /srv/disk.vhd /srv/disk.raw
    cmp -n $((32 << 20)) /srv/noise /srv/disk.raw
    rm /srv/*
}

# What a file system gives back becomes free space of the image again.
case_discard_frees_the_image() {
    vhd-util create -n /srv/disk.vhd -s 192
    serve vhd:/srv/disk.vhd
    attach
    mke2fs -q -t ext4 $disk
    mount $disk /mnt
    noise gone 64 /mnt/noise
    sync
    local before after
    before=$(du -m /srv/disk.vhd | cut -f1)
    rm /mnt/noise
    sync
    fstrim -v /mnt
    umount /mnt
    detach
    give_back
    after=$(du -m /srv/disk.vhd | cut -f1)
    [ "$after" -lt $((before - 50)) ] || fail "discard freed nothing: $before MiB before, $after MiB after"
    vhd-util check -n /srv/disk.vhd
    rm /srv/*
}

# A disk whose sectors have 4096 bytes shows them, and a VHD on such a disk still has sectors of
# 512.
case_disk_with_4096_byte_sectors() {
    scsi_disk dev_size_mb=256 sector_size=4096 lbpu=1
    local device=/dev/$scsi_disk
    serve "aio:$device"
    attach -b 4096
    same "sector size of the disk" 4096 "$(blockdev --getss $disk)"
    fill
    detach
    give_back
    e2fsck -fn "$device"
    mount "$device" /mnt
    (cd /mnt && sha256sum --quiet -c /srv/sums)
    umount /mnt

    mke2fs -q -F -t ext4 "$device"
    mkdir -p /media/big
    mount "$device" /media/big
    vhd-util create -n /media/big/disk.vhd -s 192
    serve vhd:/media/big/disk.vhd
    attach
    same "sector size of the VHD" 512 "$(blockdev --getss $disk)"
    fill -b 1024
    detach
    give_back
    vhd-util check -n /media/big/disk.vhd
    qemu-img convert -f vpc -O raw /media/big/disk.vhd /srv/disk.raw
    umount /media/big
    modprobe -r scsi_debug
    files_are_there /srv/disk.raw
    rm /srv/*
}

# Pause, a snapshot below, and on again, while a program writes: it waits, and notices nothing else.
case_snapshots_under_writes() {
    vhd-util create -n /srv/0.vhd -s 128
    serve vhd:/srv/0.vhd
    attach
    noise under 16 /srv/noise
    dd if=/srv/noise of=$disk bs=4k oflag=direct status=none &
    local writer=$! layer
    for layer in 1 2 3 4; do
        sleep 0.3
        tap-ctl pause -p "$pid" -m "$minor"
        vhd-util snapshot -n "/srv/$layer.vhd" -p "/srv/$((layer - 1)).vhd"
        tap-ctl unpause -p "$pid" -m "$minor" -a "vhd:/srv/$layer.vhd"
    done
    wait $writer || fail "the writer saw an error"
    cmp -n $((16 << 20)) /srv/noise $disk
    detach
    give_back
    vhd-util check -n /srv/4.vhd -p
    rm /srv/*
}

# A tapdisk that is killed: the client sees errors, the image is in order, and a new tapdisk serves
# it.
case_killed_tapdisk() {
    vhd-util create -n /srv/disk.vhd -s 128
    serve vhd:/srv/disk.vhd
    # The kernel hopes for another connection for as long.
    attach -timeout 5
    noise kill 32 /srv/noise
    dd if=/srv/noise of=$disk bs=64k oflag=direct conv=fsync count=64 status=none
    dd if=/srv/noise of=$disk bs=4k skip=1024 seek=1024 oflag=direct status=none &
    local writer=$!
    sleep 0.5
    kill -9 "$pid"
    if wait $writer; then
        fail "the writer noticed nothing"
    fi
    detach
    # What a dead process cannot take away itself goes with its minor.
    tap-ctl free -m "$minor"
    [ ! -e "/run/blktap-control/ctl$pid" ]
    [ ! -e "$socket" ]
    # A file ends with its footer at every moment.
    vhd-util check -n /srv/disk.vhd
    serve vhd:/srv/disk.vhd
    attach
    cmp -n $((4 << 20)) /srv/noise $disk
    dd if=/srv/noise of=$disk bs=64k oflag=direct status=none
    detach
    give_back
    vhd-util check -n /srv/disk.vhd
    qemu-img convert -f vpc -O raw /srv/disk.vhd /srv/disk.raw
    cmp -n $((32 << 20)) /srv/noise /srv/disk.raw
    rm /srv/*
}

# The file system below fills up: the write that needs space fails, what was written stays, and
# space that is made helps at once.
case_full_file_system_below() {
    truncate -s 48M /srv/small
    mke2fs -q -F -t ext4 -m 0 /srv/small
    mkdir -p /media/small
    mount -o loop /srv/small /media/small
    vhd-util create -n /media/small/disk.vhd -s 64
    fallocate -l 16M /media/small/in-the-way
    serve vhd:/media/small/disk.vhd
    attach
    noise full 40 /srv/noise
    if dd if=/srv/noise of=$disk bs=64k count=640 oflag=direct status=none; then
        fail "40 MiB went onto 30 MiB"
    fi
    cmp -n $((8 << 20)) /srv/noise $disk
    rm /media/small/in-the-way
    dd if=/srv/noise of=$disk bs=64k count=500 oflag=direct status=none
    detach
    give_back
    vhd-util check -n /media/small/disk.vhd
    umount /media/small
    rm -r /srv/*
}

# No udev here: what would be loaded when it is needed is loaded now.
modprobe -a loop sd_mod
modprobe nbd max_part=0 nbds_max=2
run_cases "$@"
