"""System calls that CPython does not offer for AF_VSOCK, through the C library.

The functions are looked up in the process, so that under ``vsock run`` they are those of the preload
library. Errors are ``OSError``s. CPython's own setsockopt passes only 64-bit numbers to AF_VSOCK
sockets, so even SO_LINGER needs this module.
"""

import ctypes
import os
import socket
import struct
from typing import Any, Final

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_CAPABILITY_VERSION: Final = 0x20080522
_CAP_NET_BIND_SERVICE: Final = 10


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library that returns -1 and sets errno if it fails."""
    result: int = getattr(_LIBC, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def sockaddr(
    cid: int,
    port: int,
    *,
    flags: int = 0,
    family: int = 40,
    reserved: int = 0,
    zero: bytes = b"\0\0\0",
) -> bytes:
    """The 16 bytes of a struct sockaddr_vm."""
    return struct.pack("=HHIIB3s", family, reserved, port, cid, flags, zero)


def bind(sock: socket.socket, address: bytes) -> None:
    """Bind to an address of any length."""
    call("bind", sock.fileno(), address, len(address))


def connect(sock: socket.socket, address: bytes) -> None:
    """Connect to an address of any length; not repeated after a signal."""
    call("connect", sock.fileno(), address, len(address))


def listen(sock: socket.socket, backlog: int) -> None:
    """Listen with any backlog."""
    call("listen", sock.fileno(), backlog)


def name_of(function: str, sock: socket.socket, room: int) -> tuple[bytes, int]:
    """Call getsockname(2), getpeername(2) or accept(2) with `room` bytes; returns the bytes and the length."""
    buffer = ctypes.create_string_buffer(b"\xee" * 64, 64)
    length = ctypes.c_int(room)
    got = call(function, sock.fileno(), buffer, ctypes.byref(length))
    if function.startswith("accept"):
        os.close(got)
    return buffer.raw[: max(room, 0)], length.value


def accept4(sock: socket.socket, flags: int) -> int:
    """Accept without an address buffer; returns the new descriptor."""
    return call("accept4", sock.fileno(), None, None, flags)


def set_option(sock: socket.socket, level: int, option: int, value: bytes | None, n: int) -> None:
    """Call setsockopt(2) with any length."""
    call("setsockopt", sock.fileno(), level, option, value, n)


def get_option(sock: socket.socket, level: int, option: int, room: int) -> bytes:
    """Call getsockopt(2) with a buffer of this size; returns the bytes written."""
    buffer = ctypes.create_string_buffer(64)
    length = ctypes.c_int(room)
    call("getsockopt", sock.fileno(), level, option, buffer, ctypes.byref(length))
    return buffer.raw[: length.value]


def bind_length(sock: socket.socket, address: bytes, length: int) -> None:
    """Bind to an address with another length than its own."""
    call("bind", sock.fileno(), address + bytes(512), length)


def connect_length(sock: socket.socket, address: bytes, length: int) -> None:
    """Connect to an address with another length than its own."""
    call("connect", sock.fileno(), address + bytes(512), length)


def send_to(sock: socket.socket, data: bytes, address: bytes, length: int) -> int:
    """Call sendto(2) with any length of the address."""
    return call("sendto", sock.fileno(), data, len(data), 0, address + bytes(512), length)


def receive_into_nowhere(sock: socket.socket, length: int, flags: int = 0) -> int:
    """Call recv(2) with an invalid buffer."""
    return call("recv", sock.fileno(), None, length, flags)


def receive_from(sock: socket.socket, length: int) -> tuple[bytes, int]:
    """Call recvfrom(2); returns the data, and the length of the source address."""
    data = ctypes.create_string_buffer(length)
    address = ctypes.create_string_buffer(64)
    room = ctypes.c_int(64)
    got = call("recvfrom", sock.fileno(), data, length, 0, address, ctypes.byref(room))
    return data.raw[:got], room.value


def drop_net_bind_service() -> None:
    """Drop CAP_NET_BIND_SERVICE of this process; only for a process that exits soon."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()
    call("capget", header, sets)
    for number in range(3):  # effective, permitted, inheritable; the low 32 capabilities
        sets[number] &= ~(1 << _CAP_NET_BIND_SERVICE)
    call("capset", header, sets)
