"""`vsock run`: exit codes, messages about programs that it cannot run, and the environment of the command."""

import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from tests.programs import find

from vsock.cli.main import main
from vsock.cli.program import why_not
from vsock.preload import preload_environment, preload_path


def vsock_run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """The command as users call it."""
    return subprocess.run(
        [sys.executable, "-m", "vsock.cli", "run", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def elf(*, loader: bytes | None, machine: int | None = None, bits: int = 2) -> bytes:
    """The start of an ELF file, with or without a dynamic loader."""
    with Path(sys.executable).open("rb") as own:
        (our_machine,) = struct.unpack_from("=H", own.read(20), 18)
    header = bytearray(64)
    header[:7] = b"\x7fELF" + bytes([bits, 1, 1])
    struct.pack_into("=HH", header, 16, 2, our_machine if machine is None else machine)
    struct.pack_into("=Q", header, 32, 64)
    struct.pack_into("=HH", header, 54, 56, 2)
    load = struct.pack("=IIQQQQQQ", 1, 5, 0, 0, 0, 64, 64, 4096)
    kind, length = (3, len(loader)) if loader else (4, 0)
    last = struct.pack("=IIQQQQQQ", kind, 4, 176, 0, 0, length, length, 1)
    return bytes(header) + load + last + (loader or b"")


GLIBC = b"/lib64/ld-linux-x86-64.so.2\0"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (elf(loader=GLIBC), None),
        (elf(loader=None), "statically linked"),
        (elf(loader=b"/lib/ld-musl-x86_64.so.1\0"), "musl"),
        (elf(loader=GLIBC, machine=3), "another kind of processor"),
        (elf(loader=GLIBC, bits=1), "another kind of processor"),
        (b"#!/nonexistent/interpreter\n", None),
        (b"\x7fELF" + bytes(60), "another kind of processor"),
        (elf(loader=None)[:80], "statically linked"),
        (b"", None),
    ],
)
def test_reason_why_not_is_read_from_the_file(
    tmp_path: Path, content: bytes, reason: str | None
) -> None:
    """The reason that the kernel and the loader would have; truncated files cause no traceback."""
    file = tmp_path / "program"
    file.write_bytes(content)
    said = why_not(file, keeps_privileges=True)
    assert said is None if reason is None else reason in (said or "")


def test_script_is_judged_by_its_interpreter(tmp_path: Path) -> None:
    """As many levels of scripts as the kernel follows."""
    static, script = tmp_path / "static", tmp_path / "script"
    static.write_bytes(elf(loader=None))
    script.write_text(f"#! {static} -x\necho\n")
    assert "statically linked" in (why_not(script, keeps_privileges=True) or "")
    script.write_text(f"#!{script}\n")  # a script whose interpreter is the script itself
    assert why_not(script, keeps_privileges=True) is None


def test_set_uid_program_is_refused_only_if_it_gets_its_privileges(tmp_path: Path) -> None:
    """With the guard it runs without privileges, and the library works."""
    file = tmp_path / "program"
    file.write_bytes(elf(loader=GLIBC))
    file.chmod(0o4755)
    assert "set-uid" in (why_not(file, keeps_privileges=True) or "")
    assert why_not(file, keeps_privileges=False) is None


@pytest.mark.usefixtures("switch")
def test_status_and_output_are_those_of_the_command() -> None:
    """Options after the command are the command's."""
    done = vsock_run("sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert vsock_run("--", "echo", "-v", "--help").stdout == "-v --help\n"


def test_without_a_switch_a_line_says_so(runtime_dir: Path) -> None:
    """N14: the program runs anyway, as a switch may start later."""
    done = vsock_run("sh", "-c", "echo out; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert done.stderr.startswith(f"vsock run: no switch answers in {runtime_dir}: until one does")
    assert done.stderr.count("\n") == 1
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(runtime_dir / "stream"))
    assert vsock_run("true").stderr.count("\n") == 1  # a killed switch does not count


def test_somebody_who_serves_is_not_disturbed_by_being_looked_for(runtime_dir: Path) -> None:
    """N14: nothing is printed, and the probe does not make a connection."""
    with socket.socket(socket.AF_UNIX) as serving:
        serving.bind(str(runtime_dir / "stream"))
        serving.listen()
        assert vsock_run("true").stderr == ""
        serving.setblocking(False)
        with pytest.raises(BlockingIOError):
            serving.accept()


def test_broken_pipe_ends_the_command_as_it_would_alone() -> None:
    """Python ignores SIGPIPE; the command must not inherit the ignored signal."""
    shown = vsock_run("sh", "-c", "grep SigIgn /proc/self/status").stdout
    assert int(shown.split()[1], 16) & 1 << (signal.SIGPIPE - 1) == 0


def test_missing_program_is_127_and_unusable_one_126(tmp_path: Path) -> None:
    """One line each, as in shells."""
    done = vsock_run("no-such-program")
    assert (done.returncode, done.stderr) == (
        127,
        "vsock run: no-such-program: no such program\n",
    )
    file = tmp_path / "static"
    file.write_bytes(elf(loader=None))
    file.chmod(0o755)
    done = vsock_run(str(file))
    assert done.returncode == 126
    assert done.stderr.startswith(f"vsock run: {file} is statically linked")
    file.write_bytes(elf(loader=GLIBC)[:100])
    file.write_bytes(b"not a program at all\0")
    assert vsock_run(str(file)).returncode == 126


def test_what_is_there_and_no_program_is_126(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A directory, and a file without the x bit, given by path or by name in PATH."""
    (tmp_path / "notes").write_text("no program")
    for name, reason in ((tmp_path, "is a directory"), (tmp_path / "notes", "is not executable")):
        done = vsock_run(str(name))
        assert (done.returncode, done.stderr) == (126, f"vsock run: {name}: {reason}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "folder").mkdir()
    assert vsock_run("notes").returncode == 126
    assert vsock_run("folder").returncode == 127


@pytest.mark.programs("ldconfig")
def test_static_program_of_the_system_is_found_out() -> None:
    """glibc's own ldconfig is linked statically."""
    found = find("ldconfig")
    assert found is not None
    assert vsock_run(found, "--version").returncode == 126


def test_no_command_is_used_wrongly(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2 and a usage message."""
    assert main(["run"]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_environment_names_library_and_directory_and_keeps_other_libraries(tmp_path: Path) -> None:
    """The library is first in LD_PRELOAD, once; the directory is absolute, as programs change theirs."""
    made = preload_environment(Path("here"), {"LD_PRELOAD": "other.so third.so", "HOME": "/"})
    assert made["LD_PRELOAD"] == f"{preload_path()}:other.so:third.so"
    assert made["VSOCK_RUNTIME_DIR"] == str(Path.cwd() / "here")
    assert made["HOME"] == "/"
    assert preload_environment(tmp_path, made)["LD_PRELOAD"] == made["LD_PRELOAD"]
    assert "LD_PRELOAD" not in os.environ


@pytest.mark.programs("readelf")
def test_library_needs_nothing_but_libc() -> None:
    """It is loaded into any program, where another library might be missing."""
    shown = subprocess.run(
        ["readelf", "-d", preload_path()], capture_output=True, text=True, check=True
    ).stdout
    needed = [line.split("[")[1].rstrip("]") for line in shown.splitlines() if "NEEDED" in line]
    assert needed == ["libc.so.6"]
