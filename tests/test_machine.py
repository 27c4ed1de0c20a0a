"""The machine's choices: arithmetic, and compilation with its fall-back."""

import shutil

import numpy as np
import pytest
import torch
from tiny import assert_same_weights, tiny, weights
from torch import nn

from dotlib import config, machine, trainer
from dotlib.config import ConfigError

pytestmark = pytest.mark.usefixtures("one_thread")


class CompilerFailedError(RuntimeError):
    """As torch._dynamo.exc.BackendCompilerFailed is one."""


def failing(seen):
    """In the place of torch.compile: what it returns fails when it is first called, after half the work."""

    def compile(model, **options):
        seen.append(options)

        def forward(x):
            model(x)
            raise CompilerFailedError("backend='inductor' raised:\nInvalidCxxCompiler: none found")

        return forward

    return compile


@pytest.mark.parametrize("wanted", ["default", "graphs"])
def test_run_that_cannot_be_compiled_is_the_plain_run(tmp_path, reference, monkeypatch, capsys, wanted):
    c, folder, history = reference["one cycle, bf16"]
    seen, changed = [], config.replace(c, {"training.compile": wanted})
    monkeypatch.setattr(torch, "compile", failing(seen))
    found = trainer.fit(changed, tmp_path)
    assert capsys.readouterr().err == "dotlib: not compiled (backend='inductor' raised:); the run goes on without\n"
    assert [options["mode"] for options in seen] == [{"default": None, "graphs": "reduce-overhead"}[wanted]]
    assert found.info["compile"] == f"off: {wanted} failed" and history.info["compile"] == "off"
    assert found.steps.equals(history.steps) and found.metrics.equals(history.metrics)
    assert_same_weights(weights(changed, tmp_path), weights(c, folder))


def test_real_compiler_errors_are_caught():
    """The class that dynamo raises where a back end fails is a RuntimeError."""
    import torch._dynamo.exc
    import torch._inductor.exc

    assert issubclass(torch._dynamo.exc.BackendCompilerFailed, RuntimeError)
    assert issubclass(torch._dynamo.exc.Unsupported, RuntimeError)
    assert issubclass(torch._inductor.exc.InductorError, RuntimeError)


def broken(graph, inputs):
    raise NotImplementedError("no such machine")


def test_back_end_that_raises_is_one_line(monkeypatch, capsys):
    """Through torch's own machinery."""
    model, plain = nn.Linear(2, 2), torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: plain(model, backend=broken))
    forward, how = machine.compiled(model, "default", "cpu", lambda forward: forward(torch.ones(1, 2)))
    assert forward is model and how == "off: default failed"
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_lack_of_memory_is_not_taken_for_a_compiler_error(monkeypatch, error):
    monkeypatch.setattr(torch, "compile", lambda model, **options: model)

    def attempt(forward):
        raise error("CUDA out of memory")

    with pytest.raises(error, match="CUDA out of memory"):
        machine.compiled(nn.Linear(2, 2), "default", "cpu", attempt)


@pytest.mark.parametrize(
    ("on", "dtype", "tf32"), [("cuda", "float32", 0), ("cuda", "bfloat16", 1), ("cpu", "float32", 1)]
)
def test_fp32_on_cuda_is_not_tf32(monkeypatch, on, dtype, tf32):
    """Flags that torch keeps without a device too; nothing is set for a CPU."""
    for name in ("allow_tf32", "benchmark"):
        monkeypatch.setattr(torch.backends.cudnn, name, name == "allow_tf32")
    machine.prepare(on, getattr(torch, dtype))
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == (bool(tf32), on == "cuda")


@pytest.mark.parametrize(("wanted", "on", "how"), [("auto", "cpu", "off"), ("off", "cuda", "off"), ("auto", "cuda", 0)])
def test_compilation_is_automatic_on_cuda_only(monkeypatch, wanted, on, how):
    calls = []
    monkeypatch.setattr(torch, "compile", lambda model, **options: calls.append(options) or model)
    found = machine.compiled(nn.Linear(2, 2), wanted, on, lambda forward: None)[1]
    assert (found, len(calls)) == ((how, 0) if how else ("default", 1))


def test_every_run_of_a_process_is_compiled(monkeypatch):
    """Past dynamo's limit of variants it would go on uncompiled, and say nothing that a run could record."""
    plain, calls = torch.compile, []

    def counting(graph, inputs):
        return lambda *arguments: calls.append(1) or graph.forward(*arguments)

    monkeypatch.setattr(torch, "compile", lambda model, mode, **options: plain(model, backend=counting, **options))
    variants = torch._dynamo.config.recompile_limit + 2
    for n in range(2, 2 + variants):
        machine.compiled(nn.Linear(2, 2), "default", "cpu", lambda forward, n=n: forward(torch.ones(n, 2)))
    assert len(calls) == variants


@pytest.mark.slow
def test_compiled_run_follows_the_plain_one(tmp_path, monkeypatch):
    """On this machine's own compiler; the steps' order of sums is another."""
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        pytest.skip("no C++ compiler on this machine")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    plain = trainer.fit(tiny(epochs=3), tmp_path / "plain")
    compiled = trainer.fit(tiny(epochs=3, training__compile="default"), tmp_path / "compiled")
    assert compiled.info["compile"] == "default" and any((tmp_path / "inductor").rglob("*.so"))
    np.testing.assert_allclose(compiled.steps.loss, plain.steps.loss, rtol=1e-3)
    np.testing.assert_allclose(compiled.steps.gradient_norm[:1], plain.steps.gradient_norm[:1], rtol=1e-3)
    np.testing.assert_allclose(compiled.epochs.validation_loss, plain.epochs.validation_loss, rtol=1e-2)


@pytest.mark.parametrize(
    ("wanted", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_precision_is_the_wanted_one(wanted, dtype):
    assert machine.precision(wanted, "cpu") == dtype


@pytest.mark.parametrize("native", [True, False])
def test_auto_precision_is_bf16_where_the_processor_has_it(monkeypatch, native):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert machine.precision("auto", "cpu") == (torch.bfloat16 if native else torch.float32)


def test_auto_precision_is_what_the_environment_names(monkeypatch):
    monkeypatch.setenv("DOTLIB_PRECISION", "fp16")
    assert machine.precision("auto", "cpu") == torch.float16 and machine.precision("fp32", "cpu") == torch.float32
    monkeypatch.setenv("DOTLIB_PRECISION", "half")
    with pytest.raises(ConfigError, match=r"^DOTLIB_PRECISION 'half'; accepted: fp32, bf16, fp16$"):
        machine.precision("auto", "cpu")


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float32), ((8, 0), torch.bfloat16)])
def test_auto_precision_is_bf16_from_ampere_on(monkeypatch, capability, dtype):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert machine.precision("auto", "cuda") == dtype


def test_bf16_run_multiplies_in_bf16(tmp_path, reference):
    """From the same weights the first loss is another one, by the rounding of 8 bits."""
    c, _, history = reference["one cycle, bf16"]
    plain = trainer.fit(config.replace(c, {"training.precision": "fp32", "training.epochs": 1}), tmp_path)
    error = abs(history.steps.loss[0] / plain.steps.loss[0] - 1)
    assert 1e-6 < error < 2**-6
