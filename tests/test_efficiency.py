"""Speed, memory, counts and ceilings of training: what is counted agrees with closed forms, what is timed adds up."""

import cProfile
import functools
import itertools
import threading
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from scipy import stats as scipy_stats
from torch import nn
from torch.autograd import DeviceType

from dotlib import config, inference, journal, monitor, report, tracking, trainer
from dotlib.models import blocks
from dotlib.sections import efficiency, loss_scale, roofline, step_profile

FP32 = torch.float32
SIZE = efficiency.SIZES["smoke"]


def small(**changes):
    return tiny.tiny(training__batch=4, **changes)


def frame(**columns):
    return pd.DataFrame(columns)


# --- counting


def traffic(work):
    with roofline.Traffic() as counted:
        work()
    return sum(counted.bytes.values())


@pytest.mark.parametrize(
    ("work", "expected"),
    [
        (lambda a, b: a + b, 12),
        (lambda a, b: a.relu(), 8),
        (lambda a, b: a.add_(b), 12),  # a and b are read, a is written
        (lambda a, b: a + a, 8),  # one storage is read once
        (lambda a, b: a.copy_(b), 8),
        (lambda a, b: a.zero_(), 4),
        (lambda a, b: a.bfloat16(), 6),
        (lambda a, b: a.view(10, -1).t(), 0),
        (lambda a, b: torch.empty_like(a), 0),
        (lambda a, b: a.view(10, -1).t().reshape(-1), 8),  # a copy
    ],
)
def test_traffic_of_one_operator_is_its_inputs_and_outputs(work, expected):
    a, b = torch.ones(1000), torch.ones(1000)
    assert traffic(lambda: work(a, b)) == 1000 * expected


def test_traffic_of_an_expanded_tensor_is_what_it_stores():
    a, one = torch.ones(1000), torch.ones(1)
    assert traffic(lambda: a + one.expand(1000)) == 8000 + 4


def test_traffic_of_a_convolution_is_volumes_and_weights():
    x, w = torch.ones(2, 3, 6, 6, 6), torch.ones(5, 3, 3, 3, 3)
    assert traffic(lambda: nn.functional.conv3d(x, w)) == 4 * (x.numel() + w.numel() + 2 * 5 * 4**3)


def test_traffic_of_adamw_is_seven_numbers_a_weight():
    """Weight, two moments read and written, gradient read; and a step counter a tensor."""
    weights = [nn.Parameter(torch.ones(n)) for n in (1000, 3000)]
    opt = torch.optim.AdamW(weights, fused=True)
    for p in weights:
        p.grad = torch.ones_like(p)
    opt.step()
    assert traffic(opt.step) == pytest.approx(4 * 7 * 4000, abs=2 * 3 * 4)


def convolution_flop(model, x):
    """Forward operations of each convolution by its closed form, in the order in which they run."""
    found = []

    def note(module, inputs, output):
        taps = np.prod(module.kernel_size) * module.in_channels * module.out_channels
        voxels = inputs[0][0, 0] if isinstance(module, nn.ConvTranspose3d) else output[0, 0]
        found.append(2 * len(x) * taps * voxels.numel())

    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.register_forward_hook(note)
    model(x)
    return found


def test_step_counts_the_operations_of_its_convolutions():
    """Backward costs twice the forward pass, but that nobody asks for the gradient of the volumes."""
    c = small()
    forward = convolution_flop(inference.network(c), torch.zeros(4, 2, 16, 16, 16))
    cost = roofline.step_cost(c, FP32).set_index("class")["flop"]
    assert cost[step_profile.FORWARD] == sum(forward)
    assert cost[step_profile.BACKWARD] == 2 * sum(forward) - forward[0]
    linear = sum(m.weight.numel() for m in inference.network(c).modules() if isinstance(m, nn.Linear))
    assert cost[step_profile.LINEAR] == 3 * 2 * 4 * linear


def test_step_cost_is_linear_in_the_batch():
    a, b, c = (roofline.step_cost(small(), torch.bfloat16, n).set_index("class") for n in (4, 6, 8))
    pd.testing.assert_frame_equal(b - a, c - b)
    assert (b - a).loc["optimiser", "bytes"] == 0 < (b - a).loc[step_profile.FORWARD, "bytes"]


