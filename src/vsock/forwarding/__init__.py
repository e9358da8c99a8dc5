"""Forwards connections: from a TCP port, a Unix socket or a vsock port here to another of these.

| module | what it is |
| --- | --- |
| `ends` | the two ends, as addresses: listening and connecting |
| `splicing` | copies between two connected sockets; no byte passes through Python |
| `acceptor` | accepts connections at an end, each served in a task |
| `forwarder` | connects each accepted connection to the other end |
| `blocking` | the same for programs without asyncio |
"""

from vsock.forwarding.blocking import BlockingForwarder
from vsock.forwarding.ends import End, TcpEnd, parse_end
from vsock.forwarding.forwarder import Forwarder, Refused

__all__ = ["BlockingForwarder", "End", "Forwarder", "Refused", "TcpEnd", "parse_end"]
