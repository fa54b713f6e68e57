#!/usr/bin/env bash
# Makes from the packages what a virtual machine is started with, and prints the folder that holds
# it:
#
#   xen          the hypervisor          vmlinux   the kernel for dom0 and for guests (unpacked: Xen wants an ELF file)
#   vmlinuz      the kernel without Xen  initrd    busybox and the modules that find the root file system
#   guest        the start of a guest's initramfs: busybox, the C library, xen-blkfront
#   root.ext4    the root file system of dom0
#   host/        the emulator, with its own C library: `run-on-host PROGRAM ARGUMENTS` starts a program of it
#
# Nothing of ours is inside: our programs and scripts are added at each boot (boot.sh), so that the
# image is made once and changes only with the packages or with this script.
set -euo pipefail
# shellcheck source=tests/vm/common.sh
. "$(dirname "$0")/common.sh"

"$vm_here/packages.sh" "$@"
debs=$vm_cache/packages
lock_cache

stamp=$(cat "$vm_here/image.sh" "$debs"/{dom0,host,xen,kernel} | sha256sum | cut -c1-16)
image=$vm_cache/image-$stamp
if [ -e "$image/complete" ]; then
    touch "$image"
    echo "$image"
    exit 0
fi
for tool in dpkg-deb tar xz mke2fs; do
    command -v "$tool" >/dev/null || [ -x "/usr/sbin/$tool" ] || die "$tool is not installed: run 'make deps'"
done
PATH=$PATH:/usr/sbin:/sbin

say "making the images of the virtual machines (half a minute)"
new=$vm_cache/image.new
rm -rf "$new"
mkdir -p "$new/work"
root=$new/work/root host=$new/host
kernel=$(cat "$debs/kernel")
version=${kernel#linux-image-}
version=${version%%_*}

# Drivers of dom0 and of the machine without Xen, with what they depend on.
root_modules="xen-evtchn xen-gntdev xen-gntalloc xen-privcmd xenfs xen-blkback xen-blkfront xen-netback
    loop nbd ublk_drv brd null_blk zram dm-mod dm-flakey dm-delay dm-snapshot dm-thin-pool dm-crypt xts aesni-intel
    scsi_debug sd_mod ext4 xfs nfs nfsv3 nfsv4 nfsd overlay fuse
    9p 9pnet_virtio virtio_blk virtio-rng crc32c_generic crc32c-intel"
# What it takes to mount the root file system.
initrd_modules="virtio_blk ext4 9p 9pnet_virtio crc32c_generic crc32c-intel"
guest_modules="xen-blkfront ext4 crc32c_generic crc32c-intel"

empty_tree() {
    mkdir -p "$1"/usr/{bin,sbin,lib,lib64}
    local folder
    for folder in bin sbin lib lib64; do
        ln -s "usr/$folder" "$1/$folder"
    done
}

unpack() { # package file, tree
    dpkg-deb --fsys-tarfile "$debs/$1" | tar x -C "$2" --no-same-owner --keep-directory-symlink \
        --exclude='./usr/share/doc' --exclude='./usr/share/man' --exclude='./usr/share/locale' \
        --exclude='./usr/share/info' --exclude='./boot/*.efi' -f -
}

unpack_list() { # list, tree
    local file
    while read -r file; do
        unpack "$file" "$2"
    done <"$debs/$1"
}

# ---- the host's part -----------------------------------------------------------------------------------------
empty_tree "$host"
unpack_list host "$host"
cat >"$new/run-on-host" <<'RUN'
#!/bin/sh
# Starts a program of the folder `host` with the C library beside it: the host's may be older.
tree=$(dirname "$(readlink -f "$0")")/host
program=$1
shift
export QEMU_MODULE_DIR="$tree/usr/lib/x86_64-linux-gnu/qemu"
for folder in usr/bin usr/sbin; do
    [ ! -x "$tree/$folder/$program" ] || break
done
exec "$tree/usr/lib64/ld-linux-x86-64.so.2" --library-path "$tree/usr/lib/x86_64-linux-gnu" \
    "$tree/$folder/$program" "$@"
RUN
chmod 755 "$new/run-on-host"
busybox=$host/usr/bin/busybox
# Tens of MiB that a machine without a display does not need.
rm -rf "$host"/usr/share/{icons,applications,metainfo,glib-2.0,gcc,gdb} "$host"/usr/bin/qemu-system-i386

# ---- hypervisor and kernel -----------------------------------------------------------------------------------
mkdir "$new/work/xen" "$new/work/kernel"
unpack "$(cat "$debs/xen")" "$new/work/xen"
gzip -dc "$new/work/xen/boot/xen-$vm_xen-amd64.gz" >"$new/xen"
unpack "$kernel" "$new/work/kernel"
cp "$new/work/kernel/boot/vmlinuz-$version" "$new/vmlinuz"

# A little-endian number of a file.
number() { # file, offset, bytes
    od -An "-tu$3" "-j$2" "-N$3" "$1" | tr -d ' '
}

# The compressed kernel lies inside the bzImage, at payload_offset (0x248) after the setup sectors
# (count at 0x1f1); its length (0x24c) includes 4 bytes that only the boot code reads. Linux,
# Documentation/arch/x86/boot.rst.
payload=$new/work/payload
at=$((($(number "$new/vmlinuz" 497 1) + 1) * 512 + $(number "$new/vmlinuz" 584 4)))
length=$(($(number "$new/vmlinuz" 588 4) - 4))
dd if="$new/vmlinuz" of="$payload" bs=1M iflag=skip_bytes,count_bytes skip=$at count=$length status=none
case $(od -An -tx1 -N4 "$payload" | tr -d ' ') in
    28b52ffd) "$new/run-on-host" zstd -dqc "$payload" >"$new/vmlinux" ;;
    fd377a58) xz -dc --single-stream "$payload" >"$new/vmlinux" ;;
    *) die "the kernel of $kernel is compressed in a way that image.sh does not know" ;;
