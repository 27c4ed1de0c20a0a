"""The machine that a run is computed on: its device, arithmetic and versions."""

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import version

import torch
from torch import nn

from .config import ConfigError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MODES = {"default": None, "graphs": "reduce-overhead"}  # of torch.compile; the second with CUDA graphs
# that memory ran out, as torch, a compiler's error around it, a CPU's allocator, cuDNN and cuBLAS say it
LACKING = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "ALLOCATION_FAILED", "unable to find an engine")


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(wanted: str, on: str) -> torch.dtype:
    """`auto`: what $DOTLIB_PRECISION names, else bf16 where the machine multiplies it in hardware, else fp32."""
    if wanted == "auto" and (wanted := os.environ.get("DOTLIB_PRECISION") or "auto") not in (*PRECISIONS, "auto"):
        raise ConfigError(f"DOTLIB_PRECISION {wanted!r}; accepted: {', '.join(PRECISIONS)}")
    if wanted != "auto":
        return PRECISIONS[wanted]
    if on == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def named(dtype: torch.dtype) -> str:
    """The name of a precision."""
    return next(name for name, known in PRECISIONS.items() if known == dtype)


def prepare(on: str, dtype: torch.dtype) -> None:
    """Have cuDNN look for the fastest convolutions, and compute those of fp32 in fp32, not in TF32."""
    if on == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = dtype != torch.float32


def reset_peak(on: str) -> None:
    if on == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_mb(on: str) -> float:
    """The most that the allocator has held since `reset_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() / 2**20 if on == "cuda" else 0.0


def out_of_memory(error: RuntimeError) -> bool:
    """Whether memory ran out: not everybody raises torch.OutOfMemoryError."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in LACKING)


def compiled(model: nn.Module, wanted: str, on: str, attempt: Callable[[Callable], None]) -> tuple[Callable, str]:
    """The model's forward pass and how it is run: compiled (on CUDA by default), or as it is.

    `attempt` runs a pass of what is returned; where compiling fails in it, one line on standard error says so and the
    model is not compiled. That memory ran out is not taken for a compiler's failure.
    """
    mode = {"auto": "default" if on == "cuda" else "off"}.get(wanted, wanted)
    if mode == "off":
        attempt(model)
        return model, mode
    torch.compiler.reset()  # after a few variants a process would compile no further one, and not fail either
    forward = torch.compile(model, mode=MODES[mode], dynamic=False)
    try:
        attempt(forward)
    except RuntimeError as error:  # what dynamo, inductor and their compilers raise
        if out_of_memory(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"dotlib: not compiled ({reason[:100]}); the run goes on without", file=sys.stderr)
    else:
        return forward, mode
    attempt(model)
    return model, f"off: {mode} failed"


def name(on: str) -> str:
    if on == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def versions() -> dict[str, str]:
    packages = {package: version(package) for package in ("numpy", "schedulefree")}
    return {"torch": torch.__version__, "python": platform.python_version()} | packages
