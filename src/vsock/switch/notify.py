"""Tells systemd how the daemon is: sd_notify(3), without its library.

Does nothing when `$NOTIFY_SOCKET` is not set, that is, outside of a `Type=notify` unit.
"""

import logging
import os
import socket
from typing import Final

__all__ = ["notify", "watchdog_interval"]

_log: Final = logging.getLogger("vsock.switch")


def notify(*assignments: str) -> bool:
    """Sends assignments such as "READY=1"; False when nobody asked for them, or listens any more.

    A manager that is not there is logged and no more: the switch's work does not depend on it.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # the abstract name space starts with a NUL
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            _log.warning("cannot notify the service manager: %s: %s", address, error.strerror)
            return False
    return True


def watchdog_interval() -> float | None:
    """Seconds between WATCHDOG=1 messages (half of what systemd waits for), if it wants any."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not microseconds.isdigit() or not int(microseconds) or not for_us:
        return None
    return int(microseconds) / 2_000_000
