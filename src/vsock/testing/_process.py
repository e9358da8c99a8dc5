"""Starts a VMM as a child process, reads its console, and makes sure that it ends with this program.

User-Mode Linux is several processes that outlive SIGKILL of the first one. So each VMM gets a process
group of its own, and the whole group is killed. For the case that this program itself is killed, a
small shell, the watcher, reads a pipe whose other end only this program holds. When the pipe ends, the
watcher kills the group and removes the folder of its files. The VMM starts only after the watcher, so
that it is never without one.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vsock._system.processes import start_process

_WATCH = 'read -r _; kill -KILL "-$1"; [ -z "$2" ] || rm -rf "$2"'
_HELD = 'read -r _ && exec "$@" </dev/null'
_CONSOLE_LINES = 400


class VmmProcess:
    """A running VMM and the tail of its console."""

    def __init__(
        self, process: asyncio.subprocess.Process, watcher: subprocess.Popen[bytes]
    ) -> None:
        self._process = process
        self._watcher = watcher
        self._tail: deque[str] = deque(maxlen=_CONSOLE_LINES)
        self._reading: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        *,
        fds: Sequence[int],
        environment: Mapping[str, str],
        work_dir: Path | None,
        on_line: Callable[[str], None],
    ) -> "VmmProcess":
        """Start `command`; lines of its console go to `on_line`.

        The watcher removes the folder `work_dir` if this program is killed; otherwise the caller removes it.
        """
        process = await start_process(
            *("/bin/sh", "-c", _HELD, "vmm", *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            pass_fds=fds,
            start_new_session=True,
        )
        try:
            watcher = subprocess.Popen(  # noqa: ASYNC220 - returns at once, and must not await
                ["/bin/sh", "-c", _WATCH, "watcher", str(process.pid), str(work_dir or "")],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            _kill_group(process.pid)
            raise
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        started = cls(process, watcher)
        started._reading = asyncio.create_task(started._read_console(on_line))
        return started

    @property
    def pid(self) -> int:
        """The VMM's process id."""
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Its exit status, None while it runs."""
        return self._process.returncode

    def tail(self, lines: int = 25) -> str:
        """The last lines of the console."""
        return "\n".join(list(self._tail)[-lines:])

    def console(self) -> list[str]:
        """All lines of the console that are kept."""
        return list(self._tail)

    async def wait(self) -> int:
        """Wait until the VMM has ended by itself; returns its exit status."""
        return await self._process.wait()

    async def kill(self) -> None:
        """Kill the VMM and its helpers, and wait until they have ended; twice is harmless."""
        # First the watcher: after the group has ended, another group may get its number.
        if self._watcher.returncode is None:
            self._watcher.kill()
            self._watcher.wait()
            if self._watcher.stdin is not None:
                self._watcher.stdin.close()
            # If helpers are left, the group outlives its first process and keeps its number.
            _kill_group(self.pid)
        await self._process.wait()
        await self.read_last_words()
        if self._reading is not None:
            self._reading.cancel()

    async def read_last_words(self) -> None:
        """Wait briefly for the end of the console of a VMM that ends or has ended; helpers may keep it open."""
        if self._reading is not None:
            await asyncio.wait({self._reading}, timeout=2)

    async def _read_console(self, on_line: Callable[[str], None]) -> None:
        assert self._process.stdout is not None
        rest = b""
        while data := await self._process.stdout.read(65536):
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-4096:]
            for line in lines:
                text = line.decode(errors="replace").rstrip()
                self._tail.append(text)
                on_line(text)
        if rest:
            self._tail.append(rest.decode(errors="replace"))


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
