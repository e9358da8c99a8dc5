"""Writes events of the data plane to the log `vsock.switch`."""

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
    "ended": logging.CRITICAL,
}
"""Levels of expected events; all others are warnings. `Switch` itself logs the changes that it makes."""


def log_events(events: Iterable["_native.Event"], names: Mapping[int, str]) -> None:
    """Logs events; `names` has the names of guests by CID."""
    for event in events:
        level = _LEVELS.get(event.kind, logging.WARNING)
        if event.cid == CID_ANY:
            _log.log(level, "%s: %s", event.kind, event.detail)
            continue
        guest = names.get(event.cid, "?")
        _log.log(level, "%s: guest=%s cid=%d %s", event.kind, guest, event.cid, event.detail)
