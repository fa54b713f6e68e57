#!/usr/bin/env bash
# Fails if a program needs more of the C library than an old system has, and names the symbols.
#
#   glibc.sh VERSION PROGRAM ...
#
# Strict on purpose: also a weak reference counts if it carries a version. The loader of an old
# system forgives those, but a package manager that reads versions does not.
set -euo pipefail

[ $# -ge 2 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 2; }
limit=$1
shift
# The C library's own libraries, and nothing that a compiler brings.
allowed='ld-linux-x86-64.so.2 libc.so.6 libdl.so.2 libm.so.6 libpthread.so.0 librt.so.1 libutil.so.1'

status=0
for program; do
    dynamic=$(readelf -d "$program") ||
        { echo "glibc.sh: $program cannot be read by readelf" >&2; exit 1; }
    needed=$(sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' <<<"$dynamic")
    [ -n "$needed" ] ||
        { echo "glibc.sh: $program needs no library: this is no program of ours" >&2; status=1; }
    for library in $needed; do
        [[ " $allowed " == *" $library "* ]] || {
            echo "glibc.sh: $program needs $library, which an old system may not have" >&2
            status=1
        }
    done
    # Versions such as GLIBC_2.3.4; one that is no number, such as GLIBC_ABI_DT_RELR, is newer than
    # all.
    versions=$(readelf -V "$program" | sed -n 's/.*Name: \([A-Z]*_[A-Za-z0-9_.]*\) .*/\1/p' |
        sort -u)
    for version in $versions; do
        number=${version#GLIBC_}
        if [[ $number =~ ^[0-9.]+$ ]] &&
            [ "$(printf '%s\n' "$number" "$limit" | sort -V | tail -n 1)" = "$limit" ]; then
            continue
        fi
        symbols=$(readelf -W --dyn-syms "$program" |
            sed -n "s/.* \([^ ]*\)@\{1,2\}$version\( .*\)\{0,1\}\$/\1/p" | sort -u | paste -sd' ')
        echo "glibc.sh: $program needs $version, limit GLIBC_$limit: ${symbols:-no symbol}" >&2
        status=1
    done
done
exit $status
