"""Commands for a guest, as the one line that its shell reads."""

import shlex
import signal
from collections.abc import Mapping, Sequence
from typing import Final

from vsock.errors import UsageError

__all__ = ["SIGNALS", "START_SECONDS", "Command", "command_line"]

START_SECONDS: Final = 60.0
"""How long sshd may take to start a command: that of an emulated guest computes for seconds."""

SIGNALS: Final = {
    signal.SIGINT: "INT",
    signal.SIGTERM: "TERM",
    signal.SIGHUP: "HUP",
    signal.SIGQUIT: "QUIT",
}
"""Signals of this process that are the command's, with their names in SSH (RFC 4254, section 6.10)."""

Command = str | Sequence[str]
"""A line for the shell of the guest's user, or a program and its arguments, which reach it as they are."""


def command_line(
    command: Command, *, env: Mapping[str, str] | None = None, cwd: str | None = None
) -> str:
    """The line for the shell of the guest's user: arguments quoted, in an environment and a directory.

    Raises:
        UsageError: a variable's name is none.
    """
    line = command if isinstance(command, str) else f"exec {shlex.join(command)}"
    # Lines of their own, so that what a text does with && and ; concerns the text alone.
    parts = []
    if cwd is not None:
        parts.append(f"cd -- {shlex.quote(cwd)} || exit")
    for name, value in (env or {}).items():
        if not name.isidentifier() or not name.isascii():
            raise UsageError(f"{name!r} is no name of an environment variable")
        parts.append(f"export {name}={shlex.quote(value)}")
    return "\n".join([*parts, line])
