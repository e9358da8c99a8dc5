"""Runs copies for `vsock cp`: opens the sessions, connects the standard streams, and shows how far a long copy is."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from vsock.ssh.attached import in_thread
from vsock.ssh.copying import Copier
from vsock.ssh.copying.guest import GuestSide
from vsock.ssh.copying.host import HostSide, has_large_file

if TYPE_CHECKING:
    from vsock.cli.orders import Place as Where
    from vsock.ssh.copying import CopyResult, Place, Progress
    from vsock.ssh.copying.sides import Side

__all__ = ["run"]

_SHOWN_AFTER_SECONDS: Final = 1.0
_PIECE: Final = 1 << 16
_PATH_WIDTH: Final = 24


def run(
    where: "Where",
    sources: "Sequence[Place]",
    destination: "Place",
    *,
    resume: bool,
    verify: bool,
    encrypted: bool,
    is_shown: bool,
) -> "CopyResult":
    """Copy; `is_shown` says whether a terminal shows the progress."""
    with _shown(is_wanted=is_shown) as progress:
        copier = Copier(resume=resume, verify=verify, progress=progress)
        return asyncio.run(_copy(copier, where, sources, destination, encrypted=encrypted))


async def _copy(
    copier: Copier,
    where: "Where",
    sources: "Sequence[Place]",
    destination: "Place",
    *,
    encrypted: bool,
) -> "CopyResult":
    host = HostSide()
    async with AsyncExitStack() as stack:
        guests: dict[str, GuestSide] = {}
        is_large = has_large_file(one.path for one in sources if not (one.guest or one.is_stream))
        for name in {one.guest for one in (*sources, destination) if one.guest}:
            session = await stack.enter_async_context(where.session(name))
            guests[name] = await GuestSide.open(session, encrypted=encrypted, streams=is_large)
            stack.push_async_callback(guests[name].close)

        def side(place: "Place") -> "Side":
            return guests[place.guest] if place.guest else host

        if sources[0].is_stream:
            async with aclosing(_standard_input()) as pieces:
                await copier.from_stream(pieces, side(destination), destination.path)
        elif destination.is_stream:
            write = partial(_write_all, 1)
            await copier.to_stream(side(sources[0]), sources[0].path, write)
        else:
            named = [(side(one), one.path) for one in sources]
            await copier.copy(named, side(destination), destination.path)
        return copier.result(*guests.values())


async def _standard_input() -> AsyncGenerator[bytes, None]:
    while piece := await in_thread(os.read, 0, _PIECE):
        yield piece


def _write_all(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


@contextmanager
def _shown(*, is_wanted: bool) -> "Iterator[_Bar | None]":
    """What shows the progress on a terminal, of copies that take long."""
    if not (is_wanted and sys.stderr and sys.stderr.isatty()):
        yield None
        return
    bar = _Bar()
    try:
        yield bar
    finally:
        bar.end()


@dataclass(slots=True)
class _Bar:
    """A line with the file, the bytes, their rate and the time that is left."""

    begun: float = 0.0
    display: Any = None
    task: Any = None

    def __call__(self, now: "Progress") -> None:
        self.begun = self.begun or time.monotonic()
        if self.display is None:
            if time.monotonic() - self.begun < _SHOWN_AFTER_SECONDS:
                return
            self._start(now)
        path = now.path if len(now.path) <= _PATH_WIDTH else f"…{now.path[1 - _PATH_WIDTH :]}"
        self.display.update(
            self.task,
            completed=now.bytes,
            total=now.total or None,
            description=path,
            carrier="over ssh" if now.over_ssh else "over vsock",
        )

    def _start(self, now: "Progress") -> None:
        from rich import progress
        from rich.console import Console

        self.display = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=None),
            progress.DownloadColumn(binary_units=True),
            progress.TransferSpeedColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[carrier]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.display.add_task("", completed=now.bytes, carrier="")
        self.display.start()

    def end(self) -> None:
        """Remove the line."""
        if self.display is not None:
            self.display.stop()
