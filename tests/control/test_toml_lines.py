"""Finding lines in TOML: text inside a value that looks like a key must not be taken for a key."""

import pytest

from vsock.control.toml_lines import line_of

TEXT = '''\
top = 1
text = """
[[guest]]
cid = 99
"""
[[guest]]
"name" = "a"
cid = 3
[[ guest ]]
groups = [
  "x",
  # cid = 4
]
cid = 5
[switch]
runtime_dir = "[guest]"
'''


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("top",), 1),
        (("text",), 2),
        (("guest",), 6),
        (("guest", 0), 6),
        (("guest", 0, "name"), 7),
        (("guest", 0, "cid"), 8),
        (("guest", 1), 9),
        (("guest", 1, "groups"), 10),
        (("guest", 1, "cid"), 14),
        (("guest", 1, "socket"), 9),
        (("switch", "runtime_dir"), 16),
        (("missing",), 1),
    ],
)
def test_place_is_found_or_the_nearest_above(place: tuple[str | int, ...], line: int) -> None:
    """Multi-line strings, comments and quoted keys are told apart from keys."""
    assert line_of(TEXT, place) == line
