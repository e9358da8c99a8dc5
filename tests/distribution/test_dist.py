"""The distributions: both can be built, and an installation from them works in an empty environment (N4)."""

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.message import Message
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Building takes a minute; what was compiled of other packages for distributions is kept, apart from that for use here.
pytestmark = [pytest.mark.dist, pytest.mark.timeout(900)]


def run(*command: "str | Path", **environment: str) -> str:
    """Runs a program, whose status must be 0; otherwise the failure has its output."""
    done = subprocess.run(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with sdist and wheel; `python -m build` makes the wheel from the sdist."""
    folder, compiled = tmp_path_factory.mktemp("dist"), ROOT / "build/dist-target"
    # All files of an sdist have the same time, so cargo cannot see that ours have changed since.
    for ours in compiled.glob("*/.fingerprint/vsock-*"):
        shutil.rmtree(ours)
    run(
        *(sys.executable, "-m", "build", "--outdir", folder, ROOT),
        CARGO_TARGET_DIR=str(compiled),
    )
    return folder


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    """The wheel."""
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def metadata(wheel: Path) -> Message:
    """The metadata of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


def test_sdist_has_no_built_library(dist: Path) -> None:
    """The sdist is for machines of every kind."""
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = archive.getnames()
    assert not [name for name in names if name.endswith((".so", ".pyc"))]
    assert any(name.endswith("crates/preload/src/lib.rs") for name in names)
    assert any(name.endswith("crates/sshd/src/main.rs") for name in names)
    assert not any(name.endswith("_lib/vsock-sshd") for name in names)


def test_tag_names_the_c_library_that_is_needed(wheel: Path, tmp_path: Path) -> None:
    """The version of the newest symbol in either library, so that an index accepts the wheel and no newer glibc is required."""
    tag = re.fullmatch(r"vsock-.*-cp311-abi3-manylinux_2_(\d+)_\w+\.whl", wheel.name)
    assert tag, wheel.name
    libraries = extracted(wheel, tmp_path)
    versions = {
        int(minor)
        for library in libraries
        for minor in re.findall(r"\bGLIBC_2\.(\d+)", run("objdump", "-T", library))
    }
    assert max(versions) == int(tag[1])


def test_libraries_are_stripped_and_name_no_path_of_this_machine(
    wheel: Path, tmp_path: Path
) -> None:
    """Neither the build directory, nor the directories of dependencies' sources."""
    home = os.environ.get("CARGO_HOME") or str(Path("~/.cargo").expanduser())
    for library in extracted(wheel, tmp_path):
        assert "no symbols" in run("objdump", "-t", library)
        content = library.read_bytes()
        for path in (str(ROOT), home, str(Path.home()), "/tmp/"):
            assert path.encode() not in content, (library.name, path)


def test_server_for_guests_is_in_the_wheel_and_goes_into_a_root_file_system(
    wheel: Path, tmp_path: Path
) -> None:
    """Static, stripped, and without a path of this machine."""
    root = tmp_path / "root"
    root.mkdir()
    programs = installed(wheel, tmp_path / "venv", "[cli,ssh]")
    state = {"XDG_STATE_HOME": str(tmp_path / "state")}
    run(programs / "vsock", "guest", "agent", "--into", root, **state)
    program = root / "usr/lib/vsock/vsock-sshd"
    assert run(program, "--version").startswith("vsock-sshd ")
    assert "no symbols" in run("objdump", "-t", program)
    assert "NEEDED" not in run("objdump", "-p", program)
    home = os.environ.get("CARGO_HOME") or str(Path("~/.cargo").expanduser())
    for path in (str(ROOT), home):
        assert path.encode() not in program.read_bytes(), path


def extracted(wheel: Path, folder: Path) -> list[Path]:
    """The two libraries in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        archive.extractall(folder, names)
    assert sorted(names) == ["vsock/_lib/libvsock_preload.so", "vsock/_native.abi3.so"]
    return [folder / name for name in names]


def test_metadata_is_complete(metadata: Message) -> None:
    """Author, licence and purpose."""
    assert metadata["Name"] == "vsock"
    assert metadata["Author"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "Operating System :: POSIX :: Linux" in (metadata.get_all("Classifier") or [])
    assert str(metadata.get_payload()).startswith("# vsock\n")


WORKS = """
import sys, tempfile, vsock
from pathlib import Path
from vsock.preload import preload_environment
with tempfile.TemporaryDirectory() as directory:
    with vsock.Switch({"alpha": 3}, runtime_dir=directory, control="control" in sys.argv) as switch:
        with vsock.Guest(switch.socket_path("alpha")) as alpha, alpha.create_server(5000) as server:
            ours = vsock.create_connection("alpha:5000", transport=switch.transport)
            theirs, address = server.accept()
            ours.sendall(b"hello")
            print(address.cid, theirs.recv(100), preload_environment(Path(directory))["LD_PRELOAD"])
"""


def test_units_for_systemd_are_there(dist: Path, wheel: Path) -> None:
    """N7: in the sdist and in the wheel."""
    units = {f"vsock/systemd/{kind}/vsock.service" for kind in ("system", "user")}
    (path,) = dist.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive, tarfile.open(path) as source:
        assert units <= set(archive.namelist())
        assert units <= {name.partition("/src/")[2] for name in source.getnames()}


def installed(wheel: Path, folder: Path, extras: str = "") -> Path:
    """The programs of an environment with only the wheel and its dependencies."""
    run(sys.executable, "-m", "venv", folder)
    quietly = ("--quiet", "--disable-pip-version-check")
    run(folder / "bin/python", "-m", "pip", "install", *quietly, f"{wheel}{extras}")
    return folder / "bin"


def refusal(*command: "str | Path") -> tuple[int, str]:
    """Exit code and output of a program that fails."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout == ""
    return done.returncode, done.stderr


def test_installed_in_an_empty_environment_it_works(wheel: Path, tmp_path: Path) -> None:
    """Library, switch and command, with nothing from the source tree; it was built from the sdist alone."""
    programs = installed(wheel, tmp_path / "venv", "[all]")
    said = run(programs / "python", "-I", "-c", WORKS, "control")
    assert re.fullmatch(rf"2 b'hello' {tmp_path}/venv/\S+/libvsock_preload\.so\n", said)
    assert run(programs / "vsock", "--version").startswith("vsock")


def test_without_extras_it_is_the_library_and_says_what_else_needs(
    wheel: Path, tmp_path: Path
) -> None:
    """N26: it has no dependencies; a missing extra is reported in one line, as wrong usage."""
    programs = installed(wheel, tmp_path / "venv")
    frozen = run(programs / "python", "-m", "pip", "freeze", "--disable-pip-version-check")
    assert [line.partition(" ")[0] for line in frozen.splitlines()] == ["vsock"]
    said = run(programs / "python", "-I", "-c", WORKS)
    assert re.fullmatch(rf"2 b'hello' {tmp_path}/venv/\S+/libvsock_preload\.so\n", said)
    needs_click = "vsock: the vsock command needs click: pip install 'vsock[cli]'\n"
    for command in ([programs / "vsock"], [programs / "python", "-m", "vsock"]):
        for words in (("guest", "ls"), ("switch",), ("--version",)):
            assert refusal(*command, *words) == (2, needs_click)
    with_api = "import vsock; vsock.Switch({'alpha': 3}, control=True)"
    code, said = refusal(programs / "python", "-c", with_api)
    assert code == 1
    reason = "the control API of a switch needs uvicorn: pip install 'vsock[switch]'"
    assert said.splitlines()[-1] == f"vsock.errors.MissingExtra: {reason}"


def test_command_alone_says_what_a_switch_needs(wheel: Path, tmp_path: Path) -> None:
    """All other commands work."""
    programs = installed(wheel, tmp_path / "venv", "[cli]")
    reason = "the control API of a switch needs uvicorn: pip install 'vsock[switch]'"
    assert refusal(programs / "vsock", "switch") == (2, f"vsock: {reason}\n")
    reason = "a session with a guest needs asyncssh: pip install 'vsock[ssh]'"
    assert refusal(programs / "vsock", "exec", "a", "--", "true") == (2, f"vsock: {reason}\n")
    reason = "vsock proxy needs h11: pip install 'vsock[proxy]'"
    assert refusal(programs / "vsock", "proxy", "--allow", "a") == (2, f"vsock: {reason}\n")
    code, said = refusal(programs / "vsock", "guest", "ls", "--runtime-dir", tmp_path)
    assert (code, said.count("\n")) == (1, 1)
    assert "no switch answers" in said
