"""A match between two processes with the output of vsock_test, which need no AF_VSOCK."""

import sys

import pytest
from tests.conformance.match import Match
from tests.conformance.sides import ProcessSide
from tests.conformance.verdicts import Outcome

CASES = {0: "one", 1: "two", 2: "three", 3: "four"}

SUITE = """
import socket, sys
arguments = dict(argument[2:].split("=") for argument in sys.argv[2:] if "skip" not in argument)
skips = [int(argument.partition("=")[2]) for argument in sys.argv[2:] if "skip" in argument]
fails = dict(pair.split(":") for pair in sys.argv[1].split(",") if pair)
address = (arguments["control-host"], int(arguments["control-port"]))
if arguments["mode"] == "server":
    with socket.create_server(address) as door:
        print(f"Control socket listening on {address[0]}:{address[1]}", flush=True)
        control = door.accept()[0]
else:
    control = socket.create_connection(address)
lines = control.makefile("r")
def say_and_hear(line):
    control.sendall(line.encode() + b"\\n")
    return lines.readline().strip() or sys.exit("unexpected EOF on control socket")
for number, name in enumerate(["one", "two", "three", "four"]):
    print(f"{number} - {name}...", end="", flush=True)
    word = "SKIP" if number in skips else "NEXT"
    if "SKIP" in (word, say_and_hear(word)):
        print("skipped")
    elif fails.get(str(number)) == arguments["mode"]:
        sys.exit("failed on purpose")
    else:
        print("ok")
print("All tests have been executed. Waiting other peer...", end="", flush=True)
say_and_hear("COMPLETED")
print("ok")
"""


def match_that_fails(fails: str) -> Match:
    """Two ends; `failures` names the cases that fail, as "1:client,3:server"."""
    argv = [sys.executable, "-c", SUITE, fails]
    return Match(ProcessSide("one", 3, argv, {}), ProcessSide("other", 4, argv, {}))


@pytest.mark.parametrize("fails", ["", "0:client", "1:server,2:client", "3:server"])
async def test_match_gives_each_case_its_verdict(fails: str):
    """A failure ends the program; the cases after it run all the same."""
    verdicts = await match_that_fails(fails).play(CASES, [])
    failed = {int(pair[0]) for pair in fails.split(",") if pair}
    assert {case for case in CASES if verdicts[case].outcome is Outcome.FAILED} == failed
    assert all(verdicts[case].outcome is Outcome.PASSED for case in CASES.keys() - failed)


async def test_skipped_case_is_not_played():
    """It would have failed."""
    verdicts = await match_that_fails("2:client").play(CASES, [2])
    assert [verdicts[case].outcome for case in CASES] == [
        Outcome.PASSED,
        Outcome.PASSED,
        Outcome.SKIPPED,
        Outcome.PASSED,
    ]


async def test_program_that_does_not_run_fails_every_case():
    """And it ends."""
    argv = [sys.executable, "-c", "raise SystemExit('no such thing')"]
    match = Match(ProcessSide("one", 3, argv, {}), ProcessSide("other", 4, argv, {}))
    verdicts = await match.play({0: "one", 1: "two"}, [])
    assert [verdict.outcome for verdict in verdicts.values()] == [Outcome.FAILED] * 2
    assert "no such thing" in verdicts[0].said
