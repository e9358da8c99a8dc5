"""`vsock-sshd` as a guest's SSH server: asyncssh and OpenSSH are its peers. The same in a guest: tests/guests/test_sshd.py."""

import asyncio
import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncssh
import pytest
from tests.ssh.guest_server import SECONDS, GuestServer, until

import vsock
from vsock.errors import KeyRefused
from vsock.ssh.guest_server import server_path
from vsock.ssh.identity import Identity
from vsock.ssh.session import GuestSession

MIB = 1 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GuestServer]:
    """The server, which lets this test's user in."""
    with GuestServer(tmp_path, Identity.of_user()) as running:
        yield running


@pytest.fixture
async def session(server: GuestServer) -> AsyncIterator[GuestSession]:
    """A session with it."""
    async with asyncio.timeout(SECONDS), vsock.guest_session(server.host) as opened:
        yield opened


async def test_command_gets_its_streams_environment_and_directory(session: GuestSession) -> None:
    """Streams apart, ten megabytes through both at once, and the exit code."""
    data = os.urandom(10 * MIB)
    done = await session.run("cat; echo error >&2; exit 7", input=data, encoding=None)
    assert (done.returncode, done.stderr) == (7, b"error\n")
    assert done.stdout == data
    done = await session.run(["sh", "-c", "pwd; echo $A"], cwd="/usr", env={"A": "b c"})
    assert done.stdout == "/usr\nb c\n"


async def test_program_that_writes_more_than_it_reads_gets_on(session: GuestSession) -> None:
    """Its output waits for the client's word, which comes behind megabytes of its input."""
    done = await session.run("od -v -tx1", input=bytes(8 * MIB), encoding=None)
    assert done.returncode == 0
    assert isinstance(done.stdout, bytes)
    assert done.stdout.count(b" 00") == 8 * MIB


async def test_signals_and_ends_by_signals_are_told(
    session: GuestSession, server: GuestServer
) -> None:
    """By their names; a command that is not there is 127."""
    process = await session.open_process("echo ready; exec sleep 1000")
    await process.stdout.readline()
    process.send_signal("USR1")
    done = await process.wait()
    assert done.exit_signal is not None
    assert done.exit_signal[0] == "USR1"
    assert (await session.run("nonexistent-program")).returncode == 127
    await server.until_childless()


async def test_left_processes_do_not_hold_a_command_back(session: GuestSession) -> None:
    """What it has written itself arrives, although others hold its output open."""
    async with asyncio.timeout(SECONDS):
        done = await session.run("sleep 1000 & echo $!")
    pid = int(str(done.stdout))
    os.kill(pid, 9)
    assert done.returncode == 0


async def test_terminal_follows_the_size(session: GuestSession) -> None:
    """And the end of input ends a program on it."""
    process = await session.open_process(
        "trap 'stty size' WINCH; tty; stty size; cat; while :; do sleep 0.05; done",
        term_type="xterm",
        term_size=(100, 30),
    )
    assert (await process.stdout.readline()).startswith("/dev/pts/")
    assert await process.stdout.readline() == "30 100\r\n"
    process.stdin.write("\x04")
    process.change_terminal_size(90, 20)
    assert "20 90\r\n" in [await process.stdout.readline() for _ in range(1)]
    process.close()


