# The machine without Xen: kills and power cuts under tapdisk on real file systems, with this
# kernel. CUTS and KILLS are how many of each, over all cases; SEED another course of them.
# shellcheck shell=bash
case_limit=$((1200 + 8 * (${CUTS:-40} + ${KILLS:-40})))
# shellcheck source=tests/vm/cases/lib.sh
. /share/vm/cases/lib.sh

clean_up() {
    local tapdisk
    for tapdisk in $(pidof tapdisk); do
        kill -9 "$tapdisk"
    done
    umount -l /tmp/*/w /tmp/*/cut /tmp/*/store
    rm -rf /tmp/* /srv/*
}

crash() { # cuts or kills, how many, ext4 or xfs, engine
    mkdir -p /srv/bin
    ln -s /usr/sbin/tap-ctl /usr/libexec/tapdisk /usr/bin/vhd-util /srv/bin
    # Fifty to a course of the disk's life, with its log in memory; a short course for a few.
    local left now seed=${SEED:-1}
    for ((left = $2; left > 0; left -= now)); do
        now=$((left < 50 ? left : 50))
        TAPDISK_TESTS_BIN=/srv/bin crashes "$1" "$3" count=$now seed="$seed" engine="$4" \
            lives=$((now < 50 ? 4 : 8)) | tee -a /share/crashes.txt
        seed=$((seed + 1))
    done
    rm -r /srv/bin
}

case_power_cuts_on_ext4() {
    crash cuts $((${CUTS:-40} / 2)) ext4 uring
}
case_power_cuts_on_xfs() {
    crash cuts $((${CUTS:-40} / 2)) xfs aio
}
case_kills_on_ext4() {
    crash kills $((${KILLS:-40} / 2)) ext4 uring
}
case_kills_on_xfs() {
    crash kills $((${KILLS:-40} / 2)) xfs aio
}

modprobe -a loop fuse
# The crashes have run directories of their own, and `nothing_left` looks into this one.
mkdir -p /run/blktap-control
run_cases "$@"
