"""Commands, forwards and mounts, while a guest is paused, after it was reset, and after it was restored from a snapshot.

A stock Debian 13 is paused and reset (QMP `stop`, `cont`, `system_reset`). QEMU makes no snapshot of a guest with a
vhost-user-vsock device: that is unplugged before, and plugged in again, in a small guest with vsock-sshd.
"""

import errno
import hashlib
import os
import select
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from tests.guests.conftest import SwitchProcess
from tests.guests.debian_commands import SECONDS, in_guest, run
from tests.started import Start, started
from tests.unread import readable
from tests.waiting import until

from vsock.ssh.guest_server import PROGRAM, cpio, files_for_guest
from vsock.ssh.identity import Identity
from vsock.ssh.mounts import mount_at
from vsock.testing import QemuGuest
from vsock.testing.debian import DebianGuest
from vsock.testing.errors import GuestUnavailable
from vsock.testing.images import find_image
from vsock.testing.plugin import DEBIAN, DEBIAN_BOOT_SECONDS, REQUIRED_VARIABLE
from vsock.testing.qmp import QmpError
from vsock.vmm import qemu_args

SIZE = 16 << 20
"""Bytes of a transfer; more than all buffers on its way hold."""

INSIDE = 45678
"""A TCP port of the guest that nothing there uses."""

NAME = "restored"
CID = 93
MEMORY_MIB = 256
DEVICE, CHARDEV = f"vsock-{NAME}", f"vsock-socket-{NAME}"
"""What `vsock qemu-args` calls them."""

pytestmark = pytest.mark.programs("sshfs", "fusermount3")
debian_is_up = pytest.mark.timeout(2 * DEBIAN_BOOT_SECONDS + 3 * SECONDS)


@pytest.fixture
def kept_session(debian_user: None) -> Iterator[None]:
    """Commands need no login, which takes an emulated guest seconds."""
    run("wait", DEBIAN, "--ssh", "--timeout", str(SECONDS))
    run("session", "open", DEBIAN)
    yield
    # After a reset it is another one, or none.
    run("wait", DEBIAN, "--ssh", "--timeout", str(DEBIAN_BOOT_SECONDS))
    run("session", "open", DEBIAN)
    run("session", "close", DEBIAN)


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts the command, and ends it with the test."""
    with started() as begin:
        yield begin


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Folders to mount at, from which nothing is mounted at the end."""
    made = tmp_path / "one", tmp_path / "other"
    for folder in made:
        folder.mkdir()
    yield made
    for folder in made:
        if mount_at(str(folder)):
            subprocess.run(["fusermount3", "-uz", str(folder)], check=True)


@pytest.fixture
def server() -> Iterator[socket.socket]:
    """A TCP server of this host."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(SECONDS)
        yield listening


@contextmanager
def paused(guest: DebianGuest) -> Iterator[None]:
    """The guest stands still in the block."""
    guest.qmp("stop")
    try:
        yield
    finally:
        guest.qmp("cont")


def line_of(stream: IO[bytes] | None) -> str:
    """The next line that a command writes."""
    assert stream
    return stream.readline().decode()


def through_the_guest(server: socket.socket) -> tuple[str, ...]:
    """Options for a forward that leads into the guest, and from there back to a server of this host."""
    port = server.getsockname()[1]
    return "-R", f"{INSIDE}:127.0.0.1:{port}", "-L", f"127.0.0.1:0:127.0.0.1:{INSIDE}"


def listening(forwarding: "subprocess.Popen[bytes]") -> int:
    """The port of this host at which such a forward listens, when it does."""
    lines = [line_of(forwarding.stdout) for _ in range(2)]
    (here,) = [line for line in lines if line.endswith(f" to 127.0.0.1:{INSIDE} of {DEBIAN}\n")]
    return int(here.split()[1].rpartition(":")[2])


def connected(port: int, server: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A connection through the guest: both of its ends are here."""
    client = socket.create_connection(("127.0.0.1", port), SECONDS)
    accepted, _ = server.accept()
    accepted.settimeout(SECONDS)
    return client, accepted


def is_writable(sock: socket.socket) -> bool:
    """Whether a socket has room, or gets some within a second."""
    return bool(select.select([], [sock], [], 1)[1])


def digest_of(connection: socket.socket) -> str:
    """The digest of all that comes until the end."""
    digest = hashlib.sha256()
    while piece := connection.recv(1 << 16):
        digest.update(piece)
    return digest.hexdigest()


