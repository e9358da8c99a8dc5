"""Where sockets live. Each module is one transport, found by its name when a program asks for it.

==========  =============================================================================================
`switch`    (the default) a vsock switch on this machine, found by its runtime directory; a userspace
            guest (`vsock.Guest`) is the same with a directory of its own
`kernel`    the kernel's own AF_VSOCK, for programs inside a guest. Only when asked for by name, in an
            argument, in an address (``kernel:CID:PORT``) or in ``VSOCK_TRANSPORT``: nothing here ever
            falls back to it
`unix`      plain Unix sockets (``unix:/path``)
`hvsock`    Unix sockets of Firecracker, Cloud Hypervisor and our own switch (``hvsock:///path:PORT``)
`memory`    both ends in one process, without a switch: for tests of programs
==========  =============================================================================================

A transport implements `Transport`, which is all that `vsock.sockets` and `vsock.aio` know of it. A
module may have an address form too: a class whose `transport` is the module's name, and a function
`parse`, which reads text that begins with ``NAME://``. Another transport is another file here;
tests/forms/abstract.py is one.
"""

from vsock._socket.transport import Transport, choose, transport_for
from vsock.transports.kernel import KernelTransport
from vsock.transports.switch import SwitchTransport

__all__ = ["KernelTransport", "SwitchTransport", "Transport", "choose", "transport_for"]
