"""The control API: server and client against each other, and the errors between them."""

import contextlib
import errno
import gc
import http.client
import json
import os
import socket
import threading
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from vsock.control.client import ControlClient
from vsock.control.model import NOTIFY_PORT, GuestSpec, SwitchRecord
from vsock.control.schema import about, fields_of, from_json
from vsock.errors import NoSuchGuest, NoSwitch, SwitchGone, TransportError
from vsock.guest import Guest
from vsock.runtime import RuntimeFiles
from vsock.switch import Switch
from vsock.switch.api import MOST_BODY
from vsock.switch.server import MOST_CONNECTIONS


@pytest.fixture
def client(switch: Switch) -> ControlClient:
    """A client of `switch`."""
    return ControlClient(switch.runtime_dir, timeout=10)


JSON = "application/json"


def answer_500(connection: socket.socket) -> None:
    """Answers one request as a server that is in trouble, and not as the switch does."""
    with connection:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\nno")


def ask(
    runtime_dir: Path, method: str, path: str, body: bytes = b"", kind: str = JSON
) -> tuple[int, Any]:
    """One request as another HTTP client would send it."""
    connection = http.client.HTTPConnection("switch", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(RuntimeFiles(runtime_dir).control))
    connection.request(method, path, body, {"Content-Type": kind} if kind else {})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, json.loads(content) if content else None


def test_switch_record_tells_process_and_totals(switch: Switch, client: ControlClient) -> None:
    """The record has the process, the directory and totals."""
    record = client.switch()
    assert (record.pid, record.runtime_dir) == (os.getpid(), str(switch.runtime_dir))
    assert (record.cid, record.guests, record.flows) == (2, 3, 0)


def test_control_socket_is_its_owners_alone(switch: Switch) -> None:
    """Only the user who may open the socket may change the switch."""
    assert RuntimeFiles(switch.runtime_dir).control.stat().st_mode & 0o777 == 0o600


def test_guest_added_by_the_api_can_be_joined(switch: Switch, client: ControlClient) -> None:
    """Guests that the API added work as those of the start."""
    record = client.add_guest(GuestSpec(name="delta", cid=6, groups=("lab",), hybrid=True))
    assert record.hybrid == switch.hybrid_path("delta")
    with Guest(record.socket) as guest:
        assert guest.cid == 6
    client.remove_guest("delta")
    with pytest.raises(NoSuchGuest, match="delta"):
        client.guest("delta")


