"""`vsock switch`: the daemon, in the foreground."""

from dataclasses import replace
from pathlib import Path

import click

from vsock.cli.options import runtime_dir_option
from vsock.control.config import Config, load
from vsock.control.model import (
    LINGER_TIMEOUT,
    LONGEST_LINGER_TIMEOUT,
    GuestSpec,
    conflicts,
)
from vsock.control.schema import SchemaError, read
from vsock.errors import UsageError

__all__ = ["switch"]


@click.command(context_settings={"show_default": True})
@click.option(
    "--guest",
    "guests",
    multiple=True,
    metavar="NAME=CID[,GROUP...]",
    help="A guest. Guests that share a group may connect to each other. Repeatable.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="A vsock.toml. The switch reads it again on SIGHUP.",
)
@runtime_dir_option
@click.option(
    "--linger-timeout",
    type=click.FloatRange(min=0, min_open=True, max=LONGEST_LINGER_TIMEOUT),
    metavar="SECONDS",
    help="How long data of a closed socket may wait without progress "
    f"(default: the file's value, or {LINGER_TIMEOUT:.0f}).",
)
@click.option(
    "--no-sandbox",
    is_flag=True,
    help="Leave the switch's threads system calls and files that they do not need.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="The lowest level of messages on standard error.",
)
def switch(
    guests: tuple[str, ...],
    config_file: Path | None,
    runtime_dir: Path | None,
    linger_timeout: float | None,
    no_sandbox: bool,
    log_level: str,
) -> None:
    """Run a switch until SIGTERM or Ctrl-C.

    Each guest's VMM connects to guests/NAME.sock in the switch's directory; `vsock qemu-args NAME`
    prints the options for QEMU.
    """
    named = [_parse_guest(text) for text in guests]

    def read() -> Config:
        config = _combined(config_file, runtime_dir, named)
        return replace(
            config,
            linger_timeout=linger_timeout or config.linger_timeout,
            sandbox=config.sandbox and not no_sandbox,
        )

    config = read()
    from vsock.switch.daemon import run

    def read_again() -> Config:
        try:
            return read()
        except click.BadParameter as error:
            raise UsageError(error.message) from None

    run(config, reload=read_again if config_file else None, level=log_level)


def _parse_guest(text: str) -> GuestSpec:
    name, equals, rest = text.partition("=")
    cid, *groups = rest.split(",")
    # The longest CID has ten digits; Python does not parse thousands of digits.
    if not equals or not (cid.isascii() and cid.isdigit() and len(cid) <= 10):
        raise click.BadParameter(f"{text!r} is not NAME=CID[,GROUP...]", param_hint="--guest")
    try:
        return read(GuestSpec, {"name": name, "cid": int(cid), "groups": groups})
    except SchemaError as error:
        reasons = "; ".join(fault.reason for fault in error.faults)
        raise click.BadParameter(reasons, param_hint="--guest") from None


def _combined(file: Path | None, runtime_dir: Path | None, named: list[GuestSpec]) -> Config:
    """The guests of the file and of the command line, which must not collide."""
    from vsock.runtime import default_runtime_dir

    if file:
        config = load(file, runtime_dir=runtime_dir)
    else:
        config = Config(runtime_dir or default_runtime_dir())
    guests = list(config.guests)
    for spec in named:
        taken = conflicts(spec, guests)
        if taken:
            reasons = "; ".join(fault.reason for fault in taken)
            raise click.BadParameter(reasons, param_hint="--guest")
        guests.append(spec)
    return replace(config, guests=tuple(guests))
