"""Processor time of the switch that serves a directory, if it runs on this machine."""

import os
import socket
import struct
from pathlib import Path

from vsock.runtime import RuntimeFiles

__all__ = ["Usage", "switch_usage"]

_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid


class Usage:
    """How much processor time a process has used since this was made."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = _cpu_seconds(pid)

    def seconds(self) -> float:
        """Seconds of processor time of all its threads."""
        return _cpu_seconds(self._pid) - self._before


def switch_usage(directory: str | os.PathLike[str]) -> Usage | None:
    """The usage of the switch in `directory`; None if its process is not visible here."""
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(str(RuntimeFiles(Path(directory)).stream))
            raw = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            return Usage(_CREDENTIALS.unpack(raw)[0])
        except OSError:
            return None


def _cpu_seconds(pid: int) -> float:
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:
            continue  # a thread that has just ended
    return total / 1e9
