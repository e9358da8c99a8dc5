"""Programs built with gcc's sanitizers start under `vsock run` and report errors (A7)."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.programs import not_to_be_had

import vsock

pytestmark = pytest.mark.programs("gcc")

PORT = 5000

PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <unistd.h>

int main(int argc, char **argv) {
    struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = 5000};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
    char *text = malloc(5);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) {
        perror("connect");
        return 3;
    }
    memcpy(text, "hello", 5);
    if (write(fd, text, 5 + argc - 1) < 0) /* an argument more: one byte too many */
        perror("write");
    free(text);
    return 0;
}
"""


@pytest.fixture(scope="module", params=["address", "undefined", "thread"])
def program(request, tmp_path_factory) -> Path:
    """The program, with one of the sanitizers."""
    folder = tmp_path_factory.mktemp("sanitizers")
    (folder / "hello.c").write_text(PROGRAM)
    built = folder / f"hello-{request.param}"
    command = ["gcc", f"-fsanitize={request.param}", "-g", "-o", built, folder / "hello.c"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find" in done.stderr:
        not_to_be_had(f"gcc has no library for -fsanitize={request.param}")
    assert done.returncode == 0, done.stderr
    return Path(built)


def test_program_starts_and_sends(switch, run: Any, program):
    """Through the switch, without options of the user about link order."""
    with vsock.create_server(PORT) as listener:
        run(str(program))
        with listener.accept()[0] as connection:
            assert connection.recv(100) == b"hello"


@pytest.mark.parametrize("program", ["address"], indirect=True)
def test_error_of_the_program_is_still_found(switch, start: Any, program):
    """The user's own options are kept too: here, the program's exit code."""
    environment = {**os.environ, "ASAN_OPTIONS": "exitcode=77"}
    with vsock.create_server(PORT):
        process = start(str(program), "one", env=environment)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 77, err
    assert "heap-buffer-overflow" in err
