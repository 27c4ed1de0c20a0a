"""A network that takes W&B's connections and never answers."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from dotlib import tracking

from . import compare
from .disk import ONE
from .kills import Undisturbed, fresh
from .score import Row

SLACK = 10.0  # seconds by which two calls of a command may differ


@contextmanager
def silent() -> Iterator[tuple[int, list]]:
    """A server on this machine that accepts and says nothing: its port and the connections so far."""
    held: list = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    held.append(server.accept()[0])
                except OSError:
                    return

        Thread(target=accept, daemon=True).start()
        yield server.getsockname()[1], held
    for connection in held:
        connection.close()


def run(folder: Path, known: Undisturbed) -> Row:
    """The run ends with the same numbers, at most tracking's patience later."""
    row = Row("network: W&B hangs", "online, by a server that never answers")
    expected, _, seconds = known.of(ONE)
    project = fresh(folder / "hanging")
    with silent() as (port, held):
        online = {"WANDB_MODE": "online", "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_API_KEY": "0" * 40}
        command = project.start(*ONE, HOME=str(folder), **online)
        ended = command.end()
        problems = [] if held else ["nobody asked the server"]
    late = ended.seconds - seconds
    row.done += f"; {late:.1f} s later"
    if ended.code or ended.traceback or len(ended.lines) > 1:
        problems.append(f"ended with {ended.code}: {ended.lines}")
    if late > tracking.PATIENCE + SLACK:
        problems.append(f"{late:.1f} s late; {tracking.PATIENCE:.0f} are granted")
    problems += [f"{len(left)} processes outlived it"] if (left := command.orphans()) else []
    different = compare.differences(compare.left(project.folder), expected)
    problems += [f"other than undisturbed: {name}" for name in different[:3]]
    row.attempt(problems)
    return row
