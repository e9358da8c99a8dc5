"""Completion in shells: the guests of the running switch.

`docs/reference/command-line.md` says how to enable it.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from vsock.errors import VsockError

if TYPE_CHECKING:
    import click

__all__ = ["addresses", "guests", "parties"]


def guests(context: "click.Context", _parameter: Any, begun: str) -> list[str]:
    """Names of guests."""
    return [name for name in _names(context) if name.startswith(begun)]


def parties(context: "click.Context", _parameter: Any, begun: str) -> list[str]:
    """Names of guests, and `host`."""
    return [name for name in ("host", *_names(context)) if name.startswith(begun)]


def addresses(context: "click.Context", _parameter: Any, begun: str) -> list[str]:
    """Beginnings of addresses, up to the port."""
    known = (f"{name}:" for name in ("host", "local", *_names(context)))
    return [start for start in known if start.startswith(begun)]


def _names(context: "click.Context") -> Iterator[str]:
    from vsock.control.client import ControlClient

    try:
        found = ControlClient(context.params.get("runtime_dir"), timeout=1).guests()
    except VsockError:
        return  # no switch: there are no names, and a completion cannot print an error
    for guest in found:
        yield guest.name
