"""The machine that a run is computed on: its device, arithmetic and versions."""

import functools
import hashlib
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

MODES = {"default": None, "graphs": "reduce-overhead"}  # of torch.compile; the second with CUDA graphs


def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision(wanted: str, on: str) -> torch.dtype:
    """bf16 where the machine multiplies it in hardware (`auto`), else fp32."""
    if wanted != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wanted]
    if on == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def compiled(model: nn.Module, wanted: str, on: str, attempt: Callable[[Callable], None]) -> tuple[Callable, str]:
    """The model's forward pass and how it is run: compiled (on CUDA by default), or as it is.

    `attempt` runs a pass; where compiling fails in it, one line on standard error says so and the model is not
    compiled.
    """
    mode = {"auto": "default" if on == "cuda" else "off"}.get(wanted, wanted)
    if mode == "off":
        return model, mode
    torch.compiler.reset()  # after a few variants a process would compile no further one, and not fail either
    forward = torch.compile(model, mode=MODES[mode], dynamic=False)
    try:
        attempt(forward)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # what dynamo, inductor and their compilers raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        print(f"dotlib: not compiled ({reason[:100]}); the run goes on without", file=sys.stderr)
        return model, f"off: {mode} failed"
    return forward, mode


def name(on: str) -> str:
    return torch.cuda.get_device_name() if on == "cuda" else platform.processor() or platform.machine()


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "numpy": np.__version__, "python": platform.python_version()}


def commit(root: Path = Path(__file__).parents[1]) -> dict[str, str | bool | None]:
    """The last commit of the code below `root`, and whether the code differs from it; unknown without git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words, "--", "dotlib", "notebooks"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        found = git("log", "-1", "--format=%H")
        return {"commit": found or "unknown", "dirty": bool(git("status", "--porcelain")) if found else None}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": None}


@functools.cache
def code_digest() -> str:
    """Hash of the package's sources, recorded with each run."""
    sources = sorted(Path(__file__).parent.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
