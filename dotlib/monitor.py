"""What a run takes of its machine: memory of the host and of the device, and how busy the device is."""

from __future__ import annotations

import math
import os
import sys
import threading
from types import ModuleType

import numpy as np
import psutil
import torch

MB = 2**20


class Monitor:
    """Samples this process, and on `cuda` the current device, every `interval` seconds while the context is open.

    Where NVML cannot be asked, the device's columns are NaN and one line on standard error says why.
    """

    def __init__(self, on: str, interval: float = 0.5):
        self._on, self._interval = on, interval
        self._samples: list[tuple[float, float, float]] = []
        self._ended = threading.Event()

    def __enter__(self) -> Monitor:
        self._process = psutil.Process()
        self._device = _device() if self._on == "cuda" else None
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._device:
            self._device.close()

    def row(self) -> dict[str, float]:
        """Since the last row: the peaks of resident and of device memory (MB), the mean busy share of the device."""
        self._sample()
        samples, self._samples = self._samples, []
        host, device, busy = np.array(samples).T
        return {"host_mb": float(host.max()), "gpu_mb": float(device.max()), "gpu_busy": float(busy.mean())}

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self._sample()

    def _sample(self) -> None:
        host = self._process.memory_info().rss / MB
        sample = host, *(self._device.read() if self._device else (math.nan, math.nan))
        self._samples.append(sample)


class _Device:
    """The current CUDA device, as NVML sees it."""

    def __init__(self, nvml: ModuleType):
        self._nvml = nvml
        nvml.nvmlInit()
        # CUDA numbers the devices that this process may use, NVML all of them: the UUID is what they share
        self._index = torch.cuda.current_device()
        self._handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(self._index).uuid}")
        self._ask()

    def read(self) -> tuple[float, float]:
        """Memory in use by this process (MB), and the share of the last sampling period in which a kernel ran."""
        try:
            return self._ask()
        except self._nvml.NVMLError:  # a device that was lost
            return math.nan, math.nan

    def _ask(self) -> tuple[float, float]:
        busy = self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100
        processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        used = next((p.usedGpuMemory for p in processes if p.pid == os.getpid()), None)
        # inside a container NVML counts processes by other numbers: then what torch holds, the context apart
        return (torch.cuda.memory_reserved(self._index) if used is None else used) / MB, busy

    def close(self) -> None:
        self._nvml.nvmlShutdown()


def _device() -> _Device | None:
    try:
        import pynvml

        return _Device(pynvml)
    except ImportError:
        reason = "the package nvidia-ml-py is missing"
    except pynvml.NVMLError as error:
        reason = f"NVML: {error}"
    print(f"dotlib: the device is not monitored ({reason}); the run goes on without", file=sys.stderr)
    return None
