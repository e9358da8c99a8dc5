"""Runs a command of `vsock` that ends with the process that started it: ``python -m vsock.cli.supervised PID COMMAND…``.

A switch starts its services so. If it is killed, they get SIGTERM, and do not stay behind without anybody who knows them.
"""

import ctypes
import os
import signal
import sys
from typing import Final

from vsock.cli.entry import main

_PR_SET_PDEATHSIG: Final = 1


def _end_with(parent: int) -> bool:
    """Have the kernel send SIGTERM when the parent ends; returns whether it is there still."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    return os.getppid() == parent


if __name__ == "__main__":
    _parent = int(sys.argv.pop(1))
    sys.exit(main() if _end_with(_parent) else 1)
