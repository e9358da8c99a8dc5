"""Signals for a command and what it has started, where the guest's SSH server signals the command alone, as dropbear.

OpenSSH sends a signal to the command's process group. dropbear sends it to one process, so that of `sh -c 'make; ls'` the
shell would get it and `make` go on. There each command begins a group of its own (setsid), with a mark in its
environment. A signal is then the work of another command in the same connection: it finds the group's first process by
that mark among the children of its own parent, which is the server's process for this connection.
"""

import asyncio
import re
import secrets
import shlex
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final

from vsock.errors import missing_extra

try:
    import asyncssh
except ModuleNotFoundError as _error:
    raise missing_extra(_error, "a session with a guest", "ssh") from None

__all__ = ["ProcessGroups"]

_SERVERS: Final = re.compile(r"SSH-2\.0-dropbear")
_MARK: Final = "VSOCK_COMMAND"
_LONGEST: Final = 8000
"""Bytes of a line; dropbear takes 9000 at most."""

_SECONDS: Final = 20.0
"""How long the guest may take to send a signal; an emulated one computes for seconds."""

_SIGNAL: Final = """\
for at in /proc/[0-9]*; do
  grep -q "^PPid:[[:space:]]*$PPID\\$" "$at/status" || continue
  tr '\\0' '\\n' <"$at/environ" | grep -qx {mark} || continue
  kill -{name} -"${{at#/proc/}}"; exit
done 2>/dev/null
exit 1
"""


class ProcessGroups:
    """The groups of the commands of a connection."""

    def __init__(self, connection: asyncssh.SSHClientConnection) -> None:
        self._connection = connection
        version = str(connection.get_extra_info("server_version", ""))
        self._is_needed = _SERVERS.match(version) is not None
        self._sending: set[asyncio.Task[None]] = set()

    def begin(self, line: str) -> tuple[str, str | None]:
        """Return the line that starts a group and in it this one, and the group's mark; the line itself where that is not needed."""
        if not self._is_needed:
            return line, None
        mark = f"{_MARK}={secrets.token_hex(8)}"
        # Without setsid the group is not found, and the command is signalled alone.
        begun = (
            "command -v setsid >/dev/null && setsid=setsid || setsid=\n"
            f'exec env {mark} $setsid "${{SHELL:-sh}}" -c {shlex.quote(line)}'
        )
        if len(begun.encode(errors="surrogateescape")) > _LONGEST:
            return line, None
        return begun, mark

    def watch(self, process: asyncssh.SSHClientProcess[Any], mark: str) -> None:
        """Have the signals of this process, `terminate` and `kill` too, reach its group."""
        channel = process.channel
        alone: Callable[[str], None] = channel.send_signal
        # asyncssh has no hook for that.
        channel.send_signal = partial(self._send, mark, alone)  # type: ignore[method-assign]

    async def finish(self) -> None:
        """Wait until signals that are on their way have been sent."""
        await asyncio.gather(*self._sending, return_exceptions=True)

    def _send(self, mark: str, alone: Callable[[str], None], name: str) -> None:
        sending = asyncio.get_running_loop().create_task(self._order(mark, alone, name))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    async def _order(self, mark: str, alone: Callable[[str], None], name: str) -> None:
        with suppress(
            asyncssh.Error, OSError, ValueError
        ):  # the connection or the command has ended
            if name.isalnum():
                async with asyncio.timeout(_SECONDS):
                    done = await self._connection.run(_SIGNAL.format(mark=mark, name=name))
                if done.exit_status == 0:
                    return
            alone(name)
