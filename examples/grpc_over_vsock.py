"""gRPC over VSOCK, both sides. gRPC takes no socket, but the path of a Unix socket, which a forwarder connects.

    vsock guest run alpha python3 grpc_over_vsock.py serve 50051
    python3 grpc_over_vsock.py ask alpha:50051 hello

The service has no generated code, to be short: its messages are bytes. With generated code nothing else changes.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from vsock.adapters.unix_socket import client_path, server_path


class Shout(grpc.GenericRpcHandler):  # type: ignore[misc] # gRPC has no types
    """One method, which answers each word of a stream."""

    def service(self, call: Any) -> Any:
        """Return the handler of a method."""
        if call.method == "/Shout/Words":
            return grpc.stream_stream_rpc_method_handler(self.words)
        return None

    def words(self, words: Iterator[bytes], _context: Any) -> Iterator[bytes]:
        """The method."""
        return (word.upper() for word in words)


def serve(port: int) -> None:
    """Until Ctrl-C."""
    server = grpc.server(ThreadPoolExecutor(), handlers=[Shout()])
    with server_path(port) as path:
        server.add_insecure_port(f"unix:{path}")
        server.start()
        print(f"serving on port {port}", flush=True)
        server.wait_for_termination()


def ask(address: str, words: list[str]) -> None:
    """Print the answers."""
    with client_path(address) as path, grpc.insecure_channel(f"unix:{path}") as channel:
        call = channel.stream_stream("/Shout/Words")
        for answer in call((word.encode() for word in words), timeout=10):
            print(answer.decode())


if __name__ == "__main__":
    command, where, *rest = sys.argv[1:]
    serve(int(where)) if command == "serve" else ask(where, rest)
