#!/usr/bin/env bash
# The RPMs in a system of their own (a folder with busybox and rpm's database, as root), in which a
# disk is served all the time: in place of the original blktap (3.55.5 and 4.0.8) in one
# transaction, back to it, fresh, upgraded over a changed configuration file, removed without a
# trace.
#
#   rpm.sh PACKAGES NEWER     folders with the packages of the same programs, and with those of a later release
#
# The system has no systemd, dkms or original. A `systemctl` with units, states and 90 s of waiting
# for who ignores SIGTERM, and a `dkms`, stand in and write down what they are asked. The stand-in
# for the original has its names, dependencies, files and scriptlets (in effect; rpm runs them), and
# our programs: which tapdisk runs is no matter here.
set -euo pipefail
packages=$1 newer=$2
root=$(mktemp -d "${TMPDIR:-/tmp}/tapdisk-rpm.XXXXXX")
pid=''
finish() {
    status=$?
    trap - EXIT
    [ -z "$pid" ] || kill -KILL "$pid" || true
    rm -rf "$root"
    exit $status
}
trap finish EXIT

fail() {
    echo "rpm: FAILED: $*" >&2
    [ ! -e "$root/var/log/asked" ] || sed 's/^/    asked: /' "$root/var/log/asked" >&2
    exit 1
}

if [ "$(id -u)" != 0 ]; then
    echo "rpm: SKIPPED: installing the RPMs: it needs root (chroot)" >&2
    [ -z "${CI:-}" ] || fail "CI skips nothing"
    exit 0
fi

# ---- the system ----------------------------------------------------------------------------------

mkdir -p "$root"/{bin,dev,etc/udev/rules.d,run/systemd/system,tmp,usr/bin,usr/sbin,var/tmp,var/log,units}
cp "$(command -v busybox)" "$root/bin/busybox"
for applet in sh rm mkdir cat sed grep echo; do
    ln -s busybox "$root/bin/$applet"
done
mknod "$root/dev/null" c 1 3
printf '#!/bin/sh\necho "dkms $*" >>/var/log/asked\n' >"$root/usr/bin/dkms"
cat >"$root/usr/bin/systemctl" <<'STANDIN'
#!/bin/sh
# /units/NAME.enabled; .loaded and .active: the program of the unit's file when it was loaded, and
# started.
echo "systemctl $*" >>/var/log/asked
signal=
while :; do
    case $1 in
        --no-reload | --quiet) shift ;;
        *) break ;;
    esac
done
verb=$1
shift
if [ "$verb" = kill ]; then
    [ "$1 $2" = "-s KILL" ] || exit 1
    signal=KILL
    shift 2
