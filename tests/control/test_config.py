"""`vsock.toml`: its meaning, and that all faults are reported at once, each with its line."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsock.control.config import Config, ConfigError, load, parse
from vsock.control.model import GuestSpec

FULL = """\
[switch]
runtime_dir = "/run/lab"

[[guest]]
name = "alpha"
cid = 3
groups = ["lab", "web"]
hybrid = true

[[guest]]
name = "beta"
cid = 4
socket = "/run/vm/beta.sock"
hybrid = "/run/vm/beta.vsock"
"""


def faults_of(text: str) -> list[str]:
    """The faults of a config, as they are printed."""
    with pytest.raises(ConfigError) as caught:
        parse(text, file="c.toml")
    return [str(fault) for fault in caught.value.faults]


def test_full_config_gives_every_field() -> None:
    """All documented keys are read."""
    assert parse(FULL) == Config(
        Path("/run/lab"),
        guests=(
            GuestSpec(
                name="alpha",
                cid=3,
                groups=("lab", "web"),
                hybrid=Path("/run/lab/guests/alpha.vsock"),
            ),
            GuestSpec(
                name="beta",
                cid=4,
                socket=Path("/run/vm/beta.sock"),
                hybrid=Path("/run/vm/beta.vsock"),
            ),
        ),
    )


def test_empty_config_is_a_switch_without_guests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch may start empty and get its guests later."""
    monkeypatch.setenv("VSOCK_RUNTIME_DIR", "/run/mine")
    assert parse("") == Config(Path("/run/mine"), guests=())


def test_polling_is_taken_within_its_bounds() -> None:
    """From 0 (no polling) to a millisecond."""
    assert parse("[switch]\npoll_us = 0\n").poll_us == 0
    assert faults_of("[switch]\npoll_us = 1001\n") == [
        "c.toml:2: poll_us must be 0 to 1000 microseconds, not 1001"
    ]
    assert faults_of("[switch]\npoll_us = true\n") == [
        "c.toml:2: poll_us must be a whole number, not True"
    ]


def test_linger_timeout_is_taken_within_its_bounds() -> None:
    """F2: above 0, to a day; 10 minutes by default."""
    assert parse("").linger_timeout == 600
    assert parse("[switch]\nlinger_timeout = 30\n").linger_timeout == 30
    assert parse("[switch]\nlinger_timeout = 0.5\n").linger_timeout == 0.5
    for wrong, reason in (
        ("0", "linger_timeout must be above 0 and at most 86400 seconds, not 0"),
        ("86401", "linger_timeout must be above 0 and at most 86400 seconds, not 86401"),
        ("nan", "linger_timeout must be above 0 and at most 86400 seconds, not nan"),
        ("true", "linger_timeout must be a number, not True"),
        ('"8 s"', "linger_timeout must be a number, not '8 s'"),
    ):
        assert faults_of(f"[switch]\nlinger_timeout = {wrong}\n") == [f"c.toml:2: {reason}"]


def test_sandbox_is_on_unless_the_file_says_otherwise() -> None:
    """True or false; it does not change while the switch runs, but the file can set it."""
    assert parse("").sandbox
    assert not parse("[switch]\nsandbox = false\n").sandbox
    assert faults_of('[switch]\nsandbox = "off"\n') == [
        "c.toml:2: sandbox must be true or false, not 'off'"
    ]


def test_runtime_dir_given_by_the_caller_wins() -> None:
    """The command line overrides the file."""
    config = parse(FULL, runtime_dir=Path("/tmp/x"))
    assert config.runtime_dir == Path("/tmp/x")
    assert config.guests[0].hybrid == Path("/tmp/x/guests/alpha.vsock")


