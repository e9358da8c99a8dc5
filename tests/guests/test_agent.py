"""`vsock.testing` itself: commands in a guest, their output, their status, and errors."""

import pytest

from vsock.testing import (
    CommandFailed,
    GuestTimeout,
    GuestUnavailable,
    QemuGuest,
    UmlGuest,
    find_image,
)
from vsock.testing.plugin import KINDS

every_kind = pytest.mark.parametrize("linux_guest", KINDS, indirect=True)
Guest = QemuGuest | UmlGuest


@every_kind
def test_command_returns_output_errors_and_status(linux_guest: Guest) -> None:
    """All three are returned separately."""
    result = linux_guest.run("echo out; echo err >&2; exit 3", check=False)
    assert (result.stdout, result.stderr, result.status) == ("out\n", "err\n", 3)


@every_kind
def test_command_that_fails_raises_with_what_it_said(linux_guest: Guest) -> None:
    """Raising is the default, so that a test does not continue after a failed command."""
    with pytest.raises(CommandFailed, match="no such thing"):
        linux_guest.run("echo no such thing >&2; false")


@every_kind
def test_long_input_and_output_arrive_whole(linux_guest: Guest) -> None:
    """The serial line of User-Mode Linux loses data when it is overrun."""
    data = bytes(range(33, 127)) * 1000
    assert linux_guest.run("cat", input=data).stdout.encode() == data


@every_kind
def test_function_returns_its_value(linux_guest: Guest) -> None:
    """Arguments and result go as JSON."""

    def answer(number: int, words: list[str]) -> dict[str, object]:
        import os

        return {"release": os.uname().release, "words": [*words, str(number)]}

    got = linux_guest.call(answer, 42, ["naïve", "'"])
    assert got == {"release": linux_guest.kernel_release, "words": ["naïve", "'", "42"]}


@every_kind
def test_function_that_raises_shows_its_traceback(linux_guest: Guest) -> None:
    """The traceback shows the line of the function in the test."""

    def divide(by: int) -> float:
        return 1 / by

    with pytest.raises(CommandFailed, match=r"return 1 / by[\s\S]*ZeroDivisionError"):
        linux_guest.call(divide, 0)


@every_kind
def test_command_that_does_not_end_is_killed_in_time(linux_guest: Guest) -> None:
    """The error has the command and its output."""
    with pytest.raises(GuestTimeout, match="started"):
        linux_guest.run("echo started; exec sleep 1000", timeout=1)
    assert "sleep 1000" not in linux_guest.run("ps").stdout


@every_kind
def test_running_command_can_be_talked_to(linux_guest: Guest) -> None:
    """Input and output, line by line, while it runs."""
    process = linux_guest.spawn("while read line; do echo got $line; done")
    process.write(b"one\n")
    assert process.read_line() == "got one"
    process.write(b"two\n", eof=True)
    assert process.read_line() == "got two"
    assert process.wait().status == 0


def test_missing_image_says_what_to_do() -> None:
    """The error says how to make the images."""
    with pytest.raises(GuestUnavailable, match="make guests"):
        find_image("qemu", "2.4")