fi
program() { sed -n 's/^ExecStart=\([^ ]*\).*/\1/p' "/usr/lib/systemd/system/$1" 2>/dev/null; }
load() {
    if [ -e "/usr/lib/systemd/system/$1" ]; then
        program "$1" >"/units/$1.loaded"
    else
        rm -f "/units/$1.loaded"
    fi
}
stop() {
    [ -e "/units/$1.active" ] || return 0
    # The original ignores SIGTERM while there are devices.
    if [ "$signal" != KILL ] && [ "$(cat "/units/$1.active")" = /usr/bin/tapback ]; then
        echo "WAITED 90 s for the end of $1" >>/var/log/asked
    fi
    rm "/units/$1.active"
}
start() {
    [ -e "/units/$1.loaded" ] || load "$1"
    [ -e "/units/$1.loaded" ] || exit 5
    [ -x "$(cat "/units/$1.loaded")" ] || exit 203
    cat "/units/$1.loaded" >"/units/$1.active"
}
if [ "$verb" = daemon-reload ]; then
    for known in /units/*.loaded; do
        known=${known#/units/}
        [ "$known" = '*.loaded' ] || load "${known%.loaded}"
    done
    exit 0
fi
for unit; do
    case $verb in
        # The preset of dom0 enables both.
        preset | enable) [ ! -e "/usr/lib/systemd/system/$unit" ] || : >"/units/$unit.enabled" ;;
        disable) rm -f "/units/$unit.enabled" ;;
        is-enabled)
            if [ -e "/units/$unit.enabled" ]; then
                echo enabled
            else
                [ ! -e "/usr/lib/systemd/system/$unit" ] || echo disabled
                exit 1
            fi
            ;;
        is-active) [ -e "/units/$unit.active" ] || exit 3 ;;
        kill | stop) stop "$unit" ;;
        start) [ -e "/units/$unit.active" ] || start "$unit" ;;
        restart) stop "$unit"; start "$unit" ;;
        try-restart) [ ! -e "/units/$unit.active" ] || { stop "$unit"; start "$unit"; } ;;
        *) exit 1 ;;
    esac
done
STANDIN
chmod 755 "$root"/usr/bin/{dkms,systemctl}

in_it() { rpm --root "$root" --dbpath /var/lib/rpm "$@"; }
of() { find "$1" -name "$2-[0-9]*.rpm"; }
asked() { # what the scripts have asked for since the last look, whichever package came first
    diff <(echo "$1" | sort) <(sort "$root/var/log/asked") >&2 ||
        fail "$2: the scripts asked for something else"
}
forget() { rm -f "$root/var/log/asked"; }
files() {
    find "$root" \( -path "$root/var/lib/rpm" -o -path "$root/var/log" -o -path "$root/run" -o \
        -path "$root/srv" -o -path "$root/packages" \) -prune -o ! -type d -printf '/%P\n' | sort
}
# How a service stands: "enabled PROGRAM", or with - for what it is not.
stands() {
    local enabled=- active=-
    [ ! -e "$root/units/$1.enabled" ] || enabled=enabled
    [ ! -e "$root/units/$1.active" ] || active=$(cat "$root/units/$1.active")
    echo "$enabled $active"
}
tapback_is() { # how, when
    [ "$(stands tapback.service)" = "$1" ] ||
        fail "$2: tapback is '$(stands tapback.service)', not '$1'"
    ! grep -s WAITED "$root/var/log/asked" >&2 || fail "$2: nobody answered xenbus meanwhile"
    [ ! -e "$root/run/tapdisk-rs.before" ] || fail "$2: the note of %pre is left"
}
# What rpm says may be no warning and no error: a failing scriptlet is only a line.
quietly() {
    local said
    said=$("$@" 2>&1) || fail "$*: $said"
    # Debian's would have another tool used.
    said=$(sed -e '/^rpm: RPM should not be used directly/d' -e '/^rpm: However assuming/d' <<<"$said")
    [ -z "$said" ] || fail "$*: $said"
}
# ---- the original, and who needs it --------------------------------------------------------------

mkdir -p "$root/packages/programs"
original_spec() { # version, release
    cat <<SPEC
Name: blktap
Version: $1
Release: $2
Summary: stands in for the original
License: none
Obsoletes: xen-blktap < 4
# Not the original's: so \`rpm -U\` does at once what \`yum swap\` asks for, which rpm's command
# line cannot.
Obsoletes: tapdisk-rs
Provides: blktap(nbd) = 2.0
AutoReqProv: no
%define _build_id_links none
%global debug_package %{nil}
%define __os_install_post %{nil}
%description
%install
cd %{buildroot}
mkdir -p usr/bin usr/sbin usr/libexec usr/lib64 usr/lib/systemd/system var/log/blktap
mkdir -p etc/logrotate.d etc/cron.daily etc/xensource/bugtool/tapdisk-logs
for name in tap-ctl cbt-util td-util; do
    cp $root/packages/programs/usr/sbin/\$name %{buildroot}/usr/sbin
done
cp $root/packages/programs/usr/bin/vhd-util %{buildroot}/usr/bin
cp $root/packages/programs/usr/libexec/tapdisk %{buildroot}/usr/libexec
for name in bin/tapback bin/cpumond bin/vhd-index sbin/lvm-util sbin/td-rated lib64/libvhd.so.0; do
    echo "the original's \$name, $1" >%{buildroot}/usr/\$name
    chmod 755 %{buildroot}/usr/\$name
done
for name in tapback cpumond; do
    printf '[Service]\nExecStart=/usr/bin/%s -p /run/x\n' \$name >%{buildroot}/usr/lib/systemd/system/\$name.service
done
for name in logrotate.d/blktap cron.daily/prune_tapdisk_logs xensource/bugtool/tapdisk-logs.xml \\
    xensource/bugtool/tapdisk-logs/description.xml; do
    echo "the original's \$name, $1" >%{buildroot}/etc/\$name
done
%files
/usr
/etc
/var/log/blktap
%post
echo skip >/etc/udev/rules.d/65-md-incremental.rules
for unit in tapback.service cpumond.service; do
    if [ \$1 -eq 1 ]; then systemctl preset \$unit || :; fi
done
%preun
for unit in tapback.service cpumond.service; do
    if [ \$1 -eq 0 ]; then
        systemctl --no-reload disable \$unit || :
        systemctl stop \$unit || :
    fi
done
%postun
systemctl daemon-reload || :
if [ \$1 -eq 0 ]; then rm -f /etc/udev/rules.d/65-md-incremental.rules; fi
SPEC
}
plain_spec() { # name, version, tags ...
    printf 'Name: %s\nVersion: %s\nRelease: 1\nSummary: stands in\nLicense: none\nBuildArch: noarch\n' "$1" "$2"
    printf '%s\n' "${@:3}" %description %files
}
build() { # the spec on standard input
    cat >"$root/packages/spec"
    rpmbuild -bb --quiet --define "_topdir $root/packages" "$root/packages/spec" >"$root/packages/log" 2>&1 ||
        fail "a stand-in cannot be built: $(tail -n 5 "$root/packages/log")"
}

ours=$(of "$packages" tapdisk-rs)
module=$(of "$packages" blktap-dkms)
later=$(of "$newer" tapdisk-rs)
(cd "$root/packages/programs" && rpm2cpio "$ours" | cpio -idm --quiet)
original_spec 3.55.5 6.1 | build
original_spec 4.0.8 1 | build
plain_spec xcp-ng-deps 8.3 'Requires: blktap' | build
plain_spec sm 3.2.12 'Requires: blktap' 'Conflicts: blktap < 3.55.3' | build
plain_spec vhd-util-standalone 3.55.5 'Conflicts: blktap' | build
standin() { find "$root/packages/RPMS" -name "$1-${2:-[0-9]}*.rpm"; }

# What an old rpm does not read, or an old C library has not.
needs=$(rpm -qp --requires "$ours")
[ "$(rpm -qp --qf '%{PAYLOADCOMPRESSOR}' "$ours")" = gzip ] || fail "rpm 4.11 cannot unpack it"
if grep -v -e '(CompressedFileNames)' -e '(FileDigests)' -e '(PayloadFilesHavePrefix)' <<<"$needs" | grep '^rpmlib' >&2; then
    fail "rpm 4.11 does not know this"
fi

# ---- a disk that is served all the time ----------------------------------------------------------

export TAPDISK_RUN_DIR=$root/run/blktap-control
mkdir "$root/srv"
written=0
serve() { # with the programs that are installed
    local device
    "$root/usr/bin/vhd-util" create -n "$root/srv/disk.vhd" -s 16
    device=$("$root/usr/sbin/tap-ctl" create -a "vhd:$root/srv/disk.vhd")
    minor=${device##*-}
    pid=$("$root/usr/sbin/tap-ctl" list -m "$minor" | sed -n 's/^pid=\([0-9]*\) .*/\1/p')
    written=0
}
# All that was ever written to it is there, and it takes more, through the socket that its client
# has known.
goes_on() { # after what
    local uri="nbd+unix:///?socket=$TAPDISK_RUN_DIR/nbd$pid.$minor" n reads=()
    for ((n = 0; n < written; n++)); do
        reads+=(-c "read -P $((n + 1)) ${n}M 64k")
    done
    written=$((written + 1))
    qemu-io -f raw "${reads[@]}" -c "write -P $written $((written - 1))M 64k" -c flush "$uri" >"$root/srv/io" ||
        fail "$1: the disk does not go on: $(cat "$root/srv/io")"
    ! grep -i "pattern verification failed" "$root/srv/io" >&2 ||
        fail "$1: the disk has lost something"
}
# The programs that are installed now rule it, whichever started it: as a snapshot does.
is_ruled() { # after what
    goes_on "$1"
    "$root/usr/sbin/tap-ctl" list | grep "^pid=$pid minor=$minor state=0 args=vhd:" >/dev/null ||
        fail "$1: not listed"
    "$root/usr/sbin/tap-ctl" pause -p "$pid" -m "$minor" || fail "$1: pause"
    "$root/usr/sbin/tap-ctl" unpause -p "$pid" -m "$minor" || fail "$1: unpause"
    goes_on "$1, pause and unpause"
}
give_back() {
    "$root/usr/sbin/tap-ctl" destroy -p "$pid" -m "$minor"
    pid=''
    "$root/usr/bin/vhd-util" check -n "$root/srv/disk.vhd" >/dev/null
    rm "$root/srv/disk.vhd"
}
is_original() { # version, when
    [ "$(in_it -q --qf '%{NAME} %{VERSION}' blktap)" = "blktap $1" ] || fail "$2: $(in_it -q blktap)"
    ! in_it -q tapdisk-rs >/dev/null || fail "$2: we are still there"
    said=$(in_it -V --nodeps blktap) || fail "$2: not as it was packaged: $said"
    [ "$(stands cpumond.service)" = "enabled /usr/bin/cpumond" ] ||
        fail "$2: cpumond is $(stands cpumond.service)"
    [ -e "$root/etc/udev/rules.d/65-md-incremental.rules" ] || fail "$2: its udev rule is gone"
    [ -z "$(find "$root/usr/lib/udev" -type f 2>/dev/null)" ] ||
        fail "$2: udev rules of ours are left"
}
is_ours() { # when
    said=$(in_it -V --nodeps tapdisk-rs) || fail "$1: not as it was packaged: $said"
    ! in_it -q blktap >/dev/null || fail "$1: blktap is still there"
    [ "$(in_it -q --whatprovides blktap)" = "$(in_it -q tapdisk-rs)" ] ||
        fail "$1: it does not provide blktap"
    in_it -q xcp-ng-deps sm >/dev/null || fail "$1: who needs blktap is gone"
    [ -s "$root/usr/lib/udev/rules.d/58-tapdisk-foreign.rules" ] ||
        fail "$1: no rule keeps md off guests' disks"
    [ -s "$root/etc/xensource/bugtool/tapdisk-logs/description.xml" ] ||
        fail "$1: nothing for xen-bugtool"
    grep -q 'tap-ctl doctor' "$root/etc/xensource/bugtool/tapdisk-logs/description.xml" ||
        fail "$1: the original's file"
}
started() { # services as the original's host has them
    for unit in tapback.service cpumond.service; do
        chroot "$root" /usr/bin/systemctl start $unit
    done
}

