#!/usr/bin/env bash
# Makes sure that the programs which a step of the Makefile calls are there, and installs the
# missing ones from Debian through apt: as root, or through sudo. Says what it installs and why.
# Without either, it says what a person has to install, and fails.
#
#   deps.sh build|portable|cost|deb|demo|test|bench ...
set -euo pipefail

# group  program or file  Debian package  why
needs() {
    cat <<'TABLE'
build cc gcc the linker that cargo calls
build /usr/include/stdio.h libc6-dev the C library that programs are linked with
portable pip3 python3-pip fetches the linker of the programs for old systems
deb dpkg-shlibdeps dpkg-dev makes the Debian packages
demo qemu-img qemu-utils checks our images from outside; qemu-io is the demo's NBD client
demo qemu-io qemu-utils reads and writes a served disk over NBD
demo nbdinfo libnbd-bin shows what the NBD server offers
test qemu-nbd qemu-utils the second party of the image and NBD tests
test nbdkit nbdkit an NBD server whose disks are images of ours
test nbdcopy libnbd-bin an NBD client with many connections
test /usr/lib/python3/dist-packages/nbd.py python3-libnbd libnbd in Debian's Python, one more NBD client
test /usr/lib/python3/dist-packages/prometheus_client python3-prometheus-client reads metrics
test fio fio verifies what it wrote through NBD
test python3 python3 runs the tests that are scripts
test rpmbuild rpm packages the programs, to see that the RPM has them all
test cpio cpio unpacks that
test mmdebstrap mmdebstrap makes the systems that the Debian packages are installed into
test lintian lintian looks at the Debian packages
test busybox busybox-static the shell of the system that it is installed into
test xz xz-utils unpacks the modules of the virtual machines' kernel
test /sbin/mke2fs e2fsprogs makes the virtual machines' root file system
test /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring to trust the packages that they are made of
cost python3 python3 runs the count
cost valgrind valgrind counts the instructions of a request
bench python3 python3 runs the benchmark
bench fio fio makes the load (its nbd engine) and measures the raw file
bench qemu-nbd qemu-utils the server to compare with
bench nbdkit nbdkit another server to compare with
TABLE
}

if [ -n "${CARGO:-}" ] && ! command -v "$CARGO" >/dev/null 2>&1; then
    echo "deps: cargo is neither in PATH nor at ~/.cargo/bin/cargo: install Rust (Debian: rustup; or https://rustup.rs)" >&2
    exit 1
fi

missing=()
for group in "$@"; do
    while read -r of what package why; do
        [ "$of" = "$group" ] || continue
        case $what in
            /*) [ ! -e "$what" ] || continue ;;
            *) ! command -v "$what" >/dev/null 2>&1 || continue ;;
        esac
        case " ${missing[*]-} " in *" $package "*) continue ;; esac
        echo "deps: $what is missing ($why): needs the Debian package $package" >&2
        missing+=("$package")
    done < <(needs)
done
[ ${#missing[@]} -gt 0 ] || exit 0

by_hand() {
    echo "deps: $1" >&2
    echo "deps: please run, as root:  apt-get install ${missing[*]}" >&2
    exit 1
}

command -v apt-get >/dev/null 2>&1 || by_hand "this is no Debian: apt-get is not there (the names below are Debian's)"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null 2>&1 || by_hand "not root and no sudo here, so nothing can be installed"
    # A terminal can be asked for a password; a script cannot.
    if [ -t 0 ]; then as_root=(sudo); else as_root=(sudo -n); fi
    "${as_root[@]}" true 2>/dev/null || by_hand "not root, and sudo does not let this user through"
fi

echo "deps: installing through apt: ${missing[*]}" >&2
install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "${missing[@]}" >&2
}
# A fresh machine has no package lists, or old ones.
install || { "${as_root[@]}" apt-get update >&2 && install; } || by_hand "apt could not install them"
