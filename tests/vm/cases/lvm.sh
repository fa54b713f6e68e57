# The machine without Xen, with real LVM: images on logical volumes, as the storage manager's LVM
# repositories have them. The calls, their order and the names are its own (docs/callers.md);
# volumes thick and thin, active and not.
# shellcheck shell=bash disable=SC2119,SC2120
# shellcheck source=tests/vm/cases/lib.sh
export case_limit=${case_limit:-420}
. /share/vm/cases/lib.sh

# Names with dashes, which device mapper doubles.
group=VG_XenStorage-6a1d9f10-13c3
other=VG_XenStorage-77aa0c11-2222
vg=/dev/$group
# What SM makes room for in the metadata: a disk of 2 TiB.
room=2097152

clean_up() {
    local tapdisk
    umount -l /mnt
    for tapdisk in $(pidof tapdisk vhd-util); do
        kill -9 "$tapdisk"
    done
    local record
    for record in /run/blktap-control/device*; do
        [ -e "$record" ] || continue
        tap-ctl recover -m "${record##*/device}" &&
            tap-ctl list | sed -n 's/^pid=\([0-9]*\) minor=\([0-9]*\) .*/\1 \2/p' |
            while read -r pid minor; do tap-ctl close -f -p "$pid" -m "$minor"; done
    done
    for tapdisk in $(pidof tapdisk); do
        kill -9 "$tapdisk"
    done
    lvremove -qq -ff -y $group $other
    rm -rf /run/blktap-control/* /srv/work
}

show_state() {
    tap-ctl list --devices
    lvs -a -o +lv_active,devices,data_percent
    dmesg | tail -n 25
    tail -n 30 /var/log/blktap/*.log
}

nothing_more_left() {
    same "volumes at the end" "" "$(lvs --noheadings -o lv_name $group $other | xargs)"
    same "devices of device mapper" "No devices found" "$(dmsetup ls)"
}

volume() { # name, MiB, options of lvcreate ...
    lvcreate -qq -y -Wn -n "$1" -L "$2M" "${@:3}" $group
}

no_volume() { # names ...
    lvremove -qq -f "${@/#/$group/}"
}

# Starts a tapdisk with a block device; sets disk, pid and minor.
device() { # type:path, more options of tap-ctl create
    disk=$(tap-ctl create -a "$@" --device) || fail "tap-ctl create -a $* --device"
    local row
    row=$(tap-ctl list --devices | grep "^device=$disk ") || fail "tap-ctl list does not show $disk"
    pid=$(echo "$row" | sed -n 's/.* pid=\([0-9]*\) .*/\1/p')
    minor=$(echo "$row" | sed -n 's/.* minor=\([0-9]*\) .*/\1/p')
}

# A pattern: seed, from MiB, MiB.
put() { disk-load write "$disk" block=65536 seed="$1" from=$(($2 << 20)) bytes=$(($3 << 20)); }
see() { disk-load check "$disk" block=65536 seed="$1" from=$(($2 << 20)) bytes=$(($3 << 20)); }
pause() { tap-ctl pause -p "$pid" -m "$minor"; }
unpause() { tap-ctl unpause -p "$pid" -m "$minor" -a "vhd:$1"; }

