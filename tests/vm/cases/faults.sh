# The machine without Xen: what goes wrong around a block device, for each of the three ways to have
# one (ublk, the blktap module, the kernel's NBD client): a module of another version, no privilege,
# numbers that are in use, a store that vanishes under load, a user that dies in the middle of a
# request, a tapdisk killed at any moment. Each time:
# shellcheck shell=bash disable=SC2119,SC2120,SC2012
# Modules to be built beside the true one, with another value of a constant:
# module: BLKTAP_CTL_ALLOC=210
# module: BLKTAP_REQUESTS=16
# module: BLKTAP_RING_CREATE=218
# module: BLKTAP_RING_RESPOND=9
# shellcheck source=tests/vm/cases/lib.sh
export case_limit=${case_limit:-480}
. /share/vm/cases/lib.sh

nodes=/dev/xen/blktap-2
kinds='ublk blktap nbd'

clean_up() {
    umount -l /mnt /media
    local tapdisk minor pid
    for tapdisk in $(pidof tapdisk); do
        kill -9 "$tapdisk"
    done
    sleep 1
    for minor in $(tap-ctl list | sed -n 's/.*minor=\([0-9]*\).*/\1/p'); do
        tap-ctl recover -m "$minor" --remove
        tap-ctl free -m "$minor"
    done
    nbd-client -d /dev/nbd0
    pressure dm-remove store
    losetup -D
    modprobe -r nbd ublk_drv blktap scsi_debug
    rm -rf /srv/* /run/blktap-control/*
}

show_state() {
    tap-ctl list
    tap-ctl list --devices
    ls -l /dev/ublk* $nodes /sys/class/blktap2 /run/blktap-control
    grep -H . /sys/class/blktap2/blktap*/debug /sys/block/nbd*/pid
    local process
    for process in $(pidof tapdisk); do
        tail -n 20 "/proc/$process/task"/*/{comm,stack}
    done
    dmesg | tail -n 25
    tail -n 30 /var/log/blktap/*.log
}

kernel_is_well() {
    local bad
    bad=$(dmesg | grep -E 'BUG|WARNING:|Oops|general protection|blocked for more than|segfault|Call Trace' || true)
    same "the kernel's messages" "" "$bad"
    dmesg -C
}

nothing_more_left() {
    local left
    left=$(ls -d /sys/class/blktap2/blktap!* /sys/class/ublk-char/* /sys/block/td* /sys/block/ublkb* /sys/block/nbd*/pid 2>/dev/null || true)
    same "minors and devices at the end" "" "$left"
    left=$(find $nodes /dev -maxdepth 1 \( -name 'blktap[0-9]*' -o -name 'tapdev*' -o -name 'ublk[bc]*' \) 2>/dev/null || true)
    same "nodes at the end" "" "$left"
    left=$(find /run/blktap-control -name 'device*' -o -name 'tapdisk-[0-9]*')
    same "records and markers at the end" "" "$left"
    same "tapdisk's panics" "" "$(grep -h -i 'panic' /var/log/blktap/*.log || true)"
}

# One way alone, so that `--device` takes it.
driver() { # kind
    kind=$1
    modprobe -r ublk_drv nbd blktap
    case $kind in
        ublk) modprobe ublk_drv ;;
        blktap) modprobe blktap ;;
        nbd) modprobe nbd max_part=0 nbds_max=2 ;;
    esac
}

# Sets disk, pid and minor.
device() { # type:path, more options of tap-ctl create
    disk=$(tap-ctl create -a "$@" --device) || fail "tap-ctl create -a $* --device"
    [ -b "$disk" ] || fail "$disk is no block device"
    case $kind:$disk in ublk:/dev/ublkb* | blktap:"$nodes"/tapdev* | nbd:/dev/nbd*) ;; *) fail "$disk is not of $kind" ;; esac
    local row
    row=$(tap-ctl list --devices | grep "^device=$disk ") || fail "tap-ctl list does not show $disk"
    pid=$(echo "$row" | sed -n 's/.* pid=\([0-9]*\) .*/\1/p')
    minor=$(echo "$row" | sed -n 's/.* minor=\([0-9]*\) .*/\1/p')
}

