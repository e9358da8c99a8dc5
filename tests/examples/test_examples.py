"""Every example does what it says, against a real switch and a userspace guest."""

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.examples.conftest import EXAMPLES, read_line
from tests.ssh.server import SshServer

import vsock
from vsock.ssh.identity import Identity

PORT = 5000


def test_echo_server_and_client(guest, serve, run):
    """Server in the guest and client on the host, and the other way round."""
    server = serve("echo_server.py", PORT, guest=guest)
    assert run("echo_client.py", f"alpha:{PORT}", "hello") == "hello\n"
    said = read_line(server)
    assert said.startswith("2:")
    assert said.endswith(" sent 5 bytes")
    serve("echo_server.py", PORT)
    assert run("echo_client.py", f"host:{PORT}", "back", guest=guest) == "back\n"


def test_asyncio_server_has_many_clients_at_once(guest, serve, run):
    """Each gets its own bytes."""
    serve("asyncio_echo.py", "serve", PORT, guest=guest)
    said = run("asyncio_echo.py", "ask", f"alpha:{PORT}", "--clients", 50)
    assert said == "50 of 50 clients got their own bytes back\n"


def test_trio_client_gets_what_it_sent(guest, serve, run):
    """Over a non-blocking connect; a refusal is an exception."""
    serve("asyncio_echo.py", "serve", PORT, guest=guest)
    assert run("trio_client.py", f"alpha:{PORT}", "one", "two") == "one\ntwo\n"
    assert "ConnectRefused" in run("trio_client.py", "alpha:1", "one", status=1)


def test_process_is_a_guest(switch, serve, run):
    """It serves, and connects to the host."""
    with vsock.create_server(7000) as listener:
        guest = serve("process_as_guest.py", switch.socket_path("beta"))
        connection, peer = listener.accept()
        assert (peer.cid, connection.makefile("rb").read()) == (4, b"hello from CID 4\n")
        connection.close()
    assert run("echo_client.py", "beta:5000", "hello") == "hello\n"
    guest.kill()


def test_guests_of_one_group_talk(run):
    """A guest of another group is refused, with the reason."""
    assert run("guest_to_guest.py").splitlines() == [
        "alpha -> beta: connected: alpha and beta share the group lab",
        "beta was called by CID 3",
        "gamma -> beta: refused: gamma and beta share no group; give both the same one",
    ]


def test_messages_keep_their_borders(guest, serve, run):
    """One recv returns the message of one send."""
    serve("messages.py", "serve", PORT, guest=guest)
    said = run("messages.py", "send", f"alpha:{PORT}", "one", "three and four")
    assert said == "3 bytes: one\n14 bytes: three and four\n"


def test_datagrams_go_and_come(guest, serve, run):
    """Between the host and a userspace guest; sending to a guest that is not attached is an error."""
    receiver = serve("datagrams.py", "receive", PORT, guest=guest)
    assert run("datagrams.py", "send", f"alpha:{PORT}", "one", "two") == "got one\ngot two\n"
    assert [read_line(receiver), read_line(receiver)] == ["2 says one", "2 says two"]
    said = run("datagrams.py", "send", "beta:5000", "one", status=1)
    assert said.startswith("datagrams.py: ")


def test_file_arrives_whole(guest, start, run, tmp_path):
    """The receiver's checksum is the sender's."""
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.write_bytes(bytes(range(256)) * 10_000)
    receiver = start("send_file.py", "receive", PORT, copy, guest=guest)
    assert read_line(receiver).startswith("listening on ")
    run("send_file.py", "send", f"alpha:{PORT}", original)
    assert read_line(receiver).startswith("2560000 bytes from 2:")
    assert copy.read_bytes() == original.read_bytes()