# tap-ctl has the number, the log of that tapdisk the sentence.
not_opened() { # status, words, image, more options of tap-ctl create
    rm -f /var/log/blktap/*.log
    refused "$1" "refused open" tap-ctl create -a "$3" "${@:4}"
    grep -h -F "$2" /var/log/blktap/*.log || fail "the log says: $(cat /var/log/blktap/*.log)"
}

# A volume of another size. The file system that LVM would look for is a guest's.
volume_size() { # name, MiB
    lvm lvresize -qq --fs ignore -f -y -L "$2M" "$group/$1"
}

# The volume grows, and the image in it: its footer goes to the new end, after what may be there is
# gone.
inflate() { # name, MiB
    volume_size "$1" "$2"
    dd if=/dev/zero of="$vg/$1" bs=512 seek=$(($2 * 2048 - 1)) count=1 oflag=direct conv=notrunc \
        status=none
    vhd-util modify --debug -s $(($2 << 20)) -n "$vg/$1"
}

# Both shrink; the image says how far.
deflate() { # name
    local bytes
    bytes=$(vhd-util query --debug -s -n "$vg/$1")
    local mib extents=$(((bytes + (4 << 20) - 1) / (4 << 20)))
    mib=$((extents * 4))
    vhd-util modify --debug -s $((mib << 20)) -n "$vg/$1"
    volume_size "$1" $mib
}

# A snapshot as LVHDSR makes it: the running volume gets another name and becomes the base.
snapshot() { # leaf, name of the base
    pause
    lvrename -qq $group "$1" "$2"
    deflate "$2"
    volume "$1" 76
    vhd-util snapshot --debug -n "$vg/$1" -p "$vg/$2" -S $room
    [ "$vg/$2" -ef "$(vhd-util query --debug -p -n "$vg/$1")" ] ||
        fail "query -p: $(vhd-util query -p -n "$vg/$1")"
    vhd-util set --debug -n "$vg/$2" -f hidden -v 1
    lvchange -qq -pr "$group/$2"
    unpause "$vg/$1"
}

# Two snapshots of a running disk, then the garbage collector: the inner image goes into the base
# while a tapdisk serves the leaf, which is linked anew; then the leaf itself, while it is paused.
case_snapshots_and_coalesce_below_a_running_leaf() {
    volume VHD-leaf 76
    vhd-util create --debug -n $vg/VHD-leaf -s 64 -S $room
    device vhd:$vg/VHD-leaf
    put 1 0 4
    snapshot VHD-leaf VHD-base
    see 1 0 4
    put 2 2 6
    snapshot VHD-leaf VHD-inner
    put 3 40 2
    same "query -vsaf of the running leaf" "64 hidden: 0" \
        "$(vhd-util query --debug -vsaf -n $vg/VHD-leaf | sed -n '1p;3p' | xargs)"
    same "query -d" "chain depth: 3" "$(vhd-util query --debug -d -n $vg/VHD-leaf)"
    same "the chain of the leaf" "VHD-leaf VHD-inner VHD-base" \
        "$(vhd-util scan -f -m VHD-leaf -l $group -a | sed 's/^vhd=\([^ ]*\) .*/\1/' | xargs)"

    # The inner one into the base, which grows for it.
    lvchange -qq -prw $group/VHD-base
    inflate VHD-base 76
    vhd-util coalesce --debug -n $vg/VHD-inner
    vhd-util check --debug -n $vg/VHD-base
    vhd-util query --debug -p -n $vg/VHD-leaf
    vhd-util modify --debug -p $vg/VHD-base -n $vg/VHD-leaf
    pause
    unpause $vg/VHD-leaf
    lvchange -qq -an $group/VHD-inner
    no_volume VHD-inner
    same "query -d" "chain depth: 2" "$(vhd-util query -d -n $vg/VHD-leaf)"
    see 1 0 2
    see 2 2 6
    see 3 40 2
    put 4 50 2

    # The leaf into the base, which takes its name.
    vhd-util read --debug -B -n $vg/VHD-leaf >/dev/null
    pause
    vhd-util set --debug -n $vg/VHD-base -f hidden -v 0
    vhd-util coalesce --debug -n $vg/VHD-leaf
    lvrename -qq $group VHD-leaf OLD-leaf
    lvrename -qq $group VHD-base VHD-leaf
    unpause $vg/VHD-leaf
    no_volume OLD-leaf
    see 1 0 2
    see 2 2 6
    see 3 40 2
    see 4 50 2
    give_back
    vhd-util check -n $vg/VHD-leaf
    same "query -d at the end" "chain depth: 1" "$(vhd-util query -d -n $vg/VHD-leaf)"
    no_volume VHD-leaf
}

