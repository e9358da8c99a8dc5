"""How a socket goes to another process with `multiprocessing`, as `socket.socket` does.

`multiprocessing` (Pipe.send, arguments of a Process, pools) passes sockets of exactly the class
`socket.socket`; any other kind of pickle refuses them. The other process gets the descriptor, and
reads everything else from the socket (`vsock._socket.metadata`). How the descriptor gets there is
`multiprocessing`'s concern.
"""

import sys
from typing import Any

from vsock._client import Node


def is_passed_on() -> bool:
    """Tell whether our caller was called to be pickled by `multiprocessing`, which knows how to pass descriptors.

    Its table of reducers is not for us: it is loaded before us or after us, and we would have to
    load it to fill it.
    """
    caller = sys._getframe(2)
    return caller.f_globals.get("__name__") == "multiprocessing.reduction"


def reduce(sock: Any, node: Node | None) -> Any:
    """Return how `sock`, which lives at `node`, is pickled."""
    from multiprocessing.reduction import DupFd

    return rebuild, (DupFd(sock.fileno()), node, sock.gettimeout())


def rebuild(descriptor: Any, node: Node | None, timeout: float | None) -> Any:
    """Make the socket again, in the process that it went to."""
    from vsock._socket.stream import StreamSocket

    made = StreamSocket._from_fd(descriptor.detach(), node)
    if timeout is not None:
        # Otherwise the descriptor stays as it is: its other holders may have made it non-blocking meanwhile.
        made.settimeout(timeout)
    return made
