"""`vsock.adapters.fsspec`: the files of a guest for fsspec, with an SFTP server in a userspace guest, honest and hostile."""

import errno
import gc
import os
import pickle
import stat

import asyncssh
import fsspec
import pytest
from tests.ssh.server import SshServer

import vsock
from vsock.adapters import fsspec as adapter
from vsock.adapters.fsspec import GuestFileSystem
from vsock.errors import SessionError
from vsock.ssh.identity import Identity

LARGE = os.urandom(3_000_000)


@pytest.fixture(autouse=True)
def sessions_end():
    """fsspec keeps its instances; here they end with the test, before the server does."""
    yield
    for files in list(GuestFileSystem._cache.values()):
        files.close()
    gc.collect()


@pytest.fixture
def sshd(guest):
    """A server of the guest, whose files are those of this machine."""
    with SshServer(guest, Identity.of_user().public_key()) as running:
        yield running
        for files in list(GuestFileSystem._cache.values()):
            files.close()


@pytest.fixture
def files(sshd):
    """The file system, as users make it."""
    return fsspec.filesystem("vsock", guest="alpha")


@pytest.fixture
def tree(tmp_path):
    """A tree of the guest: two files, one of them in a folder, and a link."""
    folder = tmp_path / "tree"
    (folder / "deep").mkdir(parents=True)
    (folder / "large").write_bytes(LARGE)
    (folder / "deep/lines").write_text("one\ntwo\nthree\n")
    (folder / "link").symlink_to("large")
    return folder


def test_url_leads_to_a_file_of_the_guest(sshd, tree):
    """By name and by CID, as text and as bytes; `vsock` is registered by the package."""
    for guest in ("alpha", "3", "root@alpha", "alpha:22"):
        with fsspec.open(f"vsock://{guest}{tree}/deep/lines", "rt") as file:
            assert list(file) == ["one\n", "two\n", "three\n"]
    with fsspec.open(f"vsock://alpha{tree}/large") as file:
        assert file.read() == LARGE


@pytest.mark.parametrize("cache", ["readahead", "blockcache", "none"])
def test_reads_can_be_anywhere(files, tree, cache):
    """Forwards and backwards, at the ends of blocks and of the file, with each kind of cache."""
    with files.open(f"{tree}/large", block_size=65536, cache_type=cache) as file:
        for at, size in ((0, 1), (65535, 2), (2_999_999, 10), (131072, 65536), (5, 100_000)):
            assert file.seek(at) == at
            assert file.read(size) == LARGE[at : at + size]
        assert file.seek(-5, 2) == len(LARGE) - 5
        assert file.read() == LARGE[-5:]
        assert file.read() == b""


def test_small_reads_are_answered_by_the_cache(files, tree, monkeypatch):
    """Not each of them by the guest."""
    asked = []
    fetch = adapter._File._fetch_range

    def counted(file, start, end):
        asked.append((start, end))
        return fetch(file, start, end)

    monkeypatch.setattr(adapter._File, "_fetch_range", counted)
    with files.open(f"{tree}/large") as file:
        assert b"".join(file.read(100) for _ in range(1000)) == LARGE[:100_000]
    assert len(asked) == 1


def test_files_are_written_appended_and_made(files, tree):
    """More than a block, with each mode of writing."""
    path = f"{tree}/new"
    with files.open(path, "xb") as file:
        file.write(LARGE)
    with files.open(path, "ab") as file:
        file.write(b"more")
    assert (tree / "new").read_bytes() == LARGE + b"more"
    with pytest.raises(OSError, match="alpha"):
        files.open(path, "xb")
    with files.open(path, "wb") as file:
        file.write(b"less")
    with files.open(path, "r+b") as file:
        file.seek(2)
        file.write(b"ft")
    assert (tree / "new").read_bytes() == b"left"


def test_transaction_gives_files_their_names_at_its_end(files, tree):
    """Or not at all, and then nothing is left."""
    with files.transaction:
        with files.open(f"{tree}/new", "wb") as file:
            file.write(LARGE)
        assert not (tree / "new").exists()
    assert (tree / "new").read_bytes() == LARGE

    def fail() -> None:
        with files.transaction:
            with files.open(f"{tree}/other", "wb") as file:
                file.write(b"x")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert {path.name for path in tree.iterdir()} == {"deep", "large", "link", "new"}


