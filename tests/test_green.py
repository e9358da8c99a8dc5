"""Programs patched by gevent or eventlet: a socket that waits lets other greenlets run (A5).

Each runs in a process of its own, as patching cannot be undone; the switch is in the test's process.
"""

import os
import subprocess
import sys

import pytest

import vsock

PRELUDE = {
    "gevent": """
from gevent import monkey
monkey.patch_all()
from gevent import spawn, joinall
""",
    "eventlet": """
import warnings
warnings.simplefilter('ignore')
import eventlet
eventlet.monkey_patch()
from eventlet import spawn
def joinall(threads):
    for thread in threads:
        thread.wait()
""",
}

COMMON = """
import socket, ssl, threading, time
ticks = 0

def tick():
    'Counts while others wait.'
    global ticks
    while True:
        time.sleep(0.01)
        ticks += 1

def say(*words):
    print(*words, flush=True)

spawn(tick)
"""

ECHO = """
listener = vsock.create_server(5001)
def serve(connection):
    with connection:
        while data := connection.recv(100):
            connection.sendall(data.upper())
def accept():
    while True:
        spawn(serve, listener.accept()[0])
spawn(accept)
"""


@pytest.fixture(params=["gevent", "eventlet"])
def library(request) -> str:
    """The library that patches the program."""
    return str(request.param)


@pytest.fixture(params=["before", "after"])
def play(request, switch, library):
    """Runs a patched program that imports `vsock` before or after patching; returns its output."""

    def play(code: str) -> list[str]:
        parts = ["import vsock\n", PRELUDE[library]]
        if request.param == "after":
            parts.reverse()
        done = subprocess.run(
            [sys.executable, "-c", "".join(parts) + COMMON + code],
            capture_output=True,
            text=True,
            timeout=50,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return play


def test_timeout_of_a_receive_ends_it(play):
    """At the time that was set; other greenlets run meanwhile, and five waits take no longer than one."""
    with vsock.create_server(5000):
        said = play("""
def wait():
    with vsock.create_connection('local:5000', timeout=30) as s:
        s.settimeout(0.5)
        begun = time.monotonic()
        try:
            s.recv(1)
        except TimeoutError:
            say(0.5 <= time.monotonic() - begun < 10)
joinall([spawn(wait) for _ in range(5)])
say(ticks > 5)
""")
    assert said == ["True"] * 6


def test_client_and_server_in_one_program(play):
    """Connecting, accepting and data calls wait without stopping other greenlets."""
    said = play(
        ECHO
        + """
def ask(number):
    with vsock.create_connection('local:5001') as s:
        s.sendall(b'hello %d' % number)
        say(s.recv(100).decode())
joinall([spawn(ask, n) for n in range(10)])
"""
    )
    assert sorted(said) == [f"HELLO {number}" for number in range(10)]


def test_sending_waits_for_a_slow_reader(play):
    """sendall, send and sendmsg of more than fits, and messages."""
    said = play("""
def read(listener, ended):
    with listener.accept()[0] as theirs:
        got = 0
        while piece := theirs.recv(1 << 20):
            got += len(piece)
            time.sleep(0.001)
        ended.append(got)
for kind in (vsock.SOCK_STREAM, vsock.SOCK_SEQPACKET):
    ended = []
    with vsock.create_server(5002, type=kind) as listener:
        reader = spawn(read, listener, ended)
        with vsock.create_connection('local:5002', type=kind) as s:
            sent = 0
            if kind == vsock.SOCK_STREAM:
                s.sendall(bytes(3_000_000))
                sent = 3_000_000
            while sent < 5_000_000:
                sent += s.sendmsg([bytes(50_000)])
        joinall([reader])
    say(ended[0] == sent)
""")
    assert said == ["True", "True"]


def test_non_blocking_and_timed_calls_say_so(play):
    """Timeouts and modes that the program set take effect and are returned."""
    said = play(
        ECHO
        + """
def outcome(call, *arguments):
    try:
        return call(*arguments)
    except OSError as error:
        return type(error).__name__

with vsock.create_connection('local:5001', timeout=7) as s:
    say(s.gettimeout(), s.timeout, s.getblocking())
    s.setblocking(False)
    say(s.gettimeout(), s.getblocking(), outcome(s.recv, 1), outcome(s.recv_into, bytearray(1)))
    with s.dup() as twin:
        say(twin.gettimeout(), type(twin).__name__, isinstance(twin, vsock.socket))
with vsock.create_server(5003) as idle:
    idle.settimeout(0.01)
    say(outcome(idle.accept))
    idle.setblocking(False)
    say(outcome(idle.accept))
with vsock.socket() as s:
    s.setblocking(False)
    say(outcome(s.connect, (1, 5001)))
    while outcome(s.finish_connect):
        time.sleep(0.01)
    say(s.getpeername())
"""
    )
    assert said == [
        "7.0 7.0 True",
        "0.0 False BlockingIOError BlockingIOError",
        "0.0 socket True",
        "TimeoutError",
        "BlockingIOError",
        "BlockingIOError",
        "1:5001",
    ]


def test_datagrams_and_unix_sockets_wait_too(play, runtime_dir):
    """Every kind of socket of this package does."""
    said = play(f"""
address = 'unix:{runtime_dir}/green'
def serve(listener):
    with listener.accept()[0] as theirs:
        theirs.sendall(theirs.recv(100).upper())
def answer():
    data, sender = a.recvfrom(100)
    a.sendto(data.upper(), sender)
with vsock.create_server(address) as listener:
    server = spawn(serve, listener)
    with vsock.create_connection(address) as s:
        s.sendall(b'unix')
        say(s.recv(100).decode())
    joinall([server])
with vsock.socket(vsock.SOCK_DGRAM) as a, vsock.socket(vsock.SOCK_DGRAM) as b:
    a.bind((vsock.CID_ANY, 6000))
    answering = spawn(answer)
    b.sendto(b'datagram', (vsock.CID_LOCAL, 6000))
    say(b.recv(100).decode())
    joinall([answering])
""")
    assert said == ["UNIX", "DATAGRAM"]


def test_machines_in_memory(play):
    """Both ends are green; a port whose listener is closed is free."""
    said = play("""
from vsock.transports.memory import MemoryTransport
host = MemoryTransport()
web = host.guest('web', 3)
def serve(listener):
    with listener.accept()[0] as theirs:
        theirs.sendall(theirs.recv(100).upper())
for _ in range(2):
    with vsock.create_server(80, transport=web) as listener:
        server = spawn(serve, listener)
        with vsock.create_connection('web:80', 30, transport=host) as s:
            s.sendall(b'memory')
            say(s.recv(100).decode())
        joinall([server])
""")
    assert said == ["MEMORY", "MEMORY"]


def test_socket_of_the_kernel_is_refused_aloud(play):
    """It would stop all greenlets; the libraries' own AF_VSOCK sockets do not."""
    said = play("""
try:
    vsock.socket(transport='kernel')
except vsock.UsageError as error:
    say(error)
""")
    assert "gevent or eventlet" in said[0]


def test_proxy_class_in_place_of_sockets_changes_nothing(switch):
    """Other libraries replace `socket.socket` too, with sockets that block."""
    code = """
import socket
class Proxy(socket.socket):
    pass
socket.socket = Proxy
import vsock
with vsock.create_server(5000) as l, vsock.create_connection('local:5000') as s:
    print(type(s).__mro__.count(Proxy), l.accept()[0].gettimeout())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 None\n"
