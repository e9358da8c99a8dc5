"""Starts sshfs for `vsock mount`, with options that a hostile guest cannot use against this host.

sshfs is the file system: it becomes a process in the background. Where it would start ssh, it starts our `sftp_pipe`,
which gets its order by the environment and the outcome of its work back to here over a socket.
"""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import IO, Any, Final

import click

from vsock._system.text import printable
from vsock.cli.orders import Place
from vsock.ssh.mounts import SUBTYPE, mount_at, unmount

__all__ = ["GO", "ORDER_VARIABLE", "Order", "mount"]

ORDER_VARIABLE: Final = "VSOCK_MOUNT_ORDER"
GO: Final = b"\n"
"""What the first `sftp_pipe` of a mount finds in the socket; those of a later connection do not."""

_PYTHON_VARIABLE: Final = "VSOCK_MOUNT_PYTHON"
_HELPER: Final = '"$%s" -P -m vsock.cli.sftp_pipe' % _PYTHON_VARIABLE  # noqa: UP031 - braces of the shell
_HOST: Final = "guest"
"""What sshfs calls the guest in its own messages."""

_NOT_CONTAINED: Final = (
    "this sshfs cannot keep the guest's links from leading to files of this host: use sshfs 3.7.6 or later,"
    " or give --follow-links if you trust the guest"
)

_MOST_MEMORY: Final = 512 << 20
"""Bytes that sshfs may allocate: a guest may list names without end, and all are kept until the last one has come."""

_KEEPALIVE_SECONDS: Final = 15.0

_REST_SECONDS: Final = 120.0
"""How long all behind the login may take: the data connection, and the first answers of SFTP."""

_INTERRUPTS: Final = (signal.SIGTERM, signal.SIGHUP)

_HELP_SECONDS: Final = 30.0

_NAMES_SECONDS: Final = 1
"""How long names and attributes are kept; the kernel keeps them for a second anyway."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What `sftp_pipe` is to do.

    Attributes:
        guest: whom to connect to.
        place: fields of `Place`, with a runtime directory that does not depend on this process.
        encrypted: ssh carries the data.
        reconnect: also after the first connection has ended.
        keepalive: seconds between questions to the guest's sshd, whether it still answers.
        report: the descriptor of the socket to `mount`.
    """

    guest: str
    place: dict[str, Any]
    encrypted: bool
    reconnect: bool
    keepalive: float
    report: int

    @classmethod
    def of_environment(cls) -> "Order":
        """The order to this process."""
        return cls(**json.loads(os.environ[ORDER_VARIABLE]))


def mount(
    place: Place,
    guest: str,
    path: bytes,
    folder: str,
    *,
    encrypted: bool,
    reconnect: bool,
    read_only: bool,
    follow_links: bool,
) -> list[str]:
    """Mount a folder of a guest, and return when it works.

    Returns:
        What the user should know of it, in lines.

    Raises:
        click.ClickException: it is not mounted; the message says which side is at fault.
    """
    source = os.fsencode(f"{guest}:") + path
    options = _options(source, read_only=read_only, follow_links=follow_links)
    ours, theirs = socket.socketpair()
    with ours, theirs, tempfile.TemporaryFile() as said:
        ours.sendall(GO)
        order = Order(
            guest=guest,
            place=_lasting(place, guest),
            encrypted=encrypted,
            reconnect=reconnect,
            keepalive=_KEEPALIVE_SECONDS,
            report=theirs.fileno(),
        )
        environment = {
            **os.environ,
            "LC_ALL": "C",
            ORDER_VARIABLE: json.dumps(asdict(order)),
            _PYTHON_VARIABLE: sys.executable,
        }
        command = [b"sshfs", b"-o", options, f"{_HOST}:".encode() + path, os.fsencode(folder)]
        seconds = place.login_timeout + _REST_SECONDS
        code = _run(guest, command, environment, theirs, said, seconds)
        reports = _reports(ours)
        if code == 0:
            return [line for one in reports for line in one.get("notes", ())]
        said.seek(0)
        raise click.ClickException(_reason(reports, said.read(), source, code))


