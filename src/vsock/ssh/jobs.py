"""Jobs: commands in a guest that go on when the session that started them has ended.

The guest's own `sh` starts a job, and keeps what is known of it in a directory of the user there:
`$XDG_STATE_HOME/vsock/jobs/ID`, else below `~/.local/state`. It has the files

| file | content |
| --- | --- |
| `line` | the command, as a line for `sh` |
| `environment` | variables and directory in which it runs |
| `stdout`, `stderr` | what it wrote |
| `boot`, `pid`, `started` | the boot (boot_id), the process, the time (seconds since 1970) |
| `code`, `ended` | its exit code, when it has ended, and the time |

Where there is systemd and the user is root, the job is the transient unit `vsock-job-ID` (systemd-run(1)); else it is a
session of its own (setsid(1)). Without pam_systemd(8) the processes of a login belong to the unit of its sshd, which ends
them with the connection: then a user other than root gets no job.

This module has the scripts, in POSIX shell as busybox has it, and reads what they print. The guest may lie.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Final

from vsock._system.text import printable
from vsock.errors import UsageError

__all__ = [
    "MOST_LISTED",
    "Followed",
    "Job",
    "checked_id",
    "code",
    "follow",
    "follow_on",
    "kill",
    "listed",
    "listing",
    "printed_code",
    "remove",
    "start",
    "wait",
]

MOST_LISTED: Final = 1 << 20
"""Bytes that a guest may say when it is asked for its jobs."""

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_LONGEST_COMMAND: Final = 400
"""Bytes of a command that are listed."""

_HEAD: Final = """\
jobs=${XDG_STATE_HOME:-${HOME:?is not set}/.local/state}/vsock/jobs
enter() { cd -P "$jobs/$1" 2>/dev/null || { echo "there is no job $1: see \\`vsock jobs\\`" >&2; exit 1; }; }
runs() {
    [ "$(cat boot 2>/dev/null)" = "$(cat /proc/sys/kernel/random/boot_id)" ] || return 1
    pid=$(cat pid 2>/dev/null) && [ "$(readlink "/proc/$pid/cwd")" = "$PWD" ]
}
nap() {
    read -r _ _ _ parent _ < /proc/$$/stat
    [ "$parent" = "$PPID" ] || exit 1
    sleep 0.2 2>/dev/null || sleep 1
}
"""
"""A job runs if its shell is there: that stays in the job's directory, which tells it from a later process of its number.
Who waits (`nap`) ends when the session has ended, and with it its parent."""

_START: Final = (
    _HEAD
    + """\
set -e
usual=$(umask)
umask 077
export PWD
mkdir -p "$jobs"
mkdir "$jobs/$1" || { echo "there is a job $1 already, or no place for one" >&2; exit 1; }
trap 'rm -rf "$jobs/$1"' EXIT
{ export -p; printf '%s\\n' "$3" "umask $usual"; } > "$jobs/$1/environment"
cd -P "$jobs/$1"
cat /proc/sys/kernel/random/boot_id > boot
printf '%s\\n' "$2" > line
cat > run <<'END'
cd -P "$1" || exit
date +%s > started
echo 255 > code.new
trap : TERM
echo $$ > pid
sh -c '. ./environment && cd -- "$PWD" && . "$0/line"' "$PWD" < /dev/null > stdout 2> stderr
printf '%03d\\n' $? 1<> code.new
date +%s > ended
mv code.new code
END
: > stdout
: > stderr
unit= mode=
if [ -d /run/systemd/system ]; then
    unit=$(sed -n 's,.*/\\([^/]*\\.service\\)$,\\1,p' /proc/self/cgroup)
    [ -z "$unit" ] || mode=$(systemctl show -p KillMode --value "$unit" 2>/dev/null) || mode=
fi
if [ -d /run/systemd/system ] && [ "$(id -u)" = 0 ] && command -v systemd-run > /dev/null; then
    trap - EXIT
    trap : TERM INT HUP
    systemd-run --quiet --collect --unit="vsock-job-$1.service" sh "$PWD/run" "$PWD" || { rm -rf "$PWD"; exit 1; }
else
    case "$unit:$mode" in
    :* | *:process | *:none) ;;
    *@*: | *:?*)
        echo "jobs of $(id -un) would end with the session, as part of $unit: install libpam-systemd, or use root" >&2
        exit 1
        ;;
    esac
    trap - EXIT
    trap : TERM INT HUP
    if command -v setsid > /dev/null; then set -- "$1" setsid; else set -- "$1" nohup; fi
    "$2" sh run "$PWD" < /dev/null > /dev/null 2>&1 &
