"""`vsock run`: a program that uses AF_VSOCK, with sockets of the switch instead of the kernel's."""

import errno
import os
import shutil
import signal
from pathlib import Path

import click

from vsock.cli.options import runtime_dir_option

__all__ = ["run"]

_CANNOT = 126
_NOT_FOUND = 127


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--guard/--no-guard",
    default=True,
    help="Forbid the kernel's own AF_VSOCK. Set-uid programs then run without their privileges. [on]",
)
@click.option(
    "-v", "--verbose", is_flag=True, help="Print a message when a socket cannot reach a switch."
)
@runtime_dir_option
def run(command: tuple[str, ...], guard: bool, verbose: bool, runtime_dir: Path | None) -> int:
    """Run COMMAND, and all programs that it starts, with AF_VSOCK sockets of the switch.

    If no switch answers, it prints a line and runs COMMAND anyway. Exit code: that of COMMAND; 127 if there
    is no such program, 126 if it cannot be run, or not under `vsock run` (for instance because it is a
    directory, or statically linked).
    """
    from vsock.preload import preload_environment
    from vsock.runtime import default_runtime_dir

    path = shutil.which(command[0])
    if path is None:
        return _refuse(command[0])
    if reason := _why_not(Path(path), guard):
        click.echo(f"vsock run: {path} {reason}", err=True)
        return _CANNOT
    directory = runtime_dir or default_runtime_dir()
    # With --verbose the library prints the message, when a socket needs a switch.
    is_explained = verbose or bool(os.environ.get("VSOCK_PRELOAD_VERBOSE"))
    if not is_explained and not _answers(directory):
        click.echo(
            f"vsock run: no switch answers in {directory}: until one does, AF_VSOCK fails with ENODEV; "
            "start `vsock switch`, or say where it is with VSOCK_RUNTIME_DIR or --runtime-dir",
            err=True,
        )
    environment = preload_environment(directory)
    if verbose:
        environment["VSOCK_PRELOAD_VERBOSE"] = "1"
    if guard:
        from vsock.cli.guard import raise_guard_or_refuse

        raise_guard_or_refuse()
    return _become(path, command, environment)


def _answers(directory: Path) -> bool:
    """Whether a node serves sockets in `directory` now.

    Connects a socket of the wrong type: the kernel returns EPROTOTYPE if a socket is bound to the path,
    and the node need not accept a connection.
    """
    import socket

    from vsock.runtime import RuntimeFiles

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(os.fspath(RuntimeFiles(directory).stream))
        except OSError as error:
            return error.errno in (errno.EPROTOTYPE, errno.EACCES)
    return True


def _refuse(name: str) -> int:
    """Print why `name` cannot be run, and return the exit code that a shell returns."""
    # A name without a slash is searched in PATH, where directories are skipped.
    if "/" in name and Path(name).is_dir():
        reason, status = "is a directory", _CANNOT
    elif shutil.which(name, os.F_OK):
        reason, status = "is not executable", _CANNOT
    else:
        reason, status = "no such program", _NOT_FOUND
    click.echo(f"vsock run: {name}: {reason}", err=True)
    return status


def _why_not(path: Path, guard: bool) -> str | None:
    from vsock.cli.program import why_not

    try:
        return why_not(path, keeps_privileges=not guard)
    except PermissionError:
        return None  # a program can be executable without being readable
    except OSError as error:
        return f"cannot be read: {error.strerror}"


def _become(path: str, command: tuple[str, ...], environment: dict[str, str]) -> int:
    # Python ignores these signals, and ignored signals stay ignored after execve.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execve(path, command, environment)
    except OSError as error:
        click.echo(f"vsock run: {path}: {os.strerror(error.errno or errno.EIO)}", err=True)
        return _CANNOT
