"""Runs the services of a switch as processes of their own, and starts again those that end.

A process each, because they handle what guests send, and Python code of theirs must not slow the switch or share its memory.
What they print goes to the switch's log.
"""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from vsock._system.processes import start_process
from vsock.control.allowance import Allowance
from vsock.control.services import Service, ServiceRecord

__all__ = ["Services"]

_log: Final = logging.getLogger("vsock.switch")

_MISUSED: Final = 2
"""The exit code for wrong usage."""

_FIRST_PAUSE: Final = 0.5
_LONGEST_PAUSE: Final = 30.0
_STEADY_SECONDS: Final = 60.0
"""A service that ran for so long is started again after the first pause."""
_ENDING_SECONDS: Final = 5.0
"""How long a service may take to end after SIGTERM."""
_PREFIX: Final = "vsock: "


class Services:
    """The services that run now, by name; they end with the block.

    Args:
        runtime_dir: of the switch that they use.
    """

    def __init__(self, runtime_dir: Path) -> None:
        self._runtime_dir = runtime_dir
        self._running: dict[str, _Supervised] = {}

    def records(self) -> list[ServiceRecord]:
        """What runs, in the order of the config file."""
        return [one.record() for one in self._running.values()]

    async def become(self, wanted: Sequence[Service]) -> None:
        """End what is wanted no more or otherwise, and start what is new or has failed; what stays reopens its log."""
        before = self._running
        kept = {
            one.name: before[one.name]
            for one in wanted
            if one.name in before and before[one.name].can_stay(one)
        }
        ended = [one for name, one in before.items() if name not in kept]
        await asyncio.gather(*(one.end() for one in ended))
        for one in kept.values():
            one.read_again()
        self._running = {
            one.name: kept.get(one.name) or _Supervised(one, self._runtime_dir) for one in wanted
        }

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.become(())


class _Supervised:
    """One service, from its start until `end`."""

    def __init__(self, service: Service, runtime_dir: Path) -> None:
        self.service = service
        self._command = service.command(runtime_dir)
        self._process: asyncio.subprocess.Process | None = None
        self._state = "waiting"
        self._restarts = 0
        self._reason = ""
        self._last_error = ""
        self._allowance = Allowance()
        self._task = asyncio.create_task(self._supervise())

    def record(self) -> ServiceRecord:
        """How it is."""
        return ServiceRecord(
            name=self.service.name,
            kind=self.service.kind,
            summary=self.service.summary,
            state=self._state,
            pid=self._process.pid if self._process else None,
            restarts=self._restarts,
            reason=self._reason,
        )

    def can_stay(self, wanted: Service) -> bool:
        """Whether it is what is wanted. One that has failed may work now: a file that it reads may have changed."""
        return self.service == wanted and self._state != "failed"

    def read_again(self) -> None:
        """Have it open its log anew, if it has one."""
        if self.service.reads_again and self._process:
            with suppress(ProcessLookupError):  # it has just ended
                self._process.send_signal(signal.SIGHUP)

    async def end(self) -> None:
        """End it, and wait until it has."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _supervise(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while True:
            began = loop.time()
            self._last_error = ""
            try:
                code = await self._run_once()
            except OSError as error:
                code, self._last_error = None, str(error)
            self._reason = self._last_error
            if code == _MISUSED:
                self._state = "failed"
                self._say(logging.ERROR, f"cannot run, until its entry is changed: {self._reason}")
                return
            if loop.time() - began > _STEADY_SECONDS:
                pause = _FIRST_PAUSE
            self._state = "waiting"
            reason = f": {self._reason}" if self._reason else ""
            what = "could not be started" if code is None else f"ended ({code})"
            self._say(logging.WARNING, f"{what}, starts again in {pause:g} s{reason}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            self._restarts += 1

    async def _run_once(self) -> int:
        """Start the process, and pass what it prints to the log; returns its exit code.

        Raises:
            OSError: it cannot be started, for instance because there are too many processes.
        """
        pipe = asyncio.subprocess.PIPE
        hangup = {signal.SIGHUP}
        # Its process starts with SIGHUP blocked, and takes it when it can handle it: before that it would die of it.
        signal.pthread_sigmask(signal.SIG_BLOCK, hangup)
        try:
            # -P: no modules of the directory that the switch was started in.
            self._process = await start_process(
                *(sys.executable, "-P", "-m", "vsock.cli.supervised", str(os.getpid())),
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
                start_new_session=True,  # Ctrl-C is for the switch, which ends them
            )
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, hangup)
        self._state = "running"
        process = self._process
        try:
            return await self._see_through(process)
        except asyncio.CancelledError:
            await self._terminate(process)
            raise
        finally:
            self._process = None

    async def _terminate(self, process: asyncio.subprocess.Process) -> None:
        """Have it end, in time; what it prints meanwhile is logged too."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):  # it has ended by itself
                process.send_signal(number)
            with suppress(TimeoutError):
                async with asyncio.timeout(_ENDING_SECONDS):
                    await self._see_through(process)
                    return

    async def _see_through(self, process: asyncio.subprocess.Process) -> int:
        assert process.stdout
        assert process.stderr
        await asyncio.gather(self._tell(process.stdout), self._tell(process.stderr))
        return await process.wait()

    async def _tell(self, stream: asyncio.StreamReader) -> None:
        while True:
            try:
                line = await stream.readline()
            except ValueError:
                self._last_error = "it printed a line that is too long"
                self._say(logging.WARNING, self._last_error)
                if self._process and self._process.returncode is None:
                    self._process.kill()
                continue
            if not line:
                return
            text = line.decode(errors="backslashreplace").rstrip()
            is_error = text.startswith(_PREFIX)
            text = text.removeprefix(_PREFIX)
            if is_error:
                self._last_error = text
            left_out = self._allowance.take(asyncio.get_running_loop().time())
            if left_out:
                self._say(logging.WARNING, f"{left_out} lines are left out here")
            if left_out is not None:
                self._say(logging.WARNING if is_error else logging.INFO, text)

    def _say(self, level: int, text: str) -> None:
        _log.log(level, "%s %s: %s", self.service.kind, self.service.name, text)
