"""`vsock.guest_session`: commands in a guest, for asyncio and without; each error says which side failed."""

import asyncio
import contextlib
from typing import Any

import asyncssh
import pytest
from tests.ssh.server import SshServer

import vsock
from vsock.errors import ConnectRefused, HostKeyChanged, KeyRefused, NoSuchGuest, SessionError
from vsock.guest import Guest
from vsock.ssh.host_keys import HostKey, HostKeys, pin_name
from vsock.ssh.identity import Identity
from vsock.ssh.session import GuestSession
from vsock.switch import Switch

MIB = 1 << 20


async def test_command_runs_with_its_arguments_environment_and_directory(sshd: SshServer) -> None:
    """A list is a program and its arguments, which no shell reads; a text is a line for the shell."""
    async with vsock.guest_session("alpha") as guest:
        done = await guest.run(["printf", "%s|", "a b", "$HOME", "'", "*"], check=True)
        assert done.stdout == "a b|$HOME|'|*|"
        done = await guest.run("echo $A $B; pwd", env={"A": "x  y", "B": "'$A'"}, cwd="/usr")
        assert done.stdout == "x y '$A'\n/usr\n"
        done = await guest.run("cat; echo problem >&2; exit 7", input="given")
        assert (done.stdout, done.stderr, done.exit_status) == ("given", "problem\n", 7)
        done = await guest.run(["nosuchcommand"])
        assert done.exit_status == 127
        with pytest.raises(asyncssh.ProcessError) as caught:
            await guest.run("kill -9 $$", check=True)
        assert caught.value.returncode == -9


async def test_text_is_one_command_in_its_directory(sshd: SshServer) -> None:
    """What follows a semicolon does not run elsewhere when the directory is missing."""
    async with vsock.guest_session("alpha") as guest:
        done = await guest.run("true; echo ran; pwd", cwd="/missing")
        assert (done.stdout, done.exit_status != 0) == ("", True)
        done = await guest.run("false || pwd; echo $A & wait", cwd="/usr", env={"A": "there"})
        assert done.stdout == "/usr\nthere\n"


async def test_command_whose_time_is_over_is_given_up(sshd: SshServer) -> None:
    """The session goes on, and keeps nothing of what it still writes."""
    async with vsock.guest_session("alpha") as guest:
        with pytest.raises(TimeoutError):
            await guest.run("yes", timeout=0.2)
        assert (await guest.run("echo on")).stdout == "on\n"


async def test_command_that_sshd_never_starts_is_given_up(guest: Guest) -> None:
    """The time is the command's, with that of its start; sshd answers all else."""
    authorized = Identity.of_user().public_key()
    with SshServer(guest, authorized, sessions=1, is_mute=True) as sshd:
        async with vsock.guest_session("alpha") as session:
            first = await session.open_process("cat")
            with pytest.raises(TimeoutError) as caught:
                await session.run("true", timeout=1)
            assert isinstance(caught.value, SessionError)
            assert str(caught.value.strerror) == "sshd of alpha started no command within 1 s"
            assert sshd.asked_too_much.is_set()
            first.stdin.write("on\n")
            assert await first.stdout.readline() == "on\n"


async def test_process_is_used_while_it_runs(sshd: SshServer) -> None:
    """Bytes in both directions, of two commands over one session."""
    async with vsock.guest_session(3) as guest:
        one = await guest.open_process("cat", encoding=None)
        other = await guest.open_process(["tr", "a-z", "A-Z"])
        for data in (b"\0\xff\n", bytes(range(256)) * 1000):
            one.stdin.write(data)
            assert await one.stdout.readexactly(len(data)) == data
        other.stdin.write("over")
        other.stdin.write_eof()
        assert await other.stdout.read() == "OVER"
        one.stdin.write_eof()
        assert (await one.wait()).exit_status == 0


def test_programs_without_asyncio_block_instead(sshd: SshServer) -> None:
    """`with` in place of `async with`."""
    with vsock.guest_session("alpha") as guest:
        assert guest.name == "alpha"
        assert guest.run(["echo", "hello"], check=True).stdout == "hello\n"
        with pytest.raises(asyncssh.ProcessError):
            guest.run("exit 3", check=True)
    guest.close()


async def test_key_is_pinned_under_the_name_however_the_guest_was_named(
    sshd: SshServer, switch: Switch
) -> None:
    """By its CID it is the same guest; its renamed CID changes nothing."""
    name = pin_name("alpha", switch.runtime_dir)
    for form in (3, "vsock/3", "alpha", "vsock%alpha", "alpha.vsock"):
        async with vsock.guest_session(form):
            pass
    assert [str(key) for key in HostKeys.of_user().of(name)] == [sshd.public_key]


async def test_guest_with_another_host_key_gets_no_session(
    sshd: SshServer, guest: Guest, switch: Switch
) -> None:
    """Nor one whose sshd has only keys of another kind."""
    async with vsock.guest_session("alpha"):
        pass
    public = Identity.of_user().public_key()
    for kind in ("ssh-ed25519", "ecdsa-sha2-nistp384"):
        with SshServer(guest, public, port=2200, key=asyncssh.generate_private_key(kind)):
            with pytest.raises(HostKeyChanged, match="alpha has another host key"):
                async with vsock.guest_session("alpha", port=2200):
                    pytest.fail("it was let in")
    told = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    key = HostKey.parse(told.export_public_key().decode())
    HostKeys.of_user().pin(pin_name("alpha", switch.runtime_dir), key)
    with SshServer(guest, public, port=2201, key=told):
        async with vsock.guest_session("alpha", port=2201):
            pass


