"""How a socket goes to another process with `multiprocessing`, as `socket.socket` does.

`multiprocessing` (Pipe.send, arguments of a Process, pools) pickles with a table of its own, by exact type. A socket
is put there when `multiprocessing` is used; plain pickles stay refused. What the other process gets is the
descriptor, and all else it reads off the socket (`vsock._note`). Not for the descriptor's way, which is `multiprocessing`'s.
"""

import socket as _socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from vsock.transports import SwitchTransport

makers: "dict[type[Any], Callable[[int, SwitchTransport | None], Any]]" = {}
"""Classes of sockets that can go, and what makes one of a descriptor; they add themselves."""


def register() -> None:
    """Tell `multiprocessing`, if it is there, how our sockets are pickled."""
    reduction = sys.modules.get("multiprocessing.reduction")
    if reduction is not None:
        for kind in makers:
            reduction.register(kind, _reduce)


def reduce(sock: Any) -> Any:
    """Return how `sock` is pickled by who was not told before; None if it is not."""
    reduction = sys.modules.get("multiprocessing.reduction")
    if reduction is None or type(sock) not in makers or _is_known(reduction, type(sock)):
        return None
    register()
    return _reduce(sock)


def _is_known(reduction: Any, kind: type[Any]) -> bool:
    return kind in reduction.ForkingPickler._extra_reducers


def _reduce(sock: Any) -> Any:
    from multiprocessing.reduction import DupFd

    return rebuild, (type(sock), DupFd(sock.fileno()), sock._life.transport, sock.gettimeout())


def rebuild(
    kind: type[Any], descriptor: Any, transport: "SwitchTransport | None", timeout: float | None
) -> _socket.socket:
    """Make the socket again, in the process that it went to."""
    made: _socket.socket = makers[kind](descriptor.detach(), transport)
    if timeout is not None:
        # Else the descriptor is left as it is: its other holders may have made it non-blocking meanwhile.
        made.settimeout(timeout)
    return made
