# Block devices side by side, in one boot: tapdisk by ublk, tapdisk by the kernel's NBD client, qemu-nbd by the same
# client, and the loop driver, all over one memory disk. Ratios only: the machine is emulated. On demand:
#
#   tests/vm/run.sh device-bench          the table is left in the folder of the logs, bench.txt
# shellcheck shell=bash disable=SC2016,SC2034
export case_limit=${case_limit:-900}
# shellcheck source=tests/vm/cases/lib.sh
. /share/vm/cases/lib.sh

seconds=${bench_seconds:-3}
store=/dev/ram0
table=/share/bench.txt

load() { # name, device, kind, block, depth
    local rate
    rate=$(disk-load "$3" "$2" block="$4" depth="$5" seconds="$seconds" bytes=$((64 << 20)))
    printf '%-14s %-9s %6s depth %2s: %s\n' "$1" "$3" "$4" "$5" "$rate" | tee -a "$table"
}

loads() { # name, device
    load "$1" "$2" read 4096 1
    load "$1" "$2" read 4096 32
    load "$1" "$2" overwrite 4096 32
    load "$1" "$2" read 65536 32
}

tapdisk_on() { # options
    disk=$(tap-ctl create -a "aio:$store" "$@")
    local row
    row=$(tap-ctl list --devices | grep "^device=$disk ")
    pid=$(echo "$row" | sed -n 's/.* pid=\([0-9]*\) .*/\1/p')
    minor=$(echo "$row" | sed -n 's/.* minor=\([0-9]*\) .*/\1/p')
}

by_tapdisk() { # name, options of create
    local name=$1
    shift
    tapdisk_on "$@"
    loads "$name" "$disk"
    give_back
}

by_qemu() {
    qemu-nbd --fork -f raw --cache=none --aio=io_uring -k /run/qemu.sock -x '' "$store" ||
        qemu-nbd --fork -f raw --cache=none --aio=native -k /run/qemu.sock -x '' "$store"
    nbd-client -unix /run/qemu.sock /dev/nbd1
    await 20 "/dev/nbd1 has a size" sh -c '[ $(cat /sys/block/nbd1/size) -gt 0 ]'
    loads qemu-nbd /dev/nbd1
    nbd-client -d /dev/nbd1
    await 20 "the end of qemu-nbd" sh -c '! pidof qemu-nbd'
}

by_loop() {
    losetup --direct-io=on /dev/loop7 "$store"
    loads loop /dev/loop7
    losetup -d /dev/loop7
}

case_side_by_side() {
    : >"$table"
    local round
    for round in 1 2; do
        by_tapdisk ublk --device
        by_loop
        by_qemu
        by_tapdisk tapdisk-nbd --device-name /dev/nbd0
    done
}

# What a request costs in system calls, at the two depths.
case_system_calls() {
    tapdisk_on --device
    local depth before after
    for depth in 1 32; do
        before=$(requests)
        strace -c -f -o /srv/calls -p "$pid" &
        local tracer=$!
        sleep 1
        disk-load read "$disk" block=4096 depth=$depth seconds="$seconds" bytes=$((64 << 20))
        kill -INT $tracer
        wait $tracer || true
        after=$(requests)
        {
            echo "system calls for $((after - before)) reads of 4096 bytes at depth $depth:"
            cat /srv/calls
        } | tee -a "$table"
    done
    give_back
    rm /srv/calls
}

requests() {
    tap-ctl stats -p "$pid" -m "$minor" --json | sed -n 's/.*"device":{[^}]*"requests":{[^}]*"read":\([0-9]*\).*/\1/p'
}

modprobe brd rd_nr=1 rd_size=131072
modprobe -a loop ublk_drv
modprobe nbd max_part=0 nbds_max=2
run_cases "$@"
