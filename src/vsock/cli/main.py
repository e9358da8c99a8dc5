"""Finds the command and runs it; turns what went wrong into one line and an exit code.

Start-up time is what a user feels most: a command's module, and whatever it needs, is imported
only when that command runs. So the names and one-line helps of all commands stand here.

Exit codes: 0 done, 1 it did not work (one line says what and what to do), 2 used wrongly,
130 interrupted.
"""

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

import click

from vsock.errors import AddressError, ConnectTimeout, VsockError

__all__ = ["main"]

_COMMANDS: Final = {
    "switch": ("vsock.cli.switch:switch", "Run a switch: the vsock device of many guests."),
    "guest": ("vsock.cli.guest:guest", "Add, change, remove, list guests of a switch; be one."),
    "ls": ("vsock.cli.ls:ls", "Show guests, listeners, datagram sockets and flows of a switch."),
    "explain": ("vsock.cli.explain:explain", "Say who may connect to whom, and why."),
    "cat": ("vsock.cli.cat:cat", "Connect or listen, and copy standard input and output."),
    "run": ("vsock.cli.run:run", "Run a program with AF_VSOCK sockets of the switch."),
    "ssh-proxy": ("vsock.cli.ssh_proxy:ssh_proxy", "Connect for OpenSSH, as its ProxyCommand."),
    "ping": ("vsock.cli.ping:ping", "Measure how fast a guest answers."),
    "perf": ("vsock.cli.perf:perf", "Measure throughput, round trips and connection rate."),
    "qemu-args": ("vsock.cli.vmm_args:qemu_args", "Print what to add to QEMU's command line."),
    "uml-args": ("vsock.cli.vmm_args:uml_args", "Print what to add to User-Mode Linux's."),
    "demo": ("vsock.cli.demo:demo", "Boot guests and show what the switch does."),
}

_BIND_HINTS: Final = {
    errno.EACCES: "; ports below 1024 are for root and CAP_NET_BIND_SERVICE",
    errno.EADDRINUSE: "; `vsock ls` shows by whom",
    errno.EADDRNOTAVAIL: "; that CID is not this machine's, leave it out to listen on all that are",
}


class _LazyGroup(click.Group):
    """A group that knows its commands by name, and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="vsock", message="%(package)s %(version)s")
def vsock() -> None:
    """VSOCK in user space: a switch for virtual machines, and sockets to talk to them.

    An ADDRESS is CID:PORT or NAME:PORT; names are guests of the switch, `host` is CID 2.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code. `arguments` are the process's own by default."""
    try:
        result = vsock.main(arguments, prog_name="vsock", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"vsock: {error.format_message()}", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # Who read our output has left, as `head` does. Python must not try to flush it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (VsockError, OSError) as error:
        return _complain(error)
    return result if isinstance(result, int) else 0


def _complain(error: Exception) -> int:
    reason = error.strerror if isinstance(error, OSError) else None
    if reason and isinstance(error, OSError) and error.filename:
        reason = f"{error.filename}: {reason}"
    click.echo(f"vsock: {reason or error}{_hint(error)}", err=True)
    return 2 if isinstance(error, AddressError) else 1


def _hint(error: Exception) -> str:
    """What to do about it, where the reason alone does not say."""
    if isinstance(error, ConnectTimeout):
        return "; does it run? see `vsock guest ls`"
    reason = str(error.strerror) if isinstance(error, OSError) else ""
    if not reason.startswith("bind ") or not isinstance(error, OSError):
        return ""
    return _BIND_HINTS.get(error.errno or 0, "")
