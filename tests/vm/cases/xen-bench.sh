# Back ends of Xen side by side, in one boot, for one guest that has all the disks at once: tapdisk,
# QEMU's qdisk and the kernel's xen-blkback. Ratios only: the machine is emulated. On demand, `make
# bench-xen`; the table is left in the folder of the logs, bench.txt.
#
# Raw: three memory disks of the kernel's, one a back end. tapdisk and xen-blkback read and write
# them past the page cache. qdisk goes through it, which costs it a copy and saves it the disk:
# Debian's QEMU for Xen is built without aio=native, so that `direct-io-safe` makes it refuse the
# disk, and xl has no other word for it. VHD: files on one ext4 on a memory disk, all of them
# written once before. That QEMU has no driver for VHD either, so qdisk has two stand-ins: its own
# sparse format, qcow2, in one process; and the same kind of VHD behind `qemu-nbd -f vpc` (io by
# threads, past the page cache) and the kernel's NBD client.
# shellcheck shell=bash disable=SC2016
export case_limit=${case_limit:-2400}
# shellcheck source=tests/vm/cases/xen-lib.sh
. /share/vm/cases/xen-lib.sh

rounds=3
seconds=2
bytes=$((48 << 20))
table=/share/bench.txt
measured=/share/bench.measured
tracing=/sys/kernel/debug/tracing

# What the guest has, by the last letter of its disk's name.
declare -A disk=([a]=tapdisk [b]=qdisk [c]=xen-blkback [d]=tapdisk-vhd [e]=qdisk-qcow2 [f]=qdisk-nbd-vpc)
loads=('read 4096 1' 'overwrite 4096 1' 'read 4096 32' 'overwrite 4096 32' 'read 65536 32' 'overwrite 65536 32')

plug_all() {
    mkfs.ext4 -q -F -O ^has_journal -m 0 /dev/ram3
    mkdir -p /media
    mount /dev/ram3 /media
    vhd-util create -n /media/ours.vhd -s 64
    qemu-img create -q -f qcow2 /media/theirs.qcow2 64M
    qemu-img create -q -f vpc -o force_size=on /media/theirs.vhd 64M
    qemu-nbd -f vpc --cache=none --aio=threads --fork -c /dev/nbd0 /media/theirs.vhd
    await 20 "/dev/nbd0 has a size" sh -c '[ $(cat /sys/block/nbd0/size) -gt 0 ]'
    local qdisk=access=rw,backendtype=qdisk
    start_guest bench "$(xl_disk xvda raw /dev/ram0)" "vdev=xvdb,$qdisk,format=raw,target=/dev/ram1" \
        "phy:/dev/ram2,xvdc,w" "$(xl_disk xvdd vhd /media/ours.vhd)" \
        "vdev=xvde,$qdisk,format=qcow2,target=/media/theirs.qcow2" "vdev=xvdf,$qdisk,format=raw,target=/dev/nbd0"
    local letter
    for letter in a b c d e f; do
        until_disk bench "xvd$letter"
        guest run bench "disk-load write /dev/xvd$letter block=65536 bytes=$bytes" >/dev/null
    done
}

unplug_all() {
    guest stop bench
    await 60 "the end of all tapdisks" sh -c '! pidof tapdisk'
    await 60 "the end of the back ends" sh -c '! xenstore-ls -f /local/domain/0/backend | grep -q "/state ="'
    vhd-util check -n /media/ours.vhd
    qemu-nbd -d /dev/nbd0
    await 20 "the end of qemu-nbd" sh -c '! pidof qemu-nbd'
    umount /media
}

load() { # letter, kind, block, depth: prints what disk-load says
    guest run bench "disk-load $2 /dev/xvd$1 block=$3 depth=$4 seconds=$seconds bytes=$bytes" | grep rate=
}

# The middle of some numbers.
median() { sort -n | awk '{all[NR] = $1} END {print all[int((NR + 1) / 2)]}'; }

rate_of() { # disk, load
    awk -F '\t' -v disk="$1" -v load="$2" '$1 == disk && $2 == load {print $3}' "$measured" | median
}

ratio() { awk -v a="$1" -v b="$2" 'BEGIN {printf "%.2f", (b > 0) ? a / b : 0}'; }

