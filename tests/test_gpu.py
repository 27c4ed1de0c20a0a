"""The same laws on a CUDA device; skipped where there is none."""

import numpy as np
import pytest
import torch
from scene import FREQUENCY, phantom

from dotlib import config, trainer
from dotlib.data import phantoms, recording
from dotlib.data.surface import Surface
from dotlib.physics import diffusion, jacobian

pytestmark = pytest.mark.gpu
RUN = config.replace(config.arm("stage1-onecycle", "smoke"), {"training.epochs": 4})


def test_rasterised_volume_and_labels_do_not_depend_on_the_device():
    tables = phantoms.sample("default", 4, 0)
    there = phantoms.rasterise(tables, 64, "cuda").cpu()
    torch.testing.assert_close(there, phantoms.rasterise(tables, 64), atol=2e-4, rtol=0)
    assert (phantoms.labels(tables, 64, "cuda").cpu() != phantoms.labels(tables, 64)).float().mean() < 1e-4


@pytest.mark.parametrize(("precise", "tolerance"), [(False, 1e-4), (True, 1e-8)])
def test_readings_on_cuda_are_those_of_the_cpu(precise, tolerance):
    scenes = [phantom(32, i) for i in range(3)]
    probes = [np.stack([getattr(seen, name) for _, seen, _ in scenes]) for name in ("sources", "detectors", "pairs")]
    here, there = (
        diffusion.readings([medium for medium, *_ in scenes], *probes, FREQUENCY, precise=precise, device=device)
        for device in ("cpu", "cuda")
    )
    np.testing.assert_allclose(there, here, rtol=tolerance)


@pytest.mark.parametrize("grid", [32, 64])
def test_recordings_on_cuda_are_those_of_the_cpu(grid):
    data = config.Data(phantoms=2, grid=grid, measurements=config.Measurements())
    here, there = (recording.simulate(data, 0, 2, device) for device in ("cpu", "cuda"))
    for name in ("log_amplitude", "phase", "sigma"):
        np.testing.assert_allclose(there[name], here[name], rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(there["pairs"], here["pairs"])


def test_jacobian_on_cuda_is_that_of_the_cpu():
    seen, rows = phantom(32)[1:]
    found = []
    for device in ("cpu", "cuda"):
        mua, musp = phantoms.medium(rows, 32, device)
        system = diffusion.assemble(diffusion.Medium(mua, musp, Surface(rows[0]), 2.0), FREQUENCY, device=device)
        points = (torch.as_tensor(v, dtype=torch.float64, device=device) for v in (seen.sources, seen.detectors))
        light = jacobian.fields(system, *points, precise=True)
        found.append(jacobian.jacobian(system, light, seen.pairs[::50], 8)[1].cpu())
    assert (found[1] - found[0]).abs().max() < 1e-8 * found[0].abs().max()


def test_training_on_cuda_follows_the_cpu(tmp_path):
    fp32 = config.replace(RUN, {"training.precision": "fp32"})
    here = trainer.fit(fp32, tmp_path / "cpu", "cpu").steps["loss"]
    np.testing.assert_allclose(trainer.fit(fp32, tmp_path / "cuda", "cuda").steps["loss"], here, rtol=0.05)


def test_interrupted_training_continues_on_cuda(tmp_path):
    whole = trainer.fit(RUN, tmp_path / "whole", "cuda")

    def stop(row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(RUN, tmp_path / "parts", "cuda", report=stop)
    parts = trainer.fit(RUN, tmp_path / "parts", "cuda")
    np.testing.assert_allclose(parts.steps["loss"], whole.steps["loss"], rtol=0.02)
