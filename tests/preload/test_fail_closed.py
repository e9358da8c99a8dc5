"""No error makes a program use the kernel's AF_VSOCK."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from vsock.preload import preload_environment

TRY_ALL = """
for kind in (SOCK_STREAM, SOCK_SEQPACKET):
    s = socket.socket(AF_VSOCK, kind)
    say(error(s.bind, (ANY, 5000)), error(s.listen), error(s.connect, (2, 5000)), error(s.recv, 1))
    s.setblocking(False)
    say(error(s.connect, (2, 5000)))
"""


def test_filter_of_these_tests_ends_a_program_that_makes_a_kernel_socket() -> None:
    """The filter of these tests works: without the library it kills the program."""
    code = (
        "from vsock.cli.guard import raise_guard; raise_guard(kill=True)\n"
        "import socket; socket.socket(socket.AF_INET).close(); print('alive', flush=True)\n"
        "socket.socket(socket.AF_VSOCK)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.stdout == "alive\n"
    assert ended.returncode == -signal.SIGSYS


def test_without_a_switch_nothing_can_be_bound_or_connected(
    runtime_dir: Path, start_python: Any
) -> None:
    """The errnos of a kernel without transports, and one line with the reason."""
    out, err = start_python(TRY_ALL).communicate(timeout=30)
    assert out == "EADDRNOTAVAIL EINVAL ENODEV ENOTCONN\nENODEV\n" * 2
    assert err.count("\n") == 1
    assert "no switch answers: start one with `vsock switch`, or say where it is" in err
    assert str(runtime_dir) in err


def test_without_the_verbose_variable_nothing_is_said(runtime_dir: Path, start_python: Any) -> None:
    """The library must not write to a program's output unless it is requested.

    `vsock run` has said before what is missing (N14), once for all that it starts.
    """
    environment = preload_environment(runtime_dir)
    out, err = start_python(TRY_ALL, env=environment).communicate(timeout=30)
    assert out.count("ENODEV") == 4
    assert err.startswith(f"vsock run: no switch answers in {runtime_dir}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("fault", ["file", "long", "silent"])
def test_broken_runtime_directory_is_no_way_to_the_kernel(
    runtime_dir: Path, python: Any, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in place of the socket, a too long path, a socket without a server."""
    if fault == "file":
        (runtime_dir / "stream").touch()
    elif fault == "long":
        monkeypatch.setenv("VSOCK_RUNTIME_DIR", f"/{'x' * 120}")
    else:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(runtime_dir / "stream"))
    said = python("s = socket.socket(AF_VSOCK, SOCK_STREAM)\nsay(error(s.connect, (3, 1)))")
    assert said == ["ENODEV"]


CLOSE_UNDER_CONNECT = """
s = socket.socket(AF_VSOCK, SOCK_STREAM)
s.setblocking(sys.argv[1] == "blocking")
def close():
    sys.stdin.readline()
    os.close(s.fileno())
    say("closed")
closer = threading.Thread(target=close)
closer.start()
said = error(s.connect, (3, 1))
work = "with much work" if time.thread_time() > 0.5 else "with little work"
closer.join()  # two threads that print at once mix their words (N2)
say(said, work)
s.detach()
"""


@pytest.mark.parametrize(
    ("kind", "word"), [("blocking", True), ("non-blocking", True), ("non-blocking", False)]
)
def test_connect_whose_descriptor_is_closed_by_another_thread_ends(
    runtime_dir: Path, start_python: Any, kind: str, word: bool
) -> None:
    """N2: EBADF with the next word of the switch; and soon, without any, if that was owed at once."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(30)
        listener.bind(str(runtime_dir / "stream"))
        listener.listen()
        program = start_python(CLOSE_UNDER_CONNECT, kind, stdin=subprocess.PIPE)
        node, _ = listener.accept()
        with node:
            node.settimeout(30)
            assert node.recv(1)  # the request: the program is blocked now, or will be soon
            program.stdin.write("close\n")
            program.stdin.flush()
            assert program.stdout.readline() == "closed\n"
            if word:
                # If the descriptor was closed before connect blocked, connect has failed and the program has ended.
                with suppress(ConnectionError):
                    node.sendall(bytes(32))
                    # The rest of the request, which is read when its outcome is known.
                    node.recv(4096)
            # `communicate` does not see what came together with the first line.
            assert program.stdout.readline() == "EBADF with little work\n"
            assert program.communicate(timeout=30) == ("", "")


@pytest.mark.programs("strace")
def test_no_system_call_asks_for_af_vsock(
    switch: object, run: Callable[..., str], tmp_path: Path
) -> None:
    """strace shows all calls of a program and its child that make, bind or connect sockets, and no packet filter (A0).

    A packet filter for each socket, compiled and freed by the kernel, can deadlock a machine.
    """
    log = tmp_path / "calls"
    child = "import socket; socket.socket(socket.AF_VSOCK).connect_ex((3, 1))"
    code = f"""
