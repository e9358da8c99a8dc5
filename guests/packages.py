"""Debian packages without installing them: `apt-get download`, then `dpkg -x` into our build folder.

Neither step needs root; only a machine that has never fetched its package lists does (`apt-get
update`). Nothing here knows what the packages are for: that is `recipe.py`.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path


class PackageMissing(Exception):  # noqa: N818 - says what happened
    """A package cannot be had here; the message says what to do, in one line."""


def check_tools() -> None:
    """Raise PackageMissing unless this machine has Debian's package tools."""
    for tool in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(tool) is None:
            raise PackageMissing(f"no {tool} here: guest images are made from Debian packages")


def update_lists_if_empty(probe: str) -> None:
    """Fetch the package lists when apt does not even know `probe`; needs root."""
    if candidates([probe]):
        return
    if os.geteuid() != 0:
        raise PackageMissing(f"apt does not know {probe}: run `apt-get update` as root")
    subprocess.run(["apt-get", "update", "-q"], check=False, capture_output=True)
    if not candidates([probe]):
        raise PackageMissing(f"apt does not know {probe}, even after `apt-get update`")


def resolve_meta(meta: str, pattern: str) -> str:
    """The first dependency of the package `meta` that matches `pattern`: the kernel itself."""
    shown = _output(["apt-cache", "depends", "--important", meta])
    found = re.search(rf"Depends: ({pattern})$", shown, re.MULTILINE)
    if found is None:
        raise PackageMissing(f"apt has no package {meta}: is Debian 12's security archive listed?")
    return found.group(1)


def unpack(names: Iterable[str], cache: Path, into: Path) -> dict[str, str]:
    """Download each package to `cache`, unpack it to `into`/NAME; returns name -> version.

    What is there already in the wanted version is left as it is.
    """
    cache.mkdir(parents=True, exist_ok=True)
    names = list(names)
    versions = candidates(names)
    for name in names:
        if name not in versions:
            raise PackageMissing(f"apt has no package {name}: is a Debian 12 archive listed?")
        version = versions[name]
        stamp = into / f"{name}.version"
        if stamp.exists() and stamp.read_text() == version:
            continue
        package = _download(name, version, cache)
        stamp.unlink(missing_ok=True)
        shutil.rmtree(into / name, ignore_errors=True)
        (into / name).mkdir(parents=True)
        subprocess.run(["dpkg", "-x", package, into / name], check=True)
        package.unlink()  # its unpacked form is what we keep
        stamp.write_text(version)
    return versions


def _download(name: str, version: str, cache: Path) -> Path:
    for old in cache.glob(f"{name}_*.deb"):
        old.unlink()
    # As root apt would drop to a user that may not write here, and only warn; say so up front.
    command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", f"{name}={version}"]
    done = subprocess.run(command, cwd=cache, capture_output=True, text=True, check=False)
    found = sorted(cache.glob(f"{name}_*.deb"))
    if done.returncode != 0 or not found:
        reason = (done.stderr.strip() or "no file came").splitlines()[-1]
        raise PackageMissing(f"cannot download {name}: {reason}")
    return found[0]


def candidates(names: Iterable[str]) -> dict[str, str]:
    """The version that apt would take of each package, for those it knows; one call for all."""
    shown = _output(["apt-cache", "policy", *names])
    found = re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (\S+)$", shown, re.MULTILINE)
    return {name: version for name, version in found if version != "(none)"}


def _output(command: list[str]) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment
    ).stdout
