"""Functions as programs for a guest; here they run in an interpreter of the host."""

import subprocess
import sys
from typing import Any

import pytest

from vsock.testing.remote import program, result_of


class Doubler:
    """A context."""

    def double(self, number: int) -> int:
        """Twice the number."""
        return 2 * number


def run(source: str) -> str:
    """The output of the program."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", source], capture_output=True, text=True, check=True, timeout=20
    )
    return done.stdout


def test_function_gets_its_arguments_and_returns_its_result() -> None:
    """Also with quotes, other alphabets and nesting."""

    def swap(first: Any, second: Any) -> list[Any]:
        return [second, first]

    arguments = ('it\'s "quoted" \\n', {"ключ": [1, None, True]})
    assert result_of(run(program(swap, *arguments))) == [arguments[1], arguments[0]]


def test_function_gets_its_context_first() -> None:
    """The program makes the instance of the class itself."""

    def use(doubler: Doubler, number: int) -> int:
        return doubler.double(number)

    assert result_of(run(program(use, 21, context=Doubler))) == 42


def test_result_is_told_from_what_was_printed() -> None:
    """Also if the program prints text that looks like a result."""

    def chatter() -> str:
        print("ready\nresult 1")
        return "done"

    assert result_of(run(program(chatter))) == "done"


def test_program_without_result_is_an_error() -> None:
    """For instance a program that calls sys.exit."""
    with pytest.raises(ValueError, match="half a word"):
        result_of("half a word")