@pytest.mark.usefixtures("kept_session")
@debian_is_up
def test_paused_guest_ends_nothing(
    debian: DebianGuest,
    start: Start,
    folders: tuple[Path, Path],
    server: socket.socket,
) -> None:
    """A command's data, a transfer through a forward and a file of a mount wait for it, and are whole."""
    folder = folders[0]
    in_guest("mkdir /tmp/shared; head -c 3000000 /dev/urandom > /tmp/shared/file")
    digest = in_guest("sha256sum < /tmp/shared/file").split()[0]
    run("mount", f"{DEBIAN}:/tmp/shared", str(folder))
    command = start("exec", DEBIAN, "--", "cat", stdin=subprocess.PIPE)
    assert command.stdin
    command.stdin.write(b"before\n")
    assert line_of(command.stdout) == "before\n"
    forwarding = start("forward", *through_the_guest(server), DEBIAN)
    client, accepted = connected(listening(forwarding), server)
    data = os.urandom(SIZE)
    sent = 0
    with client, accepted, ThreadPoolExecutor() as threads:
        arriving = threads.submit(digest_of, accepted)
        client.setblocking(False)
        with paused(debian):
            # Until all buffers on the way are full, and each of the three waits for the guest.
            while sent < SIZE and is_writable(client):
                sent += client.send(data[sent : sent + (1 << 20)])
            assert sent < SIZE
            command.stdin.write(b"during\n")
            stdin = command.stdin
            until(lambda: readable(stdin) == 0)
            reading = in_thread(threads, (folder / "file").read_bytes)
        client.settimeout(SECONDS)
        client.sendall(data[sent:])
        client.shutdown(socket.SHUT_WR)
        assert arriving.result(SECONDS) == hashlib.sha256(data).hexdigest()
        assert hashlib.sha256(reading.result(SECONDS)).hexdigest() == digest
    out, err = command.communicate(timeout=SECONDS)
    assert (command.returncode, out, err) == (0, b"during\n", b"")
    run("umount", str(folder))
    in_guest("rm -r /tmp/shared")


def in_thread(threads: ThreadPoolExecutor, call: Callable[[], bytes]) -> "Future[bytes]":
    """Run a call in a thread, and return when that sleeps in the kernel."""
    begun: Future[int] = Future()

    def work() -> bytes:
        begun.set_result(threading.get_native_id())
        return call()

    result = threads.submit(work)
    state = Path(f"/proc/self/task/{begun.result(SECONDS)}/stat")
    until(lambda: state.read_text().rpartition(") ")[2][0] in "SD")
    return result


def check_forward(port: int, server: socket.socket) -> None:
    """Data goes through the guest whole."""
    data = os.urandom(1 << 20)
    client, accepted = connected(port, server)
    with client, accepted, ThreadPoolExecutor() as threads:
        arriving = threads.submit(digest_of, accepted)
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        assert arriving.result(SECONDS) == hashlib.sha256(data).hexdigest()


def rest_of(process: "subprocess.Popen[bytes]") -> tuple[int, str, list[str]]:
    """How a command ends: its exit code, its output and the lines of its standard error."""
    out, err = process.communicate(timeout=DEBIAN_BOOT_SECONDS + SECONDS)
    return process.returncode, out.decode(), err.decode().splitlines()


LOST = f"vsock: the session with {DEBIAN} ended"
GIVEN_UP = "Input/output error"
COUNTS = (
    "n=0; until [ -e /tmp/end ]; do n=$((n + 1)); echo $n; sleep 0.05; done; echo e >&2; exit 7"
)


@pytest.mark.long
@pytest.mark.usefixtures("kept_session")
@debian_is_up
def test_guest_that_is_paused_for_too_long_is_given_up_until_it_is_back(
    debian: DebianGuest, start: Start, folders: tuple[Path, Path], server: socket.socket
) -> None:
    """Keepalives are not answered: each says so in a line. With --reconnect all go on; a kept session does in any case."""
    in_guest("rm -f /tmp/end")
    for folder, words in zip(folders, ((), ("--reconnect",)), strict=True):
        run("mount", *words, f"{DEBIAN}:/usr/lib", str(folder))
    command = start("exec", DEBIAN, "--reconnect", "--", "sh", "-c", COUNTS)
    forwarding = start("forward", "--reconnect", *through_the_guest(server), DEBIAN)
    port = listening(forwarding)
    check_forward(port, server)
    assert line_of(command.stdout) == "1\n"
    with paused(debian), ThreadPoolExecutor() as threads:
        reads = [in_thread(threads, (folder / "os-release").read_bytes) for folder in folders]
        assert line_of(command.stderr).startswith(LOST)
        assert line_of(forwarding.stderr).startswith(LOST)
        for read in reads:
            error = read.exception(SECONDS)
            assert isinstance(error, OSError)
            assert error.errno == errno.EIO
        for one in (command, forwarding):
            assert f"{DEBIAN} does not answer" in line_of(one.stderr)
    assert listening(forwarding) == port
    check_forward(port, server)
    release = in_guest("touch /tmp/end; cat /usr/lib/os-release")
    code, out, err = rest_of(command)
    assert (code, err[-1]) == (7, "e")
    numbers = [int(line) for line in out.splitlines()]
    assert numbers == list(range(2, len(numbers) + 2))
    until(lambda: is_readable(folders[1] / "os-release"), SECONDS)
    assert (folders[1] / "os-release").read_text().strip() == release
    with pytest.raises(OSError, match=GIVEN_UP):
        (folders[0] / "os-release").read_bytes()