def test_many_faults_are_all_reported_with_their_lines() -> None:
    """A user need not repair the first fault to see the second."""
    text = """\
[switch]
runtime_dirr = "/run/lab"

[[guest]]
name = "host"
cid = 2

[[guest]]
cid = "four"
groups = [
  "ok",
  5,
]

[[guest]]
name = "gam ma"
cid = true
hybrid = 7

[guests]
"""
    assert faults_of(text) == [
        "c.toml:2: unknown key runtime_dirr: did you mean runtime_dir?",
        "c.toml:5: name: 'host' is CID 2: choose another name",
        "c.toml:6: cid: 2 is no guest's CID: 3 to 4294967294",
        "c.toml:8: guest has no name",
        "c.toml:9: cid must be a whole number, not 'four'",
        "c.toml:10: group 5 is not a string",
        "c.toml:16: name: 'gam ma' is no guest name: a letter, then letters, digits and . _ -, at most 63",
        "c.toml:17: cid must be a whole number, not True",
        "c.toml:18: hybrid must be true, false or a path, not 7",
        "c.toml:20: unknown key guests: did you mean guest?",
    ]


def test_guests_with_the_same_things_name_each_other() -> None:
    """The message names the other guest, because the number alone does not show the line."""
    text = """\
[[guest]]
name = "alpha"
cid = 3
socket = "/run/a.sock"
[[guest]]
name = "alpha"
cid = 3
socket = "/run/a.sock"
"""
    assert faults_of(text) == [
        "c.toml:6: name: guest alpha exists already, with CID 3",
        "c.toml:7: cid: CID 3 belongs to guest alpha",
        "c.toml:8: socket: /run/a.sock is used by guest alpha",
    ]


def test_relative_and_long_paths_are_refused() -> None:
    """The daemon's directory is not the user's, and a long path cannot be bound."""
    text = f"""\
[[guest]]
name = "alpha"
cid = 3
socket = "a.sock"
hybrid = "/{"x" * 107}"
"""
    room = "a hybrid socket's path at most 96, as _PORT must fit behind it"
    assert faults_of(text) == [
        "c.toml:4: socket: a.sock is relative: the daemon's directory is not yours",
        f"c.toml:5: hybrid: /{'x' * 107} has 108 bytes, {room}",
    ]


def test_number_without_end_is_a_fault_with_its_line() -> None:
    """N13: Python's own limit for digits causes no traceback."""
    text = f'[[guest]]\nname = "alpha"\ncid = {"9" * 5000}\n'
    assert faults_of(text) == ["c.toml:3: a number of 5000 digits"]


def test_single_brackets_are_explained() -> None:
    """The most common mistake with lists of tables."""
    assert faults_of('\n[guest]\nname = "a"\n') == [
        "c.toml:2: write [[guest]], with two brackets, once per guest"
    ]


@pytest.mark.parametrize(
    ("text", "line"), [("a = \n", 1), ("\n\nx y", 3), ('[switch]\na = "open', 2)]
)
def test_bad_toml_says_where(text: str, line: int) -> None:
    """The parser's own message, in the form of the other faults."""
    (fault,) = faults_of(text)
    assert fault.startswith(f"c.toml:{line}: not TOML: ")


def test_bytes_that_are_no_text_say_where(tmp_path: Path) -> None:
    """A file in another encoding is a fault of the file, not of the program."""
    file = tmp_path / "vsock.toml"
    file.write_bytes(b"[switch]\n# \xe9t\xe9\n")
    with pytest.raises(ConfigError, match="vsock.toml:2: not UTF-8"):
        load(file)


@settings(deadline=None)
@given(st.text())
def test_any_text_is_a_config_or_faults_with_lines(text: str) -> None:
    """For any text the reader returns a config, or faults with existing lines."""
    try:
        config = parse(text, runtime_dir=Path("/run/x"))
    except ConfigError as error:
        assert error.faults
        for fault in error.faults:
            assert 1 <= fault.line <= len(text.splitlines()) + 1
    else:
        assert config.guests == ()


VALUES = st.one_of(
    st.booleans(), st.integers(), st.just("alpha"), st.lists(st.integers(), max_size=2)
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from(GuestSpec.__slots__), VALUES), max_size=3))
def test_any_table_is_a_guest_or_faults_in_its_lines(tables: list[dict[str, object]]) -> None:
    """Wrong types in any place are reported with a line of the right table."""
    lines: list[str] = []
    for table in tables:
        lines.append("[[guest]]")
        for key, value in table.items():
            shown = str(value).lower() if isinstance(value, bool) else repr(value)
            lines.append(f"{key} = {shown}")
    try:
        config = parse("\n".join(lines), runtime_dir=Path("/run/x"))
    except ConfigError as error:
        assert all(1 <= fault.line <= len(lines) for fault in error.faults)
    else:
        assert len(config.guests) == len(tables)