def test_ls_info_find_and_walk(files, tree):
    """What fsspec and the libraries on it ask."""
    assert sorted(files.ls(tree, detail=False)) == [
        f"{tree}/{n}" for n in ("deep", "large", "link")
    ]
    kinds = {info["name"].rpartition("/")[2]: info["type"] for info in files.ls(str(tree))}
    assert kinds == {"deep": "directory", "large": "file", "link": "link"}
    assert files.info(f"{tree}/large")["size"] == len(LARGE)
    assert files.ls(f"{tree}/large", detail=False) == [f"{tree}/large"]
    assert files.isdir(f"{tree}/deep")
    assert not files.exists(f"{tree}/none")
    assert f"{tree}/deep/lines" in files.find(str(tree))
    assert [folder for folder, _, _ in files.walk(str(tree))] == [str(tree), f"{tree}/deep"]
    assert files.glob(f"{tree}/**/lin*") == [f"{tree}/deep/lines", f"{tree}/link"]
    assert "root" not in files.ls("/", detail=False)
    assert "/root" in files.ls("/", detail=False) or "/etc" in files.ls("/", detail=False)


def test_cat_gives_the_range_that_is_asked_for(files, tree):
    """From the front, from the end, several at once."""
    path = f"{tree}/large"
    assert files.cat_file(path) == LARGE
    assert files.cat_file(path, 10, 20) == LARGE[10:20]
    assert files.cat_file(path, start=-10) == LARGE[-10:]
    assert files.cat_file(path, -10, -5) == LARGE[-10:-5]
    assert files.cat_ranges([path] * 3, [0, 5, 9], [1, 6, 12]) == [
        LARGE[0:1],
        LARGE[5:6],
        LARGE[9:12],
    ]


def test_folders_and_files_are_made_moved_and_removed(files, tree):
    """And copied, in the guest and to and from it."""
    files.makedirs(f"{tree}/a/b")
    files.pipe_file(f"{tree}/a/b/c", b"x")
    files.mv(f"{tree}/a/b/c", f"{tree}/a/d")
    assert (tree / "a/d").read_bytes() == b"x"
    files.rm(f"{tree}/a", recursive=True)
    assert not (tree / "a").exists()
    files.get(f"{tree}/deep", f"{tree}/got", recursive=True)
    assert (tree / "got/lines").read_text() == "one\ntwo\nthree\n"
    files.put(f"{tree}/got/lines", f"{tree}/put")
    assert (tree / "put").read_text() == "one\ntwo\nthree\n"


def test_copy_of_a_tree_has_files_for_links(files, tree):
    """A link of the guest's making would lead a second copy to any file of this machine."""
    for _ in range(2):
        files.get(f"{tree}/", f"{tree}-copy", recursive=True)
    copied = tree.with_name("tree-copy") / "link"
    assert not copied.is_symlink()
    assert copied.read_bytes() == LARGE


@pytest.mark.parametrize(
    "name", ["a b", "a#b?c%20", "vsock:", "é", b"\xff\xfe".decode(errors="surrogateescape")]
)
def test_names_are_taken_as_they_are(files, tree, name):
    """No escapes, and bytes that are no text."""
    (tree / "deep" / name).write_bytes(b"x")
    assert f"{tree}/deep/{name}" in files.ls(f"{tree}/deep", detail=False)
    with fsspec.open(f"vsock://alpha{tree}/deep/{name}") as file:
        assert file.read() == b"x"


def test_errors_are_those_of_files(files, tree):
    """With the errno, where SFTP has one."""
    for call in (files.info, files.cat_file, files.open, files.ls, files.rm_file):
        with pytest.raises(FileNotFoundError):
            call(f"{tree}/none")
    with pytest.raises(FileNotFoundError):
        fsspec.open(f"vsock://alpha{tree}/none").open()


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("vsock://delta/x", vsock.NoSuchGuest),
        ("vsock://alpha:9/x", vsock.ConnectRefused),
        ("vsock://3:9/x", vsock.ConnectRefused),
    ],
)
def test_who_is_not_there_is_an_error_of_the_session(guest, url, error):
    """As for `vsock.guest_session`."""
    with pytest.raises(error):
        fsspec.open(url).open()


def test_key_that_is_not_taken_is_an_error_of_the_session(guest):
    """As for `vsock.guest_session`."""
    other = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode()
    with SshServer(guest, other), pytest.raises(vsock.KeyRefused):
        fsspec.filesystem("vsock", guest="alpha")


