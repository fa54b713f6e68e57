# Real Xen: dom0 with tapback and tapdisk, disks plugged by xl with Xen's own block-tap script, and
# guests whose kernel's blkfront uses them. Two guests live through all cases; the last case
# destroys one.
# shellcheck shell=bash
# shellcheck source=tests/vm/cases/xen-lib.sh
. /share/vm/cases/xen-lib.sh

# ---- plug, use, unplug -----------------------------------------------------------------------------------------

# Disks that are there from the start, and two guests at once.
case_two_guests_with_two_disks_each() {
    local name
    for name in one two; do
        vhd-util create -n "/srv/$name.vhd" -s 32
        truncate -s 32M "/srv/$name.raw"
        start_guest "$name" "$(xl_disk xvda vhd "/srv/$name.vhd")" "$(xl_disk xvdb raw "/srv/$name.raw")"
    done
    same "tapdisks" 4 "$(tap-ctl list | wc -l)"
    local -a running=()
    local seed=0
    for name in one two; do
        seed=$((seed + 10))
        guest run "$name" "disk-load write /dev/xvda seed=$seed bytes=6291456 block=65536 depth=8 &
            disk-load write /dev/xvdb seed=$((seed + 1)) bytes=2097152 depth=32 &&
            disk-load write /dev/xvdb seed=$((seed + 2)) from=2097152 bytes=4194304 block=8192 && wait \$! &&
            disk-load check /dev/xvda seed=$seed bytes=6291456" &
        running+=($!)
    done
    wait "${running[0]}" || fail "the load of guest one"
    wait "${running[1]}" || fail "the load of guest two"
    seed=0
    for name in one two; do
        seed=$((seed + 10))
        guest_is_well "$name"
        detach "$name" xvda
        detach "$name" xvdb
        vhd-util check -n "/srv/$name.vhd"
        as_raw "/srv/$name.vhd"
        disk-load check /srv/read-back.raw seed=$seed bytes=6291456
        disk-load check "/srv/$name.raw" seed=$((seed + 1)) bytes=2097152
        disk-load check "/srv/$name.raw" seed=$((seed + 2)) from=2097152 bytes=4194304
    done
    rm /srv/*
}

case_file_system_across_plugs() {
    need_guest one
    vhd-util create -n /srv/disk.vhd -s 96
    attach one xvda vhd /srv/disk.vhd
    guest run one "mke2fs -b 4096 /dev/xvda >/dev/null && mount -t ext4 /dev/xvda /mnt && cp -a /bin /modules /mnt/ &&
        cd /mnt && find . -type f ! -name sums | sort | xargs sha256sum >sums && cd / && umount /mnt"
    detach one xvda
    attach one xvdb vhd /srv/disk.vhd
    guest run one "mount -t ext4 /dev/xvdb /mnt && cd /mnt && sha256sum -c sums >/dev/null && cd / && umount /mnt"
    guest_is_well one
    detach one xvdb
    vhd-util check -n /srv/disk.vhd
    as_raw /srv/disk.vhd
    e2fsck -fn /srv/read-back.raw
    mount -o loop,ro /srv/read-back.raw /mnt
    (cd /mnt && sha256sum --quiet -c sums)
    umount /mnt
    rm /srv/*
}

# Every layer holds a part; the guest sees all of it as one disk, and what it writes goes to the
# top.
case_chain_of_five() {
    need_guest one
    local layer below=''
    for layer in 1 2 3 4 5; do
        if [ -z "$below" ]; then
            vhd-util create -n /srv/1.vhd -s 32
        else
            vhd-util snapshot -n "/srv/$layer.vhd" -p "$below"
        fi
        below=/srv/$layer.vhd
        serve "vhd:$below"
        qemu-io -f raw -c "write -P $layer $((layer * 2))M 3M" "nbd+unix:///?socket=$socket" >/dev/null
        give_back
    done
    local -a before=()
    for layer in 1 2 3 4; do
        before+=("$(sum_of "/srv/$layer.vhd")")
    done
    attach one xvda vhd /srv/5.vhd
    # Layer n left 2 MiB of its 3, the next one overwrote the rest.
    guest run one "disk-load write /dev/xvda seed=5 from=16777216 bytes=4194304 &&
        for layer in 1 2 3 4 5; do
            dd if=/dev/xvda bs=1M skip=\$((layer * 2)) count=2 2>/dev/null | tr -d \"\\\\00\$layer\" | cmp - /dev/null || exit 1
        done
        disk-load check /dev/xvda seed=5 from=16777216 bytes=4194304"
    detach one xvda
    for layer in 1 2 3 4; do
        same "layer $layer after writes to the top" "${before[layer - 1]}" "$(sum_of "/srv/$layer.vhd")"
    done
    vhd-util check -n /srv/5.vhd -p
    rm /srv/*
}

case_discard_and_flush() {
    need_guest one
    vhd-util create -n /srv/disk.vhd -s 64
    attach one xvda vhd /srv/disk.vhd
    guest run one "disk-load write /dev/xvda bytes=16777216 block=65536"
    local before after flushes
    before=$(du -m /srv/disk.vhd | cut -f1)
    flushes=$(tap-ctl stats -p "$pid" -m "$minor" | sed -n 's/.*"flush": \([0-9]*\).*/\1/p')
    [ "${flushes:-0}" -gt 0 ] || fail "no flush of the guest reached tapdisk"
    guest run one "blkdiscard -o 0 -l 12582912 /dev/xvda && disk-load check /dev/xvda from=12582912 bytes=4194304 &&
        dd if=/dev/xvda bs=1M count=12 2>/dev/null | tr -d '\\000' | cmp - /dev/null"
    detach one xvda
    after=$(du -m /srv/disk.vhd | cut -f1)
    [ "$after" -le $((before - 11)) ] || fail "discard freed too little: $before MiB before, $after MiB after"
    vhd-util check -n /srv/disk.vhd
    rm /srv/*
}

case_read_only_disk() {
    need_guest one
    truncate -s 16M /srv/disk.raw
    disk-load write /srv/disk.raw
    local before
    before=$(sum_of /srv/disk.raw)
    attach one xvda raw /srv/disk.raw ro
    guest run one "disk-load check /dev/xvda; [ \$(cat /sys/block/xvda/ro) = 1 ] &&
        ! disk-load write /dev/xvda seed=2 2>/dev/null"
    detach one xvda
    same "the read-only image" "$before" "$(sum_of /srv/disk.raw)"
    rm /srv/*
}

# Xen's own xen-blkback serves a guest from a disk of our kernel module (xen/blktap-dkms), plugged
# by Xen's block-tap script in its other form, which backend type `phy` and a kernel with the module
# want.
case_blkback_on_the_blktap_module() {
    need_guest one
    modprobe -a blktap xen-blkback
    vhd-util create -n /srv/disk.vhd -s 64
    xl block-attach one vdev=xvdb,access=rw,script=block-tap,target=vhd:/srv/disk.vhd
    until_disk one xvdb
    local node
    node=/local/domain/0/backend/vbd/$(xl domid one)/$(device_number xvdb)
    pid=$(xenstore-read "$node/pid")
    minor=$(xenstore-read "$node/minor")
    same "the device that blkback serves" "$(awk '$2 == "tapdev" { printf "%x", $1 }' /proc/devices):$(printf %x "$minor")" \
        "$(xenstore-read "$node/physical-device")"
    same "who serves that device" "$pid" "$(cat "/sys/class/blktap2/blktap!blktap$minor/task")"
    guest run one "disk-load write /dev/xvdb bytes=16777216 block=65536 depth=8 &&
        disk-load write /dev/xvdb seed=2 from=16777216 bytes=4194304 depth=32 &&
        disk-load check /dev/xvdb bytes=16777216 && disk-load check /dev/xvdb seed=2 from=16777216 bytes=4194304 &&
        blkdiscard -o 0 -l 4194304 /dev/xvdb && dd if=/dev/xvdb bs=1M count=4 2>/dev/null | tr -d '\\000' | cmp - /dev/null"
    promises_kept
    guest_is_well one
    xl block-detach one xvdb
    await 30 "the end of tapdisk $pid" sh -c "! kill -0 $pid"
    ! xenstore-exists "$node" || fail "$node is still there"
    vhd-util check -n /srv/disk.vhd
    as_raw /srv/disk.vhd
    disk-load check /srv/read-back.raw from=4194304 bytes=12582912
    disk-load check /srv/read-back.raw seed=2 from=16777216 bytes=4194304
    # Nothing of it is left, and tap-ctl goes on without it.
    modprobe -r blktap
    rm /srv/*
}

# A guest on a chain of qcow2, whose middle goes into its parent while the guest writes.
case_qcow2_of_a_guest() {
    need_guest one
    modprobe -a ublk_drv xen-blkback
    qcow2-util create -f qcow2 /srv/base.qcow2 64M
    qcow2-util create -f qcow2 -F qcow2 -b base.qcow2 /srv/middle.qcow2
    serve qcow2:/srv/middle.qcow2
    qemu-io -f raw -c "write -P 7 32M 8M" "nbd+unix:///?socket=$socket" >/dev/null
    give_back
    qcow2-util create -f qcow2 -F qcow2 -b middle.qcow2 /srv/leaf.qcow2
    xl block-attach one vdev=xvdb,access=rw,script=block-tapdisk,target=qcow2:/srv/leaf.qcow2
    until_disk one xvdb
    local row
    row=$(tap-ctl list | grep 'args=qcow2:/srv/leaf.qcow2')
    pid=$(echo "$row" | sed -n 's/.*pid=\([0-9]*\) .*/\1/p')
    minor=$(echo "$row" | sed -n 's/.*minor=\([0-9]*\) .*/\1/p')
    guest run one "disk-load write /dev/xvdb bytes=8388608 block=65536 depth=8" &
    local load=$!
    tap-ctl commit -p "$pid" -m "$minor" -a /srv/middle.qcow2
    wait "$load" || fail "the load of the guest"
    await 60 "the end of the commit" sh -c "tap-ctl query -p $pid -m $minor | grep concluded"
    rm /srv/middle.qcow2
    guest run one "disk-load write /dev/xvdb seed=2 from=16777216 bytes=4194304 depth=32 &&
        disk-load check /dev/xvdb bytes=8388608 && disk-load check /dev/xvdb seed=2 from=16777216 bytes=4194304"
    guest_is_well one
    xl block-detach one xvdb
    await 30 "the end of tapdisk $pid" sh -c "! kill -0 $pid"
    qemu-img check /srv/base.qcow2
    qemu-img check /srv/leaf.qcow2
    qemu-img convert -f qcow2 -O raw /srv/leaf.qcow2 /srv/read-back.raw
    disk-load check /srv/read-back.raw bytes=8388608
    disk-load check /srv/read-back.raw seed=2 from=16777216 bytes=4194304
    qemu-io -f raw -c "read -P 7 32M 8M" /srv/read-back.raw | grep -q '8388608/8388608'
    rm /srv/*
}

# The same with a device that outlives its tapdisk, plugged by our own script, as on a Xen that
# knows no backendtype=tap.
case_blkback_on_block_tapdisk() {
    need_guest one
    modprobe -a ublk_drv xen-blkback
    vhd-util create -n /srv/disk.vhd -s 64
    xl block-attach one vdev=xvdb,access=rw,script=block-tapdisk,target=vhd:/srv/disk.vhd
    until_disk one xvdb
    local node device row said target
    node=/local/domain/0/backend/vbd/$(xl domid one)/$(device_number xvdb)
    device=$(xenstore-read "$node/physical-device-path")
    case $device in /dev/ublkb*) ;; *) fail "the device is $device" ;; esac
    row=$(tap-ctl list --devices | grep "^device=$device ") ||
        fail "tap-ctl list does not show $device"
    pid=${row#* pid=} pid=${pid%% *} minor=${row#* minor=} minor=${minor%% *}
    guest run one "disk-load write /dev/xvdb bytes=16777216 block=65536 depth=8"
    # The guest's requests wait meanwhile.
    kill -9 "$pid"
    await 20 "the end of tapdisk $pid" sh -c "! kill -0 $pid"
    same "the device comes back" "$device" "$(tap-ctl recover -m "$minor")"
    guest run one "disk-load check /dev/xvdb bytes=16777216 &&
        disk-load write /dev/xvdb seed=2 from=16777216 bytes=4194304 depth=32"
    row=$(tap-ctl list --devices | grep "^device=$device ")
    pid=${row#* pid=} pid=${pid%% *}
    guest_is_well one
    xl block-detach one xvdb
    await 30 "the end of tapdisk $pid" sh -c "! kill -0 $pid"
    same "devices at the end" "" "$(tap-ctl list --devices)"
    # Read-only stays so; a device whose tapdisk is dead goes as well. Limits come with the target.
    local began
    xl block-attach one \
        vdev=xvdb,access=ro,script=block-tapdisk,target=read-bps=2Mi,vhd:/srv/disk.vhd
    until_disk one xvdb
    began=$(date +%s)
    guest run one "[ \$(cat /sys/block/xvdb/ro) = 1 ] && disk-load check /dev/xvdb bytes=16777216"
    [ $(($(date +%s) - began)) -ge 7 ] || fail "a guest with 2 MiB a second read 16 MiB sooner"
    row=$(tap-ctl list --devices)
    pid=${row#* pid=} pid=${pid%% *}
    kill -9 "$pid"
    await 20 "the end of tapdisk $pid" sh -c "! kill -0 $pid"
    xl block-detach one xvdb
    same "devices at the end" "" "$(tap-ctl list --devices)"
    # What cannot work is said, and nothing is left.
    for target in /srv/disk.vhd vhd:disk.vhd vhd:/srv/nothing.vhd; do
        if said=$(xl block-attach one vdev=xvdc,access=rw,script=block-tapdisk,target=$target \
            2>&1); then
            fail "$target is taken"
        fi
        grep -E 'TYPE:PATH|/srv/nothing.vhd' <<<"$said" || fail "$target: xl says $said"
        same "devices of what was refused" "" "$(tap-ctl list --devices)"
        # xl leaves its node.
        xl block-detach one xvdc
    done
    vhd-util check -n /srv/disk.vhd
    as_raw /srv/disk.vhd
    disk-load check /srv/read-back.raw bytes=16777216
    disk-load check /srv/read-back.raw seed=2 from=16777216 bytes=4194304
    rm /srv/*
}

# ---- under I/O ---------------------------------------------------------------------------------------------------

case_snapshots_under_guest_io() {
    need_guest one
    vhd-util create -n /srv/0.vhd -s 32
    attach one xvda vhd /srv/0.vhd
    guest run one "(disk-load write /dev/xvda block=8192 depth=8; echo \$? >/tmp/ended) >/tmp/said 2>&1 &"
    local layer
    for layer in 1 2 3; do
        tap-ctl pause -p "$pid" -m "$minor"
        vhd-util snapshot -n "/srv/$layer.vhd" -p "/srv/$((layer - 1)).vhd"
        tap-ctl unpause -p "$pid" -m "$minor" -a "vhd:/srv/$layer.vhd"
        sleep 0.5
    done
    guest run one "while [ ! -e /tmp/ended ]; do usleep 100000; done; cat /tmp/said; [ \$(cat /tmp/ended) = 0 ] &&
        rm /tmp/ended && disk-load check /dev/xvda"
    guest_is_well one
    detach one xvda
    vhd-util check -n /srv/3.vhd -p
    serve vhd:/srv/3.vhd
    qemu-img convert -f raw -O raw "nbd+unix:///?socket=$socket" /srv/read-back.raw
    give_back
    disk-load check /srv/read-back.raw
    rm /srv/*
}

# tapback is not on the path of I/O: it may go and come back.
case_restarted_tapback() {
    need_guest one
    truncate -s 24M /srv/disk.raw
    attach one xvda raw /srv/disk.raw
    guest run one "(disk-load write /dev/xvda depth=4; echo \$? >/tmp/ended) >/tmp/said 2>&1 &"
    kill "$(cat /run/tapback.pid)"
    await 20 "tapback's end" sh -c '! pidof tapback'
    start_tapback
    guest run one "while [ ! -e /tmp/ended ]; do usleep 100000; done; cat /tmp/said; [ \$(cat /tmp/ended) = 0 ] &&
        rm /tmp/ended"
    kill -9 "$(cat /run/tapback.pid)"
    await 20 "tapback's end" sh -c '! pidof tapback'
    start_tapback
    guest run one "disk-load check /dev/xvda"
    detach one xvda
    disk-load check /srv/disk.raw
    rm /srv/*
}

# A disk of dom0 itself, whose front end is made of keys at first: each kind of nonsense is refused
# where the toolstack can read why, and does not keep the kernel's front end from using the same
# disk, on a ring of eight pages, afterwards.
case_front_end_that_writes_nonsense() {
    need_tapback
    local back=/local/domain/0/backend/vbd3/0/51712 front=/local/domain/0/device/vbd/51712 says
    says=/local/domain/0/error/${back#/local/domain/0/}/error
    truncate -s 16M /srv/disk.raw
    xl block-attach 0 "$(xl_disk xvda raw /srv/disk.raw)"
    local nonsense
    for nonsense in ring-page-order=4294967295 event-channel=x ring-ref=4000000000 multi-queue-num-queues=99; do
        await 20 "state 2 before $nonsense" at_state "$back" 2
        xenstore-write "$front/protocol" x86_64-abi "$front/ring-ref" 5 "$front/event-channel" 4000000000
        xenstore-write "$front/${nonsense%=*}" "${nonsense#*=}" "$front/state" 3
        await 20 "state 5 after $nonsense" at_state "$back" 5
        xenstore-exists "$says" || fail "nothing says what is wrong with $nonsense"
        xenstore-rm "$front/${nonsense%=*}"
        xenstore-write "$front/state" 6
        await 20 "state 6 after $nonsense" at_state "$back" 6
        xenstore-write "$front/state" 1
    done
    await 20 "state 2" at_state "$back" 2
    xenstore-rm "$front/ring-ref"
    xenstore-rm "$front/event-channel"
    modprobe xen-blkfront max_ring_page_order=3 &
    await 60 "the disk in dom0" has_size xvda 32768
    same "the ring's pages" 3 "$(xenstore-read "$front/ring-page-order")"
    ! xenstore-exists "$says" || fail "the error stays: $(xenstore-read "$says")"
    pid=$(xenstore-read "$back/pid") minor=$(xenstore-read "$back/minor")
    disk-load write /dev/xvda depth=8
    disk-load check /dev/xvda depth=8
    promises_kept
    xl block-detach 0 xvda
    await 30 "the end of the back end" sh -c "! xenstore-exists $back"
    modprobe -r xen-blkfront
    disk-load check /srv/disk.raw
    rm /srv/*
}

# Rings that no honest guest would make, from dom0's own grants. The same process serves another
# disk, whose bytes must stay what they are.
case_hostile_front_end() {
    local canary
    vhd-util create -n /srv/hostile.vhd -s 32
    truncate -s 8M /srv/canary.raw
    disk-load write /srv/canary.raw seed=9
    serve vhd:/srv/hostile.vhd
    qemu-io -f raw -c "write -P 7 8M 8M" "nbd+unix:///?socket=$socket" >/dev/null
    canary=$(tap-ctl allocate)
    canary=${canary##*-}
    tap-ctl attach -p "$pid" -m "$canary"
    tap-ctl open -p "$pid" -m "$canary" -a aio:/srv/canary.raw
    hostile-front "$pid" "$minor" 1
    hostile-front "$pid" "$minor" 2
    # Beyond the first MiB nothing was written that the checks below would not find.
    qemu-io -f raw -c "read -P 7 8M 8M" -c "read -P 0 16M 16M" "nbd+unix:///?socket=$socket" | tee /srv/said
    ! grep -q failed /srv/said || fail "the disk holds other bytes than its owner wrote"
    tap-ctl close -p "$pid" -m "$canary"
    tap-ctl detach -p "$pid" -m "$canary"
    tap-ctl free -m "$canary"
    give_back
    disk-load check /srv/canary.raw seed=9
    vhd-util check -n /srv/hostile.vhd
    rm /srv/*
}

# ---- ends of guests ------------------------------------------------------------------------------------------------

# Saved to a file, restored from it as another domain, then rebooted as yet another: with its disk
# each time.
case_saved_restored_rebooted() {
    need_guest two
    vhd-util create -n /srv/disk.vhd -s 32
    attach two xvda vhd /srv/disk.vhd
    guest run two "disk-load write /dev/xvda bytes=8388608"
    xl save two /srv/saved
    await 120 "the end of all tapdisks" sh -c '! pidof tapdisk'
    xl restore /srv/saved
    guest run two "disk-load check /dev/xvda bytes=8388608 &&
        disk-load write /dev/xvda seed=2 from=8388608 bytes=8388608 && (sleep 2; reboot -f) &"
    guest wait two
    until_disk two xvda
    guest run two "disk-load check /dev/xvda bytes=8388608 && disk-load check /dev/xvda seed=2 from=8388608 bytes=8388608"
    detach two xvda
    vhd-util check -n /srv/disk.vhd
    as_raw /srv/disk.vhd
    disk-load check /srv/read-back.raw bytes=8388608
    disk-load check /srv/read-back.raw seed=2 from=8388608 bytes=8388608
    rm /srv/*
}

# An image that is not there: xl says so, no tapdisk is left, and the place can be used again. (xl
# leaves the entry in xenstore until it is told to detach.)
case_missing_image() {
    need_guest one
    if xl block-attach one "$(xl_disk xvda vhd /srv/no-such.vhd)"; then
        fail "xl plugged an image that does not exist"
    fi
    await 60 "the end of all tapdisks" sh -c '! pidof tapdisk'
    # Xen's script complains that there is no tapdisk to destroy.
    xl block-detach one xvda || true
    await 60 "the end of the entry" sh -c '! xenstore-ls -f /local/domain/0/backend/vbd3 | grep -q state'
    truncate -s 8M /srv/there.raw
    attach one xvda raw /srv/there.raw
    detach one xvda
    rm /srv/*
}

# A guest destroyed in the middle of its writes, with one tapdisk killed before and one that lives:
# nothing that was acknowledged is lost, nothing is left, and the disks can be plugged elsewhere.
case_killed_tapdisk_and_destroyed_guest() {
    need_guest two
    vhd-util create -n /srv/killed.vhd -s 32
    vhd-util create -n /srv/living.vhd -s 32
    attach two xvdb vhd /srv/living.vhd
    attach two xvda vhd /srv/killed.vhd
    guest run two "disk-load write /dev/xvda bytes=4194304 && disk-load write /dev/xvdb bytes=4194304"
    guest run two "for disk in a b; do
        disk-load write /dev/xvd\$disk seed=2 from=4194304 depth=4 >/dev/null 2>&1 & done; sleep 1"
    local killed=$pid dead=$minor
    kill -9 "$killed"
    await 20 "the end of tapdisk $killed" sh -c "! kill -0 $killed"
    vhd-util check -i -n /srv/killed.vhd
    # Xen's script complains that there is no tapdisk to destroy.
    xl destroy two || true
    ! xl domid two 2>/dev/null || fail "the guest is still there"
    await 120 "the end of all tapdisks" sh -c '! pidof tapdisk'
    sweep "$killed" "$dead"
    vhd-util check -n /srv/living.vhd
    as_raw /srv/living.vhd
    disk-load check /srv/read-back.raw bytes=4194304
    need_guest one
    attach one xvda vhd /srv/killed.vhd
    guest run one "disk-load check /dev/xvda bytes=4194304 && disk-load write /dev/xvda seed=3 from=4194304 block=65536"
    detach one xvda
    vhd-util check -n /srv/killed.vhd
    as_raw /srv/killed.vhd
    disk-load check /srv/read-back.raw bytes=4194304
    disk-load check /srv/read-back.raw seed=3 from=4194304
    rm /srv/*
}

run_cases "$@"