def _options(source: bytes, *, read_only: bool, follow_links: bool) -> bytes:
    """The options for sshfs."""
    try:
        known = subprocess.run(
            ["sshfs", "--help"], capture_output=True, timeout=_HELP_SECONDS, check=False
        ).stdout
    except FileNotFoundError:
        raise click.ClickException(
            "sshfs is not installed: install the package sshfs (fuse-sshfs on Fedora)"
        ) from None
    options: list[bytes] = [
        _option(b"ssh_command", _command(_HELPER)),
        # Of a connection that is lost the folder stays mounted: else programs would write into the one below it.
        b"reconnect",
        b"nosuid",
        b"nodev",
        b"idmap=user",
        b"dcache_timeout=%d" % _NAMES_SECONDS,
        _option(b"fsname", source),
        _option(b"subtype", SUBTYPE.encode()),
    ]
    if read_only:
        options.append(b"ro")
    # The version does not tell: Debian has it in 3.7.3, too.
    if b"contain_symlinks" in known:
        options.append(b"no_contain_symlinks" if follow_links else b"contain_symlinks")
    elif not follow_links:
        raise click.ClickException(_NOT_CONTAINED)
    return b",".join(options)


def _option(name: bytes, value: bytes) -> bytes:
    """An option of libfuse, which ends at a comma."""
    return name + b"=" + value.replace(b"\\", rb"\\").replace(b",", rb"\,")


def _command(line: str) -> bytes:
    """A line for the shell as sshfs takes it, which knows words without quoting."""
    return b"sh -c exec${IFS}" + line.replace(" ", "${IFS}").encode()


def _lasting(place: Place, guest: str) -> dict[str, Any]:
    """The place, for a process with another directory and at another time."""
    where = place.key(guest).transport
    is_kernel = where == "kernel"
    return {
        "user": place.user,
        "port": place.port,
        "login_timeout": place.login_timeout,
        "forward_agent": False,
        "transport": "kernel" if is_kernel else "switch",
        "runtime_dir": None if is_kernel else where,
    }


def _run(
    guest: str,
    command: Sequence[bytes],
    environment: dict[str, str],
    socket_of_helper: socket.socket,
    said: IO[bytes],
    seconds: float,
) -> int:
    """Run sshfs until it has gone into the background, or has failed; return its exit code."""
    heard = [number for number in _INTERRUPTS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _interrupt) for number in heard}
    before[signal.SIGINT] = signal.getsignal(signal.SIGINT)
    process: subprocess.Popen[bytes] | None = None
    is_mounted = False
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
            pass_fds=[socket_of_helper.fileno()],
            start_new_session=True,
        )
        _bound(process.pid)
        code = process.wait(seconds)
        is_mounted = code == 0
        return code
    except subprocess.TimeoutExpired:
        raise click.ClickException(f"{guest} did not answer within {seconds:g} s") from None
    finally:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        try:
            if process and not is_mounted:
                _undo(process, os.fsdecode(command[-1]))
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _bound(pid: int) -> None:
    """Bound the memory of a process, and of those that it starts."""
    with suppress(ProcessLookupError):  # it has failed already
        _, most = resource.prlimit(pid, resource.RLIMIT_DATA)
        most = _MOST_MEMORY if most == resource.RLIM_INFINITY else min(most, _MOST_MEMORY)
        resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))


def _undo(process: subprocess.Popen[bytes], folder: str) -> None:
    """End an sshfs, and what it may have mounted: it mounts before it connects, and then goes into the background."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if (there := mount_at(folder)) and there.is_ours:
        unmount(there, lazy=True)


def _interrupt(*_: object) -> None:
    raise click.ClickException("interrupted; nothing is mounted")


def _reports(ours: socket.socket) -> list[dict[str, Any]]:
    """What `sftp_pipe` has told."""
    ours.setblocking(False)
    data = b""
    with suppress(BlockingIOError):
        while piece := ours.recv(1 << 16):
            data += piece
    return [json.loads(line) for line in data.splitlines()]


def _reason(reports: Sequence[dict[str, Any]], said: bytes, source: bytes, code: int) -> str:
    """Why sshfs has failed, with the side at fault."""
    shown = printable(os.fsdecode(source))
    errors = [one["error"] for one in reports if "error" in one]
    if errors:
        return str(errors[-1])
    text = said.decode(errors="replace").strip()
    if text.startswith(f"{_HOST}:"):
        reason = text.rpartition(": ")[2]
        return f"{shown}: {printable(reason[:1].lower() + reason[1:], 200)}"
    last = (text.splitlines() or [f"it ended with {code}"])[-1]
    # It connects when it has mounted: then nothing of this host can fail any more.
    what = f"{shown}: the guest's SFTP server failed" if reports else "sshfs failed"
    return f"{what}: {printable(last, 200)}"
