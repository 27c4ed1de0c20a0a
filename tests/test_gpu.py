"""The same laws on a CUDA device; skipped where there is none."""

import numpy as np
import pytest
import tiny
import torch
from scene import FREQUENCY, phantom
from tiny import EVERYTHING

from dotlib import arms, config, losses, optim, trainer
from dotlib.data import augment, lifts, phantoms, recording
from dotlib.data.bodies import Bodies
from dotlib.data.surface import Surface
from dotlib.physics import diffusion, jacobian

pytestmark = pytest.mark.gpu
RUN = config.replace(arms.arm("stage1-onecycle", "smoke"), {"training.epochs": 4})


def changed(**training):
    return config.replace(RUN, {f"training.{name}": value for name, value in training.items()})


FREE = {"optim.name": "schedule-free", "optim.schedule": "constant"}
KINDS = {
    "adam": config.replace(arms.arm("stage1-adam", "smoke"), {"training.epochs": 4}),
    "one cycle": RUN,
    "schedule-free": config.replace(RUN, FREE),
    "muon": config.replace(RUN, {"optim.name": "muon"}),
    "ema": changed(ema=0.9),
    "micro": changed(micro=4),
    "checkpointing": changed(checkpointing=True),
    "fp16": changed(precision="fp16"),
    "everything": config.replace(RUN, EVERYTHING),
}


def test_rasterised_volume_and_labels_do_not_depend_on_the_device():
    tables = phantoms.sample("default", 4, 0)
    there = phantoms.rasterise(tables, 64, "cuda").cpu()
    torch.testing.assert_close(there, phantoms.rasterise(tables, 64), atol=2e-4, rtol=0)
    assert (phantoms.labels(tables, 64, "cuda").cpu() != phantoms.labels(tables, 64)).float().mean() < 1e-4


@pytest.mark.parametrize("sharp", [True, False])
def test_deformed_volumes_do_not_depend_on_the_device(sharp):
    tables = phantoms.sample("default", 4, 0)
    deformation = augment.sample(config.Augmentation(noise=0), 4, (0, 0))
    found = [
        augment.apply(deformation, phantoms.rasterise(tables, 32, on), Bodies.of(tables, on) if sharp else None)[0]
        for on in ("cpu", "cuda")
    ]
    torch.testing.assert_close(found[1].cpu(), found[0], atol=2e-4, rtol=0)


