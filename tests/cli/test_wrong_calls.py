"""N12, N13, N16, N19, F9: about 500 wrong calls; each prints one line with the true reason, and has its exit code.

The calls come from tables of commands and of wrong words. If a command is missing in a table, its reason
is wrong.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.commands import commands

from vsock.cli.main import main
from vsock.guest import Guest
from vsock.switch import Switch

Call = tuple[tuple[str, ...], int, str]
"""Arguments, exit code, and words that the line must contain."""

BYTE = "\udcff"
"""Python's text for an argument that is the byte 0xff."""

LONG = "9" * 5000
GUESTS = "(guests: alpha, beta, gamma)"

COMPLETE = {
    ("switch",): (),
    ("guest", "add"): ("x", "9"),
    ("guest", "set"): ("alpha", "--cid", "9"),
    ("guest", "remove"): ("x",),
    ("guest", "ls"): (),
    ("guest", "run"): (),
    ("guest", "agent"): ("--cpio", "-o", "/nonexistent/agent.cpio"),
    ("guest", "host-key"): ("alpha",),
    ("guest", "setup"): ("alpha",),
    ("exec",): ("alpha", "--", "true"),
    ("shell",): ("alpha",),
    ("jobs",): ("alpha",),
    ("attach",): ("alpha", "x"),
    ("wait-job",): ("alpha", "x"),
    ("session", "open"): ("alpha",),
    ("session", "ls"): (),
    ("session", "close"): ("alpha",),
    ("cp",): ("/nonexistent/file", "alpha:/tmp"),
    ("mount",): ("alpha:/tmp", "/nonexistent/folder"),
    ("umount",): ("/nonexistent/folder",),
    ("share",): ("/nonexistent/folder", "alpha:/srv/x"),
    ("unshare",): ("alpha:/srv/x",),
    ("forward",): ("tcp:192.0.2.1:1", "alpha:2"),
    ("proxy",): ("--allow", "a.test:x"),
    ("ssh-config",): (),
    ("status",): ("alpha",),
    ("clock",): ("alpha",),
    ("journal",): ("alpha",),
    ("ssh-known-hosts",): ("alpha",),
    ("ls",): (),
    ("explain",): ("alpha", "beta"),
    ("cat",): ("alpha:5",),
    ("run",): (),
    ("ssh-proxy",): ("alpha",),
    ("wait",): ("alpha",),
    ("ping",): ("alpha",),
    ("perf",): ("alpha",),
    ("qemu-args",): ("alpha",),
    ("uml-args",): ("alpha",),
    ("demo",): (),
}
"""Each command with its required arguments."""

ANY_WORDS = {("run",), ("guest", "run"), ("exec",), ("journal",), ("status",), ("session", "close")}
"""These accept any words as COMMAND."""

NUMBERS = (
    ("wait", "alpha", "--timeout"),
    ("wait", "alpha", "--port"),
    ("ping", "alpha", "-c"),
    ("ping", "alpha", "-i"),
    ("ping", "alpha", "--timeout"),
    ("perf", "alpha", "-t"),
    ("perf", "alpha", "-p"),
    ("perf", "alpha", "-P"),
    ("perf", "alpha", "-l"),
    ("perf", "alpha", "--message"),
    ("cat", "alpha:5", "--timeout"),
    ("ssh-proxy", "alpha", "--timeout"),
    ("qemu-args", "alpha", "--memory"),
    ("uml-args", "alpha", "--memory"),
    ("guest", "set", "alpha", "--cid"),
    ("proxy", "--allow", "a", "--connections"),
    ("proxy", "--allow", "a", "--rate"),
    ("proxy", "--allow", "a", "--timeout"),
)
"""Options with a number."""

NO_NUMBERS = ("", "x", "nan", "inf", "-inf", "1e300", "-1", LONG, f"1{BYTE}")