def test_body_that_is_too_long_is_not_read_to_its_end(
    switch: Switch, client: ControlClient
) -> None:
    """S22: with a length or in chunks, a client cannot make the switch keep what it sends."""
    piece = b" " * (1 << 16)
    for way in ({"Content-Length": str(1 << 40)}, {"Transfer-Encoding": "chunked"}):
        connection = http.client.HTTPConnection("switch", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(30)
        connection.sock.connect(str(RuntimeFiles(switch.runtime_dir).control))
        connection.putrequest("POST", "/v1/guests")
        for name, value in {"Content-Type": JSON, **way}.items():
            connection.putheader(name, value)
        connection.endheaders()
        for _ in range(MOST_BODY // len(piece) + 1):
            chunk = b"%x\r\n%b\r\n" % (len(piece), piece)
            connection.send(chunk if "Transfer-Encoding" in way else piece)
        response = connection.getresponse()
        assert (response.status, json.load(response)) == (
            413,
            {"error": f"POST /v1/guests: the body is longer than {MOST_BODY} bytes"},
        )
        connection.close()
    assert client.switch().guests == 3


def test_groups_and_cid_of_a_running_guest_change(
    switch: Switch, client: ControlClient, guest: Guest
) -> None:
    """N6: its attachment stays, and `explain` uses the new groups at once."""
    assert not switch.explain("alpha", "gamma").is_allowed
    record = client.change_guest("alpha", groups=["other"])
    assert (record.groups, record.state) == (("other",), "running")
    assert not switch.explain("alpha", "beta").is_allowed
    record = client.change_guest("alpha", cid=33, groups=[])
    assert (record.cid, record.groups, record.state) == (33, (), "running")
    assert guest.cid == 33


def test_datagram_sockets_are_listed_with_what_became_of_their_datagrams(
    switch: Switch, client: ControlClient
) -> None:
    """Sent, received, and dropped because no socket was bound."""
    import vsock

    assert client.datagrams() == []
    with vsock.socket(vsock.SOCK_DGRAM) as receiver, vsock.socket(vsock.SOCK_DGRAM) as sender:
        receiver.bind((vsock.CID_HOST, 6000))
        sender.bind((vsock.CID_ANY, 7000))
        with pytest.raises(OSError, match="host"):
            sender.sendto(b"to nobody", (vsock.CID_HOST, 6001))
        count = 0
        while not client.datagrams()[0].dropped and count < 10_000:
            sender.sendto(bytes(60_000), receiver.getsockname())
            count += 1
        program = Path("/proc/self/comm").read_text().strip()
        ours = {"pid": os.getpid(), "uid": os.getuid(), "program": program}
        heard, sent = (asdict(one) for one in client.datagrams())
        assert sent == {
            "cid": vsock.CID_ANY,
            "port": 7000,
            "sent": count,
            "received": 0,
            "dropped": 0,
            **ours,
        }
        dropped = {"sent": 0, "received": count - 1, "dropped": 1}
        assert heard == {"cid": 2, "port": 6000, **dropped, **ours}
    deadline = time.monotonic() + 10
    while client.datagrams():
        assert time.monotonic() < deadline


def test_listeners_and_flows_are_listed_with_their_bytes(
    switch: Switch, client: ControlClient, guest: Guest
) -> None:
    """One flow, with both ends and its bytes."""
    import vsock

    with vsock.create_server((vsock.CID_ANY, 5000)) as server:
        assert [(one.port, one.type, one.pid) for one in client.listeners()] == [
            (5000, "stream", os.getpid()),
            (NOTIFY_PORT, "stream", os.getpid()),  # the switch itself
        ]
        with guest.create_connection((2, 5000)) as ours:
            theirs, _ = server.accept()
            with theirs:
                ours.sendall(b"x" * 1000)
                assert theirs.recv(1000, socket.MSG_WAITALL) == b"x" * 1000
                (flow,) = client.flows()
                assert (flow.destination, flow.bytes_out) == ("2:5000", 1000)
                assert flow.source.startswith("3:")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "reason"),
    [
        ("GET", "/v1/guests/nobody", b"", 404, "no guest 'nobody'"),
        ("DELETE", "/v1/guests/nobody", b"", 404, "no guest 'nobody'"),
        ("POST", "/v1/guests", b"{", 422, "JSON"),
        ("POST", "/v1/guests", b"{}", 422, "name: Field required; cid: Field required"),
        ("POST", "/v1/guests", b'{"name": "d", "cid": "6"}', 422, "cid: "),
        ("POST", "/v1/guests", b'{"name": "d", "cid": 2}', 422, "cid: "),
        ("POST", "/v1/guests", b'{"name": "host", "cid": 6}', 422, "'host' is CID 2"),
        ("POST", "/v1/guests", b'{"name": "d", "cid": 6, "socket": "x"}', 422, "socket: "),
        ("POST", "/v1/guests", b'{"name": "alpha", "cid": 6}', 409, "alpha exists already"),
        ("POST", "/v1/guests", b'{"name": "d", "cid": 6, "hybird": true}', 422, "mean hybrid?"),
        ("POST", "/v1/guests", b'{"name": "d", "cid": 6, "groups": "lab"}', 422, "must be a list"),
        ("POST", "/v1/guests", b'{"name": "a b", "cid": 2}', 422, "name: 'a b' is no guest name"),
        ("POST", "/v1/guests", b'{"name": "a b", "cid": 2}', 422, "; cid: 2 is no guest's CID"),
        ("POST", "/v1/guests", b"[]", 422, "body: "),
        ("PATCH", "/v1/guests/alpha", b"5", 422, "body: "),
        ("PATCH", "/v1/guests/alpha", b'{"socket": "/x"}', 422, "unknown key socket"),
        ("PATCH", "/v1/guests/alpha", b'{"cid": null}', 422, "nothing to change"),
        ("PATCH", "/v1/guests/alpha", b"{}", 422, "bytes_per_second or description"),
        ("PATCH", "/v1/guests/alpha", b'{"cid": 2}', 422, "cid: "),
        ("PATCH", "/v1/guests/alpha", b'{"cid": 4}', 409, "belongs to guest beta"),
        ("PATCH", "/v1/guests/alpha", b'{"groups": ["a b"]}', 422, "'a b' is no group name"),
        ("PATCH", "/v1/guests/nobody", b'{"groups": []}', 404, "no guest 'nobody'"),
        ("GET", "/v1/policy?source=alpha", b"", 422, "destination: "),
    ],
)
def test_bad_request_is_refused_with_one_line(
    switch: Switch, method: str, path: str, body: bytes, status: int, reason: str
) -> None:
    """It has a status for programs and a line for people, and the switch does not change."""
    got, answer = ask(switch.runtime_dir, method, path, body)
    assert got == status
    assert reason in answer["error"]
    assert "\n" not in answer["error"]
    assert len(switch.guests()) == 3