# Nobody activates a volume to see what is in it.
case_scan_reads_volumes_that_are_not_active() {
    volume VHD-a 12
    volume VHD-b 12
    volume LV-raw 8
    volume VHD-junk 8
    vhd-util create -n $vg/VHD-a -s 64 -S $room
    vhd-util snapshot -n $vg/VHD-b -p $vg/VHD-a -S $room
    vhd-util set -n $vg/VHD-a -f hidden -v 1
    local a b raw='vhd=LV-raw capacity=8388608 size=8388608 hidden=1 parent=none'
    a="vhd=VHD-a capacity=67108864 size=12582912 hidden=1 parent=none"
    b="vhd=VHD-b capacity=67108864 size=12582912 hidden=0 parent=VHD-a"
    same "scan of active volumes" "$a"$'\n'"$b" "$(vhd-util scan -f -m 'VHD-[ab]' -l $group)"
    vgchange -qq -an $group
    [ ! -e $vg/VHD-a ] || fail "the volumes are still active"
    same "scan of inactive volumes" "$a"$'\n'"$b" "$(vhd-util scan -f -m 'VHD-[ab]' -l $group)"
    same "one and its parents" "$b"$'\n'"$a" "$(vhd-util scan -f -m VHD-b -l $group -a)"
    same "a raw one" "$raw" "$(vhd-util scan -f -c -m 'LV-*' -l $group)"
    # One that cannot be read ends a scan without -c, as SM expects before it asks again with it.
    local status=0
    vhd-util scan -f -m 'VHD-*' -l $group >/srv/scan 2>/srv/said || status=$?
    [ $status -ne 0 ] || fail "a scan over what is no image succeeds: $(cat /srv/scan)"
    vhd-util scan -f -c -m 'VHD-*' -l $group >/srv/scan
    same "lines of the others" "$a"$'\n'"$b" "$(grep -v scan-error /srv/scan)"
    grep "^vhd=$vg/VHD-junk scan-error=-22 error-message=" /srv/scan ||
        fail "the scan says $(cat /srv/scan)"
    # What changed through an active volume shows when it is not active any more.
    lvchange -qq -ay $group/VHD-b
    vhd-util set -n $vg/VHD-b -f hidden -v 1
    lvchange -qq -an $group/VHD-b
    same "hidden since" "${b/hidden=0/hidden=1}" "$(vhd-util scan -f -m VHD-b -l $group)"
    # A thin volume is no row of extents: it is read while it is active.
    lvcreate -qq -y --type thin-pool -n pool -L 32M --poolmetadatasize 4M -c 64k $group
    lvcreate -qq -y -V 80M -n VHD-thin --thinpool pool $group
    lvchange -qq -ay $group/VHD-a
    vhd-util snapshot -n $vg/VHD-thin -p $vg/VHD-a -S $room
    local thin="vhd=VHD-thin capacity=67108864 size=83886080 hidden=0 parent=VHD-a"
    same "an active thin one" "$thin" "$(vhd-util scan -f -m VHD-thin -l $group)"
    lvchange -qq -an $group/VHD-thin
    same "an inactive one" "" "$(vhd-util scan -f -m VHD-thin -l $group)"
    lvremove -qq -f $group/VHD-thin
    lvremove -qq -f $group/pool
    refused 22 "knows no such volume group" vhd-util scan -f -m 'VHD-*' -l VG_none
    no_volume VHD-b VHD-a LV-raw VHD-junk
    rm /srv/scan /srv/said
}

# An inactive parent is named; activated, all is well. A base is a volume that may not be written.
case_volumes_that_are_not_active_and_read_only_ones() {
    volume VHD-base 16
    volume VHD-leaf 76
    vhd-util create -n $vg/VHD-base -s 64 -S $room
    vhd-util snapshot -n $vg/VHD-leaf -p $vg/VHD-base -S $room
    lvchange -qq -pr $group/VHD-base
    vgchange -qq -an $group
    not_opened 2 "cannot open $vg/VHD-leaf" vhd:$vg/VHD-leaf
    lvchange -qq -ay $group/VHD-leaf
    not_opened 2 VHD--base vhd:$vg/VHD-leaf
    refused 2 VHD--base vhd-util query -p -n $vg/VHD-leaf
    lvchange -qq -ay $group/VHD-base
    device vhd:$vg/VHD-leaf
    put 1 0 2
    give_back
    # Itself, it is refused for writing at once, and read.
    not_opened 30 "$vg/VHD-base" vhd:$vg/VHD-base
    device vhd:$vg/VHD-base -R
    same "the device is read-only" 1 "$(blockdev --getro "$disk")"
    give_back
    no_volume VHD-leaf VHD-base
}

