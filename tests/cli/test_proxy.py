"""`vsock proxy`: the command around `vsock.proxy`; curl is its client, in a userspace guest and on the host."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from vsock.guest import Guest

SECONDS = 30

Start = Callable[..., "tuple[subprocess.Popen[str], str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a command that listens; returns it with the last end at which it says so."""
    running: list[subprocess.Popen[str]] = []

    def begin(*words: str, lines: int = 1) -> "tuple[subprocess.Popen[str], str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "vsock.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stderr
        for _ in range(lines):
            line = process.stderr.readline()
            assert line.startswith("proxy listens at "), process.communicate(timeout=SECONDS)
        return process, line.split()[-1]

    yield begin
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[int]:
    """The port of a web server for a file `page`."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "files").mkdir()
    (tmp_path / "files/page").write_text("a page\n")
    handler = partial(Handler, directory=str(tmp_path / "files"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def curl(*words: str) -> "subprocess.CompletedProcess[str]":
    """Run curl without the settings of this user."""
    return subprocess.run(
        ["curl", "--disable", "--silent", "--show-error", "--noproxy", "", *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env={name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
    )


@pytest.mark.programs("curl")
@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM])
def test_clients_are_served_and_logged(start: Start, web: int, guest: Guest, ended_by: int) -> None:
    """The log is all of standard output; a signal ends the proxy without a traceback."""
    process, where = start(
        *("proxy", "--allow", f"127.0.0.1:{web}", "--guest", "alpha"),
        *("--listen", "host:3128", "--listen", "tcp:127.0.0.1:0"),
        lines=2,
    )
    proxy = where.removeprefix("tcp:")
    done = curl("--proxy", f"http://{proxy}", f"http://127.0.0.1:{web}/page")
    assert (done.stdout, done.stderr) == ("a page\n", "")
    with guest.create_connection((2, 3128)) as sock:
        sock.sendall(b"CONNECT a.test:22 HTTP/1.1\r\nHost: a.test\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 403 a.test:22 is not allowed\r\n")
    assert process.stdout
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert [(one["guest"], one["target"], one["verdict"]) for one in lines] == [
        (None, f"127.0.0.1:{web}", "opened"),
        (None, f"127.0.0.1:{web}", "allowed"),
        ("alpha", "a.test:22", "refused"),
    ]
    process.send_signal(ended_by)
    out, err = process.communicate(timeout=SECONDS)
    code = 130 if ended_by == signal.SIGINT else 0
    assert (process.returncode, out, err.strip()) == (code, "", "")


@pytest.mark.programs("curl")
def test_headers_come_from_a_file_and_the_log_goes_to_one(
    start: Start, web: int, tmp_path: Path
) -> None:
    """SIGHUP begins the log anew; the header is sent, and is in neither log."""
    secret, log = tmp_path / "secret", tmp_path / "log"
    secret.touch(0o600)
    secret.write_text("If-Modified-Since: Tue, 01 Jan 2999 00:00:00 GMT\n")
    process, where = start(
        *("proxy", "--allow", f"127.0.0.1:{web}", "--listen", "tcp:127.0.0.1:0"),
        *("--header-file", f"127.0.0.1:{web}={secret}", "--log", str(log)),
    )
    words = ("--proxy", f"http://{where.removeprefix('tcp:')}", "-w", "%{http_code}")
    url = f"http://127.0.0.1:{web}/page"
    # The web server answers what it would not without that header.
    assert curl(*words, url).stdout == "304"
    log.rename(tmp_path / "log.1")
    process.send_signal(signal.SIGHUP)
    # The signal is handled before the next request, or one after it.
    for _ in range(100):
        assert curl(*words, url).stdout == "304"
        if log.exists() and log.stat().st_size:
            break
    entry = json.loads(log.read_text().splitlines()[0])
    assert entry["verdict"] in ("opened", "allowed")
    assert entry["path"] == "/page"
    assert "2999" not in log.read_text() + (tmp_path / "log.1").read_text()
    process.terminate()
    assert process.communicate(timeout=SECONDS) == ("", "")


def test_log_that_cannot_be_written_ends_the_proxy(start: Start) -> None:
    """With one line."""
    process, where = start(
        *("proxy", "--allow", "a.test", "--listen", "tcp:127.0.0.1:0", "--log", "/dev/full")
    )
    curl("--proxy", f"http://{where.removeprefix('tcp:')}", "http://b.test/")
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, err) == (1, "", "vsock: No space left on device\n")


def test_end_that_is_taken_is_one_line(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    """Of one listener that cannot be had, the others are closed."""
    from vsock.cli.main import main

    assert main(["proxy", "--allow", "a", "--listen", "tcp:192.0.2.1:80"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