def test_step_moves_its_weights_ten_numbers_each_to_clip_and_update_them():
    """Norm: gradient read; clipping: read and written; AdamW: seven. The optimiser's state is there beforehand."""
    parameters = sum(p.numel() for p in inference.network(small()).parameters())
    cost = roofline.step_cost(small(), FP32).set_index("class")["bytes"]
    assert cost["optimiser"] == pytest.approx(4 * 10 * parameters, rel=0.02)


def test_step_reads_its_batch_and_the_loss_its_volumes():
    volumes = 4 * 2 * 16**3
    cost = roofline.step_cost(small(), FP32).set_index("class")["bytes"]
    # fp16 -> fp16 chosen -> fp32 -> fp32 channels-last, and the indices
    assert cost["data"] == volumes * (2 + 2 + 2 + 4 + 4 + 4) + 2 * 8 * 4
    # difference of two, its square, its mean
    assert cost["loss"] == pytest.approx(4 * volumes * (3 + 2 + 1), abs=100)


def test_counting_computes_nothing(monkeypatch):
    """The full network's step is counted in less memory than its first activation takes."""
    c = config.replace(config.profile("full").base, {"data.measurements": None, "model.width": 2})
    cost = roofline.totals(roofline.step_cost(c, torch.bfloat16, 10**6))
    assert cost["unfused"] > 1e12 and cost["fused"] < cost["unfused"]


# --- ceilings and predictions


@pytest.fixture
def a_second_each(monkeypatch):
    """A clock by which everything takes one second."""
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))


def test_ceilings_are_operations_and_bytes_over_time(a_second_each):
    found = roofline.ceilings("cpu", {"fp32": FP32}, 64).set_index("ceiling")["value"]
    assert found["fp32 products"] == 2 * 64**3 / 1e9
    assert found["copy"] == 2 * 128 * 2**20 / 1e9


def test_bound_is_bytes_over_bandwidth():
    assert roofline.bound(3e9, 1.5) == 2
    assert roofline.bound(6e9, 1.5) == roofline.bound(3e9, 0.75) == roofline.bound(3e9, 1.5, 0.5) == 4


def test_prediction_scales_as_bytes_over_bandwidth():
    step = {"unfused": 6e9, "fused": 1e9, "flop": 3e10}
    found = roofline.prediction(step, 32).set_index("PREDICTION for")
    assert (found["unfused 100 %, s"] * found["GB/s"]).values == pytest.approx(5000 / 32 * 6)
    assert (found["unfused 100 %, s"] / found["fused 100 %, s"]).values == pytest.approx(6)
    for kind in ("unfused", "fused"):
        assert (found[f"{kind} 50 %, s"] / found[f"{kind} 100 %, s"]).values == pytest.approx(2)
    assert found.loc["A100 40 GB", "arithmetic, s"] == pytest.approx(5000 / 32 * 3e10 / 312e12)
    assert (found["share needed"] * found["target, s"]).values == pytest.approx(found["unfused 100 %, s"].values)
    heavy = roofline.prediction(step | {"flop": 3e11}, 32)  # a step is no faster than its products
    assert (heavy["fused 100 %, s"] == heavy["arithmetic, s"]).all()
    half = roofline.prediction(step, 32, 2500).set_index("PREDICTION for")
    assert (found["fused 50 %, s"] / half["fused 50 %, s"]).values == pytest.approx(2)


def test_data_sheets_are_cited():
    assert {gpu.source for gpu in roofline.GPUS.values()} <= set(report.sources())


def test_predictions_say_so_wherever_they_are_told():
    words = roofline.answer(roofline.prediction({"unfused": 6e9, "fused": 1e9, "flop": 3e11}, 32), 0.5)
    assert [name in words for name in roofline.GPUS] == [True] * 3
    assert all(line.startswith(("* Measured", "* PREDICTION")) for line in words.splitlines())


