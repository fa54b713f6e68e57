#!/usr/bin/env bash
# Fetches the Debian packages of the virtual machines into the cache, through an apt of its own: its
# lists, its state and its archives are below the cache, so neither root nor a change to the host is
# needed, and the release may be another than the host's. The signatures of the archive are checked
# as usual.
#
#   packages.sh [--update] [--module] [--source]
#
# What is fetched once stays (a run needs no network then); --update takes what the archive has now.
# --module fetches as well what it takes to build a module for that kernel: headers, compiler, make;
# --source what it takes to build a kernel. Leaves in the cache: packages/*.deb, and the lists dom0,
# host, xen, kernel (and module, source) of file names.
set -euo pipefail
# shellcheck source=tests/vm/common.sh
. "$(dirname "$0")/common.sh"
# shellcheck source=tests/vm/apt.sh
. "$vm_here/apt.sh"

# Into the root file system of dom0 (and of the machine without Xen).
dom0_wants=("xen-utils-$vm_xen" xenstore-utils qemu-system-xen qemu-utils nbd-client busybox-static bash coreutils
    util-linux mount kmod e2fsprogs procps grep sed mawk findutils strace tar gzip iproute2 libaio1t64 liburing2
    libstdc++6 libgcc-s1 bsdutils udev lvm2 dmsetup thin-provisioning-tools xfsprogs nfs-kernel-server nfs-common
    rpcbind)
# Onto the host, into a folder: the emulator, and what is needed to take kernels apart.
host_wants=(qemu-system-x86 zstd kmod busybox-static)
# What a module is built with, in a tree of its own: the compiler of the kernel's release, and the
# headers' own programs, need that release's C library. (The kernel's headers are added: their name
# has its version.)
module_wants=(make gcc-14 bash coreutils sed grep mawk perl-base findutils libc-bin libelf1t64 sparse)
# What a kernel is built with beyond that.
source_wants=(flex bison bc libelf-dev libc6-dev libssl-dev xz-utils tar gzip kmod cpio diffutils file)
# Would be pulled in by dependencies, and is of no use without an init system, users or Python.
no_use='^(debconf|dpkg|perl-base|systemd|ucf|init-system-helpers|libpam-.*|passwd|adduser|login.*|base-passwd'
no_use+='|libsemanage.*|libsepol2|python3.*|libpython3.*|libdebconf.*|tzdata|media-types|netbase|iso-codes'
no_use+='|readline-common|sensible-utils|libtext-.*|gcc-14-base|libaudit-common'
no_use+='|openssl-provider-legacy|usr-is-merged|debianutils|libdb5.3.*|libsqlite3-0|libexpat1)$'

debs=$vm_cache/packages
lists=(dom0 host xen kernel)
wants="${dom0_wants[*]} ${host_wants[*]} $no_use"

complete() { # lists
    local list file
    for list in "$@"; do
        [ -s "$debs/$list" ] || return 1
        while read -r file; do
            [ -s "$debs/$file" ] || return 1
        done <"$debs/$list"
    done
}

cannot() {
    say "$1"
    die "the virtual machines cannot be made without these packages; without a network, copy $vm_cache from a" \
        "machine where 'tests/vm/packages.sh' has worked"
}

# The packages that installing these would bring, one a line.
with_dependencies() {
    apt-get -s install --no-install-recommends "$@" | awk '/^Inst /{print $2}' | grep -Ev "$no_use" | sort -u
}

# From package names to the names of the files that were fetched for them.
file_names() {
    local package file
    while read -r package; do
        file=$(find . -maxdepth 1 -name "${package}_*.deb" -printf '%f\n' | head -1)
        [ -n "$file" ] || cannot "$package was not fetched"
        echo "$file"
    done
}

fetch() {
    local new=$vm_cache/packages.new kernel
    command -v apt-get >/dev/null || cannot "this is no Debian: there is no apt-get here"
    [ "$(uname -m)" = x86_64 ] || cannot "the machines are x86-64, and their emulator is fetched for x86-64 only"
    private_apt "$vm_cache/apt" deb "$vm_suite"
    say "fetching Debian packages ($vm_suite) for the virtual machines into $vm_cache"
    apt-get update -qq -o APT::Update::Error-Mode=any >&2 || cannot "apt-get update failed"
    kernel=$(apt-cache depends --no-recommends --no-suggests linux-image-amd64 | sed -n 's/.*Depends: //p' | head -1)
    [ -n "$kernel" ] || cannot "the archive has no linux-image-amd64 for $vm_suite"
    rm -rf "$new"
    mkdir "$new"
    cd "$new"
    with_dependencies "${dom0_wants[@]}" >dom0.names || cannot "apt finds no way to install ${dom0_wants[*]}"
    with_dependencies "${host_wants[@]}" >host.names || cannot "apt finds no way to install ${host_wants[*]}"
    echo "xen-hypervisor-$vm_xen-amd64" >xen.names
    echo "$kernel" >kernel.names
    # Names of packages have no blanks: one argument each.
    # shellcheck disable=SC2046
    apt-get download -qq $(sort -u ./*.names) >&2 || cannot "apt-get download failed"
    local list
    for list in "${lists[@]}"; do
        file_names <"$list.names" >"$list"
    done
    echo "$wants" >wants
    cd "$vm_cache"
    rm -rf "$debs"
    mv "$new" "$debs"
    # 85 MiB that apt makes anew when it needs them.
    rm -f "$vm_cache"/apt/*.bin
    say "fetched $(find "$debs" -name '*.deb' | wc -l) packages, $(du -sh "$debs" | cut -f1)"
}

# Adds a list to what is there.
fetch_more() { # list, packages ...
    local list=$1
    shift
    private_apt "$vm_cache/apt" deb "$vm_suite"
    say "fetching Debian packages for the list $list"
    apt-get update -qq -o APT::Update::Error-Mode=any >&2 || cannot "apt-get update failed"
    cd "$debs"
    with_dependencies "$@" >"$list.all" ||
        cannot "the archive has no $1 any more (tests/vm/packages.sh --update takes another kernel)"
    # The headers want the kernel itself; perl-base is of use here.
    { grep -Ev '^(linux-image-|linux-base|initramfs)' "$list.all"; echo perl-base; } | sort -u >"$list.names"
    # shellcheck disable=SC2046
    apt-get download -qq $(cat "$list.names") >&2 || cannot "apt-get download failed"
    file_names <"$list.names" >"$list.new"
    mv "$list.new" "$list"
    rm -f "$vm_cache"/apt/*.bin
    say "fetched $(wc -l <"$list") packages"
}

update='' module='' source=''
for option in "$@"; do
    case $option in
        --update) update=1 ;;
        --module) module=1 ;;
        --source) source=1 ;;
        *) die "packages.sh knows no $option" ;;
    esac
done
lock_cache
# What an earlier version of this script has fetched may be other packages.
if [ -n "$update" ] || ! complete "${lists[@]}" || [ "$(cat "$debs/wants" 2>/dev/null)" != "$wants" ]; then
    fetch
fi
if [ -n "$module" ] && ! complete module; then
    # The version that was fetched, not the one that the archive has now.
    headers=$(sed 's/^linux-image-/linux-headers-/; s/_.*//' "$debs/kernel")
    fetch_more module "$headers" "${module_wants[@]}"
fi
if [ -n "$source" ] && ! complete source; then
    series=$(sed 's/^linux-image-\([0-9]*\.[0-9]*\).*/\1/' "$debs/kernel")
    fetch_more source "linux-source-$series" "${module_wants[@]}" "${source_wants[@]}"
fi
