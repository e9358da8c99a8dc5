"""The kernel as oracle: one table of cases, run on the kernel's AF_VSOCK and on this package's.

A case (`tests.oracle.case`) is a short program over an `Env` that yields after each call the actual
and the expected result. The same file runs in three columns:

``kernel``   in a Linux guest, against that kernel's own sockets. The guest plays a *host*: with
             vsock_loopback and vhost_vsock and without a virtio device, because this package replaces
             the kernel of a host. Both ends of a connection are in one process, over CID 1.
``api``      on this machine, `vsock.socket` over a switch of its own.
``preload``  on this machine, plain `socket.AF_VSOCK` under ``vsock run``.

`make oracle` runs all three and compares (`tests.oracle.main`). An unexpected result
is a bug of this package, or of the table if the column is the kernel. For an intended difference the
step names the entry of docs/reference/differences.md with the reason.
"""
