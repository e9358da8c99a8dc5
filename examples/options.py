"""Options: buffer sizes and both timeouts of a connection.

    python options.py alpha:5000 --buffer 1048576 --connect-timeout 0.5

Two timeouts are easily confused. `connect_timeout` limits how long the *other side* may take to
answer a connect (2 seconds unless changed). `settimeout` limits how long any call here blocks.
"""

import argparse
import socket
import struct

import vsock

AF_VSOCK = 40
SIZE = struct.Struct("=Q")


def set_buffer(sock: vsock.socket, size: int) -> None:
    """Announce a receive buffer of `size` bytes. Raises the limit first, which would cut the size."""
    for option in (vsock.SO_VM_SOCKETS_BUFFER_MAX_SIZE, vsock.SO_VM_SOCKETS_BUFFER_SIZE):
        sock.setsockopt(AF_VSOCK, option, SIZE.pack(size))


def buffer_of(sock: vsock.socket) -> int:
    """Return the size of the receive buffer in bytes."""
    (size,) = SIZE.unpack(sock.getsockopt(AF_VSOCK, vsock.SO_VM_SOCKETS_BUFFER_SIZE, SIZE.size))
    return int(size)


def main() -> None:
    """Connect with the options of the command line, and print their values."""
    parser = argparse.ArgumentParser(description="Set the options of a connection.")
    parser.add_argument("address")
    parser.add_argument("--buffer", type=int, default=1 << 20, help="bytes")
    parser.add_argument("--connect-timeout", type=float, default=2.0, help="seconds")
    arguments = parser.parse_args()
    with vsock.socket() as sock:
        print("receive buffer by default:", buffer_of(sock))
        set_buffer(sock, arguments.buffer)
        sock.connect_timeout = arguments.connect_timeout
        sock.connect(arguments.address)
        print("receive buffer now:", buffer_of(sock))
        sock.settimeout(0.2)  # from here on no call blocks for longer
        try:
            print("received:", sock.recv(100))
        except TimeoutError:
            print("no data within 0.2 s")
        sock.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    main()