ADDRESSES = (
    *("", ":", "3:", ":3", "3:x", "3:-1", "a b:3", "a/b:3", "tcp://a:1", "vsock://", "unix:"),
    *("3:4294967296", "4294967296:3", f"3:{LONG}", f"{LONG}:3", f"{BYTE}:3", f"3:{BYTE}", "é:1"),
    *("hvsock://x:3", "hvsock:///x", "kernel:alpha:3", "kernel:3", "x" * 64 + ":3", "a\nb:3"),
)
"""Texts that are no addresses."""

ONLY_TO_LISTEN = {
    "any:5000": "`any` is only for listening",
    "4294967295:5000": "`any` is only for listening",
    "3:any": "`any` is only for listening",
    "hypervisor:5000": "the hypervisor",
    "0:5000": "the hypervisor",
}

NO_GUESTS = (
    *("", "a/b", "..", ".", "%2e", "a b", "alpha\n", "?x", "#", "nobody", "Alpha", "x" * 64),
    *("x" * 3000, BYTE, "é", "9", "4294967296", "0x3", "3.0", LONG[:30]),
)
"""Texts that are no names of guests of the switch."""

OF_A_GUEST = (
    ("guest", "remove"),
    ("guest", "set", "--cid", "7"),
    ("qemu-args",),
    ("uml-args",),
)