esac

# ---- modules -------------------------------------------------------------------------------------------------
modules=$new/work/kernel/usr/lib/modules/$version
[ -d "$modules" ] || modules=$new/work/kernel/lib/modules/$version
all=$new/work/modules
mkdir -p "$all/lib/modules"
ln -s "$modules" "$all/lib/modules/$version"
"$new/run-on-host" depmod -b "$all" "$version"

# The files of modules and of what they depend on, in the order in which they have to be loaded.
files_of() {
    local module
    for module in "$@"; do
        "$new/run-on-host" modprobe -d "$all" -S "$version" --show-depends "$module" ||
            die "the kernel has no module $module"
    done | sed -n "s|^insmod $all/lib/modules/$version/\([^ ]*\).*|\1|p" | awk '!seen[$0]++'
}

copy_module() { # file below $modules, destination without .xz
    case $1 in
        *.xz) xz -dc "$modules/$1" >"$2" ;;
        *) cp "$modules/$1" "$2" ;;
    esac
}

# ---- initramfs -----------------------------------------------------------------------------------------------
# busybox and modules to be loaded one after the other; `init` is added at boot.
initramfs() { # folder, modules ...
    local folder=$1 file name
    shift
    mkdir -p "$folder"/{bin,dev,proc,sys,run,mnt,tmp,newroot,modules}
    cp "$busybox" "$folder/bin/busybox"
    for name in $("$busybox" --list); do
        [ "$name" = busybox ] || ln -s busybox "$folder/bin/$name"
    done
    for file in $(files_of "$@"); do
        name=$(basename "${file%.xz}")
        copy_module "$file" "$folder/modules/$name"
        echo "$name" >>"$folder/modules/order"
    done
}

archive_of() {
    (cd "$1" && find . | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0) 2>/dev/null
}

# shellcheck disable=SC2086
{
    initramfs "$new/work/initrd" $initrd_modules
    initramfs "$new/work/guest" $guest_modules
}
archive_of "$new/work/initrd" >"$new/initrd"

