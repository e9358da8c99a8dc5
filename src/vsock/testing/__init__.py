"""For tests: real Linux guests, and machines in memory.

`MemoryTransport` is a network in this process, without a switch, for tests of programs that only use sockets. For all other
tests boot a guest against a switch and run commands in it.

    with vsock.Switch({"alpha": 3}) as switch, testing.QemuGuest(switch, "alpha") as guest:
        print(guest.run("uname -r").stdout)

In pytest, the plugin `vsock.testing.plugin` has this as fixtures. The guests are Debian kernels with
busybox, Python and a small agent; `make guests` makes them. `vsock.testing.aio` is the same for
asyncio. Guests are for tests and experiments; a switch does not need this package.
"""

from vsock.testing.agent import Result
from vsock.testing.blocking import GuestProcess, LinuxGuest, QemuGuest, UmlGuest, boot, start_all
from vsock.testing.errors import (
    CommandFailed,
    GuestError,
    GuestGone,
    GuestTimeout,
    GuestUnavailable,
)
from vsock.testing.images import Image, find_image, find_images
from vsock.testing.qmp import QmpError
from vsock.transports.memory import MemoryTransport

__all__ = [
    "CommandFailed",
    "GuestError",
    "GuestGone",
    "GuestProcess",
    "GuestTimeout",
    "GuestUnavailable",
    "Image",
    "LinuxGuest",
    "MemoryTransport",
    "QemuGuest",
    "QmpError",
    "Result",
    "UmlGuest",
    "boot",
    "find_image",
    "find_images",
    "start_all",
]
