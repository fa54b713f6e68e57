#!/usr/bin/env bash
# The RPMs in a system of their own (a folder with busybox and rpm's database, as root): refused beside the original,
# installed, verified, used, upgraded over a changed configuration file, and removed without a trace.
#
#   rpm.sh PACKAGES NEWER     folders with the packages of the same programs, and with those of a later release
#
# The system has no systemd and no dkms: a `systemctl` and a `dkms` that write down what they are asked stand in, so
# that what the scripts of the packages do is seen. Only the kernel module's own build is tests/vm's (module-style.sh).
set -euo pipefail
packages=$1 newer=$2
root=$(mktemp -d "${TMPDIR:-/tmp}/tapdisk-rpm.XXXXXX")
trap 'rm -rf "$root"' EXIT

fail() {
    echo "rpm: FAILED: $*" >&2
    exit 1
}

if [ "$(id -u)" != 0 ]; then
    echo "rpm: SKIPPED: installing the RPMs: it needs root (chroot)" >&2
    [ -z "${CI:-}" ] || fail "CI skips nothing"
    exit 0
fi

mkdir -p "$root"/{bin,dev,etc,tmp,usr/bin,usr/sbin,var/tmp,var/log}
cp "$(command -v busybox)" "$root/bin/busybox"
ln -s busybox "$root/bin/sh"
mknod "$root/dev/null" c 1 3
for program in systemctl dkms; do
    printf '#!/bin/sh\necho "%s $*" >>/var/log/asked\n' $program >"$root/usr/bin/$program"
    chmod 755 "$root/usr/bin/$program"
done
in_it() { rpm --root "$root" --dbpath /var/lib/rpm "$@"; }
asked() { # what the scripts have asked for since the last look, whichever package came first
    diff <(echo "$1" | sort) <(sort "$root/var/log/asked") >&2 || fail "$2: the scripts asked for something else"
    rm -f "$root/var/log/asked"
}
files() { find "$root" \( -path "$root/var/lib/rpm" -o -path "$root/var/log" \) -prune -o ! -type d -printf '/%P\n' | sort; }
of() { find "$1" -name "$2-[0-9]*.rpm"; }

in_it --initdb
before=$(files)

# The original is there: one of the two.
mkdir "$root/original"
cat >"$root/original.spec" <<'SPEC'
Name: blktap
Version: 3.55.5
Release: 1
Summary: stands in for the original
License: none
BuildArch: noarch
%description
%files
SPEC
rpmbuild -bb --quiet --define "_topdir $root/original" "$root/original.spec" >&2
in_it --nodeps -i "$root"/original/RPMS/noarch/blktap-*.rpm
if said=$(in_it -i "$(of "$packages" tapdisk-rs)" 2>&1); then
    fail "it was installed beside blktap"
fi
[[ $said == *"blktap conflicts with tapdisk-rs"* ]] || fail "beside blktap, rpm says: $said"
in_it -e blktap
rm -r "$root"/original*

# The other packages that it requires are not there.
in_it --nodeps -i "$(of "$packages" tapdisk-rs)" "$(of "$packages" blktap-dkms)"
version=$(in_it -q --qf '%{VERSION}' tapdisk-rs)
asked "systemctl --no-reload preset tapback.service
dkms add -m blktap -v $version --rpm_safe_upgrade
dkms build -m blktap -v $version
dkms install -m blktap -v $version --force" "installing"
said=$(in_it -V --nodeps tapdisk-rs blktap-dkms) || fail "not as it was packaged: $said"
[ "$(in_it -q --whatprovides blktap)" = "$(in_it -q tapdisk-rs)" ] || fail "it does not provide blktap"
"$root/usr/bin/vhd-util" create -n "$root/tmp/disk.vhd" -s 2
"$root/usr/bin/vhd-util" check -n "$root/tmp/disk.vhd" >/dev/null
rm "$root/tmp/disk.vhd"

echo '# ours' >>"$root/etc/logrotate.d/tapdisk-rs"
in_it --nodeps -U "$(of "$newer" tapdisk-rs)"
asked "systemctl try-restart tapback.service" "upgrading"
[ "$(in_it -q --qf '%{RELEASE}\n' tapdisk-rs)" = "$(rpm -qp --qf '%{RELEASE}\n' "$(of "$newer" tapdisk-rs)")" ] ||
    fail "there is still $(in_it -q tapdisk-rs)"
tail -n 1 "$root/etc/logrotate.d/tapdisk-rs" | grep -q '^# ours$' || fail "the upgrade took a changed configuration file away"

in_it -e tapdisk-rs blktap-dkms
asked "systemctl --no-reload disable --now tapback.service
dkms remove -m blktap -v $version --all --rpm_safe_upgrade" "removing"
# A changed configuration file is kept, as rpm does.
rm "$root/etc/logrotate.d/tapdisk-rs.rpmsave"
diff <(echo "$before") <(files) >&2 || fail "files are left after removing it"
echo "rpm: refused beside the original, installed, verified, upgraded, removed"
