"""The test classes of CPython that are run, and their tests that fail with sockets of the switch, with reasons."""

from typing import Final

CLASSES: Final = (
    "BasicTCPTest",
    "BasicTCPTest2",
    "BufferIOTest",
    "ContextManagersTest",
    "FileObjectClassTestCase",
    "InheritanceTest",
    "InterruptedSendTimeoutTest",
    "LineBufferedFileObjectClassTestCase",
    "NetworkConnectionAttributesTest",
    "NetworkConnectionBehaviourTest",
    "NetworkConnectionNoServer",
    "NonBlockingTCPTests",
    "NonblockConstantTest",
    "RecvmsgIntoTCPTest",
    "RecvmsgTCPTest",
    "SendfileUsingSendTest",
    "SendfileUsingSendfileTest",
    "SendmsgTCPTest",
    "SmallBufferedFileObjectClassTestCase",
    "TCPCloserTest",
    "TCPTimeoutTest",
    "UnbufferedFileObjectClassTestCase",
    "UnicodeReadFileObjectClassTestCase",
    "UnicodeReadWriteFileObjectClassTestCase",
    "UnicodeWriteFileObjectClassTestCase",
)
"""The classes for stream sockets; ThreadedVSOCKSocketStreamTest would use the kernel's own AF_VSOCK."""

_RESET: Final = "AF_VSOCK has ECONNRESET where TCP has ECONNREFUSED"
_CLOSED: Final = "a send to a side that has closed is EPIPE at once; TCP takes the first one"

EXPECTED: Final = {
    "ContextManagersTest.testCreateConnectionClose": _CLOSED,
    "InterruptedSendTimeoutTest.testInterruptedSendtoTimeout": "a send to an address is EISCONN; TCP ignores the address",
    "NetworkConnectionAttributesTest.testFamily": "expects AF_INET; it is AF_VSOCK under vsock run, and D1",
    "NetworkConnectionBehaviourTest.testOutsideTimeout": _CLOSED,
    "NetworkConnectionNoServer.test_connect": _RESET,
    "NetworkConnectionNoServer.test_create_connection": _RESET,
    "NetworkConnectionNoServer.test_create_connection_all_errors": _RESET,
    "NetworkConnectionNoServer.test_create_connection_timeout": "is about a mock in Python's own create_connection",
}
"""Expected failures: they come from AF_VSOCK being another family than TCP, except D1 of docs/reference/differences.md."""


def faults(said: dict[str, str]) -> list[str]:
    """The faults in the results `said`, by test: failures that are not expected, and expected failures that passed."""
    wrong = []
    for name, verdict in said.items():
        if verdict.startswith("failed") and name not in EXPECTED:
            wrong.append(f"FAILED {name}\n{verdict.removeprefix('failed: ')}")
        elif verdict == "passed" and name in EXPECTED:
            wrong.append(f"PASSED {name}: expected.py says that it fails: {EXPECTED[name]}")
    return wrong
