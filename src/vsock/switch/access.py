"""The options of a guest as the data plane has them: it knows users, groups and modes by their numbers only."""

import grp
import pwd
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from vsock.control.model import GuestSpec
from vsock.errors import UsageError

__all__ = ["from_native", "to_native"]


def to_native(guest: GuestSpec) -> dict[str, Any]:
    """Returns the fields of a guest with numbers.

    Raises:
        UsageError: the system does not know the user or the group.
    """
    return {
        **asdict(guest),
        "socket_user": _number("user", guest.socket_user, lambda name: pwd.getpwnam(name).pw_uid),
        "socket_group": _number(
            "group", guest.socket_group, lambda name: grp.getgrnam(name).gr_gid
        ),
        "socket_mode": int(guest.socket_mode, 8),
    }


def from_native(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a guest with names, as ls(1) shows them."""
    return {
        **options,
        "socket_user": _name(options["socket_user"], lambda uid: pwd.getpwuid(uid).pw_name),
        "socket_group": _name(options["socket_group"], lambda gid: grp.getgrgid(gid).gr_name),
        "socket_mode": f"{options['socket_mode']:04o}",
    }


def _number(kind: str, account: str | None, look_up: Callable[[str], int]) -> int | None:
    if account is None or account.isdecimal():
        return int(account) if account else None
    try:
        return look_up(account)
    except KeyError:
        reason = f"socket_{kind}: there is no {kind} {account!r} on this machine"
        raise UsageError(reason) from None


def _name(number: int | None, look_up: Callable[[int], str]) -> str | None:
    if number is None:
        return None
    try:
        return look_up(number)
    except KeyError:
        return str(number)
