"""What a guest says of itself over a session: how long it has run, its load and memory, its clock. Set its clock, too.

All of it comes from the guest, which may lie, and is read as text of bounded length.
"""

import asyncio
import errno
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from vsock._system.text import printable
from vsock.errors import SessionError
from vsock.ssh.session import translated

if TYPE_CHECKING:
    from vsock.ssh.session import GuestSession

__all__ = ["Clock", "GuestState", "clock_of", "set_clock", "state_of"]

_MOST: Final = 16 * 1024
_LONGEST: Final = 100
_SECONDS: Final = 20.0
_SAMPLES: Final = 5

# Plain shell, as busybox has it. What is not there prints nothing.
_SCRIPT: Final = """\
echo "kernel=$(uname -r)"
echo "system=$(. /etc/os-release 2>/dev/null; echo "$PRETTY_NAME")"
echo "state=$(systemctl is-system-running 2>/dev/null)"
echo "uptime=$(cut -d' ' -f1 /proc/uptime)"
echo "load=$(cut -d' ' -f1 /proc/loadavg)"
echo "processors=$(grep -c ^processor /proc/cpuinfo)"
sed -n 's/^MemTotal: *\\([0-9]*\\) kB/memory=\\1/p; s/^MemAvailable: *\\([0-9]*\\) kB/available=\\1/p' /proc/meminfo
"""

# %N is nanoseconds in GNU date; busybox's may print it as it is.
_CLOCK_SCRIPT: Final = "while read -r line; do date +%s.%N; done"
_TIME: Final = re.compile(r"(\d{1,12})(?:\.(\d{9}))?")


@dataclass(frozen=True, slots=True)
class Clock:
    """A guest's clock.

    Attributes:
        offset: seconds by which it is ahead of the host's; negative: behind.
        precision: how wrong `offset` may be, in seconds.
    """

    offset: float
    precision: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestState:
    """What a guest says of itself; None where it says nothing.

    Attributes:
        name: the guest.
        system: its distribution and version.
        kernel: the release of its kernel.
        state: of systemd: `running`, `degraded` (a unit has failed), `starting`, …
        uptime: seconds since it booted.
        load: processes that ran or waited for a processor, averaged over a minute.
        processors: how many it has.
        memory: bytes of memory.
        available: bytes of it that programs could still have.
        clock: its clock.
    """

    name: str
    system: str | None = None
    kernel: str | None = None
    state: str | None = None
    uptime: float | None = None
    load: float | None = None
    processors: int | None = None
    memory: int | None = None
    available: int | None = None
    clock: Clock


async def state_of(session: "GuestSession") -> GuestState:
    """Ask a guest for its state.

    Raises:
        SessionError: it does not answer, or not so.
    """
    async with _in_time(session.name):
        process = await session.open_process(_SCRIPT, encoding=None)
        said = await _bounded(session.name, process.stdout)
    values = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    text = {name: _printable(value) or None for name, value in values.items()}
    return GuestState(
        name=session.name,
        system=text.get("system"),
        kernel=text.get("kernel"),
        state=text.get("state"),
        uptime=_number(text.get("uptime")),
        load=_number(text.get("load")),
        processors=_whole(text.get("processors")),
        memory=_whole(text.get("memory"), 1024),
        available=_whole(text.get("available"), 1024),
        clock=await clock_of(session),
    )


async def clock_of(session: "GuestSession") -> Clock:
    """Compare a guest's clock with the host's, by the quickest of a few answers.

    Raises:
        SessionError: it does not answer, or not with a time.
    """
    async with _in_time(session.name):
        process = await session.open_process(_CLOCK_SCRIPT, errors="replace")
    best = Clock(0.0, float("inf"))
    try:
        async with _in_time(session.name):
            for _ in range(_SAMPLES):
                asked = time.time()
                process.stdin.write("\n")
                line = await process.stdout.readline()
                answered = time.time()
                found = _TIME.fullmatch(line.strip().removesuffix(".%N").removesuffix(".N"))
                if not found:
                    raise _nonsense(session.name, line)
                # A clock of whole seconds is behind by half of one on average.
                fraction = float(f"0.{found[2]}") if found[2] else 0.5
                precision = (answered - asked) / 2 + (0 if found[2] else 0.5)
                if precision < best.precision:
                    offset = int(found[1]) + fraction - (asked + answered) / 2
                    best = Clock(round(offset, 6), round(precision, 6))
    finally:
        process.close()
    return best


async def set_clock(session: "GuestSession") -> Clock:
    """Set a guest's clock to the host's, and return how it is then. The session's user must be root.

    Raises:
        SessionError: the guest did not set it.
    """
    before = await clock_of(session)
    # The command arrives half a round trip after it was written.
    wanted = time.time() + before.precision
    line = f"date -u -s @{wanted:.3f} || date -u -s @{wanted:.0f}"
    async with _in_time(session.name):
        done = await session.run(line)
    if done.exit_status != 0:
        reason = _printable(str(done.stderr or "").strip().rpartition("\n")[2])
        raise SessionError(errno.EPERM, f"{session.name} did not set its clock: {reason}")
    return await clock_of(session)


@asynccontextmanager
async def _in_time(name: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(_SECONDS):
            with translated(name):
                yield
    except BrokenPipeError:
        raise SessionError(errno.ECONNRESET, f"{name} ended the command that asks it") from None
    except TimeoutError:
        raise SessionError(
            errno.ETIMEDOUT, f"{name} did not answer within {_SECONDS:g} s"
        ) from None


async def _bounded(name: str, source: Any) -> str:
    said = bytearray()
    while piece := await source.read(_MOST):
        said += piece
        if len(said) > _MOST:
            raise _nonsense(name, said.decode(errors="replace"))
    return said.decode(errors="replace")


def _nonsense(name: str, said: object) -> SessionError:
    return SessionError(errno.EPROTO, f"{name} gave a strange answer: {_printable(str(said))!r}")


def _printable(text: str) -> str:
    return printable(text, _LONGEST)


def _number(text: str | None) -> float | None:
    return float(text) if text and re.fullmatch(r"\d{1,12}(\.\d{1,6})?", text) else None


def _whole(text: str | None, unit: int = 1) -> int | None:
    return int(text) * unit if text and re.fullmatch(r"\d{1,15}", text) else None
