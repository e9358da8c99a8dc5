"""Sends the daemon's state to systemd, as sd_notify(3) does, without its library.

Does nothing if `$NOTIFY_SOCKET` is not set, that is, outside a `Type=notify` unit.
"""

import logging
import os
import socket
from typing import Final

__all__ = ["notify", "watchdog_interval"]

_log: Final = logging.getLogger("vsock.switch")


def notify(*assignments: str) -> bool:
    """Sends assignments such as "READY=1". Returns False if there is no service manager or it does not receive.

    A manager that does not receive is only logged, because the switch does not depend on it.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return False
    if address.startswith("@"):  # an abstract address starts with NUL
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.sendto("\n".join(assignments).encode(), address)
        except OSError as error:
            _log.warning("cannot notify the service manager: %s: %s", address, error.strerror)
            return False
    return True


def watchdog_interval() -> float | None:
    """Seconds between WATCHDOG=1 messages, half of systemd's timeout; None if systemd expects none."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    for_us = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not microseconds.isdigit() or not int(microseconds) or not for_us:
        return None
    return int(microseconds) / 2_000_000