@pytest.mark.parametrize("end", ["channel", "connection"])
@pytest.mark.parametrize(
    "command",
    [
        "trap '' HUP; sleep 1000 & echo $!; wait; wait",
        """sh -c 'trap "" HUP; echo $$; exec sleep 1000' & wait""",
    ],
    ids=["all ignore it", "its leader does not"],
)
async def test_processes_end_with_their_channel(
    server: GuestServer, end: str, command: str
) -> None:
    """The whole group, also of programs that ignore SIGHUP."""
    async with asyncio.timeout(SECONDS), vsock.guest_session(server.host) as session:
        process = await session.open_process(command)
        pid = int(await process.stdout.readline())
        if end == "channel":
            process.close()
        else:
            session.connection.abort()
        await server.until_childless()
        await until(lambda: _state(pid) == "Z")


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with modes, times, links, and a name that is no UTF-8."""
    tree = tmp_path / "tree"
    (tree / "folder").mkdir(parents=True)
    (tree / "folder" / "big").write_bytes(os.urandom(3 * MIB))
    (tree / "folder" / "program").write_text("#!/bin/sh\n")
    (tree / "folder" / "program").chmod(0o750)
    Path(os.fsdecode(os.fsencode(tree) + b"/\xff\xfe")).write_text("odd")
    (tree / "link").symlink_to("nowhere/../else")
    os.utime(tree / "folder" / "program", (1, 2))
    return tree


def test_trees_are_copied_both_ways(server: GuestServer, tree: Path, tmp_path: Path) -> None:
    """With all that is odd in it."""
    with vsock.guest_session(server.host) as session:
        session.copy_in(tree, str(tmp_path / "in"))
        session.copy_out(str(tmp_path / "in"), tmp_path / "out")
    for copy in ("in", "out"):
        subprocess.run(["diff", "-r", "--no-dereference", tree, tmp_path / copy], check=True)
        program = (tmp_path / copy / "folder" / "program").stat()
        assert (program.st_mode & 0o777, program.st_mtime) == (0o750, 2)


async def test_missing_and_forbidden_files_are_said(session: GuestSession, tmp_path: Path) -> None:
    """By the codes of SFTP."""
    sftp = await session.sftp()
    with pytest.raises(asyncssh.SFTPNoSuchFile):
        await sftp.stat(str(tmp_path / "nothing"))
    with pytest.raises(asyncssh.SFTPNoSuchFile):
        await sftp.listdir(str(tmp_path / "nothing"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(asyncssh.SFTPFailure, match="not empty"):
        await sftp.rmdir(str(tmp_path / "full"))
    assert sftp.limits.max_read_len == (256 << 10) - 1024


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer when the other side has ended its data."""
    writer.write((await reader.read()).upper())
    writer.close()


async def _ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    writer.write(b"half closed")
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_ports_and_sockets_are_forwarded_both_ways(
    session: GuestSession, tmp_path: Path, kind: str
) -> None:
    """Half-close is kept; a target that is not there is refused."""
    connection = session.connection
    service, here = str(tmp_path / "service"), str(tmp_path / "here")
    if kind == "tcp":
        echo = await asyncio.start_server(_echo, "127.0.0.1", 0)
        port = echo.sockets[0].getsockname()[1]
        forward = await connection.forward_local_port("127.0.0.1", 0, "localhost", port)
        back = await connection.forward_remote_port("127.0.0.1", 0, "127.0.0.1", port)
        opened = [
            await asyncio.open_connection("127.0.0.1", forward.get_port()),
            await asyncio.open_connection("127.0.0.1", back.get_port()),
        ]
    else:
        echo = await asyncio.start_unix_server(_echo, service)
        forward = await connection.forward_local_path(here, service)
        back = await connection.forward_remote_path(f"{here}-back", service)
        opened = [
            await asyncio.open_unix_connection(here),
            await asyncio.open_unix_connection(f"{here}-back"),
        ]
    async with asyncio.timeout(SECONDS), echo:
        for reader, writer in opened:
            assert await _ask(reader, writer) == b"HALF CLOSED"
        echo.close()
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_connection("no-such-host", 1)
        with pytest.raises(asyncssh.ChannelOpenError):
            await connection.open_unix_connection(str(tmp_path / "nothing"))
        back.close()
        await back.wait_closed()
        await until(lambda: not (tmp_path / "here-back").exists())


class _Parting(asyncssh.SSHUNIXSession[bytes]):
    """Says something and closes the channel, before anybody has waited for it."""

    def connection_made(self, chan: asyncssh.SSHUNIXChannel[bytes]) -> None:
        self._channel = chan

    def session_started(self) -> None:
        self._channel.write(bytes(500))
        self._channel.close()


async def test_channel_that_is_closed_as_soon_as_it_is_open_delivers_its_data(
    session: GuestSession, tmp_path: Path
) -> None:
    """The server receives the confirmation, the data and the close at once."""
    path = str(tmp_path / "listener")
    await session.connection.create_unix_server(_Parting, path)

    async def received() -> int:
        reader, writer = await asyncio.open_unix_connection(path)
        data = await reader.read()
        writer.close()
        return len(data)

    for _ in range(5):
        assert await asyncio.gather(*(received() for _ in range(20))) == [500] * 20