def test_policy_is_explained(switch: Switch) -> None:
    """The reason why two guests may not connect."""
    path = "/v1/policy?source=alpha&destination=gamma"
    status, answer = ask(switch.runtime_dir, "GET", path)
    assert (status, answer["is_allowed"], answer["rule"]) == (200, False, "default")


def test_openapi_document_names_every_path(switch: Switch) -> None:
    """The document has all paths of the API."""
    _, document = ask(switch.runtime_dir, "GET", "/openapi.json")
    assert set(document["paths"]) == {
        "/v1/switch",
        "/v1/guests",
        "/v1/guests/{guest}",
        "/v1/listeners",
        "/v1/datagrams",
        "/v1/services",
        "/v1/flows",
        "/v1/policy",
    }


def test_openapi_document_has_the_rules_and_purposes_of_fields(switch: Switch) -> None:
    """They are those of the schema that reads the bodies."""
    _, document = ask(switch.runtime_dir, "GET", "/openapi.json")
    schemas = document["components"]["schemas"]
    fields = schemas["GuestSpec"]["properties"]
    assert list(fields) == [*fields_of(GuestSpec)]
    assert schemas["GuestSpec"]["required"] == ["name", "cid"]
    assert (fields["cid"]["minimum"], fields["cid"]["maximum"]) == (3, 2**32 - 2)
    assert fields["host_aliases"]["maxItems"] == 8
    assert fields["description"]["maxLength"] == 200
    assert fields["groups"]["description"] == about(fields_of(GuestSpec)["groups"]).text
    able = [name for name, field in fields_of(GuestSpec).items() if not about(field).is_fixed]
    assert list(schemas["GuestChange"]["properties"]) == able
    assert schemas["GuestRecord"]["properties"].keys() > fields.keys()


def test_asker_is_logged(
    switch: Switch, client: ControlClient, caplog: pytest.LogCaptureFixture
) -> None:
    """The log has the process that changed the switch."""
    with caplog.at_level("INFO", "vsock.switch.api"):
        client.remove_guest("gamma")
    assert any(f"process {os.getpid()} (" in line for line in caplog.messages)


def test_client_without_a_switch_says_how_to_start_one(runtime_dir: Path) -> None:
    """The most common error says what to do."""
    with pytest.raises(NoSwitch, match="start one with `vsock switch`"):
        ControlClient(runtime_dir).guests()


