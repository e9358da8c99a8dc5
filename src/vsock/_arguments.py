"""What Python says of the arguments of a call, before AF_VSOCK says anything of the socket.

CPython looks at all arguments first, and then makes the system call. A method that stands in for one of its own and may fail
before it comes there, or has no use for an argument, asks CPython here: with the same call on a socket that was never
open, where nothing but the arguments can be wrong.
"""

import contextlib
import functools
import socket as _socket
from collections.abc import Callable
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from vsock._green import Base as _Base

_AF_VSOCK: Final = 40
_P = ParamSpec("_P")
_S = TypeVar("_S", bound=_Base)
_R = TypeVar("_R")


@functools.cache
def _never_open() -> _Base:
    """Return a socket without a descriptor that CPython takes for one of AF_VSOCK; none is ever made."""
    with _Base(_socket.AF_UNIX) as lent:
        sock = _Base(_AF_VSOCK, _socket.SOCK_STREAM, 0, fileno=lent.fileno())
        sock.detach()
    return sock


def look_at(call: Callable[..., Any], *arguments: Any, **named: Any) -> None:
    """Raise what the method `call` of the base class says of these arguments, if anything."""
    with contextlib.suppress(OSError):
        call(_never_open(), *arguments, **named)


def look_at_sendto(data: Any, rest: tuple[Any, ...]) -> None:
    """Do so for `sendto`, but for the address, which is the last argument: it may have forms of ours."""
    address = ((0, 0),) if rest else ()
    look_at(_Base.sendto, data, *rest[:-1], *address)


def arguments_first(
    method: Callable[Concatenate[_S, _P], _R],
) -> Callable[Concatenate[_S, _P], _R]:
    """Make a method say of its arguments what is to say before it says what is wrong with the socket."""
    original: Callable[..., Any] = getattr(_Base, method.__name__)

    @functools.wraps(method)
    def checked(self: _S, /, *arguments: _P.args, **named: _P.kwargs) -> _R:
        try:
            return method(self, *arguments, **named)
        except OSError:
            look_at(original, *arguments, **named)
            raise

    return checked