class _Target:
    """A service on a Unix socket or a TCP port, whose buffers are small."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_INET if kind == "tcp" else socket.AF_UNIX)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.bind(("127.0.0.1", 0) if kind == "tcp" else str(folder / "target"))
        self._socket.listen()
        self._socket.setblocking(False)

    async def connected(
        self, session: GuestSession
    ) -> tuple[asyncssh.SSHReader[bytes], asyncssh.SSHWriter[bytes]]:
        """A channel that leads to it."""
        where = self._socket.getsockname()
        if isinstance(where, str):
            return await session.connection.open_unix_connection(where)
        return await session.connection.open_connection(*where)

    async def accepted(self) -> socket.socket:
        """The connection of a channel."""
        accepted, _ = await asyncio.get_running_loop().sock_accept(self._socket)
        accepted.setblocking(False)
        return accepted

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


@pytest.fixture(params=["tcp", "unix"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[_Target]:
    """Both kinds."""
    made = _Target(request.param, tmp_path)
    yield made
    made.close()


def _digest(data: bytes) -> str:
    """To compare what is too long for pytest to explain."""
    return hashlib.sha256(data).hexdigest()


async def _rest(connection: socket.socket) -> bytes:
    """What is received until the other side has ended its data."""
    data = b""
    while piece := await asyncio.get_running_loop().sock_recv(connection, 65536):
        data += piece
    connection.close()
    return data


@pytest.mark.parametrize("end", ["end of data", "channel", "connection"])
async def test_data_before_the_close_of_a_forwarded_channel_arrives(
    session: GuestSession, target: _Target, end: str
) -> None:
    """RFC 4254, section 5.3: also when the target reads only afterwards."""
    data = os.urandom(450_000)
    _, writer = await target.connected(session)
    connection = await target.accepted()
    writer.write(data)
    if end == "connection":
        await session.run("true")  # its answer says that the server has received what came before
        session.connection.abort()
    else:
        if end == "end of data":
            writer.write_eof()
        writer.close()
        await writer.wait_closed()
    assert _digest(await _rest(connection)) == _digest(data)


async def test_target_that_answers_before_it_reads_gets_what_a_closed_channel_has_sent(
    session: GuestSession, target: _Target
) -> None:
    """Its answer, for which the client has no room, is for nobody."""
    data = os.urandom(450_000)
    _, writer = await target.connected(session)
    connection = await target.accepted()
    writer.write(data)
    writer.close()
    await asyncio.get_running_loop().sock_sendall(connection, bytes(16 * MIB))
    assert _digest(await _rest(connection)) == _digest(data)


async def test_output_of_a_target_that_ends_arrives_at_a_client_that_reads_late(
    session: GuestSession, target: _Target
) -> None:
    """As much as the windows and buffers on the way hold, before EOF and CLOSE."""
    reader, writer = await target.connected(session)
    connection = await target.accepted()
    writer.write_eof()
    assert await asyncio.get_running_loop().sock_recv(connection, 1) == b""

    data = os.urandom(64 * 1024)
    sent = hashlib.sha256()
    full = False
    while not full:  # until a command's time has made no more room
        await session.run("true")
        full = True
        with contextlib.suppress(BlockingIOError):
            while True:
                sent.update(data[: connection.send(data)])
                full = False
    connection.close()
    await session.run("true")
    assert _digest(await reader.read()) == sent.hexdigest()
    await writer.wait_closed()


@pytest.mark.parametrize("end", ["end of data", "channel"])
async def test_input_before_the_close_of_a_session_arrives(
    session: GuestSession, tmp_path: Path, end: str
) -> None:
    """The process reads only afterwards; one whose input has not ended gets SIGHUP behind it."""
    data = os.urandom(450_000)
    wait = f"trap '' HUP; until [ -e {tmp_path}/go ]; do sleep 0.02; done"
    process = await session.open_process(
        f"{wait}; tee {tmp_path}/got; touch {tmp_path}/ended", encoding=None
    )
    process.stdin.write(data)
    if end == "end of data":
        process.stdin.write_eof()
    process.close()
    await process.wait_closed()
    (tmp_path / "go").touch()
    await until(lambda: _digest(_content(tmp_path / "got")) == _digest(data))
    if end == "end of data":
        await until((tmp_path / "ended").exists)


async def test_input_is_read_before_the_close_of_a_session_is_told(
    session: GuestSession, tmp_path: Path
) -> None:
    """Also by a program that is not quick, and that SIGHUP does not find waiting for it."""
    process = await session.open_process(
        f"""trap 'echo "$line" > {tmp_path}/got; exit' HUP; sleep 0.1; read -r line; while :; do sleep 1; done"""
    )
    process.stdin.write("a line\n")
    process.close()
    await until(lambda: _content(tmp_path / "got") == b"a line\n")


def _content(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An ssh-agent of this user, which has the key for guests."""
    if not shutil.which("ssh-agent"):
        pytest.skip("ssh-agent is not installed")
    path = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.PIPE) as running:
        try:
            assert running.stdout
            assert running.stdout.readline()
            monkeypatch.setenv("SSH_AUTH_SOCK", str(path))
            key = Identity.of_user().private_file
            subprocess.run(["ssh-add", "-q", key], check=True, timeout=SECONDS)
            yield path
        finally:
            running.terminate()