def test_client_of_a_dead_switch_says_so(runtime_dir: Path) -> None:
    """A stale socket is no switch."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(RuntimeFiles(runtime_dir).control))
    with pytest.raises(NoSwitch):
        ControlClient(runtime_dir).guests()


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n", b"nonsense\r\n\r\n"])
def test_client_of_a_switch_that_dies_answering_says_so(runtime_dir: Path, answer: bytes) -> None:
    """A partial answer is an error."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(RuntimeFiles(runtime_dir).control))
        listener.listen()

        def answer_and_die() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_and_die)
        thread.start()
        with pytest.raises(SwitchGone):
            ControlClient(runtime_dir).guests()
        thread.join()


def test_client_of_a_silent_switch_gives_up(runtime_dir: Path) -> None:
    """The client has a timeout."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(RuntimeFiles(runtime_dir).control))
        listener.listen()
        with pytest.raises(SwitchGone, match=r"within 0\.05 s"):
            ControlClient(runtime_dir, timeout=0.05).guests()


def test_error_without_a_reason_still_has_a_line(runtime_dir: Path) -> None:
    """A proxy or another program may send any answer."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(RuntimeFiles(runtime_dir).control))
        listener.listen()

        def refuse() -> None:
            connection, _ = listener.accept()
            answer_500(connection)

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(TransportError, match="status 500"):
            ControlClient(runtime_dir).guests()
        thread.join()


def test_record_of_a_newer_switch_is_understood() -> None:
    """Unknown fields are ignored."""
    known = dict.fromkeys(SwitchRecord.__slots__, 0)
    assert from_json(SwitchRecord, known | {"colour": "blue"}) == from_json(SwitchRecord, known)


GUEST = b'{"name": "delta", "cid": 6}'


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("application/x-www-form-urlencoded", "the body is application/x-www-form-urlencoded: "),
        ("", "the body is of no type: "),
    ],
)
def test_body_that_is_not_said_to_be_json_is_refused_with_what_to_do(
    switch: Switch, kind: str, said: str
) -> None:
    """N24: `curl -d` announces a form, whatever the content."""
    status, answer = ask(switch.runtime_dir, "POST", "/v1/guests", GUEST, kind)
    assert status == 415
    assert answer == {"error": f"{said}send Content-Type: application/json (curl --json)"}
    kind = "application/json; charset=utf-8"
    assert ask(switch.runtime_dir, "POST", "/v1/guests", GUEST, kind)[0] == 201


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "said"),
    [
        ("GET", "/v1/nothing", b"", 404, "no /v1/nothing here; /openapi.json says what there is"),
        ("PUT", "/v1/guests", b"", 405, "PUT /v1/guests: Method Not Allowed"),
        ("GET", "/v1/guests/nobody", b"", 404, "no guest 'nobody' (guests: alpha, beta, gamma)"),
        ("POST", "/v1/guests", b'{"name": "delta"}', 422, "cid: Field required"),
        ("POST", "/v1/guests", b"", 422, "body: Field required"),
        ("POST", "/v1/guests", b'{"name": "alpha", "cid": 9}', 409, "guest alpha exists already"),
    ],
)
def test_every_refusal_has_the_same_form(
    switch: Switch, method: str, path: str, body: bytes, status: int, said: str
) -> None:
    """N24: one key, `error`, with one line, for every error."""
    got, answer = ask(switch.runtime_dir, method, path, body)
    assert got == status
    assert list(answer) == ["error"]
    assert answer["error"].startswith(said)


def test_description_has_the_form_of_refusals(switch: Switch) -> None:
    """N24: a client that is generated from the document understands the errors."""
    _, description = ask(switch.runtime_dir, "GET", "/openapi.json")
    for path in description["paths"].values():
        for operation in path.values():
            for status in ("404", "409", "415", "422"):
                schema = operation["responses"][status]["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Refusal"}
    assert list(description["components"]["schemas"]["Refusal"]["properties"]) == ["error"]


