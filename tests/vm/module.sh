#!/usr/bin/env bash
# Builds our kernel module (xen/blktap-dkms) for the kernel of the machines, and prints where it is:
# $CARGO_TARGET_DIR/vm/module/blktap.ko; beside it, `kernel` holds the version it is for. Nothing is done when it is
# newer than its sources.
#
#   module.sh [ARGUMENTS OF MAKE]      for example: module.sh W=1 C=2
#
# Compiler and headers are Debian's for that kernel (packages.sh --module), unpacked into a tree in the cache, in which
# make runs as the root of that tree: as root by chroot, otherwise in a user namespace.
set -euo pipefail
# shellcheck source=tests/vm/common.sh
. "$(dirname "$0")/common.sh"

"$vm_here/packages.sh" --module
debs=$vm_cache/packages
source=$vm_top/xen/blktap-dkms
built=$vm_target/vm/module

lock_cache
stamp=$(cat "$vm_here/module.sh" "$debs/module" | sha256sum | cut -c1-16)
tree=$vm_cache/build-$stamp
headers=$(sed -n 's/_.*//; s/^linux-headers-\(.*-amd64\)$/\1/p' "$debs/module")
[ -n "$headers" ] || die "no kernel headers in $debs/module"

if [ ! -e "$tree/complete" ]; then
    say "unpacking compiler and headers of $headers"
    rm -rf "$vm_cache"/build-*
    mkdir -p "$tree"/usr/{bin,sbin,lib,lib64} "$tree"/{dev,proc,tmp,work}
    for folder in bin sbin lib lib64; do
        ln -s "usr/$folder" "$tree/$folder"
    done
    while read -r file; do
        dpkg-deb --fsys-tarfile "$debs/$file" | tar x -C "$tree" --no-same-owner --keep-directory-symlink \
            --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' -f -
    done <"$debs/module"
    ln -sf bash "$tree/usr/bin/sh"
    ln -sf mawk "$tree/usr/bin/awk"
    ln -sf gcc-14 "$tree/usr/bin/gcc"
    : >"$tree/dev/null"
    touch "$tree/complete"
fi

# Runs a command in the tree: with a /dev/null, and the sources as /work.
in_tree() {
    local enter=(unshare -m)
    [ "$(id -u)" = 0 ] || enter=(unshare -rm)
    # shellcheck disable=SC2016
    "${enter[@]}" sh -c 'tree=$1 work=$2; shift 2
        mount --bind /dev/null "$tree/dev/null" && mount --bind "$work" "$tree/work" &&
        exec chroot "$tree" /usr/bin/env -i PATH=/usr/sbin:/usr/bin HOME=/tmp LC_ALL=C "$@"' \
        sh "$tree" "$built" "$@"
}

mkdir -p "$built"
if [ $# -gt 0 ] || [ ! -e "$built/blktap.ko" ] || [ "$(cat "$built/for" 2>/dev/null)" != "$stamp" ] ||
    [ -n "$(find "$source" -newer "$built/blktap.ko" -print -quit)" ]; then
    rm -rf "$built"
    mkdir -p "$built"
    cp "$source"/* "$built/"
    in_tree make -C "/usr/src/linux-headers-$headers" M=/work "$@" modules >"$built/log" 2>&1 || {
        cat "$built/log" >&2
        die "the module does not build"
    }
    [ $# -eq 0 ] || cat "$built/log" >&2
    echo "$stamp" >"$built/for"
    echo "$headers" >"$built/kernel"
fi
echo "$built/blktap.ko"
