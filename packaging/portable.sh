#!/usr/bin/env bash
# Builds the programs so that they run with any glibc from 2.17 on, which XCP-ng 8.3 and XenServer 8
# have in dom0.
#
#   portable.sh OUTPUT     puts the programs there
#
# A linker takes the newest version of each symbol that its C library offers, so a program needs a C
# library as new as the one of the machine that built it. Zig's linker can be told which version to
# link for. It and cargo-zigbuild, which hands it to cargo, are fetched from PyPI at first
# (packaging/zig.txt has versions and hashes) and kept in ~/.cache/tapdisk-rs; nothing is installed
# into the system.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
glibc=2.17
[ $# = 1 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
output=$(cd "$1" && pwd)
export CARGO=${CARGO:-cargo}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$here/target}

host=$("$CARGO" -vV | sed -n 's/^host: //p')
[ "$host" = x86_64-unknown-linux-gnu ] || {
    echo "portable.sh: dom0 is x86_64 and this is $host: build on x86_64 Linux, or natively (make)" >&2
    exit 1
}

versions=$(sed -n 's/^\([a-z-]*\)==\([0-9.]*\).*/\1-\2/p' "$here/packaging/zig.txt" | paste -sd+)
tools=${XDG_CACHE_HOME:-$HOME/.cache}/tapdisk-rs/$versions
if [ ! -e "$tools/complete" ]; then
    python3 -m pip --version >/dev/null 2>&1 || {
        echo "portable.sh: python3 has no pip, which fetches the linker (Debian: apt-get install python3-pip)" >&2
        exit 1
    }
    echo "portable.sh: fetching $versions from PyPI into $tools (300 MB)" >&2
    rm -rf "$tools"
    # Into a folder of its own: neither the system's Python packages nor the user's change.
    python3 -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --only-binary :all: \
        --target "$tools" -r "$here/packaging/zig.txt"
    touch "$tools/complete"
fi

cd "$here"
export CARGO_ZIGBUILD_ZIG_PATH=$tools/ziglang/zig
"$tools/bin/cargo-zigbuild" zigbuild --release --locked --workspace --bins --exclude tests \
    --target "$host.$glibc"
set -- tap-ctl tapdisk vhd-util qcow2-util cbt-util td-util tapback
for program; do
    install -m 0755 "$CARGO_TARGET_DIR/$host/release/$program" "$output/$program"
done
"$here/packaging/glibc.sh" "$glibc" "${@/#/$output/}"
