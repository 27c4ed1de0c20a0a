"""What every pool of worker processes needs."""

import os
import threading
from multiprocessing import parent_process


def cpu_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_driver() -> None:
    """This worker ends with the process that started it, even a killed one: else it would go on holding locks."""
    threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True).start()
