"""Copies files and trees between the host and guests, and from guest to guest through the host, over SFTP.

Either side may be hostile to the other, or just break. So a file is written under a temporary name in its
folder, compared, and renamed; links are copied and never followed; each number and name that a guest says is
checked. Memory is bounded, however large files and folders are.

| module | what it is |
| --- | --- |
| `sides` | what a copy needs of a side: folders, readers, writers |
| `host` | the host's files, by descriptors of their folders |
| `in_use` | closes files behind the last thread that uses them |
| `guest` | a guest's files, by SFTP |
| `connection` | the SFTP connection of a guest: how long answers may take, and what errors mean |
| `sftp` | asyncssh's SFTP client, over a plain data connection or over ssh |
| `streams` | the data of large files, over a plain data connection of its own |
| `stream_programs` | what the guest runs behind that |
| `digests` | by what files are compared |
| `transfer` | one file: the data, in what order, and its comparison |
| `trees` | named files and whole trees, and the result |
"""

from vsock.ssh.copying.sides import Progress
from vsock.ssh.copying.trees import Copier, CopyResult, Place

__all__ = ["Copier", "CopyResult", "Place", "Progress"]
