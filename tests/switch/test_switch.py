"""The embedded switch: start and stop, changes of guests while it runs, and its records."""

import errno
import logging
import os
import socket
import stat
import struct
from pathlib import Path

import pytest

import vsock
from vsock.control.model import GuestSpec, SwitchSpec, settings
from vsock.control.schema import fields_of
from vsock.errors import ConnectRefused, NoSuchGuest, TransportError, UsageError
from vsock.guest import Guest
from vsock.sockets import create_connection
from vsock.switch import Switch


def names(switch: Switch) -> list[str]:
    """The guests by CID."""
    return [guest.name for guest in switch.guests()]


def test_started_switch_has_its_guests_waiting(switch: Switch) -> None:
    """Guests exist before their VMMs attach."""
    assert [(guest.name, guest.cid, guest.state) for guest in switch.guests()] == [
        ("alpha", 3, "waiting"),
        ("beta", 4, "waiting"),
        ("gamma", 5, "waiting"),
    ]
    assert switch.socket_path("alpha") == switch.runtime_dir / "guests" / "alpha.sock"
    assert switch.socket_path("alpha").is_socket()


def test_stopped_switch_leaves_no_sockets(runtime_dir: Path) -> None:
    """No stale sockets are left."""
    outside = runtime_dir / "elsewhere.sock"
    with Switch(runtime_dir=runtime_dir / "run", control=True) as switch:
        switch.add_guest("alpha", 3, socket=outside, hybrid=True)
        assert outside.is_socket()
        assert switch.hybrid_path("alpha").is_socket()
    assert not outside.exists()
    assert [path for path in runtime_dir.rglob("*") if path.is_socket()] == []


def test_sockets_are_for_their_user_whatever_the_umask(runtime_dir: Path) -> None:
    """F8: outside the runtime directory only the mode keeps other users from a guest's device."""
    before = os.umask(0)
    try:
        with Switch(runtime_dir=runtime_dir / "run", control=True) as switch:
            outside, hybrid = runtime_dir / "out.sock", runtime_dir / "out.vsock"
            switch.add_guest("alpha", 3, socket=outside, hybrid=hybrid)
            switch.add_guest("beta", 4, hybrid=True)
            sockets = [path for path in runtime_dir.rglob("*") if path.is_socket()]
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in sockets}
    finally:
        os.umask(before)
    own = ("stream", "seqpacket", "dgram", "control.sock", "beta.sock", "beta.vsock")
    assert modes == dict.fromkeys((*own, "out.sock", "out.vsock"), 0o600)


@pytest.mark.parametrize("is_usual_place", [True, False])
def test_hybrid_path_without_room_for_a_port_is_refused(
    runtime_dir: Path, is_usual_place: bool
) -> None:
    """F7: when the guest is added, with path and limit; not when a program listens on a long port."""
    room = 96 - len(f"{runtime_dir}//guests/alpha.vsock")
    for extra, is_refused in ((0, False), (1, True), (11, True)):
        with Switch(runtime_dir=runtime_dir / ("x" * (room + extra))) as switch:
            hybrid = True if is_usual_place else switch.hybrid_path("alpha")
            if is_refused:
                size = 96 + extra
                why = f"hybrid: {switch.hybrid_path('alpha')} has {size} bytes, .* at most 96"
                with pytest.raises(UsageError, match=why):
                    switch.add_guest("alpha", 3, hybrid=hybrid)
                continue
            switch.add_guest("alpha", 3, hybrid=hybrid)
            port = vsock.HybridAddress(str(switch.hybrid_path("alpha")), 0xFFFFFFFE)
            vsock.create_server(port).close()


def test_second_switch_in_the_same_directory_is_refused(switch: Switch) -> None:
    """N8: the first one's sockets stay its own, and the message names the argument to give."""
    named = f"another switch .* process {os.getpid()} .*choose another directory with runtime_dir="
    with (
        pytest.raises(TransportError, match=named),
        Switch(runtime_dir=switch.runtime_dir),
    ):
        pass
    assert switch.socket_path("alpha").is_socket()