import os, socket, subprocess, sys
s = socket.socket(socket.AF_VSOCK)
s.bind((0xffffffff, 6000))
s.listen()
t = socket.socket(socket.AF_VSOCK, socket.SOCK_SEQPACKET)
t.setblocking(False)
t.connect_ex((3, 1))
subprocess.run([sys.executable, "-c", {child!r}])
"""
    trace = (
        "trace=socket,socketpair,bind,connect,listen,accept,accept4,sendto,sendmsg,io_uring_setup,"
        "setsockopt,bpf,seccomp,prctl"
    )
    run("strace", "-f", "-o", str(log), "-e", trace, sys.executable, "-c", code)
    calls = log.read_text()
    assert len(re.findall(r"connect\(\d+, {sa_family=AF_UNIX", calls)) == 3
    assert "socket(AF_UNIX" in calls
    assert "VSOCK" not in calls
    assert not re.search(r"\b(listen|accept4?|io_uring_setup)\(", calls)
    # The library's own addresses are names of Unix sockets.
    named = re.findall(r"bind\(\d+, ({.*?}), ", calls)
    assert named
    assert all(name.startswith('{sa_family=AF_UNIX, sun_path=@"vsock/') for name in named)
    assert "SO_MAX_PACING_RATE" in calls
    assert not re.search(r"\b(bpf|seccomp)\(|ATTACH_(FILTER|BPF)|PR_SET_SECCOMP", calls)


@pytest.mark.programs("strace")
def test_kernel_socket_that_a_program_inherits_is_not_used(runtime_dir: Path) -> None:
    """An inherited socket of the kernel's AF_VSOCK cannot be used either.

    strace replaces each call with EIO, so that this machine's AF_VSOCK is not used if the library lets a
    call through.
    """
    try:
        kernels = socket.socket(socket.AF_VSOCK)
    except OSError as error:
        pytest.skip(f"this machine's kernel has no AF_VSOCK: {error}")
    code = """
import errno, socket, sys
s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM, fileno=int(sys.argv[1]))
for call in (lambda: s.bind((0xffffffff, 5000)), lambda: s.listen(), lambda: s.connect((2, 5000)), s.accept):
    try:
        call()
    except OSError as failure:
        print(errno.errorcode[failure.errno])
"""
    caught = "bind,listen,connect,accept,accept4"
    with kernels:
        ended = subprocess.run(
            [
                *("strace", "-qq", "-e", f"trace={caught}", "-e", f"inject={caught}:error=EIO"),
                *("-o", "/dev/null", sys.executable, "-c", code, str(kernels.fileno())),
            ],
            env=preload_environment(runtime_dir),
            pass_fds=[kernels.fileno()],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert ended.stdout.split() == ["ENODEV"] * 4, ended.stderr


def test_guard_answers_a_program_that_goes_past_the_library(runtime_dir: Path) -> None:
    """`vsock run` without the tests' filter: in a child with an empty environment AF_VSOCK is not supported."""
    code = """
import errno, os, socket, subprocess, sys
child = "import socket; socket.socket(socket.AF_VSOCK)"
ended = subprocess.run([sys.executable, "-c", child], env={}, capture_output=True, text=True)
print(socket.socket(socket.AF_VSOCK).family, ended.stderr.splitlines()[-1])
"""
    ended = subprocess.run(
        [sys.executable, "-m", "vsock.cli", "run", "--", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.stdout == "40 OSError: [Errno 97] Address family not supported by protocol\n"
