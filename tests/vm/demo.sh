#!/usr/bin/env bash
# Xen, dom0 and a guest with our disk, in the emulator, in one command and about two minutes.
set -euo pipefail
# shellcheck source=tests/vm/common.sh
. "$(dirname "$0")/common.sh"

share=$vm_logs/demo
fill_share "$share"
echo "Booting Xen in an emulator (nothing is installed on this machine; see tests/vm/README.md)."
ended=0
"$vm_here/boot.sh" -t "${TAPDISK_VM_LIMIT:-900}" "$share" "cp -a programs/. / && exec bash /vm/demo" || ended=$?
rm -rf "$share/programs"
exit $ended
