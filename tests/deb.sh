#!/usr/bin/env bash
# The Debian packages in clean systems of Debian 12 and 13: made, looked at by lintian, installed,
# verified, used (the demo by the installed programs, inside), upgraded over a changed configuration
# file and a disk that is served, removed, and purged without a trace.
#
#   deb.sh [PROGRAMS]     of which the packages are made (default: those that make has built)
#
# The systems are made by mmdebstrap at first and kept in ~/.cache/tapdisk-rs/deb. Needs root, for
# chroot and mounts (in a namespace of its own).
set -euo pipefail


here=$(cd "$(dirname "$0")/.." && pwd)
fail() {
    echo "deb: FAILED: $*" >&2
    exit 1
}
if [ "$(id -u)" != 0 ]; then
    echo "deb: SKIPPED: installing the .deb packages: it needs root (chroot)" >&2
    [ -z "${CI:-}" ] || fail "CI skips nothing"
    exit 0
fi
if [ -z "${TAPDISK_DEB_INSIDE:-}" ]; then
    # What is mounted goes with the namespace.
    TAPDISK_DEB_INSIDE=1 exec unshare --mount --propagation private "$0" "$@"
fi
cannot() { fail "$*"; }
# shellcheck source=tests/vm/apt.sh
. "$here/tests/vm/apt.sh"

cache=${XDG_CACHE_HOME:-$HOME/.cache}/tapdisk-rs/deb
work=$(mktemp -d "${TMPDIR:-/tmp}/tapdisk-deb.XXXXXX")
root='' pid=''
finish() {
    status=$?
    trap - EXIT
    [ -z "$pid" ] || kill -KILL "$pid" || true
    # Before what is mounted would be removed.
    [ -z "$root" ] || umount --recursive --lazy "$root" || true
    rm -rf --one-file-system "$work"
    exit $status
}
trap finish EXIT

# A system: what the package depends on, and who reads its units, rules and settings.
system() { # release
    local archive
    [ -s "$cache/$1.tar" ] || {
        archive=$(archive debian)
        [ -n "$archive" ] || fail "apt knows no Debian archive here"
        echo "deb: making a system of Debian $1 in $cache" >&2
        mkdir -p "$cache"
        mmdebstrap --quiet --variant=minbase --include=systemd,udev,psmisc,logrotate \
            --aptopt='Acquire::Check-Valid-Until "false"' "$1" "$cache/$1.new.tar" "deb $archive $1 main"
        mv "$cache/$1.new.tar" "$cache/$1.tar"
    }
    root=$work/$1
    mkdir "$root"
    mount -t tmpfs -o size=2g tapdisk-deb "$root"
    tar -xf "$cache/$1.tar" -C "$root"
    mount --rbind /dev "$root/dev"
    mount -t proc proc "$root/proc"
    mkdir -p "$root$work/shared"
    mount --bind "$work/shared" "$root$work/shared"
}
inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }
files() {
    find "$root" -xdev \( -path "$root/var/lib/dpkg" -o -path "$root/var/log" -o -path "$root/var/cache" -o \
        -path "$root/var/lib/systemd" -o -path "$root/tmp" -o -path "$root/run" \) -prune -o ! -type d -printf '/%P\n' |
        sort
}
# dpkg, with what it says shown only if something is wrong with it.
dpkg_does() {
    inside dpkg "$@" >"$work/dpkg.log" 2>&1 || { cat "$work/dpkg.log" >&2; fail "dpkg $*"; }
    # A maintainer script that goes on after a failure is heard nevertheless.
    if grep -iE 'error|failed|not found|cannot' "$work/dpkg.log" >&2; then
        fail "dpkg $* says the above"
    fi
}

mkdir "$work/shared" "$work/packages"
"$here/packaging/deb.sh" "$@" "$work/packages" >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; fail "packaging/deb.sh"; }
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/Cargo.toml" | head -n 1)
# Told apart by more than its number.
DEB_VERSION=$version+later "$here/packaging/deb.sh" "$@" "$work/packages" >"$work/log" 2>&1 ||
    { cat "$work/log" >&2; fail "packaging/deb.sh"; }
package=tapdisk-rs_${version}_$(dpkg --print-architecture).deb
later=tapdisk-rs_${version}+later_$(dpkg --print-architecture).deb
module=tapdisk-rs-dkms_${version}_all.deb
# A script of cron beside logrotate, for systems that have no systemd: no timer of ours doubles it.
lintian --allow-root --fail-on error,warning --suppress-tags missing-systemd-timer-for-cron-script \
    "$work/packages/$package" "$work/packages/$module" >&2 || fail "lintian"