def usage() -> Iterator[Call]:
    """Unknown options, missing or extra words, groups without a command."""
    for command, needs in COMPLETE.items():
        if command not in ANY_WORDS:
            yield (*command, *needs, "--nonsense"), 2, f"see `vsock {' '.join(command)} --help`"
        if needs:
            yield (*command, *needs[:-1]), 2, "vsock: "
        if command not in ANY_WORDS | {("ssh-proxy",), ("ssh-known-hosts",)}:
            yield (*command, *needs, "more"), 2, "more"
    for words in (("run",), ("guest", "run"), ("guest", "run", "alpha"), ("exec", "--", "true")):
        yield words, 2, "vsock: "
    yield ("exec", "alpha", "--nonsense", "--", "true"), 2, "see `vsock exec --help`"
    yield ("exec", "alpha", "-e", "NOT_SET_HERE", "--", "true"), 2, "NAME=VALUE"
    yield ("exec", "alpha", "-e", "1=2", "--", "true"), 2, "'1'"
    yield ("exec", "-t", "alpha", "--", "true"), 2, "terminal"
    yield ("jobs", "alpha", "--kill", "x", "--remove", "y"), 2, "exclude each other"
    yield ("jobs", "alpha", "--kill", "a/b"), 2, "'a/b' is no name of a job"
    yield ("attach", "alpha", ".."), 2, "'..' is no name of a job"
    yield ("wait-job", "alpha", "x", "--timeout", "nan"), 2, "not a number"
    yield ("exec", "alpha", "--name", "x", "--", "true"), 2, "--name is for --detach"
    yield ("exec", "alpha", "--detach", "--name", "", "--", "true"), 2, "'' is no name of a job"
    yield ("exec", "alpha", "--detach", "--json", "--", "true"), 2, "--detach is for one guest"
    for words in (("beta",), ("--json",), ("--timeout", "1"), ("--max-output", "0")):
        call = ("exec", "alpha", "--reconnect", *words, "--", "true")
        yield call, 2, "--reconnect is for one guest"
    yield ("exec", "alpha", "--reconnect", "--detach", "--", "true"), 2, "exclude each other"
    yield ("exec", "alpha", "--reconnect", "-A", "--", "true"), 2, "-A is not for --reconnect"
    yield ("exec", "alpha", "--reconnect", "--name", ".", "--", "true"), 2, "no name of a job"
    yield ("attach", "alpha", "..", "--reconnect"), 2, "'..' is no name of a job"
    yield ("session", "close", "alpha", "--all"), 2, "name guests, or give --all"
    yield ("session", "close", "alpha"), 1, "no session with alpha"
    yield ("session", "open", "alpha", "--idle", "nan"), 2, "not a number"
    yield ("cp", "/a", "/b"), 2, "no guest: write NAME:PATH"
    yield ("cp", "-", "-"), 2, "no guest: write NAME:PATH"
    yield ("cp", "-", "-", "alpha:x"), 2, "`-` is for one source"
    yield ("cp", "alpha:/a", "-", "-"), 2, "`-` is for one source"
    yield ("cp", "alpha:/a", "/b", "/c"), 2, "a local SOURCE needs a guest"
    yield ("cp", ":/a", "alpha:/b"), 2, "no guest before the colon"
    yield ("cp", "", "alpha:/b"), 2, "is no path"
    yield ("mount", "/a", "/b"), 2, "names no guest: write NAME:PATH"
    yield ("mount", "-", "/b"), 2, "names no guest: write NAME:PATH"
    yield ("mount", ":/a", "/b"), 2, "no guest before the colon"
    yield ("mount", "alpha:", "/b", "--json"), 2, "--json is for the listing"
    yield ("mount", "alpha:", "/nonexistent/x"), 1, "/nonexistent/x: No such file"
    yield ("mount", "alpha:", "/proc/version"), 1, "/proc/version: Not a directory"
    yield ("mount", "alpha:", "/proc"), 1, "a file system (proc) is mounted there already"
    yield ("umount", "/nonexistent/x"), 1, "nothing is mounted there"
    yield ("share", "/etc", "/b"), 2, "write NAME:PATH, a folder of a guest"
    yield ("share", "/etc", "alpha:"), 2, "write NAME:PATH, a folder of a guest"
    yield ("share", "/etc", ":/b"), 2, "no guest before the colon"
    yield ("share", "--writable"), 2, "name DIR and NAME:PATH"
    yield ("share", "/etc", "alpha:/b", "--json"), 2, "--json is for the listing"
    yield ("share", "", "alpha:/b"), 2, "DIR is empty"
    yield ("share", "/nonexistent/x", "alpha:/b"), 1, "/nonexistent/x: No such file"
    yield ("share", "/proc/version", "alpha:/b"), 1, "/proc/version: Not a directory"
    yield ("unshare", "/b"), 2, "write NAME:PATH, a folder of a guest"
    yield ("unshare", "alpha:/b"), 1, "nothing is shared there"
    yield ("umount", "/proc"), 1, "no folder of a guest is mounted there"
    yield ("umount", "/x", "--lazy", "--force"), 2, "--lazy and --force exclude each other"
    yield ("guest", "host-key", "alpha", "ssh-ed25519 AAAA"), 2, "ssh-ed25519"
    yield ("forward", "-L", "80", "alpha"), 2, "-L '80': write [BIND:]PORT:HOST:PORT"
    yield ("forward", "-R", "1080", "alpha"), 2, "-R '1080': write"
    yield ("forward", "-D", "x", "alpha"), 2, "-D 'x': write [BIND:]PORT"
    yield ("forward", "-D", "0", "alpha", "beta"), 2, "are for one guest: alpha beta"
    yield ("forward", "-D", "0", "--timeout", "10", "alpha"), 2, "--timeout is for FROM TO"
    yield ("forward", "--reconnect", "8080", "alpha:80"), 2, "--reconnect is for -L, -R and -D"
    yield ("proxy",), 2, "--allow"
    yield ("proxy", "--allow", "http://a.test"), 2, "a rule has no scheme"
    yield ("proxy", "--allow", "a.test", "--listen", "tcp:x"), 2, "is no TCP port"
    yield ("proxy", "--allow", "a.test", "--header-file", "a.test"), 2, "write HOST=FILE"
    yield ("proxy", "--allow", "a.test", "--transport", "kernel", "--guest", "a"), 2, "--guest"
    yield ("guest", "setup", "alpha", "--user", "a b"), 2, "'a b'"
    yield ("guest", "add", "x", "9", "--group"), 2, "see `vsock guest add --help`"
    yield ("ping", "alpha", "-c"), 2, "see `vsock ping --help`"
    yield ("ls", "--runtime-dir"), 2, "see `vsock ls --help`"
    yield ("gest", "ls"), 2, "did you mean guest?"
    yield ("guest", "lss"), 2, "did you mean ls?"
    yield ("--verson",), 2, "--version"
    yield ("help", "gest"), 2, "did you mean guest?"
    yield ("help", "ls", "x"), 2, "has no commands"
    yield (BYTE,), 2, "no command"
    yield ("",), 2, "no command"


