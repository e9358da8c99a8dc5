"""Finds the command and runs it; prints an error as one line and turns it into an exit code.

To start quickly, it imports a command's module, and the modules that one needs, only when that command
runs. So the names and one-line helps of all commands are in this module.

`docs/reference/command-line.md` says what the exit codes mean.
"""

import errno
import io
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import Final

import click

from vsock.cli.groups import Group
from vsock.cli.plugins import load, look_for, origin
from vsock.errors import ConnectTimeout, UsageError, VsockError

__all__ = ["main"]

_FAILED: Final = 1
_MISUSED: Final = 2
_INTERRUPTED: Final = 130

_COMMANDS: Final = {
    "switch": ("vsock.cli.switch:switch", "Run a switch: the vsock device of many guests."),
    "guest": ("vsock.cli.guest:guest", "Add, change, remove, list or run guests of a switch."),
    "ls": ("vsock.cli.ls:ls", "Show guests, listeners, datagram sockets and flows of a switch."),
    "explain": ("vsock.cli.explain:explain", "Show who may connect to whom, and why."),
    "cat": ("vsock.cli.cat:cat", "Connect or listen, and copy standard input and output."),
    "forward": (
        "vsock.cli.forward:forward",
        "Forward connections: TCP, Unix and vsock, to each other.",
    ),
    "proxy": ("vsock.cli.proxy:proxy", "Let guests without a network reach hosts on a list."),
    "run": ("vsock.cli.run:run", "Run a program with AF_VSOCK sockets of the switch."),
    "exec": ("vsock.cli.exec:exec_", "Run a command in a guest, or in several."),
    "shell": ("vsock.cli.exec:shell", "Open a shell in a guest."),
    "jobs": ("vsock.cli.jobs:jobs", "List the jobs of a guest, end or remove one."),
    "attach": ("vsock.cli.jobs:attach", "Show what a job of a guest writes, until it ends."),
    "wait-job": ("vsock.cli.jobs:wait_job", "Wait until a job of a guest ends."),
    "session": (
        "vsock.cli.session:session",
        "Keep sessions with guests open: commands need no login.",
    ),
    "cp": ("vsock.cli.cp:cp", "Copy files and folders to guests, from them, and between them."),
    "mount": (
        "vsock.cli.mount:mount",
        "Mount a folder of a guest on this host, or list such mounts.",
    ),
    "umount": ("vsock.cli.mount:umount", "End a mount of a guest's folder."),
    "share": (
        "vsock.cli.share:share",
        "Show a folder of this host in a guest, or list such folders.",
    ),
    "unshare": ("vsock.cli.share:unshare", "End a share of a folder with a guest."),
    "ssh-proxy": (
        "vsock.cli.ssh_proxy:ssh_proxy",
        "Connect OpenSSH to a guest, as its ProxyCommand.",
    ),
    "ssh-config": (
        "vsock.cli.ssh_config:ssh_config",
        "Print or install the lines by which ssh reaches guests.",
    ),
    "ssh-known-hosts": (
        "vsock.cli.ssh_config:ssh_known_hosts",
        "Print the host key of a guest, as OpenSSH's KnownHostsCommand.",
    ),
    "wait": ("vsock.cli.wait:wait", "Wait until a guest is ready, or a program in it listens."),
    "status": ("vsock.cli.status:status", "Show how guests are: boot, load, memory, clock."),
    "clock": ("vsock.cli.status:clock", "Show or set a guest's clock."),
    "journal": ("vsock.cli.status:journal", "Show a guest's journal."),
    "ping": ("vsock.cli.ping:ping", "Measure how fast a guest answers."),
    "perf": ("vsock.cli.perf:perf", "Measure throughput, round trips and connection rate."),
    "qemu-args": (
        "vsock.cli.vmm_args:qemu_args",
        "Print the options that attach QEMU to the switch.",
    ),
    "uml-args": ("vsock.cli.vmm_args:uml_args", "Print the options that attach User-Mode Linux."),
    "demo": ("vsock.cli.demo:demo", "Boot guests and show what the switch does."),
    "help": ("vsock.cli.main:help_", "Show the help of a command."),
}

_GROUPS: Final = {"guest", "session"}
"""Commands that have commands of their own."""

_QUESTIONS: Final = {"explain", "ping"}
"""Commands whose exit code 1 means "no"; errors that prevent an answer are 2, as in grep(1) and ping(8)."""