async def test_each_error_says_who_failed(switch: Switch, guest: Guest) -> None:
    """No guest, nobody on the port, a key that is not taken, and somebody who does not speak SSH."""
    with pytest.raises(NoSuchGuest):
        async with vsock.guest_session("nobody"):
            pass
    with pytest.raises(ConnectRefused, match=r"nobody listens on port 22 of alpha.*guest setup"):
        async with vsock.guest_session("alpha"):
            pass
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    with SshServer(guest, other), pytest.raises(KeyRefused, match=r"id_ed25519.pub for user joe"):
        async with vsock.guest_session("alpha", user="joe"):
            pass
    async with await vsock.start_server(
        lambda _, writer: writer.close(), (3, 23), transport=guest.transport
    ):
        with pytest.raises(SessionError, match="alpha gave no session: "):
            async with vsock.guest_session("alpha", port=23):
                pass


async def test_guest_that_says_nothing_is_given_up(switch: Switch, guest: Guest) -> None:
    """The time to log in is bounded."""
    with guest.create_server(22), pytest.raises(SessionError, match=r"within 0.3 s"):
        async with vsock.guest_session("alpha", timeout=0.3):
            pass


async def test_end_of_the_guest_ends_what_runs(sshd: SshServer, switch: Switch) -> None:
    """A command that did not end is an error, not an empty result."""
    async with vsock.guest_session("alpha") as session:
        running = asyncio.create_task(session.run("echo begun; exec sleep 60"))
        process = await session.open_process("echo begun; exec sleep 60")
        assert await process.stdout.readline() == "begun\n"
        await asyncio.to_thread(switch.remove_guest, "alpha")
        with pytest.raises(SessionError, match="ended before the command did"):
            await running


async def test_words_of_a_hostile_sshd_are_printable(switch: Switch, guest: Guest) -> None:
    """The reason of a disconnection is its own text."""

    async def disconnect(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-\x1b]0;owned\x07\r\n" + bytes(2000))
        writer.close()

    async with await vsock.start_server(disconnect, (3, 22), transport=guest.transport):
        with pytest.raises(SessionError) as caught:
            async with vsock.guest_session("alpha"):
                pass
    assert (caught.value.strerror or "").isprintable()


async def test_closing_waits_only_so_long_for_a_guest_that_reads_nothing(
    sshd: SshServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More is on its way to it than the connection holds."""
    monkeypatch.setattr("vsock.ssh.session._CLOSE_SECONDS", 0.5)
    async with vsock.guest_session("alpha") as guest:
        process = await guest.open_process("echo; cat > /dev/null", encoding=None)
        await process.stdout.readline()  # it has been started
        with sshd.silent():
            process.stdin.write(bytes(4 << 20))
            async with asyncio.timeout(30):
                await guest.close()
    with pytest.raises(SessionError):
        await guest.run("true")


async def sent_until_it_waits(session: GuestSession, process: Any) -> int:
    """Write to a program's standard input until that waits for more than a second, or 64 MiB are written."""
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 64 * MIB:
            process.stdin.write(bytes(MIB))
            sent += MIB
            async with asyncio.timeout(1):
                await process.stdin.drain()
                await session.drain()
    return sent


async def test_input_waits_for_a_guest_that_takes_less_than_it_said(guest: Guest) -> None:
    """The window that it grants is not what this process holds for it."""
    authorized = Identity.of_user().public_key()
    with SshServer(guest, authorized, port=23, window=(1 << 32) - 1) as sshd:
        async with vsock.guest_session("alpha", port=23) as session:
            process = await session.open_process("echo; cat | wc -c", encoding=None)
            await process.stdout.readline()  # it has been started
            with sshd.silent():
                sent = await sent_until_it_waits(session, process)
            assert sent < 16 * MIB
            await session.drain()
            process.stdin.write_eof()
            assert int(await process.stdout.read()) == sent


async def test_input_waits_during_a_key_exchange_without_an_end(guest: Guest) -> None:
    """asyncssh then keeps all that is to be sent."""
    authorized = Identity.of_user().public_key()
    with SshServer(guest, authorized, port=23, window=(1 << 32) - 1) as sshd:
        async with vsock.guest_session("alpha", port=23) as session:
            process = await session.open_process("echo; cat | wc -c", encoding=None)
            await process.stdout.readline()  # it has been started
            sshd.begin_key_exchange()
            async with asyncio.timeout(30):
                while session.connection._kex_complete:  # noqa: ASYNC110 - it tells nobody
                    await asyncio.sleep(0.01)
            assert await sent_until_it_waits(session, process) < 16 * MIB


async def test_session_that_is_not_open_says_so() -> None:
    """Also after its end."""
    session = vsock.guest_session("alpha")
    with pytest.raises(SessionError, match="is not open"):
        await session.run("true")
    await session.close()