def numbers() -> Iterator[Call]:
    """Invalid numbers, and too long times."""
    for option in NUMBERS:
        for text in NO_NUMBERS:
            if not (option[-1] == "-i" and text == "0"):
                yield (*option, text), 2, option[-1]
    for text in (*NO_NUMBERS[:3], "2", "4294967295", LONG, BYTE):
        yield ("guest", "add", "x", text), 2, "CID"


def addresses() -> Iterator[Call]:
    """Addresses that cannot be read, or cannot be connected to."""
    for text in ADDRESSES:
        yield ("cat", text), 2, "vsock: "
        yield ("cat", "-l", text), 2, "vsock: "
        if ":" in text:
            yield ("ping", "-c", "1", "--", text), 2, "vsock: "
            yield ("perf", "-t", "0.1", "--", text), 2, "vsock: "
    for text, reason in ONLY_TO_LISTEN.items():
        for command in (("cat",), ("ping", "-c", "1"), ("perf", "-t", "0.1")):
            yield (*command, text), 2, reason
    for port in ("", "x", "-1", BYTE, "4294967296", LONG):
        yield ("ssh-proxy", "alpha", "--", port), 2, "port"
        yield ("ssh-proxy", "vsock-mux/x", "--", port), 2, "port"
        if port not in ("", "x", "-1"):
            yield ("cat", "-l", port), 2, "vsock: "
    for host in ("vsock/", "unix/", "vsock-mux/", "", "a b", BYTE):
        yield ("ssh-proxy", host), 2, "vsock: "


def guests() -> Iterator[Call]:
    """Guests that do not exist: every message lists the existing ones in the same words."""
    for name in NO_GUESTS:
        for command in OF_A_GUEST:
            yield (*command, "--", name), 1, f"no guest {name!r} {GUESTS}"
        yield ("explain", "--", name, "alpha"), 2, f"no guest {name!r} {GUESTS}"
        yield ("explain", "--", "alpha", name), 2, f"no guest {name!r} {GUESTS}"
        yield ("guest", "run", name, "true"), 1, f"no guest {name!r} {GUESTS}"
    for which, status in (("cat", 1), ("ping", 2), ("perf", 1)):
        yield (which, "nobody:5"), status, f"no guest 'nobody' {GUESTS}"
        yield (which, "9:5"), status, f"no guest 9 {GUESTS}"
    yield ("forward", "-D", "0", "nobody"), 1, "guest 'nobody': no such guest"
    yield ("proxy", "--allow", "a", "--guest", "nobody"), 1, f"no guest 'nobody' {GUESTS}"
    yield ("ssh-proxy", "nobody"), 1, f"no guest 'nobody' {GUESTS}"
    yield ("guest", "run", "alpha", "true"), 1, "guest alpha runs already"


def additions(long_path: str) -> Iterator[Call]:
    """Guests that cannot be added."""
    for name in ("", "a b", "a/b", "9x", "x" * 64, BYTE, "é"):
        yield ("guest", "add", "--", name, "9"), 2, "is no guest name"
        yield ("guest", "add", "x", "9", "--group", name), 2, "is no group name"
    for name in ("host", "any", "local", "hypervisor"):
        yield ("guest", "add", name, "9"), 2, f"{name!r} is CID"
    yield ("guest", "add", "alpha", "9"), 1, "guest alpha exists already, with CID 3"
    yield ("guest", "add", "x", "3"), 1, "CID 3 belongs to guest alpha"
    yield ("guest", "set", "alpha", "--cid", "4"), 1, "CID 4 belongs to guest beta"
    yield (
        ("guest", "add", "x", "9", "--socket", "/nonexistent/x.sock"),
        1,
        "/nonexistent/x.sock: No",
    )
    yield ("guest", "add", "x", "9", "--socket", long_path), 2, long_path
    yield ("guest", "add", "x", "9", "--socket", "/proc/version"), 1, "/proc/version"


