"""Servers whose switch ends: their event loops use no processor time (A5b).

A listener of the kernel never ends, so other people's event loops do not handle the end of one.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vsock

PORT = 5000

PRELUDE = """
import asyncio, os, select, selectors, socket, socketserver, sys, threading
ANY = 0xffffffff

def listen():
    if os.environ['HOW'] == 'vsock':
        import vsock
        return vsock.create_server(5000)
    listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    listener.bind((ANY, 5000))
    listener.listen(5)
    return listener

def say(*words):
    print(*words, flush=True)

listener = listen()
"""

EPOLL = """
def serve():
    listener.setblocking(False)
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    say(os.getpid())
    while True:
        for _ in poller.poll():
            try:
                listener.accept()
            except OSError:
                pass
"""

SERVERS = {
    "asyncio": """
async def main():
    server = await asyncio.start_server(lambda *_: None, sock=listener)
    say(os.getpid())
    await server.serve_forever()
asyncio.run(main())
""",
    "uvicorn": """
import uvicorn
class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets)
        say(os.getpid())
async def app(scope, receive, send):
    pass
Server(uvicorn.Config(app, lifespan='off', loop='asyncio', log_level='error')).run([listener])
""",
    "socketserver": """
class Server(socketserver.BaseServer):
    def fileno(self):
        return listener.fileno()
    def get_request(self):
        return listener.accept()
say(os.getpid())
Server((), None).serve_forever()
""",
    "epoll": EPOLL + "serve()",
    # The parent, which never accepts, keeps the socket alive in the children's epoll.
    "prefork": EPOLL
    + """
child = os.fork()
if child:
    os.waitpid(child, 0)
else:
    serve()
""",
    # Event loops that go on after any error.
    "thread": """
def serve():
    say(os.getpid())
    while True:
        try:
            listener.accept()
        except OSError:
            pass
threading.Thread(target=serve).start()
""",
}


@pytest.fixture(params=["vsock", "run"])
def start(request, runtime_dir: Path, start_preloaded):
    """Starts a server, with `vsock.socket` or under `vsock run`."""
    with contextlib.ExitStack() as stack:

        def start(code: str) -> "subprocess.Popen[str]":
            command = [sys.executable, "-c", PRELUDE + code]
            environment = {**os.environ, "HOW": request.param}
            if request.param == "run":
                preloaded: subprocess.Popen[str] = start_preloaded(*command, env=environment)
                return preloaded
            process = subprocess.Popen(
                command,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            stack.enter_context(process)
            stack.callback(os.killpg, process.pid, 9)
            return process

        yield start


def used(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.parametrize("server", SERVERS)
def test_server_whose_switch_has_ended_uses_no_processor_time(runtime_dir, start, server):
    """Its accept fails once; after that it waits."""
    with vsock.Switch(runtime_dir=runtime_dir):
        process = start(SERVERS[server])
        pid = int(process.stdout.readline())
        vsock.create_connection((vsock.CID_LOCAL, PORT)).close()
    before = used(pid)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    assert used(pid) - before < 0.3


def test_accept_tells_once_that_the_switch_has_ended(runtime_dir):
    """Afterwards it behaves as a listener without clients."""
    with vsock.Switch(runtime_dir=runtime_dir):
        listener = vsock.create_server(PORT)
    with listener:
        with pytest.raises(vsock.SwitchGone):
            listener.accept()
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()
        listener.settimeout(0.01)
        with pytest.raises(TimeoutError):
            listener.accept()
        with pytest.raises(vsock.SwitchGone):
            listener.listen()
