"""Services: forwards and proxies of the config file, which the daemon runs, starts again, lists and ends."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tests.switch.test_daemon import Daemon

from vsock.control.client import ControlClient
from vsock.control.services import ForwardSpec, ServiceRecord
from vsock.guest import Guest
from vsock.runtime import RuntimeFiles
from vsock.switch.services import Services

SECONDS = 30

GUEST = '[[guest]]\nname = "alpha"\ncid = 3\n'
FORWARD = '[[forward]]\nname = "web"\nlisten = "tcp:127.0.0.1:0"\nto = "alpha:80"\n'


def proxy(log: Path, allow: str = "a.test") -> str:
    """A proxy of a config file."""
    return (
        '[[proxy]]\nname = "packages"\nlisten = ["tcp:127.0.0.1:0"]\n'
        f'allow = ["{allow}"]\nlog = "{log}"\n'
    )


def port_in(line: str) -> int:
    """The port at which a line of the log says that a service listens."""
    found = re.search(r"tcp:127\.0\.0\.1:(\d+)", line)
    assert found
    return int(found[1])


def service(runtime_dir: Path, name: str) -> ServiceRecord:
    """A service as it is."""
    (found,) = [one for one in ControlClient(runtime_dir).services() if one.name == name]
    return found


def until_gone(pid: int) -> None:
    """Wait until a process has ended; whoever inherits it reaps it."""
    deadline = time.monotonic() + SECONDS
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether there is such a process; one that waits to be reaped has no command line."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Where the proxy of the config file logs."""
    return tmp_path / "proxy.log"


@pytest.fixture
def config(runtime_dir: Path, log: Path) -> Path:
    """A config file with both kinds of services."""
    file = runtime_dir / "vsock.toml"
    file.write_text(GUEST + FORWARD + proxy(log))
    return file