def test_step_at_its_bound_reaches_the_roof():
    ceilings = frame(ceiling=["copy", "bf16 products"], value=[10.0, 100.0])
    memory, arithmetic = {"unfused": 2e9, "flop": 1e9}, {"unfused": 2e9, "flop": 1e11}
    assert roofline.reached(memory, ceilings, "bf16", 0.2) == pytest.approx(1)
    assert roofline.reached(arithmetic, ceilings, "bf16", 1.0) == pytest.approx(1)
    assert roofline.reached(arithmetic, ceilings, "bf16", 4.0) == pytest.approx(0.25)


def test_points_are_counts_over_times():
    cost = frame(**{"class": ["a", "b"], "bytes": [2e9, 6e9], "flop": [8e9, 0.0]})
    found = roofline.points(cost, frame(**{"class": ["b", "a"], "seconds": [3.0, 1.0]}), 5.0).set_index("class")
    assert found.loc["a"].tolist() == [4, 8, 2] and found.loc["b"].tolist() == [0, 0, 2]
    assert found.loc["whole step"].tolist() == pytest.approx([1, 8 / 5, 8 / 5])


# --- where the time goes


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("aten::mkldnn_convolution", step_profile.FORWARD),
        ("aten::conv_transpose3d", step_profile.FORWARD),
        ("aten::convolution_backward", step_profile.BACKWARD),
        ("autograd::engine::evaluate_function: ConvolutionBackward0", step_profile.BACKWARD),
        ("aten::addmm", step_profile.LINEAR),
        ("AddmmBackward0", step_profile.LINEAR),
        ("aten::native_batch_norm_backward", "normalisation"),
        ("aten::_fused_adamw_", "optimiser"),
        ("Optimizer.step#AdamW.step", "optimiser"),
        ("aten::relu", "element-wise"),
        ("aten::softplus_backward", "element-wise"),
        ("torch::autograd::AccumulateGrad", "element-wise"),
        ("aten::index", "data"),
        ("aten::_to_copy", "copies"),
        ("dotlib/trainer.py(81): fit", "Python"),
        ("<built-in method run_backward of torch._C._EngineBase object>", "Python"),
        ("aten::something_new", "other"),
    ],
)
def test_operator_has_its_class(operator, expected):
    assert step_profile.class_of(operator) == expected
    assert expected in step_profile.CLASSES


def event(name, seconds, parent=None, thread=1, total=None):
    own, whole = 1e6 * seconds, 1e6 * (seconds if total is None else total)
    return SimpleNamespace(
        name=name, self_cpu_time_total=own, cpu_time_total=whole, cpu_parent=parent, thread=thread,
        device_type=DeviceType.CPU,
    )  # fmt: skip


def test_work_inside_a_named_function_is_that_functions():
    validate = event("/x/dotlib/trainer.py(181): validate", 0.0)
    loss = event("/x/dotlib/losses.py(10): rmse", 0.0, validate)
    assert step_profile.place(event("aten::sub", 1.0, loss)) == "validation"
    assert step_profile.place(event("aten::sub", 1.0, event("/x/dotlib/losses.py(10): rmse", 0.0))) == "loss"
    assert step_profile.place(event("aten::sub", 1.0, event("Optimizer.step#AdamW.step", 0.0))) == "optimiser"
    assert step_profile.place(event("aten::sub", 1.0, event("/x/mydotlib/other.py(10): rmse", 0.0))) == "element-wise"


def test_profile_of_a_thread_adds_up():
    fit = event("/x/dotlib/trainer.py(81): fit", 1.0, total=5.0)
    events = [
        fit,
        event("aten::relu", 3.0, fit),
        event("aten::addmm", 1.0, fit),
        event("wait(1): wait", 50.0, thread=2),
    ]
    found = step_profile._profiled(events, 6.0, 2, False)
    assert dict(found.times.itertuples(index=False)) == {
        "element-wise": 1.5, "linear": 0.5, "Python": 0.5, "unaccounted": 0.5,
    }  # fmt: skip
    assert (found.total, found.wall, found.steps) == (2.5, 3.0, 2)
    assert found.unaccounted == pytest.approx(0.5 / 3)


