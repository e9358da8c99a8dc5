"""Unusual arguments: the results of Python's AF_VSOCK sockets, in every state of a socket (A6).

Python checks the arguments before the system call, so a wrong type raises the same exception in every state;
the results of the kernel depend on the state.
"""

from typing import Any, Final

from tests.oracle.case import OK, Steps, do, family, ours
from tests.oracle.env import ANY, LOCAL, Env

TO: Final = (LOCAL, 40_000)
HUGE: Final = 1 << 40
NAN: Final = float("nan")
SMALL: Final = bytearray(1)
LARGE: Final = bytearray(4)

STATES: Final = ("fresh", "bound", "listening", "connected", "closed", "closed connection")
SHARED: Final = {"connected", "closed", "closed connection"}
"""States in which all calls are made."""

BOUND_ONCE: Final = ("EINVAL",) * 3 + ("EBADF",) * 2
NOT_CONNECTED: Final = ("ENOTCONN",) * 3 + (OK,) + ("EBADF",) * 2
TO_AN_ADDRESS: Final = ("EOPNOTSUPP",) * 3 + ("EISCONN",) + ("EBADF",) * 2
OPEN: Final = (OK,) * 4 + ("EBADF",) * 2

TEXT: Final = ours("D31", api="ValueError")
NUMBER: Final = ours("D31", api="ValueError")

Row = tuple[Any, ...]
"""Arguments, results (one for all states, or one for each), and differences of this package."""