goes_on() { # after what
    qemu-io -f raw -c "read -P 7 0 64k" -c "write -P 7 0 64k" -c flush "nbd+unix:///?socket=$socket" >"$work/io" ||
        fail "$1: the disk does not go on: $(cat "$work/io")"
    ! grep -i 'verification failed' "$work/io" >&2 || fail "$1: the disk has lost something"
}

for release in bookworm trixie; do
    system $release
    before=$(files)
    cp "$work"/packages/*.deb "$root/tmp/"

    dpkg_does -i "/tmp/$package"
    said=$(inside dpkg --verify tapdisk-rs) || fail "$release: not as it was packaged: $said"
    [ -L "$root/etc/systemd/system/multi-user.target.wants/tapback.service" ] ||
        fail "$release: tapback is not enabled"
    said=$(inside systemd-analyze verify --man=no /usr/lib/systemd/system/tapback.service 2>&1 |
        grep -i tapback || true)
    [ -z "$said" ] || fail "$release: systemd says of the unit: $said"
    if inside udevadm verify --help >/dev/null 2>&1; then
        said=$(inside udevadm verify /usr/lib/udev/rules.d/{58-tapdisk-foreign,60-tapdisk-rs,62-tapdisk-foreign}.rules 2>&1) ||
            fail "$release: udev says: $said"
        [[ $said == *"Success: 3"* ]] || fail "$release: udev says: $said"
    fi
    said=$(inside systemd-tmpfiles --create /usr/lib/tmpfiles.d/tapdisk-rs.conf 2>&1) ||
        fail "$release: tmpfiles: $said"
    [ "$(stat -c %a "$root/run/blktap-control" "$root/run/blktap-control/tapdisk" | paste -sd' ')" = "755 700" ] ||
        fail "$release: tmpfiles"
    said=$(inside logrotate --debug /etc/logrotate.d/tapdisk-rs 2>&1) ||
        fail "$release: logrotate: $said"

    # Old logs go, also rotated ones, new ones and others' files stay.
    logs=$root/var/log/blktap
    touch -d '31 days ago' "$logs"/{tapdisk.1.log,tapdisk.1.log.2.gz,other.log}
    touch -d '29 days ago' "$logs/tapdisk.2.log"
    # tmpfiles' own age is not for logs that may be open.
    inside systemd-tmpfiles --clean /usr/lib/tmpfiles.d/tapdisk-rs.conf
    [ -e "$logs/tapdisk.1.log" ] ||
        fail "$release: tmpfiles takes a log away without a word to its tapdisk"
    inside /etc/cron.daily/tapdisk-rs
    left=$(ls "$logs")
    # shellcheck disable=SC2012
    [ "$(tr '\n' ' ' <<<"$left")" = "tapdisk.2.log " ] || [ "$(tr '\n' ' ' <<<"$left")" = "other.log tapdisk.2.log " ] ||
        fail "$release: the daily job leaves $left"
    rm -f "$logs"/*

    # The demo, with the installed programs run inside; qemu's tools look at them from outside.
    mkdir "$work/bin"
    for program in /usr/sbin/tap-ctl /usr/bin/vhd-util /usr/libexec/tapdisk; do
        printf '#!/bin/sh\nexec chroot "%s" /usr/bin/env TAPDISK_RUN_DIR="%s" %s "$@"\n' \
            "$root" "$work/shared/run" $program >"$work/bin/${program##*/}"
    done
    chmod 755 "$work"/bin/*
    TMPDIR=$work/shared "$here/tests/demo.sh" "$work/bin" >"$work/log" 2>&1 ||
        { cat "$work/log" >&2; fail "$release: the demo"; }

    # A disk that is served through all that follows.
    "$work/bin/vhd-util" create -n "$work/shared/disk.vhd" -s 16
    device=$("$work/bin/tap-ctl" create -a "vhd:$work/shared/disk.vhd")
    minor=${device##*-}
    pid=$("$work/bin/tap-ctl" list -m "$minor" | sed -n 's/^pid=\([0-9]*\) .*/\1/p')
    socket=$work/shared/run/nbd$pid.$minor
    qemu-io -f raw -c "write -P 7 0 64k" "nbd+unix:///?socket=$socket" >/dev/null

    echo '# ours' >>"$root/etc/tapdisk-rs/parents"
    rm "$root/etc/systemd/system/multi-user.target.wants/tapback.service"
    dpkg_does -i "/tmp/$later"
    # shellcheck disable=SC2016 # dpkg expands it
    [ "$(inside dpkg-query -W -f '${Version}' tapdisk-rs)" = "$version+later" ] || fail "$release: not upgraded"
    tail -n 1 "$root/etc/tapdisk-rs/parents" | grep -q '^# ours$' ||
        fail "$release: the upgrade took a changed file away"
    [ ! -e "$root/etc/systemd/system/multi-user.target.wants/tapback.service" ] ||
        fail "$release: the upgrade enabled what was disabled"
    goes_on "$release: upgraded"
    "$work/bin/tap-ctl" pause -p "$pid" -m "$minor"
    "$work/bin/tap-ctl" unpause -p "$pid" -m "$minor"
    goes_on "$release: paused by the new one"

    dpkg_does -i "/tmp/$package"
    goes_on "$release: downgraded"

    # The module's source. dkms would bring a compiler along; a recorder stands in, as for the RPM.
    # shellcheck disable=SC2016 # the recorder's own
    printf '#!/bin/sh\necho "dkms $*" >>/tmp/asked\n[ "$1" != status ] || echo "blktap/x: added"\n' >"$root/usr/sbin/dkms"
    chmod 755 "$root/usr/sbin/dkms"
    dpkg_does --force-depends -i "/tmp/$module"
    [ -s "$root/usr/src/blktap-$version/dkms.conf" ] ||
        fail "$release: dkms.conf is not where dkms looks"
    dpkg_does --force-depends -r tapdisk-rs-dkms
    dpkg_does --force-depends -P tapdisk-rs-dkms
    asked="dkms add -m blktap -v $version