def test_step_excludes_what_follows_an_epoch():
    times = frame(**{"class": ["linear", "validation", "checkpoints"], "seconds": [3.0, 1.0, 0.5]})
    assert step_profile.StepProfile(times, 4.5, 4.5, 1).step == 3


def test_profile_of_a_run_adds_up_and_sees_every_class():
    c = small(epochs=4, training__precision="fp32")
    found = step_profile.of_steps(c, "cpu")
    seconds = found.times.set_index("class")["seconds"]
    assert seconds.sum() == pytest.approx(found.wall)
    assert seconds.drop("unaccounted").sum() == pytest.approx(found.total, rel=1e-3)
    assert set(step_profile.CLASSES) - set(seconds.index) <= {"compiled"}
    assert found.steps == 2 * (tiny.TRAIN // 4)
    assert abs(found.unaccounted) < 0.2


def test_run_is_split_by_where_it_waits(monkeypatch):
    """On a clock that only moves inside each part: its time appears there, and nowhere else."""
    now, main, calls = 0.0, threading.current_thread(), Counter()

    def waits(owner, name, seconds):
        plain = getattr(owner, name)

        def waiting(*arguments, **options):
            nonlocal now
            if threading.current_thread() is main:  # the monitor samples in its own as well
                now, calls[name] = now + seconds, calls[name] + 1
            return plain(*arguments, **options)

        monkeypatch.setattr(owner, name, waiting)

    waits(trainer.optim, "apply", 1.0)
    waits(trainer.metrics, "nrmse", 10.0)
    waits(journal.checkpoint, "save", 100.0)
    waits(monitor.Monitor, "_sample", 1e3)
    waits(tracking, "_grey", 1e4 / 4)  # two volumes, two channels
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    profiler = functools.partial(cProfile.Profile, lambda: now)
    monkeypatch.setattr(step_profile.cProfile, "Profile", profiler)
    alive = SimpleNamespace(poll=lambda: None, stdin=SimpleNamespace(write=len, close=lambda: None), wait=lambda _: 0)
    monkeypatch.setattr(tracking, "start", lambda *_, **__: tracking.Tracker(alive, None, {}))
    monkeypatch.setattr(tracking, "_feed", lambda *_: None)
    history, run = step_profile.of_run(small(), 2, "offline")
    spent = run.set_index("part")["seconds"]
    assert spent[["steps", "validation"]].tolist() == pytest.approx([len(history.steps), 20])
    assert spent[list(step_profile.OVERHEAD)].tolist() == pytest.approx([100 * calls["save"], 2e4, 2e3])
    assert calls["save"] >= 2  # the last weights and the best
    assert run["share"].sum() == pytest.approx(1) and (run["seconds"] >= 0).all()


def test_overhead_is_the_share_of_epochs_beside_steps_and_validation():
    spent = {"steps": 6.0, "validation": 2.0, "checkpoints": 1.0, "tracking": 0.5, "monitoring": 0.5, "start-up": 99.0}
    run = step_profile.shares(spent)
    assert step_profile.overhead(run) == pytest.approx(0.2)
    assert run.set_index("part")["share"].isna().tolist() == [False] * 5 + [True]


@pytest.mark.parametrize(("tracking", "verdict"), [(0.1, "within the target"), (5.0, "not within the target")])
def test_overhead_is_judged_by_its_target(tracking, verdict):
    spent = {"steps": 6.0, "validation": 2.0, "checkpoints": 0.0, "tracking": tracking, "monitoring": 0.0}
    for seconds, expected in ((200.0, verdict), (1.0, "too short to judge")):
        history = SimpleNamespace(epochs=frame(seconds=[seconds] * 2, gpu_busy=[np.nan, np.nan]))
        words = step_profile.answer(step_profile.shares(spent), history)
        assert f": {expected}" in words and "GPU utilisation: unmeasured" in words


def test_gpu_utilisation_is_that_after_the_first_epoch():
    spent = {"steps": 6.0, "validation": 2.0, "checkpoints": 0.0, "tracking": 0.0, "monitoring": 0.0}
    history = SimpleNamespace(epochs=frame(seconds=[1.0] * 2, gpu_busy=[0.1, 0.9]))
    assert "90%" in step_profile.answer(step_profile.shares(spent), history)


# --- ways to train


class TwoLayers(nn.Module):
    """What a network must have, with two convolutions."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv3d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv3d(3, 2, 3, padding=1))
        self.standard = nn.Identity()

    def forward(self, x):
        return self.layers(x)


def test_kept_bytes_of_two_layers_are_those_counted_by_hand(monkeypatch):
    """The volumes, the first layer's output after ReLU, the difference that the loss squares, and its roots."""
    monkeypatch.setattr(efficiency, "network", lambda c: TwoLayers())
    way = efficiency.Way("", "", small(), {})
    assert efficiency.kept_bytes(way, "cpu") == 4 * 4 * 16**3 * (2 + 3 + 2) + 4 * 4


def test_kept_bytes_are_those_of_one_micro_batch(monkeypatch):
    monkeypatch.setattr(efficiency, "network", lambda c: TwoLayers())
    whole, half = (efficiency.Way("", "", small(training__micro=micro)) for micro in (None, 2))
    assert efficiency.kept_bytes(whole, "cpu") == 2 * efficiency.kept_bytes(half, "cpu")


def test_checkpointing_has_the_same_gradients_and_keeps_less(monkeypatch):
    """Its blocks are computed twice, which is how the two differ at all."""
    c, passes, block = small(model__width=8), [0], blocks.Residual.block
    monkeypatch.setattr(blocks.Residual, "block", lambda self, x: (passes.append(passes.pop() + 1), block(self, x))[1])
    plain, once = efficiency.gradients(c, False), passes[0]
    again = efficiency.gradients(c, True)
    assert passes[0] - once == 2 * once > 0
    assert list(plain) == list(again) and any("running_var" in name for name in plain)
    for name in plain:
        torch.testing.assert_close(again[name], plain[name], rtol=1e-5, atol=1e-7)
    off, on = (efficiency.kept_bytes(way, "cpu") for way in efficiency.checkpointed(c))
    assert on < off


def flat(model, prefix=""):
    for name, value in model.items():
        yield from flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]


