# More of real Xen, for `make test-vm`: several queues, frontends that come back, 4096-byte sectors,
# media changes, unplugging in several states, migration, a driver domain, and a xenstored that
# dies.
# shellcheck shell=bash
# shellcheck source=tests/vm/cases/xen-lib.sh
. /share/vm/cases/xen-lib.sh

front_of() { # guest, vdev
    echo "/local/domain/$(xl domid "$1")/device/vbd/$(device_number "$2")"
}

# A guest of two processors has two queues, and tapdisk serves both rings.
case_two_queues() {
    need_guest one
    truncate -s 16M /srv/disk.raw
    attach one xvda raw /srv/disk.raw
    local queues
    queues=$(guest run one 'cd /sys/block/xvda/mq && echo *')
    same "the guest's queues" "0 1" "${queues%%$'\n'*}"
    same "queues in xenstore" 2 "$(xenstore-read "$(front_of one xvda)/multi-queue-num-queues")"
    guest run one "taskset 1 disk-load write /dev/xvda bytes=8388608 depth=8 & first=\$!
        taskset 2 disk-load write /dev/xvda seed=2 from=8388608 bytes=8388608 depth=8 && wait \$first"
    queues=$(tap-ctl stats -p "$pid" -m "$minor" --json | tr -d ' ' |
        grep -o '"queue":[0-9]*,"reads":[0-9]*,"writes":[1-9][0-9]*' | cut -d, -f1 | sort | tr '\n' ' ')
    same "tapdisk's rings that had writes" '"queue":0 "queue":1 ' "$queues"
    detach one xvda
    disk-load check /srv/disk.raw bytes=8388608
    disk-load check /srv/disk.raw seed=2 from=8388608 bytes=8388608
    rm /srv/*
}

# The guest's driver lets go of a disk that stays plugged, and the frontend goes back to 1, as at
# the start of another kernel: the ring is given back, and the back end waits in 2 for the next.
# (Linux's blkfront itself takes no disk a second time: its device stays closed until the toolstack
# makes a new one.)
case_frontend_begins_again() {
    need_guest one
    vhd-util create -n /srv/disk.vhd -s 16
    attach one xvda vhd /srv/disk.vhd
    guest run one "disk-load write /dev/xvda bytes=4194304 &&
        echo vbd-$(device_number xvda) >/sys/bus/xen/drivers/vbd/unbind"
    await 30 "state 6" at_state "$node" 6
    ! rings_of "$pid" "$minor" || fail "the ring is still connected"
    [ ! -e "/dev/shm/vbd3-$(xl domid one)-$(device_number xvda)" ] || fail "the ring's statistics are still there"
    xenstore-write "$(front_of one xvda)/state" 1
    await 30 "state 2" at_state "$node" 2
    # A frontend that never begins is unplugged from there.
    xl block-detach one xvda
    await 30 "the end of tapdisk $pid" sh -c "! kill -0 $pid"
    attach one xvda vhd /srv/disk.vhd
    guest run one "disk-load check /dev/xvda bytes=4194304"
    guest_is_well one
    detach one xvda
    vhd-util check -n /srv/disk.vhd
    rm /srv/*
}

# The program of a running tapdisk is replaced, again and again, while a guest writes and reads
# back: one process, one ring, and the guest sees pauses.
case_upgraded_under_guest_io() {
    need_guest one
    local program=/srv/libexec/tapdisk upgrades=0 before
    mkdir /srv/libexec
    vhd-util create -n /srv/disk.vhd -s 48
    attach one xvda vhd /srv/disk.vhd
    before=$pid
    begin_in_guest one "disk-load write /dev/xvda block=16384 depth=8 && disk-load check /dev/xvda"
    while [ $upgrades -lt "${UPGRADES:-20}" ]; do
        cp /usr/libexec/tapdisk $program.new
        mv $program.new $program
        tap-ctl upgrade -p "$pid" --program $program >>/srv/said || fail "upgrade $upgrades"
        upgrades=$((upgrades + 1))
    done
    end_in_guest one
    sed -n 's/.*waited for/waited for/p' /srv/said | sort | uniq -c | sort -rn | head -5 >&2
    behind one xvda
    same "the process after $upgrades upgrades" "$before" "$pid"
    same "its program" $program "$(readlink "/proc/$pid/exe")"
    same "state of the back end" 4 "$(xenstore-read "$node/state")"
    guest_is_well one
    # The ring is told of as before, and counts on.
    more_writes_than 100 "$pid" "$minor" || fail "writes: $(writes_of_rings "$pid" "$minor")"
    detach one xvda
    vhd-util check -n /srv/disk.vhd
    as_raw /srv/disk.vhd
    disk-load check /srv/read-back.raw
    rm -r /srv/*
}

# The package is replaced while a guest writes: another file lies where the program was, tapback is
# killed as the package's scripts do it, and leaves what the original's leaves (no note about the
# ring). The disk goes on with its program, the next one has the new program, and then the first one
# gets it as well.
case_package_replaced_under_guest_io() {
    need_guest one
    local program=/usr/libexec/tapdisk first before
    truncate -s 24M /srv/one.raw /srv/two.raw
    attach one xvda raw /srv/one.raw
    first=$pid
    before=$node
    begin_in_guest one "disk-load write /dev/xvda depth=4 && disk-load check /dev/xvda"
    cp $program /srv/replaced
    mv /srv/replaced $program
    kill -9 "$(cat /run/tapback.pid)"
    await 20 "tapback's end" sh -c '! pidof tapback'
    xenstore-rm "$node/tapback-ring"
    start_tapback
    await 30 "tapback's note about the ring it found" xenstore-exists "$before/tapback-ring"
    end_in_guest one
    same "state of the back end" 4 "$(xenstore-read "$before/state")"
    attach one xvdb raw /srv/two.raw
    same "programs" "no yes" "$(replaced_programs)"
    tap-ctl list --programs | grep "replaced=yes pid=$first " || fail "the first has another"
    begin_in_guest one "disk-load write /dev/xvdb && disk-load check /dev/xvdb"
    tap-ctl upgrade --all
    same "programs after it" "no no" "$(replaced_programs)"
    end_in_guest one
    guest run one "disk-load check /dev/xvda"
    guest_is_well one
    detach one xvda
    detach one xvdb
    disk-load check /srv/one.raw
    disk-load check /srv/two.raw
    rm /srv/*
}

# What rrdp-iostat reads of a guest's disk each five seconds is what the guest's own kernel has
# counted, and goes on over an upgrade of the tapdisk.
case_what_rrdd_reads_of_a_vbd() {
    need_guest one
    truncate -s 24M /srv/disk.raw
    attach one xvda raw /srv/disk.raw
    local file round counted
    file=/dev/shm/td3-$pid/vbd-$(xl domid one)-$(device_number xvda)
    for round in 1 2; do
        guest run one "disk-load write /dev/xvda && disk-load check /dev/xvda"
        # It is written once a second.
        sleep 3
        # shellcheck disable=SC2046
        set -- $(od -An -v -t u8 -N 88 "$file")
        same "its version" 1 "$1"
        same "reads begun and done" "$3" "$4"
        same "writes begun and done" "$7" "$8"
        same "errors" 0 "${11}"
        counted=$(guest run one "awk '{print \$3, \$7}' /sys/block/xvda/stat" | tr -d '\r')
        same "sectors read and written" "$counted" "$5 $9"
        [ $round = 2 ] || tap-ctl upgrade -p "$pid"
    done
    guest_is_well one
    detach one xvda
    rm /srv/*
}

# Polling as xapi asks for it, by keys of the back end; the same disk twice. How idle the host is
# tapdisk measures itself, in cpumond's file, where there is no cpumond. The emulated machine is
# never idle, so the number comes from a stand-in for cpumond then. What polling gains at depth 1 is
# printed, not demanded: one processor has to do all.
case_polling_as_xapi_asks_for_it() {
    local idle=/dev/shm/cpu_util_monitor monitor first disk rate rates=''
    truncate -s 16M /srv/polled.raw /srv/plain.raw
    (
        await 120 "the domain" sh -c 'xl domid polled 2>/dev/null'
        back=/local/domain/0/backend/vbd3/$(xl domid polled)/$(device_number xvda)
        await 60 "the back end's keys" xenstore-exists "$back/frontend"
        xenstore-write "$back/polling-duration" 8000 "$back/polling-idle-threshold" 50
    ) &
    start_guest polled "$(xl_disk xvda raw /srv/polled.raw)" "$(xl_disk xvdb raw /srv/plain.raw)"
    wait $!
    until_disk polled xvda
    until_disk polled xvdb
    same "bytes of the number that tapdisk measures" 40 "$(stat -c %s $idle)"
    first=$(od -An -tx8 -j16 -N8 $idle)
    sleep 4
    [ "$first" != "$(od -An -tx8 -j16 -N8 $idle)" ] || fail "the host's idle time is not measured again"
    while :; do
        for rate in '\0264' '\0266'; do
            # Two f32: 10 % busy, 90 or 91 % idle.
            printf '\0\0\040\101\0\0%b\102' "$rate" >$idle.new
            chmod 444 $idle.new
            mv $idle.new $idle
            sleep 1
        done
    done &
    monitor=$!
    sleep 2
    for _ in 1 2 3; do
        for disk in xvda xvdb; do
            rate=$(guest run polled "disk-load read /dev/$disk depth=1 seconds=3" | sed -n 's/.*rate=\([0-9]*\).*/\1/p')
            rates+=" $disk=$rate"
        done
    done
    kill $monitor
    echo "requests a second at depth 1, polled (xvda) and not (xvdb):$rates" | tee /share/polling.txt
    behind polled xvdb
    same "times that polling began without the keys" 0 "$(polls_of "$pid" "$minor")"
    behind polled xvda
    [ "$(polls_of "$pid" "$minor")" -gt 0 ] || fail "a ring with the keys of xapi was never polled; rates:$rates"
    guest_is_well polled
    guest stop polled
    await 60 "the end of all tapdisks" sh -c '! pidof tapdisk'
    rm -f /srv/* $idle*
}

polls_of() { # pid, minor
    tap-ctl stats -p "$1" -m "$2" --json | tr -d ' ' | sed -n 's/.*"polls":\([0-9]*\).*/\1/p'
}

