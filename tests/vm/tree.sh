# Sourced by the scripts that compile for the machines' kernel: a tree of Debian packages in the
# cache, in which programs run as the root of that tree: as root by chroot, otherwise in a user
# namespace.
# shellcheck shell=bash disable=SC2154

# Sets `tree` to a folder with the packages of a list. The cache is locked.
make_tree() { # list
    local folder file stamp
    stamp=$(cat - "$vm_cache/packages/$1" <<<"form 1" | sha256sum | cut -c1-16)
    tree=$vm_cache/tree-$1-$stamp
    [ ! -e "$tree/complete" ] || return 0
    say "unpacking the packages of the list $1"
    rm -rf "$vm_cache/tree-$1"-*
    mkdir -p "$tree"/usr/{bin,sbin,lib,lib64} "$tree"/{dev,proc,tmp,work,module}
    for folder in bin sbin lib lib64; do
        ln -s "usr/$folder" "$tree/$folder"
    done
    while read -r file; do
        dpkg-deb --fsys-tarfile "$vm_cache/packages/$file" | tar x -C "$tree" --no-same-owner --keep-directory-symlink \
            --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' -f -
    done <"$vm_cache/packages/$1"
    ln -sf bash "$tree/usr/bin/sh"
    ln -sf mawk "$tree/usr/bin/awk"
    ln -sf gcc-14 "$tree/usr/bin/gcc"
    : >"$tree/dev/null"
    touch "$tree/complete"
}

# Runs a command in the tree: with a /dev/null, one folder as /work and another as /module.
in_tree() { # folder, folder, command ...
    local enter=(unshare -m)
    [ "$(id -u)" = 0 ] || enter=(unshare -rm)
    # shellcheck disable=SC2016
    "${enter[@]}" sh -c 'tree=$1 work=$2 module=$3; shift 3
        mount --bind /dev/null "$tree/dev/null" && mount --bind "$work" "$tree/work" &&
        mount --bind "$module" "$tree/module" &&
        exec chroot "$tree" /usr/bin/env -i PATH=/usr/sbin:/usr/bin HOME=/tmp LC_ALL=C "$@"' \
        sh "$tree" "$@"
}