def test_every_way_changes_one_setting():
    own = efficiency.base(config.profile("smoke"), SIZE)
    ways = efficiency.ways(own, SIZE, "cpu", {"fp32": FP32})
    fields = set(flat_items(own))
    assert (ways[0].factor, ways[0].naive) == (efficiency.NAIVE, {})
    for way in ways:
        changed = set(flat_items(way.config)) - fields
        assert len(changed) == (
            way.factor not in (efficiency.NAIVE, efficiency.OWN, "memory format", "naive precision")
        )
    assert len({(way.factor, way.setting) for way in ways}) == len(ways)
    factors = {way.factor for way in ways}
    assert {"precision", "memory format", "compile", "batch", "accumulation", "gradient checkpointing"} <= factors


def flat_items(c):
    return ((name, repr(value)) for name, value in flat(c.model_dump()))


def test_what_a_machine_lacks_is_listed_with_the_reason():
    own = efficiency.base(config.profile("smoke"), SIZE)
    absent = {w.setting: w.absent for w in efficiency.ways(own, SIZE, "cpu", {"fp32": FP32, "bf16": torch.bfloat16})}
    assert absent["fp16"] and absent["graphs"] and absent["default"] and "off" not in absent
    assert not absent["fp32, contiguous"]


def test_emulated_precision_does_not_count(monkeypatch):
    speeds = {torch.float32: 100.0, torch.bfloat16: 250.0, torch.float16: 2.0}
    monkeypatch.setattr(efficiency, "product_speed", lambda dtype, on, n: speeds[dtype])
    assert list(efficiency.precisions("cpu")) == ["fp32", "bf16"]


def test_precision_that_is_trained_in_counts_whatever_a_busy_machine_says(monkeypatch):
    monkeypatch.setattr(efficiency, "product_speed", lambda dtype, on, n: 100.0 if dtype == torch.float32 else 2.0)
    for own, expected in ((torch.bfloat16, ["fp32", "bf16"]), (torch.float32, ["fp32"])):
        monkeypatch.setattr(efficiency.machine, "precision", lambda wanted, on, own=own: own)
        assert list(efficiency.precisions("cpu")) == expected