@pytest.mark.programs("openssl")
def test_tls_wants_the_right_name(guest, serve, run, tmp_path):
    """The client checks the name in the server's certificate."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    make = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=alpha"
        f" -addext subjectAltName=DNS:alpha -keyout {key} -out {certificate}"
    )
    subprocess.run(make.split(), check=True, capture_output=True)
    serve("tls.py", "serve", PORT, certificate, key, guest=guest)
    assert run("tls.py", "ask", f"alpha:{PORT}", certificate, "secret") == "TLSv1.3 secret\n"
    said = run("tls.py", "ask", f"alpha:{PORT}", certificate, "x", "--name", "beta", status=1)
    assert "CERTIFICATE_VERIFY_FAILED" in said


def test_http_serves_files(guest, serve, run, tmp_path):
    """An existing file, and a missing one."""
    (tmp_path / "page").write_text("a page\n")
    serve("http_over_vsock.py", "serve", PORT, "--directory", tmp_path, guest=guest)
    assert run("http_over_vsock.py", "get", f"alpha:{PORT}", "/page") == "a page\n"
    assert "404" in run("http_over_vsock.py", "get", f"alpha:{PORT}", "/none", status=1)


@pytest.mark.parametrize("library", ["httpx", "requests", "urllib3"])
def test_http_clients_get_a_page(guest, serve, run, tmp_path, library):
    """Each library by its own function of the example."""
    (tmp_path / "page").write_text("a page\n")
    serve("http_over_vsock.py", "serve", PORT, "--directory", tmp_path, guest=guest)
    assert run("http_clients.py", library, f"http://alpha:{PORT}/page") == "a page\n"


@pytest.mark.parametrize("library", ["httpx", "aiohttp"])
def test_http_clients_of_asyncio_get_a_page(guest, serve, run, tmp_path, library):
    """Twenty times, and each reply is the same."""
    (tmp_path / "page").write_text("a page\n")
    serve("http_over_vsock.py", "serve", PORT, "--directory", tmp_path, guest=guest)
    assert run("http_clients_asyncio.py", library, f"http://alpha:{PORT}/page") == "a page\n"


@pytest.mark.parametrize(("server", "client"), [("uvicorn", "('3', …)"), ("hypercorn", "None")])
def test_asgi_servers_answer_a_guest(guest, serve, run, server, client):
    """uvicorn tells the application who asks."""
    serve("serve_asgi.py", server, PORT)
    said = run("http_over_vsock.py", "get", f"host:{PORT}", "/", guest=guest)
    assert re.sub(r"\d{2,}", "…", said) == f"client: {client}\n"


def test_wsgi_server_answers_a_guest(guest, serve, run):
    """The standard library's, which tells the application who asks."""
    serve("serve_wsgi.py", PORT)
    assert run("http_over_vsock.py", "get", f"host:{PORT}", "/", guest=guest) == "client: 3\n"


def test_gunicorn_answers_a_guest(guest, run, tmp_path):
    """With its processes, and with the example as its configuration."""
    example = EXAMPLES / "serve_wsgi.py"
    command = [
        *(sys.executable, "-m", "gunicorn", "-c", str(example), "--workers", "2"),
        *("--pythonpath", str(EXAMPLES), "--no-control-socket", "serve_wsgi:app"),
    ]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr
            while "Booting worker" not in (line := server.stderr.readline()):
                assert line, "gunicorn has ended"
            said = run("http_over_vsock.py", "get", "host:8081", "/", guest=guest)
            assert said == "client: None\n"
        finally:
            server.terminate()
            ended = server.communicate(timeout=30)[1]
    assert server.returncode == 0, ended
    assert "Traceback" not in ended


def test_objects_go_between_programs(guest, serve, run):
    """With the right key; a client with another one is told apart."""
    name = "multiprocessing_connection.py"
    server = serve(name, "serve", PORT, "key")
    said = run(name, "ask", f"host:{PORT}", "key", 3, 4, 5, guest=guest)
    assert said == "{'sum': 12, 'largest': 5}\n"
    run(name, "ask", f"host:{PORT}", "other", 1, guest=guest, status=1)
    assert "not authenticated" in read_line(server)


def test_grpc_answers_in_both_directions(guest, serve, run):
    """Server in the guest and client on the host, and the other way round."""
    serve("grpc_over_vsock.py", "serve", PORT, guest=guest)
    assert run("grpc_over_vsock.py", "ask", f"alpha:{PORT}", "one", "two") == "ONE\nTWO\n"
    serve("grpc_over_vsock.py", "serve", PORT)
    assert run("grpc_over_vsock.py", "ask", f"host:{PORT}", "back", guest=guest) == "BACK\n"