rings_of() { # pid, minor
    tap-ctl stats -p "$1" -m "$2" --json | tr -d ' ' | grep '"queue":' >/dev/null
}

# Sectors of 4096 bytes, which the ring counts in 512s.
case_sectors_of_4096_bytes() {
    need_guest one
    truncate -s 24M /srv/disk.raw
    losetup -b 4096 --direct-io=on /dev/loop3 /srv/disk.raw
    attach one xvda raw /dev/loop3
    same "sector-size" 4096 "$(xenstore-read "$node/sector-size")"
    same "sectors" 49152 "$(xenstore-read "$node/sectors")"
    guest run one "[ \$(cat /sys/block/xvda/queue/logical_block_size) = 4096 ] &&
        [ \$(cat /sys/block/xvda/size) = 49152 ] &&
        mke2fs -b 4096 /dev/xvda 2048 >/dev/null && mount -t ext4 /dev/xvda /mnt && echo a letter >/mnt/letter &&
        umount /mnt && disk-load write /dev/xvda from=12582912 block=8192 && disk-load check /dev/xvda from=12582912"
    detach one xvda
    losetup -d /dev/loop3
    disk-load check /srv/disk.raw from=12582912
    mount -o loop,ro /srv/disk.raw /mnt
    same "the letter" "a letter" "$(cat /mnt/letter)"
    umount /mnt
    rm /srv/*
}

back=/local/domain/0/backend/vbd3/0/51728 front=/local/domain/0/device/vbd/51728

plug_drive() { # params, the tapdisk's socket
    local -a medium=()
    [ -z "$1" ] || medium=("$back/physical-device-path" "$2" "$back/hotplug-status" connected)
    xenstore-write "$back/frontend" "$front" "$back/frontend-id" 0 "$back/online" 1 "$back/removable" 1 "$back/state" 1 \
        "$back/dev" xvdb "$back/type" phy "$back/mode" r "$back/params" "$1" "${medium[@]}"
    xenstore-write "$front/backend" "$back" "$front/backend-id" 0 "$front/virtual-device" 51728 \
        "$front/device-type" cdrom "$front/state" 1
}

unplug_drive() {
    xenstore-write "$back/online" 0 "$back/state" 5
    await 30 "state 6" at_state "$back" 6
    xenstore-rm "$front"
    xenstore-rm "$back"
}

# A drive as xenopsd plugs it, by keys alone: empty at first; a medium is put in; another one that
# the keys name does not disturb the ring in use, and counts when the drive is plugged anew. The
# frontend is dom0's own kernel.
case_media_change() {
    need_tapback
    local medium
    for medium in 1 2; do
        truncate -s "${medium}0M" "/srv/$medium.iso"
        disk-load write "/srv/$medium.iso" seed="$medium"
    done
    plug_drive ""
    await 20 "state 2 of the empty drive" at_state "$back" 2
    serve aio:/srv/1.iso -R
    local first_pid=$pid first_minor=$minor
    xenstore-write "$back/params" "nbd:unix:$socket:exportname=1" "$back/physical-device-path" "$socket" \
        "$back/hotplug-status" connected
    modprobe xen-blkfront &
    await 60 "the first medium in dom0" has_size xvdb 20480
    same "read-only" 1 "$(cat /sys/block/xvdb/ro)"
    same "info" 5 "$(xenstore-read "$back/info")"
    disk-load check /dev/xvdb seed=1
    serve aio:/srv/2.iso -R
    xenstore-write "$back/params" "nbd:unix:$socket:exportname=2" "$back/physical-device-path" "$socket"
    # The ring in use stays with the first medium.
    disk-load check /dev/xvdb seed=1
    at_state "$back" 4 || fail "the drive is in state $(xenstore-read "$back/state")"
    unplug_drive
    tap-ctl destroy -p "$first_pid" -m "$first_minor"
    plug_drive "nbd:unix:$socket:exportname=2" "$socket"
    await 60 "the second medium in dom0" has_size xvdb 40960
    disk-load check /dev/xvdb seed=2
    unplug_drive
    give_back
    modprobe -r xen-blkfront
    rm /srv/*
}

# A disk that no frontend ever took; one of a frontend whose ring was refused; one whose tapdisk is
# dead.
case_unplugged_in_several_states() {
    need_tapback
    local back front
    back=/local/domain/0/backend/vbd3/0/51712 front=/local/domain/0/device/vbd/51712
    truncate -s 8M /srv/disk.raw
    xl block-attach 0 "$(xl_disk xvda raw /srv/disk.raw)"
    await 20 "state 2" at_state "$back" 2
    xl block-detach 0 xvda
    await 30 "the end of the back end that nobody took" sh -c "! xenstore-exists $back"
    await 30 "the end of its tapdisk" sh -c '! pidof tapdisk'

    xl block-attach 0 "$(xl_disk xvda raw /srv/disk.raw)"
    await 20 "state 2" at_state "$back" 2
    xenstore-write "$front/protocol" x86_64-abi "$front/ring-ref" 4000000000 "$front/event-channel" 4000000000 \
        "$front/state" 3
    # Refused, and told to close. (While a frontend does not, xl gives up after ten seconds.)
    await 20 "state 5" at_state "$back" 5
    xenstore-write "$front/state" 6
    await 20 "state 6" at_state "$back" 6
    xl block-detach 0 xvda
    await 60 "the end of the back end of a refused ring" sh -c "! xenstore-exists $back"
    await 30 "the end of its tapdisk" sh -c '! pidof tapdisk'

    xl block-attach 0 "$(xl_disk xvda raw /srv/disk.raw)"
    modprobe xen-blkfront &
    await 60 "the disk in dom0" has_size xvda 16384
    pid=$(xenstore-read "$back/pid") minor=$(xenstore-read "$back/minor")
    kill -9 "$pid"
    await 20 "the end of tapdisk $pid" sh -c "! kill -0 $pid"
    # Xen's script complains that there is no tapdisk to destroy.
    xl block-detach 0 xvda || true
    await 60 "the end of the back end of a dead tapdisk" sh -c "! xenstore-exists $back"
    sweep "$pid" "$minor"
    rm /srv/*
    modprobe -r xen-blkfront
}

# A guest moves to another domain of the same host while it writes: the new domain's disk is plugged
# before the old one's is unplugged, and its frontend connects (3, without waiting for 2) when the
# guest runs on. It is a PVH guest: the rings of a domain whose memory is not Xen's to see are the
# same to us.
case_migrated_to_the_same_host() {
    need_tapback
    vhd-util create -n /srv/disk.vhd -s 48
    guest start moving -t pvh "$(xl_disk xvda vhd /srv/disk.vhd)"
    until_disk moving xvda
    behind moving xvda
    local old=$node rounds
    guest run moving "disk-load write /dev/xvda bytes=8388608 &&
        { i=0; while [ ! -e /enough ]; do
            disk-load write /dev/xvda seed=\$((i + 1)) from=16777216 bytes=8388608 depth=8 || exit
            i=\$((i + 1)); echo \$i >/rounds.new; mv /rounds.new /rounds
        done; touch /over; } >/load 2>&1 &
        until [ -e /rounds ]; do usleep 100000; done"
    guest migrate moving
    behind moving xvda
    [ "$node" != "$old" ] || fail "the guest is in the same domain as before: $node"
    await 30 "the end of the old domain's back end" sh -c "! xenstore-exists $old"
    at_state "$node" 4 || fail "the new domain's disk is in state $(xenstore-read "$node/state")"
    rounds=$(guest run moving "before=\$(cat /rounds); until [ \$(cat /rounds) -ge \$((before + 2)) ]; do usleep 100000; done
        touch /enough; until [ -e /over ]; do usleep 100000; done; cat /rounds")
    rounds=${rounds%%$'\n'*}
    [ "$rounds" -ge 3 ] || fail "the load's rounds: $rounds"
    guest run moving "disk-load check /dev/xvda bytes=8388608 &&
        disk-load check /dev/xvda seed=$rounds from=16777216 bytes=8388608"
    guest_is_well moving
    detach moving xvda
    vhd-util check -n /srv/disk.vhd
    as_raw /srv/disk.vhd
    disk-load check /srv/read-back.raw bytes=8388608
    disk-load check /srv/read-back.raw seed="$rounds" from=16777216 bytes=8388608
    guest stop moving
    rm /srv/*
}

# tapback and tapdisk in a guest, which serves another guest. Xen's script is played by hand: there
# is no libxl in it.
case_driver_domain() {
    local path back
    # shellcheck disable=SC2119
    start_driver_domain
    guest run driver "head -c 12582912 /dev/zero >/srv/disk.raw && tap-ctl create -a aio:/srv/disk.raw && tap-ctl list"
    need_guest one
    # xl takes all that follows `target=` for its name.
    xl block-attach one "backend=driver,$(xl_disk xvda raw /srv/disk.raw)"
    back=/local/domain/$(xl domid driver)/backend/vbd3/$(xl domid one)/51712
    await 20 "state 2 by the driver domain" at_state "$back" 2
    path=$(guest run driver 'cd /run/blktap-control && echo nbd[0-9]*')
    path=${path%%$'\n'*}
    xenstore-write "$back/physical-device-path" "/run/blktap-control/$path" "$back/hotplug-status" connected
    until_disk one xvda
    guest run one "disk-load write /dev/xvda depth=8 && disk-load check /dev/xvda"
    guest run driver "disk-load check /srv/disk.raw"
    # The node is `xl devd`'s to remove, which is not there either.
    xl block-detach one xvda &
    local unplugging=$!
    await 30 "state 6 by the driver domain" at_state "$back" 6
    xenstore-rm "$back"
    wait "$unplugging" || fail "xl did not unplug it"
    guest run driver "tap-ctl list | grep -q aio: && tap-ctl destroy -m 0 -p \$(pidof tapdisk) && ! pidof tapdisk"
    guest_is_well one
    guest_is_well driver
    guest stop driver
}

# xenstored is killed, and nothing brings it back while Xen runs: tapback says so and stays, disks
# are served on. The last of the list, as nothing can be unplugged after it.
case_xenstored_is_gone() {
    need_guest one
    # One whose words can be read.
    kill "$(pidof tapback)"
    await 30 "the end of the first tapback" sh -c '! pidof tapback'
    rm -f /run/tapback.pid
    tapback -d -p /run/tapback.pid 2>/srv/tapback.log &
    await 30 "tapback's pid file" test -s /run/tapback.pid
    truncate -s 16M /srv/disk.raw
    attach one xvda raw /srv/disk.raw
    guest run one 'disk-load overwrite /dev/xvda depth=8 bytes=8388608 seconds=300 >/dev/null 2>&1 </dev/null &'
    local tapback
    tapback=$(pidof tapback)
    kill -9 "$(pidof xenstored)"
    await 30 "what tapback says of it" grep -q 'disks that are connected stay so' /srv/tapback.log
    local before
    before=$(writes_of_rings "$pid" "$minor")
    await 60 "1000 more writes of the guest" more_writes_than $((before + 1000)) "$pid" "$minor"
    same "tapback" "$tapback" "$(pidof tapback)"
    promises_kept
    cat /srv/tapback.log
    # Whether something is left cannot be asked any more.
    # shellcheck disable=SC2317
    nothing_left() { :; }
}

# The guest that most cases share has two processors here.
need_guest() { # name
    xl domid "$1" >/dev/null 2>&1 || { need_tapback && guest start "$1" -c 2; }
}

run_cases "$@"