def test_switch_that_fails_to_start_leaves_the_directory_free(runtime_dir: Path) -> None:
    """A second start must not find files of the first one."""
    wrong = [GuestSpec(name="alpha", cid=3), GuestSpec(name="host", cid=4)]
    with pytest.raises(UsageError, match="'host' is CID 2"), Switch(wrong, runtime_dir=runtime_dir):
        pass
    with Switch({"alpha": 3}, runtime_dir=runtime_dir) as switch:
        assert names(switch) == ["alpha"]


def test_switch_is_started_once(runtime_dir: Path) -> None:
    """A stopped switch cannot be started again."""
    switch = Switch(runtime_dir=runtime_dir)
    with switch:
        pass
    with pytest.raises(UsageError, match="started before"):
        switch.start()
    with pytest.raises(UsageError, match="does not run"):
        switch.guests()


def test_guest_is_added_and_removed_while_others_run(switch: Switch, guest: Guest) -> None:
    """A change of one guest leaves the attachment of another alone."""
    record = switch.add_guest("delta", 6, groups=["lab"])
    assert (record.name, record.cid, record.groups) == ("delta", 6, ("lab",))
    switch.remove_guest("delta")
    assert not Path(record.socket).exists()
    assert switch.guest(guest.cid).state == "running"
    assert names(switch) == ["alpha", "beta", "gamma"]


@pytest.mark.parametrize(("name", "cid"), [("alpha", 9), ("other", 3)])
def test_name_or_cid_in_use_is_refused(switch: Switch, name: str, cid: int) -> None:
    """The error names the guest that has it, and nothing changes."""
    with pytest.raises(TransportError, match="alpha") as caught:
        switch.add_guest(name, cid)
    assert caught.value.errno == errno.EADDRINUSE
    assert names(switch) == ["alpha", "beta", "gamma"]


def test_socket_path_of_a_living_process_is_refused(switch: Switch) -> None:
    """Another program's socket is not removed, and the error names the program."""
    path = switch.runtime_dir / "busy.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(TransportError, match=f"in use by process {os.getpid()}"):
            switch.add_guest("delta", 6, socket=path)
    assert "delta" not in names(switch)


def test_unknown_guest_is_named_with_those_there_are(switch: Switch) -> None:
    """The error lists the guests."""
    with pytest.raises(NoSuchGuest, match=r"'alhpa' \(guests: alpha, beta, gamma\)"):
        switch.remove_guest("alhpa")


def test_guest_is_found_by_name_cid_and_cid_in_digits(switch: Switch) -> None:
    """All three mean the same guest."""
    assert switch.guest("beta").cid == switch.guest(4).cid == switch.guest("4").cid == 4


def test_guest_knows_its_new_cid_when_the_call_returns(switch: Switch, guest: Guest) -> None:
    """N2: a program that reads the CID directly after the call gets the new one."""
    for cid in range(100, 150):
        assert switch.set_guest_cid("alpha", cid).cid == cid
        assert guest.cid == cid


def test_connection_between_guests_outlives_a_change_of_groups(switch: Switch) -> None:
    """Groups apply to new connections; open ones go on."""
    with (
        Guest(switch.socket_path("alpha")) as alpha,
        Guest(switch.socket_path("beta")) as beta,
        beta.create_server(5000) as listener,
        alpha.create_connection((4, 5000)) as ours,
    ):
        theirs, _ = listener.accept()
        with theirs:
            assert switch.set_guest_groups("alpha", []).groups == ()
            ours.sendall(b"still here")
            assert theirs.recv(100) == b"still here"
            with pytest.raises(ConnectRefused):
                alpha.create_connection((4, 5000))
            switch.set_guest_groups(3, ["lab"])
            alpha.create_connection((4, 5000)).close()
    with pytest.raises(UsageError, match="'a b' is no group name"):
        switch.set_guest_groups("alpha", ["a b"])


