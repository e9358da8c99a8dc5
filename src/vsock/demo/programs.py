"""Programs at the two ends of a check: short self-contained functions.

They are sent as source text to a guest, or run as a process on the host. So a function has its imports
inside and uses nothing else of this module. A program that listens prints "listening" as soon as it
listens. Port numbers and sizes are arguments, results are JSON.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket

    from vsock.demo.nets import Net


def echo_server(net: Net, port: int, kind: int, connections: int) -> int:
    """Send everything back; end when this many connections have ended. Returns their number."""
    import selectors

    listener = net.listen(port, kind)
    print("listening", flush=True)
    waiting = selectors.DefaultSelector()
    waiting.register(listener, selectors.EVENT_READ)
    gone = 0
    while gone < connections:
        ready = waiting.select(20)
        if not ready:
            raise TimeoutError(f"{gone} of {connections} connections ended within 20 s")
        for key, _ in ready:
            if key.fileobj is listener:
                connection: socket.socket = listener.accept()[0]
                connection.settimeout(20)
                waiting.register(connection, selectors.EVENT_READ, connection)
                continue
            data = key.data.recv(1 << 17)
            if data:
                key.data.sendall(data)
            else:
                waiting.unregister(key.data)
                key.data.close()
                gone += 1
    return gone


def ping(net: Net, cid: int, port: int, rounds: int) -> float:
    """Send one byte and wait for its echo, many times; returns the median in seconds."""
    import statistics
    import time

    with net.connect(cid, port) as connection:
        times = []
        for number in range(rounds):
            sent = bytes([number % 256])
            begun = time.perf_counter()
            connection.sendall(sent)
            if connection.recv(1) != sent:
                raise AssertionError("another byte came back")
            times.append(time.perf_counter() - begun)
    return statistics.median(times)


def refused(net: Net, cid: int, port: int, attempts: int) -> float:
    """Connect to a port without a listener; returns the median time to the refusal in seconds."""
    import statistics
    import time

    times = []
    for _ in range(attempts):
        begun = time.perf_counter()
        try:
            net.connect(cid, port).close()
        except ConnectionResetError:
            times.append(time.perf_counter() - begun)
        else:
            raise AssertionError(
                f"a connection to {cid}:{port} succeeded, but no program listens there"
            )
    return statistics.median(times)


def send_bytes(net: Net, cid: int, port: int, size: int) -> dict[str, Any]:
    """Send `size` bytes (whole MiB) and wait for the receipt; returns their checksum and the time.

    Each MiB contains its number, so that one in a wrong place changes the checksum. The same buffer is
    used each time: new memory costs a page fault every 4 KiB, which takes longer in these guests than
    sending its content.
    """
    import os
    import time
    import zlib

    block = bytearray(os.urandom(1 << 16) * 16)
    checksum = 0
    for number in range(size >> 20):
        block[:8] = number.to_bytes(8, "big")
        checksum = zlib.crc32(block, checksum)
    with net.connect(cid, port) as connection:
        begun = time.perf_counter()
        for number in range(size >> 20):
            block[:8] = number.to_bytes(8, "big")
            connection.sendall(block)
        if connection.recv(1) != b"!":
            raise AssertionError("no receipt arrived")
        return {"checksum": checksum, "seconds": time.perf_counter() - begun}


def receive_bytes(net: Net, port: int, size: int) -> dict[str, Any]:
    """Receive `size` bytes (whole MiB) from one connection and send a receipt; returns their checksum."""
    import zlib

    with net.listen(port) as listener:
        print("listening", flush=True)
        connection: socket.socket = listener.accept()[0]
    checksum = 0
    with connection:
        connection.settimeout(20)
        block = memoryview(bytearray(1 << 20))
        for number in range(size >> 20):
            filled = 0
            while filled < len(block):
                count = connection.recv_into(block[filled:])
                if count == 0:
                    raise AssertionError(f"the connection ended after {number} MiB of {size >> 20}")
                filled += count
            checksum = zlib.crc32(block, checksum)
        connection.sendall(b"!")
        if connection.recv(1):
            raise AssertionError("more bytes arrived than were sent")
    return {"checksum": checksum}


def send_file(net: Net, cid: int, port: int, path: str) -> int:
    """Send a file and wait for the receiver to close; returns its size."""
    from pathlib import Path

    with net.connect(cid, port) as connection, Path(path).open("rb") as file:
        size = connection.sendfile(file)
        connection.shutdown(1)  # SHUT_WR
        if connection.recv(1):
            raise AssertionError("the receiver says something")
    return size


def receive_files(net: Net, port: int) -> int:
    """Receive an archive (tar) in one connection, and unpack it at the root; returns the number of files."""
    import tarfile

    with net.listen(port) as listener:
        print("listening", flush=True)
        connection: socket.socket = listener.accept()[0]
    with connection, connection.makefile("rb") as stream:
        connection.settimeout(20)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            archive.extractall("/")
            return len(archive.getmembers())


def greet_by_tcp(net: Net, port: int, text: str) -> None:
    """Send a text to the first who connects to a TCP port of the loopback."""
    import socket

    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(20)
        print("listening", flush=True)
        connection = listener.accept()[0]
    with connection:
        connection.sendall(text.encode())


def many_clients(net: Net, cid: int, port: int, count: int) -> int:
    """Keep `count` connections open at once, and check the echo of each one's message."""
    connections = [net.connect(cid, port) for _ in range(count)]
    messages = [f"connection {number}".encode() for number in range(count)]
    for connection, message in zip(connections, messages, strict=True):
        connection.sendall(message)
    for connection, message in zip(connections, messages, strict=True):
        got = b""
        while len(got) < len(message):
            piece = connection.recv(len(message) - len(got))
            if not piece:
                raise AssertionError(f"the connection ended before its echo: {message!r}")
            got += piece
        if got != message:
            raise AssertionError(f"{message!r} came back as {got!r}")
    for connection in connections:
        connection.close()
    return count


