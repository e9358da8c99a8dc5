"""The kernel as oracle: one table of cases, run against the kernel's AF_VSOCK and against ours.

A case (`tests.oracle.case`) is a short program over an `Env` that says after each call what it saw
and what it should have seen. The same file runs in three columns:

``kernel``   in a Linux guest, against that kernel's own sockets. The guest plays a *host*: with
             vsock_loopback and vhost_vsock and without a virtio device, as what we stand in for on
             a host. Both ends of a connection are in one process, over CID 1.
``api``      on this machine, `vsock.socket` over a switch of its own.
``preload``  on this machine, plain `socket.AF_VSOCK` under ``vsock run``.

`make oracle` runs all three and compares (`tests.oracle.main`). What a column saw and should not have
seen is a bug of ours, or of the table if the column is the kernel; where we differ on purpose the step
names the entry of docs/reference/differences.md that says why.
"""
