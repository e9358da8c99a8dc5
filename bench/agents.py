"""Processes that make the load; each reads orders as lines and answers each with a line of JSON."""

import json
import os
import select
import subprocess
from pathlib import Path
from typing import Any, Self

__all__ = ["Agent", "AgentError", "cpu_seconds", "once"]

Answer = dict[str, Any]


class AgentError(Exception):
    """An agent could not carry out an order."""


class Agent:
    """One process of `vsock-load`."""

    def __init__(self, load: Path, role: str, *arguments: str, timeout: float = 30.0) -> None:
        self.name = " ".join([role, *arguments])[:80]
        self._timeout = timeout
        self._process = subprocess.Popen(
            [load, role, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.pid = self._process.pid
        self._buffer = b""
        self.hello = self.answer()

    def ask(self, *words: object, timeout: float | None = None) -> Answer:
        """Sends an order and waits for its answer."""
        self.tell(*words)
        return self.answer(timeout)

    def tell(self, *words: object) -> None:
        """Sends an order; a call of `answer` must follow."""
        assert self._process.stdin
        try:
            self._process.stdin.write(" ".join(map(str, words)).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise AgentError(f"{self.name}: ended") from error

    def answer(self, timeout: float | None = None) -> Answer:
        """Waits for the answer to the last order."""
        wait = self._timeout if timeout is None else timeout
        assert self._process.stdout
        out = self._process.stdout.fileno()
        while b"\n" not in self._buffer:
            if not select.select([out], [], [], wait)[0]:
                raise AgentError(f"{self.name}: no answer in {wait:g} s")
            piece = os.read(out, 1 << 16)
            if not piece:
                raise AgentError(f"{self.name}: ended")
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise AgentError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def once(load: Path, *words: object) -> Answer:
    """Runs a role that measures one thing and ends."""
    command = [str(load), *map(str, words)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, timeout=60)
    answer: Answer = json.loads(done.stdout)
    return answer


def cpu_seconds(pid: int) -> float:
    """Processor time that a process's threads have used, in nanoseconds if the kernel reports them."""
    total = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            total += int((task / "schedstat").read_text().split()[0])
        except OSError:
            continue  # a thread that has just ended
    return total / 1e9