# ---- dom0's root file system ---------------------------------------------------------------------------------
empty_tree "$root"
unpack_list dom0 "$root"
# Our programs run in guests as well, with Debian's C library.
mkdir -p "$new/work/guest/lib64" "$new/work/guest/lib/x86_64-linux-gnu"
cp -L "$root/usr/lib64/ld-linux-x86-64.so.2" "$new/work/guest/lib64/"
for library in libc.so.6 libm.so.6 libgcc_s.so.1; do
    cp -L "$root/usr/lib/x86_64-linux-gnu/$library" "$new/work/guest/lib/x86_64-linux-gnu/"
done
archive_of "$new/work/guest" >"$new/guest"

# shellcheck disable=SC2086
for file in $(files_of $root_modules); do
    mkdir -p "$root/usr/lib/modules/$version/$(dirname "$file")"
    copy_module "$file" "$root/usr/lib/modules/$version/${file%.xz}"
done
cp "$modules"/modules.{order,builtin,builtin.modinfo} "$root/usr/lib/modules/$version/"
"$new/run-on-host" depmod -b "$root" "$version"

mkdir -p "$root"/{dev,proc,sys,run,tmp,share,root,mnt,vm,srv} "$root"/var/lib/{xen,xenstored} \
    "$root"/var/log/xen/console "$root"/etc/xen/auto
rm -rf "$root/var/run"
ln -s ../run "$root/var/run"
# What Debian's own programs do not bring, busybox does.
for name in $("$busybox" --list); do
    [ -e "$root/usr/bin/$name" ] || [ -e "$root/usr/sbin/$name" ] || ln -s busybox "$root/usr/bin/$name"
done
ln -sf bash "$root/usr/bin/sh"
cp "$new/vmlinux" "$root/vm/"
cp "$new/guest" "$root/vm/guest-base"
printf 'root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/bin/false\n' >"$root/etc/passwd"
printf 'root:x:0:\ndisk:x:6:\nnogroup:x:65534:\n' >"$root/etc/group"
printf '127.0.0.1 localhost dom0\n' >"$root/etc/hosts"
printf 'autoballoon="off"\n' >"$root/etc/xen/xl.conf"
echo "/usr/lib/xen-$vm_xen" >"$root/vm/toolstack-folder"
rm -rf "$root/usr/lib/xen-$vm_xen/boot/xen-shim"

# A package left out by mistake (packages.sh, no_use) is found here and not in the middle of a boot.
loader=$host/usr/lib64/ld-linux-x86-64.so.2
for program in "usr/lib/xen-$vm_xen/bin/xl" "usr/lib/xen-$vm_xen/bin/xenstored" usr/bin/qemu-img usr/bin/strace \
    usr/sbin/nbd-client usr/sbin/mke2fs usr/bin/udevadm usr/libexec/xen-qemu-system-i386; do
    [ -x "$root/$program" ] || die "no $program in the packages of dom0"
    "$loader" --library-path "$root/usr/lib/x86_64-linux-gnu:$root/usr/lib/x86_64-linux-gnu/systemd" --list "$root/$program" >"$new/work/libraries" ||
        die "$program lacks a library in dom0: $(grep -h 'not found' "$new/work/libraries")"
done

# Sparse; no journal, no checksums: what is written to it is gone with the machine.
truncate -s 8G "$new/root.ext4"
mke2fs -q -t ext4 -O ^has_journal,^metadata_csum,^64bit -E lazy_itable_init=1,nodiscard -m 0 -L dom0 -N 65536 \
    -d "$root" "$new/root.ext4"
cat "$debs"/{xen,kernel} >"$new/versions"
grep -hE '^(xen-utils|qemu-system-(xen|x86)|libc6)' "$debs"/{dom0,host} | sort -u >>"$new/versions"

rm -rf "$new/work"
touch "$new/complete"
# The images of earlier packages are of no more use, unless another checkout still starts machines
# from them.
find "$vm_cache" -maxdepth 1 -name 'image-*' -mmin +1440 -exec rm -rf {} +
mv "$new" "$image"
say "made $image, $(du -sh "$image" | cut -f1)"
echo "$image"
