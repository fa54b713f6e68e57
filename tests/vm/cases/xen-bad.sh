# Real Xen, where everybody but tapback and tapdisk does what they should not: scripts, toolstacks,
# frontends, xenstored, and /dev. Meanwhile another guest uses its disk; each case ends with an
# honest front end on the disk it was about, and with as many watches, grants, event channels,
# descriptors and tapdisks as there were before.
# shellcheck shell=bash disable=SC2016
# shellcheck source=tests/vm/cases/xen-lib.sh
. /share/vm/cases/xen-lib.sh

# The disk that most cases are about: dom0's own, whose front end is made of keys, by xenstore-write
# and by xen-front.
back=/local/domain/0/backend/vbd3/0/51712 front=/local/domain/0/device/vbd/51712
said=/local/domain/0/error/backend/vbd3/0/51712/error
log=/run/tapback.log
canary=/run/canary

# One whose words can be read.
start_tapback() {
    rm -f /run/tapback.pid
    setsid tapback -d -p /run/tapback.pid </dev/null >/dev/null 2>>$log &
    await 30 "tapback's pid file" test -s /run/tapback.pid
}

# ---- another guest, all the time ----------------------------------------------------------------------------------

# Guest one writes and checks xvdb from now on, for as long as all is well.
need_canary() {
    if [ -e $canary ] && xl domid one >/dev/null 2>&1; then
        return
    fi
    need_guest one
    truncate -s 8M /var/canary.raw
    attach one xvdb raw /var/canary.raw
    guest run one "(round=0; while [ ! -e /tmp/stop ]; do
            round=\$((round + 1))
            disk-load write /dev/xvdb seed=\$round bytes=1048576 && disk-load check /dev/xvdb seed=\$round bytes=1048576 || break
            echo \$round >/tmp/rounds
            usleep 700000
        done) >/tmp/canary 2>&1 </dev/null &"
    await 60 "the first writes of the other guest" more_writes_than 0 "$pid" "$minor"
    echo "$pid $minor $node" >$canary
    in_use >$canary.in-use
}

# What a disk that has gone must not leave. (A grant that is only copied from or to is not mapped.)
in_use() {
    # It appends. (oxenstored does not tell.)
    rm -f /run/memreport
    pidof oxenstored >/dev/null || xenstore-control memreport /run/memreport >/dev/null
    echo "watches $(grep -cs 'struct watch' /run/memreport || true)"
    xl dmesg -c >/dev/null
    xl debug-keys g
    echo "granted pages that are mapped $(xl dmesg | grep -c '^(XEN) \[ *[0-9]')"
    echo "event channels of tapdisks $(grep -c evtchn:tapdisk /proc/interrupts)"
    echo "descriptors of tapback $(find "/proc/$(pidof tapback)/fd" -type l | wc -l)"
    echo "tapdisks $(pidof tapdisk | wc -w), back ends $(find_backends | wc -l)"
    echo "errors $(xenstore-ls -f /local/domain/0/error 2>/dev/null | grep -c vbd3/ || true)"
    echo "files" "$(find /dev/shm /dev/shm/metrics /run/blktap-control -maxdepth 1 -name '*[0-9]*' | sort)"
}

as_before() { [ "$(in_use)" = "$(<$canary.in-use)" ]; }

# In place of lib.sh's, as one disk stays.
# shellcheck disable=SC2317
nothing_left() {
    if [ ! -e $canary ]; then
        return
    fi
    if ! (await 30 "nothing left" as_before); then
        fail "before: $(<$canary.in-use), after: $(in_use)"
    fi
    local pid minor node before
    read -r pid minor node <$canary
    before=$(writes_of_rings "$pid" "$minor")
    await 60 "more writes of the other guest" more_writes_than "$before" "$pid" "$minor"
    at_state "$node" 4 || fail "the other guest's disk is in state $(xenstore-read "$node/state")"
}

# ---- plugging -------------------------------------------------------------------------------------------------------

# A hotplug script of ours; its body runs at `add`.
script() { # name, body
    printf '#!/bin/bash\n[ "$1" = add ] || exit 0\n%s\n' "$2" >"/etc/xen/scripts/block-$1"
    chmod 755 "/etc/xen/scripts/block-$1"
}

plug() { # script, vdev
    [ -e /srv/disk.raw ] || truncate -s 8M /srv/disk.raw
    xl block-attach 0 "vdev=${2:-xvda},access=rw,backendtype=tap,format=raw,${1:+script=block-$1,}target=/srv/disk.raw"
}

