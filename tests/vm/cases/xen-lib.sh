# Sourced by the lists of cases that run under Xen: tapback, guests, and disks plugged by xl with Xen's own block-tap
# script. Starting a guest is dear: cases share some that live long, and get their disks while they run.
# shellcheck shell=bash
# shellcheck source=tests/vm/cases/lib.sh
. /share/vm/cases/lib.sh

# One tapback serves all domains. Not every case needs it.
need_tapback() {
    pidof tapback >/dev/null || start_tapback
}

start_tapback() {
    rm -f /run/tapback.pid
    tapback -p /run/tapback.pid
    await 30 "tapback's pid file" test -s /run/tapback.pid
}

clean_up() {
    local domain tapdisk
    for domain in $(xl list | awk 'NR > 2 {print $1}'); do
        xl destroy "$domain"
    done
    kill -9 "$(pidof tapback)"
    for tapdisk in $(pidof tapdisk); do
        kill -9 "$tapdisk"
    done
    umount -l /mnt /media
    modprobe -r xen-blkfront
    rm -rf /srv/* /run/blktap-control/* /dev/shm/*
    xenstore-rm /local/domain/0/backend/vbd3
}

show_state() {
    local log
    xl list
    xenstore-ls -f /local/domain/0/backend
    tap-ctl list
    dmesg | tail -n 15
    tail -n 30 /var/log/blktap/*.log /var/log/tapback.log 2>/dev/null
    tail -n 15 /var/log/xen/xen-hotplug.log /var/log/xen/{xl,qemu}-*.log 2>/dev/null
    for log in /var/log/xen/console/guest-*.log; do
        echo "==> $log"
        tail -n 40 "$log"
    done
}

# The guest of most cases; started by the first that needs it.
need_guest() { # name
    xl domid "$1" >/dev/null 2>&1 || start_guest "$1"
}

start_guest() { # name, xl's disk lines
    need_tapback
    guest start "$@"
}

xl_disk() { # vdev, format, path, access
    echo "vdev=$1,access=${4:-rw},backendtype=tap,format=$2,target=$3"
}

# Number of a device in xenstore, as Xen's public/io/blkif.h has it: 202 << 8 | disk << 4.
device_number() { # xvdX
    local letter
    letter=$(printf '%d' "'${1#xvd}")
    echo $((202 << 8 | (letter - 97) << 4))
}

# Sets pid and minor of the tapdisk behind a guest's disk, and node, its place in xenstore.
behind() { # guest, vdev
    node=/local/domain/0/backend/vbd3/$(xl domid "$1")/$(device_number "$2")
    pid=$(xenstore-read "$node/pid")
    minor=$(xenstore-read "$node/minor")
}

# What a killed tapdisk leaves, as the original does.
sweep() { # its pid, its minor
    rm -rf "/run/blktap-control/ctl$1" "/run/blktap-control/nbd$1.$2" "/dev/shm/td3-$1" "/dev/shm/metrics/tap-$1-$2" \
        /dev/shm/vbd3-*
    tap-ctl free -m "$2" || true
}

# Back ends in xenstore, one a line.
find_backends() {
    xenstore-ls -f /local/domain/0/backend/vbd3 2>/dev/null | sed -n 's|/state = .*||p' || true
}

nothing_more_left() {
    same "back ends at the end" "" "$(find_backends)"
    same "event channels of tapdisks at the end" "" "$(grep evtchn:tapdisk /proc/interrupts || true)"
    same "files in shared memory at the end" "" "$(find /dev/shm /dev/shm/metrics -maxdepth 1 -name '*[0-9]*')"
}

# Waits until the guest's kernel has the disk.
until_disk() { # guest, vdev
    guest run "$1" "i=0; until [ -b /dev/$2 ] && [ \$(cat /sys/block/$2/size) -gt 0 ]; do
        i=\$((i + 1)); [ \$i -lt 1200 ] || exit 1; usleep 100000; done"
}

attach() { # guest, vdev, format, path, access
    xl block-attach "$1" "$(xl_disk "${@:2}")"
    until_disk "$1" "$2"
    behind "$1" "$2"
}

detach() { # guest, vdev
    behind "$1" "$2"
    promises_kept
    xl block-detach "$1" "$2"
    guest run "$1" "i=0; while [ -e /sys/block/$2 ]; do i=\$((i + 1)); [ \$i -lt 600 ] || exit 1; usleep 100000; done"
    await 30 "the end of tapdisk $pid" sh -c "! kill -0 $pid"
    ! xenstore-exists "$node" || fail "$node is still there"
}

# What an image holds, as other people's program reads it.
as_raw() { # vhd
    qemu-img convert -f vpc -O raw "$1" /srv/read-back.raw
}

# Whatever the guest was about, it has no complaint of its own.
guest_is_well() { # guest
    local said
    said=$(guest run "$1" "dmesg | grep -E 'BUG:|Oops|general protection|blocked for more than' || true")
    same "the kernel's messages in guest $1" "" "$(echo "$said" | grep -v '^$' || true)"
}

at_state() { # path, state
    [ "$(xenstore-read "$1/state")" = "$2" ]
}

has_size() { # device, sectors
    [ "$(cat "/sys/block/$1/size")" = "$2" ]
}

modprobe loop
mkdir -p /var/log/blktap