# The rule of docs/parents.md on real volumes: the same group, and nothing else.
case_parents_of_the_same_group_and_of_no_other() {
    volume VHD-leaf 76
    volume LV-raw 64
    lvcreate -qq -y -Wn -n VHD-far -L 16M $other
    vhd-util create -n /dev/$other/VHD-far -s 64 -S $room
    # A raw parent of the same group.
    vhd-util snapshot -n $vg/VHD-leaf -p $vg/LV-raw -m -S $room
    device vhd:$vg/VHD-leaf
    put 1 0 1
    give_back
    # No volume of another group, VHD or raw, no other device, no file; not by modify either.
    local parent
    truncate -s 64M /srv/far.raw
    losetup /dev/loop5 /srv/far.raw
    for parent in "/dev/$other/VHD-far" "/dev/$other/VHD-far -m" "/dev/loop5 -m" \
        "/srv/far.raw -m"; do
        # shellcheck disable=SC2086
        refused 13 /etc/tapdisk-rs/parents vhd-util snapshot -n $vg/VHD-leaf -p $parent -S $room
        # shellcheck disable=SC2086
        refused 13 /etc/tapdisk-rs/parents vhd-util modify -n $vg/VHD-leaf -p $parent
    done
    device vhd:$vg/VHD-leaf
    see 1 0 1
    give_back
    # Somebody else has linked it there: every program refuses it, and says what would help.
    TAPDISK_PARENTS=/dev/$other vhd-util snapshot -n $vg/VHD-leaf -p /dev/$other/VHD-far -S $room
    not_opened 13 /etc/tapdisk-rs/parents vhd:$vg/VHD-leaf
    refused 13 /etc/tapdisk-rs/parents vhd-util coalesce -n $vg/VHD-leaf
    refused 13 /etc/tapdisk-rs/parents vhd-util convert -n $vg/VHD-leaf -N /srv/copy.raw -O raw
    same "blocks in the other group" 0 "$(vhd-util query -a -n /dev/$other/VHD-far)"
    # The owner's word opens it.
    echo "/dev/$other" >>/etc/tapdisk-rs/parents
    device vhd:$vg/VHD-leaf
    put 2 0 1
    give_back
    sed -i '$d' /etc/tapdisk-rs/parents
    losetup -d /dev/loop5
    lvremove -qq -f $other/VHD-far
    no_volume VHD-leaf LV-raw
    rm -f /srv/far.raw /srv/copy.raw
}

# A volume with no more room: the guest is told, the log says which image; room that is made counts
# after a pause.
case_a_volume_without_room_that_is_extended() {
    volume VHD-a 24
    vhd-util create -n $vg/VHD-a -s 64 -S $room
    device vhd:$vg/VHD-a
    put 1 0 8
    if put 2 8 32 2>/srv/said; then fail "40 MiB went onto a volume of 24"; fi
    grep -i 'no space' /srv/said
    see 1 0 8
    tap-ctl stats -p "$pid" -m "$minor" >/srv/stats
    grep -E '"(errors|fail)": *\[?[^,]*[1-9]' /srv/stats ||
        fail "stats show no error: $(cat /srv/stats)"
    pause
    vhd-util check -n $vg/VHD-a
    inflate VHD-a 76
    unpause $vg/VHD-a
    put 2 8 32
    see 1 0 8
    see 2 8 32
    give_back
    vhd-util check -n $vg/VHD-a
    no_volume VHD-a
    rm /srv/said /srv/stats
}

# Another machine has extended the volume: here the device is as long as it was until it is
# refreshed, which the storage manager does while the disk is paused.
case_a_volume_that_another_machine_extended() {
    volume VHD-a 24
    vhd-util create -n $vg/VHD-a -s 64 -S $room
    device vhd:$vg/VHD-a
    put 1 0 8
    local mapped="${group//-/--}-VHD--a" table
    table=$(dmsetup table "$mapped")
    pause
    inflate VHD-a 76
    dmsetup load "$mapped" --table "$table"
    dmsetup resume "$mapped"
    same "the size before the refresh" $((24 << 20)) "$(blockdev --getsize64 $vg/VHD-a)"
    unpause $vg/VHD-a
    see 1 0 8
    if put 2 8 32 2>/srv/said; then fail "40 MiB went onto a volume of 24"; fi
    pause
    lvchange -qq --refresh $group/VHD-a
    same "the size after it" $((76 << 20)) "$(blockdev --getsize64 $vg/VHD-a)"
    unpause $vg/VHD-a
    put 2 8 32
    see 1 0 8
    see 2 8 32
    give_back
    vhd-util check -n $vg/VHD-a
    no_volume VHD-a
    rm /srv/said
}

