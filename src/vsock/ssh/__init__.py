"""SSH to guests over vsock: sessions, the user's key, and the guests' host keys. Needs `vsock[ssh]`.

    async with vsock.guest_session("alpha") as guest:
        done = await guest.run(["uname", "-r"], check=True)
        print(done.stdout)

Nothing of ours runs in the guest: its own sshd listens on port 22 of vsock. Nobody is asked to trust a key either.
The switch knows which guest it connects to, so a guest's host key is pinned under the guest's name at first use.

| module | what it is |
| --- | --- |
| `session` | a session with a guest, for asyncio |
| `blocking` | the same for programs without asyncio |
| `identity` | the key pair of this user, which guests let in |
| `command_line` | a command, as the one line that the guest's shell reads |
| `attached` | a command and the descriptors of this process |
| `master` | a process that keeps a session open for commands |
| `jobs` | commands that go on without a session |
| `copying` | files and trees, to guests and from them |
| `data_connection` | what copies and mounts use beside the session: a plain connection |
| `sftp_server` | how a guest's SFTP server is reached, over that or over ssh |
| `mounts` | folders of guests in this host's mount table |
| `sharing` | a folder of this host in a guest |
| `shares` | which folders this user shares |
| `forwards` | ports and sockets, as ssh's -L, -R and -D |
| `guest_state` | what a guest says of itself; its clock |
| `guest_server` | puts `vsock-sshd` where a guest finds it |
| `setup` | what a guest needs for an sshd on vsock, in words |
| `host_keys` | the host keys of guests |
| `hosts` | guests as OpenSSH's users write them: `alpha.vsock`, `vsock/3`, `vsock-mux/PATH` |
| `config` | the lines for OpenSSH's own configuration |

The objects that a session returns are those of asyncssh.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsock.ssh.blocking import BlockingSession
    from vsock.ssh.session import GuestSession, guest_session

__all__ = ["BlockingSession", "GuestSession", "guest_session"]

_HOMES = {
    "BlockingSession": "blocking",
    "GuestSession": "session",
    "guest_session": "session",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is used first: keys and host names need no asyncssh."""
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
