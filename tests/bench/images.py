"""The images that are measured on, made once per run in the benchmark's own directory."""

import os
import shutil
import subprocess

from servers import Image

MIB = 1 << 20
CHAIN = 30
# What each level of the chain has of its own: this many pieces of 64 KiB, at random places.
PIECES_PER_LEVEL = 200


def _qemu_img(*arguments):
    subprocess.run(["qemu-img", *arguments], check=True, stdout=subprocess.DEVNULL)


def make_raw(directory, size):
    """A raw file with every byte written, none of them zero by rule."""
    path = os.path.join(directory, "full.raw")
    with open(path, "wb") as file:
        for _ in range(size // (4 * MIB)):
            file.write(os.urandom(4 * MIB))
        file.flush()
        os.fsync(file.fileno())
    return Image(path, "raw")


def make_full_vhd(directory, raw):
    """A dynamic VHD of the raw image's contents: every block is allocated."""
    path = os.path.join(directory, "full.vhd")
    _qemu_img("convert", "-f", "raw", "-O", "vpc", "-o", "force_size=on", raw.path, path)
    return Image(path, "vhd")


def make_empty_vhd(directory, size, name="empty.vhd"):
    """An empty dynamic VHD, by qemu-img for all servers alike; replaces the one before."""
    path = os.path.join(directory, name)
    _qemu_img("create", "-f", "vpc", "-o", "subformat=dynamic,force_size=on", path, str(size))
    return Image(path, "vhd")


def make_full_qcow2(directory, raw):
    """A qcow2 image of the raw image's contents."""
    path = os.path.join(directory, "full.qcow2")
    _qemu_img("convert", "-f", "raw", "-O", "qcow2", raw.path, path)
    return Image(path, "qcow2")


def make_empty_qcow2(directory, size, over=None):
    """An empty qcow2 image, over a raw one or over nothing; replaces the one before."""
    path = os.path.join(directory, "over.qcow2" if over else "empty.qcow2")
    below = ["-b", over.path, "-F", "raw"] if over else []
    _qemu_img("create", "-f", "qcow2", *below, path, str(size))
    return Image(path, "qcow2")


def make_qcow2_chains(directory, full, write):
    """The same as `make_chains`, of qcow2."""
    base = os.path.join(directory, "chain-1.qcow2")
    shutil.copyfile(full.path, base)
    parent = base
    for level in range(2, CHAIN + 1):
        child = os.path.join(directory, f"chain-{level}.qcow2")
        _qemu_img("create", "-f", "qcow2", "-b", parent, "-F", "qcow2", child)
        write(Image(child, "qcow2"), PIECES_PER_LEVEL, level)
        parent = child
    return {"chain-1-qcow2": Image(base, "qcow2"), f"chain-{CHAIN}-qcow2": Image(parent, "qcow2")}


def make_chains(directory, full, tapdisk, write):
    """A chain of one and a chain of CHAIN over the same full base.

    `write(image, pieces, seed)` writes 64 KiB pieces at random places through the daemon.
    """
    base = os.path.join(directory, "chain-1.vhd")
    shutil.copyfile(full.path, base)
    parent = base
    for level in range(2, CHAIN + 1):
        child = os.path.join(directory, f"chain-{level}.vhd")
        if os.path.exists(child):
            os.unlink(child)
        tapdisk.vhd_util("snapshot", "-n", child, "-p", parent)
        write(Image(child, "vhd"), PIECES_PER_LEVEL, level)
        parent = child
    return {"chain-1": Image(base, "vhd"), f"chain-{CHAIN}": Image(parent, "vhd")}


def settle(image):
    """Brings the file to the disk and out of the page cache, so that no run pays for the one before."""
    descriptor = os.open(image.path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