# The disk itself grows: fast where the metadata has room, else blocks are moved with a journal on a
# volume.
case_resize_on_volumes_with_and_without_a_journal() {
    volume VHD-a 76
    vhd-util create -n $vg/VHD-a -s 64 -S $room
    device vhd:$vg/VHD-a
    put 1 0 4
    # Not below a disk, which keeps its size for life: the guest knows it.
    pause
    inflate VHD-a 140
    unpause $vg/VHD-a
    refused 16 tapdisk vhd-util resize --debug -s 128 -n $vg/VHD-a -f
    give_back
    vhd-util resize --debug -s 128 -n $vg/VHD-a -f
    same "its size" 128 "$(vhd-util query -v -n $vg/VHD-a)"
    device vhd:$vg/VHD-a
    same "size of the new device" $((128 << 20)) "$(blockdev --getsize64 "$disk")"
    put 2 126 2
    see 1 0 4
    give_back

    # No room: the table's 512 bytes hold 128 blocks.
    volume VHD-b 1100
    volume journal 24
    vhd-util create -n $vg/VHD-b -s 64
    device vhd:$vg/VHD-b
    put 3 0 8
    give_back
    refused 22 "" vhd-util resize -s 1024 -n $vg/VHD-b -f
    vhd-util resize --debug -s 1024 -n $vg/VHD-b -j $vg/journal
    vhd-util check -n $vg/VHD-b
    device vhd:$vg/VHD-b
    same "size" $((1024 << 20)) "$(blockdev --getsize64 "$disk")"
    see 3 0 8
    put 4 1020 2
    give_back
    no_volume VHD-a VHD-b journal
}

# What a guest gives back becomes room of the thin pool again, of an image and of a bare volume.
case_discard_down_to_a_thin_pool() {
    lvcreate -qq -y --type thin-pool -n pool -L 128M --poolmetadatasize 4M -c 64k $group
    lvcreate -qq -y -V 80M -n VHD-thin --thinpool pool $group
    lvcreate -qq -y -V 64M -n LV-thin --thinpool pool $group
    local used given
    vhd-util create -n $vg/VHD-thin -s 64 -S $room
    device vhd:$vg/VHD-thin
    put 1 0 32
    used=$(pool_kib)
    blkdiscard -o $((8 << 20)) -l $((24 << 20)) "$disk"
    given=$((used - $(pool_kib)))
    [ $given -ge 20480 ] || fail "24 MiB discarded freed $given KiB of $used KiB"
    see 1 0 8
    cmp -n $((24 << 20)) "$disk" /dev/zero $((8 << 20)) 0
    put 2 8 8
    see 2 8 8
    give_back
    vhd-util check -n $vg/VHD-thin

    device aio:$vg/LV-thin
    put 3 0 16
    used=$(pool_kib)
    blkdiscard -o $((4 << 20)) -l $((12 << 20)) "$disk"
    given=$((used - $(pool_kib)))
    [ $given -ge 12288 ] || fail "12 MiB discarded of the bare volume freed $given KiB of $used KiB"
    see 3 0 4
    give_back
    lvremove -qq -f $group/VHD-thin $group/LV-thin
    lvremove -qq -f $group/pool
}

