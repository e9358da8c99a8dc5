"""A case of the table: a generator that yields the actual and the expected result of each step.

::

    @case("4")
    def listen_unbound(env):
        sock = env.socket()
        yield do(sock.listen, 1), "EINVAL"

A third value is an intended difference of this package: ``ours("D7", "ok")``, with the number of the row
in docs/reference/differences.md. The results of older kernels are part of the expectation:
``since("6.17", 0, before="ENOTTY")``.
"""

import errno
import inspect
import re
import socket as _socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tests.oracle.env import Env

Version = tuple[int, ...]
Steps = Iterator[tuple[Any, ...]]
Body = Callable[..., Steps]

OK: Final = "ok"
"""The result of `do` for a call that returns None or a socket."""

_ERRNO_NAMES: Final = {**errno.errorcode, errno.EAGAIN: "EAGAIN", errno.EOPNOTSUPP: "EOPNOTSUPP"}


class NotApplicable(Exception):  # noqa: N818 - says what happened
    """A case cannot run in this column; the text is the reason."""


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    section: str  # of kernel-semantics
    title: str
    body: Callable[["Env"], Steps]
    not_in: Mapping[str, str]  # column -> why it cannot run there


@dataclass(frozen=True)
class Since:
    """An expectation that older kernels do not meet."""

    version: Version
    now: Any
    before: Any
    backports: tuple[Version, ...]

    def of(self, release: Version | None) -> Any:
        """The expected result of a kernel of this release; of this package if None."""
        has_it = (
            release is None
            or release >= self.version
            or any(b[:2] == release[:2] and release >= b for b in self.backports)
        )
        said = self.now if has_it else self.before
        return said.of(release) if isinstance(said, Since) else said


@dataclass(frozen=True)
class Deviation:
    """The result of this package at one step, and the number of the entry with the reason."""

    entry: str
    by_column: Mapping[str, Any]


TABLE: Final[dict[str, Case]] = {}


def since(version: str, now: Any, *, before: Any, backports: Iterable[str] = ()) -> Since:
    """Expect `now` of kernels from `version` on, and of stable kernels into which the change was backported."""
    return Since(_version(version), now, before, tuple(map(_version, backports)))


def ours(entry: str, value: Any = None, **by_column: Any) -> Deviation:
    """Expect this in the package's columns, or in the named ones, for the reason in `entry`."""
    return Deviation(entry, by_column or {"api": value, "preload": value})


def case(section: str, **not_in: str) -> Callable[[Body], Body]:
    """Add a function to the table; ``api="…"``, for instance, is the reason why the column `api` cannot run it."""

    def add(body: Body) -> Body:
        _add(Case(_name(body), section, inspect.getdoc(body) or "", body, not_in))
        return body

    return add


def family(section: str, rows: Mapping[str, Any], **not_in: str) -> Callable[[Body], Body]:
    """Add one case per row: the function is called with the row's values, a tuple, after `env`."""

    def add(body: Body) -> Body:
        for label, row in rows.items():
            values = row if isinstance(row, tuple) else (row,)
            title = f"{inspect.getdoc(body) or ''} [{label}]"

            def with_row(env: "Env", values: tuple[Any, ...] = values) -> Steps:
                return body(env, *values)

            _add(Case(f"{_name(body)}[{label}]", section, title, with_row, not_in))
        return body

    return add


def do(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call, and return the result: a value, `OK` for None or a socket, or the name of the errno."""
    try:
        got = call(*arguments, **options)
    except OSError as error:
        return _ERRNO_NAMES.get(error.errno or 0, type(error).__name__)
    except (TypeError, ValueError, OverflowError) as error:
        kinds = (
            TypeError,
            ValueError,
            OverflowError,
        )  # some exceptions of this package have two base classes
        return next(kind.__name__ for kind in kinds if isinstance(error, kind))
    if got is None or isinstance(got, _socket.socket):
        return OK
    return tuple(got) if isinstance(got, tuple) else got  # an address may be a subclass of tuple


def _add(made: Case) -> None:
    assert made.name not in TABLE, f"two cases are called {made.name}"
    assert made.title, f"{made.name} does not say what it is about"
    TABLE[made.name] = made


def _name(body: Body) -> str:
    return f"{body.__module__.rpartition('.')[2]}.{body.__name__}"


def _version(text: str) -> Version:
    return tuple(int(number) for number in re.findall(r"\d+", text)[:3])
