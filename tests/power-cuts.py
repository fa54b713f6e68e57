#!/usr/bin/env python3
"""Power cuts under a tapdisk on a real ext4: `tests/power-cuts.py --bin target/debug --cuts 500`.

ext4 lies on a loop device over a file of a small FUSE server, which logs every write and every
flush. A guest that forges footers writes to a VHD there, between pauses, kills and closes. Then the
power is cut again and again, on paper: the log is played up to some point, and of what was not
flushed by then a random part is left out. Each time ext4 is mounted, and `vhd-util check`,
`vhd-util query` and `qemu-img info` must find a whole image (docs/footers.md). Needs root.
"""

import argparse
import collections
import ctypes
import os
import random
import re
import select
import shutil
import stat
import struct
import subprocess
import sys
import tempfile

BLOCK, DISK_MIB, STORE_MIB = 2 << 20, 128, 224
RECORD = "<cQI"


def arguments():
    """The command line."""
    plain = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--bin", default="target/debug", help="where our programs are")
    parser.add_argument("--engine", default="uring", help="tapdisk's disk engine (uring)")
    parser.add_argument("--cuts", type=int, default=100, help="how often (100)")
    parser.add_argument("--lives", type=int, default=12, help="how often the disk is opened (12)")
    parser.add_argument("--seed", type=int, default=1, help="of all that is random (1)")
    return parser.parse_args()


