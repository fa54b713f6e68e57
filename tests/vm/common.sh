# Sourced by the scripts of this folder: where things are kept, and how the scripts speak.
# shellcheck shell=bash

# Debian's release and Xen's version in it. The programs are built on the host and run there, so its
# C library must not be older than the host's.
export vm_suite=trixie vm_xen=4.20

vm_here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export vm_here

say() { echo "vm: $*" >&2; }

die() {
    echo "vm: $*" >&2
    exit 1
}

# Packages and images (half a GiB) live outside the source tree, so that `make clean`, another clone
# and the next run find them.
if [ -n "${TAPDISK_VM_CACHE:-}" ]; then
    vm_cache=$TAPDISK_VM_CACHE
elif [ -n "${XDG_CACHE_HOME:-}${HOME:-}" ]; then
    vm_cache=${XDG_CACHE_HOME:-$HOME/.cache}/tapdisk-rs/vm
else
    die "neither HOME nor XDG_CACHE_HOME is set: set TAPDISK_VM_CACHE to a folder that may hold half a GiB"
fi
mkdir -p "$vm_cache" 2>/dev/null || true
[ -w "$vm_cache" ] ||
    die "cannot write to $vm_cache: set TAPDISK_VM_CACHE to a folder that may hold half a GiB"
vm_cache=$(cd "$vm_cache" && pwd)

# Two runs at once build one image: the second waits, and then finds it.
lock_cache() {
    exec 9>"$vm_cache/lock"
    flock -n 9 || { say "another run is at work in $vm_cache; waiting for it" && flock 9; }
}

vm_top=$(cd "$vm_here/../.." && pwd)
vm_target=${CARGO_TARGET_DIR:-$vm_top/target}
# Where the logs of the last run of a machine stay.
export vm_logs=$vm_target/vm

# Makes a new folder to be a machine's /share: the programs as `make install` puts them (and the
# load program of the tests), and our scripts.
fill_share() { # folder
    rm -rf "$1"
    mkdir -p "$1"
    cp -r "$vm_here" "$1/vm"
    make --no-print-directory -C "$vm_top" install DESTDIR="$1/programs" PREFIX=/usr >"$1/install.log" 2>&1 || {
        cat "$1/install.log" >&2
        die "make install failed"
    }
    cp "$vm_target"/release/{disk-load,hostile-front,xen-front,blktap-ring,pressure,crashes} "$1/programs/usr/bin/"
    # One that can be told to fail when it takes over: a build for debugging.
    cargo build --quiet --manifest-path "$vm_top/Cargo.toml" --target-dir "$vm_target" -p tapdisk --bin tapdisk ||
        die "the build for debugging failed"
    cp "$vm_target/debug/tapdisk" "$1/programs/usr/libexec/tapdisk-debug"
    # Where modprobe finds it after depmod.
    local module
    module=$("$vm_here/module.sh")
    install -D -m 0644 "$module" "$1/programs/usr/lib/modules/$(cat "${module%/*}/kernel")/updates/blktap.ko"
}
