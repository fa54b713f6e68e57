#!/usr/bin/env bash
# Boots a machine in the emulator (no hardware virtualisation needed), runs a command in it, and
# exits with the command's status. The machine is Xen with dom0, or with -p the same kernel without
# Xen.
#
#   boot.sh [-p] [-t SECONDS] [-m MIB] [-d MIB] [-l LOG] [-q] [-x ARGS] [-k ARGS] FOLDER COMMAND
#
#   FOLDER   is shared with the machine as /share, for reading and writing; COMMAND is run there by bash
#   -t       the longest that all of it may take (default 900)   -m   its memory in MiB (default 2048)
#   -d       an empty second disk, /dev/vdb, of so many MiB
#   -l       where the console is kept, each line with the seconds since the start (default FOLDER/console.log)
#   -q       do not show the console while it runs               -i   the terminal's keyboard is the console's
#   -x, -k   more arguments for Xen, for the kernel
#
# TAPDISK_VM_KERNEL=debug takes the kernel of debug-kernel.sh in place of Debian's (with -p only);
# TAPDISK_VM_XENSTORED=oxenstored the OCaml xenstored, as XenServer and XCP-ng do.
#
# Exit: the command's status; 124: the time was up; 125: the machine ended, or never came up,
# without a status. After 124 and 125 the end of the console is shown.
set -euo pipefail
# shellcheck source=tests/vm/common.sh
. "$(dirname "$0")/common.sh"

plain='' limit=900 memory=2048 log='' quiet='' interactive='' second='' xen_more='' kernel_more=''
while getopts pt:m:d:l:qix:k: option; do
    case $option in
        p) plain=1 ;;
        t) limit=$OPTARG ;;
        m) memory=$OPTARG ;;
        d) second=$OPTARG ;;
        l) log=$OPTARG ;;
        q) quiet=1 ;;
        i) interactive=1 ;;
        x) xen_more=$OPTARG ;;
        k) kernel_more=$OPTARG ;;
        *) sed -n '2,/^set/p' "$0" | grep '^#' >&2 && exit 125 ;;
    esac
done
shift $((OPTIND - 1))
[ $# -ge 2 ] || die "boot.sh needs a folder and a command"
share=$(cd "$1" && pwd)
shift
log=${log:-$share/console.log}
# A comma would end QEMU's option.
case $share in *,*) die "the folder's name must not contain a comma: $share" ;; esac

image=$("$vm_here/image.sh") || exit 125
plain_kernel=$image/vmlinuz
if [ "${TAPDISK_VM_KERNEL:-}" = debug ]; then
    [ -n "$plain" ] || die "the kernel for debugging has no drivers for Xen"
    plain_kernel=$("$vm_here/debug-kernel.sh")/vmlinuz || exit 125
    # Its checks take as long as that where there are many objects.
    kernel_more+=" rcupdate.rcu_cpu_stall_timeout=300"
fi

