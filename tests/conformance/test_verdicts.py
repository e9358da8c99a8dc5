"""Verdicts from the output of the two ends of vsock_test."""

from tests.conformance.verdicts import Outcome, Verdict, judge, listed_cases

PASSING = """Control socket listening on 127.0.0.1:4321
Control socket connection accepted...
0 - SOCK_STREAM connection reset...ok
1 - SOCK_STREAM ioctl(SIOCOUTQ) 0 unsent bytes...Test skipped, SIOCOUTQ not supported.
ok
2 - SOCK_STREAM poll() + SO_RCVLOWAT...skipped
3 - SOCK_STREAM SHUT_RD...ok
All tests have been executed. Waiting other peer...ok
"""


def test_listing_gives_numbers_and_names():
    """The heading and unusual names are read correctly."""
    listing = "ID\tTest name\n0\tSOCK_STREAM bind only\n10\tSOCK_STREAM poll() + SO_RCVLOWAT\n"
    assert listed_cases(listing) == {
        0: "SOCK_STREAM bind only",
        10: "SOCK_STREAM poll() + SO_RCVLOWAT",
    }


def test_output_of_both_ends_gives_a_verdict_on_each_case():
    """The line after the last case belongs to none."""
    outcomes = {case: verdict.outcome for case, verdict in judge(PASSING, PASSING).items()}
    assert outcomes == {
        0: Outcome.PASSED,
        1: Outcome.PASSED,
        2: Outcome.SKIPPED,
        3: Outcome.PASSED,
    }


def test_failure_of_one_end_is_the_verdict_on_the_case():
    """The output of both ends is quoted; the end that passed may have begun the next case already."""
    client = "0 - one...ok\n1 - two...ok\n2 - three...unexpected EOF on control socket\n"
    server = "0 - one...ok\n1 - two...bogus recv(2)\nreturn value\n"
    assert judge(client, server) == {
        0: Verdict(Outcome.PASSED),
        1: Verdict(Outcome.FAILED, "client: ok; server: bogus recv(2) return value"),
    }


def test_end_that_was_killed_fails_its_case():
    """A killed program prints no result."""
    assert judge("0 - one...", "0 - one...ok\n")[0].outcome is Outcome.FAILED


def test_no_output_is_no_verdict():
    """The result is empty, which the caller must treat as a failure."""
    assert judge("exec failed\n", "") == {}
