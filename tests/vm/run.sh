#!/usr/bin/env bash
# The tests that need a machine of their own: boots each of the named machines once, runs its list
# of cases (cases/NAME.sh) in it with the programs as `make install` puts them, and prints what came
# of every case.
#
#   run.sh MACHINE [CASE ...]     MACHINE: a list of cases; those named xen… run under Xen, the others without,
#                                 those named …-debug with the kernel for debugging only
#
# A tapdisk that makes a system call which is not on its list is killed there (docs/security.md).
# SEED and ROUNDS, if set, reach the cases that go by chance (faults.sh); CUTS and KILLS those of
# crashes.sh, UPGRADES how many in a row (device.sh, xen-more.sh).
#
# The programs are those of $CARGO_TARGET_DIR/release (make build). Logs stay in
# $CARGO_TARGET_DIR/vm/MACHINE.
set -euo pipefail
# shellcheck source=tests/vm/common.sh
. "$(dirname "$0")/common.sh"

machine=${1:?which machine: plain, device, blktap or xen}
shift
[ -e "$vm_here/cases/$machine.sh" ] || die "there is no list of cases $vm_here/cases/$machine.sh"
share=$vm_logs/$machine
case $machine in
    *-debug) [ "${TAPDISK_VM_KERNEL:-}" = debug ] || die "the list $machine is for the kernel for debugging: TAPDISK_VM_KERNEL=debug" ;;
esac
fill_share "$share"
# Modules of other versions that the list asks for.
mkdir -p "$share/modules"
sed -n 's/^# module: //p' "$vm_here/cases/$machine.sh" | while read -r change; do
    cp "$("$vm_here/module.sh" --with "$change")" "$share/modules/$change.ko"
done

options=(-q -t "${TAPDISK_VM_LIMIT:-3000}")
case $machine in xen*) ;; *) options+=(-p) ;; esac
started=$SECONDS
ended=0
"$vm_here/boot.sh" "${options[@]}" "$share" \
    "cp -a programs/. / && depmod && export SEED=${SEED:-} ROUNDS=${ROUNDS:-} CUTS=${CUTS:-} \
        KILLS=${KILLS:-} UPGRADES=${UPGRADES:-} TAPDISK_SANDBOX=kill && \
        exec bash vm/cases/$machine.sh $*" || ended=$?

passed=0 failed=0
if [ ! -s "$share/results.planned" ]; then
    [ $ended -eq 124 ] || [ $ended -eq 125 ] || tail -n 40 "$share/console.log" | sed 's/^/    /'
    die "the machine $machine did not get to its cases (status $ended); its console: $share/console.log"
fi
while read -r name; do
    read -r outcome _ seconds < <(grep " $name " "$share/results" || echo "NEVER $name 0")
    case $outcome in
        ok)
            passed=$((passed + 1))
            echo "vm $machine: $name ... ok ($seconds s)"
            ;;
        *)
            failed=$((failed + 1))
            echo "vm $machine: $name ... FAILED ($seconds s)"
            [ "$outcome" != NEVER ] || echo "    the machine ended, or ran out of time, before it was over"
            tail -n 150 "$share/$name.log" 2>/dev/null | sed 's/^/    /' || true
            ;;
    esac
done <"$share/results.planned"
if [ $failed -gt 0 ]; then
    echo "    the end of the console ($share/console.log):"
    tail -n 40 "$share/console.log" | sed 's/^/    /'
fi
rm -rf "$share/programs"
echo "vm $machine: $((SECONDS - started)) s from boot to end"
echo "vm-$machine: $passed passed, $failed failed"
[ $failed -eq 0 ] && [ $ended -eq 0 ]
