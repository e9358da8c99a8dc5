"""Services of a switch: forwards and proxies that it runs as processes of their own, as its config file wants them. Pure.

The names of fields are those of the commands' arguments, whose meaning the commands check.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final

from vsock.control.model import Name, Text
from vsock.control.schema import About, Fault, Rule

__all__ = ["ForwardSpec", "ProxySpec", "Service", "ServiceRecord"]

_MOST_CONNECTIONS: Final = 4096
_HIGHEST_RATE: Final = 10_000
_A_YEAR: Final = 365 * 86400


def _wrong_log(path: Path) -> str | None:
    return (
        None if path.is_absolute() else f"{path} is relative: the daemon's directory is not yours"
    )


def _wrong_header_file(text: str) -> str | None:
    if text.partition("=")[2].startswith("/"):
        return None
    return f"{text!r}: write HOST=FILE or HOST:PORT=FILE, with an absolute path"


def _wrong_connections(number: int) -> str | None:
    is_right = 1 <= number <= _MOST_CONNECTIONS
    return None if is_right else f"must be 1 to {_MOST_CONNECTIONS}, not {number}"


def _wrong_rate(number: int) -> str | None:
    is_right = 1 <= number <= _HIGHEST_RATE
    return None if is_right else f"must be 1 to {_HIGHEST_RATE}, not {number}"


def _wrong_idle_timeout(seconds: float) -> str | None:
    is_right = 0 < seconds <= _A_YEAR  # "nan" is not
    return None if is_right else f"must be above 0, and a year at most, not {seconds:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardSpec:
    """A forward as somebody wants it: `vsock forward LISTEN TO`."""

    kind: ClassVar[str] = "forward"

    name: Annotated[Name, About("Its name in listings and in the log.")]
    listen: Annotated[Text, About("Where it listens.")]
    to: Annotated[Text, About("Where each connection leads.")]

    @property
    def summary(self) -> str:
        """What it does, in a few words."""
        return f"{self.listen} to {self.to}"

    @property
    def reads_again(self) -> bool:
        """Whether it does something on SIGHUP, instead of ending."""
        return False

    def command(self, runtime_dir: Path) -> list[str]:
        """The arguments of `vsock`."""
        return ["forward", f"--runtime-dir={runtime_dir}", "--", self.listen, self.to]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxySpec:
    """A proxy as somebody wants it: `vsock proxy`, whose options the fields are."""

    kind: ClassVar[str] = "proxy"

    name: Annotated[Name, About("Its name in listings and in the log.")]
    allow: Annotated[tuple[Text, ...], About("Rules: who may be reached.")]
    log: Annotated[Path, Rule(_wrong_log), About("Where its log goes.")]
    listen: Annotated[tuple[Text, ...], About("Where it listens.")] = ("host:3128",)
    guests: Annotated[tuple[Name, ...], About("Only these guests.")] = ()
    header_files: Annotated[
        tuple[Annotated[str, Rule(_wrong_header_file)], ...],
        About("Headers that are added to requests for a host."),
    ] = ()
    connections: Annotated[
        int, Rule(_wrong_connections), About("Connections of one guest at once.")
    ] = 64
    rate: Annotated[int, Rule(_wrong_rate), About("Requests of one guest in a second.")] = 50
    idle_timeout: Annotated[
        float,
        Rule(_wrong_idle_timeout),
        About("Seconds for which a connection may carry no bytes."),
    ] = 3600.0

    def inconsistencies(self) -> Iterator[Fault]:
        """Yields the faults of fields that are valid by themselves but make no proxy."""
        for field in ("allow", "listen"):
            if not getattr(self, field):
                yield Fault(field, "must be a list of at least one")

    @property
    def summary(self) -> str:
        """What it does, in a few words."""
        return f"at {', '.join(self.listen)}"

    @property
    def reads_again(self) -> bool:
        """Whether it does something on SIGHUP, instead of ending."""
        return True

    def command(self, runtime_dir: Path) -> list[str]:
        """The arguments of `vsock`."""
        return [
            *("proxy", f"--runtime-dir={runtime_dir}"),
            *(f"--allow={rule}" for rule in self.allow),
            *(f"--listen={end}" for end in self.listen),
            *(f"--guest={name}" for name in self.guests),
            *(f"--header-file={text}" for text in self.header_files),
            *(f"--log={self.log}", f"--connections={self.connections}", f"--rate={self.rate}"),
            f"--idle-timeout={self.idle_timeout}",
        ]


Service = ForwardSpec | ProxySpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceRecord:
    """A service as it is. `state` is running; waiting, to be started again; or failed, as wrong usage cannot get better.

    `restarts` counts how often it was started again, and `reason` is why it ended the last time.
    """

    name: str
    kind: str
    summary: str
    state: str
    pid: int | None = None
    restarts: int = 0
    reason: str = ""
