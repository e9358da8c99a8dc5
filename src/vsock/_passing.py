"""How a socket goes to another process with `multiprocessing`, as `socket.socket` does.

`multiprocessing` (Pipe.send, arguments of a Process, pools) passes sockets of exactly the class
`socket.socket`; any other kind of pickle refuses them. What the other process gets is the descriptor, and
all else it reads off the socket (`vsock._note`). Not for the descriptor's way, which is `multiprocessing`'s.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from vsock.transports import SwitchTransport


def is_passed_on() -> bool:
    """Tell whether our caller was called to be pickled by `multiprocessing`, which knows how to pass descriptors.

    Its table of reducers is no place for us: it is loaded before us or after us, and would have to be loaded by us to be filled.
    """
    caller = sys._getframe(2)
    return caller.f_globals.get("__name__") == "multiprocessing.reduction"


def reduce(sock: Any, make: "Callable[[int, SwitchTransport | None], Any]") -> Any:
    """Return how `sock` is pickled; `make` makes the socket of a descriptor and its transport."""
    from multiprocessing.reduction import DupFd

    return rebuild, (make, DupFd(sock.fileno()), sock._life.transport, sock.gettimeout())


def rebuild(
    make: "Callable[[int, SwitchTransport | None], Any]",
    descriptor: Any,
    transport: "SwitchTransport | None",
    timeout: float | None,
) -> Any:
    """Make the socket again, in the process that it went to."""
    made = make(descriptor.detach(), transport)
    if timeout is not None:
        # Else the descriptor is left as it is: its other holders may have made it non-blocking meanwhile.
        made.settimeout(timeout)
    return made