def test_hybrid_socket_of_a_running_guest_comes_moves_and_goes(
    switch: Switch, guest: Guest, runtime_dir: Path
) -> None:
    """F3: the guest's attachment stays, and so do connections over the old socket."""
    with guest.create_server(5000) as listener:
        old = Path(switch.change_guest("alpha", hybrid=True).hybrid or "")
        with socket.socket(socket.AF_UNIX) as program:
            program.connect(str(old))
            program.sendall(b"CONNECT 5000\n")
            accepted, _ = listener.accept()
            new = runtime_dir / "other.vsock"
            assert switch.change_guest("alpha", hybrid=new).hybrid == new
            assert (old.exists(), new.is_socket()) == (False, True)
            with accepted:
                program.sendall(b"still here")
                assert accepted.recv(100) == b"still here"
        with pytest.raises(TransportError, match="is used by guest alpha"):
            switch.change_guest("beta", hybrid=new)
        with create_connection(f"hvsock://{new}:5000"):
            listener.accept()[0].close()
        assert switch.change_guest("alpha", hybrid=False).hybrid is None
        assert not new.exists()
        assert switch.guest("alpha").state == "running"


def test_linger_timeout_is_checked_and_can_be_set(runtime_dir: Path) -> None:
    """F2: above 0, at most a day."""
    for wrong in (0, -1, 86401):
        with pytest.raises(UsageError, match="linger_timeout must be above 0"):
            Switch(runtime_dir=runtime_dir, linger_timeout=wrong)
    with Switch(runtime_dir=runtime_dir, linger_timeout=5) as switch:
        switch.set_linger_timeout(86400)
        assert switch.info().counters["linger_timeouts"] == 0


def test_every_setting_of_a_specification_is_one_of_a_switch(runtime_dir: Path) -> None:
    """Before the start and while it runs; directory and sandbox stay, and other names are errors."""
    usual = settings(SwitchSpec())
    assert usual.keys() | {"runtime_dir", "sandbox"} == fields_of(SwitchSpec).keys()
    with pytest.raises(UsageError, match="poll_uss"):
        Switch(runtime_dir=runtime_dir, poll_uss=5)
    with Switch(runtime_dir=runtime_dir, **usual) as switch:
        switch.change_settings(**usual)
        switch.change_settings(poll_us=0, linger_timeout=None)
        wrong: dict[str, object] = {
            "runtime_dir": "/",
            "sandbox": False,
            "poll_uss": 5,
            "poll_us": 1001,
        }
        for name, value in wrong.items():
            with pytest.raises(UsageError, match=name):
                switch.change_settings(**{name: value})


def test_explain_answers_for_host_and_guests(switch: Switch) -> None:
    """The reasons of the policy, for names and CIDs."""
    assert switch.explain("host", "gamma").is_allowed
    assert switch.explain(3, "beta").rule == "group"
    assert not switch.explain("alpha", "gamma").is_allowed


async def test_async_switch_serves_host_and_guest(runtime_dir: Path) -> None:
    """The same switch in an asyncio program."""
    async with Switch({"alpha": 3}, runtime_dir=runtime_dir, control=True) as switch:
        assert switch.info().guests == 1
        async with Guest(switch.socket_path("alpha")) as guest:
            assert guest.cid == 3


def test_attachment_is_logged_with_the_guests_name(
    runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Events of the data plane are written to the program's log."""
    with (
        caplog.at_level(logging.INFO, "vsock.switch"),
        Switch({"alpha": 3}, runtime_dir=runtime_dir) as switch,
        Guest(switch.socket_path("alpha")),
    ):
        pass
    assert any("guest=alpha cid=3" in line and "attached" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("socket", "/run/elsewhere.sock"),
        ("memory_slots", True),
        ("memory_limit_gib", 7),
        ("host_aliases", (99,)),
    ],
)
def test_specification_with_another_fixed_field_changes_nothing(
    switch: Switch, field: str, value: object
) -> None:
    """What a listing shows is in force: such a guest is to be removed and added anew."""
    before = switch.guest("alpha")
    values = {"name": "alpha", "cid": 33, "groups": ("other",), field: value}
    if field == "socket":
        values[field] = Path(str(value))
    with pytest.raises(UsageError, match=f"^{field} of guest alpha cannot change"):
        switch.change(GuestSpec(**values))  # type: ignore[arg-type] # values of several types
    assert switch.guest("alpha") == before
    changed = switch.change(GuestSpec(name="alpha", cid=33, groups=("other",)))
    assert (changed.cid, changed.groups, changed.socket) == (33, ("other",), before.socket)