unplug() { # vdev
    xl block-detach 0 "${1:-xvda}"
    await 30 "the end of the back end" sh -c "! xenstore-exists /local/domain/0/backend/vbd3/0/$(device_number "${1:-xvda}")"
}

# The disk works, with the script that Xen has for it.
plugs_well() {
    plug ""
    xen-front use 51712
    unplug
}

holds() { # path, text in its value
    [[ $(xenstore-read "$1") == *"$2"* ]]
}

# A front end has the back end's state 5, may close, and begin again.
begins_again() {
    await 20 "state 5" at_state "$back" 5
    xenstore-write "$front/state" 6
    await 20 "state 6" at_state "$back" 6
    xenstore-write "$front/state" 1
    await 20 "state 2" at_state "$back" 2
}

case_scripts_that_fail() {
    need_canary
    script fails 'exit 1'
    script says 'xenstore-write "$XENBUS_PATH/hotplug-error" "the images are away" "$XENBUS_PATH/hotplug-status" error; exit 1'
    local name
    for name in fails says; do
        if plug $name; then
            fail "xl plugged a disk whose script fails"
        fi
        # A guest that is eager is not served, and not sent away: the toolstack may try again.
        xenstore-write "$front/ring-ref" 5 "$front/event-channel" 5 "$front/state" 3
        at_state "$back" 2 || fail "$name: state $(xenstore-read "$back/state")"
        if [ $name = says ]; then
            holds "$back/hotplug-error" "the images are away" || fail "the script's words are gone"
        fi
        xenstore-write "$front/state" 1
        unplug
    done
    plugs_well
    rm /srv/*
}

# xl gives up after 40 s; tapback serves others meanwhile and afterwards.
case_a_script_that_never_ends() {
    need_canary
    script hangs 'echo $$ >/run/hangs; exec sleep 1000'
    rm -f /run/hangs
    truncate -s 8M /srv/disk.raw
    plug hangs &
    local plugging=$!
    await 20 "the script" test -s /run/hangs
    plug "" xvdc
    xen-front use 51744
    unplug xvdc
    if wait $plugging; then
        fail "xl plugged a disk whose script did not end"
    fi
    await 20 "the end of the script" sh -c "! kill -0 $(</run/hangs)"
    at_state "$back" 2 || fail "state $(xenstore-read "$back/state")"
    unplug
    plugs_well
    rm /srv/*
}

# The path of no tapdisk, of a dead one, of something else; the right one, written later, makes the
# disk work.
case_scripts_that_name_no_tapdisk() {
    need_canary
    script names 'xenstore-write "$XENBUS_PATH/physical-device-path" "$(</run/named)" "$XENBUS_PATH/hotplug-status" connected'
    truncate -s 8M /srv/disk.raw
    serve aio:/srv/disk.raw
    local dead=$pid dead_minor=$minor dead_socket=$socket path wants
    kill -9 "$dead"
    await 20 "the end of tapdisk $dead" sh -c "! kill -0 $dead"
    serve aio:/srv/disk.raw
    for path in "$dead_socket" /run/blktap-control/nbd99999.0 /dev/sda ../../etc/passwd "/run/blktap-control/nbd$pid.77"; do
        wants="no tapdisk of that pid runs here"
        case $path in
            *sda | *passwd) wants="not /run/blktap-control/nbd<pid>.<minor>" ;;
            *.77) wants="refused" ;;
            "$dead_socket") wants="cannot connect to /run/blktap-control/ctl$dead" ;;
        esac
        printf %s "$path" >/run/named
        plug names
        await 20 "what is said of $path" holds "$back/hotplug-error" "$wants"
        await 5 "the same where errors are" holds "$said" "$wants"
        grep -qF "$wants" $log || fail "the log says nothing of $path"
        xenstore-write "$back/physical-device-path" "$socket"
        await 70 "the tapdisk's pid" holds "$back/kthread-pid" "$pid"
        ! xenstore-exists "$back/hotplug-error" || fail "the error stays: $(xenstore-read "$back/hotplug-error")"
        xen-front use 51712
        unplug
    done
    give_back
    # What a killed tapdisk leaves. (The other guest's files in /dev/shm stay, which sweep would
    # take.)
    rm -rf /run/blktap-control/{ctl,nbdclient}"$dead" /run/blktap-control/nbd*"$dead.$dead_minor" \
        "/dev/shm/td3-$dead" "/dev/shm/metrics/tap-$dead-$dead_minor"
    tap-ctl free -m "$dead_minor" || true
    rm /srv/*
}

# ---- keys -----------------------------------------------------------------------------------------------------------

# Sets the keys of a ring, then a wrong one (none: removes it), and asks for the sentence that says
# so.
frontend_is_refused() { # key, value, sentence
    xenstore-write "$front/protocol" x86_64-abi "$front/ring-ref" 4000000 "$front/event-channel" 4000000
    if [ "$2" = none ]; then
        xenstore-rm "$front/$1"
    else
        xenstore-write -- "$front/$1" "$2"
    fi
    xenstore-write "$front/state" 3
    await 20 "an error of $1=$2" holds "$said" "$3"
    ! xenstore-exists "$back/hotplug-error" || fail "hotplug-error of what the frontend wrote"
    grep -qF "${3#22 }" $log || fail "the log says nothing of $1=$2"
    xenstore-rm "$front/$1"
    begins_again
}

case_keys_missing_and_malformed() {
    need_canary
    plug ""
    frontend_is_refused ring-ref none "22 frontend: ring-ref is missing"
    frontend_is_refused event-channel none "22 frontend: event-channel is missing"
    frontend_is_refused ring-ref -1 '22 frontend: ring-ref is "-1", not a number'
    frontend_is_refused ring-ref 99999999999999999999 "not a number"
    frontend_is_refused event-channel $'\001\377\376' "not a number"
    frontend_is_refused ring-page-order 99 "22 frontend: ring-page-order is 99, above 3"
    frontend_is_refused ring-page-order x 'ring-page-order is "x", not a number'
    frontend_is_refused ring-page-order 1 "22 frontend: ring-ref0 is missing"
    frontend_is_refused protocol foo '22 frontend: the protocol "foo" is not known'
    frontend_is_refused multi-queue-num-queues 0 "multi-queue-num-queues is 0, not 1 to 4"
    frontend_is_refused multi-queue-num-queues 4294967295 "not 1 to 4"
    frontend_is_refused multi-queue-num-queues 2 "22 frontend: queue-0/ring-ref is missing"
    frontend_is_refused feature-persistent yes "refused sring connect"
    # The toolstack's: said where it looks, and mended by it.
    xenstore-rm "$back/mode"
    xenstore-write "$back/hotplug-status" connected
    await 20 "what is said of the mode" holds "$back/hotplug-error" "mode is missing; it has to be r or w"
    xenstore-write "$back/mode" rw
    await 20 "what is said of the mode" holds "$back/hotplug-error" 'mode is "rw", not r or w'
    xenstore-write "$back/mode" w
    await 20 "no more of it" sh -c "! xenstore-exists $back/hotplug-error"
    xenstore-rm "$back/frontend"
    xenstore-write "$back/frontend" "$front"
    # Ours, whatever somebody wrote there.
    xenstore-write -- "$back/sectors" 99999999999999999999 "$back/sector-size" -4 "$back/info" x "$back/kthread-pid" ""
    xen-front use 51712
    same "sectors" 16384 "$(xenstore-read "$back/sectors")"
    same "sector-size" 512 "$(xenstore-read "$back/sector-size")"
    same "info" 0 "$(xenstore-read "$back/info")"
    unplug
    rm /srv/*
}

case_keys_that_change_between_reads() {
    need_canary
    plug ""
    local seed
    for seed in 1 2 3; do
        xen-front flip 51712 $seed 4000
        xen-front use 51712
    done
    unplug
    rm /srv/*
}

# ---- states ----------------------------------------------------------------------------------------------------------

case_frontends_that_jump_states() {
    need_canary
    plug ""
    local states seed
    for states in "1 4" "3 1 3" "4 3 4" "3 4 6 3" "6 4" "3 5 3" "4 5 6 4" "5 6 5 1" "2 7 8 99 0 3" "four 3 -1 4" \
        "- 1 3" "3 - 3" "4 - - 4 1" "5 - 5 3"; do
        # shellcheck disable=SC2086
        xen-front walk 51712 $states
    done
    xen-front use 51712
    for seed in 1 2 3; do
        xen-front jump 51712 $seed 400
        xen-front use 51712
    done
    # Without its state the end of the front end's directory is noticed all the same.
    xenstore-rm "$front/state"
    await 20 "state 6" at_state "$back" 6
    xenstore-exists "$back/hotplug-status" || fail "hotplug-status went with the state"
    xenstore-rm "$front"
    await 20 "the end of hotplug-status" sh -c "! xenstore-exists $back/hotplug-status"
    unplug
    plugs_well
    rm /srv/*
}

# ---- rings that Linux's blkfront does not make here --------------------------------------------------------------------

# A 32-bit guest's, and one that does not say what it is; one to eight pages. Data, indirect, flush,
# barrier, discard.
case_layouts_and_sizes_of_rings() {
    need_canary
    plug ""
    local order protocol
    for order in 0 1 2 3; do
        for protocol in x86_32-abi absent x86_64-abi; do
            xen-front use 51712 $order $protocol
        done
    done
    unplug
    rm /srv/*
}

# ---- what is around ---------------------------------------------------------------------------------------------------

hide() { # path
    mkdir -p "/run/hidden${1%/*}"
    mv "$1" "/run/hidden$1"
}

unhide() {
    local path
    for path in /run/hidden/{dev/xen,run/xenstored}/*; do
        [ ! -e "$path" ] || mv "$path" "${path#/run/hidden}"
    done
}

# A guest's disk waits for the device; what is connected goes on.
case_devices_of_dev_xen_missing() {
    need_canary
    trap unhide EXIT
    local device node
    truncate -s 8M /srv/disk.raw
    node=/local/domain/0/backend/vbd3/$(xl domid one)/$(device_number xvdc)
    for device in gntdev evtchn; do
        hide /dev/xen/$device
        xl block-attach one "$(xl_disk xvdc raw /srv/disk.raw)"
        await 20 "an error" holds "$node/hotplug-error" "refused sring connect"
        pid=$(xenstore-read "$node/pid")
        # Its file is written when it is asked to.
        kill -USR1 "$pid"
        await 20 "/dev/xen/$device in tapdisk's log" \
            grep "cannot open /dev/xen/$device" "/var/log/blktap/tapdisk.$pid.log"
        unhide
        until_disk one xvdc
        ! xenstore-exists "$node/hotplug-error" || fail "the error stays: $(xenstore-read "$node/hotplug-error")"
        guest run one "disk-load write /dev/xvdc depth=8 && disk-load check /dev/xvdc"
        detach one xvdc
    done
    # A tapback that starts now says it.
    hide /dev/xen/gntdev
    kill "$(pidof tapback)"
    await 20 "tapback's end" sh -c '! pidof tapback'
    start_tapback
    grep -q "/dev/xen/gntdev is missing" $log || fail "tapback says nothing of /dev/xen/gntdev"
    unhide
    plugs_well
    # Without a way to xenstored it does not start.
    local how
    hide /dev/xen/xenbus
    hide /run/xenstored/socket
    for how in -d ""; do
        # shellcheck disable=SC2086
        if tapback $how -n other 2>/run/words; then
            fail "a tapback without xenstored serves"
        fi
        grep "there is no xenstore here, is this Xen? Tried /run/xenstored/socket" /run/words
    done
    unhide
    plugs_well
    rm /srv/*
}

# xenstored is replaced while it runs: connections, transactions and watches are handed on.
case_live_update_of_xenstored() {
    need_canary
    local lost daemon
    lost=$(grep -c 'disks that are connected stay so' $log || true)
    truncate -s 8M /srv/other.raw
    attach one xvdc raw /srv/other.raw
    guest run one 'disk-load overwrite /dev/xvdc depth=8 bytes=4194304 seconds=300 >/dev/null 2>&1 </dev/null & echo $! >/tmp/load'
    plug ""
    daemon=$(</run/xenstored/xenstored.pid)
    local round before
    for round in 1 2 3; do
        xen-front jump 51712 $round 200 &
        before=$(writes_of_rings "$pid" "$minor")
        xenstore-control live-update "$(readlink "/proc/$daemon/exe")"
        wait $! || fail "a front end did not survive"
        xen-front use 51712
        await 60 "more writes of the guest" more_writes_than "$before" "$pid" "$minor"
    done
    # It is the same process, after exec.
    tr '\0' ' ' <"/proc/$daemon/cmdline" | grep -e ' -U' -e ' --live' || fail "xenstored was not updated"
    same "connections that tapback lost" "${lost:-0}" "$(grep -c 'disks that are connected stay so' $log || true)"
    unplug
    guest run one 'kill $(cat /tmp/load); wait; sync'
    detach one xvdc
    plugs_well
    rm /srv/*
}

# ---- a driver domain ----------------------------------------------------------------------------------------------------

# xl in dom0 and `xl devd` in the driver domain do all of it.
case_driver_domain_with_xl_devd() {
    need_canary
    start_driver_domain xl bash flock stat expr xenstore-read xenstore-write xenstore-list
    guest run driver 'head -c 12582912 /dev/zero >/srv/disk.raw; (xl devd -F >/srv/devd.log 2>&1 </dev/null &)
        until xenstore-read domid; do usleep 100000; done'
    local there round
    there=/local/domain/$(xl domid driver)/backend/vbd3
    for round in 1 2; do
        xl block-attach one "backend=driver,$(xl_disk xvda raw /srv/disk.raw)"
        until_disk one xvda
        guest run one "disk-load write /dev/xvda seed=$round depth=8 && disk-load check /dev/xvda seed=$round"
        guest run driver "cat /srv/devd.log; tap-ctl list | grep disk.raw"
        xl block-detach one xvda
        await 30 "the end of the back end" sh -c "! xenstore-exists $there"
        guest run driver "until ! pidof tapdisk; do usleep 100000; done; disk-load check /srv/disk.raw seed=$round"
    done
    denied_in_driver_domain
    guest_is_well one
    guest_is_well driver
    guest stop driver
}

# Only dom0 may read everything; a driver domain reads what the guest, or here dom0, lets it.
denied_in_driver_domain() {
    local node front says rights path
    rights=n$(xl domid one)
    node=/local/domain/$(xl domid driver)/backend/vbd3/$(xl domid one)/51712
    front=/local/domain/$(xl domid one)/device/vbd/51712
    says=/local/domain/$(xl domid driver)/error/backend/vbd3/$(xl domid one)/51712/error
    # Played by hand, so that the guest is in 3 before the script is done.
    guest run driver 'kill $(pidof xl); tap-ctl create -a aio:/srv/disk.raw && cd /run/blktap-control && echo path nbd[0-9]*' >/srv/path
    path=$(sed -n 's/^path //p' /srv/path)
    xl block-attach one "backend=driver,$(xl_disk xvda raw /srv/disk.raw)"
    await 30 "the guest's ring" at_state "$front" 3
    xenstore-chmod "$front/ring-ref" "$rights"
    xenstore-write "$node/physical-device-path" "/run/blktap-control/$path" "$node/hotplug-status" connected
    await 30 "what is said of the ring" holds "$says" "cannot read $front/ring-ref in xenstore: permission denied"
    # Linux's blkfront closes then.
    await 30 "state 6" at_state "$node" 6
    xenstore-chmod "$front/state" "$rights"
    await 30 "what is said of the state" holds "$says" "cannot read $front/state in xenstore: permission denied"
    xenstore-chmod "$front/state" "$rights" "r$(xl domid driver)"
    await 90 "no more of it" sh -c "! xenstore-exists $says"
    xl block-detach one xvda &
    local unplugging=$!
    await 30 "what xl wants" holds "$node/online" 0
    at_state "$node" 6 || fail "state $(xenstore-read "$node/state")"
    # The part of `xl devd`; an xl that had not looked by then complains, and is asked again.
    xenstore-rm "$node"
    wait $unplugging || xl block-detach one xvda
    guest run driver 'tap-ctl destroy -m 0 -p $(pidof tapdisk) && ! pidof tapdisk'
}

# ---- the end --------------------------------------------------------------------------------------------------------------

# What the other guest saw of all this: nothing.
case_the_other_guest_all_the_time() {
    need_canary
    local rounds
    guest run one 'touch /tmp/stop; while pidof disk-load || ps | grep -q "[u]sleep 700000"; do usleep 100000; done
        cat /tmp/canary | tail -n 2; echo "rounds $(cat /tmp/rounds)"' >/run/words
    rounds=$(sed -n 's/^rounds //p' /run/words)
    [ "$rounds" -gt 0 ] || fail "no round"
    guest_is_well one
    detach one xvdb
    disk-load check /var/canary.raw "seed=$rounds" bytes=1048576
    rm -f $canary /var/canary.raw
    await 20 "the last tapdisk's end" sh -c '! pidof tapdisk'
    same "tap-ctl list at the end" "" "$(tap-ctl list)"
    nothing_more_left
}

run_cases "$@"