class Server:
    """Serves one file, `disk`, through FUSE (linux/fuse.h), and logs what is done to it."""

    def __init__(self, mount, back, log):
        self.fuse = os.open("/dev/fuse", os.O_RDWR)
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"fd={self.fuse},rootmode=40000,user_id=0,group_id=0".encode()
        if libc.mount(b"cuts", mount.encode(), b"fuse", 0, options):
            raise OSError(ctypes.get_errno(), "mount")
        self.bytes = os.path.getsize(back)
        self.back, self.log = os.open(back, os.O_RDWR), open(log, "wb", buffering=0)

    def run(self):
        """Answers until it is unmounted."""
        while True:
            try:
                message = os.read(self.fuse, 2 << 20)
            except OSError:
                return
            _, what, unique, node = struct.unpack_from("<IIQQ", message, 0)
            if what in (2, 36, 42):  # forget, interrupt: no answer
                continue
            errno, data = self.answer(what, node, message[40:])
            os.write(self.fuse, struct.pack("<IiQ", 16 + len(data), -errno, unique) + data)
            if what == 38:  # destroy
                return

    def answer(self, what, node, body):
        """The errno and the bytes of an answer."""
        at, size = struct.unpack_from("<8xQI", body, 0) if what in (15, 16) else (0, 0)
        if what == 26:  # init: big writes
            limits = (7, 31, 65536, 1 << 5, 32, 24, 1 << 18, 1, 64, 0, 0)
            return 0, struct.pack("<IIIIHHIIHHI7I", *limits, *[0] * 7)
        if what == 1:  # lookup
            found = body.split(b"\0")[0] == b"disk"
            entry = struct.pack("<QQQQII", 2, 0, 1, 1, 0, 0) + self.attributes(2)
            return (0, entry) if found else (2, b"")
        if what == 3:
            return 0, struct.pack("<QII", 1, 0, 0) + self.attributes(node)
        if what == 14:  # open: past the page cache
            return 0, struct.pack("<QIi", 7, 1, 0)
        if what == 15:
            return 0, os.pread(self.back, size, at)
        if what == 16:
            os.pwrite(self.back, body[40:40 + size], at)
            self.log.write(struct.pack(RECORD, b"W", at, size) + body[40:40 + size])
            return 0, struct.pack("<II", size, 0)
        if what == 20:
            self.log.write(struct.pack(RECORD, b"F", 0, 0))
            return 0, b""
        return (0, b"") if what in (18, 25) else (38, b"")

    def attributes(self, node):
        """Of the folder or the file."""
        folder, size = node == 1, 0 if node == 1 else self.bytes
        mode, links = (stat.S_IFDIR | 0o755, 2) if folder else (stat.S_IFREG | 0o600, 1)
        times, rest = [0] * 6, (mode, links, 0, 0, 0, 4096, 0)
        return struct.pack("<QQQQQQ10I", node, size, size // 512, *times, *rest)


def run(*command, check=True, **more):
    """Runs a program; its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **more)
    if check and done.returncode:
        sys.exit(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def forged(rng):
    """The last page of a block, with a footer in its last sector."""
    footer = bytearray(512)
    struct.pack_into(">8sIIQ", footer, 0, b"conectix", 2, 0x10000, 512 * rng.randrange(1 << 16))
    struct.pack_into(">4s8xQQ4xI", footer, 28, b"abcd", 1 << 20, 1 << 20, rng.choice((2, 3, 4)))
    struct.pack_into(">I", footer, 64, ~sum(footer) & 0xFFFFFFFF)
    return bytes(4096 - 512) + bytes(footer)


class Disk:
    """The VHD, and the tapdisk that serves it."""

    def __init__(self, folder, options):
        self.folder, self.image, self.begin = folder, f"{folder}/store/a.vhd", 0
        self.env = dict(os.environ, TAPDISK_RUN_DIR=f"{folder}/run", TAPDISK_ENGINE=options.engine)
        self.bin = os.path.abspath(options.bin)

    def tool(self, name, *args, check=True):
        """Runs a program of ours."""
        return run(f"{self.bin}/{name}", *args, check=check, env=self.env).stdout

    def life(self, number, rng):
        """Opened, written, and ended in one of the ways there are."""
        minor = self.tool("tap-ctl", "create", "-a", f"vhd:{self.image}").strip().rsplit("-", 1)[1]
        pid = re.search(r"pid=(\d+)", self.tool("tap-ctl", "list", "-m", minor))[1]
        with open(f"{self.folder}/forged", "wb") as file:
            file.write(forged(rng))
        blocks = [(rng.randrange(DISK_MIB // 2) + 1) * BLOCK - 4096 for _ in range(12)]
        commands = [f"write -s {self.folder}/forged {at} 4096" for at in blocks]
        commands.append(f"write -P {number} {rng.randrange(DISK_MIB // 2 - 2) * BLOCK} 3M")
        if number % 3 == 0:
            commands.append(f"write -z -u {rng.randrange(DISK_MIB // 2 - 2) * BLOCK} 4M")
        address = f"nbd+unix:///?socket={self.folder}/run/nbd{pid}.{minor}"
        run("qemu-io", "-f", "raw", *[word for c in commands for word in ("-c", c)], address)
        target = ("-p", pid, "-m", minor)
        if number % 4 == 3:
            process = os.pidfd_open(int(pid))
            os.kill(int(pid), 9)
            select.select([process], [], [])
            os.close(process)
            self.tool("tap-ctl", "free", "-m", minor, check=False)
            return
        if number % 4 == 0:
            self.tool("tap-ctl", "pause", *target)
            self.tool("tap-ctl", "unpause", *target)
        self.tool("tap-ctl", "destroy", *target)


def record(folder, options, rng):
    """Lets a disk live on a store that is logged. Leaves `base`, the store before, and `log`."""
    for name in ("fuse", "store", "run", "cut"):
        os.mkdir(f"{folder}/{name}")
    with open(f"{folder}/back", "wb") as file:
        file.truncate(STORE_MIB << 20)
    run("mkfs.ext4", "-q", "-F", f"{folder}/back")
    run("cp", "--sparse=always", f"{folder}/back", f"{folder}/base")
    server = Server(f"{folder}/fuse", f"{folder}/back", f"{folder}/log")
    child = os.fork()
    if child == 0:
        server.run()
        os._exit(0)
    os.close(server.fuse)
    loop = run("losetup", "-f", "--show", f"{folder}/fuse/disk").stdout.strip()
    run("mount", loop, f"{folder}/store")
    disk = Disk(folder, options)
    try:
        disk.tool("vhd-util", "create", "-n", disk.image, "-s", str(DISK_MIB))
        run("sync", "-f", disk.image)
        # From here on the image is there.
        disk.begin = len(records(f"{folder}/log"))
        for number in range(1, options.lives + 1):
            disk.life(number, rng)
    finally:
        run("umount", f"{folder}/store", check=False)
        run("losetup", "-d", loop, check=False)
        run("umount", f"{folder}/fuse", check=False)
        os.waitpid(child, 0)
    return disk


def records(log):
    """The log: kind, byte, data."""
    with open(log, "rb") as file:
        data = file.read()
    at, out = 0, []
    while at < len(data):
        kind, byte, size = struct.unpack_from(RECORD, data, at)
        at += struct.calcsize(RECORD)
        out.append((kind, byte, data[at:at + size]))
        at += size
    return out


def what_is_wrong(disk, cut):
    """What there is to complain about the image after a cut; "" if nothing."""
    image = f"{disk.folder}/cut/a.vhd"
    mounted = run("mount", "-o", "loop", cut, f"{disk.folder}/cut", check=False)
    if mounted.returncode:
        return f"ext4: {mounted.stderr.strip()}"
    try:
        if not os.path.exists(image):
            return "no image"
        checked = run(f"{disk.bin}/vhd-util", "check", "-n", image, check=False)
        if checked.returncode:
            return checked.stdout.splitlines()[0]
        size = run(f"{disk.bin}/vhd-util", "query", "-n", image, "-v", check=False).stdout.strip()
        qemu = run("qemu-img", "info", "-f", "vpc", image, check=False)
        whole = size == str(DISK_MIB) and not qemu.returncode
        return "" if whole else f"size {size}, {qemu.stderr}"
    finally:
        run("umount", f"{disk.folder}/cut")


def main():
    """Records, cuts, and says what came of it."""
    options = arguments()
    rng = random.Random(options.seed)
    folder = tempfile.mkdtemp(prefix="power-cuts.")
    found = collections.Counter()
    try:
        disk = record(folder, options, rng)
        log = records(f"{folder}/log")
        flushes = [i for i, (kind, *_) in enumerate(log) if kind == b"F"]
        points = sorted(rng.randrange(disk.begin, len(log)) for _ in range(options.cuts))
        base, done = os.open(f"{folder}/base", os.O_RDWR), 0
        for point in points:
            flushed = max(i for i in flushes if i <= point)
            for kind, byte, data in log[done:flushed]:
                if kind == b"W":
                    os.pwrite(base, data, byte)
            done = flushed
            run("cp", "--sparse=always", f"{folder}/base", f"{folder}/after")
            part, after = rng.choice((1, 0.5)), os.open(f"{folder}/after", os.O_RDWR)
            for kind, byte, data in log[flushed:point]:
                if kind == b"W" and rng.random() < part:
                    os.pwrite(after, data, byte)
            os.close(after)
            why = what_is_wrong(disk, f"{folder}/after")
            found[why or "whole"] += 1
            if why:
                print(f"record {point}, flushed up to {flushed}, part {part}: {why}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(log)} records, {len(flushes)} flushes, seed {options.seed}: {dict(found)}")
    return 0 if set(found) == {"whole"} else 1


if __name__ == "__main__":
    sys.exit(main())
