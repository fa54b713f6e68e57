#!/usr/bin/env bash
# Makes the RPM packages.
#
#   packaging/rpm.sh OUTPUT          from a source archive of HEAD with all crates in it, as a build service does
#   packaging/rpm.sh --built [PROGRAMS] OUTPUT  of built programs, in a folder (or where `make` has put them)
#
# Works on systems without RPM's own package data (Debian's `rpm`): what rpmbuild needs it then
# finds in $PATH.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
built=''
if [ "${1:-}" = --built ]; then
    built=1
    shift
fi
programs=''
if [ -n "$built" ] && [ $# = 2 ]; then
    programs=$(cd "$1" && pwd)
    shift
fi
[ $# = 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
output=$(cd "$1" && pwd)
command -v rpmbuild >/dev/null || { echo "rpm.sh: rpmbuild is not installed (Debian: apt-get install rpm)" >&2; exit 1; }

spec=$here/packaging/tapdisk-rs.spec
version=$(sed -n 's/^Version: *//p' "$spec")
options=(--define "_topdir $output")
# Macros that come with systemd and redhat-rpm-config where those are.
macro() {
    case $(rpm --eval "%{$1}") in
        %*) options+=(--define "$1 $2") ;;
    esac
}
macro _unitdir /usr/lib/systemd/system
macro _docdir /usr/share/doc
[ -z "$programs" ] || options+=(--define "programs $programs")
# Of a later release, say: the part of it that names the distribution.
[ -z "${RPM_DIST:-}" ] || options+=(--define "dist $RPM_DIST")
# A system whose compilers are no RPMs has no answer to BuildRequires.
[ -n "$(rpm -qa 2>/dev/null | head -n 1)" ] || options+=(--nodeps)

if [ -n "$built" ]; then
    cd "$here"
    rpmbuild -bb --build-in-place --with built "${options[@]}" "$spec"
else
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    name=tapdisk-rs-$version
    mkdir -p "$output/SOURCES"
    git -C "$here" archive --prefix="$name/" HEAD | tar -x -C "$work"
    (cd "$work/$name" && "${CARGO:-cargo}" vendor --locked >/dev/null)
    tar -C "$work" -czf "$output/SOURCES/$name.tar.gz" "$name"
    env -u CARGO_TARGET_DIR rpmbuild -ba "${options[@]}" "$spec"
fi
find "$output/RPMS" "$output/SRPMS" -name '*.rpm' 2>/dev/null
