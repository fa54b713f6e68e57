# Sourced by the lists of cases that run under Xen: tapback, guests, and disks plugged by xl with
# Xen's own block-tap script. Starting a guest is dear: cases share some that live long, and get
# their disks while they run.
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
    local place
    for place in backend/vbd3 device/vbd error; do
        xenstore-rm /local/domain/0/$place
    done
    xenstore-rm /libxl/0/device/vbd
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

# Writes that came over the rings of a tapdisk's disk.
writes_of_rings() { # pid, minor
    tap-ctl stats -p "$1" -m "$2" --json | tr -d ' ' | sed -n 's/.*"queue":[0-9]*,"reads":[0-9]*,"writes":\([0-9]*\).*/\1/p'
}

more_writes_than() { # number, pid, minor
    [ "$(writes_of_rings "$2" "$3")" -gt "$1" ]
}

# A driver domain with our programs and more files; tapback serves in it.
start_driver_domain() { # programs to take along ...
    local files=/run/driver-files program module path
    rm -rf $files
    mkdir -p $files/{bin,usr/libexec,modules,run,srv,var/log/blktap,lib/x86_64-linux-gnu}
    cp /usr/libexec/tapdisk $files/usr/libexec/
    for program in tapback tap-ctl "$@"; do
        path=$(command -v "$program")
        cp "$path" $files/bin/
        /usr/lib64/ld-linux-x86-64.so.2 --list "$path" | sed -n 's/.* => \([^ ]*\) .*/\1/p' |
            while read -r path; do cp -Lu "$path" $files/lib/x86_64-linux-gnu/; done
    done
    for module in xen-evtchn xen-gntdev xen-privcmd; do
        path=$(modprobe --show-depends $module | sed -n 's/^insmod \([^ ]*\).*/\1/p' | tail -1)
        cp "$path" $files/modules/
    done
    # What scripts of Xen look for.
    mkdir -p $files/var/{log,lib}/xen $files/etc/xen
    ln -s ../run $files/var/run
    cp -a /etc/xen/scripts $files/etc/xen/
    guest start driver -m 256 -f $files -o 'driver_domain = 1'
    guest run driver "for module in evtchn gntdev privcmd; do insmod /modules/xen-\$module.ko || exit 1; done
        for name in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
            ln -sf \"/proc/self/\${name#*:}\" \"/dev/\${name%:*}\"
        done
        mount -t tmpfs tmp /srv && tapback -p /run/tapback.pid && until [ -s /run/tapback.pid ]; do usleep 100000; done"
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

# A guest begins with something and goes on with it.
begin_in_guest() { # guest, commands
    guest run "$1" "($2; echo \$? >/tmp/ended) >/tmp/said 2>&1 &"
}

# Waits for its end, which must be a good one.
end_in_guest() { # guest
    guest run "$1" "while [ ! -e /tmp/ended ]; do usleep 100000; done
        cat /tmp/said; ended=\$(cat /tmp/ended); rm /tmp/ended; [ \$ended = 0 ]"
}

# For each tapdisk whether another file lies where its program was.
replaced_programs() {
    tap-ctl list --programs | sed -n 's/.*replaced=\([a-z]*\) .*/\1/p' | sort | xargs
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