# Ends with a status and a sentence of the program or of tapdisk's log; no disk more than before.
refused() { # status, words, command ...
    local status=0 wanted=$1 words=$2 said before
    before=$(tap-ctl list)
    shift 2
    said=$(TAP_CTL_VERBOSE=1 "$@" 2>&1) || status=$?
    same "status of $* ($said)" "$wanted" "$status"
    grep -q "$words" <<<"$said" || grep -h "$words" /var/log/blktap/*.log || fail "$* says: $said"
    same "disks after $*" "$before" "$(tap-ctl list)"
}

# What the kernel counts of the device.
counters() { echo "/sys/dev/block/$((0x$(stat -Lc %t "$disk"))):$((0x$(stat -Lc %T "$disk")))"; }

kib_written() { awk '{ print int($7 / 2) }' "$(counters)/stat"; }

has_written() { [ "$(kib_written)" -ge "$1" ]; }

# ---- versions, privilege, numbers ----------------------------------------------------------------------------
other_module() { # NAME=VALUE
    modprobe -r ublk_drv nbd blktap
    insmod "/share/modules/$1.ko"
    kind=blktap
}

case_module_of_another_version() {
    truncate -s 16M /srv/disk
    other_module BLKTAP_CTL_ALLOC=210
    refused 25 "does not know ALLOC_TAP: it is of another version" tap-ctl create -a aio:/srv/disk
    refused 25 "does not know ALLOC_TAP" tap-ctl allocate
    # A ring of another size.
    other_module BLKTAP_REQUESTS=16
    refused 22 "another version" tap-ctl create -a aio:/srv/disk
    await 20 "the end of tapdisk" sh -c '! pidof tapdisk'
    # CREATE_DEVICE of the first modules alone: all is as with these.
    other_module BLKTAP_RING_CREATE=218
    device aio:/srv/disk
    same "cache" "write through" "$(cat /sys/block/tda/queue/write_cache)"
    disk-load write "$disk" depth=8 bytes=$((4 << 20)) seed=1
    disk-load check "$disk" depth=8 bytes=$((4 << 20)) seed=1
    give_back
    # Answers that nobody takes: errors, and the device goes.
    other_module BLKTAP_RING_RESPOND=9
    device aio:/srv/disk
    if timeout -k 5 60 dd if="$disk" of=/dev/null bs=4k count=1 iflag=direct; then fail "read without an answer"; fi
    await 20 "the end of the device" sh -c '! [ -e /sys/block/tda ]'
    same "list" "pid=$pid minor=$minor state=0 args=aio:/srv/disk" "$(tap-ctl list)"
    tap-ctl destroy -p "$pid" -m "$minor"
    await 20 "the end of tapdisk" sh -c '! pidof tapdisk'
    # While it serves a disk, tapdisk writes no files.
    grep -h "does not take answers" /var/log/blktap/*.log
    modprobe -r blktap
    rm /srv/*
}

case_no_privilege() {
    truncate -s 16M /srv/disk
    chmod 666 /srv/disk
    install -d -o 65534 -m 700 /tmp/user
    local user=(env XDG_RUNTIME_DIR=/tmp/user setpriv --reuid 65534 --regid 65534 --clear-groups)
    local way
    # An ordinary user, who has no minors of the module; also where the nodes are everybody's.
    for way in ublk:13 nbd:1 blktap:1; do
        driver ${way%:*}
        refused ${way#*:} "block devices are made by root" "${user[@]}" tap-ctl create -a aio:/srv/disk --device
        await 20 "the end of tapdisk" sh -c '! pidof tapdisk'
    done
    driver ublk
    chmod 666 /dev/ublk-control
    refused 1 "block devices are made by root" "${user[@]}" tap-ctl create -a aio:/srv/disk --device
    await 20 "the end of tapdisk" sh -c '! pidof tapdisk'
    # Root without the privilege, as in a container.
    local contained=(setpriv --bounding-set -sys_admin --inh-caps -sys_admin)
    refused 1 "it takes root (CAP_SYS_ADMIN)" "${contained[@]}" tap-ctl create -a aio:/srv/disk --device
    driver nbd
    refused 1 "takes root (CAP_SYS_ADMIN)" "${contained[@]}" tap-ctl create -a aio:/srv/disk --device
    # The module's minors are root's.
    driver blktap
    user=(setpriv --reuid 65534 --regid 65534 --clear-groups)
    user+=(env TAPDISK_RUN_DIR=/run/blktap-control)
    chmod 755 /run/blktap-control
    refused 13 "minors of the blktap module are root's to allocate" "${user[@]}" tap-ctl allocate
    await 20 "the end of tapdisk" sh -c '! pidof tapdisk'
    same "files of an ordinary user" "" "$(find /tmp/user ! -type d ! -name '*.log')"
    rm -rf /srv/* /tmp/user
}

case_numbers_in_use() {
    truncate -s 16M /srv/disk /srv/other
    local other
    # Ours, with another disk.
    for other in ublk:/dev/ublkb0:17 nbd:/dev/nbd0:16; do
        driver "${other%%:*}"
        device aio:/srv/disk
        same "device" "$other" "$kind:$disk:${other##*:}"
        refused "${other##*:}" "in use" tap-ctl create -a aio:/srv/other --device-name "$disk"
        # Another number is free.
        local first=("$disk" "$pid" "$minor")
        device aio:/srv/other
        [ "$disk" != "${first[0]}" ] || fail "both disks are $disk"
        give_back
        disk=${first[0]} pid=${first[1]} minor=${first[2]}
        dd if="$disk" of=/dev/null bs=1M iflag=direct status=none
        give_back
    done
    # Another program's.
    driver nbd
    device aio:/srv/disk --device-name /dev/nbd1
    nbd-client -unix "/run/blktap-control/nbd$pid.$minor" /dev/nbd0
    await 20 "nbd0" test -e /sys/block/nbd0/pid
    refused 16 "in use" tap-ctl create -a aio:/srv/other --device-name /dev/nbd0
    nbd-client -d /dev/nbd0
    await 20 "the end of nbd0" test ! -e /sys/block/nbd0/pid
    give_back
    # A minor that has a tapdisk.
    driver blktap
    device aio:/srv/disk
    local second
    second=$(tap-ctl spawn)
    refused 22 "process $pid has its ring" tap-ctl attach -p "$second" -m "$minor"
    kill -INT "$second"
    give_back
    modprobe -r blktap
    rm /srv/*
}

# ---- the store vanishes --------------------------------------------------------------------------------------
# Under load, below a disk that is a block device (raw) and a VHD in a file system; then it comes
# back.
vanishes() { # kind
    driver "$1"
    truncate -s 64M /srv/store
    local loop store sectors
    loop=$(losetup -f --show /srv/store)
    sectors=$(blockdev --getsz "$loop")
    store=$(pressure dm store "0 $sectors linear $loop 0")
    local image
    for image in aio:"$store" vhd:/media/disk.vhd; do
        if [ "$image" = vhd:/media/disk.vhd ]; then
            mke2fs -q -F -t ext4 "$store"
            mount "$store" /media
            vhd-util create -n /media/disk.vhd -s 48
        fi
        device "$image"
        # Allocated, and flushed: what is lost later are writes to it.
        disk-load write "$disk" depth=32 bytes=$((16 << 20)) seed=6
        local before
        before=$(kib_written)
        (while disk-load write "$disk" depth=32 bytes=$((16 << 20)) seed=7; do :; done) >/srv/load 2>&1 &
        local load=$!
        await 60 "the load" has_written $((before + 2048))
        pressure dm store "0 $sectors error"
        wait $load
        grep . /srv/load >&2
        if dd if=/dev/urandom of="$disk" bs=4k count=1 oflag=direct 2>/dev/null; then fail "a lost store was written"; fi
        promises_kept
        same "list" "pid=$pid minor=$minor state=0 args=$image" "$(tap-ctl list)"
        pressure dm store "0 $sectors linear $loop 0"
        if [ "$image" = aio:"$store" ]; then
            # It is there again, and nothing has to be done.
            disk-load write "$disk" depth=32 bytes=$((4 << 20)) seed=8
            disk-load check "$disk" depth=32 bytes=$((4 << 20)) seed=8
            give_back
        else
            # The file system below has given up; the disk can be closed nevertheless.
            tap-ctl destroy -p "$pid" -m "$minor" || tap-ctl close -f -p "$pid" -m "$minor" || true
            if [ -n "$(tap-ctl list)" ]; then
                tap-ctl detach -p "$pid" -m "$minor"
                tap-ctl free -m "$minor"
            fi
            umount /media
            e2fsck -fy "$store" || [ $? -le 2 ] || fail "the file system below"
            mount "$store" /media
            # Its footer is written when it is closed: the copy at the beginning is what is left.
            vhd-util check -i -n /media/disk.vhd
            umount /media
        fi
        nothing_left
    done
    pressure dm-remove store
    losetup -d "$loop"
    rm /srv/*
}

case_store_vanishes_under_ublk() {
    vanishes ublk
}
case_store_vanishes_under_blktap() {
    vanishes blktap
}
case_store_vanishes_under_nbd() {
    vanishes nbd
}

# ---- deaths --------------------------------------------------------------------------------------------------
# Whoever reads and writes dies in the middle of a request that cannot be answered yet.
case_user_dies_in_the_middle_of_a_request() {
    truncate -s 16M /srv/disk
    local way reader writer
    for way in $kinds; do
        driver "$way"
        device aio:/srv/disk
        tap-ctl pause -p "$pid" -m "$minor"
        dd if="$disk" of=/dev/null bs=64k count=1 iflag=direct 2>/dev/null &
        reader=$!
        dd if=/dev/zero of="$disk" bs=64k count=4 oflag=direct 2>/dev/null &
        writer=$!
        await 20 "requests" sh -c "awk '{ exit \$1 + \$2 < 2 }' $(counters)/inflight"
        kill -9 $reader $writer
        tap-ctl unpause -p "$pid" -m "$minor"
        wait $reader $writer || true
        disk-load write "$disk" depth=8 bytes=$((1 << 20)) seed=3
        disk-load check "$disk" depth=8 bytes=$((1 << 20)) seed=3
        give_back
        nothing_left
    done
    rm /srv/*
}

# A disk's life, from its start to its end; it stops at the first command that fails.
life() {
    set +eEx
    trap - ERR
    disk=$(tap-ctl create -a vhd:/srv/disk.vhd --device) || exit 0
    read -r pid minor < <(tap-ctl list | sed -n 's/^pid=\([0-9]*\) minor=\([0-9]*\) .*/\1 \2/p')
    dd if=/dev/zero of="$disk" bs=64k count=16 oflag=direct status=none || exit 0
    tap-ctl pause -p "$pid" -m "$minor" || exit 0
    tap-ctl unpause -p "$pid" -m "$minor" || exit 0
    dd if="$disk" of=/dev/null bs=64k count=16 iflag=direct status=none || exit 0
    tap-ctl destroy -p "$pid" -m "$minor"
}