def _silent(switch: Switch, sent: bytes = b"") -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(20)
    while client.connect_ex(str(RuntimeFiles(switch.runtime_dir).control)) == errno.EAGAIN:
        time.sleep(0.01)  # as many wait at the socket as may
    client.sendall(sent)
    return client


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /v1/sw", b"POST /v1/guests HTTP/1.1\r\nHost: v\r\nContent-Length: 9\r\n\r\n{"],
    ids=["nothing", "half a request", "half a body"],
)
def test_client_that_sends_no_request_makes_room_for_others(
    switch: Switch, client: ControlClient, sent: bytes
) -> None:
    """However many connect and send no whole request, others are answered, and the oldest leave."""
    silent = [_silent(switch, sent) for _ in range(2 * MOST_CONNECTIONS)]
    assert client.switch().pid == os.getpid()
    with contextlib.suppress(ConnectionResetError):
        assert silent[0].recv(1) == b""
    for it in silent:
        it.close()


def test_client_that_sends_no_request_in_time_is_hung_up_on(
    switch: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a request is waited for, but not without end."""
    monkeypatch.setattr("vsock.switch.server.PATIENCE", 0.1)
    with _silent(switch, b"GET /v1/sw") as half, contextlib.suppress(ConnectionResetError):
        assert half.recv(1) == b""


def test_clients_are_hung_up_on_when_the_switch_stops(runtime_dir: Path) -> None:
    """Those that are silent, that have an answer, and that have sent half of a request."""
    control = RuntimeFiles(runtime_dir).control
    clients = [socket.socket(socket.AF_UNIX) for _ in range(3)]
    with contextlib.ExitStack() as opened:
        with Switch(runtime_dir=runtime_dir, control=True):
            for client in clients:
                opened.enter_context(client)
                client.settimeout(10)
                client.connect(str(control))
            clients[1].sendall(b"GET /v1/switch HTTP/1.1\r\nHost: x\r\n\r\n")
            clients[2].sendall(b"POST /v1/guests HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            assert clients[1].recv(12) == b"HTTP/1.1 200"
        for client in clients:
            with contextlib.suppress(ConnectionError):
                while client.recv(4096):
                    pass


def test_switch_that_has_ended_is_forgotten(runtime_dir: Path) -> None:
    """A program may start as many as it likes: none of its handlers of requests holds one."""
    with Switch(runtime_dir=runtime_dir, control=True) as switch:
        assert ControlClient(runtime_dir).switch().pid == os.getpid()
    ended = weakref.ref(switch)
    del switch
    gc.collect()
    assert ended() is None


def test_client_waits_while_many_wait_at_the_socket(runtime_dir: Path) -> None:
    """A full backlog is no error until the client's time is over."""
    with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as stack:
        listener.bind(str(RuntimeFiles(runtime_dir).control))
        listener.listen(0)
        first = stack.enter_context(socket.socket(socket.AF_UNIX))
        first.connect(str(RuntimeFiles(runtime_dir).control))
        with pytest.raises(SwitchGone, match="did not answer within"):
            ControlClient(runtime_dir, timeout=0.05).switch()

        def serve() -> None:
            listener.accept()[0].close()
            answer_500(listener.accept()[0])

        asks = threading.Thread(target=serve)
        asks.start()
        with pytest.raises(TransportError, match="HTTP status 500"):
            ControlClient(runtime_dir, timeout=20).switch()
        asks.join()


def test_descriptors_sent_to_the_control_api_are_refused_where_the_kernel_can(
    switch: Switch,
) -> None:
    """A descriptor whose close hangs would stop the control plane."""
    with _silent(switch) as client, Path(os.devnull).open() as file:
        try:
            can_refuse = client.getsockopt(socket.SOL_SOCKET, 83) == 1  # SO_PASSRIGHTS
        except OSError:
            can_refuse = False
        refused = pytest.raises(PermissionError) if can_refuse else contextlib.nullcontext()
        with refused:
            socket.send_fds(client, [b"GET"], [file.fileno()])
