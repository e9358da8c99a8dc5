"""An address form is one file: the parser and every verb accept a new form without a change."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

import vsock
import vsock.transports
from vsock.address import as_target


@pytest.fixture(autouse=True)
def abstract(monkeypatch):
    """Loads tests/forms/abstract.py as a module of vsock.transports."""
    folder = Path(__file__).parent / "forms"
    monkeypatch.setattr(vsock.transports, "__path__", [*vsock.transports.__path__, str(folder)])
    yield
    sys.modules.pop("vsock.transports.abstract", None)
    vars(vsock.transports).pop("abstract", None)


def test_form_is_read_and_printed():
    """The module with the name of the scheme does both."""
    text = "abstract://hello"
    target = vsock.parse(text)
    assert (type(target).__name__, str(target), as_target(target)) == (
        "AbstractAddress",
        text,
        target,
    )
    with pytest.raises(vsock.AddressError, match="a name must follow"):
        vsock.parse("abstract://")


@pytest.mark.parametrize(
    "text", ["switch://x", "memory://x", "nothing://x", "Abstract://x", "a.b://x"]
)
def test_scheme_of_no_form_is_unknown(text):
    """Also that of a transport without addresses of its own."""
    with pytest.raises(vsock.AddressError, match="unknown scheme"):
        vsock.parse(text)


def test_blocking_verbs_take_the_form(runtime_dir):
    """create_server and create_connection, by text and by value."""
    text = f"abstract://{os.getpid()}"
    with vsock.create_server(text) as listener:
        for address in (text, vsock.parse(text)):
            with vsock.create_connection(address, 5) as ours:
                assert isinstance(ours, vsock.socket)
                theirs, _ = listener.accept()
                with theirs:
                    ours.sendall(b"hello")
                    assert theirs.recv(10) == b"hello"
    with pytest.raises(ConnectionRefusedError):
        vsock.create_connection(text)


async def test_asyncio_verbs_take_the_form(runtime_dir):
    """start_server and open_connection."""

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        writer.close()

    text = f"abstract://{os.getpid()}"
    async with await vsock.start_server(shout, text):
        reader, writer = await vsock.open_connection(text)
        writer.write(b"hello\n")
        assert await reader.read() == b"HELLO\n"
        writer.close()


def test_address_of_a_form_given_to_another_transport_is_refused(runtime_dir):
    """A socket of a switch says which calls take it."""
    with vsock.socket() as sock, pytest.raises(vsock.AddressError, match="create_connection"):
        sock.connect("abstract://hello")