def test_each_change_of_a_guest_is_logged_once(
    runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the control plane logs it, not the data plane."""
    with (
        caplog.at_level(logging.INFO, "vsock.switch"),
        Switch({"alpha": 3}, runtime_dir=runtime_dir) as switch,
    ):
        switch.set_guest_cid("alpha", 33)
        switch.remove_guest("alpha")
    assert [line.partition(":")[0] for line in caplog.messages] == [
        "sandbox",
        "guest added",
        "guest renumbered",
        "guest removed",
    ]


def test_switch_stopped_by_hand_inside_with_leaves_quietly(
    runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`stop` inside `with` ends the switch; its attendant does not call the node after that."""
    with Switch({"alpha": 3}, runtime_dir=runtime_dir) as switch:
        switch.stop()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_memory_slots_are_offered_to_the_guest_that_asks(runtime_dir: Path) -> None:
    """CONFIGURE_MEM_SLOTS (protocol feature 15) is offered only if the guest has `memory_slots`."""
    guests = [GuestSpec(name="many", cid=3, memory_slots=True), GuestSpec(name="few", cid=4)]
    with Switch(guests, runtime_dir=runtime_dir) as switch:
        offered = [_protocol_features(switch.socket_path(name)) for name in ("many", "few")]
    assert [bool(features & 1 << 15) for features in offered] == [True, False]


def test_memory_of_a_guest_is_limited_as_it_is_said(
    runtime_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """S5, S11: `memory_limit_gib` and `file_memory` reach the device, and the log says what to write."""
    small = GuestSpec(name="small", cid=3, memory_limit_gib=1)
    trusted = GuestSpec(name="trusted", cid=4, file_memory=True)
    with (
        caplog.at_level(logging.INFO, "vsock.switch"),
        Switch([small, trusted], runtime_dir=runtime_dir) as switch,
        Path("/proc/self/maps").open() as file,
        os.fdopen(os.memfd_create("guest"), "w") as memfd,
    ):
        os.truncate(memfd.fileno(), 2 << 30)
        _give_memory(switch.socket_path("small"), memfd.fileno(), 2 << 30)
        _give_memory(switch.socket_path("small"), file.fileno(), 4096)
        _give_memory(switch.socket_path("trusted"), file.fileno(), 4096)
    faults = [line for line in caplog.messages if "guest memory cannot be used" in line]
    said = ["memory_limit_gib", "file_memory = true", "4096 bytes of a file of 0"]
    assert [text in line for text, line in zip(said, faults, strict=True)] == [True] * 3


def _give_memory(path: Path, fd: int, length: int) -> None:
    """Gives a vhost-user device memory with SET_MEM_TABLE (5) that it does not take."""
    body = struct.pack("<II4Q", 1, 0, 0, length, 0, 0)
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.settimeout(10)
        front_end.connect(str(path))
        socket.send_fds(front_end, [struct.pack("<III", 5, 1, len(body)) + body], [fd])
        assert front_end.recv(1) == b""


def _protocol_features(path: Path) -> int:
    """Ask a vhost-user device with GET_PROTOCOL_FEATURES (15), version 1."""
    with socket.socket(socket.AF_UNIX) as front_end:
        front_end.settimeout(10)
        front_end.connect(str(path))
        front_end.sendall(struct.pack("<III", 15, 1, 0))
        answer = front_end.recv(20, socket.MSG_WAITALL)
    request, _flags, size, features = struct.unpack("<IIIQ", answer)
    assert (request, size) == (15, 8)
    return int(features)


def test_polling_can_be_set_and_nothing_waits_for_it(runtime_dir: Path) -> None:
    """A switch works with and without polling; an invalid time is an error at once."""
    with pytest.raises(UsageError, match="0 to 1000"):
        Switch(runtime_dir=runtime_dir, poll_us=1001)
    with (
        Switch({"alpha": 3}, runtime_dir=runtime_dir, poll_us=0) as switch,
        Guest(switch.socket_path("alpha")) as guest,
        guest.create_server(1024) as listener,
    ):
        for microseconds in (0, 1000, 50):
            switch.set_polling(microseconds)
            with create_connection((3, 1024), transport=switch.transport) as client:
                accepted, _ = listener.accept()
                with accepted:
                    accepted.sendall(b"hello")
                    assert client.recv(5) == b"hello"