fi
n=0
while [ ! -s pid ]; do
    n=$((n + 1))
    [ "$n" -ne 100 ] || { echo "job $1 has not begun yet: see \\`vsock jobs\\`" >&2; exit 1; }
    nap
done
"""
)
"""From the start on the job is not taken back: a signal finds the directory in use.

Room for the exit code is taken before the command runs: its output may fill the disk."""

_LIST: Final = (
    _HEAD
    + f"""\
value() {{ read=$(cat "$1" 2>/dev/null); printf '%s' "${{read:--}}"; }}
printf 'now %s\\n' "$(date +%s)"
cd "$jobs" 2>/dev/null || exit 0
for id in *; do
    cd -P "$jobs/$id" 2>/dev/null || continue
    if [ -e code ]; then state=ended
    elif runs; then state=running
    elif [ -e code ]; then state=ended
    else state=lost
    fi
    printf 'job %s %s %s %s %s\\n' "$id" "$state" "$(value code)" "$(value started)" "$(value ended)"
    printf ' %s\\n' "$(head -c {_LONGEST_COMMAND} line | tr '\\n' ' ')"
done
"""
)

_OPEN: Final = """\
exec 3< stdout 4< stderr
"""

_COPY: Final = """\
while :; do
    over=
    if [ -e code ] || ! runs; then over=1; fi
    cat <&3 || exit
    cat <&4 >&2 || exit
    [ -z "$over" ] || break
    nap
done
"""

_FOLLOW: Final = _HEAD + 'enter "$1"\n' + _OPEN + _COPY


class Followed(IntEnum):
    """How the command `follow_on` ends, beside 0: the job has ended, and the command `code` prints its exit code."""

    GONE = 10
    """There is no such job."""
    SHORTER = 11
    """It has written less than was seen."""
    RESTARTED = 12
    """It has not said how it ended, and the guest was restarted."""
    KILLED = 13
    """It has not said how it ended, though the guest was not."""


_FOLLOW_ON: Final = (
    _HEAD
    + f"""\
restarted() {{ boot=$(cat boot 2>/dev/null) && [ "$boot" != "$(cat /proc/sys/kernel/random/boot_id)" ]; }}
skip() {{ [ "$1" -eq 0 ] || [ "$(dd bs=1 skip=$(($1 - 1)) count=1 2>/dev/null | wc -c)" -eq 1 ]; }}
cd -P "$jobs/$1" 2>/dev/null && [ -e stdout ] && [ -e stderr ] || exit {Followed.GONE}
printf '%s\\n' "$4"
printf '%s\\n' "$4" >&2
{_OPEN}\
if ! {{ skip "$2" <&3 && skip "$3" <&4; }}; then
    [ ! -e code ] && restarted && exit {Followed.RESTARTED}
    exit {Followed.SHORTER}
fi
{_COPY}\
[ ! -e code ] || exit 0
restarted && exit {Followed.RESTARTED}
[ -e boot ] || exit {Followed.GONE}
exit {Followed.KILLED}
"""
)
"""The last byte that was seen is read again: that seeks to the one behind it, and shows whether the file still has it."""

_WAIT: Final = (
    _HEAD
    + """\
enter "$1"
while [ ! -e code ] && runs; do nap; done
"""
)

_CODE: Final = _HEAD + 'enter "$1"\ncat code\n'

_RESULT: Final = """\
[ -e code ] && exit "$(cat code)"
echo "job $1 is lost: it, or the guest, was ended before it could say how" >&2
exit 1
"""

_KILL: Final = (
    _HEAD
    + """\
enter "$1"
runs || { echo "job $1 does not run" >&2; exit 1; }
end() { kill -s "$1" -- "-$pid" 2>/dev/null || kill -s "$1" "$pid"; }
end TERM
n=0
while { [ ! -e code ] && runs; } || kill -s 0 -- "-$pid" 2>/dev/null; do
    nap
    n=$((n + 1))
    if [ "$n" -eq 25 ]; then
        [ -e code ] || { date +%s > ended; echo 137 > code.new; mv code.new code; }
        end KILL
    fi
done
"""
)

_REMOVE: Final = (
    _HEAD
    + """\
