"""The options of a guest as the data plane has them: it knows users, groups and modes by their numbers only."""

import grp
import pwd
from collections.abc import Mapping
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
        "socket_user": _uid(guest.socket_user),
        "socket_group": _gid(guest.socket_group),
        "socket_mode": int(guest.socket_mode, 8),
    }


def from_native(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a guest with names, as ls(1) shows them."""
    return {
        **options,
        "socket_user": _user_name(options["socket_user"]),
        "socket_group": _group_name(options["socket_group"]),
        "socket_mode": f"{options['socket_mode']:04o}",
    }


def _uid(user: str | None) -> int | None:
    if user is None or user.isdecimal():
        return int(user) if user else None
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError:
        raise UsageError(f"socket_user: there is no user {user!r} on this machine") from None


def _gid(group: str | None) -> int | None:
    if group is None or group.isdecimal():
        return int(group) if group else None
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise UsageError(f"socket_group: there is no group {group!r} on this machine") from None


def _user_name(uid: int | None) -> str | None:
    if uid is None:
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int | None) -> str | None:
    if gid is None:
        return None
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
