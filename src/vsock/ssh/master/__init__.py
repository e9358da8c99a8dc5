"""The control master: a process that keeps a session with a guest, so that a command needs no login of its own.

`vsock session open` starts one, as `ControlMaster` of ssh_config(5) does; `vsock exec` and `vsock shell` use it.

| module | what it is |
| --- | --- |
| `messages` | what a master and its clients say to each other, and where masters listen |
| `client` | asks a master; imports neither asyncio nor asyncssh, which take longer than a command |
| `server` | the master |

A client asks for a command, and hands over pipes for its standard streams. The client's own descriptors stay with it:
they may be a terminal, and are shared with other processes. Time limits, output limits and exit codes are the client's
too. When it goes, its command is ended.
"""