def test_description_is_a_line_of_text() -> None:
    """Characters that cannot be printed would break the table of guests."""
    guest = '[[guest]]\nname = "alpha"\ncid = 3\ndescription = '
    assert parse(guest + '"Ada\'s machine"\n').guests[0].description == "Ada's machine"
    for wrong, reason in (
        (r'"a\nb"', r"description: 'a\nb' cannot be printed in one line"),
        (f'"{"x" * 201}"', "description: 201 characters, at most 200"),
        ("5", "description must be a string, not 5"),
    ):
        assert faults_of(f"{guest}{wrong}\n") == [f"c.toml:4: {reason}"]


def test_memory_slots_is_true_or_false() -> None:
    """`memory_slots` is read as a boolean, and anything else is a fault of its line."""
    guest = '[[guest]]\nname = "alpha"\ncid = 3\nmemory_slots = '
    assert parse(guest + "true\n").guests[0].memory_slots
    assert not parse(guest + "false\n").guests[0].memory_slots
    with pytest.raises(ConfigError, match=r":4: .*memory_slots must be true or false, not 1"):
        parse(guest + "1\n")


def test_buffer_limit_is_a_number_of_mib() -> None:
    """`buffer_limit_mib` has a default and a range."""
    guest = '[[guest]]\nname = "alpha"\ncid = 3\n'
    assert parse(guest).guests[0].buffer_limit_mib == 64
    for right in (16, 65536):
        assert parse(f"{guest}buffer_limit_mib = {right}\n").guests[0].buffer_limit_mib == right
    for wrong in (0, 15, 65537):
        reason = f"buffer_limit_mib must be 16 to 65536 MiB, not {wrong}"
        assert faults_of(f"{guest}buffer_limit_mib = {wrong}\n") == [f"c.toml:4: {reason}"]


def test_rate_is_none_or_a_number_of_bytes_in_its_range() -> None:
    """`bytes_per_second` is 0, for no limit, or 64 KiB to 1 TiB."""
    guest = '[[guest]]\nname = "alpha"\ncid = 3\n'
    assert parse(guest).guests[0].bytes_per_second == 0
    for right in (0, 65536, 1 << 40):
        assert parse(f"{guest}bytes_per_second = {right}\n").guests[0].bytes_per_second == right
    for wrong in (1, 65535, (1 << 40) + 1):
        reason = f"bytes_per_second must be 0 (no limit), or 65536 to 1099511627776, not {wrong}"
        assert faults_of(f"{guest}bytes_per_second = {wrong}\n") == [f"c.toml:4: {reason}"]


def test_memory_limit_is_a_number_of_gib() -> None:
    """`memory_limit_gib` has a default and a range; `file_memory` is a boolean."""
    guest = '[[guest]]\nname = "alpha"\ncid = 3\n'
    alpha = parse(guest).guests[0]
    assert (alpha.memory_limit_gib, alpha.file_memory) == (1024, False)
    alpha = parse(guest + "memory_limit_gib = 8\nfile_memory = true\n").guests[0]
    assert (alpha.memory_limit_gib, alpha.file_memory) == (8, True)
    for wrong in (0, 32769):
        reason = f"memory_limit_gib must be 1 to 32768 GiB, not {wrong}"
        assert faults_of(f"{guest}memory_limit_gib = {wrong}\n") == [f"c.toml:4: {reason}"]


