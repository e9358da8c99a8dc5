"""What the threads of a running switch have given up, and where the switch says so.

crates/sandbox/tests tries forbidden calls from inside each kind of thread.
"""

import os
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from tests.switch.test_daemon import Daemon

from vsock.cli.main import main
from vsock.control.client import ControlClient
from vsock.errors import UsageError
from vsock.guest import Guest
from vsock.runtime import RuntimeFiles
from vsock.sockets import create_connection, create_server
from vsock.switch.switch import Switch
from vsock.transports import SwitchTransport

PRIVILEGED = 700
"""A port for which the switch looks into /proc."""


@contextmanager
def running(runtime_dir: Path, *options: str) -> Iterator[Daemon]:
    """A daemon with a guest that has a hybrid socket."""
    config = runtime_dir / "vsock.toml"
    config.write_text('[[guest]]\nname = "alpha"\ncid = 3\nhybrid = true\n')
    arguments = ("--config", str(config), "--runtime-dir", str(runtime_dir), *options)
    with Daemon(*arguments) as daemon:
        daemon.wait_for("ready")
        yield daemon


def use(runtime_dir: Path) -> None:
    """Makes a switch do everything that its threads are for: packets, front ends, /proc, hybrid sockets."""
    transport = SwitchTransport(str(runtime_dir))
    files = RuntimeFiles(runtime_dir)
    with ExitStack() as stack:
        guest = stack.enter_context(Guest(files.guest_socket("alpha")))
        # The switch reads in /proc whether this program may bind that port.
        server = stack.enter_context(create_server((2, PRIVILEGED), transport=transport))
        to_host = stack.enter_context(guest.create_connection((2, PRIVILEGED)))
        accepted, _ = server.accept()
        stack.enter_context(accepted)
        to_host.sendall(b"to the host")
        assert accepted.recv(100) == b"to the host"
        # Nobody listens on the host, but a program does at the guest's hybrid socket.
        hybrid = stack.enter_context(unix_listener(f"{files.hybrid_socket('alpha')}_800"))
        stack.enter_context(guest.create_connection((2, 800))).sendall(b"x")
        at_hybrid, _ = hybrid.accept()
        stack.enter_context(at_hybrid)
        assert at_hybrid.recv(1) == b"x"
        inside = stack.enter_context(guest.create_server(900))
        to_guest = stack.enter_context(create_connection((3, 900), transport=transport))
        at_guest, _ = inside.accept()
        stack.enter_context(at_guest)
        to_guest.sendall(b"to the guest")
        assert at_guest.recv(100) == b"to the guest"


@contextmanager
def unix_listener(path: str) -> Iterator[socket.socket]:
    """A program that takes a guest's connections at a hybrid socket."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.settimeout(30)
        listener.bind(path)
        listener.listen()
        yield listener


def threads(pid: int) -> dict[str, tuple[str, str]]:
    """Seccomp mode and no_new_privs of each thread of a process, by its name."""
    found = {}
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines())
        name = fields["Name"]
        # Python's threads have one name.
        name = name if name.startswith(("vsock-", "vhost-")) else f"python {fields['Pid']}"
        found[name] = (fields["Seccomp"], fields["NoNewPrivs"])
    return found


def test_threads_of_the_data_plane_are_restricted_and_those_of_python_are_not(
    runtime_dir: Path,
) -> None:
    """The kernel says so of each thread, and the switch works."""
    (ours,) = {state for name, state in threads(os.getpid()).items() if name.startswith("python")}
    with running(runtime_dir) as daemon:
        assert ControlClient(runtime_dir).switch().sandbox == "on"
        use(runtime_dir)
        found = threads(daemon.process.pid)
    native = {name for name in found if not name.startswith("python")}
    starters = {"vhost-controls", "vsock-helpers"}
    names = {"vsock-2", "vhost-3", "vsock-privilege", "vsock-hybrid", *starters}
    assert native == names
    assert {found.pop(name) for name in native} == {("2", "1")}
    assert set(found.values()) == {ours}


def test_without_sandbox_every_thread_is_as_the_process(runtime_dir: Path) -> None:
    """`--no-sandbox` restricts nothing, and the log and the API say so."""
    with running(runtime_dir, "--no-sandbox") as daemon:
        assert ControlClient(runtime_dir).switch().sandbox == "off (disabled)"
        use(runtime_dir)
        assert len(set(threads(daemon.process.pid).values())) == 1


@pytest.mark.programs("strace")
@pytest.mark.parametrize(
    ("missing", "state"),
    [
        ("landlock_create_ruleset", r"partly \(the kernel has no Landlock\)"),
        ("seccomp", r"partly \(seccomp: .*Function not implemented.*\)"),
        (
            "seccomp,landlock_create_ruleset",
            r"off \(seccomp: .*Function not implemented.*; the kernel has no Landlock\)",
        ),
    ],
)
def test_switch_on_a_kernel_without_a_part_says_so_and_works(
    runtime_dir: Path, missing: str, state: str
) -> None:
    """strace answers these calls as a kernel without them does."""
    inject = ("-e", f"trace={missing}", "-e", f"inject={missing}:error=ENOSYS")
    strace = ["strace", "-f", "-qq", "-o", "/dev/null", *inject]
    with Daemon("--guest", "alpha=3", under=strace) as daemon:
        daemon.wait_for(f"WARNING.*sandbox: {state}$")
        daemon.wait_for("ready")
        shown = ControlClient(runtime_dir).switch()
        assert re.fullmatch(state, shown.sandbox)
        transport = SwitchTransport(str(runtime_dir))
        with (
            Guest(RuntimeFiles(runtime_dir).guest_socket("alpha")) as guest,
            guest.create_server(900) as server,
            create_connection((3, 900), transport=transport) as ours,
            server.accept()[0] as theirs,
        ):
            ours.sendall(b"x")
            assert theirs.recv(1) == b"x"
        # strace passes signals on to nobody: its child ends first.
        os.kill(shown.pid, signal.SIGTERM)
        daemon.wait_for("stopped")


def test_sandbox_of_a_running_switch_cannot_change(runtime_dir: Path) -> None:
    """Threads cannot get back what they have given up; SIGHUP warns, and a call fails."""
    with running(runtime_dir) as daemon:
        config = runtime_dir / "vsock.toml"
        config.write_text(f"[switch]\nsandbox = false\n{config.read_text()}")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for("WARNING.*another sandbox needs a restart of the switch")
        assert ControlClient(runtime_dir).switch().sandbox == "on"
    with Switch(runtime_dir=runtime_dir / "other", sandbox=False) as switch:
        assert switch.info().sandbox == "off (disabled)"
        with pytest.raises(UsageError, match="sandbox"):
            switch.change_settings(sandbox=True)


def test_command_shows_the_switch_itself(
    runtime_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`vsock ls --switch` has the state of the sandbox and the counters."""
    with Switch(runtime_dir=runtime_dir, control=True):
        assert main(["ls", "--switch", "--runtime-dir", str(runtime_dir)]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^  sandbox +on$", shown, re.MULTILINE)
    assert re.search(r"^  threads_left +0$", shown, re.MULTILINE)
