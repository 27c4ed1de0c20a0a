"""Files from elsewhere: read first by a process of their own, with limits, which HDF5 may crash, hang or exhaust.

That process is started when the first of them is asked for, and forks itself for each; it can run no code of a file,
but it is no sandbox: against a flaw of HDF5 that executes code it does not help.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import ledger
from .inspector import received, sent

MEMORY = 2**31  # bytes that the process may take
SECONDS, RATE = 60.0, 10e6  # wall clock, and bytes a second of the file beyond
GRACE = 10.0  # seconds for the process to start, and to say that one has ended
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class ForeignError(ValueError):
    """A file from elsewhere that could not be examined, as one line that names it."""


@contextlib.contextmanager
def known(path: Path, examine: Callable[..., Any]) -> Iterator[str]:
    """Open a file that this installation wrote, or that passes `examine` in the other process: a name to open it by.

    The name is that of the open file, whatever lies at `path` by then. A file is ours by its place (`ledger.place`),
    or else by its SHA-256, which is looked up; examined once, it is known too. Raises OSError, and ForeignError for
    what `examined` raises it for, and where the file was replaced or written meanwhile.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        before = ledger.place(file.fileno())
        if not ledger.knows(before):
            content = hashlib.file_digest(file, "sha256").hexdigest()
            if fresh := not ledger.knows(content):
                examined(file.fileno(), path, examine)
            if ledger.place(file.fileno()) != before:
                raise ForeignError(f"{path}: changed while it was read")
            ledger.remember(*[content] * fresh, *[before] * ledger.settled(file.fileno()))
        yield f"/dev/fd/{file.fileno()}"


def examined(file: int, path: Path, examine: Callable[..., Any], **options: Any) -> Any:
    """What `examine(name, path, **options)` returns in the other process, as JSON holds it; `name` opens the file.

    `examine` is a function of a module, the errors by which it refuses a file are ValueErrors. Raises ForeignError with
    their text, or with one line that names the `path` where the process crashed, took too long or too much memory.
    """
    seconds = SECONDS + os.fstat(file).st_size / RATE
    asked = {"module": examine.__module__, "function": examine.__qualname__, "path": str(path), "options": options}
    limits = {"seconds": seconds, "memory": MEMORY}
    found = _INSPECTOR.ask(asked | limits, file)
    if "answer" in found:
        return found["answer"]
    if "refused" in found:
        raise ForeignError(found["refused"])
    raise ForeignError(f"{path}: {_ended(found['signal'], found['status'], seconds)}; damaged, or made to do harm")


def _ended(by: int, status: int, seconds: float) -> str:
    if by in (signal.SIGALRM, signal.SIGXCPU):
        return f"reading it took more than {seconds:.0f} s"
    if by:
        return f"reading it crashed the HDF5 library ({signal.Signals(by).name})"
    return f"reading it took more than {MEMORY / 2**30:g} GB" if status == 2 else "reading it failed"


class _Inspector:
    """The other process of this one, started when it is needed; forked processes and threads may ask too."""

    def __init__(self):
        self.lock, self.owner = threading.Lock(), 0
        self.line: socket.socket | None = None
        self.process: subprocess.Popen | None = None

    def ask(self, request: dict[str, Any], file: int) -> dict[str, Any]:
        with self.lock:
            for _ in range(2):  # one that was ended, as by a lack of memory, is started once more
                if self.owner != os.getpid():
                    self._start()
                self.line.settimeout(request["seconds"] + GRACE)
                try:
                    sent(self.line, json.dumps(request).encode(), file)
                    answer = received(self.line)[0]
                except OSError:
                    answer = b""
                except BaseException:  # an interruption: the answer would come to the next request
                    self.close()
                    raise
                if answer:
                    return json.loads(answer)
                self.close()
        return {"signal": 0, "status": 1}

    def _start(self) -> None:
        self.line, theirs = socket.socketpair()
        with theirs:
            one = dict.fromkeys(THREADS, "1")
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", f"{__package__}.inspector", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=os.environ | one | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )  # fmt: skip
        self.owner = os.getpid()
        atexit.register(self.close)

    def close(self) -> None:
        """End it; a forked process leaves that of its parent alone."""
        if self.owner == os.getpid():
            self.owner = 0
            self.line.close()
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            atexit.unregister(self.close)


_INSPECTOR = _Inspector()