def test_services_serve_are_logged_and_listed(runtime_dir: Path, config: Path, log: Path) -> None:
    """They end with the switch."""
    with Daemon("--config", str(config)) as daemon:
        # The two start at the same time.
        lines = [daemon.wait_for("forwarding tcp:|proxy listens at") for _ in range(2)]
        web, packages = sorted(lines, key=lambda line: "packages" in line)
        assert "forward web: forwarding" in web
        with (
            Guest(RuntimeFiles(runtime_dir).guest_socket("alpha")) as guest,
            guest.create_server(80) as server,
            socket.create_connection(("127.0.0.1", port_in(web)), SECONDS) as sock,
        ):
            connection, _ = server.accept()
            with connection:
                sock.sendall(b"x")
                assert connection.recv(1) == b"x"
        with socket.create_connection(("127.0.0.1", port_in(packages)), SECONDS) as sock:
            sock.sendall(b"CONNECT b.test:1 HTTP/1.0\r\n\r\n")
            assert sock.recv(12, socket.MSG_WAITALL) == b"HTTP/1.1 403"
            assert sock.recv(1000)
        deadline = time.monotonic() + SECONDS
        while '"target": "b.test:1"' not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        records = ControlClient(runtime_dir).services()
        assert [(one.name, one.kind, one.state, one.restarts) for one in records] == [
            ("web", "forward", "running", 0),
            ("packages", "proxy", "running", 0),
        ]
        shown = subprocess.run(
            [sys.executable, "-m", "vsock.cli", "ls"], capture_output=True, text=True, check=True
        ).stdout
        assert re.search(r"web +forward +running +0 +\d+ +tcp:127.0.0.1:0 to alpha:80\n", shown)
        listed = subprocess.run(
            [sys.executable, "-m", "vsock.cli", "ls", "--json"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert [one["pid"] for one in json.loads(listed)["services"]] == [r.pid for r in records]
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_for("stopped")
        assert daemon.process.wait(SECONDS) == 0
        for one in records:
            assert one.pid
            until_gone(one.pid)


def test_connection_of_a_forward_that_fails_is_logged(
    runtime_dir: Path, config: Path, log: Path
) -> None:
    """With where it came from, its target and the reason."""
    with Daemon("--config", str(config)) as daemon:
        lines = [daemon.wait_for("forwarding tcp:|proxy listens at") for _ in range(2)]
        (web,) = [line for line in lines if "forward web" in line]
        with (
            Guest(RuntimeFiles(runtime_dir).guest_socket("alpha")),
            socket.create_connection(("127.0.0.1", port_in(web)), SECONDS) as sock,
        ):
            with suppress(ConnectionResetError):
                assert sock.recv(1) == b""
            said = daemon.wait_for("forward web: from ")
        assert re.search(r"WARNING.*127\.0\.0\.1.* alpha:80: .*nobody", said), said


def test_service_that_ends_is_started_again(runtime_dir: Path, config: Path) -> None:
    """With the number of times in the listing; others go on."""
    with Daemon("--config", str(config)) as daemon:
        for _ in range(2):
            daemon.wait_for("forwarding tcp:|proxy listens at")
        before, other = service(runtime_dir, "web"), service(runtime_dir, "packages")
        assert before.pid
        os.kill(before.pid, signal.SIGKILL)
        daemon.wait_for(r"WARNING .*forward web: ended \(-9\), starts again in 0.5 s")
        daemon.wait_for("forward web: forwarding tcp:")
        after = service(runtime_dir, "web")
        assert (after.state, after.restarts, after.pid != before.pid) == ("running", 1, True)
        assert service(runtime_dir, "packages") == other


def test_modules_in_the_directory_of_the_switch_are_not_run(
    runtime_dir: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others may be able to write there."""
    monkeypatch.chdir(tmp_path)
    with Daemon("--config", str(config)) as daemon:
        for _ in range(2):
            daemon.wait_for("forwarding tcp:|proxy listens at")
        # The switch has its modules already.
        (tmp_path / "click.py").write_text('raise SystemExit("not the library")')
        before = service(runtime_dir, "web")
        assert before.pid
        os.kill(before.pid, signal.SIGKILL)
        assert "forwarding" in daemon.wait_for("forward web: (forwarding tcp:|not the library)")


def test_services_become_those_of_the_file_on_sighup(
    runtime_dir: Path, config: Path, log: Path
) -> None:
    """Unchanged ones go on; an entry that cannot work says why until it is changed."""
    with Daemon("--config", str(config)) as daemon:
        for _ in range(2):
            daemon.wait_for("forwarding tcp:|proxy listens at")
        web = service(runtime_dir, "web")
        config.write_text(GUEST + FORWARD + proxy(log, "a.test:x"))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("proxy packages: cannot run, until its entry is changed: 'a.test:x': ")
        packages = service(runtime_dir, "packages")
        assert (packages.state, packages.pid) == ("failed", None)
        assert packages.reason.startswith("'a.test:x': 'x' is no port")
        assert service(runtime_dir, "web") == web
        config.write_text(GUEST + proxy(log))
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("proxy packages: proxy listens at")
        assert [one.name for one in ControlClient(runtime_dir).services()] == ["packages"]
        assert web.pid
        until_gone(web.pid)


def test_service_that_has_failed_is_tried_again_on_sighup(
    runtime_dir: Path, config: Path, log: Path, tmp_path: Path
) -> None:
    """A file that it reads may be right now."""
    secret = tmp_path / "secret"
    secret.touch(0o600)
    secret.write_text("no header\n")
    config.write_text(proxy(log) + f'header_files = ["a.test={secret}"]\n')
    with Daemon("--config", str(config)) as daemon:
        daemon.wait_for("proxy packages: cannot run")
        assert service(runtime_dir, "packages").state == "failed"
        secret.write_text("Name: value\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("proxy packages: proxy listens at")


Program = Callable[[str], None]


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Puts a shell script in the place of the Python that runs services; before that there is nothing."""
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))

    def put(script: str) -> None:
        made = tmp_path / "made"
        made.write_text(f"#!/bin/sh\n{script}\n")
        made.chmod(0o700)
        made.rename(program)

    return put


async def until(services: Services, condition: Callable[[ServiceRecord], bool]) -> ServiceRecord:
    """Wait for a state of the only service."""
    deadline = time.monotonic() + SECONDS
    while not condition(record := services.records()[0]):
        assert time.monotonic() < deadline, record
        await asyncio.sleep(0.02)
    return record


SPEC = ForwardSpec(name="web", listen="8080", to="alpha:80")


async def test_service_that_cannot_be_started_is_started_later(
    tmp_path: Path, python: Program
) -> None:
    """For instance when there were too many processes."""
    async with Services(tmp_path) as services:
        await services.become([SPEC])
        record = await until(services, lambda one: bool(one.reason))
        assert (record.state, "No such file" in record.reason) == ("waiting", True)
        python("exec sleep 1000")
        assert (await until(services, lambda one: one.state == "running")).restarts


async def test_service_that_prints_a_line_without_end_is_ended(
    tmp_path: Path, python: Program
) -> None:
    """And started again."""
    python("head -c 200000 /dev/zero | tr '\\0' x; exec sleep 1000")
    async with Services(tmp_path) as services:
        await services.become([SPEC])
        record = await until(services, lambda one: one.restarts > 0)
        assert record.restarts


async def test_service_does_not_flood_the_log(
    tmp_path: Path, python: Program, caplog: pytest.LogCaptureFixture
) -> None:
    """Guests cause its lines. The listing has the last of them once it has ended, and not before."""
    python(
        "seq -f 'vsock: from guest %g: refused' 1000; "
        f"until [ -e {tmp_path}/end ]; do sleep 0.1; done; echo 'vsock: gone' >&2; exit 3"
    )
    async with Services(tmp_path) as services:
        await services.become([SPEC])
        await until(services, lambda _: "from guest 40: refused" in caplog.text)
        assert services.records()[0].reason == ""
        (tmp_path / "end").touch()
        record = await until(services, lambda one: one.state == "waiting")
        assert record.reason == "gone"
        assert 40 <= len(caplog.records) <= 50 + SECONDS


def test_services_of_a_switch_that_is_killed_end_too(runtime_dir: Path, config: Path) -> None:
    """Nobody would know of them, and the next switch starts its own."""
    with Daemon("--config", str(config)) as daemon:
        for _ in range(2):
            daemon.wait_for("forwarding tcp:|proxy listens at")
        pids = [one.pid for one in ControlClient(runtime_dir).services()]
        daemon.process.kill()
        for pid in pids:
            assert pid
            until_gone(pid)


def test_proxy_that_still_starts_is_not_ended_by_sighup(
    runtime_dir: Path, config: Path, log: Path
) -> None:
    """It handles it when it can."""
    config.write_text(proxy(log))
    with Daemon("--config", str(config)) as daemon:
        daemon.wait_for("ready")
        deadline = time.monotonic() + SECONDS
        while not (pid := service(runtime_dir, "packages").pid):
            assert time.monotonic() < deadline
        os.kill(pid, signal.SIGHUP)
        assert "listens" in daemon.wait_for("proxy packages: (proxy listens at|ended)")
        assert service(runtime_dir, "packages").pid == pid


def test_log_of_a_proxy_is_opened_anew_on_sighup(
    runtime_dir: Path, config: Path, log: Path, tmp_path: Path
) -> None:
    """As logrotate needs it; the proxy goes on."""
    config.write_text(proxy(log))
    with Daemon("--config", str(config)) as daemon:
        daemon.wait_for("proxy listens at")
        before = service(runtime_dir, "packages")
        log.rename(tmp_path / "proxy.log.1")
        daemon.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + SECONDS
        while not log.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert service(runtime_dir, "packages") == before
