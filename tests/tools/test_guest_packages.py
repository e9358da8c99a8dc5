"""Packages for guests with old package lists, with another apt-get, or with an unreachable archive (N9).

apt and dpkg are scripts here, with the output of the real ones.
"""

import importlib.machinery
import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "guests"))

import packages
import recipe
import suites
from packages import Apt, PackageMissing

SCRIPTS = {
    "apt-cache": """
        shift
        for name; do
            [ "$name" = unknown ] || printf '%s:\\n  Installed: (none)\\n  Candidate: %s\\n' \\
                "$name" "$(cat "$ARCHIVE/listed")"
        done
    """,
    "apt-get": """
        echo "$*" >>"$ARCHIVE/calls"
        case "$*" in
        update*) [ ! -e "$ARCHIVE/locked" ] || {
                rm "$ARCHIVE/locked"
                echo 'E: Could not get lock /x (held by apt-get)' >&2; exit 100
            }
            [ ! -e "$ARCHIVE/down" ] || { echo 'E: cannot reach it' >&2; exit 100; }
            cp "$ARCHIVE/there" "$ARCHIVE/listed"; exit ;;
        indextargets*) echo 'Debian|Debian-Security|a:/security'; echo 'Debian|Debian|a:/debian'; exit ;;
        esac
        while [ "$1" != download ]; do shift; done; shift
        for wanted; do
            [ "${wanted#*=}" = "$(cat "$ARCHIVE/there")" ] || { echo "E: 404 $wanted" >&2; exit 100; }
            echo "$wanted" >"${wanted%=*}_${wanted#*=}_all.deb"
        done
    """,
    "dpkg": """cp "$2" "$3/content" """,
}


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive with version 2 of everything, and lists with version 1."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in SCRIPTS.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("ARCHIVE", str(tmp_path))
    (tmp_path / "listed").write_text("1")
    (tmp_path / "there").write_text("2")
    return tmp_path


@pytest.fixture
def apt(archive: Path) -> Apt:
    """Lists in a folder of the test."""
    return Apt("the test's archive", archive / "apt.conf")


def downloads(archive: Path) -> list[str]:
    """The calls that fetched packages."""
    calls = (archive / "calls").read_text().splitlines()
    return [call.partition("download ")[2] for call in calls if "download" in call]


def test_old_lists_are_fetched_once_more(archive: Path, apt: Apt) -> None:
    """The archive lacks the versions of the lists; all packages are requested in one call."""
    unpacked = archive / "unpacked"
    assert apt.unpack(["a", "b"], archive / "cache", unpacked) == {"a": "2", "b": "2"}
    assert downloads(archive) == ["a=1 b=1", "a=2 b=2"]
    assert (unpacked / "b/content").read_text() == "b=2\n"
    apt.unpack(["a", "b"], archive / "cache", unpacked)
    apt.unpack(["a", "b", "c"], archive / "cache", unpacked)
    assert downloads(archive)[2:] == ["c=2"], "what is there is left"


def test_packages_that_belong_together_are_one_folder(archive: Path, apt: Apt) -> None:
    """For instance a kernel of several packages, or a program with its libraries."""
    (archive / "listed").write_text("2")
    for names in (["a", "b"], ["a", "b"], ["a", "b", "c"]):
        apt.unpack_together(names, archive / "cache", archive / "all")
    assert downloads(archive) == ["a=2 b=2", "a=2 b=2 c=2"]


def test_what_cannot_be_had_is_one_line(archive: Path, apt: Apt) -> None:
    """The unreachable archive, or the missing package."""
    with pytest.raises(PackageMissing, match="the test's archive has no package unknown"):
        apt.unpack(["unknown"], archive / "cache", archive / "unpacked")
    (archive / "down").touch()
    with pytest.raises(PackageMissing, match="cannot update the test's archive: E: cannot reach"):
        apt.unpack(["a"], archive / "cache", archive / "unpacked")


def test_another_apt_is_waited_for(
    archive: Path, apt: Apt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints what it waits for."""
    monkeypatch.setattr(packages, "LOCK_PAUSE", 0)
    (archive / "locked").touch()
    assert apt.unpack(["a"], archive / "cache", archive / "unpacked") == {"a": "2"}
    assert "guests: waiting: Could not get lock /x" in capsys.readouterr().out


def test_without_root_the_machines_lists_stay_and_the_reason_is_said(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists in another folder can be updated without root."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(PackageMissing, match="cannot download a: E: 404 a=1"):
        Apt().unpack(["a"], archive / "cache", archive / "unpacked")
    assert "update" not in (archive / "calls").read_text()


def test_lists_of_another_suite_are_ours_and_come_from_the_machines_mirror(archive: Path) -> None:
    """Not from the archive of security updates, which does not have these suites."""
    (archive / "listed").write_text("2")
    suites.newer_suite(suites.BACKPORTS, archive / "lists")
    folder = archive / "lists/trixie-backports"
    lines = (folder / "sources.list").read_text().splitlines()
    assert [line.split()[-3:] for line in lines] == [
        ["a:/debian", "trixie-backports", "main"],
        ["a:/debian", "trixie", "main"],
    ]
    config = (folder / "apt.conf").read_text()
    assert f'Dir::State "{folder}";' in config
    assert 'Dir::Etc::sourceparts "/dev/null";' in config


@pytest.mark.parametrize(
    ("flags", "demo", "all_kinds"),
    [
        ("fpu sse2", ["6.1", "uml"], ["6.1", "uml", "6.12", "new", "uml-new"]),
        ("fpu amx_tile", ["6.1", "uml-new"], ["6.1", "6.12", "new", "uml-new"]),
    ],
)
def test_kernel_that_panics_on_this_processor_is_not_made(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    demo: list[str],
    all_kinds: list[str],
) -> None:
    """User-Mode Linux 6.1 has no room for the registers of AMX; the newer one replaces it."""
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    monkeypatch.setattr(recipe, "_PROCESSOR", tmp_path / "cpuinfo")
    assert [kernel.name for kernel in recipe.wanted_kernels(False)] == demo
    assert [kernel.name for kernel in recipe.wanted_kernels(True)] == all_kinds


def test_images_of_another_kind_of_machine_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder may be used on another processor than the one it was made for."""
    loader = importlib.machinery.SourceFileLoader("fetch", str(recipe.HERE / "fetch"))
    spec = importlib.util.spec_from_loader("fetch", loader)
    assert spec is not None
    fetch = importlib.util.module_from_spec(spec)
    loader.exec_module(fetch)
    monkeypatch.setattr(recipe, "_PROCESSOR", tmp_path / "cpuinfo")
    images = {}
    for name in ("6.1", "6.12", "uml", "new", "uml-new"):
        images[name] = {"kernel": name, "initramfs": name}
        (tmp_path / name).touch()
    manifest = fetch.Builder(tmp_path, refresh=False).manifest
    parts = ("programs", "qemu", "dropbear", "debian13")
    manifest |= {"images": images, **dict.fromkeys(parts, "6.1")}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    for flags, is_complete in (("sse2", True), ("amx_tile", False)):
        (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
        assert fetch.Builder(tmp_path, refresh=False).is_complete(True) is is_complete
