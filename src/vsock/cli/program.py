"""Finds out from a program's file whether the preload library works in it, and if not, why.

The dynamic loader reads ``LD_PRELOAD``. A program without one (ELF without PT_INTERP), or with another
one than the library was built for, runs without the library. A script runs in its interpreter, so the
interpreter's file is checked.
"""

import platform
import re
import stat
import struct
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["why_not"]

_PT_INTERP: Final = 3
_MACHINES: Final = {"x86_64": 62, "aarch64": 183}  # e_machine
_LONGEST_SCRIPT_LINE: Final = 255
_DEEPEST_SCRIPT: Final = 4  # levels of interpreters, as in the kernel


def why_not(path: Path, *, keeps_privileges: bool) -> str | None:
    """Return why the preload library cannot work in the program at `path`, or None if it can.

    Args:
        path: an executable file.
        keeps_privileges: whether set-uid programs run with their privileges.

    Raises:
        OSError: the file cannot be read.
    """
    return _why_not(path, keeps_privileges, _DEEPEST_SCRIPT)


def _why_not(path: Path, keeps_privileges: bool, depth: int) -> str | None:
    with path.open("rb") as file:
        mode = path.stat().st_mode
        start = file.read(64)
        if start.startswith(b"#!") and depth > 0:
            line = (start + file.read(_LONGEST_SCRIPT_LINE))[2:].split(b"\n")[0].split()
            interpreter = Path(line[0].decode(errors="surrogateescape")) if line else None
            if interpreter is None or not interpreter.exists():
                return None  # execve fails with the right errno
            return _why_not(interpreter, keeps_privileges, depth - 1)
        if not start.startswith(b"\x7fELF"):
            return None
        if keeps_privileges and mode & (stat.S_ISUID | stat.S_ISGID):
            return "is set-uid or set-gid: for such programs LD_PRELOAD is ignored"
        return _why_not_elf(file, start)


def _why_not_elf(file: BinaryIO, start: bytes) -> str | None:
    machine = _MACHINES.get(platform.machine())
    (of_file,) = struct.unpack_from("=H", start, 18)
    if start[4] != 2 or machine not in (None, of_file):
        return "is built for another kind of processor (or 32 bits) than the preload library"
    loader = _interpreter(file, start)
    if loader is None:
        return "is statically linked, as Go programs are: nothing can be preloaded into it"
    if re.search(rb"ld-musl", loader):
        return "uses musl, and the preload library is built for glibc"
    return None


def _interpreter(file: BinaryIO, start: bytes) -> bytes | None:
    """The dynamic loader (PT_INTERP) of a 64-bit ELF file."""
    (table,) = struct.unpack_from("=Q", start, 32)
    size, count = struct.unpack_from("=HH", start, 54)
    for number in range(count):
        file.seek(table + number * size)
        entry = file.read(56)
        if len(entry) < 56:
            return None
        kind, _, offset, _, _, length = struct.unpack_from("=IIQQQQ", entry)
        if kind == _PT_INTERP:
            file.seek(offset)
            return file.read(min(length, 4096))
    return None
