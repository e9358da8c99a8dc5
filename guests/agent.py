"""Runs inside a guest: starts commands for the host, and sends their output and exit status back.

It uses a serial port, never vsock, so that vsock can be tested while it is broken, unbound or not
loaded yet. The host's end is `vsock.testing`.

Each message is one line of JSON. The host sends

    {"id": 1, "do": "run", "argv": ["uname", "-r"]}       start a program
    {"id": 2, "do": "python", "source": "...", "argv": []}  run Python in a child of this process
    {"id": 1, "do": "input", "data": BASE64, "eof": false}  write to its standard input
    {"id": 1, "do": "signal", "signal": 9}

and receives, with the same id,

    {"id": 1, "pid": 77}, {"id": 1, "out": BASE64}, {"id": 1, "err": BASE64}, {"id": 1, "exit": 0}
    or {"id": 1, "error": "no such program"}

The host may have WINDOW unread bytes in flight; {"ack": n} says that n more bytes were read. Without
this limit a longer message overruns the tty of User-Mode Linux, which then delivers no more data.

The first line after every start is a hello: {"hello": {"boot": ..., "kernel": ..., "uptime": ...}}.
Each line also begins with a newline, so that noise on the port does not damage the next line. Python
code runs in a forked child, because starting an interpreter takes over a second in an emulated guest.
"""

# ruff: noqa: PTH110, PTH123, SIM115, S102 - os and open() start faster than pathlib under emulation,
# and running code that the host sends is what this is for.

import base64
import collections
import hashlib
import io
import json
import linecache
import os
import selectors
import signal
import socket
import struct
import sys
import termios
import threading
import time
import traceback
import tty
import zlib
from collections.abc import Callable
from typing import Any, NoReturn

# Loaded for the children: a forked child has them already, and an import under emulation is slow.
PRELOADED = (collections, hashlib, socket, struct, threading, time, zlib)

PORTS = ("/dev/vport0p1", "/dev/ttyS0")  # virtio-serial (QEMU), serial line of User-Mode Linux
PIECE = 8192
ACK_AFTER = 512  # bytes; the host's window is 2048
Handler = Callable[[], None]


class Task:
    """One command of the host: a process with three pipes."""

    def __init__(self, number: int, pid: int, stdin: int, outputs: dict[int, str]) -> None:
        self.number = number
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.stdin: int | None = stdin
        self.outputs = outputs  # open fds -> "out" or "err"
        self.pending = bytearray()  # input that was not written to the process yet
        self.input_ends = False


