"""The demo as `make demo` runs it, with real guests of its own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import vsock
from vsock.demo.places import LinuxPlace
from vsock.demo.programs import shell_server
from vsock.testing.plugin import SharedGuests, guest_or_skip
from vsock.transports import SwitchTransport


@pytest.mark.usefixtures("vsock_switch")
def test_demo_passes_with_real_guests(linux_guests: SharedGuests) -> None:
    """Both guests are Linux, every check passes, and the exit status says so."""
    guest_or_skip(linux_guests, "qemu-6.1")
    guest_or_skip(linux_guests, "uml")
    done = subprocess.run(
        [sys.executable, "-m", "vsock.cli", "demo", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert [guest["vmm"] for guest in report["guests"]] == ["qemu", "uml"]
    assert all(guest["kernel"] for guest in report["guests"])
    assert report["ok"]
    assert report["notes"] == []
    assert report["checks"][-3]["detail"].endswith(f"says Linux {report['guests'][1]['kernel']}")


@pytest.mark.usefixtures("vsock_switch")
def test_demo_left_while_it_works_in_a_guest_leaves_no_process(
    linux_guests: SharedGuests, short_path: Path
) -> None:
    """N3: neither a machine, nor a command of `vsock` that it runs there; all have the directory in their environment."""
    guest_or_skip(linux_guests, "uml")
    with subprocess.Popen(
        [sys.executable, "-m", "vsock.cli", "demo"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(short_path)},
    ) as demo:
        assert demo.stdout
        while "a command in a guest" not in demo.stdout.readline():
            assert demo.poll() is None
        demo.send_signal(signal.SIGINT)
        assert demo.wait(60) == 130
    until_gone(short_path, "environ")
    assert not list(short_path.iterdir())


@pytest.mark.parametrize("way_out", ["signal", "reader leaves", "kill"])
@pytest.mark.usefixtures("vsock_switch")
def test_demo_left_in_the_middle_of_a_boot_leaves_no_machine(
    way_out: str, linux_guests: SharedGuests, short_path: Path
) -> None:
    """N3: with a real QEMU, whose command line names the demo's directory."""
    guest_or_skip(linux_guests, "qemu-6.1")
    with subprocess.Popen(
        [sys.executable, "-m", "vsock.cli", "demo"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(short_path)},
    ) as demo:
        assert demo.stdout
        while "alpha: kernel is up" not in demo.stdout.readline():
            assert demo.poll() is None
        assert running_from(short_path, "cmdline")
        if way_out == "reader leaves":
            demo.stdout.close()
        else:
            demo.send_signal(signal.SIGINT if way_out == "signal" else signal.SIGKILL)
        expected = {"signal": 130, "reader leaves": 1, "kill": -signal.SIGKILL}
        assert demo.wait(60) == expected[way_out]
    until_gone(short_path, "cmdline")
    assert way_out == "kill" or not list(short_path.iterdir())


def until_gone(directory: Path, where: str) -> None:
    """Wait for the end of all processes that name a file in `directory`."""
    deadline = time.monotonic() + 30
    while running := running_from(directory, where):
        assert time.monotonic() < deadline, running
        signal.sigtimedwait([], 0.05)


def running_from(directory: Path, where: str) -> list[str]:
    """Processes that name a file in `directory`, in their "cmdline" or "environ": what they have there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found.append((process / where).read_bytes().decode(errors="replace"))
    return [line for line in found if str(directory) in line]


@pytest.mark.usefixtures("vsock_switch")
def test_shell_that_is_kept_has_a_terminal(
    vsock_runtime_dir: Path, linux_guests: SharedGuests
) -> None:
    """N28: job control works without a warning, and Ctrl-C ends a command, not the session."""
    guest = guest_or_skip(linux_guests, "qemu-6.1")
    server = LinuxPlace(guest, linux_guests.cid("qemu-6.1")).start(shell_server, 2323)
    assert server.read_line() == "listening"
    where = SwitchTransport(str(vsock_runtime_dir))
    with vsock.create_connection("qemu-6.1:2323", 30, transport=where) as shell:
        shell.settimeout(30)
        said = read_until(shell, b"# ")
        shell.sendall(b"sh -c 'echo started; exec sleep 1000'\n")
        said += read_until(shell, b"\r\nstarted\r\n")
        shell.sendall(b"\x03")
        said += read_until(shell, b"# ")
        shell.sendall(b"echo $((6 * 7))\n")
        said += read_until(shell, b"\r\n42\r\n")
    assert b"can't access tty" not in said


def read_until(connection: socket.socket, end: bytes) -> bytes:
    """The received data up to the first `end`."""
    said = b""
    while end not in said:
        piece = connection.recv(4096)
        assert piece, said
        said += piece
    return said
