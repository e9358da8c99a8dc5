"""Files of this user that appear as a whole: a reader sees the old content or the new one, also after a crash."""

import os
import tempfile
from pathlib import Path

__all__ = ["write_whole"]


def write_whole(path: Path, text: str) -> None:
    """Write a file; its mode stays, and is 0600 if it is new.

    Raises:
        OSError: it cannot be written; what was there stays.
    """
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(partial).replace(path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
