#!/usr/bin/env bash
# Makes the Debian packages of built programs, with dpkg's own tools: tapdisk-rs and, for any
# architecture, tapdisk-rs-dkms.
#
#   deb.sh [PROGRAMS] OUTPUT     PROGRAMS: their folder (default: where make has put them)
#
# Programs that were built on the older release run on the later ones: what of the C library they
# need becomes a dependency. DEB_VERSION is another version than the tree's, DEB_MAINTAINER who
# answers for the package.
set -euo pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
programs=''
if [ $# = 2 ]; then
    programs=$(cd "$1" && pwd)
    shift
fi
[ $# = 1 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
mkdir -p "$1"
output=$(cd "$1" && pwd)
for tool in dpkg-deb dpkg-shlibdeps strip; do
    command -v $tool >/dev/null ||
        { echo "deb.sh: $tool is not installed (Debian: apt-get install dpkg-dev)" >&2; exit 1; }
done
cd "$here"
upstream=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
version=${DEB_VERSION:-$upstream}
arch=$(dpkg --print-architecture)
maintainer=${DEB_MAINTAINER:-tapdisk-rs authors <nobody@tapdisk-rs.invalid>}
# When: the commit's, so that the same tree gives the same package.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

folders=(PREFIX=/usr CONFDIR=/etc/tapdisk-rs PARTS="core debian"
    ZSHDIR=/usr/share/zsh/vendor-completions)
[ -z "$programs" ] || folders+=(BIN="$programs")

# A name in DEBIAN/ from packaging/debian, with what stands between @.
meta() { # source, destination, more edits for sed
    sed -e "s|@VERSION@|$version|g" -e "s|@ARCH@|$arch|" -e "s|@MAINTAINER@|$maintainer|" \
        -e '/^Homepage: @HOMEPAGE@$/d' "${@:3}" "packaging/debian/$1" >"$2"
}
scripts() { # root, suffix, names
    local name
    for name in "${@:3}"; do
        meta "$name$2" "$1/DEBIAN/$name"
        chmod 755 "$1/DEBIAN/$name"
    done
}
documents() { # root, package
    local to=$1/usr/share/doc/$2
    mkdir -p "$to"
    # A paragraph mark is a dot where the format wants one.
    sed -e 's/^$/./' -e 's/^/ /' LICENSE-MIT >"$work/mit"
    sed -e "/^@MIT@$/{r $work/mit
d}" packaging/debian/copyright >"$to/copyright"
    {
        echo "$2 ($version) unstable; urgency=medium"
        echo
        echo "  * What changed is in the project's CHANGELOG.md."
        echo
        echo " -- $maintainer  $(date -u -R -d "@$SOURCE_DATE_EPOCH")"
    } | gzip -9n >"$to/changelog.gz"
}
pack() { # root, control, more edits for control
    local root=$1 size
    find "$root" -type f -path '*/man/man[0-9]/*' -exec gzip -9n {} +
    find "$root" -type d -exec chmod 755 {} +
    size=$(du -sk --apparent-size --exclude=DEBIAN "$root" | cut -f1)
    meta "$2" "$root/DEBIAN/control" -e "s|@SIZE@|$size|" "${@:3}"
    (cd "$root" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | LC_ALL=C sort -z |
        xargs -0 md5sum) >"$root/DEBIAN/md5sums"
    dpkg-deb --root-owner-group --build "$root" "$output" >/dev/null
}

root=$work/programs
mkdir -p "$root/DEBIAN"
make --no-print-directory install DESTDIR="$root" "${folders[@]}" >/dev/null
rm -r "$root/usr/share/doc/tapdisk-rs"
elves=("$root"/usr/sbin/* "$root"/usr/bin/{vhd,qcow2}-util "$root/usr/libexec/tapdisk")
strip --strip-unneeded --remove-section=.comment "${elves[@]}"
# It wants to see a source package's control file.
mkdir -p "$work/debian"
printf 'Source: tapdisk-rs\n\nPackage: tapdisk-rs\nArchitecture: any\n' >"$work/debian/control"
depends=$(cd "$work" && dpkg-shlibdeps -O "${elves[@]}" 2>"$work/log" |
    sed -n 's/^shlibs:Depends=//p')
[ -n "$depends" ] || { cat "$work/log" >&2; echo "deb.sh: no dependencies were found" >&2; exit 1; }
make --no-print-directory --silent files LIST=conffiles "${folders[@]}" >"$root/DEBIAN/conffiles"
scripts "$root" '' postinst prerm postrm
documents "$root" tapdisk-rs
pack "$root" control -e "s/@DEPENDS@/$depends/"

root=$work/module
mkdir -p "$root/DEBIAN"
make --no-print-directory install-dkms DESTDIR="$root" MANDIR=/usr/share/man VERSION="$version" >/dev/null
scripts "$root" -dkms postinst prerm
documents "$root" tapdisk-rs-dkms
pack "$root" control-dkms

find "$output" -name "tapdisk-rs*_${version}_*.deb"
