"""gRPC over vsock: its wheel knows TCP and Unix sockets, so `vsock.adapters.unix_socket` is between."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from vsock.adapters.unix_socket import client_path, server_path

PORT = 50051
SECONDS = 30
LARGE = bytes(2_000_000)


class Echo(grpc.GenericRpcHandler):  # type: ignore[misc] # gRPC has no types
    """A service without generated code: its messages are bytes."""

    def service(self, call):
        """Return the handler of a method."""
        return {
            "/Echo/Once": grpc.unary_unary_rpc_method_handler(lambda message, _: message),
            "/Echo/Each": grpc.stream_stream_rpc_method_handler(lambda messages, _: messages),
        }[call.method]


@contextmanager
def serving(guest, credentials=None):
    """A gRPC server at a vsock port of the guest."""
    server = grpc.server(ThreadPoolExecutor(4), handlers=[Echo()])
    with server_path(PORT, transport=guest.transport) as path:
        if credentials:
            server.add_secure_port(f"unix:{path}", credentials)
        else:
            server.add_insecure_port(f"unix:{path}")
        server.start()
        try:
            yield
        finally:
            server.stop(None).wait(SECONDS)


@pytest.fixture
def channel(guest):
    """A channel of the host to that server, which the test starts."""
    with client_path(f"alpha:{PORT}") as path, grpc.insecure_channel(f"unix:{path}") as made:
        yield made


def test_calls_and_streams(guest, channel):
    """A message each, and many both ways at once."""
    with serving(guest):
        once = channel.unary_unary("/Echo/Once")
        assert once(LARGE, timeout=SECONDS, wait_for_ready=True) == LARGE
        each = channel.stream_stream("/Echo/Each")
        messages = [b"%d" % number for number in range(1000)]
        assert list(each(iter(messages), timeout=SECONDS)) == messages


def test_calls_in_asyncio(guest):
    """A hundred at once over one channel of grpc.aio."""

    async def main(path: Path) -> list[bytes]:
        async with grpc.aio.insecure_channel(f"unix:{path}") as channel:
            once = channel.unary_unary("/Echo/Once")
            calls = (once(b"%d" % n, timeout=SECONDS, wait_for_ready=True) for n in range(100))
            return list(await asyncio.gather(*calls))

    with serving(guest), client_path(f"alpha:{PORT}") as path:
        assert asyncio.run(main(path)) == [b"%d" % number for number in range(100)]


def test_channel_finds_a_server_that_was_started_again(guest, channel):
    """As over TCP, by itself."""
    once = channel.unary_unary("/Echo/Once")
    for _ in range(2):
        with serving(guest):
            assert once(b"x", timeout=SECONDS, wait_for_ready=True) == b"x"


def test_nobody_there_is_unavailable(guest, channel, caplog):
    """gRPC learns that the connection ended; the log has the reason."""
    with caplog.at_level(logging.WARNING, "vsock"), pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/Echo/Once")(b"x", timeout=SECONDS)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert f"alpha:{PORT}" in caplog.text
    assert "refused" in caplog.text


def test_guest_that_does_not_answer_ends_with_the_deadline(switch):
    """Nobody is attached as `beta`."""
    with client_path(f"beta:{PORT}") as path, grpc.insecure_channel(f"unix:{path}") as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/Echo/Once")(b"x", timeout=0.5)
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED


def test_tls_checks_the_name_that_is_asked_for(guest, certificate):
    """The target is a path, so the guest's name is an option of the channel."""
    pem = certificate.read_bytes()
    credentials = grpc.ssl_server_credentials([(pem, pem)])
    trusted = grpc.ssl_channel_credentials(pem)
    options = [("grpc.ssl_target_name_override", "alpha")]
    with serving(guest, credentials), client_path(f"alpha:{PORT}") as path:
        with grpc.secure_channel(f"unix:{path}", trusted, options) as channel:
            once = channel.unary_unary("/Echo/Once")
            assert once(b"x", timeout=SECONDS, wait_for_ready=True) == b"x"
        with grpc.secure_channel(f"unix:{path}", trusted) as channel:
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary("/Echo/Once")(b"x", timeout=SECONDS)
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
