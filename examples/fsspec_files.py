"""A guest's files by URL, through its own sshd: as fsspec opens them, and with it pandas, xarray, Dask and others.

    python3 fsspec_files.py vsock://alpha/var/log
    python3 fsspec_files.py vsock://joe@alpha/srv/measured.csv

A folder is listed; of a file the first and the last line are shown, and only their blocks are read.
"""

import sys

import fsspec

LAST = 4096


def main(url: str) -> None:
    """List, or show."""
    files, path = fsspec.url_to_fs(url)
    if files.isdir(path):
        for info in sorted(files.ls(path), key=lambda info: info["name"]):
            print(f"{info['type']:9} {info['size']:>10} {info['name']}")
        return
    with files.open(path) as file:
        print(file.readline().decode().rstrip())
        file.seek(max(0, file.size - LAST))
        print(file.readlines()[-1].decode().rstrip())


if __name__ == "__main__":
    main(sys.argv[1])
