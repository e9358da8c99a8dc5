"""What the data plane notes of itself, as lines of the log `vsock.switch`."""

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final

from vsock.address import CID_ANY

if TYPE_CHECKING:
    from vsock import _native

__all__ = ["log_events"]

_log: Final = logging.getLogger("vsock.switch")
_LEVELS: Final = {
    "attached": logging.INFO,
    "detached": logging.INFO,
    "running": logging.INFO,
    "flow": logging.DEBUG,
    "flow-refused": logging.DEBUG,
}
"""What is no trouble; all else is a warning. What the data plane is told to do is logged by who tells it."""


def log_events(events: Iterable["_native.Event"], names: Mapping[int, str]) -> None:
    """Logs events; `names` are those of the guests, by CID."""
    for event in events:
        level = _LEVELS.get(event.kind, logging.WARNING)
        if event.cid == CID_ANY:
            _log.log(level, "%s: %s", event.kind, event.detail)
            continue
        guest = names.get(event.cid, "?")
        _log.log(level, "%s: guest=%s cid=%d %s", event.kind, guest, event.cid, event.detail)