pool_kib() {
    local block words
    sync
    read -ra words < <(dmsetup status "${group//-/--}-pool-tpool")
    block=64
    echo $((${words[5]%/*} * block))
}

# The pool is full while the volume is not: an error for the guest, nothing lost, and on when there
# is room.
case_a_thin_pool_without_room() {
    lvcreate -qq -y --type thin-pool -n pool -L 32M --poolmetadatasize 4M -c 64k $group
    lvchange -qq --errorwhenfull y $group/pool
    lvcreate -qq -y -V 80M -n VHD-thin --thinpool pool $group
    vhd-util create -n $vg/VHD-thin -s 64 -S $room
    device vhd:$vg/VHD-thin
    put 1 0 16
    if put 2 16 32 2>/srv/said; then fail "48 MiB went onto a pool of 32"; fi
    see 1 0 16
    volume_size pool 96
    put 2 16 32
    see 1 0 16
    see 2 16 32
    give_back
    vhd-util check -n $vg/VHD-thin
    lvremove -qq -f $group/VHD-thin
    lvremove -qq -f $group/pool
    rm /srv/said
}

# A volume that is served has one writer: a second tapdisk waits as in a pause, a command is
# refused.
case_a_served_volume_has_one_writer() {
    volume VHD-a 76
    volume VHD-b 12
    vhd-util create -n $vg/VHD-a -s 64 -S $room
    vhd-util create -n $vg/VHD-b -s 64 -S $room
    serve vhd:$vg/VHD-a
    local first_pid=$pid first_minor=$minor name=tapdisk
    refused 16 "$name" vhd-util modify -s $((76 << 20)) -n $vg/VHD-a
    refused 16 "$name" vhd-util snapshot -n $vg/VHD-b -p $vg/VHD-a -S $room
    refused 16 "$name" vhd-util modify -z -n $vg/VHD-a
    refused 16 "$name" vhd-util create -n $vg/VHD-a -s 64 -S $room
    refused 16 "$name" vhd-util snapshot -n $vg/VHD-a -p $vg/VHD-b -S $room
    # By the volume's other name, too.
    refused 16 "$name" vhd-util modify -s $((76 << 20)) -n "/dev/mapper/${group//-/--}-VHD--a"
    # Raw, over the same volume: the lock is on the device, whatever it holds.
    serve "aio:$vg/VHD-a"
    local second_pid=$pid second_minor=$minor
    await 20 "the second waits" waits "$second_pid" "$second_minor"
    tap-ctl destroy -p "$second_pid" -m "$second_minor"
    serve "vhd:$vg/VHD-a"
    await 20 "the second waits" waits "$pid" "$minor"
    tap-ctl destroy -p "$first_pid" -m "$first_minor"
    await 20 "the second serves" sh -c "! ($(declare -f waits); waits $pid $minor)"
    qemu-io -f raw -c 'write -P 5 0 64k' -c 'read -P 5 0 64k' "nbd+unix:///?socket=$socket"
    give_back
    vhd-util check -n $vg/VHD-a
    no_volume VHD-a VHD-b
}

waits() { tap-ctl stats -p "$1" -m "$2" --json | grep '"waits": *"' >/dev/null; }

# A killed tapdisk's volume is whole, and so it is on the medium of a volume that was not active
# since.
case_a_killed_tapdisk_on_a_volume() {
    volume VHD-a 76
    vhd-util create -n $vg/VHD-a -s 64 -S $room
    local round
    for round in 1 2 3; do
        serve vhd:$vg/VHD-a
        qemu-io -f raw -c "write -P $round 0 4M" -c "write -P $round $((round * 8))M 6M" \
            "nbd+unix:///?socket=$socket" >/dev/null 2>&1 &
        sleep 0.$((round * 3))
        kill -9 "$pid"
        wait
        await 20 "the end of tapdisk" sh -c "! [ -e /proc/$pid ]"
        tap-ctl free -m "$minor"
        vhd-util check -n $vg/VHD-a
        lvchange -qq -an $group/VHD-a
        vhd-util scan -f -m VHD-a -l $group | grep 'capacity=67108864'
        lvchange -qq -ay $group/VHD-a
    done
    no_volume VHD-a
}

# Once a boot; each case is a shell of its own.
if [ "${1:-}" != one ]; then
    modprobe -a loop dm-mod dm-thin-pool sd_mod ublk_drv
    install -d -m 0700 /run/blktap-control
    # Without udev LVM makes its nodes itself. It never looks into a guest's disk, which may be
    # paused: it would wait for it, with its own lock in its hand.
    mkdir -p /etc/lvm /dev/mapper
    cat >/etc/lvm/lvm.conf <<'CONF'
devices {
    obtain_device_list_from_udev=0 external_device_info_source="none" use_devicesfile=0 scan_lvs=0
    global_filter=["r|^/dev/ublkb|", "r|^/dev/nbd|"]
}
activation { udev_sync=0 udev_rules=0 verify_udev_operations=1 monitoring=0 }
backup { backup=0 archive=0 }
global { use_lvmpolld=0 use_lvmlockd=0 event_activation=0 }
CONF
    truncate -s 2G /srv/pv0
    truncate -s 256M /srv/pv1
    for number in 0 1; do
        losetup /dev/loop$number /srv/pv$number
    done
    vgcreate -qq -s 4M $group /dev/loop0
    vgcreate -qq -s 4M $other /dev/loop1
fi
run_cases "$@"
