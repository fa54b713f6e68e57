"""Fills a VHD with data at chosen places: what a guest's writes leave behind, without the time a guest needs.

Only empty images with blocks of 2 MiB are filled, as `vhd-util create` and `vhd-util snapshot` make them.
"""

import dataclasses
import os
import random
import struct

SECTOR = 512
BLOCK = 2 << 20
BLOCK_SECTORS = BLOCK // SECTOR
MIB = 1 << 20


@dataclasses.dataclass(frozen=True)
class Pattern:
    """`percent` of all pieces of `piece` bytes hold data; blocks lie in the order of the disk, or at random."""

    name: str
    percent: int
    piece: int

    def pieces(self, size, seed):
        """The numbers of the pieces that hold data, sorted."""
        count = size // self.piece
        if self.percent == 100:
            return range(count)
        return sorted(random.Random(seed).sample(range(count), count * self.percent // 100))


PATTERNS = (
    Pattern("100 %, 1 MiB runs", 100, MIB),
    Pattern("100 %, scattered 4 KiB", 100, 4096),
    Pattern("25 %, 1 MiB runs", 25, MIB),
    Pattern("25 %, scattered 4 KiB", 25, 4096),
)


def fill(path, pattern, seed=1):
    """Writes the data; returns how many bytes of it there are. Scattered blocks lie at random in the file."""
    noise = random.Random(seed).randbytes(BLOCK + (1 << 16))
    with open(path, "r+b") as file:
        footer = file.read(SECTOR)
        header = file.read(1024)
        size, = struct.unpack_from(">Q", footer, 48)
        table_at, = struct.unpack_from(">Q", header, 16)
        blocks = {}
        per_block = BLOCK // pattern.piece
        for piece in pattern.pieces(size, seed):
            blocks.setdefault(piece // per_block, []).append(piece % per_block)
        order = list(blocks)
        if pattern.piece < 65536:
            random.Random(seed).shuffle(order)
        end = os.path.getsize(path) - SECTOR
        lba = (end // SECTOR + 8) // 8 * 8 - 1
        bat = {}
        for block in order:
            bat[block] = lba
            file.seek(lba * SECTOR)
            file.write(_block(blocks[block], pattern.piece, noise, block))
            lba += BLOCK_SECTORS + 8
        file.seek(table_at)
        table = bytearray(file.read(size // BLOCK * 4))
        for block, place in bat.items():
            struct.pack_into(">I", table, block * 4, place)
        file.seek(table_at)
        file.write(table)
        file.seek((max(bat.values(), default=0) + 1 + BLOCK_SECTORS) * SECTOR)
        file.write(footer)
        file.flush()
        os.fsync(file.fileno())
    return sum(len(pieces) for pieces in blocks.values()) * pattern.piece


def _block(pieces, piece, noise, block):
    """Bitmap and data of one block."""
    skip = block * 512 % (1 << 16)
    sectors = piece // SECTOR
    if len(pieces) * piece == BLOCK:
        return b"\xff" * 512 + noise[skip:skip + BLOCK]
    bits = 0
    data = bytearray(BLOCK)
    run = (1 << sectors) - 1
    for at in pieces:
        bits |= run << (BLOCK_SECTORS - (at + 1) * sectors)
        data[at * piece:(at + 1) * piece] = noise[skip + at * piece:skip + (at + 1) * piece]
    return bits.to_bytes(512, "big") + bytes(data)
