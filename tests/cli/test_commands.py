"""Commands and a running switch: their output and their effect."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vsock.cli.main import main
from vsock.control.model import HIGHEST_RATE
from vsock.guest import Guest
from vsock.switch import Switch


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command, which must succeed, and return its output."""
    assert main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_guests_are_added_listed_and_removed(
    switch: Switch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One guest's life, from the command line."""
    said = output(capsys, "guest", "add", "delta", "6", "--group", "lab", "--hybrid")
    assert str(switch.socket_path("delta")) in said
    listed = json.loads(output(capsys, "guest", "ls", "--json"))
    assert [(guest["name"], guest["cid"]) for guest in listed] == [
        ("alpha", 3),
        ("beta", 4),
        ("gamma", 5),
        ("delta", 6),
    ]
    assert listed[3]["hybrid"] == str(switch.hybrid_path("delta"))
    assert output(capsys, "guest", "remove", "6") == "guest delta removed\n"
    assert "delta" not in output(capsys, "guest", "ls")


def test_every_change_of_a_guest_can_be_read_by_programs(
    switch: Switch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json each prints the guest; `remove` prints it as it was before."""
    changes = (("add", "delta", "6"), ("set", "delta", "--cid", "7"), ("remove", "delta"))
    said = [json.loads(output(capsys, "guest", *change, "--json")) for change in changes]
    assert [(guest["name"], guest["cid"]) for guest in said] == [
        ("delta", 6),
        ("delta", 7),
        ("delta", 7),
    ]
    assert main(["guest", "remove", "delta", "--json"]) == 1
    assert capsys.readouterr().out == ""


def test_guest_is_given_another_cid_while_it_runs(
    switch: Switch, guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its listeners go on under the new one."""
    import vsock

    with guest.create_server(5000) as listener:
        assert output(capsys, "guest", "set", "alpha", "--cid", "33") == "guest alpha has CID 33\n"
        with vsock.create_connection((33, 5000)) as ours, vsock.create_connection("alpha:5000"):
            accepted, _ = listener.accept()
            assert ours.getpeername() == accepted.getsockname() == (33, 5000)
            accepted.close()
    assert guest.cid == 33
    listed = json.loads(output(capsys, "guest", "ls", "--json"))
    assert {one["name"]: one["cid"] for one in listed} == {"alpha": 33, "beta": 4, "gamma": 5}
    assert main(["guest", "set", "alpha", "--cid", "4"]) == 1
    assert capsys.readouterr().err == "vsock: CID 4 belongs to guest beta\n"
    assert main(["guest", "set", "nobody", "--cid", "40"]) == 1


def test_groups_of_a_running_guest_are_replaced_and_taken_away(
    switch: Switch, guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    """N6: the new groups replace the old ones; a command without a change is an error."""
    said = output(capsys, "guest", "set", "alpha", "--group", "web", "--group", "db")
    assert said == "guest alpha has CID 3, groups web, db\n"
    said = output(capsys, "guest", "set", "alpha", "--cid", "33", "--no-groups")
    assert said == "guest alpha has CID 33, groups none\n"
    path = switch.runtime_dir / "guests" / "alpha.vsock"
    said = output(capsys, "guest", "set", "alpha", "--hybrid")
    assert (said, path.is_socket()) == (f"guest alpha has CID 33, hybrid socket {path}\n", True)
    said = output(capsys, "guest", "set", "alpha", "--no-hybrid")
    assert (said, path.exists()) == ("guest alpha has CID 33, hybrid socket none\n", False)
    assert switch.guest("alpha").state == "running"
    for wrong, reason in (
        ((), "--hybrid, --buffer-limit-mib, --bytes-per-second or --description"),
        (("--group", "web", "--no-groups"), "exclude each other"),
    ):
        assert main(["guest", "set", "alpha", *wrong]) == 2
        assert reason in capsys.readouterr().err


def test_largest_value_of_a_field_is_taken_and_one_above_refused(
    switch: Switch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The schema alone says which numbers are valid, also those of thirteen digits."""
    said = output(capsys, "guest", "set", "alpha", "--bytes-per-second", str(HIGHEST_RATE))
    assert said == f"guest alpha has CID 3, bytes_per_second {HIGHEST_RATE}\n"
    for wrong in (str(HIGHEST_RATE + 1), "9" * 21):
        assert main(["guest", "set", "alpha", "--bytes-per-second", wrong]) == 2
        assert wrong in capsys.readouterr().err


def test_description_of_a_guest_is_set_shown_and_taken_away(
    switch: Switch, guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stands in the last column, whole where nothing cuts it; the guest's device does not notice."""
    text = "builds, on weekdays"
    output(capsys, "guest", "add", "delta", "6", "--description", text)
    assert output(capsys, "guest", "ls").splitlines()[-1].endswith(f"  {text}")
    said = output(capsys, "guest", "set", "alpha", "--description", "für Ada")
    assert said == "guest alpha has CID 3, description für Ada\n"
    listed = json.loads(output(capsys, "guest", "ls", "--json"))
    assert [one["description"] for one in listed] == ["für Ada", "", "", text]
    assert switch.guest("alpha").state == "running"
    said = output(capsys, "guest", "set", "alpha", "--description", "")
    assert said == "guest alpha has CID 3, description none\n"
    for words in (["guest", "set", "alpha"], ["guest", "add", "epsilon", "7"]):
        assert main([*words, "--description", "two\nlines"]) == 2
        said = capsys.readouterr().err
        assert said.startswith(
            "vsock: description: 'two\\nlines' cannot be printed in one line; see"
        )


def test_refused_change_is_one_line(switch: Switch, capsys: pytest.CaptureFixture[str]) -> None:
    """The message has the switch's reason."""
    assert main(["guest", "add", "other", "3"]) == 1
    assert capsys.readouterr().err == "vsock: CID 3 belongs to guest alpha\n"


@pytest.mark.parametrize("cid", ["3", "9"])
def test_guest_that_exists_already_is_said_once(
    switch: Switch, cid: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error names the guest only once, although its socket and perhaps its CID are taken too."""
    assert main(["guest", "add", "alpha", cid]) == 1
    assert capsys.readouterr().err == "vsock: guest alpha exists already, with CID 3\n"


def test_ls_shows_guests_listeners_and_flows(
    switch: Switch, guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    """A connection is shown with the names of its ends and its bytes."""
    import vsock

    with (
        vsock.create_server((vsock.CID_ANY, 5000)) as server,
        guest.create_connection((2, 5000)) as ours,
        server.accept()[0] as theirs,
    ):
        ours.sendall(b"x" * 2048)
        assert theirs.recv(2048, socket.MSG_WAITALL) == b"x" * 2048
        shown = json.loads(output(capsys, "ls", "--json"))
        assert [one["name"] for one in shown["guests"]] == ["alpha", "beta", "gamma"]
        assert shown["listeners"][0]["pid"] == os.getpid()
        program = Path("/proc/self/comm").read_text().strip()
        assert shown["listeners"][0]["program"] == shown["flows"][0]["program"] == program
        assert shown["flows"][0]["bytes_out"] == 2048
        table = output(capsys, "ls")
        assert "host:5000" in table
        assert "2.0 KiB" in table
        # N6: as in `ss -p`; this process is also the guest's VMM, and the switch, which hears that guests are ready.
        assert table.count(f"{os.getpid()}/{program}") == 4
        alpha, beta, _ = shown["guests"]
        assert (alpha["pid"], alpha["program"]) == (os.getpid(), program)
        assert (beta["pid"], beta["program"]) == (None, None)


def test_ls_shows_datagram_sockets_if_there_are_any(
    switch: Switch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With their owner, and what they sent and received."""
    import vsock

    assert json.loads(output(capsys, "ls", "--json"))["datagrams"] == []
    assert "Datagram" not in output(capsys, "ls")
    with vsock.socket(vsock.SOCK_DGRAM) as sock:
        sock.bind((vsock.CID_ANY, 6123))
        sock.sendto(b"to myself", (vsock.CID_LOCAL, 6123))
        (shown,) = json.loads(output(capsys, "ls", "--json"))["datagrams"]
        assert (shown["port"], shown["sent"], shown["received"]) == (6123, 1, 1)
        assert (shown["pid"], shown["uid"]) == (os.getpid(), os.getuid())
        table = output(capsys, "ls")
        assert "Datagram sockets" in table
        assert "6123" in table


def test_explain_tells_the_rule(switch: Switch, capsys: pytest.CaptureFixture[str]) -> None:
    """By name and by CID; the exit code is the result, and 2 means that there is none (N16)."""
    assert output(capsys, "explain", "alpha", "beta").startswith("allowed: alpha and beta share")
    assert json.loads(output(capsys, "explain", "host", "5", "--json"))["rule"] == "host"
    assert main(["explain", "3", "gamma"]) == 1
    assert capsys.readouterr().out.startswith("refused: alpha and gamma share no group")
    assert main(["explain", "alpha", "nobody"]) == 2
    assert "no guest 'nobody'" in capsys.readouterr().err


def test_qemu_args_name_the_socket_and_shared_memory(
    switch: Switch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output can be pasted into a shell."""
    words = shlex.split(output(capsys, "qemu-args", "alpha", "--memory", "128"))
    assert any(str(switch.socket_path("alpha")) in word for word in words)
    assert any("share=on" in word for word in words)
    assert json.loads(output(capsys, "qemu-args", "alpha", "--memory", "128", "--json")) == words
    words = shlex.split(output(capsys, "qemu-args", "alpha", "--event-queue"))
    assert words[-1].startswith("vhost-user-test-device-pci,virtio-id=19,")


def test_uml_args_name_the_socket(switch: Switch, capsys: pytest.CaptureFixture[str]) -> None:
    """User-Mode Linux reads the device from its kernel command line."""
    assert f"virtio_uml.device={switch.socket_path('alpha')}:19" in output(
        capsys, "uml-args", "alpha"
    )


def test_args_of_an_unknown_guest_are_one_line(
    switch: Switch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message lists the existing guests."""
    assert main(["qemu-args", "nobody"]) == 1
    assert "guests: alpha, beta, gamma" in capsys.readouterr().err


def test_ping_takes_a_refusal_for_an_answer(
    switch: Switch, guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    """A guest without a listener answers with RST, which counts."""
    said = json.loads(output(capsys, "ping", "alpha", "--count", "3", "--interval", "0", "--json"))
    assert [reply["answer"] for reply in said["replies"]] == ["refused"] * 3
    assert 0 < said["rtt_ms"]["min"] <= said["rtt_ms"]["median"] <= said["rtt_ms"]["max"]


def test_ping_measures_connecting_and_echo(
    switch: Switch, guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --echo it connects to a listening port; with --echo it sends data to an echo service."""
    with guest.create_server(7) as server:
        text = output(capsys, "ping", "alpha:7", "-c", "1")
        assert "alpha:7: 1: connected, " in text
        assert "1 sent, 1 answered, rtt min/median/max" in text
        server.accept()[0].close()

        def echo() -> None:
            connection, _ = server.accept()
            with connection:
                while data := connection.recv(1024):
                    connection.sendall(data)

        thread = threading.Thread(target=echo)
        thread.start()
        text = output(capsys, "ping", "alpha:7", "--echo", "-c", "2", "-i", "0")
        assert "2: echo, " in text
        thread.join()


@pytest.mark.parametrize("as_json", [False, True])
def test_interrupted_ping_tells_what_it_has(switch: Switch, guest: Guest, as_json: bool) -> None:
    """N20: it prints its summary, as ping(8) does; the interrupted attempt does not count."""
    command = [sys.executable, "-m", "vsock", "ping", "alpha", "-c", "1000", "-i", "0.01"]
    with subprocess.Popen(
        command + ["--json"] * as_json, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        deadline = time.monotonic() + 30
        if as_json:
            before = switch.guest("alpha").packets_out
            while switch.guest("alpha").packets_out < before + 3:
                assert time.monotonic() < deadline
        else:
            for _ in range(3):
                process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    if as_json:
        told = json.loads(out)
        assert 2 <= told["sent"] == told["answered"] < 1000
    else:
        assert re.fullmatch(
            r"alpha:1: (\d+) sent, \1 answered, rtt min/median/max .*", out.splitlines()[-1]
        )


def test_ping_of_a_guest_that_is_not_there_fails(
    switch: Switch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 if the guest's VMM does not run, 2 if there is no such guest (N16)."""
    assert main(["ping", "alpha", "-c", "1", "--timeout", "0.1"]) == 1
    assert main(["ping", "9", "-c", "1"]) == 2
    assert capsys.readouterr().err == "vsock: no guest 9 (guests: alpha, beta, gamma)\n"
