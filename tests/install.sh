#!/usr/bin/env bash
# make install into an empty directory: everything is in its place, the installed tap-ctl starts the
# tapdisk of its own installation, and make uninstall takes all of it away again, but what its
# administrator has changed. Then the RPM of the same files, in a system of its own (rpm.sh).
#
#   install.sh [PROGRAMS]     the programs for the RPM, of packaging/portable.sh (default: those that make has built)
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
dest=$(mktemp -d "${TMPDIR:-/tmp}/tapdisk-install.XXXXXX")
export TAPDISK_RUN_DIR=$dest/run
pid='' minor=''

finish() {
    status=$?
    trap - EXIT
    if [ -n "$pid" ]; then
        "$dest/usr/sbin/tap-ctl" destroy -p "$pid" -m "$minor" || kill "$pid" || true
    fi
    rm -rf "$dest"
    exit "$status"
}
trap finish EXIT

fail() {
    echo "install: FAILED: $*" >&2
    exit 1
}

programs=()
[ $# = 0 ] || programs=("$(cd "$1" && pwd)")
all=(DESTDIR="$dest" PREFIX=/usr PARTS="core dom0")
make --no-print-directory -C "$here" install "${all[@]}" >/dev/null
make --no-print-directory -C "$here" files LIST=check "${all[@]}" >&2 || fail "the files above"
# Not of the manifest, so that it cannot be forgotten there: what the storage manager, xapi and xl
# call by path.
for file in usr/sbin/tap-ctl usr/libexec/tapdisk usr/bin/vhd-util usr/bin/qcow2-util \
    usr/sbin/cbt-util usr/sbin/td-util etc/xen/scripts/block-tapdisk; do
    [ -x "$dest/$file" ] || fail "$file is missing or not executable"
done
rm "$dest/etc/cron.daily/tapdisk-rs"
if make --no-print-directory -C "$here" files LIST=check "${all[@]}" >"$dest/missing" 2>&1; then
    fail "a missing file is not noticed"
fi
grep -q '^/etc/cron.daily/tapdisk-rs is missing' "$dest/missing" ||
    fail "a missing file is not named"
rm "$dest/missing"
make --no-print-directory -C "$here" install "${all[@]}" >/dev/null
if grep -rl '@[A-Z]*@' "$dest/usr" "$dest/etc" --include='*.service' --include='*.conf' --include='*.rules' >&2; then
    fail "the files above hold a word that stands for a folder"
fi
grep -q '^ExecStart=/usr/sbin/tapback ' "$dest/usr/lib/systemd/system/tapback.service" ||
    fail "what the service starts"
for tool in tap-ctl vhd-util qcow2-util cbt-util td-util; do
    bash -n "$dest/usr/share/bash-completion/completions/$tool" ||
        fail "the bash completions of $tool do not parse"
done

truncate -s 16M "$dest/disk.raw"
device=$("$dest/usr/sbin/tap-ctl" create -a "aio:$dest/disk.raw")
minor=${device##*-}
pid=$("$dest/usr/sbin/tap-ctl" list -m "$minor" | sed -n 's/^pid=\([0-9]*\) .*/\1/p')
[ -n "$pid" ] || fail "the installed tap-ctl does not list the disk it has made"
exe=$(readlink "/proc/$pid/exe")
[ "$exe" = "$dest/usr/libexec/tapdisk" ] || fail "the installed tap-ctl started $exe"
"$dest/usr/sbin/tap-ctl" destroy -p "$pid" -m "$minor"
pid=''

# The RPM of the same programs: exactly what make install put there (and the licences once more),
# and it unpacks.
if command -v rpmbuild >/dev/null && command -v rpm2cpio >/dev/null &&
    command -v cpio >/dev/null; then
    "$here/packaging/rpm.sh" --built "${programs[@]}" "$dest/rpm" >"$dest/rpm.log" 2>&1 ||
        fail "packaging/rpm.sh: $(tail -n 3 "$dest/rpm.log")"
    package=$(find "$dest/rpm/RPMS" -name 'tapdisk-rs-*.rpm')
    module=$(find "$dest/rpm/RPMS" -name 'blktap-dkms-*.rpm')
    # Not grep -q, which may end before rpm has written all: then rpm fails, about once in 300
    # times.
    rpm -qlp "$module" | grep '/blktap-.*/dkms.conf$' >/dev/null ||
        fail "the package of the kernel module lacks its dkms.conf"
    listed() { sed 's/\.gz$//' | grep -v '^/usr/share/licenses/' | sort; }
    ours=$(cd "$dest" && find usr etc ! -type d -printf '/%p\n' | listed)
    theirs=$(rpm -qp --qf '[%{FILEMODES:perms} %{FILENAMES}\n]' "$package" |
        sed -n 's/^-[^ ]* //p' | listed)
    diff <(echo "$ours") <(echo "$theirs") >&2 ||
        fail "the RPM and make install do not put the same files there"
    mkdir "$dest/root"
    (cd "$dest/root" && rpm2cpio "$package" | cpio -idm --quiet)
    "$dest/root/usr/bin/vhd-util" create -n "$dest/rpm.vhd" -s 2 ||
        fail "the vhd-util of the RPM does not run"
    "$dest/root/usr/sbin/tap-ctl" --version >/dev/null || fail "the tap-ctl of the RPM does not run"
    RPM_DIST=.later "$here/packaging/rpm.sh" --built "${programs[@]}" "$dest/later" >"$dest/rpm.log" 2>&1 || fail "packaging/rpm.sh: $(tail -n 3 "$dest/rpm.log")"
    "$here/tests/rpm.sh" "$dest/rpm/RPMS" "$dest/later/RPMS"
else
    echo "install: SKIPPED: the RPM: rpmbuild, rpm2cpio or cpio is not installed (Debian: rpm, cpio)" >&2
    [ -z "${CI:-}" ] || fail "CI skips nothing"
fi

# A file that its administrator has changed stays, and goes with the rest once it is as it was.
cp "$dest/etc/logrotate.d/tapdisk-rs" "$dest/kept"
echo '# ours' >>"$dest/etc/logrotate.d/tapdisk-rs"
make --no-print-directory -C "$here" install "${all[@]}" >/dev/null
make --no-print-directory -C "$here" uninstall "${all[@]}" >/dev/null
left=$(cd "$dest" && find usr etc ! -type d)
[ "$left" = etc/logrotate.d/tapdisk-rs ] || fail "make uninstall left $left"
mv "$dest/kept" "$dest/etc/logrotate.d/tapdisk-rs"
make --no-print-directory -C "$here" uninstall "${all[@]}" >/dev/null
left=$(cd "$dest" && find usr etc ! -type d)
[ -z "$left" ] || fail "make uninstall left $left"

echo "install: everything in its place, and gone after uninstall"
