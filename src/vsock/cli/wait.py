"""`vsock wait`: until a guest has come so far.

A condition says whether it holds, and if not, what is missing and what to do about it: a class here for each
option. They look again and again, at longer and longer intervals.
"""

import errno
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import click

from vsock.address import PORT_ANY, Address
from vsock.cli.completion import guests as known_guests
from vsock.cli.connect import connect
from vsock.cli.options import Seconds, json_option, runtime_dir_option, transport_of
from vsock.cli.output import cut, print_json, seconds_text
from vsock.control.client import ControlClient
from vsock.control.model import NOTIFY_PORT, GuestRecord
from vsock.errors import HostKeyChanged, KeyRefused
from vsock.vmm import notify_credential

if TYPE_CHECKING:
    from vsock.transports import Transport

__all__ = ["Condition", "wait"]

_FIRST_PAUSE: Final = 0.02
_LONGEST_PAUSE: Final = 0.5
_GROWTH: Final = 1.4

_LOGIN_SECONDS: Final = 15.0
"""How long the first attempt to log in may take; the next may take twice as long as the one before."""

_ANSWER_SECONDS: Final = 2.0
"""How long a guest may take to answer an attempt to connect."""


class Condition(Protocol):
    """What is waited for."""

    @property
    def title(self) -> str:
        """Of a guest of which it holds: "is ready"."""

    def missing(self, guest: GuestRecord) -> str | None:
        """What a running guest lacks, in one line, or None if the condition holds."""


@dataclass(frozen=True, slots=True)
class _Ready:
    """The guest says READY=1."""

    title: str = "is ready"

    def missing(self, guest: GuestRecord) -> str | None:
        if guest.ready:
            return None
        if guest.ready is not None:
            return f"not ready yet, it says {guest.status!r}" if guest.status else "not ready yet"
        ((name, value),) = notify_credential(NOTIFY_PORT).items()
        return (
            "its driver is up, but it has not said that it is ready: "
            f"boot it with `vsock qemu-args {guest.name} --notify`, or the credential {name}={value}"
        )


@dataclass(frozen=True, slots=True)
class _Port:
    """A program in the guest listens on a port."""

    port: int
    transport: "Transport"

    @property
    def title(self) -> str:
        return f"listens on port {self.port}"

    def missing(self, guest: GuestRecord) -> str | None:
        try:
            connect(Address(guest.cid, self.port), _ANSWER_SECONDS, self.transport).close()
        except OSError as error:
            return f"nothing listens on its port {self.port} ({error.strerror or error})"
        return None


@dataclass(slots=True)
class _Ssh:
    """The sshd of the guest lets us in; `deadline` is a time of `time.monotonic`."""

    transport: "Transport"
    deadline: float
    title: str = "lets us in over ssh"
    seconds: float = _LOGIN_SECONDS

    def missing(self, guest: GuestRecord) -> str | None:
        from vsock.ssh import guest_session

        seconds = max(_ANSWER_SECONDS, min(self.seconds, self.deadline - time.monotonic()))
        try:
            with guest_session(guest.name, timeout=seconds, transport=self.transport):
                return None
        except (HostKeyChanged, KeyRefused):
            raise  # time does not change that
        except OSError as error:
            if error.errno == errno.ETIMEDOUT:
                self.seconds *= 2  # a slow guest must not begin anew for ever
            return error.strerror or str(error)


@click.command(short_help="Wait until a guest is ready, or a program in it listens.")
@click.argument("name", shell_complete=known_guests)
@click.option("--ready", is_flag=True, help="Until it says that it is ready (the default).")
@click.option(
    "--port",
    type=click.IntRange(0, PORT_ANY - 1),
    metavar="PORT",
    help="Until a program in it listens on this port.",
)
@click.option("--ssh", is_flag=True, help="Until its sshd lets us in, as `vsock exec` needs it.")
@click.option(
    "--timeout", type=Seconds(), default=120.0, show_default=True, help="Seconds to wait at most."
)
@json_option
@runtime_dir_option
def wait(
    name: str,
    ready: bool,
    port: int | None,
    ssh: bool,
    timeout: float,
    as_json: bool,
    runtime_dir: Path | None,
) -> None:
    """Wait until guest NAME (or CID) is ready.

    A guest is ready when it says READY=1 (sd_notify(3)), as systemd does at the end of its boot if its VMM was
    started with `vsock qemu-args NAME --notify`. With --json it prints the guest as it is then.

    Exit code: 0 if it is ready, 1 if not within the timeout; the error says what is missing.
    """
    if ready + ssh + (port is not None) > 1:
        raise click.UsageError("--ready, --port and --ssh exclude each other")
    begun = time.monotonic()
    condition: Condition = _Ready()
    if port is not None:
        condition = _Port(port, transport_of(runtime_dir, None))
    if ssh:
        condition = _Ssh(transport_of(runtime_dir, None), begun + timeout)
    guest = _wait(ControlClient(runtime_dir), name, condition, begun + timeout)
    if as_json:
        print_json(guest)
    else:
        click.echo(f"{guest.name} {condition.title} after {seconds_text(time.monotonic() - begun)}")


def _wait(client: ControlClient, name: str, condition: Condition, deadline: float) -> GuestRecord:
    """Wait for a condition; returns the guest. Raises ClickException at the deadline."""
    pause = _FIRST_PAUSE
    with _sign_of_life() as show:
        while True:
            guest = client.guest(name)
            missing = _not_running(guest) or condition.missing(guest)
            if missing is None:
                return guest
            left = deadline - time.monotonic()
            if left <= 0:
                break
            show(guest, missing)
            time.sleep(min(pause, left))
            pause = min(pause * _GROWTH, _LONGEST_PAUSE)
    raise click.ClickException(f"{guest.name}: {missing}")


@contextmanager
def _sign_of_life() -> Iterator[Callable[[GuestRecord, str], None]]:
    """Shows what is waited for: a line with the time on a terminal, else a line for each state of the guest."""
    begun, states = time.monotonic(), [""]
    is_terminal = bool(sys.stderr and sys.stderr.isatty())

    def show(guest: GuestRecord, missing: str) -> None:
        if is_terminal:
            text = f"{seconds_text(time.monotonic() - begun)} {guest.name}: {missing}"
            click.echo(
                f"\r{cut(text, shutil.get_terminal_size().columns - 1)}\033[K", err=True, nl=False
            )
        elif states[-1] != guest.state:
            states[:] = [guest.state]
            click.echo(f"{guest.name}: {missing}", err=True)

    try:
        yield show
    finally:
        if is_terminal:
            click.echo("\r\033[K", err=True, nl=False)


def _not_running(guest: GuestRecord) -> str | None:
    if guest.state == "waiting":
        return f"no VMM is attached: start one with `vsock qemu-args {guest.name}`"
    if guest.state == "attached":
        return "its VMM is attached, but its driver is not up: does it boot, with a vsock driver?"
    return None
