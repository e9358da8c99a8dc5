"""Errors of a call's arguments, which CPython raises before AF_VSOCK says anything of the socket.

CPython checks all arguments of a call first, and then makes the system call. A method of ours that
replaces one of CPython's, and may fail before it calls the original or ignores an argument, has the
check done here: by the original, on a socket that was never open, where nothing but the arguments
can be wrong.
"""

import contextlib
import functools
from collections.abc import Callable
from socket import AF_UNIX, SOCK_STREAM
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from vsock._system.green import Base

_AF_VSOCK: Final = 40
_P = ParamSpec("_P")
_S = TypeVar("_S", bound=Base)
_R = TypeVar("_R")


@functools.cache
def _never_open() -> Base:
    """Return a socket without a descriptor that CPython takes for one of AF_VSOCK; none is ever made."""
    with Base(AF_UNIX) as lent:
        sock = Base(_AF_VSOCK, SOCK_STREAM, 0, fileno=lent.fileno())
        sock.detach()
    return sock


def check(call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Raise what the method `call` of the base class raises for these arguments, if anything."""
    with contextlib.suppress(OSError):
        call(_never_open(), *arguments, **named)


def check_sendto(data: Any, rest: tuple[Any, ...]) -> None:
    """Do so for `sendto`, except for the address, which is the last argument: it may have forms of ours."""
    address = ((0, 0),) if rest else ()
    check(Base.sendto, data, *rest[:-1], *address)


def arguments_first(
    method: Callable[Concatenate[_S, _P], _R],
) -> Callable[Concatenate[_S, _P], _R]:
    """Make a method raise what is wrong with its arguments rather than what is wrong with the socket."""
    original: Callable[..., Any] = getattr(Base, method.__name__)

    @functools.wraps(method)
    def checked(self: _S, /, *arguments: _P.args, **named: _P.kwargs) -> _R:
        try:
            return method(self, *arguments, **named)
        except OSError:
            check(original, *arguments, **named)
            raise

    return checked
