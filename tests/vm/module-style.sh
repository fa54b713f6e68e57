#!/usr/bin/env bash
# The style of the kernel module, as the kernel's own tools see it: no warning of the compiler with
# W=1, none of sparse, and nothing that checkpatch.pl reports, but for what is left on purpose
# (below).
set -euo pipefail
# shellcheck source=tests/vm/common.sh
. "$(dirname "$0")/common.sh"

"$vm_here/module.sh" W=1 C=2 2>"$vm_target/vm/module-style.log" >/dev/null || {
    cat "$vm_target/vm/module-style.log" >&2
    exit 1
}
for file in "$vm_top"/xen/blktap-dkms/*.c; do
    grep -q "CHECK .*/${file##*/}\$" "$vm_target/vm/module-style.log" || die "sparse did not look at $file"
done
if grep -iE 'warning|error' "$vm_target/vm/module-style.log"; then
    die "the module has warnings"
fi

"$vm_here/packages.sh" --source
lock_cache
package=$(grep '^linux-source-' "$vm_cache/packages/source")
tools=$vm_cache/checkpatch-${package%.deb}
if [ ! -e "$tools/checkpatch.pl" ]; then
    say "taking checkpatch.pl out of $package"
    rm -rf "$vm_cache"/checkpatch-*
    mkdir -p "$tools.new"
    dpkg-deb --fsys-tarfile "$vm_cache/packages/$package" | tar xO --wildcards './usr/src/linux-source-*.tar.xz' |
        tar xJ -C "$tools.new" --strip-components=2 --wildcards '*/scripts/checkpatch.pl' '*/scripts/spelling.txt' \
            '*/scripts/const_structs.checkpatch'
    mv "$tools.new" "$tools"
fi
# Others need the cache meanwhile.
flock -u 9
# LINUX_VERSION_CODE: code of the kernel itself is for one version; this builds for several, in
# compat.h alone.
cd "$vm_top/xen/blktap-dkms"
perl "$tools/checkpatch.pl" --no-tree --strict --quiet --terse --ignore LINUX_VERSION_CODE -f ./*.c ./*.h ||
    die "checkpatch.pl has something to say about the module"
echo "module-style: no warnings"
