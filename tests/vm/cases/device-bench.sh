# Block devices side by side, in one boot: tapdisk by ublk, by the ring of our kernel module and by
# the kernel's NBD client, qemu-nbd by the same client, and the loop driver, all over one memory
# disk. Rounds are interleaved, the table has medians. Ratios only: the machine is emulated.
#
#   make bench-device          the table is left in the folder of the logs, bench.txt; bench_rounds, bench_seconds
# shellcheck shell=bash disable=SC2016,SC2034
export case_limit=${case_limit:-1500}
# shellcheck source=tests/vm/cases/lib.sh
. /share/vm/cases/lib.sh

seconds=${bench_seconds:-2}
rounds=${bench_rounds:-5}
store=/dev/ram0
rows=/share/bench.rows
table=/share/bench.txt

switches() { sed -n 's/^ctxt //p' /proc/stat; }

# A row: device, load, requests a second, switches of tasks a request in the whole machine.
load() { # name, device, kind, block, depth
    local said requests before after
    before=$(switches)
    said=$(disk-load "$3" "$2" block="$4" depth="$5" seconds="$seconds" bytes=$((64 << 20)))
    after=$(switches)
    requests=${said##*requests=} requests=${requests%% *}
    echo "$1 $3-$4-d$5 ${said##*rate=} $(((after - before) * 100 / requests))" | tee -a "$rows"
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
    # What packaging/udev.rules does; no udev runs here.
    case $disk in /dev/ublkb*) echo none >"/sys/block/${disk#/dev/}/queue/scheduler" ;; esac
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

# Medians of the rounds, and the ratios that issue 5 asks for.
summary() {
    awk '
        function median(list,   n, i, j, t, a) {
            n = split(list, a, " ")
            for (i = 2; i <= n; i++)
                for (j = i; j > 1 && a[j] + 0 < a[j - 1] + 0; j--) { t = a[j]; a[j] = a[j - 1]; a[j - 1] = t }
            return n % 2 ? a[(n + 1) / 2] : (a[n / 2] + a[n / 2 + 1]) / 2
        }
        { rate[$2, $1] = rate[$2, $1] " " $3; tasks[$2, $1] = tasks[$2, $1] " " $4; loads[$2]; devices[$1] }
        END {
            printf "%-18s %-12s %12s %10s %10s %12s\n", "load", "device", "requests/s", "of loop", "of nbd.ko", "switches/req"
            for (l in loads)
                for (d in devices) {
                    r = median(rate[l, d]); loop = median(rate[l, "loop"]); nbd = median(rate[l, "qemu-nbd"])
                    printf "%-18s %-12s %12d %10.2f %10.2f %12.2f\n", l, d, r, r / loop, r / nbd, median(tasks[l, d]) / 100
                }
        }' "$rows" | sort -k1,1 -k2,2 | tee "$table"
}

case_side_by_side() {
    : >"$rows"
    local round
    for ((round = 0; round < rounds; round++)); do
        by_tapdisk ublk --device-name /dev/ublkb0
        by_tapdisk blktap --device
        by_loop
        by_qemu
        by_tapdisk tapdisk-nbd --device-name /dev/nbd0
    done
    summary
}

# What a request costs in system calls, at two depths.
case_system_calls() {
    local way
    for way in ublk blktap; do
        case $way in
            ublk) tapdisk_on --device-name /dev/ublkb0 ;;
            blktap) tapdisk_on --device ;;
        esac
        local depth before after
        for depth in 1 32; do
            before=$(requests $way)
            strace -c -f -o /srv/calls -p "$pid" &
            local tracer=$!
            sleep 1
            disk-load read "$disk" block=4096 depth=$depth seconds="$seconds" bytes=$((64 << 20))
            kill -INT $tracer
            wait $tracer || true
            after=$(requests $way)
            awk -v way="$way" -v depth=$depth -v n=$((after - before)) '
                $NF == "total" { calls = $3 ~ /^[0-9]+$/ ? $3 : $4; if (NF >= 4) calls = $4 }
                { print }
                END { printf "%s, depth %d: %.3f system calls a request (%d requests of 4096 bytes)\n", way, depth, calls / n, n }
            ' /srv/calls | tee -a "$table"
        done
        give_back
    done
    rm /srv/calls
}

requests() { # way
    local object=device
    [ "$1" = ublk ] || object=tap
    tap-ctl stats -p "$pid" -m "$minor" --json |
        sed -n "s/.*\"$object\":{[^}]*\"requests\":{[^}]*\"read\":\\([0-9]*\\).*/\\1/p"
}

modprobe brd rd_nr=1 rd_size=131072
modprobe -a loop ublk_drv blktap
modprobe nbd max_part=0 nbds_max=2
run_cases "$@"
