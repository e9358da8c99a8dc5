"""One end of the kernel's vsock_test, with its control connection carried over this program's own pipes.

The two ends of vsock_test take turns by lines over TCP, but our guests have no network, and should need
none: what is tested must not depend on it. So `carry` stands beside the test, connects to it on 127.0.0.1
and passes the lines on: what the test says goes to our standard output, what comes on standard input is
said to the test. Whoever has both ends' pipes joins them. What the test prints for people goes to our
standard error.

`carry` travels into guests as source text (see `vsock.testing.remote`), so it imports inside.
"""

from __future__ import annotations

from typing import Any


# ruff: noqa: C901 - one function, as it travels
def carry(argv: list[str], port: int, seconds: float, fenced: list[str]) -> int:
    """Run the test program `argv` and carry its control connection on `port`; returns its status.

    Args:
        argv: the program and its arguments but for those of the control connection.
        port: TCP port on 127.0.0.1 for the control connection.
        seconds: the test is killed when it takes longer.
        fenced: lines that must not overtake what was done with vsock sockets before them. Such a line
            is passed on only after a connection from here to the host was refused: packets keep their
            order on the way, so what was sent before them has been dealt with by then.
    """
    import contextlib
    import errno
    import os
    import socket
    import subprocess
    import sys
    import threading

    last_words_seconds = 15.0  # from the other end's end to ours; no call of the test waits longer

    def start() -> tuple[Any, socket.socket]:
        command = [*argv, "--control-host=127.0.0.1", f"--control-port={port}"]
        pipes: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
        }
        if "--mode=client" in argv:
            with socket.create_server(("127.0.0.1", port)) as door:
                door.settimeout(0.5)
                test: Any = subprocess.Popen(command, **pipes)
                while test.poll() is None:
                    with contextlib.suppress(TimeoutError):
                        return test, door.accept()[0]
                os.write(2, test.stdout.read())
                sys.exit("the test ended before it began")
        test = subprocess.Popen(command, **pipes)
        os.write(2, test.stdout.readline())  # "Control socket listening on ..."
        return test, socket.create_connection(("127.0.0.1", port))

    def kill_after(delay: float) -> None:
        timer = threading.Timer(delay, test.kill)
        timer.daemon = True
        timer.start()

    def await_refusal() -> None:
        nobody_listens = (2, 0x7FFFFFFF)
        with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
            if (failed := probe.connect_ex(nobody_listens)) != errno.ECONNRESET:
                raise OSError(failed, f"fence: {os.strerror(failed)}")

    def carry_lines(source: Any, sink: int) -> None:
        with contextlib.suppress(ConnectionError):
            for line in source:
                if line.strip().decode() in fenced:
                    await_refusal()
                os.write(sink, line)

    def carry_inbound() -> None:
        # Unbuffered: this thread may still wait here when the program ends.
        carry_lines(open(0, "rb", buffering=0, closefd=False), control.fileno())  # noqa: SIM115
        kill_after(last_words_seconds)
        with contextlib.suppress(OSError):
            control.shutdown(socket.SHUT_WR)

    def carry_output() -> None:
        while data := os.read(test.stdout.fileno(), 65536):
            os.write(2, data)

    test, control = start()
    control.settimeout(None)
    control.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    kill_after(seconds)
    threading.Thread(target=carry_inbound, daemon=True).start()
    output = threading.Thread(target=carry_output)
    output.start()
    carry_lines(control.makefile("rb"), 1)  # ends when the test does
    output.join()
    status: int = test.wait()
    return status
