#!/usr/bin/env bash
# Builds our kernel module (xen/blktap-dkms) for the kernel of the machines, and prints where it is:
# $CARGO_TARGET_DIR/vm/module/blktap.ko; beside it, `kernel` holds the version it is for. Nothing is
# done when it is newer than its sources. With TAPDISK_VM_KERNEL=debug, for the kernel of
# debug-kernel.sh, in vm/module-debug.
#
#   module.sh [--with NAME=VALUE] [ARGUMENTS OF MAKE]      for example: module.sh W=1 C=2
#
# --with builds it apart, with another value of one of its constants (blktap.h): a module of another
# version.
#
# Compiler and headers are Debian's for that kernel (packages.sh --module), in a tree in the cache
# (tree.sh).
set -euo pipefail
# shellcheck source=tests/vm/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=tests/vm/tree.sh
. "$vm_here/tree.sh"

source=$vm_top/xen/blktap-dkms
built=$vm_target/vm/module${TAPDISK_VM_KERNEL:+-$TAPDISK_VM_KERNEL}
with=''
if [ "${1:-}" = --with ]; then
    with=${2:?NAME=VALUE}
    built+=-$with
    shift 2
fi

case ${TAPDISK_VM_KERNEL:-} in
    '')
        "$vm_here/packages.sh" --module
        lock_cache
        make_tree module
        version=$(sed -n 's/_.*//; s/^linux-headers-\(.*-amd64\)$/\1/p' "$vm_cache/packages/module")
        [ -n "$version" ] || die "no kernel headers in $vm_cache/packages/module"
        where=$built
        arguments=(-C "/usr/src/linux-headers-$version" "M=/module")
        ;;
    debug)
        # The kernel's folder is /work then, as it was when it was built.
        where=$("$vm_here/debug-kernel.sh")
        lock_cache
        make_tree source
        version=$(cat "$where/release")
        arguments=(-C /work/build "M=/module")
        ;;
    *) die "TAPDISK_VM_KERNEL is $TAPDISK_VM_KERNEL; there is only debug" ;;
esac

mkdir -p "$built"
if [ $# -gt 0 ] || [ ! -e "$built/blktap.ko" ] || [ "$(cat "$built/for" 2>/dev/null)" != "$tree $where" ] ||
    [ -n "$(find "$source" -newer "$built/blktap.ko" -print -quit)" ]; then
    rm -rf "$built"
    mkdir -p "$built"
    cp "$source"/* "$built/"
    if [ -n "$with" ]; then
        grep -q "^#define ${with%=*}[[:space:]]" "$built/blktap.h" || die "blktap.h has no constant ${with%=*}"
        sed -i "s/^#define ${with%=*}[[:space:]].*/#define ${with%=*} ${with#*=}/" "$built/blktap.h"
    fi
    in_tree "$where" "$built" make "${arguments[@]}" "$@" modules >"$built/log" 2>&1 || {
        cat "$built/log" >&2
        die "the module does not build"
    }
    [ $# -eq 0 ] || cat "$built/log" >&2
    echo "$tree $where" >"$built/for"
    echo "$version" >"$built/kernel"
fi
echo "$built/blktap.ko"
