"""A QEMU that ends during its start: the error has its last output, whenever that was (N9)."""

import asyncio
import gc
import json
import socket
import sys
from pathlib import Path

import pytest

from vsock.testing import aio
from vsock.testing._command import QEMU
from vsock.testing.errors import GuestGone
from vsock.testing.images import ENVIRONMENT_VARIABLE
from vsock.testing.qmp import Qmp

QEMU_THAT_ENDS = f"""#!{sys.executable}
import os, re, sys
moment = os.environ["ENDS"]
qmp = int(re.search(r"id=qmp,fd=([0-9]+)", " ".join(sys.argv))[1])
def end():
    print("qemu: it went wrong", file=sys.stderr, flush=True)
    os._exit(1)
if moment == "before":
    end()
os.write(qmp, b'{{"QMP": {{}}}}' + b"\\n")
if moment == "greeting":
    end()
os.read(qmp, 4096)
if moment == "request":
    end()
os.write(qmp, b'{{"return": {{}}, "id": 1}}' + b"\\n")
end()
"""


@pytest.mark.parametrize("moment", ["before", "greeting", "request", "answer"])
async def test_qemu_that_ends_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Never "Connection lost": one error with the console, and no future without a consumer."""
    image = {"vmm": "qemu", "release": "1", "kernel": "k", "initramfs": "i"}
    (tmp_path / "manifest.json").write_text(json.dumps({"images": {"6.1": image}}))
    qemu = tmp_path / QEMU
    qemu.write_text(QEMU_THAT_ENDS)
    qemu.chmod(0o755)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("ENDS", moment)
    with pytest.raises(GuestGone, match=r"(?s)--- console of x ---.*qemu: it went wrong"):
        await aio.QemuGuest(None, "x", accelerator="tcg").start()


async def test_qemu_that_takes_no_command_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """The same without the race: it has sent its greeting, and writing to it fails."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b'{"QMP": {}}\n')
        theirs.shutdown(socket.SHUT_RD)
        qmp = Qmp()
        with pytest.raises(GuestGone, match="QEMU has ended"):
            await qmp.open(ours)
        await qmp.close()
    del qmp
    gc.collect()
    await asyncio.sleep(0)  # by now asyncio has reported any exception that was never retrieved
    assert [record.getMessage() for record in caplog.records] == []
