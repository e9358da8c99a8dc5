"""`guests/fetch`, as far as it needs no network."""

import os
import subprocess
import sys
from pathlib import Path

FETCH = Path(__file__).parents[2] / "guests/fetch"


def test_interrupt_of_a_download_is_no_traceback(tmp_path: Path) -> None:
    """N13: Ctrl-C in `make guests`; here it always comes while apt-get works."""
    for name in ("apt-get", "apt-cache", "dpkg"):
        tool = tmp_path / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text("#!/bin/sh\nkill -INT $PPID\nexec sleep 5\n")
        tool.chmod(0o755)
    done = subprocess.run(
        [sys.executable, FETCH, "--into", tmp_path / "guests"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env=os.environ | {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"},
    )
    assert done.returncode == 130
    assert "Traceback" not in done.stderr
