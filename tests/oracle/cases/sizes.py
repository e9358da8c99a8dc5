"""SO_VM_SOCKETS_BUFFER_SIZE and its two limits (section 10.1)."""

import struct

from tests.oracle.case import OK, Steps, case, do, family, since
from tests.oracle.env import (
    AF_VSOCK,
    BUFFER_MAX_SIZE,
    BUFFER_MIN_SIZE,
    BUFFER_SIZE,
    SEQPACKET,
    STREAM,
    Env,
)

KIB = 1024
BUFFER = 256 * KIB
NAMES = {"size": BUFFER_SIZE, "min": BUFFER_MIN_SIZE, "max": BUFFER_MAX_SIZE}


@family("10.1", {"stream": STREAM, "seqpacket": SEQPACKET})
def defaults(env: Env, kind: int) -> Steps:
    """256 KiB, between 128 bytes and 256 KiB."""
    sock = env.socket(kind)
    yield env.get_size(sock, BUFFER_SIZE), BUFFER
    yield env.get_size(sock, BUFFER_MIN_SIZE), 128
    yield env.get_size(sock, BUFFER_MAX_SIZE), BUFFER


@family(
    "10.1",
    {
        "smaller": (1000, 1000),
        "too small": (5, 128),
        "zero": (0, 128),
        "too large": (1 << 20, BUFFER),
    },
)
def clamped(env: Env, size: int, stored: int) -> Steps:
    """A size outside the limits is set to the nearer limit, without an error."""
    sock = env.socket()
    yield env.set_size(sock, BUFFER_SIZE, size), OK
    yield env.get_size(sock), stored


@case("10.1")
def maximum_first(env: Env) -> Steps:
    """To enlarge a buffer its maximum is raised first."""
    sock = env.socket()
    yield env.set_size(sock, BUFFER_MAX_SIZE, 1 << 20), OK
    yield env.get_size(sock), BUFFER
    yield env.set_size(sock, BUFFER_SIZE, 1 << 20), OK
    yield env.get_size(sock), 1 << 20


@case("10.1")
def maximum_lowered(env: Env) -> Steps:
    """A lower maximum lowers the size; raising the maximum does not raise the size."""
    sock = env.socket()
    yield env.set_size(sock, BUFFER_MAX_SIZE, 1000), OK
    yield env.get_size(sock), 1000
    yield env.set_size(sock, BUFFER_MAX_SIZE, BUFFER), OK
    yield env.get_size(sock), 1000


@case("10.1")
def minimum_raised(env: Env) -> Steps:
    """A higher minimum raises the size."""
    sock = env.socket()
    yield env.set_size(sock, BUFFER_SIZE, 1000), OK
    yield env.set_size(sock, BUFFER_MIN_SIZE, 2000), OK
    yield env.get_size(sock), 2000


@case("10.1")
def minimum_lowered(env: Env) -> Steps:
    """A lower minimum allows smaller sizes."""
    sock = env.socket()
    yield env.set_size(sock, BUFFER_MIN_SIZE, 1), OK
    yield env.set_size(sock, BUFFER_SIZE, 2), OK
    yield env.get_size(sock), 2


@case("10.1")
def limits_crossed(env: Env) -> Steps:
    """If the minimum is above the maximum, the maximum counts; in older kernels the minimum."""
    fixed = ("6.1.192", "6.12.117")
    sock = env.socket()
    yield env.set_size(sock, BUFFER_MAX_SIZE, 1000), OK
    yield env.set_size(sock, BUFFER_MIN_SIZE, 5000), OK
    yield env.get_size(sock), since("7.0", 1000, before=5000, backports=fixed)
    yield env.get_size(sock, BUFFER_MIN_SIZE), 5000
    yield env.get_size(sock, BUFFER_MAX_SIZE), 1000


@case("10.1")
def larger_than_32_bits(env: Env) -> Steps:
    """Sizes are 64-bit numbers as long as there is no connection."""
    sock = env.socket()
    yield env.set_size(sock, BUFFER_MAX_SIZE, 1 << 40), OK
    yield env.set_size(sock, BUFFER_SIZE, 1 << 33), OK
    yield env.get_size(sock), 1 << 33
    yield env.get_size(sock, BUFFER_MAX_SIZE), 1 << 40


@case("10.1")
def larger_than_32_bits_connected(env: Env) -> Steps:
    """Sizes of a connection are 32-bit numbers."""
    listener, sock = env.listener(), env.socket()
    env.set_size(sock, BUFFER_MAX_SIZE, 1 << 40)
    env.set_size(sock, BUFFER_SIZE, 1 << 33)
    yield do(sock.connect, env.at(listener)), OK
    yield env.get_size(sock), 0xFFFFFFFF
    yield env.set_size(sock, BUFFER_SIZE, 1 << 34), OK
    yield env.get_size(sock), 0xFFFFFFFF


@case("10.1")
def when_connected(env: Env) -> Steps:
    """Sizes can be changed on a connection, on either side."""
    client, server = env.pair()
    for sock in (client, server):
        yield env.set_size(sock, BUFFER_SIZE, 100_000), OK
        yield env.get_size(sock), 100_000
    client.send(b"fine")
    yield do(server.recv, 10), b"fine"


@case("10.1")
def kept_over_attempts(env: Env) -> Steps:
    """A refused connect leaves the sizes as they are."""
    sock = env.socket()
    env.set_size(sock, BUFFER_SIZE, 5000)
    yield do(sock.connect, env.refused()), "ECONNRESET"
    yield env.get_size(sock), 5000


@family("10.1", NAMES)
def lengths(env: Env, option: int) -> Steps:
    """Less than 8 bytes is EINVAL to set and to get; more does not matter."""
    sock = env.socket()
    for length in (1, 4, 7):
        yield do(sock.setsockopt, AF_VSOCK, option, bytes(length)), "EINVAL"
        yield do(sock.getsockopt, AF_VSOCK, option, length), "EINVAL"
    value = struct.pack("=QQ", 4000, 0xFFFF)
    yield do(sock.setsockopt, AF_VSOCK, option, value), OK
    yield do(sock.getsockopt, AF_VSOCK, option, 16), value[:8]


@case("10.1")
def length_zero(env: Env) -> Steps:
    """Length 0 is too short too."""
    sock = env.socket()
    yield do(env.libc.set_option, sock, AF_VSOCK, BUFFER_SIZE, None, 0), "EINVAL"
    yield do(env.libc.get_option, sock, AF_VSOCK, BUFFER_SIZE, 0), "EINVAL"


@case("10.1")
def python_integers(env: Env) -> Steps:
    """Python sets and gets these options as 64-bit integers."""
    sock = env.socket()
    yield do(sock.setsockopt, AF_VSOCK, BUFFER_MAX_SIZE, 1 << 33), OK
    yield do(sock.setsockopt, AF_VSOCK, BUFFER_SIZE, 5 << 30), OK
    yield do(sock.getsockopt, AF_VSOCK, BUFFER_SIZE), 5 << 30


@case("10.1")
def of_a_listener(env: Env) -> Steps:
    """Sizes of a listener can be changed while it listens; later connections inherit them."""
    listener = env.listener()
    for size in (3000, 4000):
        yield env.set_size(listener, BUFFER_SIZE, size), OK
        env.connected_to(listener)
        yield env.get_size(env.accept(listener)), size
