"""The least of an NBD client: fixed newstyle handshake over a unix socket, one read.

It is here so that `tap-ctl create` to first byte can be timed without starting another program.
Numbers from the NBD protocol document (https://github.com/NetworkBlockDevice/nbd, doc/proto.md).
"""

import socket
import struct

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
OPT_GO = 7
REP_MAGIC = 0x3E889045565A9
REP_ACK = 1
REP_INFO = 3
REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
CMD_READ = 0
CMD_DISC = 2
FIXED_NEWSTYLE, NO_ZEROES = 1, 2


class NbdError(Exception):
    """The server answered something that this client does not expect."""


def _receive(sock, count):
    data = bytearray()
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise NbdError(f"the server closed the connection after {len(data)} of {count} bytes")
        data += part
    return bytes(data)


def _negotiate(sock):
    magic, option, flags = struct.unpack(">QQH", _receive(sock, 18))
    if (magic, option) != (NBDMAGIC, IHAVEOPT) or not flags & FIXED_NEWSTYLE:
        raise NbdError("no fixed newstyle server")
    sock.sendall(struct.pack(">I", flags & (FIXED_NEWSTYLE | NO_ZEROES)))
    payload = struct.pack(">IH", 0, 0)  # the default export, no information wanted
    sock.sendall(struct.pack(">QII", IHAVEOPT, OPT_GO, len(payload)) + payload)
    while True:
        magic, _, kind, length = struct.unpack(">QIII", _receive(sock, 20))
        _receive(sock, length)
        if magic != REP_MAGIC or kind not in (REP_ACK, REP_INFO):
            raise NbdError(f"option GO answered with reply type {kind:#x}")
        if kind == REP_ACK:
            return


def first_bytes(path, count=4096):
    """Connects to the unix socket `path`, reads `count` bytes at offset 0, disconnects."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(10)
        sock.connect(path)
        _negotiate(sock)
        sock.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_READ, 1, 0, count))
        magic, error, _ = struct.unpack(">IIQ", _receive(sock, 16))
        if magic != SIMPLE_REPLY_MAGIC or error:
            raise NbdError(f"read answered with magic {magic:#x}, error {error}")
        data = _receive(sock, count)
        sock.sendall(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, CMD_DISC, 2, 0, 0))
        return data