@pytest.mark.parametrize("kind", ["linear", "gauss-newton", "closed-form"])
def test_lifts_on_cuda_are_those_of_the_cpu(kind, recorded):
    labels = np.array([0] * 6 + [-1] * (tiny.RECORDED.phantoms - 6))
    work = lifts.Lifts(tiny.RECORDED, config.Lift(kind=kind, count=20, draws=2), recorded, labels)
    here, there = (work.make(0, 6, device)["lift"].astype(np.float32) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(there, here, atol=2e-3 * np.abs(here).max())


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
    fp32 = changed(precision="fp32")
    here = trainer.fit(fp32, tmp_path / "cpu", "cpu").steps["loss"]
    np.testing.assert_allclose(trainer.fit(fp32, tmp_path / "cuda", "cuda").steps["loss"], here, rtol=0.05)


@pytest.mark.parametrize("name", KINDS)
def test_interrupted_training_continues_on_cuda(tmp_path, name):
    c = KINDS[name]
    whole = trainer.fit(c, tmp_path / "whole", "cuda")

    def stop(row):
        if row["epoch"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.fit(c, tmp_path / "parts", "cuda", report=stop, save_every=0)
    parts = trainer.fit(c, tmp_path / "parts", "cuda")
    assert len(parts.steps) == len(whole.steps)
    np.testing.assert_allclose(parts.steps["loss"], whole.steps["loss"], rtol=0.02)


WATCHED = [(name, how) for name in KINDS if name != "fp16" for how in ("off", "default", "graphs")]


@pytest.mark.parametrize(("name", "compiled"), [(n, how) for n, how in WATCHED if n != "checkpointing" or how == "off"])
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, name, compiled):
    """From the first setting of an epoch to its flush, whatever makes the host wait raises; fp16's scaler has to."""
    began, steps = {"apply": optim.apply, "update_ratio": optim.update_ratio}, []

    def apply(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        steps.append(torch.cuda.get_sync_debug_mode())
        began["apply"](*arguments)

    def update_ratio(*arguments):
        torch.cuda.set_sync_debug_mode("default")
        return began["update_ratio"](*arguments)

    monkeypatch.setattr(optim, "apply", apply)
    monkeypatch.setattr(optim, "update_ratio", update_ratio)
    try:
        history = trainer.fit(config.replace(KINDS[name], {"training.compile": compiled}), tmp_path, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == [2] * 8  # two steps an epoch, each of them watched
    assert history.info["compile"] == ("default" if (name, compiled) == ("micro", "graphs") else compiled)


def test_epochs_say_how_busy_the_device_was_or_why_not(tmp_path, capsys):
    epochs, said = trainer.fit(RUN, tmp_path, "cuda").epochs, capsys.readouterr().err
    unknown = "dotlib: the device is not monitored (" in said
    assert (epochs[["gpu_mb", "gpu_busy"]].isna() == unknown).all(axis=None)
    assert unknown or ((epochs.gpu_mb > 0).all() and epochs.gpu_busy.between(0, 1).all())


def test_waiting_for_the_device_would_be_seen():
    """Else the test above says nothing."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchroniz"):
            torch.ones(1, device="cuda").item()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_step_that_is_not_finite_is_skipped_on_the_device(tmp_path, monkeypatch, bad):
    """The last of an epoch: the weights at the flush are those before it."""
    seen, plain, count, step = [], losses.LOSSES["rmse"], [], optim.optimiser

    def spoilt(pred, truth):
        count.append(pred.requires_grad)
        return plain(pred, truth) * (bad if sum(count) == 3 else 1)  # the first is the trial's

    def optimiser(model, *arguments):
        seen.append(model)
        return step(model, *arguments)

    def keep(opt, scaler, finite, plain=optim.step):
        seen.append([p.detach().clone() for p in seen[0].parameters()])
        plain(opt, scaler, finite)

    monkeypatch.setitem(losses.LOSSES, "rmse", spoilt)
    monkeypatch.setattr(optim, "optimiser", optimiser)
    monkeypatch.setattr(optim, "step", keep)
    with pytest.raises(trainer.DivergedError, match=r"epoch 0, step 1 \(1 of the run\): "):
        trainer.fit(changed(compile="off"), tmp_path, "cuda")
    assert len(seen) == 3  # the network, and its weights before either step
    assert all(torch.equal(p, q) for p, q in zip(seen[0].parameters(), seen[2], strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(seen[0].parameters(), seen[1], strict=True))


@pytest.mark.parametrize("mode", ["default", "graphs"])
def test_compiled_training_follows_the_plain_one(tmp_path, mode):
    """Also where a batch goes through in two micro-batches."""
    for micro in (None, 4):
        plain, compiled = (
            trainer.fit(changed(precision="fp32", compile=how, micro=micro), tmp_path / f"{how}-{micro}", "cuda")
            for how in ("off", mode)
        )
        expected = "default" if micro else mode  # graphs and accumulation exclude each other
        assert (plain.info["compile"], compiled.info["compile"]) == ("off", expected)
        np.testing.assert_allclose(compiled.steps["loss"], plain.steps["loss"], rtol=0.05)


def test_training_is_compiled_by_default(tmp_path):
    assert trainer.fit(changed(epochs=1), tmp_path, "cuda").info["compile"] == "default"


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precisions_agree(tmp_path, precision):
    exact, found = (
        trainer.fit(changed(precision=name, epochs=8), tmp_path / name, "cuda") for name in ("fp32", precision)
    )
    assert found.info["precision"] == {"bf16": "bfloat16", "fp16": "float16"}[precision]
    np.testing.assert_allclose(found.steps["loss"], exact.steps["loss"], rtol=0.1)
    np.testing.assert_allclose(
        found.epochs["validation_loss"].iloc[-1], exact.epochs["validation_loss"].iloc[-1], rtol=0.1
    )


def test_automatic_micro_batch_keeps_to_a_small_budget(tmp_path):
    """A megabyte holds no sample: the smallest micro-batch is taken, and the run is that of the number."""
    automatic = trainer.fit(changed(micro="auto", memory=1e-3, precision="fp32"), tmp_path / "auto", "cuda")
    chosen = trainer.fit(changed(micro=2, precision="fp32"), tmp_path / "chosen", "cuda")
    assert automatic.info["micro"] == chosen.info["micro"] == 2
    np.testing.assert_allclose(automatic.steps["loss"], chosen.steps["loss"], rtol=0.02)


def test_automatic_micro_batch_backs_off_where_memory_ends(tmp_path, capsys):
    """With a budget that the device does not have: 64^3, and a limit of this process's share of the device."""
    large = {"data.grid": 64, "data.measurements": None, "model.width": 16, "training.epochs": 1}
    c = config.replace(RUN, large | {"training.micro": "auto", "training.memory": 1e4, "training.compile": "off"})
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 0.9e9) / total))
    try:
        history = trainer.fit(c, tmp_path, "cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    said = capsys.readouterr().err
    assert history.info["micro"] < 8 and f"out of memory with 8 samples at once, {history.info['micro']} are" in said