dkms autoinstall
dkms status -m blktap -v $version
dkms remove -m blktap -v $version --all"
    diff <(echo "$asked") "$root/tmp/asked" >&2 ||
        fail "$release: the scripts of the module asked for something else"
    rm "$root/usr/sbin/dkms"

    cp "$root/usr/sbin/tap-ctl" "$root/tmp/"
    dpkg_does -r tapdisk-rs
    [ ! -e "$root/usr/sbin/tap-ctl" ] || fail "$release: not removed"
    grep -q '^# ours$' "$root/etc/tapdisk-rs/parents" ||
        fail "$release: its configuration is gone before the purge"
    goes_on "$release: removed"
    inside env TAPDISK_RUN_DIR="$work/shared/run" /tmp/tap-ctl destroy -p "$pid" -m "$minor"
    pid=''
    dpkg_does -P tapdisk-rs
    [ ! -e "$root/var/log/blktap" ] || fail "$release: the purge leaves logs"
    [ ! -e "$root/run/blktap-control" ] || fail "$release: the purge leaves the run directory"
    diff <(echo "$before") <(files) >&2 || fail "$release: files are left after the purge"

    # In place of packages of the old names; and the other way round refused.
    mkdir -p "$work/old/DEBIAN" "$work/old/usr/sbin"
    echo "the original's" >"$work/old/usr/sbin/tap-ctl"
    printf 'Package: blktap-utils\nVersion: 2.0.90\nArchitecture: all\nMaintainer: x <x@x.invalid>\nDescription: stands in\n' \
        >"$work/old/DEBIAN/control"
    dpkg-deb --root-owner-group --build "$work/old" "$root/tmp/old.deb" >/dev/null
    dpkg_does -i /tmp/old.deb
    dpkg_does --auto-deconfigure -B -i "/tmp/$package"
    # shellcheck disable=SC2016 # dpkg expands it
    [ -z "$(inside dpkg-query -W -f '${db:Status-Status}' blktap-utils 2>/dev/null | sed 's/not-installed//')" ] ||
        fail "$release: blktap-utils is still there"
    dpkg_does -P tapdisk-rs
    diff <(echo "$before") <(files) >&2 ||
        fail "$release: files are left after replacing blktap-utils"

    umount --recursive --lazy "$root"
    root=''
    rm -rf "${work:?}/bin" "$work/old" "$work"/shared/*
    echo "deb: $release: installed, verified, used, upgraded, downgraded, removed, purged; the disk went on"
done