milliseconds() { echo $((${EPOCHREALTIME/[.,]/} / 1000)); }

# What tap-ctl list shows of the dead is what there is, and can be taken away with what tap-ctl has.
bury() { # round
    local said line waits
    said=$(tap-ctl list)
    [[ $said != *pid=* ]] || fail "tap-ctl list shows a tapdisk that is dead: $said"
    waits=$(tap-ctl list --devices)
    while read -r line; do
        [ -n "$line" ] || continue
        minor=${line##*minor=}
        # Every other time it goes on to the end, and every other it goes.
        if (($1 % 2)) && disk=$(tap-ctl recover -m "$minor"); then
            pid=$(tap-ctl list -m "$minor" | sed -n 's/^pid=\([0-9]*\) .*/\1/p')
            wait "$living" || true
            [ -z "$(tap-ctl list -m "$minor")" ] || tap-ctl destroy -p "$pid" -m "$minor"
            recovered=$((recovered + 1))
        else
            tap-ctl recover -m "$minor" --remove
            removed=$((removed + 1))
        fi
    done <<<"$waits"
    wait "$living" || true
    for minor in $(tap-ctl list | sed -n 's/^minor=\([0-9]*\)$/\1/p'); do
        tap-ctl free -m "$minor"
        freed=$((freed + 1))
    done
    rm -f /run/blktap-control/{nbd,ctl}*
    # What was not a device yet, or not any more, or has no record yet, goes when the next one is
    # made.
    if [ -n "$(ls -d /sys/class/ublk-char/* /sys/block/nbd*/pid 2>/dev/null)" ]; then
        orphans=$((orphans + 1))
        device aio:/srv/other
        give_back
    fi
}

killed_at_any_point() { # kind; of the environment: SEED, ROUNDS
    driver "$1"
    local rounds=${ROUNDS:-24} begun length round moment living recovered=0 removed=0 freed=0 orphans=0 killed=0
    truncate -s 1M /srv/other
    vhd-util create -n /srv/disk.vhd -s 32
    begun=$(milliseconds)
    (life)
    length=$(($(milliseconds) - begun))
    nothing_left
    RANDOM=${SEED:-7}
    echo "seed ${SEED:-7}, $rounds rounds, a life of $length ms" >&2
    for ((round = 1; round <= rounds; round++)); do
        moment=$((RANDOM % length))
        (life) >/srv/life 2>&1 &
        living=$!
        sleep "$(printf '%d.%03d' $((moment / 1000)) $((moment % 1000)))"
        # Its life may not have begun, or be over.
        # shellcheck disable=SC2046
        if kill -9 $(pidof tapdisk) 2>/dev/null; then
            killed=$((killed + 1))
            await 30 "the end of tapdisk, round $round" sh -c '! pidof tapdisk'
        else
            wait $living || true
        fi
        bury "$round"
        nothing_left
    done
    echo "$killed killed; devices: $recovered recovered, $removed removed; $freed minors freed, $orphans unfinished" >&2
    # It is in order, but perhaps for the footer.
    vhd-util check -i -n /srv/disk.vhd
    device vhd:/srv/disk.vhd
    disk-load write "$disk" depth=8 bytes=$((2 << 20)) seed=5
    disk-load check "$disk" depth=8 bytes=$((2 << 20)) seed=5
    give_back
    vhd-util check -n /srv/disk.vhd
    rm /srv/*
}

# ---- a disk that another tapdisk serves ------------------------------------------------------------
# As docs/locks.md has it: the kernel reads from a device while it is made, so the images must be
# ours before; the second `create` waits, says for whom, and holds nobody else up.
second_opener() { # kind
    driver "$1"
    vhd-util create -n /srv/disk.vhd -s 64
    device vhd:/srv/disk.vhd
    local served=$disk first_pid=$pid first_minor=$minor since
    disk-load write "$served" bytes=$((4 << 20)) seed=1

    # It goes on when the first lets go, with what was written until then.
    begin_second
    disk-load write "$served" bytes=$((4 << 20)) from=$((8 << 20)) seed=2
    since=$SECONDS
    same "disks" "$(printf '%s\n' "$first_minor" "$minor" | sort -n)" \
        "$(tap-ctl list | sed -n 's/.* minor=\([0-9]*\) .*/\1/p' | sort -n)"
    tap-ctl stats -p "$first_pid" -m "$first_minor" >/dev/null
    [ $((SECONDS - since)) -lt 15 ] ||
        fail "list and stats took $((SECONDS - since)) s beside a disk that waits"
    tap-ctl destroy -p "$first_pid" -m "$first_minor"
    since=$SECONDS
    wait "$creating" || fail "the second create: $(cat /srv/said)"
    [ $((SECONDS - since)) -lt 20 ] ||
        fail "the second was ready $((SECONDS - since)) s after the first had ended"
    disk=$(cat /srv/second)
    [ -b "$disk" ] || fail "$disk is no block device"
    disk-load check "$disk" bytes=$((4 << 20)) seed=1
    disk-load check "$disk" bytes=$((4 << 20)) from=$((8 << 20)) seed=2
    first_pid=$pid first_minor=$minor served=$disk

    # One that waits is taken back at once: destroyed, or killed.
    begin_second
    since=$SECONDS
    tap-ctl destroy -p "$pid" -m "$minor"
    ended_second "$since"
    begin_second
    since=$SECONDS
    kill -9 "$pid"
    ended_second "$since"
    await 20 "the end of tapdisk" sh -c "! [ -e /proc/$pid ]"
    tap-ctl free -m "$minor" 2>/dev/null || true
    same "disks" "$first_minor" "$(tap-ctl list | sed -n 's/.*minor=\([0-9]*\).*/\1/p')"
    disk-load check "$served" bytes=$((4 << 20)) seed=1

    # The first is killed: the second has the image, and nothing is left of the first but its
    # device.
    begin_second
    kill -9 "$first_pid"
    wait "$creating" || fail "the second create: $(cat /srv/said)"
    disk=$(cat /srv/second)
    case $1 in
        blktap) tap-ctl free -m "$first_minor" ;;
        *) tap-ctl recover -m "$first_minor" --remove ;;
    esac
    disk-load check "$disk" bytes=$((4 << 20)) from=$((8 << 20)) seed=2
    give_back
    vhd-util check -n /srv/disk.vhd
    rm /srv/*
}

# Begins to create a second disk; sets creating, pid and minor when it says what it waits for.
begin_second() {
    tap-ctl create -a vhd:/srv/disk.vhd --device >/srv/second 2>/srv/said &
    creating=$!
    await 30 "what it waits for" grep "being written by tapdisk" /srv/said
    local row
    row=$(tap-ctl list | grep -v " minor=$first_minor ")
    pid=$(echo "$row" | sed -n 's/^pid=\([0-9]*\) .*/\1/p')
    minor=$(echo "$row" | sed -n 's/.* minor=\([0-9]*\) .*/\1/p')
}

# The create that waited has ended, and failed.
ended_second() { # since when
    if wait "$creating"; then fail "a disk that was taken back was made: $(cat /srv/second)"; fi
    [ $((SECONDS - $1)) -lt 15 ] ||
        fail "it took $((SECONDS - $1)) s to take back a disk that waits"
}

case_second_opener_with_ublk() {
    second_opener ublk
}
case_second_opener_with_blktap() {
    second_opener blktap
}
case_second_opener_with_nbd() {
    second_opener nbd
}

case_killed_at_any_point_with_ublk() {
    killed_at_any_point ublk
}
case_killed_at_any_point_with_blktap() {
    killed_at_any_point blktap
}
case_killed_at_any_point_with_nbd() {
    killed_at_any_point nbd
}

modprobe -a loop sd_mod dm-mod
mkdir -p /media
run_cases "$@"
