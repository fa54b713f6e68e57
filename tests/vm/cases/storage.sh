# The machine without Xen: images on NFS, of versions 3 and 4, and on XFS. The server is the same
# kernel; a lock that a process takes on the exported file itself is another machine's to whoever
# comes over the mount (docs/locks.md).
# shellcheck shell=bash disable=SC2119,SC2120
# shellcheck source=tests/vm/cases/lib.sh
export case_limit=${case_limit:-420}
. /share/vm/cases/lib.sh

exported=/srv/exported
there=/media/nfs

clean_up() {
    local tapdisk
    for tapdisk in $(pidof tapdisk vhd-util flock sleep); do
        kill -9 "$tapdisk"
    done
    umount -f -l $there
    umount -l /media/xfs
    rm -rf "${exported:?}"/* /run/blktap-control/*
}

mounted() { # version
    mkdir -p $there
    mount -t nfs -o "vers=$1,proto=tcp,retry=0" 127.0.0.1:$exported $there
    grep " $there nfs" /proc/mounts
}

# Another machine's process takes the lock of an image, for good; sets elsewhere.
locked_elsewhere() { # name
    flock --fcntl -x "$exported/$1" sleep 1000 &
    elsewhere=$!
    await 20 "the other machine's lock" sh -c "! flock --fcntl -n -x $exported/$1 true"
}

released() {
    # The lock is an open file's: flock and the program that it runs.
    pkill -P "$elsewhere" || true
    kill "$elsewhere" 2>/dev/null || true
    wait "$elsewhere" || true
}

io() { qemu-io -f raw "$@" "nbd+unix:///?socket=$socket"; }

# A disk's life: chains, a pause, a kill with requests on their way, and the lock that ends with
# them.
life_on_nfs() { # version
    mounted "$1"
    vhd-util create -n $there/base.vhd -s 64
    serve vhd:$there/base.vhd
    io -c 'write -P 1 0 8M' -c 'read -P 1 0 8M'
    tap-ctl pause -p "$pid" -m "$minor"
    vhd-util snapshot -n $there/leaf.vhd -p $there/base.vhd
    vhd-util set -n $there/base.vhd -f hidden -v 1
    tap-ctl unpause -p "$pid" -m "$minor" -a vhd:$there/leaf.vhd
    io -c 'read -P 1 0 8M' -c 'write -P 2 4M 8M' -c 'discard 6M 2M' -c 'read -P 0 6M 2M'
    # The storage manager's calls beside the running leaf, from this machine.
    vhd-util modify --debug -p $there/base.vhd -n $there/leaf.vhd
    same "scan" "vhd=base.vhd hidden=1 parent=none vhd=leaf.vhd hidden=0 parent=base.vhd" \
        "$(vhd-util scan -f -m "$there/*.vhd" | sed "s/ capacity=.* hidden/ hidden/" | sort | xargs)"
    # Somebody of this machine is none of another.
    refused 16 tapdisk vhd-util modify -s 0 -n $there/leaf.vhd
    refused 16 tapdisk vhd-util coalesce -n $there/leaf.vhd
    refused 16 tapdisk vhd-util convert -n $there/leaf.vhd -N $there/copy.raw -O raw
    refused 16 tapdisk vhd-util snapshot -n $there/next.vhd -p $there/leaf.vhd
    io -c 'write -P 3 16M 16M' >/dev/null 2>&1 &
    sleep 0.3
    kill -9 "$pid"
    wait
    tap-ctl free -m "$minor"
    serve vhd:$there/leaf.vhd
    io -c 'read -P 1 0 4M' -c 'read -P 2 4M 2M' -c 'write -P 4 32M 1M' -c 'flush'
    give_back
    vhd-util check -p -n $there/leaf.vhd
    vhd-util coalesce -n $there/leaf.vhd
    vhd-util check -n $exported/base.vhd
    umount $there
    rm $exported/*
}

case_life_on_nfs_3() {
    life_on_nfs 3,mountproto=tcp
}
case_life_on_nfs_4() {
    life_on_nfs 4.2
}

# A lock that no process of this machine has: what the table in docs/locks.md calls "elsewhere".
elsewhere_on_nfs() { # version
    mounted "$1"
    vhd-util create -n $there/base.vhd -s 16
    vhd-util snapshot -n $there/leaf.vhd -p $there/base.vhd
    vhd-util snapshot -n $there/other.vhd -p $there/base.vhd
    locked_elsewhere leaf.vhd

    # What the storage manager does to running leaves, whichever machine they run on.
    vhd-util query -vsaf -p -n $there/leaf.vhd
    vhd-util scan -f -m "$there/*.vhd" >/dev/null
    vhd-util check -n $there/leaf.vhd
    vhd-util modify --debug -p $there/base.vhd -n $there/leaf.vhd
    vhd-util set --debug -n $there/leaf.vhd -f hidden -v 1
    same hidden "hidden: 1" "$(vhd-util query -f -n $there/leaf.vhd)"
    vhd-util set --debug -n $there/leaf.vhd -f hidden -v 0
    # What would meet the other's writes.
    refused 16 "another machine" vhd-util coalesce -n $there/leaf.vhd
    refused 16 "another machine" vhd-util modify -z -n $there/leaf.vhd
    refused 16 "another machine" vhd-util modify -s 0 -n $there/leaf.vhd
    rm -f /var/log/blktap/*.log
    refused 16 "refused open" env TAPDISK_LOCK=strict tap-ctl create -a vhd:$there/leaf.vhd
    grep -h "another machine; close it there first" /var/log/blktap/*.log
    # That it writes is not known: the storage manager of that machine may have paused it.
    vhd-util snapshot --debug -n $there/next.vhd -p $there/leaf.vhd

    # Listed at once; requests wait half a minute, as that machine may be dead.
    local since=$SECONDS took
    serve vhd:$there/leaf.vhd 2>/srv/said
    took=$((SECONDS - since))
    [ $took -lt 20 ] || fail "create took $took s"
    grep "another machine" /srv/said
    same state "state=0" "$(tap-ctl list -m "$minor" | grep -o 'state=[^ ]*')"
    io -c 'write -P 1 0 64k' -c 'read -P 1 0 64k'
    took=$((SECONDS - since))
    [ $took -ge 29 ] || fail "the first write was done after $took s"
    give_back
    grep -h "opened all the same" /var/log/blktap/*.log ||
        fail "no word of it: $(cat /var/log/blktap/*.log)"

    # Another one, whose lock goes in between: at once.
    locked_elsewhere other.vhd
    serve vhd:$there/other.vhd
    io -c 'write -P 2 0 64k' -c 'read -P 2 0 64k' &
    local writer=$!
    sleep 1
    released
    since=$SECONDS
    wait $writer
    [ $((SECONDS - since)) -lt 20 ] ||
        fail "the lock was gone, and $((SECONDS - since)) s were waited"
    give_back
    # Nor is a disk that waits in anybody's way.
    locked_elsewhere other.vhd
    serve vhd:$there/other.vhd
    since=$SECONDS
    tap-ctl destroy -p "$pid" -m "$minor"
    [ $((SECONDS - since)) -lt 10 ] ||
        fail "destroy of a disk that waits took $((SECONDS - since)) s"
    released
    pkill -f "flock --fcntl" || true
    umount $there
    rm $exported/* /srv/said
}

case_locks_of_another_machine_on_nfs_3() {
    elsewhere_on_nfs 3,mountproto=tcp
}
case_locks_of_another_machine_on_nfs_4() {
    elsewhere_on_nfs 4.2
}

# With a device the images must be ours first: create waits by itself, and says so.
case_a_device_over_another_machine_s_lock() {
    mounted 4.2
    vhd-util create -n $there/disk.vhd -s 16
    locked_elsewhere disk.vhd
    local since=$SECONDS disk
    disk=$(tap-ctl create -a vhd:$there/disk.vhd --device 2>/srv/said)
    [ $((SECONDS - since)) -ge 29 ] || fail "$disk was there after $((SECONDS - since)) s"
    grep "another machine" /srv/said
    dd if=/dev/zero of="$disk" bs=64k count=4 oflag=direct status=none
    read -r pid minor < <(tap-ctl list | sed -n 's/^pid=\([0-9]*\) minor=\([0-9]*\) .*/\1 \2/p')
    give_back
    released
    umount $there
    rm $exported/* /srv/said
}

# XFS: preallocation beyond the end, unwritten extents, and holes as it makes them.
case_life_on_xfs() {
    truncate -s 320M /srv/xfs
    mkfs.xfs -q -f /srv/xfs
    mkdir -p /media/xfs
    mount -o loop /srv/xfs /media/xfs
    local image=/media/xfs/disk.vhd round before after
    vhd-util create -n $image -s 96
    for round in 1 2 3; do
        serve vhd:$image
        io -c "write -P $round 0 8M" -c flush >/dev/null
        io -c "write -P $round $((round * 16))M 12M" >/dev/null 2>&1 &
        sleep 0.$((round * 2))
        kill -9 "$pid"
        wait
        tap-ctl free -m "$minor"
        vhd-util check -n $image
        qemu-img info -f vpc $image | grep 'virtual size: 96 MiB'
    done
    serve vhd:$image
    io -c 'read -P 3 0 8M' -c 'write -P 9 0 48M' -c flush >/dev/null
    before=$(du -m $image | cut -f1)
    io -c 'discard 8M 32M' >/dev/null
    after=$(du -m $image | cut -f1)
    [ "$after" -le $((before - 28)) ] ||
        fail "discard freed nothing: $before MiB before, $after MiB after"
    io -c 'read -P 9 0 8M' -c 'read -P 0 8M 32M' -c 'read -P 9 40M 8M'
    tap-ctl pause -p "$pid" -m "$minor"
    vhd-util resize -n $image -s 128 -j /media/xfs/journal
    vhd-util snapshot -n /media/xfs/leaf.vhd -p $image
    refused 124 "" tap-ctl unpause -p "$pid" -m "$minor" -a vhd:/media/xfs/leaf.vhd
    tap-ctl close -p "$pid" -m "$minor"
    tap-ctl detach -p "$pid" -m "$minor"
    tap-ctl free -m "$minor"
    serve vhd:/media/xfs/leaf.vhd
    io -c 'read -P 9 0 8M' -c 'write -P 5 127M 1M' -c 'read -P 5 127M 1M'
    give_back
    vhd-util check -p -n /media/xfs/leaf.vhd
    vhd-util coalesce -n /media/xfs/leaf.vhd
    vhd-util check -n $image
    # No more than the blocks that are there: space ahead is given back at the close.
    after=$(du -m $image | cut -f1)
    [ "$after" -le 40 ] || fail "$after MiB for 17 blocks"
    umount /media/xfs
    rm /srv/xfs
}

if [ "${1:-}" != one ]; then
    modprobe -a loop sd_mod ublk_drv nfs nfsv3 nfsv4 nfsd xfs
    printf '%s\n' 'nfs 2049/tcp' 'sunrpc 111/tcp portmapper' 'sunrpc 111/udp portmapper' \
        >/etc/services
    printf '%s\n' 'tcp 6 TCP' 'udp 17 UDP' >/etc/protocols
    printf '%s\n' '_rpc:x:101:65534::/run/rpcbind:/bin/false' \
        'statd:x:102:65534::/var/lib/nfs:/bin/false' >>/etc/passwd
    mkdir -p $exported /var/lib/nfs/sm /var/lib/nfs/sm.bak /var/lib/nfs/v4recovery /run/rpcbind
    touch /var/lib/nfs/etab /var/lib/nfs/rmtab
    # After a start a server waits for its clients of before; here there are none.
    echo 1 >/proc/sys/fs/nfs/nlm_grace_period
    mount -t nfsd nfsd /proc/fs/nfsd
    rpcbind
    rpc.statd --no-notify
    exportfs -i -o rw,no_root_squash,insecure,no_subtree_check,fsid=7 "127.0.0.1:$exported"
    rpc.nfsd -G 10 -L 10 4
    rpc.mountd
    echo Y >/proc/fs/nfsd/v4_end_grace
fi
run_cases "$@"
