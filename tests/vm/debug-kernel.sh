#!/usr/bin/env bash
# Makes a small kernel of the same version as the machines', with what finds faults in a driver
# (KASAN, lockdep, debugging of objects, hung tasks, leaks, failing allocations), and prints the
# folder in the cache that holds it: vmlinuz, `release`, and `build`, with which modules are built
# for it. The first time it takes half an hour of one processor (an interrupted run is taken up
# again); then nothing is done until the packages or debug-kernel.config change.
#
#   debug-kernel.sh
#   TAPDISK_VM_KERNEL=debug tests/vm/run.sh blktap       # what it is for
set -euo pipefail
# shellcheck source=tests/vm/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=tests/vm/tree.sh
. "$vm_here/tree.sh"

"$vm_here/packages.sh" --source
lock_cache
make_tree source
# Others need the cache meanwhile.
flock -u 9
exec 9>"$vm_cache/debug-lock"
flock -n 9 || { say "another run is building the kernel; waiting for it" && flock 9; }

stamp=$(cat "$vm_here"/debug-kernel.{sh,config} "$vm_cache/packages/source" | sha256sum | cut -c1-16)
kernel=$vm_cache/debug-kernel-$stamp
if [ -e "$kernel/complete" ]; then
    echo "$kernel"
    exit 0
fi
say "building a kernel for debugging (half an hour of one processor); its log is $vm_cache/debug-kernel.log"
new=$vm_cache/debug-kernel.new
make_kernel() { in_tree "$new" "$new" nice -n 15 make -C /work/source O=/work/build "$@"; }

configure() {
    rm -rf "$vm_cache"/debug-kernel-* "$new"
    mkdir -p "$new"/{source,build}
    local package missing='' line
    package=$(echo "$tree"/usr/src/linux-source-*.tar.xz)
    tar xJf "$package" -C "$new/source" --strip-components=1
    {
        make_kernel tinyconfig
        cat "$vm_here/debug-kernel.config" >>"$new/build/.config"
        make_kernel olddefconfig
    } >"$vm_cache/debug-kernel.log" 2>&1 || die "the configuration failed: $vm_cache/debug-kernel.log"
    # What the configuration did not take is no part of the test, and nobody would know.
    while read -r line; do
        case $line in
            CONFIG_*=n) ! grep -q "^${line%=n}=[ym]" "$new/build/.config" || missing+=" $line" ;;
            CONFIG_*) grep -qxF "$line" "$new/build/.config" || missing+=" $line" ;;
        esac
    done <"$vm_here/debug-kernel.config"
    [ -z "$missing" ] || die "the kernel's configuration did not take:$missing"
    echo "$stamp" >"$new/stamp"
}

# A run that was interrupted is taken up again.
[ "$(cat "$new/stamp" 2>/dev/null)" = "$stamp" ] || configure
make_kernel -j"$(nproc)" bzImage modules >>"$vm_cache/debug-kernel.log" 2>&1 || {
    tail -n 30 "$vm_cache/debug-kernel.log" >&2
    die "the kernel does not build: $vm_cache/debug-kernel.log"
}
cp "$new/build/arch/x86/boot/bzImage" "$new/vmlinuz"
cp "$new/build/include/config/kernel.release" "$new/release"
# Objects are of no more use: modules need headers, scripts and symbols.
find "$new/build" -name '*.o' ! -path '*/scripts/*' ! -path '*/tools/*' -delete
rm -f "$new/build"/{vmlinux.o,.tmp_vmlinux*}
touch "$new/complete"
mv "$new" "$kernel"
say "made $kernel, $(du -sh "$kernel" | cut -f1)"
echo "$kernel"
