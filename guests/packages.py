"""Debian packages without installing them: `apt-get download`, then `dpkg -x` into the build folder.

Neither step needs root; only `apt-get update` does, on a machine without package lists. Other suites
than the machine's have package lists in the build folder (`suites.py`). `recipe.py` has the names of
the packages and their purpose.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

UPDATE_SECONDS = 300
LOCK_SECONDS = 600
LOCK_PAUSE = 3


class PackageMissing(Exception):  # noqa: N818 - says what happened
    """A package is not available; the message says in one line what to do."""


def check_tools() -> None:
    """Raise PackageMissing unless this machine has Debian's package tools."""
    for tool in ("apt-get", "apt-cache", "dpkg"):
        if shutil.which(tool) is None:
            raise PackageMissing(f"no {tool} here: guest images are made from Debian packages")


class Apt:
    """apt with one set of package lists: the machine's, or those that the file `config` names.

    `archive` is the name of the lists in messages.
    """

    def __init__(self, archive: str = "Debian 12", config: Path | None = None) -> None:
        self.archive = archive
        self._is_ours = config is not None
        self._environment = {**os.environ, "LC_ALL": "C"}
        if config is not None:
            self._environment["APT_CONFIG"] = str(config)

    def update_if_unknown(self, probe: str) -> None:
        """Fetch the package lists if apt does not know the package `probe`."""
        if self.candidates([probe]):
            return
        self.update()
        if not self.candidates([probe]):
            raise PackageMissing(f"{self.archive} has no package {probe}, after `apt-get update`")

    def update(self) -> None:
        """Fetch the package lists; those of the machine need root."""
        if not self._may_update():
            raise PackageMissing("the package lists are old: run `apt-get update` as root")
        print(f"guests: updating the package lists of {self.archive} ...", flush=True)
        done = self._update_after_others()
        if done.returncode != 0:
            raise PackageMissing(f"cannot update {self.archive}: {_last_words(done)}")

    def _update_after_others(self) -> subprocess.CompletedProcess[str]:
        """Run `apt-get update`, and wait while another apt-get holds the lock."""
        command = ["apt-get", "update", "-q"]
        if self._is_ours:
            # Not for the machine's lists: these may name unreachable archives that are not needed.
            command += ["-o", "APT::Update::Error-Mode=any"]
        give_up = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                done = self._run(command, seconds=UPDATE_SECONDS)
            except subprocess.TimeoutExpired:
                raise PackageMissing(f"{self.archive}: apt-get update does not end") from None
            locked = [line for line in done.stderr.splitlines() if "Could not get lock" in line]
            if not locked or time.monotonic() > give_up:
                return done
            print(f"guests: waiting: {locked[0].removeprefix('E: ')}", flush=True)
            time.sleep(LOCK_PAUSE)

    def _may_update(self) -> bool:
        return self._is_ours or os.geteuid() == 0

    def resolve_meta(self, meta: str, pattern: str) -> str:
        """The first dependency of the package `meta` that matches `pattern`: the kernel itself."""
        shown = self._run(["apt-cache", "depends", "--important", meta]).stdout
        found = re.search(rf"Depends: ({pattern})$", shown, re.MULTILINE)
        if found is None:
            raise PackageMissing(
                f"{self.archive} has no package {meta}: is it among apt's sources?"
            )
        return found.group(1)

    def with_dependencies(self, name: str) -> list[str]:
        """The package and all its dependencies on an empty machine; for lists in the build folder."""
        done = self._run(["apt-get", "-s", "-qq", "install", "--no-install-recommends", name])
        found = re.findall(r"^Inst (\S+) ", done.stdout, re.MULTILINE)
        if done.returncode != 0 or name not in found:
            raise PackageMissing(f"{self.archive} has no package {name}: {_last_words(done)}")
        return found

    def unpack(self, names: Sequence[str], cache: Path, into: Path) -> dict[str, str]:
        """Unpack each package to `into`/NAME; returns name -> version."""
        return self._unpack({name: into / name for name in names}, cache)

    def unpack_together(self, names: Sequence[str], cache: Path, into: Path) -> dict[str, str]:
        """Unpack all packages to the folder `into`; returns name -> version."""
        return self._unpack(dict.fromkeys(names, into), cache)

    def _unpack(self, places: dict[str, Path], cache: Path) -> dict[str, str]:
        """Download packages to `cache`, in one go, and unpack each to its place.

        A place that has these versions already is left unchanged.
        """
        versions = self._versions(places)
        stale = [
            name for name in places if _stamp(places[name]) != _content(places, versions, name)
        ]
        if not stale:
            return versions
        files = self._download(versions, stale, cache)
        for place in {places[name] for name in stale}:
            _stamp_file(place).unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
        for name in stale:
            subprocess.run(["dpkg", "-x", files[name], places[name]], check=True)
            files[name].unlink()  # only the unpacked files are kept
        for name in stale:
            _stamp_file(places[name]).write_text(_content(places, versions, name))
        return versions

    def source(self, name: str, cache: Path) -> Path:
        """Download the original source of package `name` to `cache`; for lists with sources."""
        for last_try in (False, True):
            done = self._fetch(["source", "--download-only", name], cache)
            found = sorted(cache.glob(f"{name}_*.orig.tar.*"))
            if done.returncode == 0 and found:
                return found[0]
            if not last_try:
                self.update()
        raise PackageMissing(f"cannot download the source of {name}: {_last_words(done)}")

    def candidates(self, names: Iterable[str]) -> dict[str, str]:
        """The version that apt would install of each package that it knows; one call for all."""
        shown = self._run(["apt-cache", "policy", *names]).stdout
        found = re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (\S+)$", shown, re.MULTILINE)
        return {name: version for name, version in found if version != "(none)"}

    def _versions(self, names: Iterable[str]) -> dict[str, str]:
        known = self.candidates(names)
        for name in names:
            if name not in known:
                raise PackageMissing(
                    f"{self.archive} has no package {name}: is it among apt's sources?"
                )
        return {name: known[name] for name in names}

    def _download(
        self, versions: dict[str, str], names: Sequence[str], cache: Path
    ) -> dict[str, Path]:
        """Download the packages. If the archive lacks one, fetch the package lists and try once more.

        Returns the file of each package; `versions` then has the versions that were downloaded.
        """
        cache.mkdir(parents=True, exist_ok=True)
        for old in cache.glob("*.deb"):
            old.unlink()
        for last_try in (False, True):
            wanted = [f"{name}={versions[name]}" for name in names]
            done = self._fetch(["download", *wanted], cache)
            files = {name: file for name in names for file in cache.glob(f"{name}_*.deb")}
            if done.returncode == 0 and len(files) == len(names):
                return files
            reason = _last_words(done)
            if not last_try and self._may_update():
                self.update()
                versions |= self._versions(names)
        raise PackageMissing(f"cannot download {', '.join(names)[:60]}: {reason}")

    def _fetch(self, command: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
        # As root apt would change to a user that may not write here, and only print a warning.
        return self._run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", *command], cwd=cache)

    def _run(
        self, command: list[str], *, cwd: Path | None = None, seconds: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=cwd,
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )


def _stamp_file(place: Path) -> Path:
    return place.parent / f"{place.name}.version"


def _stamp(place: Path) -> str:
    file = _stamp_file(place)
    return file.read_text() if file.exists() else ""


def _content(places: dict[str, Path], versions: dict[str, str], name: str) -> str:
    """The text of the version file of a package's place: all packages in it."""
    there = [other for other, place in places.items() if place == places[name]]
    return "".join(f"{other} {versions[other]}\n" for other in sorted(there))


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stderr.strip() or "no file was downloaded").splitlines()[-1]