def is_readable(file: Path) -> bool:
    """Whether a file of a mount can be read; it cannot while the guest is away."""
    try:
        return bool(file.read_bytes())
    except OSError as error:
        assert error.errno == errno.EIO
        return False


@pytest.mark.long
@pytest.mark.usefixtures("kept_session")
@debian_is_up
def test_guest_that_is_reset_ends_what_has_no_reconnect(
    debian: DebianGuest, start: Start, folders: tuple[Path, Path], server: socket.socket
) -> None:
    """Each says so in one line. With --reconnect the forward and the mount come back; the command cannot, and says why."""
    for folder, words in zip(folders, ((), ("--reconnect",)), strict=True):
        run("mount", *words, f"{DEBIAN}:/usr/lib", str(folder))
        assert is_readable(folder / "os-release")
    script = "echo begun; sleep 1000"
    command = start("exec", DEBIAN, "--", "sh", "-c", script)
    again = start("exec", DEBIAN, "--reconnect", "--name", "x", "--", "sh", "-c", script)
    forwarding = start("forward", "-D", "127.0.0.1:0", DEBIAN)
    back = start("forward", "--reconnect", *through_the_guest(server), DEBIAN)
    port = listening(back)
    for one in (command, again, forwarding):
        assert line_of(one.stdout)
    in_guest("sync")  # so that the job's files outlive the reset
    debian.qmp("system_reset")
    ended = f"vsock: {DEBIAN}: the session ended before COMMAND did"
    assert rest_of(command) == (255, "", [ended])
    assert rest_of(forwarding) == (1, "", [LOST])
    with pytest.raises(OSError, match=GIVEN_UP):
        (folders[0] / "os-release").read_bytes()
    for one in (again, back):
        assert line_of(one.stderr).startswith(LOST)
    code, out, err = rest_of(again)
    assert (code, out) == (255, "")
    assert (
        err[-1] == f"vsock: {DEBIAN}: job x is lost: the guest was restarted before COMMAND ended"
    )
    assert listening(back) == port
    check_forward(port, server)
    until(lambda: is_readable(folders[1] / "os-release"), SECONDS)
    with pytest.raises(OSError, match=GIVEN_UP):
        (folders[0] / "os-release").read_bytes()


class PluggedGuest:
    """Our small Linux with vsock-sshd in it, whose vsock device can be unplugged."""

    def __init__(self, socket_path: Path, archive: Path, disk: Path) -> None:
        self._socket_path = socket_path
        self.linux = QemuGuest(
            None,
            NAME,
            memory_mib=MEMORY_MIB,
            boot_timeout=2 * SECONDS,
            extra=[
                *("-initrd", str(archive)),
                # Snapshots are kept in the overlay of a disk.
                *("-drive", f"if=none,id=disk,format=raw,snapshot=on,file={disk}"),
                *("-device", "virtio-blk-pci,drive=disk"),
                *("-device", "pcie-root-port,id=root-port,chassis=1"),
                *qemu_args(
                    socket_path, NAME, memory_mib=MEMORY_MIB, device_options=["bus=root-port"]
                ),
            ],
        )

    def monitor(self, line: str) -> str:
        """What QEMU's monitor says to a line; it is empty for what succeeds."""
        said: str = self.linux.qmp("human-monitor-command", **{"command-line": line})
        return said.strip()

    def unplug(self) -> None:
        """Take the vsock device away."""
        self.linux.qmp("device_del", id=DEVICE)
        until(lambda: DEVICE not in self._devices(), SECONDS)
        until(self._has_hung_up, SECONDS)

    def plug_in(self) -> None:
        """Connect with the switch again."""
        address = {"type": "unix", "data": {"path": str(self._socket_path)}}
        backend = {"type": "socket", "data": {"addr": address, "server": False}}
        self.linux.qmp("chardev-add", id=CHARDEV, backend=backend)
        options = {"id": DEVICE, "chardev": CHARDEV, "bus": "root-port"}
        self.linux.qmp("device_add", driver="vhost-user-vsock-pci", **options)

    def _devices(self) -> set[str]:
        return {one["name"] for one in self.linux.qmp("qom-list", path="/machine/peripheral")}

    def _has_hung_up(self) -> bool:
        """Whether QEMU has left the switch; the device may use its connection for a moment longer than it is there."""
        try:
            self.linux.qmp("chardev-remove", id=CHARDEV)
        except QmpError:
            return False
        return True


