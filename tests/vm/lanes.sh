#!/usr/bin/env bash
# Runs commands that each keep about one processor busy, as a machine in the emulator does, several
# at a time, and shows what each printed when it has ended. The longest should come first.
#
#   lanes.sh COMMAND ...          each COMMAND is one word for bash, run in this folder
#
# TAPDISK_VM_LANES says how many at a time (default: the host's processors). Exit: 0 if every
# command exited with 0.
set -euo pipefail
cd "$(dirname "$0")"

lanes=${TAPDISK_VM_LANES:-$(nproc)}
[ "$lanes" -ge 1 ] 2>/dev/null || {
    echo "vm: TAPDISK_VM_LANES must be a number from 1, not '$lanes'" >&2
    exit 2
}
work=$(mktemp -d "${TMPDIR:-/tmp}/tapdisk-lanes.XXXXXX")
trap 'rm -rf "$work"' EXIT
# An interrupted run leaves no machine behind: every command is a process group of its own.
trap 'for pid in "${!command_of[@]}"; do kill -- "-$pid" 2>/dev/null || true; done; exit 130' INT TERM HUP
set -m

declare -A command_of=() started_at=()
failed=0

# Waits for one command's end, and shows its output.
collect() {
    local ended=0 pid
    wait -n -p pid || ended=$?
    echo "=== ${command_of[$pid]}: $((SECONDS - started_at[$pid])) s, status $ended"
    cat "$work/$pid"
    rm "$work/$pid"
    unset "command_of[$pid]"
    [ "$ended" -eq 0 ] || failed=1
}

for command in "$@"; do
    [ "${#command_of[@]}" -lt "$lanes" ] || collect
    echo "=== $command"
    # The output's name is the process's number, which only the process itself knows in time.
    bash -c 'exec >"$1/$$" 2>&1; eval "$2"' lane "$work" "$command" </dev/null &
    command_of[$!]=$command
    started_at[$!]=$SECONDS
done
while [ "${#command_of[@]}" -gt 0 ]; do
    collect
done
exit $failed
