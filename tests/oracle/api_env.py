"""The `Env` of the column `api`: `vsock.socket`."""

from typing import Any

from tests.oracle.case import NotApplicable
from tests.oracle.env import Env

import vsock


class ApiEnv(Env):
    """Programs that use this package, over the switch that ``VSOCK_RUNTIME_DIR`` names."""

    column = "api"

    def make_socket(self, kind: int, proto: int) -> Any:
        """A `vsock.socket`."""
        return vsock.socket(kind, proto)

    def local_cid(self) -> int:
        """By `vsock.get_local_cid`."""
        return vsock.get_local_cid()

    @property
    def libc(self) -> Any:
        """Not available: raw system calls would act on the underlying Unix socket."""
        raise NotApplicable("the descriptor under vsock.socket is a Unix socket")