class Agent:
    """The loop over the port and all tasks."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.selector = selectors.DefaultSelector()
        self.tasks: dict[int, Task] = {}
        self.received = bytearray()
        self.unacknowledged = 0
        self.selector.register(port, selectors.EVENT_READ, self.read_port)

    def run(self) -> NoReturn:
        """Serve for ever."""
        self.say({"hello": hello()})
        while True:
            for key, _ in self.selector.select():
                # An earlier handler of this round may have ended the task of this event.
                if self.selector.get_map().get(key.fd) is key:
                    handler: Handler = key.data
                    handler()

    def say(self, message: dict[str, Any]) -> None:
        """Send one message; blocks while the host does not read."""
        data = memoryview(b"\n" + json.dumps(message).encode() + b"\n")
        while data:
            data = data[os.write(self.port, data) :]

    def read_port(self) -> None:
        """Read requests of the host; a line that cannot be parsed is answered with an error."""
        data = os.read(self.port, 65536)
        if not data:  # the host's end is closed: wait until the host kills the guest or reopens it
            time.sleep(0.1)
            return
        self.unacknowledged += len(data)
        if self.unacknowledged >= ACK_AFTER:
            self.say({"ack": self.unacknowledged})
            self.unacknowledged = 0
        self.received += data
        *lines, rest = self.received.split(b"\n")
        self.received = bytearray(rest)
        for line in lines:
            if line.strip():
                self.obey(line)

    def obey(self, line: bytes) -> None:
        """Carry out one request."""
        number: object = None
        try:
            request = json.loads(line)
            number = request["id"]
            match request["do"]:
                case "run":
                    argv = request["argv"]
                    self.start(number, lambda: execute(argv))
                case "python":
                    self.start(number, lambda: interpret(request["source"], request["argv"]))
                case "input":
                    self.feed(number, base64.b64decode(request["data"]), request["eof"])
                case "signal":
                    if number in self.tasks:
                        signal.pidfd_send_signal(self.tasks[number].pidfd, request["signal"])
                case unknown:
                    raise ValueError(f"unknown request {unknown!r}")
        except Exception as error:
            self.say({"id": number, "error": f"{type(error).__name__}: {error}"})

    def start(self, number: int, body: Callable[[], NoReturn]) -> None:
        """Fork a child for `body` and watch it."""
        in_read, in_write = os.pipe()
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            become_child((in_read, out_write, err_write), body)
        for fd in (in_read, out_write, err_write):
            os.close(fd)
        for fd in (in_write, out_read, err_read):
            os.set_blocking(fd, False)
        task = Task(number, pid, in_write, {out_read: "out", err_read: "err"})
        self.tasks[number] = task
        for fd in task.outputs:
            self.selector.register(fd, selectors.EVENT_READ, lambda fd=fd: self.pass_on(task, fd))
        self.selector.register(task.pidfd, selectors.EVENT_READ, lambda: self.finish(task))
        self.say({"id": number, "pid": pid})

    def feed(self, number: int, data: bytes, ends: bool) -> None:
        """Queue input for a task."""
        task = self.tasks.get(number)
        if task is None or task.stdin is None:
            return
        if not task.pending and not task.input_ends:
            self.selector.register(task.stdin, selectors.EVENT_WRITE, lambda: self.push(task))
        task.pending += data
        task.input_ends = task.input_ends or ends

    def push(self, task: Task) -> None:
        """Write as much queued input as fits the pipe."""
        if task.stdin is None:
            return
        try:
            if task.pending:
                del task.pending[: os.write(task.stdin, task.pending)]
        except BrokenPipeError:
            task.pending.clear()
            task.input_ends = True
        if not task.pending:
            self.selector.unregister(task.stdin)
            if task.input_ends:
                os.close(task.stdin)
                task.stdin = None

    def pass_on(self, task: Task, fd: int) -> bool:
        """Send one piece of output to the host; False when there is none to read."""
        if fd not in task.outputs:
            return False
        try:
            data = os.read(fd, PIECE)
        except BlockingIOError:
            return False
        if data:
            self.say({"id": task.number, task.outputs[fd]: base64.b64encode(data).decode()})
            return True
        self.selector.unregister(fd)
        del task.outputs[fd]
        os.close(fd)
        return False

    def finish(self, task: Task) -> None:
        """Send the rest of the output, and the status, of a process that has ended."""
        for fd in list(task.outputs):
            while self.pass_on(task, fd):
                pass
        _, status = os.waitpid(task.pid, 0)
        for fd in [task.pidfd, *task.outputs]:
            self.selector.unregister(fd)
            os.close(fd)
        if task.stdin is not None:
            if task.stdin in self.selector.get_map():
                self.selector.unregister(task.stdin)
            os.close(task.stdin)
        del self.tasks[task.number]
        self.say({"id": task.number, "exit": os.waitstatus_to_exitcode(status)})


def hello() -> dict[str, Any]:
    """The first message; by the boot id the host can tell a reboot from a restart of this agent."""
    with open("/run/boot-id") as boot_id, open("/proc/uptime") as uptime:
        return {
            "boot": boot_id.read().strip(),
            "kernel": os.uname().release,
            "uptime": float(uptime.read().split()[0]),
        }


def become_child(fds: tuple[int, int, int], body: Callable[[], NoReturn]) -> NoReturn:
    """Give the forked child its three streams, close all other descriptors, then run `body`."""
    try:
        os.setsid()
        for standard, fd in enumerate(fds):
            os.dup2(fd, standard)
        os.closerange(3, 1024)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        body()
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(127)


def execute(argv: list[str]) -> NoReturn:
    """Become the program `argv`."""
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127)


def interpret(source: str, argv: list[str]) -> NoReturn:
    """Run Python code as a program, with tracebacks that show its lines."""
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # the default of Python programs
    sys.stdin = io.TextIOWrapper(open(0, "rb", closefd=False), encoding="utf-8")
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    sys.argv = ["<host>", *argv]
    linecache.cache["<host>"] = (len(source), None, source.splitlines(True), "<host>")
    status: object = 0
    try:
        exec(
            compile(source, "<host>", "exec"),
            {"__name__": "__main__", "__builtins__": __builtins__},
        )
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if status is None else status if isinstance(status, int) else 1)


def open_port() -> int:
    """Open the first port that exists, in raw mode."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for path in PORTS:
            if os.path.exists(path):
                port = os.open(path, os.O_RDWR | os.O_NOCTTY)
                if os.isatty(port):
                    tty.setraw(port, termios.TCSANOW)
                return port
        time.sleep(0.05)  # a port appears shortly after its driver was loaded
    sys.exit(f"agent: none of {', '.join(PORTS)} exists")


if __name__ == "__main__":
    Agent(open_port()).run()