in_it --initdb
before=$(files)

# ---- in place of the original, and back ----------------------------------------------------------

for version in 3.55.5 4.0.8; do
    quietly in_it --nodeps -i "$(standin blktap "$version")"
    quietly in_it -i "$(standin xcp-ng-deps)" "$(standin sm)"
    started
    forget
    serve
    goes_on "with the original $version"

    # As `rpm -U`, and as `yum install` of what obsoletes another.
    quietly in_it --nodeps -U "$ours"
    is_ours "in place of $version"
    tapback_is "enabled /usr/sbin/tapback" "in place of $version"
    readlink "/proc/$pid/exe" | grep -q ' (deleted)$' ||
        fail "the disk is not served by the program that was replaced"
    is_ruled "in place of $version"
    [ "$(stands cpumond.service)" = "- -" ] ||
        fail "in place of $version: cpumond is $(stands cpumond.service)"
    forget

    # Back in one transaction, as `yum swap`.
    quietly in_it --nodeps -U "$(standin blktap "$version")"
    is_original "$version" "back to $version"
    tapback_is "enabled /usr/bin/tapback" "back to $version"
    is_ruled "back to $version"
    forget

    # And again; then back in two steps.
    quietly in_it --nodeps -U "$ours"
    is_ours "again in place of $version"
    tapback_is "enabled /usr/sbin/tapback" "again in place of $version"
    is_ruled "again in place of $version"
    quietly in_it --nodeps -e tapdisk-rs
    goes_on "erased before the original $version comes back"
    tapback_is "- -" "erased before the original $version comes back"
    quietly in_it --nodeps -i "$(standin blktap "$version")"
    started
    is_original "$version" "back to $version in two steps"
    is_ruled "back to $version in two steps"
    give_back

    # Who had its service disabled has it disabled.
    chroot "$root" /usr/bin/systemctl disable tapback.service
    chroot "$root" /usr/bin/systemctl kill -s KILL tapback.service
    quietly in_it --nodeps -U "$ours"
    tapback_is "- -" "in place of $version with tapback disabled"
    quietly in_it --nodeps -e tapdisk-rs xcp-ng-deps sm
    rm -f "$root"/units/* "$root/var/log/asked"
    diff <(echo "$before") <(files) >&2 || fail "files are left after $version and us"
done

# The other package half removed: its files without a record of them, its services enabled and
# running.
quietly in_it --nodeps -i "$(standin blktap 3.55.5)"
started
serve
quietly in_it --nodeps -e --justdb blktap
rm -f "$root/units/cpumond.service.enabled" "$root/usr/bin/cpumond"
quietly in_it -i "$(standin sm)" --nodeps
quietly in_it -i "$(standin xcp-ng-deps)" --nodeps
quietly in_it --nodeps -i "$ours"
is_ours "over half of the original"
tapback_is "enabled /usr/sbin/tapback" "over half of the original"
is_ruled "over half of the original"
give_back
rm "$root/usr/bin/tapback"
quietly in_it --nodeps -e tapdisk-rs xcp-ng-deps sm
(cd "$root" && rm -rf usr/bin/cpumond usr/bin/vhd-index usr/sbin/lvm-util usr/sbin/td-rated usr/lib64 \
    usr/lib/systemd/system/cpumond.service etc/logrotate.d/blktap etc/cron.daily/prune_tapdisk_logs \
    etc/udev/rules.d/65-md-incremental.rules)
rm -f "$root"/units/* "$root/var/log/asked"
diff <(echo "$before") <(files) >&2 || fail "files are left after half of the original and us"

# vhd-util alone, which needs no tapdisk, is replaced as well.
quietly in_it -i "$(standin vhd-util-standalone)"
quietly in_it --nodeps -U "$ours"
! in_it -q vhd-util-standalone >/dev/null || fail "vhd-util-standalone is still there"
quietly in_it --nodeps -e tapdisk-rs
rm -f "$root"/units/* "$root/var/log/asked"

# ---- fresh, upgraded, removed --------------------------------------------------------------------

# The other packages that it requires are not there.
quietly in_it --nodeps -i "$ours"
asked "systemctl is-enabled tapback.service
systemctl is-active tapback.service
systemctl daemon-reload
systemctl preset tapback.service
systemctl is-enabled tapback.service
systemctl start tapback.service" "installing"
tapback_is "enabled /usr/sbin/tapback" "installed"
forget
quietly in_it --nodeps -i "$module"
version=$(in_it -q --qf '%{VERSION}' tapdisk-rs)
asked "dkms add -m blktap -v $version --rpm_safe_upgrade
dkms build -m blktap -v $version
dkms install -m blktap -v $version --force" "installing the module"
forget
said=$(in_it -V --nodeps tapdisk-rs blktap-dkms) || fail "not as it was packaged: $said"
serve
goes_on "installed"

echo '# ours' >>"$root/etc/logrotate.d/tapdisk-rs"
quietly in_it --nodeps -U "$later"
asked "systemctl daemon-reload
systemctl try-restart tapback.service" "upgrading"
forget
tapback_is "enabled /usr/sbin/tapback" "upgraded"
is_ruled "upgraded"
[ "$(in_it -q --qf '%{RELEASE}\n' tapdisk-rs)" = "$(rpm -qp --qf '%{RELEASE}\n' "$later")" ] ||
    fail "there is still $(in_it -q tapdisk-rs)"
tail -n 1 "$root/etc/logrotate.d/tapdisk-rs" | grep -q '^# ours$' ||
    fail "the upgrade took a changed configuration file away"

# A service that was stopped by hand stays so.
chroot "$root" /usr/bin/systemctl stop tapback.service
quietly in_it --nodeps -U --oldpackage "$ours"
tapback_is "enabled -" "downgraded with tapback stopped"
is_ruled "downgraded"
forget

# What a disk runs is no file of the package any more, and is not ended with it.
quietly in_it --nodeps -e blktap-dkms
asked "dkms remove -m blktap -v $version --all --rpm_safe_upgrade" "removing the module"
forget
cp "$root/usr/sbin/tap-ctl" "$root/srv/tap-ctl"
# A changed configuration file is kept, and rpm says so.
said=$(in_it --nodeps -e tapdisk-rs 2>&1 | grep -v -e 'rpmsave$' -e '^rpm: ' || true)
[ -z "$said" ] || fail "removing it says $said"
asked "systemctl --no-reload disable tapback.service
systemctl stop tapback.service
systemctl daemon-reload" "removing"
goes_on "removed"
"$root/srv/tap-ctl" destroy -p "$pid" -m "$minor"
pid=''
rm "$root/etc/logrotate.d/tapdisk-rs.rpmsave"
rm -f "$root"/units/*
diff <(echo "$before") <(files) >&2 || fail "files are left after removing it"

# A host without systemd.
mv "$root/usr/bin/systemctl" "$root/srv/"
quietly in_it --nodeps -i "$ours"
quietly in_it --nodeps -U "$later"
quietly in_it --nodeps -e tapdisk-rs
mv "$root/srv/systemctl" "$root/usr/bin/"
diff <(echo "$before") <(files) >&2 || fail "files are left on a host without systemd"
echo "rpm: in place of blktap 3.55.5 and 4.0.8 and back, over half of it, fresh, upgraded, downgraded, removed;" \
    "the disk went on"