def test_gpu_is_given_epochs_of_many_batches():
    cpu, gpu = (efficiency.size_of("quick", on) for on in ("cpu", "cuda"))
    assert cpu == efficiency.SIZES["quick"] and gpu.batches > 10 * cpu.batches


def test_timed_run_has_its_batches_and_hardly_validates():
    c = efficiency.base(config.profile("smoke"), SIZE)
    train, validation, test = (share * c.data.phantoms // sum(c.data.fractions) for share in c.data.fractions)
    assert (train, validation, test) == (SIZE.batches * c.training.batch, 1, 1)
    assert c.training.epochs == 1 + SIZE.epochs


def test_speed_of_the_trainer_is_that_of_the_median_epoch_after_the_first(monkeypatch):
    epochs = frame(seconds=[100.0, 2.0, 8.0, 4.0])
    history = SimpleNamespace(epochs=epochs, info={"samples_seen": 64, "gpu_peak_mb": 0.0})
    monkeypatch.setattr(trainer, "fit", lambda *a, **k: history)
    assert efficiency.timed(efficiency.Way("", "", small()), "cpu", 1).speed == 16 / 4


def test_speed_of_the_naive_loop_is_that_of_the_median_step_after_the_first(monkeypatch):
    ends = itertools.accumulate([0.0, 100.0, 0.0, 2.0, 0.0, 9.0, 0.0, 1.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ends))
    assert efficiency.naive_loop(small(), dense_ssim=False, steps=4) == 4 / 2


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"layout": torch.channels_last_3d}])
def test_naive_loop_does_what_it_is_asked(options, monkeypatch):
    """Its convolutions have the precision, and take and hold the layout (but for the stem: blocks become channels)."""
    seen = []

    def note(module, inputs, output):
        if isinstance(module, nn.Conv3d) and output.shape[-1] > 2:
            last = inputs[0].is_contiguous(memory_format=torch.channels_last_3d)
            seen.append((output.dtype, last and module.weight.is_contiguous(memory_format=torch.channels_last_3d)))

    handle = nn.modules.module.register_module_forward_hook(note)
    efficiency.naive_loop(small(), steps=2, dense_ssim=False, **options)
    handle.remove()
    assert {dtype for dtype, _ in seen} == {options.get("dtype", FP32)}
    assert any(last for _, last in seen) == ("layout" in options)


def test_ratio_is_to_the_naive_loop_of_the_same_round(monkeypatch):
    """Rounds under different load: speeds differ tenfold, ratios do not."""
    load = iter([1.0, 1.0, 10.0, 10.0, 2.0, 2.0])
    speeds = {efficiency.NAIVE: 100.0, "precision": 300.0}
    order = []

    def timed(way, on, steps):
        order.append(way.factor)
        return efficiency.Timed(speeds[way.factor] / next(load))

    monkeypatch.setattr(efficiency, "timed", timed)
    monkeypatch.setattr(efficiency, "kept_bytes", lambda way, on: 2e6)
    size = efficiency.Size(rounds=3, epochs=1, batches=1, run_epochs=1, product=8, tracking="disabled")
    ways = [efficiency.Way(name, name, small(), {}) for name in (*speeds, "compile")]
    ways[2] = efficiency.Way("compile", "default", small(), None, "no compiler")
    table = efficiency.table(efficiency.measure(ways, size, "cpu"), ways, "cpu").set_index("factor")
    assert order == [*speeds, *reversed(speeds), *speeds]  # each round begins with another
    assert table.loc["precision", ["samples/s", "ratio", "lowest", "highest", "kept, MB"]].tolist() == [150, 3, 3, 3, 2]
    assert table.loc["compile", "note"] == "no compiler" and np.isnan(table.loc["compile", "ratio"])


def answered(lowest, highest, ratio=1.0, own=(1.8, 2.2)):
    rows = [(efficiency.NAIVE, "fp32", 1.0, 1.0, 1.0), (efficiency.OWN, "as it is", 2.0, *own)]
    rows += [("precision", "fp32", ratio, lowest, highest)]
    table = pd.DataFrame(rows, columns=["factor", "setting", "ratio", "lowest", "highest"])
    times = speeds([2.0], [ratio])
    return efficiency.answer(table.assign(**{"samples/s": 10.0, "kept, MB": 1.0, "note": ""}), times)