@pytest.fixture
def plugged(
    vsock_switch: SwitchProcess, state_home: Path, vsock_environment: None, tmp_path: Path
) -> Iterator[PluggedGuest]:
    """The guest, whose SSH server lets us in."""
    try:
        image = find_image("qemu")
    except GuestUnavailable as missing:
        if os.environ.get(REQUIRED_VARIABLE):
            pytest.fail(f"{missing} ({REQUIRED_VARIABLE} is set)")
        pytest.skip(str(missing))
    (tmp_path / "disk").write_bytes(bytes(1 << 20))
    files = files_for_guest(Identity(state_home / "vsock"))
    (tmp_path / "archive").write_bytes(image.initramfs.read_bytes() + cpio(files))
    run("guest", "add", NAME, str(CID))
    guest = PluggedGuest(vsock_switch.socket_path(NAME), tmp_path / "archive", tmp_path / "disk")
    try:
        with guest.linux as linux:
            linux.run("mkdir /shared; echo of the guest > /shared/file").check()
            linux.spawn(f"/{PROGRAM}")
            run("wait", NAME, "--ssh", "--timeout", str(SECONDS))
            yield guest
    finally:
        run("guest", "remove", NAME)
        run("guest", "host-key", NAME, "--forget")


def test_guest_that_is_restored_goes_on_with_the_jobs_of_its_snapshot(
    plugged: PluggedGuest, start: Start, folders: tuple[Path, Path]
) -> None:
    """What has no reconnect says in one line that its session has ended; so do jobs that the snapshot does not have so."""
    assert plugged.monitor("savevm now").startswith("Error: State blocked by non-migratable device")
    linux = plugged.linux

    def execute(name: str, script: str) -> "subprocess.Popen[bytes]":
        words = ("--reconnect", "--name", name, "--", "sh", "-c", f"echo begun; {script}")
        process = start("exec", NAME, *words)
        assert line_of(process.stdout) == "begun\n"
        return process

    waiting = "until [ -e /{} ]; do sleep 0.1; done"
    goes_on = execute("a", f"{waiting.format('end')}; echo end; exit 3")
    writes = execute("b", f"{waiting.format('go')}; echo more; sleep 1000")
    plugged.unplug()
    lost = f"vsock: the session with {NAME} ended"
    for one in (goes_on, writes):
        assert line_of(one.stderr).startswith(lost)
    assert plugged.monitor("savevm now") == ""
    plugged.plug_in()
    linux.run("touch /go").check()
    assert line_of(writes.stdout) == "more\n"
    is_newer = execute("c", "sleep 1000")
    plain = start("exec", NAME, "--", "sh", "-c", "echo begun; sleep 1000")
    forwards = start("forward", "-D", "127.0.0.1:0", NAME)
    comes_back = start("forward", "--reconnect", "-D", "127.0.0.1:0", NAME)
    begun, *lines = [line_of(one.stdout) for one in (plain, forwards, comes_back)]
    assert begun == "begun\n"
    for folder, words in zip(folders, ((), ("--reconnect",)), strict=True):
        run("mount", *words, f"{NAME}:/shared", str(folder))
        assert (folder / "file").read_text() == "of the guest\n"

    plugged.unplug()
    assert plugged.monitor("loadvm now") == ""
    plugged.plug_in()
    code, out, err = rest_of(plain)
    assert (code, out, len(err)) == (255, "", 1)
    assert err[0].startswith(lost)
    assert rest_of(forwards) == (1, "", [lost])
    with pytest.raises(OSError, match=GIVEN_UP):
        (folders[0] / "file").read_bytes()
    for one, reason in (
        (writes, "job b has written less than was shown: the guest was restored to an earlier"),
        (
            is_newer,
            "there is no job c any more: it was removed, or the guest was restarted or restored",
        ),
    ):
        code, out, err = rest_of(one)
        assert (code, out) == (255, "")
        assert err[-1].startswith(f"vsock: {NAME}: {reason}")
    linux.run("touch /end").check()
    assert rest_of(goes_on)[:2] == (3, "end\n")
    assert line_of(comes_back.stdout) == lines[1]
    until(lambda: is_readable(folders[1] / "file"), SECONDS)
    with pytest.raises(OSError, match=GIVEN_UP):
        (folders[0] / "file").read_bytes()
