"""The process that reads files from elsewhere, `python -m dotlib.data.inspector SOCKET`: a fork for each, with limits.

It imports what reads them once, for all forks. A request and its answer are JSON after eight bytes of length; the
file's descriptor comes with the request.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

LONGEST = 2**28  # bytes of a message
LINE = 2000  # characters of a refusal, none of which can act on a terminal
TOO_MUCH = 2  # exit status of a fork that lacks memory


def sent(line: socket.socket, message: bytes, file: int | None = None) -> None:
    """Send a message, and an open file with it."""
    head = len(message).to_bytes(8, "big")
    socket.send_fds(line, [head], [] if file is None else [file])
    line.sendall(message)


def received(line: socket.socket) -> tuple[bytes, list[int]]:
    """The next message and what came with it; empty where the other side has ended, or sends more than LONGEST."""
    head, files, *_ = socket.recv_fds(line, 8, 1)
    size = int.from_bytes(head, "big")
    if len(head) < 8 or size > LONGEST:
        return b"", files
    message = bytearray()
    while len(message) < size and (more := line.recv(min(size - len(message), 2**20))):
        message += more
    return bytes(message), files


def serve(line: socket.socket) -> None:
    """Answer requests until the other side closes."""
    while (asked := received(line))[0]:
        request, (file,) = json.loads(asked[0]), asked[1]
        module = importlib.import_module(request["module"])  # here, once for all forks
        ours, theirs = os.pipe()
        if not (fork := os.fork()):
            _examine(getattr(module, request["function"]), request, file, theirs)
        os.close(theirs)
        os.close(file)
        with open(ours, "rb") as pipe:
            answer = pipe.read(LONGEST)
        status = os.waitpid(fork, 0)[1]
        if status:
            ended = {"signal": os.WTERMSIG(status), "status": os.waitstatus_to_exitcode(status)}
            answer = json.dumps(ended).encode()
        sent(line, answer)


def _examine(examine: Callable[..., Any], request: dict[str, Any], file: int, pipe: int) -> None:
    """The fork: answer, or the line of a refusal; it never returns."""
    status = 1
    try:
        _limit(request["memory"], request["seconds"])
        try:
            answer = examine(f"/dev/fd/{file}", request["path"], **request["options"])
            found = json.dumps({"answer": answer})
        except ValueError as error:
            found = json.dumps({"refused": "".join(c if c.isprintable() else " " for c in str(error))[:LINE]})
        if len(message := found.encode()) > LONGEST:
            raise MemoryError
        with open(pipe, "wb") as out:
            out.write(message)
        status = 0
    except MemoryError:
        status = TOO_MUCH
    finally:
        os._exit(status)


def _limit(memory: int, seconds: float) -> None:
    """No more memory than `memory` beyond what is held, no more time, no file written, no core left."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    whole = int(seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (whole, whole + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    with contextlib.suppress(OSError, ValueError):  # where the system knows no such limit, time alone is limited
        with open("/proc/self/statm") as held:
            memory += int(held.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as end:
        serve(end)