def speeds(own, fp32):
    """Rounds of the trainer and of itself in fp32, on a machine whose load changes between rounds."""
    load = np.linspace(1, 3, len(own))
    parts = [(efficiency.OWN, "as it is", own), ("precision", "fp32", fp32), (efficiency.NAIVE, "fp32", own)]
    frames = [
        pd.DataFrame({"factor": factor, "setting": setting, "round": range(len(own)), "speed": np.array(values) * load})
        for factor, setting, values in parts
    ]
    return pd.concat(frames)


def test_ranges_that_overlap_are_not_resolved():
    assert "0.50 times the trainer's speed" in answered(0.9, 1.1)
    assert "fp32: speed not resolved" in answered(0.9, 1.9)
    assert "fp32: speed not resolved" in answered(2.1, 3.0, ratio=2.5)
    assert "1.50 times the trainer's speed" in answered(2.5, 3.5, ratio=3.0)


def test_what_is_faster_than_the_trainer_comes_first():
    first = answered(2.5, 3.5, ratio=3.0).splitlines()[0]
    assert first.startswith("* **Faster than the trainer as it is: precision, fp32** (1.50 times)")
    assert "Faster" not in answered(2.1, 3.5, ratio=3.0)


def test_one_round_resolves_nothing():
    words = answered(1.0, 1.0, own=(2.0, 2.0))
    assert "fp32: speed not resolved" in words
    assert "H13, speed: not resolved** at this size" in words and "+100 % [-100, +inf] over 1 round." in words


def test_mixed_precision_is_judged_by_what_was_expected_of_it():
    """By Student's interval over rounds, each with its own load."""
    own = [2.0, 2.2, 2.1]
    words = efficiency._mixed_precision(speeds(own, [1.0, 1.0, 1.0]))
    logs = np.log(own)
    half = scipy_stats.t.ppf(0.975, 2) * logs.std(ddof=1) / np.sqrt(3)
    low, high = (100 * np.expm1(logs.mean() + side * half) for side in (-1, 1))
    assert f"[{low:+.0f}, {high:+.0f}] over 3 rounds" in words and "H13, speed: confirmed" in words
    assert "not resolved" in efficiency._mixed_precision(speeds(own, [1.0, 1.9, 1.2]))
    assert "refuted" in efficiency._mixed_precision(speeds(own, [1.9, 2.1, 2.0]))


# --- the scaler


@pytest.mark.parametrize("growth", [2.0, 2.0**15])
@pytest.mark.parametrize("gradient", [loss_scale.EDGE, 1e-3, 3e-6])
def test_scale_halves_on_overflow_and_grows_after_the_interval(growth, gradient):
    steps = loss_scale.trace(growth, gradient, "cpu", interval=4, growths=2)
    scale, good = loss_scale.INITIAL, 0
    for row in steps.itertuples():
        assert row.scale == scale
        assert row.skipped == (gradient * scale > loss_scale.HALF)
        good = 0 if row.skipped else good + 1
        scale *= 0.5 if row.skipped else growth if good == 4 else 1
        good %= 4
    assert steps["grown"].max() == 2


@pytest.mark.parametrize("growth", [2.0, 2.0**6, 2.0**15])
def test_each_growth_at_the_edge_is_paid_back_by_halvings(growth):
    steps = loss_scale.trace(growth, loss_scale.EDGE, "cpu", interval=5)
    assert loss_scale.skips(steps).tolist() == [np.log2(growth)] * 3


def test_largest_scale_that_fits_does_and_its_double_does_not():
    for gradient in (loss_scale.EDGE, 1.0, 7e-5):
        fits = loss_scale.fits(gradient)
        assert fits * gradient <= loss_scale.HALF < 2 * fits * gradient


def test_cost_is_the_share_of_steps_that_are_lost():
    assert loss_scale.cost(15, interval=15) == 0.5
