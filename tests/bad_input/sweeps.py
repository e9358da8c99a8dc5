"""Calls with every wrong value of every argument, as an unmodified program makes them.

``python -m tests.bad_input.sweeps`` runs under ``vsock run`` and prints the result of each call as JSON: the name of
an errno, or ``ok``. test_calls.py has the expected results. The calls use the C library directly, because CPython
would reject most of the values itself.
"""

import errno
import json
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from tests.bad_input.lab import ECHO
from tests.oracle import libc

from vsock.cli.guard import raise_guard

STREAM, SEQPACKET = socket.SOCK_STREAM, socket.SOCK_SEQPACKET
SOL = socket.SOL_SOCKET
LENGTHS = [*range(21), 40, 127, 128, 129, 200, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
"""Lengths of addresses; the last two are negative to the kernel."""
INT_OPTIONS = [
    2,
    6,
    9,
    10,
    15,
    18,
    60,
]  # REUSEADDR BROADCAST KEEPALIVE OOBINLINE REUSEPORT RCVLOWAT ZEROCOPY
LONGER_OPTIONS = {13: 8, 20: 16, 21: 16}  # LINGER RCVTIMEO SNDTIMEO, and the bytes that they need
BITS = [1 << bit for bit in range(31)]

Said = dict[str, Any]


def outcome(call: Callable[..., object], *arguments: Any) -> str:
    """The name of the errno, or ok."""
    try:
        call(*arguments)
    except OSError as error:
        names = {**errno.errorcode, errno.EAGAIN: "EAGAIN", errno.EOPNOTSUPP: "EOPNOTSUPP"}
        return names[error.errno or 0]
    return "ok"


def fresh(kind: int = STREAM) -> socket.socket:
    """A socket of the family."""
    return socket.socket(socket.AF_VSOCK, kind)


def named(sock: socket.socket, function: str, address: bytes, length: int) -> str:
    """Bind or connect with an address and any length, which may differ from the number of bytes."""
    room = address + bytes(512)
    return outcome(libc.call, function, sock.fileno(), room, length)


def addresses() -> Said:
    """Lengths, flags, families and the rest of a sockaddr_vm; all on the same socket, one after the other."""
    said: Said = {}
    for function, cid, port in (("bind", 0xFFFFFFFF, 0xFFFFFFFF), ("connect", 3, 1)):
        sock = fresh()
        good = libc.sockaddr(cid, port)
        short = [length for length in LENGTHS if not 16 <= length <= 128]
        said[f"{function} lengths"] = {
            **{length: named(sock, function, good, length) for length in short},
            **{
                length: named(fresh(), function, good, length)
                for length in LENGTHS
                if 16 <= length <= 128
            },
        }
        said[f"{function} flags"] = [
            named(sock, function, libc.sockaddr(cid, port, flags=flags), 16)
            for flags in range(2, 256)
        ]
        said[f"{function} families"] = [
            named(sock, function, libc.sockaddr(cid, port, family=family), 16)
            for family in (*range(1, 40), *range(41, 60), 0xFFFF)
        ]
        said[f"{function} nowhere"] = outcome(libc.call, function, sock.fileno(), None, 16)
        said[f"{function} at last"] = named(sock, function, good, 16)
    return said


def vsock_options() -> Said:
    """Level AF_VSOCK: each number with each length, set and get."""
    sock = fresh()
    lengths = [*range(25), 64, -1, -(2**31)]
    return {
        f"{name}": {
            "set": {n: outcome(libc.set_option, sock, 40, name, bytes(64), n) for n in lengths},
            "get": {n: outcome(libc.get_option, sock, 40, name, n) for n in lengths},
        }
        for name in range(-1, 12)
    }


def timeouts() -> Said:
    """Invalid timeouts."""
    values = [
        (-1, 0),
        (-(2**63), 0),
        (2**63 - 1, 0),
        (2**62, 0),
        (0, 1_000_000),
        (0, 2**63 - 1),
        (0, 999_999),
    ]
    sock = fresh()
    return {
        f"{name}": [
            outcome(libc.set_option, sock, 40, name, struct.pack("@qq", *value), 16)
            for value in values
        ]
        for name in (6, 8)
    }


def socket_options() -> Said:
    """Level SOL_SOCKET with too short values, and unknown levels."""
    sock = fresh()
    return {
        "short": {
            name: [outcome(libc.set_option, sock, SOL, name, bytes(8), n) for n in (*range(4), -1)]
            for name in INT_OPTIONS
        },
        "longer": {
            name: [
                outcome(libc.set_option, sock, SOL, name, bytes(64), n) for n in (*range(size), -1)
            ]
            for name, size in LONGER_OPTIONS.items()
        },
        "nowhere": [outcome(libc.set_option, sock, SOL, name, None, 4) for name in INT_OPTIONS],
        "levels": [
            outcome(libc.set_option, sock, level, 1, bytes(8), 8)
            for level in (*range(-2, 1), *range(2, 40), *range(41, 290), 2**31 - 1)
        ],
        "low water": [
            outcome(libc.set_option, sock, SOL, socket.SO_RCVLOWAT, struct.pack("@i", value), 4)
            for value in (-1, -(2**31), 262_145, 2**31 - 1, 262_144, 0)
        ],
    }


def creation() -> Said:
    """Types, flags and protocols."""

    def make(kind: int, protocol: int = 0) -> str:
        return outcome(lambda: socket.close(libc.call("socket", 40, kind, protocol)))

    return {
        "types": [make(kind) for kind in range(-1, 16)],
        "flags": {bit: make(STREAM | bit) for bit in BITS if bit > 8},
        "protocols": [
            make(STREAM, protocol) for protocol in (-1, 1, 6, 39, 41, 255, 2**31 - 1, 0, 40)
        ],
    }


def data_flags() -> Said:
    """Each flag of the data calls, with and without a connection."""
    sock, talking = fresh(), fresh()
    talking.connect((3, ECHO))
    dontwait = socket.MSG_DONTWAIT
    said: Said = {
        "recv unconnected": {bit: outcome(sock.recv, 1, bit) for bit in BITS},
        "send unconnected": {bit: outcome(sock.send, b"x", bit) for bit in BITS},
        "recv": {bit: outcome(talking.recv, 1, bit | dontwait) for bit in BITS},
    }
    said["send"] = {bit: outcome(talking.send, b"x", bit | dontwait) for bit in BITS}
    sent = sum(result == "ok" for result in said["send"].values())
    said["came back"] = sent - sum(len(talking.recv(1)) for _ in range(sent))
    said["address"] = {
        length: outcome(
            libc.call,
            "sendto",
            talking.fileno(),
            b"x",
            1,
            0,
            libc.sockaddr(3, 1) + bytes(512),
            length,
        )
        for length in (1, 2, 15, 16, 128, 129, 0xFFFFFFFF, 0)
    }
    return said


def rest() -> Said:
    """accept4, listen, shutdown."""
    listener = fresh()
    listener.bind((0xFFFFFFFF, 0xFFFFFFFF))
    unbound = fresh()
    said: Said = {
        "not listening": {bit: outcome(libc.accept4, listener, bit) for bit in (0, *BITS)},
        "listen": [outcome(libc.listen, listener, n) for n in (-1, -(2**31), 0, 2**31 - 1)],
        "unbound": outcome(libc.listen, unbound, 1),
        "shutdown": [outcome(libc.call, "shutdown", unbound.fileno(), how) for how in range(-2, 6)],
    }
    listener.setblocking(False)
    said["accept4"] = {bit: outcome(libc.accept4, listener, bit) for bit in (0, *BITS)}
    return said


SWEEPS = (addresses, vsock_options, timeouts, socket_options, creation, data_flags, rest)


def main() -> None:
    """Make all of these calls. A filter kills the process if it creates a socket of the kernel's own AF_VSOCK."""
    raise_guard(kill=True)
    json.dump({sweep.__name__: sweep() for sweep in SWEEPS}, sys.stdout)


if __name__ == "__main__":
    main()
