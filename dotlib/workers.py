"""What every worker process needs: its cores, and how it ends."""

import atexit
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import parent_process
from multiprocessing.process import BaseProcess

GRACE = 25.0  # seconds from the request to the end: Slurm grants 30
_requests: list[int] = []  # signals that asked this process to end


class Ended(RuntimeError):
    """Work that was given up because its process was asked to end; what is kept lets it continue."""


class Terminated(KeyboardInterrupt):
    """A command that was asked to end by SIGTERM."""


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_driver() -> None:
    """This worker ends with the process that started it, even a killed one: else it would go on holding locks."""
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()


def asked_to_end() -> bool:
    """Whether this process was asked to end: work in flight is kept and given up as soon as that can be."""
    return bool(_requests)


def asked_first() -> int | None:
    """The signal that asked first."""
    return _requests[0] if _requests else None


def end_when_asked(number: int = signal.SIGTERM, grace: float = GRACE, last: Callable[[], object] = bool) -> None:
    """From now on this signal asks the process to end, which it does after `grace` seconds: with `last`(), and 0."""

    def end() -> None:
        last()
        os._exit(0)

    def ask(*_) -> None:
        _requests.append(number)
        if len(_requests) == 1:
            timer = threading.Timer(grace, end)
            timer.daemon = True
            timer.start()

    signal.signal(number, ask)


def end_gently(processes: Iterable[BaseProcess], grace: float = GRACE) -> None:
    """Ask workers to end, and wait until they have, or a little longer than they may take."""
    processes, until = list(processes), time.monotonic() + grace + 2
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT and SIGTERM come through once this is over: for code that an exception may not leave anywhere."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked, wait = [], {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in wait:
        signal.signal(number, lambda number, frame: asked.append(number))
    try:
        yield
    finally:
        for number, handler in wait.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    for number in asked:
        signal.raise_signal(number)


def end_when_terminated() -> None:
    """From now on SIGTERM raises Terminated in the main thread; called elsewhere, this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        return

    def end(*_) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    signal.signal(signal.SIGTERM, end)
    atexit.register(signal.signal, signal.SIGTERM, signal.SIG_IGN)  # done, and Python takes a second to end
