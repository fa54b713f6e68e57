# The machine with the kernel for debugging, and nowhere else (TAPDISK_VM_KERNEL=debug): our blktap
# module when memory for it cannot be had. Every allocation that its functions ask for, or that is
# asked for on their behalf, fails once (CONFIG_FAULT_INJECTION); at the end no memory is left that
# nobody refers to (kmemleak).
# shellcheck shell=bash disable=SC2119,SC2120
# shellcheck source=tests/vm/cases/lib.sh
export case_limit=${case_limit:-1200}
. /share/vm/cases/lib.sh

faults=/sys/kernel/debug
for attribute in failslab fail_page_alloc fail_usercopy kmemleak; do
    [ -e $faults/$attribute ] || {
        echo "this list is for the kernel for debugging, which has $faults/$attribute: TAPDISK_VM_KERNEL=debug run.sh blktap-debug"
        exit 1
    }
done
mkdir -p /run/blktap-control

clean_up() {
    nothing_fails
    local process tap
    for process in $(pidof tapdisk blktap-ring); do
        kill -9 "$process"
    done
    for tap in /sys/class/blktap2/blktap!blktap*; do
        [ ! -e "$tap" ] || blktap-ring free "${tap##*blktap}"
    done
    rm -rf /srv/* /run/blktap-control/*
}

kernel_is_well() {
    local bad
    bad=$(dmesg | grep -E 'BUG|WARNING:|Oops|general protection|blocked for more than|segfault|possible recursive|inconsistent lock|possible circular|suspicious RCU|Call Trace' || true)
    same "the kernel's messages" "" "$bad"
}

nothing_more_left() {
    nothing_fails
    [ -e /sys/class/blktap2 ] || return 0
    local left
    left=$(ls -d /sys/class/blktap2/blktap!blktap* /sys/block/td* 2>/dev/null || true)
    same "minors and disks at the end" "" "$left"
}

# Between which addresses a function must be on the stack, for an allocation to fail.
only_behind() { # first, last address in hexadecimal
    local attribute
    for attribute in failslab fail_page_alloc fail_usercopy; do
        # No stack of each in the kernel's log: those would be no complaints.
        echo 0 >$faults/$attribute/verbose
        echo "0x$1" >$faults/$attribute/require-start
        echo "0x$2" >$faults/$attribute/require-end
        echo 32 >$faults/$attribute/stacktrace-depth
    done
    echo N >$faults/failslab/ignore-gfp-wait
    echo N >$faults/fail_page_alloc/ignore-gfp-wait
    echo N >$faults/fail_page_alloc/ignore-gfp-highmem
    echo 0 >$faults/fail_page_alloc/min-order
}

only_behind_the_module() {
    local first last
    first=$(awk '$2 ~ /[tT]/ && $4 == "[blktap]" { print $1 }' /proc/kallsyms | sort | head -n 1)
    last=$(awk '$2 ~ /[tT]/ && $4 == "[blktap]" { print $1 }' /proc/kallsyms | sort | tail -n 1)
    [ -n "$first" ] || fail "/proc/kallsyms shows no function of the module"
    only_behind "$first" "$(printf '%x' $((0x$last + 4096)))"
}

nothing_fails() {
    local attribute
    for attribute in failslab fail_page_alloc fail_usercopy; do
        echo 0 >$faults/$attribute/probability
        echo -1 >$faults/$attribute/times
        echo 0 >$faults/$attribute/space
        echo N >$faults/$attribute/task-filter
    done
}

# Loading it: what was registered is taken back, in whatever place it fails.
case_failing_load() {
    modprobe -r blktap
    local first next
    first=$(awk '$3 == "do_one_initcall" { print $1 }' /proc/kallsyms)
    next=$(awk '{ print $1 }' /proc/kallsyms | sort -u | grep -A 1 -x "$first" | tail -n 1)
    only_behind "$first" "$next"
    blktap-ring failing load "$(modinfo -n blktap)"
    modprobe blktap
}

# A minor, its ring, the mapping, the disk; and requests, for which nothing is asked.
case_failing_calls() {
    modprobe blktap
    only_behind_the_module
    blktap-ring failing calls
}

# tapdisk and tap-ctl on such a module: create succeeds or says why not, and leaves nothing.
case_failing_under_tapdisk() {
    only_behind_the_module
    truncate -s 16M /srv/disk
    local budget said status refused=0
    for budget in 1 2 3 5 8 20 100 200 300 353 400 100000; do
        said='' status=0
        # So many pages for the module's functions, and then none.
        said=$(
            echo 1 >/proc/self/make-it-fail
            echo Y >$faults/fail_page_alloc/task-filter
            echo $budget >$faults/fail_page_alloc/space
            echo 100 >$faults/fail_page_alloc/probability
            TAP_CTL_VERBOSE=1 tap-ctl create -a aio:/srv/disk 2>&1
        ) || status=$?
        nothing_fails
        if [ $status -eq 0 ]; then
            tap-ctl list | sed -n 's/^pid=\([0-9]*\) minor=\([0-9]*\) .*/\1 \2/p' | (
                read -r pid minor
                dd if="$said" of=/dev/null bs=1M count=4 iflag=direct status=none
                tap-ctl destroy -p "$pid" -m "$minor"
            )
        else
            refused=$((refused + 1))
            case $said in *"annot allocate memory"*) ;; *) fail "tap-ctl create with $budget pages says: $said" ;; esac
        fi
        same "minors" "" "$(tap-ctl list)"
    done
    case $refused in 8 | 9 | 10 | 11) ;; *) fail "$refused of 12 were refused" ;; esac
    rm /srv/*
}

# What all of it left: kmemleak looks at objects that are older than five seconds, and tells those
# seen twice.
case_failing_leaks_nothing() {
    sleep 6
    echo scan >$faults/kmemleak
    echo scan >$faults/kmemleak
    same "memory that nobody refers to" "" "$(cat $faults/kmemleak)"
    modprobe -r blktap
    echo scan >$faults/kmemleak
    same "memory that nobody refers to, without the module" "" "$(cat $faults/kmemleak)"
}

run_cases "$@"
