"""The lines by which OpenSSH's own programs reach guests: `ssh alpha.vsock`, scp, sftp, rsync, git, editors.

Trust is the same as of our own sessions: KnownHostsCommand (OpenSSH 8.5 and later, ssh_config(5)) asks `vsock
ssh-known-hosts`, which pins a guest's key at first use and knows it again whatever the guest was called. ssh writes host
names in lower case but for `%n`; names of guests may have capitals. Host certificates are left out, because a guest is
trusted by its key alone; ssh still asks first for the kinds of keys that are pinned.
"""

import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vsock.ssh.files import write_whole
from vsock.ssh.identity import Identity, state_dir

__all__ = ["fragment", "install", "uninstall"]

_HOSTS: Final = (
    *("*.vsock", "vsock/*", "vsock%*", "vsock,*"),
    *("vsock-mux/*", "vsock-mux%*", "vsock-mux,*", "unix/*", "unix%*", "unix,*"),
)
_HEAD: Final = "# Guests of vsock; from `vsock ssh-config`.\n"


def fragment(program: Sequence[str], options: Sequence[str], *, user: str) -> str:
    """Return the lines.

    Args:
        program: the `vsock` command: an absolute path, as KnownHostsCommand demands, and arguments.
        options: options of the two commands that ssh runs, such as `--runtime-dir`.
        user: the user of guests, if none is named.
    """
    proxy, known = (_command(*program, verb, *options) for verb in ("ssh-proxy", "ssh-known-hosts"))
    return f"""{_HEAD}Host {" ".join(_HOSTS)}
    User {user}
    ProxyCommand {proxy} %n %p
    ProxyUseFdpass yes
    KnownHostsCommand {known} %n %H %t %K
    UserKnownHostsFile /dev/null
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    CheckHostIP no
    HostKeyAlgorithms -*-cert-*
    IdentityFile {_quoted(Identity.of_user().private_file)}
    IdentitiesOnly yes
"""


def install(text: str, home: Path) -> list[Path]:
    """Write the lines to a file of our own, and include it in `~/.ssh/config`; returns the files that changed.

    Raises:
        OSError: a file cannot be written.
    """
    ours, theirs = _ours(), _config(home)
    changed = []
    if not ours.exists() or ours.read_text() != text:
        ours.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(ours, text)
        changed.append(ours)
    before = theirs.read_text() if theirs.exists() else ""
    if _include() not in before.splitlines():
        theirs.parent.mkdir(exist_ok=True, mode=0o700)
        # First: an Include behind a Host line is part of it.
        write_whole(theirs, f"{_include()}\n{before}")
        changed.append(theirs)
    return changed


def uninstall(home: Path) -> list[Path]:
    """Undo `install`; returns the files that changed."""
    ours, theirs = _ours(), _config(home)
    changed = []
    if theirs.exists():
        lines = theirs.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.rstrip("\n") != _include()]
        if kept != lines:
            write_whole(theirs, "".join(kept))
            changed.append(theirs)
    if ours.exists():
        ours.unlink()
        changed.append(ours)
    return changed


def _ours() -> Path:
    return state_dir() / "ssh_config"


def _config(home: Path) -> Path:
    # A user's own configuration may be a link into a repository: the file it names is changed.
    return Path(os.path.realpath(home / ".ssh/config"))


def _include() -> str:
    return f"Include {_quoted(_ours())}"


def _command(*words: str) -> str:
    """Words for ssh, which replaces `%` and splits as a shell does."""
    return shlex.join(words).replace("%", "%%")


def _quoted(path: Path) -> str:
    text = str(path).replace("%", "%%")
    return f'"{text}"' if " " in text else text
