"""What `vsock exec` and `vsock shell` are to run, where, and how it ended."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from vsock._system.text import printable
from vsock.cli.options import switch_directory, transport_of

if TYPE_CHECKING:
    from vsock.ssh.master.messages import Key
    from vsock.ssh.session import GuestSession

__all__ = [
    "FAILED",
    "MOST_IN_JSON",
    "TIMED_OUT",
    "Failure",
    "Order",
    "Place",
    "Result",
    "captured",
    "carry_out",
    "reason_of",
    "result_of",
    "tell",
    "timed_out",
    "with_output",
    "wrote_too_much",
]

FAILED: Final = 255
"""The exit code of our own failures, as of ssh(1)."""

MOST_IN_JSON: Final = 64 << 20
"""Bytes of output that are kept for --json, if --max-output does not say it."""

TIMED_OUT: Final = 124
"""As timeout(1)."""
_TERMINATED_BY: Final = 128

_LONGEST_REASON: Final = 200


class Failure(click.ClickException):
    """Our own failure, not the command's."""

    exit_code = FAILED


@dataclass(frozen=True, slots=True)
class Place:
    """Where and as whom commands run."""

    user: str
    port: int
    login_timeout: float
    forward_agent: bool
    transport: str | None
    runtime_dir: Path | None

    def session(self, guest: str) -> "GuestSession":
        """A session with a guest, not open yet."""
        from vsock.ssh import guest_session

        return guest_session(
            guest,
            user=self.user,
            port=self.port,
            timeout=self.login_timeout,
            transport=transport_of(self.runtime_dir, self.transport),
            forward_agent=self.forward_agent,
        )

    def key(self, guest: str) -> "Key":
        """What a session with the guest is known by, if it is kept open."""
        from vsock.ssh.master.messages import Key

        directory = switch_directory(self.runtime_dir, self.transport)
        where = "kernel" if directory is None else str(directory.absolute())
        return Key(guest, self.user, self.port, self.forward_agent, where)


@dataclass(frozen=True, slots=True)
class Order:
    """What runs, and how; `reads`: this process's standard input."""

    command: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    workdir: str | None = None
    is_tty: bool = False
    timeout: float | None = None
    most: int | None = None
    reads: bool = True

    def bounded(self) -> "Order":
        """The order for a command whose output is kept."""
        return replace(self, most=MOST_IN_JSON if self.most is None else self.most)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a command ended; `signal` is a name such as KILL. `error`: it did not run, or not to its end."""

    guest: str
    exit_code: int
    signal: str | None = None
    stdout: str = ""
    stderr: str = ""
    error: str | None = None


def result_of(guest: str, status: int | None, ended_by: str | None) -> Result:
    """The result of a command that ended by itself, with a status or by a signal, or whose session ended first."""
    if ended_by is not None:
        numbers = {one.name: one.value for one in signal.Signals}
        number = numbers.get(f"SIG{ended_by}")
        code = FAILED if number is None else _TERMINATED_BY + number
        return Result(guest=guest, exit_code=code, signal=ended_by)
    if status is None:
        error = "the session ended before COMMAND did"
        return Result(guest=guest, exit_code=FAILED, error=error)
    return Result(guest=guest, exit_code=status)


def timed_out(guest: str, seconds: float) -> Result:
    """The result of a command that `--timeout` ended."""
    error = f"COMMAND was ended after {seconds:g} s"
    return Result(guest=guest, exit_code=TIMED_OUT, error=error)


def wrote_too_much(guest: str, most: int) -> Result:
    """The result of a command that `--max-output` ended."""
    error = f"COMMAND was ended: it wrote more than {most} bytes"
    return Result(guest=guest, exit_code=FAILED, error=error)


def with_output(result: Result, stdout: bytes | bytearray, stderr: bytes | bytearray) -> Result:
    """The result with what the command wrote; what is no text is escaped."""
    texts = [bytes(one).decode(errors="backslashreplace") for one in (stdout, stderr)]
    return replace(result, stdout=texts[0], stderr=texts[1])


def reason_of(result: Result) -> str:
    """Why a script of ours failed in the guest: the last line of its standard error."""
    said = result.stderr.strip().rpartition("\n")[2] or f"exit code {result.exit_code}"
    return printable(said, _LONGEST_REASON)


def tell(result: Result) -> None:
    """Print why a command did not run, or not to its end."""
    if result.error:
        click.echo(f"vsock: {result.guest}: {result.error}", err=True)


def carry_out(where: Place, guest: str, order: Order) -> int:
    """Run it with this process's standard streams, in a session that is kept open if there is one; its exit code.

    Raises:
        Failure: it did not run.
        BrokenPipeError: who reads our output is gone.
    """
    # Late: which of the two is needed is only known when the first was asked.
    from vsock.cli import in_session

    if result := in_session.attempt(in_session.run, where, guest, order):
        tell(result)
        return result.exit_code
    from vsock.cli import remote

    return remote.run(remote.in_one(where, guest, order))


def captured(where: Place, guests: Sequence[str], order: Order) -> list[Result]:
    """Run it in all guests at once, without standard input, in sessions that are kept open if there are any."""
    from vsock.cli import in_session

    # One alone needs neither asyncio nor asyncssh for that.
    in_one = in_session.captured
    if len(guests) == 1 and (result := in_session.attempt(in_one, where, guests[0], order)):
        return [result]
    from vsock.cli import remote

    return remote.run(remote.in_all(where, guests, order, show=False))
