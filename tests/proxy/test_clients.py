"""What a client may use: connections, requests in a second, lookups of names; and the lines of the log."""

import asyncio
import json
import os
import socket
import threading
from pathlib import Path

import pytest

from vsock.errors import UsageError
from vsock.proxy.clients import Clients, Limits
from vsock.proxy.credentials import read_header_file
from vsock.proxy.log import Entry, Log
from vsock.proxy.request import Refusal, Request
from vsock.proxy.resolver import Resolver


def test_requests_of_a_client_wait_when_they_are_too_many() -> None:
    """Ten seconds' worth at once, then at its rate; a client that is quiet for a while may hurry again."""
    clients = Clients(Limits(rate=2))
    client = clients.enter(3)
    other = clients.enter(4)
    assert client
    assert other
    assert [clients.delay(client, 100.0) for _ in range(24)] == [0.0] * 21 + [0.5, 1.0, 1.5]
    assert clients.delay(other, 100.0) == 0.0
    assert clients.delay(client, 102.0) == 0.0
    assert clients.delay(client, 500.0) == 0.0


def test_clients_without_connections_are_forgotten() -> None:
    """When there are many; those with connections are not, and what was counted stays counted."""
    clients = Clients(Limits(connections=1))
    kept = clients.enter(3)
    assert kept
    for cid in range(4, 5000):
        client = clients.enter(cid)
        assert client
        clients.leave(client)
    assert clients.enter(3) is None
    assert kept.take_turned_away() == 1
    clients.leave(kept)
    assert clients.enter(3) is kept


async def test_lookup_that_hangs_keeps_its_place_after_its_client_gave_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thread cannot be ended, so a client that gives up at once must not get another one each time."""
    go_on = threading.Event()
    begun: list[str] = []
    real = socket.getaddrinfo

    def hang(host: str, *words: object, **more: object) -> object:
        begun.append(host)
        assert go_on.wait(30)
        return real("127.0.0.1", *words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    clients = Clients(Limits(lookups=2))
    slow, quick = clients.enter(3), clients.enter(4)
    assert slow
    assert quick
    resolver = Resolver()
    for number in range(6):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await resolver.resolve(slow, Request("connect", f"a{number}.test", 80))
    async with asyncio.timeout(30):
        while len(begun) < 2:  # noqa: ASYNC110 - they are threads that begin
            await asyncio.sleep(0.01)
    assert begun == ["a0.test", "a1.test"]
    waiting = asyncio.create_task(resolver.resolve(quick, Request("connect", "b.test", 80)))
    async with asyncio.timeout(30):
        while "b.test" not in begun:  # noqa: ASYNC110 - it is a thread that begins
            await asyncio.sleep(0.01)
        go_on.set()
        assert [one[4] for one in await waiting] == [("127.0.0.1", 80)]
        assert await resolver.resolve(slow, Request("connect", "c.test", 80))


async def test_lookup_without_a_thread_keeps_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than there are places."""

    def fail(_: object) -> None:
        raise RuntimeError("can't start new thread")

    client = Clients(Limits(lookups=2)).enter(3)
    assert client
    resolver = Resolver()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        for _ in range(70):
            async with asyncio.timeout(30):
                with pytest.raises(Refusal, match="cannot be looked up now"):
                    await resolver.resolve(client, Request("connect", "a.test", 80))
    assert await resolver.resolve(client, Request("connect", "127.0.0.1", 80))


ENTRY = Entry(
    number=1,
    time="2026-01-01T00:00:00.000+00:00",
    cid=3,
    guest="alpha",
    listener="2:3128",
    protocol="http",
    method="GET",
    target="a.test:80",
    path="/" + "x" * 30000,
    verdict="refused",
    reason='a "\n\x1b',
    bytes_out=0,
    bytes_in=0,
    seconds=0.1,
    turned_away=0,
)


def test_log_is_one_short_line_for_each_request(tmp_path: Path) -> None:
    """Whatever a guest sends; nobody else can read the file, and it is begun anew when it was moved away."""
    path = tmp_path / "log"
    log = Log(path)
    log.write(ENTRY)
    assert path.stat().st_mode & 0o777 == 0o600
    path.rename(tmp_path / "log.1")
    log.write(ENTRY)
    log.reopen()
    log.write(ENTRY)
    log.close()
    old, new = (tmp_path / "log.1").read_text().splitlines(), path.read_text().splitlines()
    assert (len(old), len(new)) == (2, 1)
    assert len(new[0]) < 1000
    found = json.loads(new[0])
    assert (found["reason"], found["path"][-5:]) == ('a "\n\x1b', "xx...")


def test_header_file_is_read(tmp_path: Path) -> None:
    """A header on each line, for a host and a port."""
    path = tmp_path / "headers"
    path.touch(0o600)
    path.write_bytes(b"Authorization: Bearer a b \r\n\nX-Key:k\n")
    expected = ((b"Authorization", b"Bearer a b"), (b"X-Key", b"k"))
    assert read_header_file(f"A.test={path}") == (("a.test", 80), expected)
    assert read_header_file(f"a.test:8080={path}")[0] == ("a.test", 8080)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no header"),
        (b"secret", "header 1 is none"),
        (b"A: 1\nsecret token\n", "header 2 is none"),
        (b"A: \n", "header 1 is none"),
        (b"A: secret\0\n", "header 1 is none"),
        (b"content-length: 1\n", "the proxy itself sets"),
        (b"A: " + b"x" * 20000, "more than"),
    ],
)
def test_header_file_with_something_else_is_refused(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    """The message has nothing of its content but the name of a header."""
    path = tmp_path / "headers"
    path.touch(0o600)
    path.write_bytes(content)
    with pytest.raises(UsageError, match=reason) as caught:
        read_header_file(f"a.test={path}")
    assert "secret" not in str(caught.value)


def test_header_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    """And what is no file, and what is no host."""
    path = tmp_path / "headers"
    path.write_bytes(b"A: 1\n")
    path.chmod(0o640)
    with pytest.raises(UsageError, match="chmod 600"):
        read_header_file(f"a.test={path}")
    os.mkfifo(tmp_path / "pipe")
    for text in ("a.test", "a.test=", "*.a.test=x", "=x", f"a.test={tmp_path}/pipe"):
        with pytest.raises(UsageError):
            read_header_file(text)
    with pytest.raises(OSError, match="No such file"):
        read_header_file(f"a.test={tmp_path}/missing")