def test_files_of_a_guest_are_listed_and_shown(guest, run, tmp_path):
    """Over SFTP of an SSH server in the guest."""
    (tmp_path / "rows").write_text("first\n" + "row\n" * 100_000 + "last\n")
    with SshServer(guest, Identity.of_user().public_key()):
        said = run("fsspec_files.py", f"vsock://alpha{tmp_path}/")
        assert f"file          400011 {tmp_path}/rows" in said.splitlines()
        assert run("fsspec_files.py", f"vsock://alpha{tmp_path}/rows") == "first\nlast\n"


def test_docker_sdk_asks_the_daemon_of_a_guest(guest, run):
    """One that knows its version, and has no containers."""
    listener = guest.create_server(2375)
    with ThreadingHTTPServer(("", 0), NoContainers, bind_and_activate=False) as daemon:
        daemon.socket.close()
        daemon.socket = listener
        thread = threading.Thread(target=daemon.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert run("docker_sdk.py", "alpha:2375") == "Docker 27.5.1\n"
        finally:
            daemon.shutdown()
            thread.join()
    said = run("docker_sdk.py", "alpha:9", status=1)
    assert "alpha:9: connect to 3:9: refused" in said


class NoContainers(BaseHTTPRequestHandler):
    """A Docker daemon, as far as the example asks."""

    def do_GET(self) -> None:
        """Answer as the engine API says."""
        is_version = self.path.endswith("/version")
        said = {"ApiVersion": "1.47", "Version": "27.5.1"} if is_version else []
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(said).encode())

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


def test_hybrid_socket_goes_both_ways(switch, serve, run):
    """Connections in both directions, over Unix sockets only."""
    switch.add_guest("delta", 6, hybrid=True)
    path = switch.hybrid_path("delta")
    with vsock.Guest(switch.socket_path("delta")) as delta:
        serve("echo_server.py", PORT, guest=delta)
        assert run("hybrid.py", "call", path, PORT, "hello") == "hello\n"
        listener = serve("hybrid.py", "listen", path, 6000)
        with delta.create_connection((vsock.CID_HOST, 6000)) as connection:
            connection.sendall(b"from the guest")
        assert read_line(listener) == "from the guest"
        assert listener.wait(30) == 0


def test_options_hold_for_the_connection(guest, run):
    """The buffer has the requested size, and the timeout ends a call."""
    with guest.create_server(PORT):
        said = run("options.py", f"alpha:{PORT}", "--buffer", 1 << 20).splitlines()
    assert said == [
        "receive buffer by default: 262144",
        "receive buffer now: 1048576",
        "no data within 0.2 s",
    ]


def test_errors_are_told_in_words(guest, run):
    """Each error with its cause."""
    with guest.create_server(PORT):
        assert run("errors_in_words.py", "alpha:5000") == "connected to 3:5000\n"
    for address, words in {
        "alpha:5000": "nobody listens on this port",
        "beta:5000": "the guest does not answer",
        "delta:5000": "no guest of this name",
        "9:5000": "no guest of this name",
        "alpha": "not an address",
    }.items():
        assert words in run("errors_in_words.py", address, status=1)


def test_errors_without_a_switch_say_so(runtime_dir, run):
    """The most common error."""
    assert run("errors_in_words.py", "alpha:5000", status=1).startswith("no switch runs here")


def test_connections_end_when_the_cid_changes(run):
    """Afterwards the name leads to the new CID."""
    assert run("change_cid.py").splitlines() == [
        "connected to 3:5000",
        "alpha now has CID 33",
        "an open connection ends with ECONNRESET",
        "an open connection ends with ECONNRESET",
        "connected to 33:5000 by the same name",
        "no guest has CID 3",
    ]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_example_is_short_explained_and_tested(path):
    """Under 60 lines; it begins with how to run it; README and a test know it."""
    source = path.read_text()
    assert len(source.splitlines()) < 60
    assert f"{path.name}" in source.split('"""')[1]
    assert f"[{path.name}]({path.name})" in (EXAMPLES / "README.md").read_text()
    tests = [file.read_text() for file in Path(__file__).parent.glob("test_*.py")]
    assert any(f'"{path.name}"' in text for text in tests)