async def test_agent_of_the_client_is_forwarded(server: GuestServer, agent: Path) -> None:
    """A program behind the server sees the agent's keys; its socket is removed afterwards."""
    async with asyncio.timeout(SECONDS):
        async with vsock.guest_session(server.host, forward_agent=True) as session:
            done = await session.run("echo $SSH_AUTH_SOCK; ssh-add -L", check=True)
    where, keys = str(done.stdout).split("\n", 1)
    assert keys.split()[1] == Identity.of_user().public_key().split()[1]
    assert where != str(agent)
    await until(lambda: not Path(where).parent.exists())


@pytest.mark.skipif(not shutil.which("scp"), reason="OpenSSH's client is not installed")
def test_openssh_logs_in_and_copies(server: GuestServer, tmp_path: Path) -> None:
    """Unmodified ssh and scp, with what they prefer today."""
    config = tmp_path / "config"
    config.write_text(f"""
Host guest
    ProxyCommand {sys.executable} -m vsock.cli ssh-proxy {server.host} 22
    User root
    BatchMode yes
    IdentityFile {Identity.of_user().private_file}
    IdentitiesOnly yes
    StrictHostKeyChecking no
    UserKnownHostsFile {tmp_path / "known"}
""")
    (tmp_path / "file").write_bytes(os.urandom(MIB))
    source, target = tmp_path / "file", f"guest:{tmp_path / 'copied'}"
    subprocess.run(["scp", "-q", "-F", config, source, target], check=True, timeout=SECONDS)
    assert (tmp_path / "copied").read_bytes() == source.read_bytes()
    done = subprocess.run(
        ["ssh", "-F", config, "guest", "cat; exit 5"],
        input=b"in",
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (5, b"in"), done.stderr


async def test_other_keys_and_users_are_refused(server: GuestServer, tmp_path: Path) -> None:
    """A user that this process is not is not taken for the one that it is."""
    with pytest.raises(KeyRefused):
        async with vsock.guest_session(server.host, user="somebody-else"):
            pass
    (tmp_path / "authorized_keys").write_text("# none\n")
    with pytest.raises(KeyRefused):
        async with vsock.guest_session(server.host):
            pass


async def test_server_whose_log_is_closed_goes_on(server: GuestServer, tmp_path: Path) -> None:
    """What it would say of a file of keys concerns nobody then."""
    server.close_log()
    keys = tmp_path / "authorized_keys"
    keys.rename(tmp_path / "kept")
    keys.mkdir()
    with pytest.raises(KeyRefused):
        async with vsock.guest_session(server.host):
            pass
    keys.rmdir()
    (tmp_path / "kept").rename(keys)
    async with vsock.guest_session(server.host) as session:
        assert (await session.run("echo served")).stdout == "served\n"


def test_program_is_static_and_small() -> None:
    """It needs nothing of its guest, and has at most 5 MB."""
    assert server_path().stat().st_size <= 5_000_000
    headers = subprocess.run(
        ["readelf", "-ld", server_path()], capture_output=True, text=True, check=True
    ).stdout
    assert "INTERP" not in headers
    assert "NEEDED" not in headers
