"""One end of the kernel's vsock_test, with its control connection carried over this program's own pipes.

The two ends of vsock_test synchronize by lines over TCP. The guests have no network, and the test must
not depend on one. So `carry` runs beside the test and connects to it on 127.0.0.1. It copies the test's
lines to standard output, and its own standard input to the test. `Match` joins the pipes of both ends.
The messages of the test go to standard error.

`carry` is sent to guests as source text (see `vsock.testing.remote`), so its imports are inside it.
"""

from __future__ import annotations

from typing import Any


# ruff: noqa: C901 - one function, as it travels
def carry(argv: list[str], port: int, seconds: float, fenced: list[str]) -> int:
    """Run the test program `argv` and carry its control connection on `port`; returns its status.

    Args:
        argv: the program and its arguments but for those of the control connection.
        port: TCP port on 127.0.0.1 for the control connection.
        seconds: the test is killed if it takes longer.
        fenced: lines that must not overtake vsock calls made before them. Such a line is passed on only
            after the host has refused a connection from here: packets keep their order, so the packets
            sent before have been processed by then.
    """
    import contextlib
    import errno
    import os
    import socket
    import subprocess
    import sys
    import threading

    last_words_seconds = 15.0  # between both ends; no call of the test waits longer

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
        # Unbuffered: this thread may still be blocked here when the program ends.
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
