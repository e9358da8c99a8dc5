"""Puts `vsock-sshd`, our SSH server, where a guest that has none finds it: in a root file system, or in a part of an initramfs.

With it go this user's public key, and a host key of its own, so that the guest is known again after each boot.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from vsock.errors import UsageError, missing_extra
from vsock.ssh.identity import Identity

__all__ = ["PROGRAM", "File", "cpio", "files_for_guest", "install", "server_path"]

PROGRAM: Final = "usr/lib/vsock/vsock-sshd"
"""The program in a guest. /usr/lib is a folder everywhere; /sbin and /lib are links on many systems."""

_SETTINGS: Final = "etc/vsock-sshd"
_HOST_KEY: Final = f"{_SETTINGS}/host_key"
_MODULES: Final = "usr/lib/vsock/modules"
_MOST_MODULES: Final = 100


@dataclass(frozen=True, slots=True)
class File:
    """A file of the guest; a link if `mode` says so, with its target as the content."""

    path: str
    mode: int
    content: bytes


def server_path() -> Path:
    """Return where `vsock-sshd` is on this machine.

    Raises:
        UsageError: this copy of the package was built without it.
    """
    path = Path(__file__).parents[1] / "_lib" / "vsock-sshd"
    if not path.exists():
        raise UsageError(
            f"this installation was built without {path.name}, which needs Rust 1.89 and a static C library"
            " (libc6-dev on Debian, glibc-static on Fedora): install these and vsock anew; in a clone: make sshd"
        )
    return path


def files_for_guest(
    identity: Identity, *, is_init: bool = False, modules: Sequence[Path] = ()
) -> list[File]:
    """Return what a guest needs: the server, the key that it lets in, a new host key.

    Args:
        identity: whose key that is; made if there is none.
        is_init: make the server the first process, `/init`.
        modules: kernel modules that it loads first, in this order; not compressed.

    Raises:
        UsageError: the program is missing, or a module is none.
        MissingExtra: asyncssh, which makes keys, is not installed.
        OSError: a file cannot be read.
    """
    files = [
        File(PROGRAM, stat.S_IFREG | 0o755, server_path().read_bytes()),
        File(
            f"{_SETTINGS}/authorized_keys",
            stat.S_IFREG | 0o644,
            f"{identity.public_key()}\n".encode(),
        ),
        File(_HOST_KEY, stat.S_IFREG | 0o600, _new_host_key()),
    ]
    if is_init:
        files.append(File("init", stat.S_IFLNK | 0o777, f"/{PROGRAM}".encode()))
    if len(modules) > _MOST_MODULES:
        raise UsageError(f"{len(modules)} modules: {_MOST_MODULES} at most")
    for number, module in enumerate(modules):
        name, content = f"{number:02}-{module.name}", module.read_bytes()
        if not content.startswith(b"\x7fELF"):
            raise UsageError(f"{module}: no kernel module, or a compressed one: unpack it first")
        files.append(File(f"{_MODULES}/{name}", stat.S_IFREG | 0o644, content))
    return files


def _new_host_key() -> bytes:
    try:
        from asyncssh import generate_private_key
    except ModuleNotFoundError as error:
        raise missing_extra(error, "a host key for a guest", "ssh") from None
    return generate_private_key("ssh-ed25519", comment="vsock-sshd").export_private_key()


def cpio(files: Sequence[File]) -> bytes:
    """Return these files, root's, as an archive that a kernel takes as an initramfs, or behind another one.

    The format is "newc" (Documentation/driver-api/early-userspace/buffer-format.rst of Linux).
    """
    folders = {
        str(folder) for file in files for folder in PurePosixPath(file.path).parents if folder.name
    }
    entries = [
        *(File(folder, stat.S_IFDIR | 0o755, b"") for folder in sorted(folders)),
        *files,
    ]
    parts = [_entry(number, file) for number, file in enumerate(entries, 1)]
    # A kernel without /dev/console starts its first process without standard streams.
    if any(file.path == "init" for file in files):
        console = File("dev/console", stat.S_IFCHR | 0o600, b"")
        parts += [
            _entry(len(parts) + 1, File("dev", stat.S_IFDIR | 0o755, b"")),
            _entry(len(parts) + 2, console, device=(5, 1)),
        ]
    parts.append(_entry(0, File("TRAILER!!!", 0, b"")))
    archive = b"".join(parts)
    # The next archive begins at a multiple of four; 512 is what cpio itself makes.
    return archive + b"\0" * (-len(archive) % 512)


def _entry(number: int, file: File, device: tuple[int, int] = (0, 0)) -> bytes:
    name = file.path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(file.mode) else 1
    # inode mode uid gid links mtime size major minor rmajor rminor namesize check
    fields = (
        *(number, file.mode, 0, 0, links, 0, len(file.content), 0, 0),
        *(*device, len(name), 0),
    )
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name
    return head + b"\0" * (-len(head) % 4) + file.content + b"\0" * (-len(file.content) % 4)


def install(root: Path, files: Sequence[File]) -> None:
    """Write these files into a root file system; a host key that is there stays.

    The file system may be a stranger's: no link in it is followed.

    Raises:
        UsageError: a folder on the way is a link, or there is an /init of somebody else.
        OSError: a file cannot be written.
    """
    for file in files:
        with ExitStack() as opened:
            *folders, name = file.path.split("/")
            folder = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, folder)
            for inner in _folders(root, folder, folders):
                opened.callback(os.close, inner)
                folder = inner
            if file.path == _HOST_KEY and _exists(name, folder):
                continue
            _write(root, file, name, folder)


def _folders(root: Path, folder: int, names: Sequence[str]) -> Iterator[int]:
    """Open folder in folder, and make those that are missing."""
    for position, name in enumerate(names):
        is_new = not _exists(name, folder)
        if is_new:
            os.mkdir(name, 0o755, dir_fd=folder)
        # Others' folders may allow no reading, and then no more than O_PATH.
        flags = os.O_RDONLY if is_new else os.O_PATH
        flags |= os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            folder = os.open(name, flags, dir_fd=folder)
        except NotADirectoryError:
            path = root.joinpath(*names[: position + 1])
            raise UsageError(f"{path} is no folder, and links are not followed") from None
        yield folder
        if is_new:
            os.fchmod(folder, 0o755)  # this user's umask is not the guest's


def _write(root: Path, file: File, name: str, folder: int) -> None:
    if stat.S_ISLNK(file.mode):
        target = file.content.decode()
        if not _exists(name, folder):
            os.symlink(target, name, dir_fd=folder)
        elif not _is_link_to(target, name, folder):
            raise UsageError(
                f"{root / file.path} is there already: leave out --init, and boot with init=/{PROGRAM}"
            )
        return
    partial = f".{name}.new"
    # What is there may be a device, a FIFO or another user's file: none of them is written to.
    with suppress(FileNotFoundError):
        os.unlink(partial, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    out = os.open(partial, flags, stat.S_IMODE(file.mode), dir_fd=folder)
    with os.fdopen(out, "wb") as opened:
        os.fchmod(opened.fileno(), stat.S_IMODE(file.mode))
        opened.write(file.content)
    # What has the name is replaced, whatever it is; a running program keeps its file.
    os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)


def _exists(name: str, folder: int) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True


def _is_link_to(target: str, name: str, folder: int) -> bool:
    try:
        return os.readlink(name, dir_fd=folder) == target
    except OSError:
        return False
