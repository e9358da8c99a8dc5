"""Forwards over a session with a guest, written as ssh(1) has them after -L, -R and -D.

============================  ================================================================
``[BIND:]PORT:HOST:PORT``     for -L and -R: where to listen, and where connections lead
``[BIND:]PORT:PATH``          to a Unix socket
``PATH:HOST:PORT``            from a Unix socket
``PATH:PATH``                 both
``[BIND:]PORT``               for -D: where to listen as a SOCKS proxy
============================  ================================================================

Without BIND it is localhost; ``*`` or nothing before the colon are all addresses. IPv6 addresses are in brackets. Port 0 is one
that is free. A PATH has a slash. -L and -D listen here and connect from the guest; -R listens in the guest and connects from here.
"""

import errno
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import asyncssh

from vsock._system.text import printable
from vsock.errors import SessionError, UsageError
from vsock.ssh.session import GuestSession, translated

__all__ = [
    "Forward",
    "Kind",
    "Port",
    "Side",
    "open_forward",
    "parse_forward",
    "report_failures",
    "text_of",
]

Kind = Literal["L", "R", "D"]

_LAST_PORT: Final = 65535
_LONGEST: Final = 200
_FIELD: Final = re.compile(r"\[[^\[\]]*\]|[^:\[\]]*")
_FORMS: Final = {
    "L": "[BIND:]PORT:HOST:PORT; a Unix socket's path may stand for a port",
    "R": "[BIND:]PORT:HOST:PORT; a Unix socket's path may stand for a port",
    "D": "[BIND:]PORT",
}


class Port(NamedTuple):
    """A TCP port of a host; an empty host means all addresses, to listen."""

    host: str
    port: int