report() {
    local load ours
    {
        echo "Requests a second, medians of $rounds rounds of $seconds s; ratios: tapdisk's to the other's."
        printf '%-20s %9s %9s %5s %11s %5s\n' raw tapdisk qdisk ratio xen-blkback ratio
        for load in "${loads[@]}"; do
            ours=$(rate_of tapdisk "$load")
            printf '%-20s %9s %9s %5s %11s %5s\n' "$load" "$ours" "$(rate_of qdisk "$load")" \
                "$(ratio "$ours" "$(rate_of qdisk "$load")")" "$(rate_of xen-blkback "$load")" \
                "$(ratio "$ours" "$(rate_of xen-blkback "$load")")"
        done
        printf '%-20s %9s %9s %5s %11s %5s\n' VHD tapdisk qcow2 ratio nbd-vpc ratio
        for load in "${loads[@]}"; do
            ours=$(rate_of tapdisk-vhd "$load")
            printf '%-20s %9s %9s %5s %11s %5s\n' "$load" "$ours" "$(rate_of qdisk-qcow2 "$load")" \
                "$(ratio "$ours" "$(rate_of qdisk-qcow2 "$load")")" "$(rate_of qdisk-nbd-vpc "$load")" \
                "$(ratio "$ours" "$(rate_of qdisk-nbd-vpc "$load")")"
        done
    } | tee -a "$table"
}

# ---- system calls ------------------------------------------------------------------------------------------------

# The kernel counts them by itself (tracefs, hist triggers): unlike strace that hardly slows the
# process down, so it does as much in a turn as without anybody looking.
readonly calls='hist:keys=common_pid,id.syscall' controls='hist:keys=common_pid,cmd.hex' hypercalls='hist:keys=common_pid'

begin_count() {
    echo "$calls" >"$tracing/events/raw_syscalls/sys_enter/trigger"
    echo "$controls" >"$tracing/events/syscalls/sys_enter_ioctl/trigger"
    echo 'p:grant_copies gnttab_batch_copy' >"$tracing/kprobe_events"
    echo "$hypercalls" >"$tracing/events/kprobes/grant_copies/trigger"
}

end_count() {
    echo "!$calls" >"$tracing/events/raw_syscalls/sys_enter/trigger"
    echo "!$controls" >"$tracing/events/syscalls/sys_enter_ioctl/trigger"
    echo "!$hypercalls" >"$tracing/events/kprobes/grant_copies/trigger"
    echo >"$tracing/kprobe_events"
}

# Lines "name count" of a hist, for the threads of a process.
counted() { # event, pid
    local threads
    threads=$(cd "/proc/$2/task" && echo *)
    sed -n 's/^{ common_pid: *\([0-9]*\)\(, [a-z]*: *\([^ ]*\).*\)\? } hitcount: *\([0-9]*\).*/\1 \3 \4/p' \
        "$tracing/events/$1/hist" |
        awk -v threads="$threads" 'BEGIN {split(threads, all, " "); for (i in all) ours[all[i]] = 1}
            $1 in ours {sum[NF == 3 ? $2 : "copies"] += $NF} END {for (name in sum) print name, sum[name]}' | sort
}

switches() { # pid
    cat /proc/"$1"/task/*/status | awk '/^voluntary_ctxt_switches/ {sum += $2} END {print sum}'
}

per_request() { # requests; from lines "name count"
    awk -v requests="$1" '{sum += $2; printf "    %-24s %9d %8.3f\n", $1, $2, $2 / requests}
        END {printf "    %-24s %9d %8.3f\n", "all", sum, sum / requests}'
}

count_calls() { # letter, pid, kind, depth
    local said requests before
    before=$(switches "$2")
    begin_count
    said=$(load "$1" "$3" 4096 "$4")
    requests=${said#*requests=} requests=${requests%% *}
    {
        echo "${disk[$1]}, $3 4096, depth $4: $requests requests, $(($(switches "$2") - before)) sleeps; system calls:"
        counted raw_syscalls/sys_enter "$2" | per_request "$requests"
        echo "  its ioctls (0x104708: grant copy, 0x44504: notify), each one hypercall but for copies:"
        counted syscalls/sys_enter_ioctl "$2" | per_request "$requests"
        echo "  hypercalls for grant copies (up to 16 pages each, by the kernel's gntdev):"
        counted kprobes/grant_copies "$2" | per_request "$requests"
    } | tee -a "$table"
    end_count
}

case_side_by_side() {
    : >"$table"
    : >"$measured"
    plug_all
    local round load letter rate kind depth qemu
    for ((round = 1; round <= rounds; round++)); do
        for load in "${loads[@]}"; do
            for letter in a b c d e f; do
                # shellcheck disable=SC2086
                rate=$(load "$letter" $load | sed 's/.*rate=//')
                printf '%s\t%s\t%s\n' "${disk[$letter]}" "$load" "$rate" >>"$measured"
            done
        done
    done
    report
    behind bench xvda
    qemu=$(pgrep -f 'xen-qemu-system.*-xen-domid' | head -1)
    for kind in read overwrite; do
        for depth in 1 32; do
            count_calls a "$pid" "$kind" "$depth"
            count_calls b "$qemu" "$kind" "$depth"
        done
    done
    promises_kept
    unplug_all
}

modprobe brd rd_nr=4 rd_size=262144
modprobe nbd max_part=0 nbds_max=2
run_cases "$@"
