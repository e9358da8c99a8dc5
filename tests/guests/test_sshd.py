"""`vsock-sshd` as the first process of guests that contain nothing else: what `vsock guest agent --cpio --init` makes."""

import asyncio
import base64
import contextlib
import hashlib
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from struct import pack
from termios import TIOCSWINSZ

import pytest
from tests.archives import members
from tests.guests.bare_guest import BareGuest
from tests.guests.conftest import SwitchProcess

import vsock
from vsock.ssh.guest_server import PROGRAM
from vsock.ssh.identity import Identity
from vsock.testing.errors import GuestUnavailable
from vsock.testing.images import Image, Vmm, find_image
from vsock.testing.plugin import REQUIRED_VARIABLE
from vsock.transports import SwitchTransport
from vsock.vmm import ssh_credentials

NAME = "bare"
CID = 90
PEER = "bare-peer"
PEER_CID = 91
SECONDS = 60
BOOT_SECONDS = 120


class SshdGuest(BareGuest):
    """A kernel and our archive, and nothing else."""

    second_home: Path
    """The value of XDG_STATE_HOME with which another key is found that the guest lets in."""


def command(*words: str) -> list[str]:
    """The `vsock` command."""
    return [sys.executable, "-m", "vsock.cli", *words]


def run(*words: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run it."""
    return subprocess.run(
        command(*words), input=given, capture_output=True, timeout=SECONDS, check=False
    )


def modules_of(image: Image, folder: Path) -> list[str]:
    """The options for the modules that our other guests with this kernel load."""
    found = dict(members(image.initramfs))
    options = []
    for name in found["lib/modules/order"].decode().split():
        path = folder / f"{name}.ko"
        path.write_bytes(found[f"lib/modules/{name}.ko"])
        options.append(f"--module={path}")
    return options


@pytest.fixture(scope="module", params=["uml", "qemu"])
def guest(
    request: pytest.FixtureRequest,
    vsock_switch: SwitchProcess,
    state_home: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SshdGuest]:
    """The guest. It lets in two keys.

    The one in `state_home` by its archive, or (QEMU) as `vsock qemu-args --ssh` says; another by the kernel's command line.
    """
    vmm: Vmm = request.param
    try:
        image = find_image(vmm)
    except GuestUnavailable as missing:
        if os.environ.get(REQUIRED_VARIABLE):
            pytest.fail(f"{missing} ({REQUIRED_VARIABLE} is set)")
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("bare")
    archive = folder / "agent.cpio"
    second_home = tmp_path_factory.mktemp("second")
    key = f"{Identity(second_home / 'vsock').public_key()}\n".encode()
    credential = f"ssh.authorized_keys.root:{base64.b64encode(key).decode()}"
    words = f"systemd.set_credential_binary={credential} -- --run /{PROGRAM} -h"
    others = tmp_path_factory.mktemp("others")
    firmware = ssh_credentials(Identity(state_home / "vsock").public_key())
    made = subprocess.run(
        command("guest", "agent", "--cpio", "--init", f"--output={archive}")
        + modules_of(image, folder),
        env={**os.environ, "XDG_STATE_HOME": str(state_home if vmm == "uml" else others)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    for name, cid in ((NAME, CID), (PEER, PEER_CID)):
        added = vsock_switch.run("guest", "add", name, str(cid), "--group=bare")
        assert added.returncode == 0, added.stderr
    work = Path(tempfile.mkdtemp(prefix="vsock-bare-"))
    socket_path = vsock_switch.socket_path(NAME)
    running = SshdGuest(image, archive, socket_path, NAME, work, words=words, firmware=firmware)
    running.second_home = second_home
    try:
        waited = vsock_switch.run("wait", NAME, "--port=22", f"--timeout={BOOT_SECONDS}")
        assert waited.returncode == 0, f"{waited.stderr}\n{running.console()}"
        yield running
    finally:
        running.kill()
        shutil.rmtree(work, ignore_errors=True)
        vsock_switch.run("guest", "remove", NAME)
        vsock_switch.run("guest", "remove", PEER)
        subprocess.run(
            command("guest", "host-key", NAME, "--forget"),
            env={
                **os.environ,
                "XDG_STATE_HOME": str(state_home),
                "VSOCK_RUNTIME_DIR": str(vsock_switch.runtime_dir),
            },
            capture_output=True,
            check=False,
        )


@pytest.fixture(autouse=True)
def user(
    guest: BareGuest,
    state_home: Path,
    vsock_switch: SwitchProcess,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Commands find the switch, and the key with which the guest was booted."""
    monkeypatch.setenv("XDG_STATE_HOME", str(state_home))
    monkeypatch.setenv("VSOCK_RUNTIME_DIR", str(vsock_switch.runtime_dir))
    yield
    assert guest.process.status is None, guest.console()


@pytest.fixture
def busybox(guest: BareGuest, tmp_path: Path) -> str:
    """A program of many in the guest, copied there: the one of our other guests."""
    there = "/bin/busybox"
    if run("exec", NAME, "--", there, "true").returncode != 0:
        found = dict(members(find_image("uml").initramfs))
        here = tmp_path / "busybox"
        here.write_bytes(found["bin/busybox"])
        here.chmod(0o755)
        session = vsock.guest_session(NAME)
        with session as opened:
            opened.run([f"/{PROGRAM}", "--version"], check=True)
        done = run("cp", str(here), f"{NAME}:/busybox")
        assert done.returncode == 0, done.stderr
        done = run("exec", NAME, "--", "/busybox", "mkdir", "-p", "/bin")
        assert done.returncode == 0, done.stderr
        done = run("exec", NAME, "--", "/busybox", "mv", "/busybox", there)
        assert done.returncode == 0, done.stderr
    return there


def test_commands_run_without_a_shell(guest: BareGuest, tmp_path: Path) -> None:
    """The only program is the server; what needs a shell says so."""
    done = run("exec", NAME, "--", f"/{PROGRAM}", "--version")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"vsock-sshd ")
    done = run("exec", NAME, "--", "no-such-program")
    assert done.returncode == 127
    done = run("shell", NAME)
    assert done.returncode == 127
    assert b"no shell in this guest" in done.stderr