Side = Port | str
"""A TCP port, or the path of a Unix socket."""


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward.

    Attributes:
        kind: the letter of ssh's option.
        listen: where connections are accepted.
        target: where they lead; None where SOCKS says it.
    """

    kind: Kind
    listen: Side
    target: Side | None


def parse_forward(kind: Kind, text: str) -> Forward:
    """Read one of the forms of the module's table.

    Raises:
        UsageError: it has none of them.
    """
    wrong = UsageError(f"-{kind} {text!r}: write {_FORMS[kind]}")
    fields = _fields(text)
    if not fields:
        raise wrong
    listen, rest = _side(fields, is_bound=True)
    if kind == "D":
        if rest or not isinstance(listen, Port):
            raise wrong
        return Forward(kind, listen, None)
    if not rest or listen is None:
        raise wrong
    target, rest = _side(rest, is_bound=False)
    if rest or target is None or (isinstance(target, Port) and not (target.host and target.port)):
        raise wrong
    return Forward(kind, listen, target)


def _fields(text: str) -> list[str]:
    """Split at colons that are not within brackets; nothing if the brackets do not match."""
    found, at = [], 0
    while match := _FIELD.match(text, at):
        found.append(match[0])
        at = match.end()
        if at == len(text):
            return found
        if text[at] != ":":
            return []
        at += 1
    return []


def _side(fields: list[str], *, is_bound: bool) -> tuple[Side | None, list[str]]:
    """Read a side from the first fields; returns it, None if there is none, and the other fields."""
    first, *rest = fields
    if first in ("[]", "[*]"):  # what is in brackets is one address
        return None, rest
    if "/" in first:
        return first, rest
    if is_bound and first and (port := _port(first)) is not None:
        return Port("localhost", port), rest
    if not rest or (port := _port(rest[0])) is None:
        return None, rest
    host = first[1:-1] if first.startswith("[") else first
    return Port("" if is_bound and host == "*" else host, port), rest[1:]


def _port(text: str) -> int | None:
    is_number = text.isascii() and text.isdigit() and len(text) <= 5
    return int(text) if is_number and int(text) <= _LAST_PORT else None


async def open_forward(session: GuestSession, forward: Forward) -> asyncssh.SSHListener:
    """Begin a forward, which lasts as long as the session, or until the listener is closed.

    Raises:
        OSError: this host cannot listen there.
        SessionError: the guest's sshd does not.
    """
    if forward.kind == "L" and isinstance(forward.listen, str):
        _check_free(forward.listen)
    with translated(session.name):
        try:
            return await _begin(session.connection, forward)
        except asyncssh.ChannelListenError:
            if isinstance(forward.listen, str):
                perhaps = "is it taken, or does its sshd forward no Unix sockets, as dropbear?"
            else:
                perhaps = "is it taken, or is forwarding not allowed there?"
            raise SessionError(
                errno.EADDRINUSE,
                f"sshd of {session.name} does not listen at {text_of(forward.listen)}: {perhaps}",
            ) from None


def report_failures(session: GuestSession, tell: Callable[[str], None]) -> None:
    """Have `tell` called with each connection of this session's forwards that cannot be opened: its target, and why.

    asyncssh has no hook for that: it closes the connection that it has accepted. So the methods by which its forwards
    open connections are wrapped.
    """
    connection, there = session.connection, f" of {session.name}"
    for name, skipped, where in (
        ("create_connection", 1, there),  # what makes the session comes first
        ("create_unix_connection", 1, there),
        ("forward_connection", 0, ""),
        ("forward_unix_connection", 0, ""),
    ):
        setattr(connection, name, _told(getattr(connection, name), skipped, where, tell))


def _told(
    connect: Callable[..., Awaitable[Any]], skipped: int, where: str, tell: Callable[[str], None]
) -> Callable[..., Awaitable[Any]]:
    async def connect_or_tell(*words: Any, **named: Any) -> Any:
        try:
            return await connect(*words, **named)
        except asyncssh.ChannelOpenError as error:
            first, *rest = words[skipped:]
            target = text_of(Port(first, rest[0]) if rest else first)
            reason = error.reason or f"refused with code {error.code}"
            if error.code == asyncssh.OPEN_UNKNOWN_CHANNEL_TYPE and not rest:
                reason = "its sshd forwards nothing to Unix sockets, as dropbear"
            tell(f"{printable(target, _LONGEST)}{where}: {printable(reason, _LONGEST)}")
            raise

    return connect_or_tell


def _check_free(path: str) -> None:
    """Return if nothing is there: asyncio would remove the socket of a program that listens."""
    if os.path.lexists(path):
        raise OSError(errno.EADDRINUSE, f"{path} exists: remove it if no program listens there")


async def _begin(
    connection: asyncssh.SSHClientConnection, forward: Forward
) -> asyncssh.SSHListener:
    match forward:
        case Forward("D", Port(host, port)):
            return await connection.forward_socks(host, port)
        case Forward("L", Port(host, port), Port(to_host, to_port)):
            return await connection.forward_local_port(host, port, to_host, to_port)
        case Forward("L", Port(host, port), str(path)):
            return await connection.forward_local_port_to_path(host, port, path)
        case Forward("L", str(path), Port(to_host, to_port)):
            return await connection.forward_local_path_to_port(path, to_host, to_port)
        case Forward("L", str(path), str(to_path)):
            return await connection.forward_local_path(path, to_path)
        case Forward("R", Port(host, port), Port(to_host, to_port)):
            return await connection.forward_remote_port(host, port, to_host, to_port)
        case Forward("R", Port(host, port), str(path)):
            return await connection.forward_remote_port_to_path(host, port, path)
        case Forward("R", str(path), Port(to_host, to_port)):
            return await connection.forward_remote_path_to_port(path, to_host, to_port)
        case Forward("R", str(path), str(to_path)):
            return await connection.forward_remote_path(path, to_path)
    raise UsageError(f"no such forward: {forward}")


def text_of(side: Side) -> str:
    """A side as a user writes it."""
    if isinstance(side, str):
        return side
    host = f"[{side.host}]" if ":" in side.host else side.host or "*"
    return f"{host}:{side.port}"