CALLS: dict[str, tuple[Row, ...]] = {
    "bind": (
        *(
            ((address,), "TypeError")
            for address in (
                None,
                5,
                (),
                (1,),
                (1, 2, 3),
                ("1", 2),
                (1, "2"),
                (1.0, 2),
                [ANY, 6],
                b"x",
            )
        ),
        (("1",), "TypeError", TEXT),
        (((-1, -1),), (OK, *BOUND_ONCE)),
        (((ANY, -1),), (OK, *BOUND_ONCE)),
        (((1 << 32, ANY),), ("EADDRNOTAVAIL", *BOUND_ONCE), NUMBER),
        (((ANY, 1 << 32),), (OK, *BOUND_ONCE), NUMBER),
    ),
    "connect": (
        *(
            ((address,), "TypeError")
            for address in (
                None,
                5,
                (),
                (1,),
                (1, 2, 3),
                ("1", 2),
                (1, "2"),
                (1.0, 2),
                [1, 6],
                b"x",
            )
        ),
        (("1",), "TypeError", TEXT),
        (
            ((1 << 32, 5),),
            ("ENODEV", "ENODEV", "EINVAL", "EISCONN", "EBADF", "EBADF"),
            NUMBER,
        ),
        (
            ((1, 1 << 32),),
            ("ECONNRESET", "ECONNRESET", "EINVAL", "EISCONN", "EBADF", "EBADF"),
            NUMBER,
        ),
    ),
    "connect_ex": tuple(((address,), "TypeError") for address in (None, (1,), ("1", 2))),
    "send": (
        *(
            (arguments, "TypeError")
            for arguments in ((), ("x",), (5,), (None,), (b"x", "y"), (b"x", 0, 0))
        ),
        ((b"x", HUGE), "OverflowError"),
    ),
    "sendall": (
        *((arguments, "TypeError") for arguments in ((), ("x",), (b"x", "y"))),
        ((b"x", HUGE), "OverflowError"),
    ),
    "sendto": (
        *(
            (arguments, "TypeError")
            for arguments in (
                *((), (b"x",), (b"x", 5), (b"x", None), (b"x", 0, None), (b"x", "x", TO)),
                *(("x", TO), (5, TO), (b"x", (1,)), (b"x", ("1", 2)), (b"x", 0, TO, 3)),
            )
        ),
        ((b"x", HUGE, TO), "OverflowError"),
        ((b"x", (-1, 5)), TO_AN_ADDRESS),
        ((b"x", TO), TO_AN_ADDRESS),
        ((b"x", 0, TO), TO_AN_ADDRESS),
    ),
    "sendmsg": (
        *((arguments, "TypeError") for arguments in ((), (b"x",), (5,), ([5],), (["x"],))),
        *(
            (([b"x"], ancillary), "TypeError")
            for ancillary in (
                *(None, 5, [1], [()], [(1, 2)], [(1, 1, 5)], [("a", 1, b"")], [(1, 1, b"", 1)]),
            )
        ),
        (([b"x"], [(HUGE, 1, b"")]), "OverflowError"),
        (([b"x"], [], "x"), "TypeError"),
        (([b"x"], [], HUGE), "OverflowError"),
        (([b"x"], [], 0, 5), "TypeError"),
        (([b"x"], [], 0, (1,)), "TypeError"),
        (([b"x"], (), 0, None, 1), "TypeError"),
        (([b"x"], [], 0, TO), TO_AN_ADDRESS),
        (([b"x"], [[1, 1, b""]]), NOT_CONNECTED),
        (([b"x"], [(9, 9, b"x")]), NOT_CONNECTED),
    ),
    "recv": (
        *((arguments, "TypeError") for arguments in ((), ("x",), (1, "x"), (1.0,))),
        ((-1,), "ValueError"),
        ((1 << 70,), "OverflowError"),
        ((1, HUGE), "OverflowError"),
    ),
    "recv_into": (
        *((arguments, "TypeError") for arguments in ((b"1234",), (5,), (LARGE, "x"))),
        ((LARGE, 1, "x"), "TypeError"),
        ((SMALL, 5), "ValueError"),
        ((LARGE, -1), "ValueError"),
    ),
    "recvfrom": (
        *((arguments, "TypeError") for arguments in ((), ("x",), (1, "x"))),
        ((-1,), "ValueError"),
    ),
    "recvfrom_into": (
        ((b"1234",), "TypeError"),
        ((SMALL, 5), "ValueError"),
        ((LARGE, -1), "ValueError"),
    ),
    "recvmsg": (
        *((arguments, "TypeError") for arguments in ((), ("x",), (1, "x"), (1, 0, "x"))),
        *((arguments, "ValueError") for arguments in ((-1,), (1, -1), (1, HUGE))),
        ((1, 0, HUGE), "OverflowError"),
        ((1, 16), NOT_CONNECTED),
    ),
    "recvmsg_into": (
        *((arguments, "TypeError") for arguments in ((5,), ([5],), ([b"1"],), ([SMALL], "x"))),
        (([SMALL], -1), "ValueError"),
        (([SMALL], 0, HUGE), "OverflowError"),
    ),
    "listen": (
        *((arguments, "TypeError") for arguments in (("x",), (None,), (1.5,), (1, 2))),
        ((HUGE,), "OverflowError"),
        ((-1,), ("EINVAL", OK, OK, "EINVAL", "EBADF", "EBADF")),
    ),
    "shutdown": (
        *((arguments, "TypeError") for arguments in ((), ("x",), (None,))),
        ((HUGE,), "OverflowError"),
        ((9,), ("EINVAL", *BOUND_ONCE)),
        ((-1,), ("EINVAL", *BOUND_ONCE)),
    ),
    "getsockopt": (
        *((arguments, "TypeError") for arguments in ((), (1,), ("x", 1), (1, "x"))),
        *((arguments, "TypeError") for arguments in ((1, 2, "x"), (40, 0, "x"))),
        ((HUGE, 1), "OverflowError"),
        ((1, HUGE), "OverflowError"),
        *((arguments, ("ENOPROTOOPT",) * 4 + ("EBADF",) * 2) for arguments in ((40, 99), (99, 1))),
    ),
    "setsockopt": (
        *((arguments, "TypeError") for arguments in ((), (1, 2), (1, 2, 1.5), (1, 2, None))),
        *((arguments, "TypeError") for arguments in (("x", 2, 1), (40, 0, 1.5), (40, 0, None))),
        *((arguments, OPEN) for arguments in ((1, 2, HUGE), (40, 0, -1), (40, 0, 1 << 70))),
        *(
            (arguments, ("EINVAL",) * 4 + ("EBADF",) * 2)
            for arguments in ((1, 2, b""), (40, 0, b"1"))
        ),
        ((99, 1, 1), ("ENOPROTOOPT",) * 4 + ("EBADF",) * 2),
    ),
    "settimeout": (((("x",)), "TypeError"), ((-1,), "ValueError"), ((NAN,), "ValueError")),
    "getsockname": (((), OPEN),),
    "getpeername": (((), NOT_CONNECTED),),
    "dup": (((), OPEN),),
}


def in_state(env: Env, state: str) -> Any:
    """A socket in a state of `STATES`; one that is connected has enough to read."""
    if state == "bound":
        return env.bound()
    if state == "listening":
        return env.listener()
    if state in {"fresh", "closed"}:
        sock = env.socket()
    else:
        sock, other = env.pair()
        other.sendall(bytes(100))
        env.arrived(sock, 100)
    if state.startswith("closed"):
        sock.close()
    return sock


@family("arguments", {f"{state}, {name}": (state, name) for name in CALLS for state in STATES})
def answers(env: Env, state: str, name: str) -> Steps:
    """The result of each call with unusual arguments."""
    sock = in_state(env, state)
    for arguments, said, *differs in CALLS[name]:
        if state not in SHARED:
            sock = in_state(env, state)
        expected = said if isinstance(said, str) else said[STATES.index(state)]
        got = do(getattr(sock, name), *arguments)
        if name == "dup" and got == OK:
            env.keep(sock.dup())
        seen = got if isinstance(got, str) else OK
        yield seen, expected, *differs
