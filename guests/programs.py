"""Further programs for guests: an archive that a test unpacks in a running guest.

They are Debian's programs with their libraries. They are not in the images, because few tests need
them and they would slow down every boot.
"""

import io
import tarfile
from pathlib import Path

PROGRAMS = {
    "usr/bin/nbdkit": "nbdkit",
    "usr/bin/socat": "socat",
    "usr/lib/openssh/sftp-server": "openssh-sftp-server",
    "usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-file-plugin.so": "nbdkit",
    "usr/sbin/qemu-ga": "qemu-guest-agent",
    "usr/sbin/sshd": "openssh-server",
}
"""Path in the guest, and the package."""

LIBRARY_PACKAGES = (
    *("libaudit1", "libcap-ng0", "libcap2", "libcom-err2", "libcrypt1", "libffi8", "libgcrypt20"),
    *("libglib2.0-0", "libgmp10", "libgnutls30", "libgpg-error0", "libgssapi-krb5-2"),
    *("libhogweed6", "libidn2-0", "libk5crypto3", "libkeyutils1", "libkrb5-3", "libkrb5support0"),
    *("liblz4-1", "liblzma5", "libnettle8", "libnsl2", "libnuma1", "libp11-kit0", "libpam0g"),
    *("libpcre2-8-0", "libselinux1", "libssl3", "libsystemd0", "libtasn1-6", "libtirpc3"),
    *("libudev1", "libunistring2", "liburing2", "libwrap0", "libzstd1", "zlib1g"),
)
"""Packages whose libraries the programs need; libc is in the image."""

PACKAGES = tuple(sorted({*PROGRAMS.values(), *LIBRARY_PACKAGES}))

_FOLDERS = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_RESOLVER = "lib/x86_64-linux-gnu/libresolv.so.2"  # of libc6, and not in the image


def write_archive(packages: Path, out: Path) -> None:
    """Write `out`, a tar, from the unpacked `packages`."""
    partial = out.with_suffix(".partial")
    with tarfile.open(partial, "w") as archive:
        for path, package in sorted(PROGRAMS.items()):
            _add(archive, path, packages / package / path)
        _add(archive, f"usr/{_RESOLVER}", packages / "libc6" / _RESOLVER)
        for package in LIBRARY_PACKAGES:
            for folder in _FOLDERS:
                for library in sorted((packages / package / folder).glob("*.so.*")):
                    _add(archive, f"{_FOLDERS[1]}/{library.name}", library)
    partial.rename(out)


def _add(archive: tarfile.TarFile, name: str, source: Path) -> None:
    entry = tarfile.TarInfo(name)
    entry.mode = 0o755
    if source.is_symlink():
        entry.type, entry.linkname = tarfile.SYMTYPE, source.readlink().name
        archive.addfile(entry)
        return
    content = source.read_bytes()
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
