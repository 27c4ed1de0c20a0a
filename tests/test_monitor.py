"""The monitor, against a made-up NVML and memory that the test takes itself."""

import math
import os
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import psutil
import pytest
import torch

from dotlib.monitor import MB, Monitor

NEVER = 3600.0  # seconds: only `row` samples


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """NVML with two devices; a reading of the second is the next of `script`: (busy %, {process: MB}) or an error."""

    NVMLError = NVMLError

    def __init__(self, script):
        super().__init__("pynvml")
        self.script, self.now, self.open = iter(script), None, 0

    def nvmlInit(self):
        self.open += 1

    def nvmlShutdown(self):
        self.open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid):
        return {"GPU-first": 0, "GPU-second": 1}[uuid]

    def nvmlDeviceGetUtilizationRates(self, handle):
        assert handle == 1
        self.now = next(self.script)
        if isinstance(self.now, NVMLError):
            raise self.now
        return SimpleNamespace(gpu=self.now[0])

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        assert handle == 1
        return [SimpleNamespace(pid=pid, usedGpuMemory=used * MB) for pid, used in self.now[1].items()]


@pytest.fixture
def nvml(monkeypatch):
    """Installs a made-up NVML, and a current CUDA device: the first of CUDA's, the second of NVML's."""

    def install(*script):
        fake = FakeNvml(script)
        monkeypatch.setitem(sys.modules, "pynvml", fake)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        properties = {0: SimpleNamespace(uuid="second")}
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
        monkeypatch.setattr(torch.cuda, "memory_reserved", {0: 77 * MB}.__getitem__)
        return fake

    return install


def sampled(monitor, times):
    for _ in range(times):
        monitor._sample()
    return monitor.row()


def test_monitor_averages_busy_time_and_keeps_peaks(nvml):
    me, other = os.getpid(), os.getpid() + 1
    nvml((0, {}), (10, {me: 5, other: 900}), (60, {me: 30}), (20, {me: 7}), (100, {me: 3}), (50, {other: 1, me: 4}))
    with Monitor("cuda", NEVER) as monitor:
        first, second = sampled(monitor, 2), sampled(monitor, 1)
    assert (first["gpu_busy"], first["gpu_mb"]) == (pytest.approx(0.3), 30)
    assert (second["gpu_busy"], second["gpu_mb"]) == (pytest.approx(0.75), 4), "rows share no sample"


def test_monitor_takes_torch_where_nvml_does_not_see_the_process(nvml):
    nvml((0, {}), (10, {os.getpid() + 1: 900}))
    with Monitor("cuda", NEVER) as monitor:
        assert monitor.row()["gpu_mb"] == 77


def test_monitor_loses_the_device_not_the_run(nvml, capfd):
    nvml((0, {}), NVMLError("GPU is lost"), (40, {os.getpid(): 8}))
    with Monitor("cuda", NEVER) as monitor:
        lost, found = monitor.row(), monitor.row()
    assert math.isnan(lost["gpu_mb"]) and math.isnan(lost["gpu_busy"])
    assert lost["host_mb"] > 0
    assert (found["gpu_mb"], found["gpu_busy"]) == (8, pytest.approx(0.4))
    assert capfd.readouterr() == ("", "")


def test_monitor_closes_nvml(nvml):
    fake = nvml((0, {}), (0, {}))
    with Monitor("cuda", NEVER) as monitor:
        monitor.row()
        assert fake.open == 1
    assert fake.open == 0


@pytest.mark.parametrize("reason", ["no permission", "missing"])
def test_monitor_without_nvml_is_one_line_on_cuda(nvml, monkeypatch, capfd, reason):
    nvml(NVMLError("no permission"))
    if reason == "missing":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    with Monitor("cuda", NEVER) as monitor:
        rows = [monitor.row(), monitor.row()]
    assert all(math.isnan(row["gpu_mb"]) and math.isnan(row["gpu_busy"]) and row["host_mb"] > 0 for row in rows)
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert reason in err


def test_monitor_on_a_cpu_asks_no_nvml(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with Monitor("cpu", NEVER) as monitor:
        row = monitor.row()
    assert list(row) == ["host_mb", "gpu_mb", "gpu_busy"]
    assert math.isnan(row["gpu_mb"]) and math.isnan(row["gpu_busy"])
    assert capfd.readouterr() == ("", "")


def test_monitor_sees_memory_that_was_given_back():
    """200 MB held for a second are in that row and not in the next one."""
    with Monitor("cpu", 0.01) as monitor:
        before = monitor.row()["host_mb"]
        held = np.ones(200 * MB, np.uint8)
        time.sleep(1)
        del held
        peak, after = monitor.row()["host_mb"], monitor.row()["host_mb"]
    assert peak - before == pytest.approx(200, abs=20)
    assert peak - after == pytest.approx(200, abs=20)


def test_monitor_reads_resident_memory_of_this_process():
    with Monitor("cpu", NEVER) as monitor:
        assert monitor.row()["host_mb"] == pytest.approx(psutil.Process().memory_info().rss / 2**20, rel=0.01)


def test_monitor_ends_its_thread_with_the_context():
    before = set(threading.enumerate())
    with pytest.raises(KeyError), Monitor("cpu"):
        assert [thread.daemon for thread in set(threading.enumerate()) - before] == [True]
        start = time.monotonic()
        raise KeyError
    assert set(threading.enumerate()) == before
    assert time.monotonic() - start < 0.4, "it does not wait for the interval to pass"
