"""A seccomp filter that keeps a program and its children from the kernel's own AF_VSOCK.

The preload library is not in every process: static programs, set-uid programs and programs with an
empty environment bypass it. Under the filter their socket(AF_VSOCK) fails with EAFNOSUPPORT, as on a
kernel without AF_VSOCK, instead of connecting to machines outside the switch.

io_uring_setup fails with EPERM, because io_uring bypasses both the library and the filter. Programs
handle that as on machines where io_uring is disabled, and use ordinary calls.
"""

import ctypes
import errno
import os
import platform
import struct
from typing import Final, NamedTuple

import click

__all__ = ["GuardError", "raise_guard", "raise_guard_or_refuse"]

_AF_VSOCK: Final = 40
_SOCKETCALL_SOCKET: Final = 1  # SYS_SOCKET of linux/net.h
_IO_URING_SETUP: Final = 425  # the same number everywhere
_X32: Final = 0x40000000

_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_ALLOW: Final = 0x7FFF0000
_ERRNO: Final = 0x00050000
_KILL_PROCESS: Final = 0x80000000

# Offsets in struct seccomp_data; on these machines the low half of a 64-bit argument is first.
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16

_LOAD, _JUMP_IF_EQUAL, _RETURN, _AND = 0x20, 0x15, 0x06, 0x54


class GuardError(OSError):
    """The filter cannot be installed on this machine."""


class _Abi(NamedTuple):
    """One system call ABI: AUDIT_ARCH_*, and the numbers of `socket` and `socketcall`."""

    architecture: int
    socket: int
    socketcall: int | None = None


_ABIS: Final = {
    "x86_64": (_Abi(0xC000003E, 41), _Abi(0x40000003, 359, 102)),
    "aarch64": (_Abi(0xC00000B7, 198), _Abi(0x40000028, 281)),
}
"""For each machine its own ABI, and that of 32-bit programs."""


def raise_guard(*, kill: bool = False) -> None:
    """Forbid AF_VSOCK to this process and all its children. This cannot be undone.

    Args:
        kill: kill a process that calls socket(AF_VSOCK), instead of returning EAFNOSUPPORT. For tests.

    Raises:
        GuardError: there is no filter for this kind of machine, or prctl failed.
    """
    abis = _ABIS.get(platform.machine())
    if abis is None:
        raise GuardError(errno.ENOSYS, f"no guard for machines of type {platform.machine()}")
    refusal = _KILL_PROCESS if kill else _ERRNO | errno.EAFNOSUPPORT
    program = b"".join(_block(abi, refusal) for abi in abis) + _line(_RETURN, _ALLOW)
    libc = ctypes.CDLL(None, use_errno=True)
    lines = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(lines))
    # Without no_new_privs a filter needs root. Set-uid programs then run without their privileges,
    # and so the dynamic loader accepts the preload library.
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, header, 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            code = ctypes.get_errno()
            raise GuardError(code, f"cannot forbid AF_VSOCK: {os.strerror(code)}")


def raise_guard_or_refuse() -> None:
    """As `raise_guard`, for a command; the ClickException names --no-guard."""
    try:
        raise_guard()
    except GuardError as error:
        raise click.ClickException(
            f"{error.strerror}; --no-guard runs without the guard"
        ) from error


def _block(abi: _Abi, refusal: int) -> bytes:
    """The part of the filter for one ABI; calls of another ABI skip it."""
    rules = _rule(abi.socket, _AF_VSOCK, refusal) + _rule(
        _IO_URING_SETUP, None, _ERRNO | errno.EPERM
    )
    if abi.socketcall is not None:
        # Its arguments are in memory, which a filter cannot read; no current libc uses it.
        rules += _rule(abi.socketcall, _SOCKETCALL_SOCKET, refusal)
    body = _line(_LOAD, _NUMBER) + _line(_AND, ~_X32 & 0xFFFFFFFF) + rules + _line(_RETURN, _ALLOW)
    return (
        _line(_LOAD, _ARCHITECTURE)
        + _line(_JUMP_IF_EQUAL, abi.architecture, otherwise=len(body) // 8)
        + body
    )


def _rule(number: int, first_argument: int | None, verdict: int) -> bytes:
    """Return `verdict` for one system call if its first argument is as given; else go on."""
    if first_argument is None:
        return _line(_JUMP_IF_EQUAL, number, otherwise=1) + _line(_RETURN, verdict)
    return (
        _line(_JUMP_IF_EQUAL, number, otherwise=4)
        + _line(_LOAD, _FIRST_ARGUMENT)
        + _line(_JUMP_IF_EQUAL, first_argument, otherwise=1)
        + _line(_RETURN, verdict)
        + _line(_RETURN, _ALLOW)
    )


def _line(code: int, value: int, *, otherwise: int = 0) -> bytes:
    return struct.pack("=HBBI", code, 0, otherwise, value)