def test_session_that_is_lost_is_made_anew_the_next_time(guest, tree):
    """What is open says so."""
    key = Identity.of_user().public_key()
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    with SshServer(guest, key, key=host_key):
        files = fsspec.filesystem("vsock", guest="alpha")
        file = files.open(f"{tree}/large", block_size=1000)
        assert file.read(10) == LARGE[:10]
    with pytest.raises(SessionError, match="ended"):
        files.info(f"{tree}/large")
    file.seek(1_000_000)
    with pytest.raises(SessionError, match="ended"):
        file.read(10)
    file.close()
    with SshServer(guest, key, key=host_key):
        with fsspec.open(f"vsock://alpha{tree}/deep/lines") as again:
            assert again.read() == b"one\ntwo\nthree\n"
        GuestFileSystem.current().close()


def test_file_system_can_be_pickled(files, tree):
    """Dask sends it to its workers."""
    copied = pickle.loads(pickle.dumps(files))
    assert copied.info(f"{tree}/large")["size"] == len(LARGE)


class _Hostile(asyncssh.SFTPServer):
    """Lists what no folder can have."""

    names: tuple[bytes, ...] = ()
    attrs = asyncssh.SFTPAttrs(permissions=stat.S_IFREG | 0o644, size=1, atime=0, mtime=0)

    async def scandir(self, path):
        for name in self.names:
            yield asyncssh.SFTPName(name, attrs=self.attrs)


@pytest.mark.parametrize(
    "name", [b"../../../etc/passwd", b"/etc/passwd", b"a/b", b"a\0b", b"", b"x" * 5000]
)
def test_names_that_lead_elsewhere_are_refused(guest, tmp_path, monkeypatch, name):
    """Nothing is written outside the target of a copy."""
    monkeypatch.setattr(_Hostile, "names", (b"fine", name))
    target = tmp_path / "target"
    with SshServer(guest, Identity.of_user().public_key(), sftp=_Hostile):
        files = fsspec.filesystem("vsock", guest="alpha")
        with pytest.raises(OSError, match="a name that none can be") as caught:
            files.get(str(tmp_path), str(target), recursive=True)
        assert caught.value.errno == errno.EPROTO
        files.close()
    assert not target.exists()


@pytest.mark.parametrize(
    "names", [tuple(b"%d" % n for n in range(1000)), (b".",) * 1000], ids=["names", "dots"]
)
def test_listing_has_an_end(guest, tmp_path, monkeypatch, names):
    """Memory does not grow with what a guest says."""
    monkeypatch.setattr(_Hostile, "names", names)
    monkeypatch.setattr(adapter, "MOST_ENTRIES", 500)
    with SshServer(guest, Identity.of_user().public_key(), sftp=_Hostile):
        files = fsspec.filesystem("vsock", guest="alpha")
        with pytest.raises(vsock.ProtocolError, match="more than 500"):
            files.ls(str(tmp_path))
        files.close()


def test_walk_has_an_end(guest, monkeypatch):
    """Every folder has two more in it."""
    attrs = asyncssh.SFTPAttrs(permissions=stat.S_IFDIR | 0o755, size=0, atime=0, mtime=0)
    monkeypatch.setattr(_Hostile, "names", (b"a", b"b"))
    monkeypatch.setattr(_Hostile, "attrs", attrs)
    monkeypatch.setattr(_Hostile, "stat", lambda *_: attrs)
    monkeypatch.setattr(adapter, "MOST_ENTRIES", 500)
    with SshServer(guest, Identity.of_user().public_key(), sftp=_Hostile):
        files = fsspec.filesystem("vsock", guest="alpha")
        with pytest.raises(vsock.ProtocolError, match="more than 500"):
            files.find("/")
        files.close()


@pytest.mark.parametrize("url", ["vsock://alpha:x/y", "vsock://alpha:99999999999/y", "vsock:///y"])
def test_url_that_names_no_guest_or_port_is_an_address_error(switch, url):
    """Before anything is connected to."""
    with pytest.raises(vsock.AddressError):
        fsspec.open(url).open()


def test_attributes_that_are_missing_are_an_error(guest, tmp_path, monkeypatch):
    """Nobody knows then what it is."""
    monkeypatch.setattr(_Hostile, "names", (b"x",))
    monkeypatch.setattr(_Hostile, "attrs", asyncssh.SFTPAttrs())
    with SshServer(guest, Identity.of_user().public_key(), sftp=_Hostile):
        files = fsspec.filesystem("vsock", guest="alpha")
        with pytest.raises(OSError, match="describes a file as none can be"):
            files.ls(str(tmp_path))
        files.close()