work=$(mktemp -d "${TMPDIR:-/tmp}/tapdisk-vm.XXXXXX")
emulator=''
# shellcheck disable=SC2317
finish() {
    status=$?
    trap - EXIT
    # Only when this script is interrupted does the emulator still run.
    [ -z "$emulator" ] || kill "$emulator" 2>/dev/null || true
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM HUP

# What is ours goes into a second archive behind the image's initramfs: the kernel unpacks one after
# the other.
nonce=$$-$RANDOM$RANDOM
mkdir -p "$work/ours/vm"
cp "$vm_here"/dom0/* "$work/ours/vm/"
mv "$work/ours/vm/initramfs-init" "$work/ours/init"
chmod 755 "$work/ours/init" "$work/ours/vm"/*
printf '%s\n' "$*" >"$work/ours/vm/command"
printf 'nonce=%s\nxenstored=%s\n' "$nonce" "${TAPDISK_VM_XENSTORED:-xenstored}" >"$work/ours/vm/boot"
cp "$image/initrd" "$work/initrd"
(cd "$work/ours" && find . | "$image/host/usr/bin/busybox" cpio -o -H newc -R 0:0 2>/dev/null) >>"$work/initrd"

# Under emulation a boot is mostly self-tests and clearing of memory; without them it takes half as
# long. nokaslr: addresses in two consoles can be compared. panic=5: a kernel that dies ends the
# machine. no_timer_check: on a busy host no tick comes while the kernel looks whether ticks come,
# and it gives up.
arguments="quiet loglevel=4 mitigations=off nokaslr audit=0 lsm=capability random.trust_cpu=on panic=5 rodata=off no_timer_check \
init_on_alloc=0 hardened_usercopy=off cryptomgr.notests=1 kfence.sample_interval=0 nowatchdog psi=0 \
initcall_blacklist=load_system_certificate_list,jent_mod_init,init_encrypted,sed_opal_init,bpf_tcp_ca_kfunc_init \
$kernel_more"
if [ -n "$plain" ]; then
    start=(-kernel "$plain_kernel" -append "console=ttyS0 $arguments" -initrd "$work/initrd")
else
    # eager-fpu is a must: the emulator's XSAVE and XRSTOR do not look at CR0.TS, on which Xen's
    # lazy switching of the floating-point registers relies; two domains would corrupt each other's
    # registers.
    xen="console=com1 com1=115200,8n1 dom0_mem=1024M,max:1024M dom0_max_vcpus=1 bootscrub=no iommu=no"
    xen+=" spec-ctrl=no,eager-fpu loglvl=warning guest_loglvl=warning $xen_more"
    # QEMU takes kernel and initramfs as two "modules" of Xen; a comma in the arguments has to be
    # doubled.
    arguments="console=hvc0 $arguments"
    start=(-kernel "$image/xen" -append "$xen" -initrd "$image/vmlinux ${arguments//,/,,},$work/initrd")
fi

stamped() {
    local line now started=${EPOCHREALTIME/[.,]/}
    while IFS= read -r line || [ -n "$line" ]; do
        now=$((${EPOCHREALTIME/[.,]/} - started))
        line=${line%%$'\r'*}
        printf '%5d.%02d %s\n' $((now / 1000000)) $((now / 10000 % 100)) "$line" >&8
        [ -n "$quiet" ] || printf '%s\n' "$line"
    done 8>"$log"
}

disks=()
if [ -n "$second" ]; then
    truncate -s "${second}M" "$work/second"
    disks=(-drive "file=$work/second,if=none,id=second,format=raw,cache=unsafe"
        -device "virtio-blk-pci,drive=second")
fi

files=$image/host/usr/share
keyboard=/dev/null
[ -z "$interactive" ] || keyboard=/dev/stdin
output=(-serial stdio)
: >"$work/status"
mkfifo "$work/console"
if [ -n "$interactive" ]; then
    tee "$log" <"$work/console" &
else
    stamped <"$work/console" &
fi
reader=$!
# One processor: two only help where the host has nothing else to do.
timeout --foreground -k 10 "$limit" "$image/run-on-host" qemu-system-x86_64 \
    -L "$files/seabios" -L "$files/qemu" -L "$image/host/usr/lib/ipxe/qemu" \
    -accel tcg,thread=multi -cpu max -smp "${TAPDISK_VM_CPUS:-1}" -m "$memory" -nodefaults -display none -no-reboot "${output[@]}" \
    "${start[@]}" \
    -drive "file=$image/root.ext4,if=none,id=root,format=raw,snapshot=on,cache=unsafe" \
    -device virtio-blk-pci,drive=root "${disks[@]}" -device virtio-rng-pci \
    -fsdev "local,id=share,path=$share,security_model=none,multidevs=remap" \
    -device virtio-9p-pci,fsdev=share,mount_tag=share \
    -device virtio-serial-pci -chardev "file,id=status,path=$work/status" \
    -device virtserialport,chardev=status,name=status <"$keyboard" >"$work/console" 2>&1 &
emulator=$!
ended=0
wait "$emulator" || ended=$?
emulator=''
wait "$reader" || true

# The status comes through a port of its own, where no kernel message can get between.
status=$(sed -n "s/^status $nonce \([0-9][0-9]*\)\$/\1/p" "$work/status" | tail -1)
if [ -n "$status" ]; then
    exit "$status"
fi
say "the end of the console ($log):"
tail -n 60 "$log" | sed 's/^/    /' >&2
if [ "$ended" -eq 124 ] || [ "$ended" -eq 137 ]; then
    say "the machine had not ended after $limit s"
    exit 124
fi
say "the machine ended without a status (the emulator's was $ended)"
exit 125