_BIND_HINTS: Final = {
    errno.EACCES: "; ports below 1024 need root or CAP_NET_BIND_SERVICE",
    errno.EADDRINUSE: "; `vsock ls` shows the process",
    errno.EADDRNOTAVAIL: "; the CID is not this machine's: give only the port to listen on all of its CIDs",
}


class _LazyGroup(Group):
    """A group that knows the names of its commands, and imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS, *look_for(_COMMANDS)[0]]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            added = look_for(_COMMANDS)[0].get(cmd_name)
            return load(added) if added else None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])
        added, warnings = look_for(_COMMANDS)
        if added:
            with formatter.section("Commands of other distributions"):
                formatter.write_dl([(name, f"From {origin(it)}.") for name, it in added.items()])
        for warning in warnings:
            _say(warning)


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="To begin, run `vsock demo`, or read the guide: docs/guide in the source tree. "
    "Exit codes and shell completion: docs/reference/command-line.md.",
)
@click.version_option(None, "-V", "--version", package_name="vsock", message="vsock %(version)s")
def vsock() -> None:
    """VSOCK in user space: a switch for virtual machines, and sockets to connect to them.

    An ADDRESS is CID:PORT or NAME:PORT; names are guests of the switch, `host` is CID 2.
    """


@click.command("help")
@click.argument("command", nargs=-1)
@click.pass_context
def help_(ctx: click.Context, command: tuple[str, ...]) -> None:
    """Show the help of COMMAND, or of `vsock`."""
    assert ctx.parent
    shown, found = ctx.parent, vsock
    for name in command:
        if not isinstance(found, click.Group):
            raise click.UsageError(f"{found.name!r} has no commands of its own")
        _, found, _ = found.resolve_command(shown, [name])  # type: ignore[assignment] # raises if there is none
        shown = click.Context(found, info_name=name, parent=shown)
    click.echo(found.get_help(shown))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code. `arguments` are the process's own by default."""
    words = sys.argv[1:] if arguments is None else arguments
    _prepare_standard_streams()
    try:
        result = vsock.main(list(words), prog_name="vsock", standalone_mode=False)
        _flush()
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return _MISUSED
    except click.UsageError as error:
        _say(f"{error.format_message().rstrip('.')}; see `{_help_of(error, words)}`")
        return _MISUSED
    except click.ClickException as error:
        _say(error.format_message())
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of the output has exited, as `head` does. Python must not try to flush again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return _FAILED
    except UsageError as error:
        _say(str(error))
        return _MISUSED
    except (VsockError, OSError) as error:
        _say(_reason(error))
        return _MISUSED if _first_words(words)[0] in _QUESTIONS else _FAILED
    return result if isinstance(result, int) else 0


def _prepare_standard_streams() -> None:
    """Make names with any bytes printable, and keep sockets from becoming standard streams.

    Descriptors 0 to 2 that are closed are opened for reading: standard input is then empty, and writing to
    the others fails.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY)  # open returns the lowest free number: this one
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Write buffered output now, so that an error can still be reported."""
    if sys.stdout is not None:
        sys.stdout.flush()


def _say(text: str) -> None:
    """Print to standard error, each line with the prefix `vsock: `."""
    with suppress(OSError):  # standard error is closed
        click.echo("\n".join(f"vsock: {line}" for line in text.splitlines()), err=True)


def _help_of(error: click.UsageError, words: Sequence[str]) -> str:
    if error.ctx:
        return f"{error.ctx.command_path} --help"
    # The error of click's option parser does not have the command.
    group, command = _first_words(words)
    path = ("vsock", group, command if group in _GROUPS else "", "--help")
    return " ".join(filter(None, path))


def _first_words(words: Sequence[str]) -> tuple[str, str]:
    """The first two words that are not options: a command, or a group and its command."""
    first, second, *_ = *(word for word in words if not word.startswith("-")), "", ""
    return first, second


def _reason(error: Exception) -> str:
    """The message of `error`, with a hint what to do if it has none."""
    reason = error.strerror if isinstance(error, OSError) else None
    if not reason or not isinstance(error, OSError):
        return str(error)
    if error.filename:
        name = error.filename
        reason = f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {reason}"
    if isinstance(error, ConnectTimeout):
        return f"{reason}; is it running? see `vsock guest ls`"
    if reason.startswith("bind "):
        return reason + _BIND_HINTS.get(error.errno or 0, "")
    return reason
