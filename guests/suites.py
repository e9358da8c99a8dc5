#!/usr/bin/env python3
"""Packages of Debian's newer suites on a machine with an older one, without installing them.

    guests/suites.py SUITE PACKAGE FOLDER           unpack a package of trixie, trixie-backports or sid to FOLDER
    guests/suites.py --meta SUITE PACKAGE FOLDER    unpack its dependency, as linux-source-7.3 for linux-source
    guests/suites.py --source trixie PACKAGE FOLDER download its original source to FOLDER, and print the path

A package is unpacked in FOLDER/root, and its name and version are printed.

The package lists are kept in a folder of their own. The machine's own lists are not changed, and
are read only for the mirror that this machine uses. apt verifies the packages with Debian's keys.
"""

import argparse
import functools
import re
import subprocess
import sys
from pathlib import Path

sys.dont_write_bytecode = True

from packages import Apt, PackageMissing, check_tools  # noqa: E402 - the line above must come first

STABLE = "trixie"
BACKPORTS = "trixie-backports"
SID = "sid"

REPOSITORY = Path(__file__).resolve().parent.parent
LISTS = REPOSITORY / "build/guests/lists"

_BASES = {STABLE: (), BACKPORTS: (STABLE,), SID: ()}
"""For each suite, the other suites that its packages depend on."""

# A mirror always keeps the sources of a stable release; those of other suites change.
_WITH_SOURCES = (STABLE,)

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# Check-Valid-Until: an outdated mirror has an expired Release file, which is still signed.
_CONFIG = """\
Dir::Etc::sourcelist "{folder}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{folder}";
Dir::State::lists "{folder}/lists";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
APT::Sandbox::User "root";
APT::Default-Release "{suite}";
Acquire::Check-Valid-Until "false";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "1";
Acquire::http::Timeout "20";
"""


def newer_suite(suite: str, lists: Path = LISTS) -> Apt:
    """The `Apt` of another suite, with its lists in `lists`/SUITE; fetches them if there are none."""
    check_tools()
    folder = lists.resolve() / suite
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    sources = [f"{source_of(name)}\n" for name in (suite, *_BASES[suite])]
    if suite in _WITH_SOURCES:
        sources.append(f"{source_of(suite, 'deb-src')}\n")
    (folder / "sources.list").write_text("".join(sources))
    config = folder / "apt.conf"
    config.write_text(_CONFIG.format(folder=folder, suite=suite))
    apt = Apt(f"Debian's {suite}", config)
    apt.update_if_unknown("qemu-system-x86")
    return apt


def source_of(suite: str, kind: str = "deb") -> str:
    """The line of sources.list(5) for a suite, at the mirror that this machine uses."""
    signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    return f"{kind} {signed}{_mirror()} {suite} main"


@functools.cache
def _mirror() -> str:
    """The Debian mirror that this machine uses."""
    shown = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for line in shown.splitlines():
        origin, label, mirror = line.split("|")
        if (origin, label) == ("Debian", "Debian"):
            return mirror
    raise PackageMissing("apt has no Debian archive among its sources: run `apt-get update`")


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("suite", choices=sorted(_BASES))
    parser.add_argument("package")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--meta", action="store_true", help="unpack the package's dependency")
    parser.add_argument("--source", action="store_true", help="download its original source")
    options = parser.parse_args()
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        apt = newer_suite(options.suite)
        if options.source:
            print(apt.source(options.package, folder))
        else:
            name = options.package
            if options.meta:
                name = apt.resolve_meta(name, rf"{re.escape(name)}-\S+")
            (version,) = apt.unpack_together([name], folder, folder / "root").values()
            print(f"{name} {version}")
    except (PackageMissing, OSError) as fault:
        print(f"suites: {fault}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
