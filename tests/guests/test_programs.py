"""Unmodified programs of Debian: on the host under `vsock run`, in a real guest with its kernel's AF_VSOCK.

Programs in the guest come from `programs.tar` (guests/programs.py), which is sent to the guest over vsock.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vsock.demo.nets import KernelNet
from vsock.demo.places import LinuxPlace, Place, ProcessTask, run_pair
from vsock.demo.programs import receive_bytes, send_bytes
from vsock.preload import preload_environment
from vsock.testing.remote import program

KIND = "uml"
DEADLINE = 60
SIZE = 4 << 20


UntilConnected = Callable[[int, int], Any]


@pytest.fixture(autouse=True)
def host_programs(host_programs: None) -> None:
    """Skip these tests if one of their programs is not installed."""


class PreloadedPlace:
    """The host, for programs that use plain `socket.AF_VSOCK`."""

    name = "host"
    cid = 2

    def __init__(self, runtime_dir: Path) -> None:
        self._runtime_dir = runtime_dir

    def start(self, function: Any, *arguments: Any) -> ProcessTask:
        """Start a program of the demo as it runs in guests."""
        first, _, rest = program(function, *arguments, context=KernelNet).partition("\n")
        # The filter kills a program that creates a socket of the kernel's AF_VSOCK.
        guard = "from vsock.cli.guard import raise_guard\nraise_guard(kill=True)\n"
        source = f"{first}\n{guard}{rest}"
        environment = preload_environment(self._runtime_dir)
        return ProcessTask([sys.executable, "-c", source], environment)


@pytest.fixture
def plain_host(vsock_switch: Any) -> PreloadedPlace:
    """The host with Python's own AF_VSOCK, under the preload library."""
    return PreloadedPlace(vsock_switch.runtime_dir)


@pytest.mark.parametrize("direction", ["to guest", "to host"])
def test_pythons_own_af_vsock_moves_bytes(
    plain_host: PreloadedPlace, place: Callable[[str], LinuxPlace], port: int, direction: str
) -> None:
    """The same program runs at both ends; the checksums are equal."""
    guest: Place = place(KIND)
    source, sink = (plain_host, guest) if direction == "to guest" else (guest, plain_host)
    received, sent = run_pair(
        sink, (receive_bytes, port, SIZE), source, (send_bytes, sink.cid, port, SIZE)
    )
    assert received["checksum"] == sent["checksum"]


@pytest.mark.parametrize(
    "client",
    [
        ["socat", "-t60", "-", "VSOCK-CONNECT:{cid}:{port}"],
        ["ncat", "--vsock", "{cid}", "{port}"],
    ],
)
def test_client_on_the_host_reaches_socat_in_the_guest(
    furnished: LinuxPlace,
    in_guest: Callable[[str], Any],
    until_connected: UntilConnected,
    start_preloaded: Any,
    tmp_path: Path,
    port: int,
    client: list[str],
) -> None:
    """Bytes from standard input, the half-close, and the guest's answer."""
    data = os.urandom(SIZE)
    (tmp_path / "data").write_bytes(data)
    in_guest(f"socat VSOCK-LISTEN:{port},fork EXEC:sha256sum")
    until_connected(furnished.cid, port).close()
    command = [word.format(cid=furnished.cid, port=port) for word in client]
    with (tmp_path / "data").open() as file:
        out, err = start_preloaded(*command, stdin=file).communicate(timeout=DEADLINE)
    assert out.split()[:1] == [hashlib.sha256(data).hexdigest()], err


@pytest.mark.parametrize(
    "server",
    [
        ["socat", "VSOCK-LISTEN:{},fork", "EXEC:cat"],
        ["ncat", "--vsock", "-l", "{}", "--keep-open", "--exec", shutil.which("cat") or ""],
    ],
)
def test_socat_in_the_guest_reaches_a_server_on_the_host(
    furnished: LinuxPlace, start_preloaded: Any, port: int, server: list[str]
) -> None:
    """socat in the guest retries until the server listens."""
    start_preloaded(*(word.format(port) for word in server))
    said = furnished.guest.run(
        f"(echo question; sleep 1) | socat -t9 - VSOCK-CONNECT:2:{port},retry=100,interval=0.1",
        timeout=DEADLINE,
    )
    assert said.stdout == "question\n", said.stderr