enter "$1"
if [ ! -e code ] && runs; then echo "job $1 still runs: end it with --kill" >&2; exit 1; fi
cd "$jobs" && rm -rf "./$1"
"""
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job, as its guest says.

    Attributes:
        id: its name.
        state: `running`, `ended`, or `lost`: the guest was restarted, or the job's shell was killed.
        exit_code: when it has ended; 128 + N if signal N ended it.
        started: seconds since 1970, by the guest's clock.
        ended: the same; None while it runs.
        seconds: how long it ran, or has run.
        command: the beginning of its line, for the shell.
    """

    id: str
    state: str
    exit_code: int | None
    started: int | None
    ended: int | None
    seconds: int | None
    command: str


def checked_id(text: str) -> str:
    """The id itself.

    Raises:
        UsageError: it can be none.
    """
    if not _ID.fullmatch(text):
        raise UsageError(
            f"{text!r} is no name of a job: letters, digits and _ . - (64 of them), the first one no sign"
        )
    return text


def start(
    job: str, command: Sequence[str], env: Mapping[str, str] | None = None
) -> tuple[str, ...]:
    """The command that starts a job, in the directory where it runs itself, with these variables beside its own."""
    exports = "\n".join(
        f"export {name}={shlex.quote(value)}" for name, value in (env or {}).items()
    )
    return _script(_START, job, f"exec {shlex.join(command)}", exports)


def listing() -> tuple[str, ...]:
    """The command that lists jobs, for `listed`."""
    return _script(_LIST)


def follow(job: str) -> tuple[str, ...]:
    """The command that writes what a job has written, and writes, and ends as it does."""
    return _script(_FOLLOW + _RESULT, job)


def follow_on(job: str, stdout: int, stderr: int, mark: str) -> tuple[str, ...]:
    """The command that does so behind so many bytes of each stream, and ends with 0 or as `Followed` says.

    On each stream the mark is a line before the job's output. What stands before it, the user's shell said.
    """
    return _script(_FOLLOW_ON, job, str(stdout), str(stderr), mark)


def code(job: str) -> tuple[str, ...]:
    """The command that prints the exit code of a job that has ended, for `printed_code`."""
    return _script(_CODE, job)


def wait(job: str) -> tuple[str, ...]:
    """The command that waits for the end of a job and ends as it does."""
    return _script(_WAIT + _RESULT, job)


def kill(job: str) -> tuple[str, ...]:
    """The command that ends a job: SIGTERM for its processes, SIGKILL 5 s later."""
    return _script(_KILL, job)


def remove(job: str) -> tuple[str, ...]:
    """The command that removes what is kept of a job that has ended."""
    return _script(_REMOVE, job)


def _script(text: str, *arguments: str) -> tuple[str, ...]:
    return ("sh", "-c", text, "vsock-job", *arguments)


def printed_code(said: str) -> int | None:
    """Read what the command `code` wrote; None if that is no exit code, as when the job was removed."""
    said = said.strip().rpartition("\n")[2]  # behind what the user's shell said
    return int(said) if re.fullmatch(r"[0-9]{1,3}", said) and int(said) < 256 else None


_NOW: Final = re.compile(r"now (\d{1,12})")
_LINE: Final = re.compile(
    r"job (?P<id>\S{1,64}) (?P<state>running|ended|lost) (?P<code>\d{1,3}|-) (?P<started>\d{1,12}|-) (?P<ended>\d{1,12}|-)"
)


def listed(said: str) -> list[Job]:
    """Read what the command `listing` wrote, oldest first; lines that it cannot have written are left out."""
    lines = said.split("\n")
    clock = _NOW.fullmatch(lines[0])
    now = int(clock[1]) if clock else None
    found = [
        _job(match, line, now)
        for head, line in pairwise([*lines, ""])
        if (match := _LINE.fullmatch(head))
    ]
    return sorted(found, key=lambda job: job.started or 0)


def _job(head: re.Match[str], line: str, now: int | None) -> Job:
    started, ended = _number(head["started"]), _number(head["ended"])
    until = now if head["state"] == "running" else ended
    return Job(
        id=head["id"] if _ID.fullmatch(head["id"]) else "?",
        state=head["state"],
        exit_code=_number(head["code"]) if head["state"] == "ended" else None,
        started=started,
        ended=ended,
        seconds=None if started is None or until is None else max(0, until - started),
        command=printable(line.strip().removeprefix("exec "), _LONGEST_COMMAND),
    )


def _number(text: str) -> int | None:
    return None if text == "-" else int(text)