def test_sockets_have_a_user_a_group_and_a_mode() -> None:
    """S17: names or numbers, and a mode that lets nobody execute; only where another user can get to."""
    guest = '[[guest]]\nname = "alpha"\ncid = 3\n'
    alpha = parse(guest).guests[0]
    assert (alpha.socket_user, alpha.socket_group, alpha.socket_mode) == (None, None, "0600")
    guest += 'socket = "/run/vm/alpha.sock"\n'
    text = 'socket_user = "libvirt-qemu"\nsocket_group = "64055"\nsocket_mode = "0660"\n'
    alpha = parse(guest + text).guests[0]
    said = ("libvirt-qemu", "64055", "0660")
    assert (alpha.socket_user, alpha.socket_group, alpha.socket_mode) == said
    for line, reason in (
        ('socket_user = "a b"', "socket_user: 'a b' is neither a name nor a number"),
        ('socket_user = ""', "socket_user: '' is neither a name nor a number"),
        ('socket_group = "4294967295"', "socket_group: 4294967295 is no id"),
        ("socket_mode = 660", "socket_mode must be a string, not 660"),
        *(
            (
                f'socket_mode = "{mode}"',
                f"socket_mode: '{mode}' is no mode of a socket: octal, from 0600 to 0666",
            )
            for mode in ("0777", "0060", "0x1b0", "")
        ),
    ):
        assert faults_of(f"{guest}{line}\n") == [f"c.toml:5: {reason}"]


@pytest.mark.parametrize("line", ['socket_user = "qemu"', 'socket_mode = "660"'])
def test_sockets_of_others_are_not_where_only_the_switch_may_enter(line: str) -> None:
    """S17: a mode of a socket in a directory of mode 0700 would let nobody in."""
    guest = f'[[guest]]\nname = "alpha"\ncid = 3\n{line}\n'
    reason = "only the switch's user may enter its directory; give a `socket` elsewhere"
    assert faults_of(guest) == [f"c.toml:4: {line.partition(' ')[0]}: {reason}"]
    for elsewhere in ('socket = "/run/vm/a"', 'hybrid = "/run/vm/a"'):
        assert parse(f"{guest}{elsewhere}\n").guests


SERVICES = """\
[[forward]]
name = "web"
listen = "8080"
to = "alpha:80"

[[proxy]]
name = "packages"
allow = ["index.example.org", "*.mirror.example:80 GET"]
guests = ["alpha"]
header_files = ["api.test=/etc/token"]
log = "/var/log/proxy.log"
rate = 5
idle_timeout = 90
"""


def test_services_are_commands_of_vsock() -> None:
    """Each field becomes an argument of the command."""
    web, packages = parse(SERVICES).services
    directory = Path("/run/x")
    assert web.command(directory) == ["forward", "--runtime-dir=/run/x", "--", "8080", "alpha:80"]
    assert packages.command(directory) == [
        *(
            "proxy",
            "--runtime-dir=/run/x",
            "--allow=index.example.org",
            "--allow=*.mirror.example:80 GET",
        ),
        *("--listen=host:3128", "--guest=alpha", "--header-file=api.test=/etc/token"),
        *("--log=/var/log/proxy.log", "--connections=64", "--rate=5"),
        "--idle-timeout=90.0",
    ]


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "31536001"])
def test_idle_timeout_of_a_proxy_is_a_time(seconds: str) -> None:
    """The command would take no other either."""
    assert faults_of(SERVICES.replace("idle_timeout = 90", f"idle_timeout = {seconds}")) == [
        f"c.toml:13: idle_timeout must be above 0, and a year at most, not {float(seconds):g}"
    ]


def test_faults_of_services_have_their_lines() -> None:
    """Names are unique among all of them; paths are absolute."""
    wrong = SERVICES.replace('"packages"', '"web"').replace("/var/log", "log").replace("5", "0")
    assert faults_of(wrong.replace("=/etc", "=etc")) == [
        "c.toml:10: header_files: 'api.test=etc/token': write HOST=FILE or HOST:PORT=FILE, with an absolute path",
        "c.toml:11: log: log/proxy.log is relative: the daemon's directory is not yours",
        "c.toml:12: rate must be 1 to 10000, not 0",
    ]
    # The switch's log would leave out lines.
    assert faults_of(SERVICES.replace('log = "/var/log/proxy.log"\n', "")) == [
        "c.toml:6: proxy has no log"
    ]
    assert faults_of(SERVICES.replace('"packages"', '"web"')) == [
        "c.toml:7: name: forward web exists already"
    ]
    assert faults_of('[[proxy]]\nname = "a"\nallow = []\nlog = "/l"\n[forward]\nto = "x"\n') == [
        "c.toml:3: allow must be a list of at least one",
        "c.toml:5: write [[forward]], with two brackets, once per forward",
    ]
