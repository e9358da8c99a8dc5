"""`vsock.adapters` with programs in real guests, which have nothing of ours."""

import fsspec
import httpx
import pytest
from tests.guests.conftest import DEBIAN_USER

from vsock.adapters.fsspec import GuestFileSystem
from vsock.adapters.httpx import VsockTransport
from vsock.adapters.multiprocessing import Client
from vsock.testing.plugin import DEBIAN

KEY = b"a key"


def listen(port: int) -> None:
    """In the guest: the standard library's listener, which sends back what it gets."""
    import multiprocessing.connection
    import socket

    with multiprocessing.connection.Listener(
        (socket.VMADDR_CID_ANY, port),  # type: ignore[arg-type] # typeshed knows no AF_VSOCK
        family="AF_VSOCK",
        authkey=b"a key",
    ) as listener:
        print("listening", flush=True)
        with listener.accept() as connection:
            connection.send(["guest", connection.recv()])


@pytest.mark.parametrize("kind", ["uml", "qemu-6.12"])
def test_objects_go_to_the_standard_librarys_listener_in_a_guest(place, transport, port, kind):
    """It has the family AF_VSOCK; its Client has not."""
    found = place(kind)
    process = found.guest.spawn_call(listen, port)
    assert process.read_line() == "listening"
    with Client((found.cid, port), authkey=KEY, timeout=30, transport=transport) as connection:
        connection.send({"large": b"x" * 1_000_000})
        assert connection.recv() == ["guest", {"large": b"x" * 1_000_000}]
    process.result()


@pytest.fixture
def files(debian_user):
    """The files of a stock Debian 13; its sshd has its own sftp-server."""
    made = fsspec.filesystem("vsock", guest=DEBIAN)
    yield made
    made.close()


def test_files_of_a_debian_guest(files):
    """Read, written, listed, moved and removed, with errors of OpenSSH's server."""
    with fsspec.open(f"vsock://{DEBIAN}/etc/os-release", "rt") as file:
        assert "trixie" in file.read()
    assert "/etc/passwd" in files.ls("/etc", detail=False)
    assert files.info("/etc")["type"] == "directory"
    data = bytes(range(256)) * 4000
    folder = "/var/tmp/a folder"
    files.makedirs(f"{folder}/deep", exist_ok=True)
    with files.open(f"{folder}/deep/file", "wb") as file:
        file.write(data)
    with files.open(f"{folder}/deep/file", cache_type="blockcache") as file:
        assert file.seek(-1000, 2) == len(data) - 1000
        assert file.read() == data[-1000:]
    with files.transaction, files.open(f"{folder}/deep/file", "wb") as file:
        file.write(b"new")
    assert files.cat_file(f"{folder}/deep/file") == b"new"
    assert files.find(folder) == [f"{folder}/deep/file"]
    assert [path for path, _, _ in files.walk(folder)] == [folder, f"{folder}/deep"]
    files.rm(folder, recursive=True)
    assert not files.exists(folder)
    with pytest.raises(FileNotFoundError):
        files.open("/none")


def test_files_that_a_user_may_not_read(debian_user):
    """The error of a file, with the errno."""
    made = GuestFileSystem(DEBIAN, user=DEBIAN_USER)
    try:
        with pytest.raises(PermissionError):
            made.cat_file("/etc/shadow")
        with pytest.raises(PermissionError):
            made.open("/etc/new", "wb")
    finally:
        made.close()


HTTP = """
import http.server, socket, socketserver
class Server(socketserver.TCPServer):
    address_family = socket.AF_VSOCK
class Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def address_string(self): return "host"
Server((socket.VMADDR_CID_ANY, {port}), Handler).serve_forever()
"""


@pytest.mark.parametrize("kind", ["uml", "qemu-6.12"])
def test_http_server_in_a_guest_answers_httpx(place, transport, port, kind):
    """The standard library's, at the guest kernel's own AF_VSOCK."""
    found = place(kind)
    found.guest.run("mkdir -p /tmp/web && echo 'a page' >/tmp/web/page")
    process = found.guest.spawn(
        ["python3", "-c", f"import os; os.chdir('/tmp/web')\n{HTTP.format(port=port)}"]
    )
    try:
        where = VsockTransport(transport=transport, retries=8)
        with httpx.Client(transport=where, timeout=30) as client:
            url = f"http://{found.cid}:{port}"
            assert client.get(f"{url}/page").text == "a page\n"
            assert client.get(f"{url}/none").status_code == 404
    finally:
        process.kill()