def others(file: str) -> Iterator[Call]:
    """Missing files, programs, sockets and switches."""
    yield ("cat", "alpha:5"), 1, "nobody accepts connections there"
    yield ("cat", "beta:5", "--timeout", "0.1"), 1, "is it running?"
    yield ("ping", "alpha:5", "--echo", "-c", "1"), 2, "nobody accepts connections there"
    yield ("ping", "alpha", "--echo"), 2, "--echo needs NAME:PORT"
    yield ("perf", "alpha", "-t", "0.1"), 1, "start `vsock perf --server` at the other end"
    yield ("perf", "alpha", "--seqpacket", "-t", "0.1"), 1, "`vsock perf --server --seqpacket`"
    yield ("perf", "alpha", "--server"), 2, "either --server or"
    yield ("cat", "unix:/nonexistent/x"), 1, "/nonexistent/x: No such file"
    yield ("cat", "-l", "unix:/nonexistent/x"), 1, "/nonexistent/x: No such file"
    yield ("cat", "-l", "unix:/" + "x" * 200), 2, "too long"
    yield ("cat", "unix:/" + "x" * 200), 2, "too long"
    yield ("cat", "hvsock:///nonexistent/x:5"), 1, "/nonexistent/x: No such file"
    yield ("cat", "-l", "hvsock:///nonexistent/x:5"), 1, "No such file"
    yield ("cat", "-l", "9:5"), 1, "the CID is not this machine's"
    yield ("cat", "-l", "alpha:5"), 1, "the CID is not this machine's"
    yield ("cat", "-k", "alpha:5"), 2, "-k is for -l with --exec"
    yield ("cat", "-l", "-k", "5"), 2, "-k is for -l with --exec"
    for command in (" ", "", 'echo "x', "echo 'x", "x\\"):
        yield ("cat", "-l", "5000", "--exec", command), 2, "--exec"
    for command in ("no-such-program", "/", file):
        yield ("cat", "-l", "5000", "--exec", command), 1, f"cannot run {command!r}"
    yield ("cat", "alpha:5", "--transport", "kern"), 2, "--transport"
    yield (
        ("cat", "alpha:5", "--transport", "kernel", "--runtime-dir", "/x"),
        2,
        "without --transport kernel",
    )
    yield ("switch", "--config", "/nonexistent"), 1, "/nonexistent: No such file"
    yield ("switch", "--config", "/"), 2, "--config"
    yield ("switch", "--log-level", "loud"), 2, "--log-level"
    for text in ("", "x", "x=", "x=y", "=3", "x=1", "x=3,a b", "any=3", f"x={LONG}", f"{BYTE}=3"):
        yield ("switch", "--guest", text), 2, "--guest"
    yield ("switch", "--guest", "a=3", "--guest", "b=3"), 2, "CID 3 belongs to guest a"
    yield ("switch", "--guest", "a=3", "--guest", "a=4"), 2, "guest a exists already"


def calls() -> list[Call]:
    """All calls; the test replaces words in angle brackets."""
    made = [*usage(), *numbers(), *addresses(), *guests()]
    return [*made, *additions("/tmp/<long>"), *others("<file>")]


def test_every_command_is_called() -> None:
    """The tables also call new commands wrongly; `help` is in the table of groups."""
    assert {words for words in commands() if words not in {("guest",), ("session",)}} == {
        *COMPLETE,
        ("help",),
    }


def test_there_are_as_many_calls_as_promised() -> None:
    """No call occurs twice, and no table is empty by mistake."""
    every = calls()
    assert len({call[0] for call in every}) == len(every) > 300


