"""trio: a client that connects without blocking the event loop, and sends while it receives.

    python trio_client.py alpha:5000 one two three

trio has a socket class of its own; it takes the descriptor of a `vsock.socket`.
"""

import argparse
import socket

import trio

import vsock


async def connect(address: str) -> trio.SocketStream:
    """Connect to `address` and return a trio stream.

    Raises:
        OSError: as `vsock.socket.connect` says.
    """
    with vsock.socket() as sock:
        sock.setblocking(False)
        try:
            sock.connect(address)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            sock.finish_connect()  # raises OSError if the connection was refused
        plain = socket.socket(fileno=sock.detach())
    return trio.SocketStream(trio.socket.from_stdlib_socket(plain))


async def send(stream: trio.SocketStream, lines: list[str]) -> None:
    """Send all lines, then the end."""
    for line in lines:
        await stream.send_all(f"{line}\n".encode())
    await stream.send_eof()


async def main(address: str, lines: list[str]) -> None:
    """Send and receive at the same time."""
    async with await connect(address) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(send, stream, lines)
        async for data in stream:
            print(data.decode(), end="")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Send lines to an echo server, with trio.")
    parser.add_argument("address")
    parser.add_argument("line", nargs="+")
    arguments = parser.parse_args()
    trio.run(main, arguments.address, arguments.line)