def test_key_of_the_kernels_command_line_is_let_in(
    guest: SshdGuest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the other one; a key that nobody has named is refused."""
    monkeypatch.setenv("XDG_STATE_HOME", str(guest.second_home))
    done = run("exec", NAME, "--", f"/{PROGRAM}", "--version")
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("XDG_STATE_HOME", str(guest.second_home / "none"))
    done = run("exec", NAME, "--", f"/{PROGRAM}", "--version")
    assert done.returncode == 255
    assert b"does not take the key" in done.stderr


def test_only_the_host_is_served(guest: BareGuest, vsock_switch: SwitchProcess) -> None:
    """Another guest, which may connect as far as the switch is concerned, reads the end at once."""
    with vsock.Guest(vsock_switch.socket_path(PEER)) as peer:
        with peer.create_connection((CID, 22), timeout=SECONDS) as connection:
            connection.settimeout(SECONDS)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(100) == b""


def test_command_of_the_kernels_command_line_is_started(guest: BareGuest) -> None:
    """Beside the server; its end is said, and the guest goes on."""
    deadline = time.monotonic() + SECONDS
    # User-Mode Linux adds a word to each command line, which the program does not know: status 2.
    while f"/{PROGRAM} has ended (exit status: " not in guest.console():
        assert time.monotonic() < deadline, guest.console()
    assert "usage: vsock-sshd" in guest.console()


def test_files_are_copied_both_ways(guest: BareGuest, tmp_path: Path) -> None:
    """With their digests; and what the server mounts is there."""
    data = os.urandom(2 << 20)
    (tmp_path / "data").write_bytes(data)
    done = run("cp", str(tmp_path / "data"), f"{NAME}:/tmp/data")
    assert done.returncode == 0, done.stderr
    done = run("cp", f"{NAME}:/tmp/data", str(tmp_path / "back"))
    assert done.returncode == 0, done.stderr
    assert (
        hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(data).digest()
    )
    done = run("cp", f"{NAME}:/proc/self/mounts", "-")
    assert done.returncode == 0, done.stderr
    mounted = {line.split()[1] for line in done.stdout.decode().splitlines()}
    assert {"/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/run", "/tmp"} <= mounted


def test_directory_variables_and_exit_codes_work_without_a_shell(
    guest: BareGuest, busybox: str
) -> None:
    """As `vsock exec` asks for them; left children are reaped by the first process."""
    done = run("exec", NAME, "-w", "/proc", "-e", "A=b c", "--", busybox, "env")
    assert b"A=b c\n" in done.stdout
    assert b"HOME=/" in done.stdout
    done = run("exec", NAME, "-w", "/proc", "--", busybox, "pwd")
    assert done.stdout == b"/proc\n"
    done = run("exec", NAME, "--", busybox, "sh", "-c", "cat >&2; exit 7", given=b"in")
    assert (done.returncode, done.stderr) == (7, b"in")
    orphan = f"{busybox} sh -c '({busybox} sleep 0.2 &) ; exit'"
    assert run("exec", NAME, "--", busybox, "sh", "-c", orphan).returncode == 0
    deadline = time.monotonic() + SECONDS
    while (done := run("exec", NAME, "--", busybox, "pidof", "sleep")).returncode == 0:
        assert time.monotonic() < deadline
    assert (done.returncode, done.stderr) == (1, b"")  # and not, say, 127
    stat = f"{busybox} cat /proc/[0-9]*/stat"
    states = run("exec", NAME, "--", busybox, "sh", "-c", stat).stdout.decode().splitlines()
    assert not [line for line in states if ") Z 1 " in line]


def read_until(descriptor: int, expected: bytes) -> bytes:
    """Read a terminal until it has shown something."""
    shown = b""
    deadline = time.monotonic() + SECONDS
    while expected not in shown:
        ready, _, _ = select.select([descriptor], [], [], deadline - time.monotonic())
        assert ready, shown
        shown += os.read(descriptor, 65536)
    return shown


def test_shell_has_a_terminal_that_follows_ours(guest: BareGuest, busybox: str) -> None:
    """A shell, once there is one."""
    done = run("exec", NAME, "--", busybox, "ln", "-sf", busybox, "/bin/sh")
    assert done.returncode == 0, done.stderr
    master, slave = pty.openpty()
    ioctl(slave, TIOCSWINSZ, pack("HHHH", 30, 100, 0, 0))
    shell = subprocess.Popen(command("shell", NAME), stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    try:
        read_until(master, b"# ")
        os.write(master, b"busybox stty size\n")
        read_until(master, b"30 100")
        ioctl(master, TIOCSWINSZ, pack("HHHH", 20, 90, 0, 0))
        # As the kernel does for a terminal that is the controlling one.
        shell.send_signal(signal.SIGWINCH)
        os.write(master, b"while ! busybox stty size | busybox grep '20 90'; do :; done; exit 5\n")
        read_until(master, b"\n20 90")
        assert shell.wait(SECONDS) == 5
    finally:
        shell.kill()
        shell.wait()
        os.close(master)
        run("exec", NAME, "--", busybox, "rm", "/bin/sh")


def test_ports_are_forwarded(
    guest: BareGuest, busybox: str, transport: SwitchTransport, tmp_path: Path
) -> None:
    """`vsock forward` to a vsock port; by SSH to a service on the guest's loopback, and back from there."""
    forward = subprocess.Popen(
        command("forward", f"unix:{tmp_path / 'forwarded'}", f"{NAME}:22"), stdout=subprocess.PIPE
    )
    assert forward.stdout
    try:
        assert b"forwarding" in forward.stdout.readline()
        asyncio.run(_forwarded(busybox, transport, tmp_path / "forwarded"))
    finally:
        forward.terminate()
        forward.wait()
        forward.stdout.close()


async def _forwarded(busybox: str, transport: SwitchTransport, path: Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"from the host\n")
        writer.close()

    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_unix_connection(str(path))
        assert (await reader.readline()).startswith(b"SSH-2.0-vsock_sshd")
        writer.close()
        async with vsock.guest_session(NAME, transport=transport) as session:
            service = await session.open_process([busybox, "nc", "-l", "-p", "8080"])
            listens = f"while ! {busybox} netstat -ltn | {busybox} grep -q :8080; do :; done"
            await session.run([busybox, "sh", "-c", listens], check=True)
            listener = await session.connection.forward_local_port("", 0, "localhost", 8080)
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.get_port())
            writer.write(b"to the guest\n")
            assert await service.stdout.readline() == "to the guest\n"
            service.stdin.write("back\n")
            assert await reader.readline() == b"back\n"
            writer.close()
            assert (await service.wait()).returncode == 0
            host = await asyncio.start_server(greet, "127.0.0.1", 0)
            port = host.sockets[0].getsockname()[1]
            back = await session.connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", port)
            address = ["127.0.0.1", str(back.get_port())]
            done = await session.run([busybox, "nc", *address], check=True)
            assert done.stdout == "from the host\n"
            host.close()


def test_server_is_started_again(guest: BareGuest, busybox: str) -> None:
    """The guest outlives it, and is known by the same key."""
    run("exec", NAME, "--", busybox, "sh", "-c", "kill -9 $PPID")
    done = run("wait", NAME, "--ssh", f"--timeout={SECONDS}")
    assert done.returncode == 0, f"{done.stderr!r}\n{guest.console()}"
    assert "starting it again" in guest.console()


def test_server_is_small(guest: BareGuest, busybox: str) -> None:
    """A few megabytes, most of them the program itself."""
    line = f"for p in /proc/[0-9]*; do [ $({busybox} readlink $p/exe) = /{PROGRAM} ] && cat $p/status; done"
    done = run("exec", NAME, "--", busybox, "sh", "-c", line.replace("cat", f"{busybox} cat"))
    sizes = [int(row.split()[1]) for row in done.stdout.decode().splitlines() if "RssAnon" in row]
    assert sizes
    assert max(sizes) < 8 << 10, sizes