def test_wrong_call_is_one_true_line(
    switch: Switch, guest: Guest, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Standard output stays empty, and the switch goes on."""
    file = tmp_path / "plain"
    file.touch()
    failed = []
    for words, status, reason in [
        *(call for call in calls() if "<" not in "".join(call[0])),
        *(call for call in additions(f"/tmp/{'x' * 120}") if "xxx" in call[2]),
        *(call for call in others(str(file)) if str(file) in call[2]),
    ]:
        try:
            got = main(words)
        except BaseException as error:
            got = repr(error)  # type: ignore[assignment] # shown below
        out, err = capfd.readouterr()
        is_line = err.count("\n") == 1 and err.startswith("vsock: ") and err.endswith("\n")
        if (got, out) != (status, "") or not is_line or reason not in err:
            failed.append(f"{[word[:60] for word in words]}\n  {got} {out[:200]!r} {err[:400]!r}")
    assert not failed, f"{len(failed)} calls:\n" + "\n".join(failed)
    assert [one.name for one in switch.guests()] == ["alpha", "beta", "gamma"]
    assert guest.cid == 3


@pytest.mark.parametrize(
    ("directory", "status", "reason"),
    [
        ("/nonexistent", 1, "no switch answers in /nonexistent"),
        ("/" + "x" * 200, 2, "at most 107 bytes"),
        (f"/tmp/{BYTE}", 1, "no switch answers in /tmp/"),
        ("/tmp/a\nb", 1, "no switch answers in /tmp/a"),
    ],
)
@pytest.mark.parametrize(
    "words",
    [
        ("ls",),
        ("guest", "ls"),
        ("guest", "remove", ""),
        ("guest", "run", "alpha", "true"),
        ("explain", "alpha", ""),
        ("cat", "host:5"),
        ("cat", "-l", "5"),
        ("ping", "alpha"),
        ("perf", "alpha"),
        ("ssh-proxy", "alpha"),
        ("proxy", "--allow", "a"),
        ("qemu-args", "alpha"),
    ],
)
def test_wrong_runtime_directory_is_one_true_line(
    words: tuple[str, ...],
    directory: str,
    status: int,
    reason: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Given by the variable and by the option, for every command that uses a switch."""
    expected = 2 if words[0] in ("explain", "ping") else status
    monkeypatch.setenv("VSOCK_RUNTIME_DIR", directory)
    assert main(words) == expected
    by_variable = capfd.readouterr()
    monkeypatch.delenv("VSOCK_RUNTIME_DIR")
    # Words after COMMAND are its arguments.
    at = 2 if words[0] == "guest" else 1
    assert main((*words[:at], "--runtime-dir", directory, *words[at:])) == expected
    by_option = capfd.readouterr()
    for said in (by_variable, by_option):
        assert reason in said.err
        assert (said.out, said.err.count("\n")) == ("", 1 + directory.count("\n"))
        assert len(said.err) < 700
    assert by_variable.err == by_option.err


def test_wrong_transport_variable_is_as_the_wrong_option(
    runtime_dir: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """N16: both are wrong usage."""
    monkeypatch.setenv("VSOCK_TRANSPORT", "kernl")
    for command in ("cat", "ping", "perf"):
        assert main([command, "alpha:5"]) == 2
        assert (
            capfd.readouterr().err == "vsock: unknown transport 'kernl' (known: switch, kernel)\n"
        )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "command", ["cat alpha:5", "cat -l 5 --exec true", "ls", "ping alpha -c 1"]
)
def test_closed_standard_streams_are_no_traceback(
    switch: Switch, guest: Guest, closed: str, command: str
) -> None:
    """As a daemon may start a command. No socket gets the number of a closed stream."""
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m vsock {command} {closed}"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | ({"VSOCK_RUNTIME_DIR": "/nonexistent"} if "-l" in command else {}),
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1)
    assert done.stderr.count("\n") == (1 if done.returncode and "2>" not in closed else 0)


@pytest.mark.parametrize("arguments", ["--version", "ls", "cat host:5", "guest ls", "switch"])
def test_interrupt_while_modules_are_imported_is_no_traceback(
    arguments: str, tmp_path: Path
) -> None:
    """N13: Ctrl-C during the imports; the test makes sure that it comes in the middle of them."""
    (tmp_path / "click.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nwhile True: pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "vsock", *arguments.split()],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