def test_nbdkit_in_the_guest_is_copied_by_nbdcopy(
    furnished: LinuxPlace,
    in_guest: Callable[[str], Any],
    until_connected: UntilConnected,
    run_preloaded: Any,
    tmp_path: Path,
    port: int,
) -> None:
    """The host copies a block device of the guest, and then writes to it."""
    plugin = "/usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-file-plugin.so"
    furnished.guest.run(f"head -c {SIZE} /dev/urandom >/tmp/disk")
    in_guest(f"nbdkit -f --vsock --port {port} {plugin} /tmp/disk")
    until_connected(furnished.cid, port).close()
    source = f"nbd+vsock://{furnished.cid}:{port}/"
    (export,) = json.loads(run_preloaded("nbdinfo", "--json", source))["exports"]
    assert export["export-size"] == SIZE
    copy = tmp_path / "copy"
    run_preloaded("nbdcopy", "--connections=4", source, str(copy))
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == checksum(furnished, "/tmp/disk")
    copy.write_bytes(os.urandom(SIZE))
    run_preloaded("nbdcopy", str(copy), source)
    assert hashlib.sha256(copy.read_bytes()).hexdigest() == checksum(furnished, "/tmp/disk")


def checksum(place: LinuxPlace, path: str) -> str:
    """SHA-256 of a file in the guest."""
    return str(place.guest.run(f"sha256sum {path}").stdout.split()[0])


def read_export(cid: int, port: int, size: int) -> str:
    """In the guest: a minimal NBD client (fixed newstyle); returns the export's SHA-256."""
    import hashlib
    import socket
    import struct
    import time

    for _ in range(100):
        connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        try:
            connection.connect((cid, port))
            break
        except ConnectionResetError:
            time.sleep(0.1)
    stream = connection.makefile("rwb")
    assert stream.read(16) == b"NBDMAGICIHAVEOPT"
    stream.read(2)
    # Flags: fixed newstyle, no zeroes; then NBD_OPT_EXPORT_NAME with the empty name.
    stream.write(struct.pack(">I8sII", 3, b"IHAVEOPT", 1, 0))
    stream.flush()
    found, _ = struct.unpack(">QH", stream.read(10))
    assert found == size
    digest = hashlib.sha256()
    for offset in range(0, size, 1 << 18):
        stream.write(struct.pack(">IHHQQI", 0x25609513, 0, 0, offset, offset, 1 << 18))
        stream.flush()
        assert struct.unpack(">IIQ", stream.read(16)) == (0x67446698, 0, offset)
        digest.update(stream.read(1 << 18))
    return digest.hexdigest()


def test_nbdkit_on_the_host_is_read_from_the_guest(
    place: Callable[[str], LinuxPlace], start_preloaded: Any, tmp_path: Path, port: int
) -> None:
    """The other direction."""
    disk = tmp_path / "disk"
    disk.write_bytes(os.urandom(SIZE))
    start_preloaded("nbdkit", "-f", "--vsock", "--port", str(port), "file", str(disk))
    got = place(KIND).guest.call(read_export, 2, port, SIZE, timeout=DEADLINE)
    assert got == hashlib.sha256(disk.read_bytes()).hexdigest()


def test_guest_agent_answers_a_client_on_the_host(
    furnished: LinuxPlace,
    in_guest: Callable[[str], Any],
    until_connected: UntilConnected,
    start_preloaded: Any,
    port: int,
) -> None:
    """qemu-ga in the guest, socat on the host, both unmodified."""
    in_guest(
        f"/usr/sbin/qemu-ga -m vsock-listen -p {furnished.cid}:{port} -t /tmp -f /tmp/qemu-ga.pid"
    )
    until_connected(furnished.cid, port).close()
    client = start_preloaded(
        *("socat", "-t30", "-", f"VSOCK-CONNECT:{furnished.cid}:{port}"),
        stdin=subprocess.PIPE,
        bufsize=1,
    )
    client.stdin.write('{"execute": "guest-get-osinfo"}\n')
    answer = json.loads(client.stdout.readline())["return"]
    assert answer["kernel-release"] == furnished.guest.kernel_release
