"""What a guest runs behind a plain stream: its dd and cksum, or its python3, whichever it has. No protocol is read here.

Either reads two lines for each file, its path, then `take` or `send`, `crc32` or `none`, from which chunk on, and how
many bytes. It copies these bytes, and then says the CRC of each segment of the file, or one `0` for `none`. If it fails,
it says why on its standard error, in a line behind `FAILED`, and ends.
"""

from typing import Final

from vsock.ssh.copying.digests import CHECK_VALUE, CHECKED, CRC32, SEGMENT
from vsock.ssh.copying.sides import CHUNK

__all__ = ["FAILED", "LINE", "NONE", "PIECE", "READY"]

PIECE: Final = 1 << 20
"""Bytes of a file that are sent or received before the next look."""

READY: Final = b"ready\n"
"""What the program says when it has begun."""

NONE: Final = "none"
FAILED: Final = "vsock: "

# dd says how much it has copied. If that is too little, it has said why, or the file ended. Nobody may put a link in the
# place of the file that SFTP has made. A file that grows ends where it did when it was opened. Another copy may write to
# the same part, so that each writes at offsets, and the CRC is of what the file is then.
_BY_TOOLS: Final = f"""\
export LC_ALL=C
exec 3>&1
fail() {{
  printf "%s\\n" "$1" | while read -r line; do
    case "$line" in *": "*) printf "{FAILED}%s\\n" "${{line##*: }}" >&2; esac
  done
  exit 1
}}
one() {{
  if [ "$1" -le {SEGMENT} ]; then cksum -a {CRC32}b <"$path"
  else dd bs={CHUNK} iflag=count_bytes skip=$(($2 / {CHUNK})) count={SEGMENT} if="$path" 2>/dev/null \
    | cksum -a {CRC32}b
  fi
}}
sum() {{
  [ "$kind" = {NONE} ] && echo 0 && return
  at=0
  while [ "$at" -lt "$1" ]; do
    said=$(one "$1" "$at" 2>&1) || fail "$said"
    echo "$said"
    at=$((at + {SEGMENT}))
  done
}}
echo ready
while IFS= read -r path && IFS=" " read -r way kind chunks length; do
  if [ "$way" = send ]
  then said=$(dd bs={CHUNK} iflag=count_bytes skip="$chunks" count="$length" if="$path" 2>&1 >&3)
  else said=$(dd bs={CHUNK} iflag=fullblock,count_bytes count="$length" \
    of="$path" seek="$chunks" oflag=nofollow conv=notrunc,nocreat 2>&1)
  fi
  case "$said" in *"
$length byte"*) sum $((chunks * {CHUNK} + length));; *) fail "$said"; esac
done
"""

# One process for all: to start one takes User-Mode Linux a tenth of a second.
_BY_PYTHON: Final = f"""\
import os,zlib
b=memoryview(bytearray({PIECE}))
def put(f,m):
  while m: m=m[os.write(f,m):]
def copy(i,o,left):
  while left>0:
    n=os.readv(i,[b[:left]])
    if not n: break
    put(o,b[:n]); left-=n
  return left
def crc(f,left):
  c=0
  while left>0:
    n=os.readv(f,[b[:left]])
    if not n: break
    c=zlib.crc32(b[:n],c); left-=n
  return c
def line():
  r=b""
  while r[-1:]!=b"\\n":
    x=os.read(0,1)
    if not x: os._exit(0)
    r+=x
  return r[:-1]
def serve():
  path=line(); way,kind,chunks,length=line().split(); begin=int(chunks)*{CHUNK}; length=int(length)
  f=os.open(path,os.O_RDONLY if way==b"send" else os.O_RDWR|os.O_NOFOLLOW)
  os.lseek(f,begin,0)
  if copy(f,1,length) if way==b"send" else copy(0,f,length): os._exit(1)
  end=begin+length
  os.lseek(f,0,0)
  if kind==b"{NONE}": put(1,b"0\\n")
  else:
    for at in range(0,end,{SEGMENT}): put(1,b"%d\\n"%crc(f,min({SEGMENT},end-at)))
  os.close(f)
put(1,b"ready\\n")
try:
  while 1: serve()
except OSError as e: put(2,b"{FAILED}%s\\n"%e.strerror.encode()); os._exit(1)
"""

LINE: Final = f"""\
if [ "$(printf {CHECKED} | cksum -a {CRC32}b 2>/dev/null)" = "{CHECK_VALUE} {len(CHECKED)}" ] \
  && dd iflag=count_bytes,nofollow count=0 </dev/null 2>/dev/null
then {_BY_TOOLS}
else exec python3 -IS -c '{_BY_PYTHON}'
fi
"""
"""For sh."""