def answer_after_end(net: Net, port: int) -> int:
    """Read to the end of the other side's data, and only then answer with the data."""
    with net.listen(port) as listener:
        print("listening", flush=True)
        connection: socket.socket = listener.accept()[0]
    with connection:
        connection.settimeout(20)
        data = b""
        while piece := connection.recv(65536):
            data += piece
        connection.sendall(data[::-1])
    return len(data)


def ask_and_end(net: Net, cid: int, port: int, size: int) -> int:
    """Send, shut down the sending direction, and read the answer."""
    import os
    import socket

    question = os.urandom(size)
    with net.connect(cid, port) as connection:
        connection.sendall(question)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    if answer != question[::-1]:
        raise AssertionError(f"{len(answer)} bytes came as answer to {size}, or wrong ones")
    return size


def send_messages(net: Net, cid: int, port: int, sizes: list[int]) -> int:
    """Send messages to an echo server over SOCK_SEQPACKET; each must come back as one whole message."""
    import os

    messages = [os.urandom(size) for size in sizes]
    with net.connect(cid, port, 5) as connection:
        for message in messages:
            connection.send(message)
        for message in messages:
            got = connection.recv(1 << 17)
            if got != message:
                raise AssertionError(f"a message of {len(message)} bytes came as {len(got)}")
    return len(messages)


def shell_server(net: Net, port: int) -> None:
    """For `--keep`: a shell on a terminal of its own for each connection, until the guest ends."""
    import contextlib
    import os
    import pty
    import select
    import subprocess
    import threading
    from pathlib import Path

    # A guest boots without devpts.
    if not Path("/dev/pts/ptmx").exists():
        Path("/dev/pts").mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "devpts", "devpts", "/dev/pts"], check=True)

    def carry(connection: socket.socket, terminal: int, shell: int) -> None:
        fd = connection.fileno()
        with connection, contextlib.suppress(OSError):  # EIO: the shell has ended
            while ready := select.select([fd, terminal], [], [])[0]:
                for source, sink in ((fd, terminal), (terminal, fd)):
                    if source in ready:
                        data = os.read(source, 4096)
                        if not data:
                            raise OSError("the caller has left")
                        os.write(sink, data)
        os.close(terminal)
        os.waitpid(shell, 0)

    listener = net.listen(port)
    listener.settimeout(None)
    print("listening", flush=True)
    while True:
        connection = listener.accept()[0]
        connection.settimeout(None)
        shell, terminal = pty.fork()
        if shell == 0:
            os.closerange(3, 256)
            os.execvp("sh", ["sh", "-i"])
        threading.Thread(target=carry, args=(connection, terminal, shell), daemon=True).start()
