"""Options that several commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from vsock.transports import Transport

__all__ = [
    "Seconds",
    "agent_option",
    "json_option",
    "runtime_dir_option",
    "session_options",
    "switch_directory",
    "transport_of",
    "transport_option",
]

_F = TypeVar("_F", bound=Callable[..., Any])

runtime_dir_option: Callable[[_F], _F] = click.option(
    "--runtime-dir",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The switch's directory (else $VSOCK_RUNTIME_DIR, $XDG_RUNTIME_DIR/vsock, /run/vsock).",
)

json_option: Callable[[_F], _F] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)

transport_option: Callable[[_F], _F] = click.option(
    "--transport",
    type=click.Choice(["switch", "kernel"]),
    help="Use sockets of the switch, or of the kernel's own AF_VSOCK (in a guest).",
)

agent_option: Callable[[_F], _F] = click.option(
    "-A", "--forward-agent", is_flag=True, help="Let programs in the guest use your ssh-agent."
)


_A_YEAR = 365 * 86400


class Seconds(click.FloatRange):
    """A duration in seconds: a number, but not "nan", of at most a year.

    Args:
        smallest: the smallest valid number; None for any above 0.
    """

    name = "seconds"

    def __init__(self, smallest: float | None = None) -> None:
        super().__init__(smallest or 0, _A_YEAR, min_open=smallest is None)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read the number; BadParameter if it is none of these."""
        number: float = super().convert(value, param, ctx)
        if number != number:
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


def switch_directory(runtime_dir: Path | None, name: str | None) -> Path | None:
    """The runtime directory of the switch that these two options select; None: they select the kernel.

    A runtime directory names a switch, so it and `--transport kernel` exclude each other.
    """
    if runtime_dir is not None:
        if name == "kernel":
            raise click.UsageError(
                "--runtime-dir selects a switch: give it without --transport kernel"
            )
        return runtime_dir
    from vsock._socket.transport import chosen
    from vsock.runtime import default_runtime_dir

    return None if chosen(name) == "kernel" else default_runtime_dir()


def transport_of(runtime_dir: Path | None, name: str | None) -> "Transport":
    """The transport that these two options select."""
    from vsock.transports import SwitchTransport, choose

    directory = switch_directory(runtime_dir, name)
    return choose("kernel") if directory is None else SwitchTransport(str(directory))


def session_options(command: _F) -> _F:
    """The options of commands that log in to guests: `user`, `port`, `login_timeout`, and where the guests are."""
    options: list[Callable[[_F], _F]] = [
        click.option(
            "-u", "--user", default="root", show_default=True, help="A user of the guest."
        ),
        click.option(
            "-p",
            "--port",
            type=click.IntRange(1, 2**32 - 2),
            default=22,
            show_default=True,
            help="The vsock port of its sshd.",
        ),
        click.option(
            "--login-timeout",
            type=Seconds(),
            default=60.0,
            show_default=True,
            help="Seconds to connect and log in.",
        ),
        transport_option,
        runtime_dir_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command
