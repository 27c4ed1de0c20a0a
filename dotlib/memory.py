"""What a step keeps in memory, and how many samples may go through the network at once."""

import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from . import machine
from .config import Training

WEIGHT = 16  # bytes for a parameter: itself, its gradient, two moments, fp32


class MemoryBudgetError(RuntimeError):
    """Not even the smallest micro-batch fits, or the wanted one does not: one line that says what would."""


def plan(
    model: nn.Module, training: Training, on: str, loss_on: Callable[[Callable, Tensor], Tensor], given: int | None
) -> tuple[Callable, str, int]:
    """The forward pass, how it is run (compiled or not), and the micro-batch, which a continued run has `given`.

    `loss_on(forward, indices)` is the loss of some training phantoms. A pass there and back is tried beforehand: memory
    and compilers are then found wanting here, not in the first step. CUDA graphs take three: they warm up, are
    recorded, and replayed. Where the micro-batch is automatic, a peak on the device above the budget is backed off from
    as well, but for the smallest.
    """
    wanted = "off" if training.checkpointing else training.compile
    if training.checkpointing and training.compile not in ("auto", "off"):
        print("dotlib: not compiled (gradient checkpointing excludes it); the run goes on without", file=sys.stderr)
    automatic, micro, budget = training.micro == "auto", given, training.memory * 1e9
    forward, how = model, wanted

    def attempt(n: int) -> None:
        nonlocal forward, how
        # a graph's replay overwrites the gradients that those of a micro-batch should be added to
        mode = "default" if wanted == "graphs" and n < training.batch else wanted

        def passes(forward: Callable) -> None:
            for _ in range(3 if mode == "graphs" else 1):
                model.zero_grad()
                loss_on(forward, torch.arange(n, device=on)).backward()

        machine.reset_peak(on)
        forward, how = machine.compiled(model, mode, on, passes)
        spared = given or not automatic or n == divisors(training.batch)[0]
        if not spared and machine.peak_mb(on) * 2**20 > budget:
            raise torch.OutOfMemoryError(f"{machine.peak_mb(on):.0f} MB exceed training.memory")

    with trial(model):
        if micro is None and automatic:
            each = kept(lambda: loss_on(model, torch.arange(2, device=on)), model) / 2
            held = torch.cuda.memory_allocated() if on == "cuda" else 0  # the data, and the weights once
            fixed = WEIGHT * sum(p.numel() for p in model.parameters()) + held
            micro = largest(training.batch, fixed, each, budget)
        micro = settle(attempt, training.batch, micro or training.micro or training.batch, automatic)
    if wanted == "graphs" and micro < training.batch:
        print("dotlib: no CUDA graphs where gradients of micro-batches add up; compiled without", file=sys.stderr)
    return forward, how, micro


@contextlib.contextmanager
def trial(model: nn.Module) -> Iterator[None]:
    """Passes that leave no trace: buffers, gradients and torch's random numbers are afterwards as they were."""
    before = [buffer.clone() for buffer in model.buffers()]
    model.train()
    with torch.random.fork_rng({p.device for p in model.parameters() if p.is_cuda}):
        yield
    model.zero_grad()
    with torch.no_grad():
        for buffer, value in zip(model.buffers(), before, strict=True):
            buffer.copy_(value)


def kept(work: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of `work()`: each storage once, the weights left out."""
    owned = {p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = work()
    del result  # until here it holds what it saved, so that no address is given out twice
    return sum(seen.values())


def largest(batch: int, fixed: float, each: float, budget: float) -> int:
    """The largest micro-batch, a divisor of `batch` above 1, for which fixed + n each <= budget, all in bytes.

    Where none fits it is the smallest: the attempt tells.
    """
    sizes = divisors(batch)
    return max((n for n in sizes if fixed + n * each <= budget), default=sizes[0])


def divisors(batch: int) -> list[int]:
    """Divisors of `batch` from 2 on, since a batch of one has no statistics on the deepest grid."""
    return [n for n in range(2, batch + 1) if batch % n == 0]


def settle(attempt: Callable[[int], None], batch: int, micro: int, automatic: bool) -> int:
    """The micro-batch that `attempt` survives: `micro`, or where `automatic` and out of memory the next smaller ones.

    Backing off is one line on standard error. Raises MemoryBudgetError, with the size that would fit, where `micro` was
    the user's choice, or none does.
    """
    for n in reversed([n for n in divisors(batch) if n <= micro]):
        try:
            attempt(n)
        except RuntimeError as error:
            if not machine.out_of_memory(error):
                raise
            reason = (str(error).strip().splitlines() or [""])[0]  # the error itself would hold on to the memory
            continue
        if n < micro and not automatic:
            raise MemoryBudgetError(f"out of memory with {micro} samples at once; training.micro = {n} would fit")
        if n < micro:
            print(f"dotlib: out of memory with {micro} samples at once, {n} are used", file=sys.stderr)
        return n
    least = f"{divisors(batch)[0]} samples at once ({reason[:100]})"
    raise MemoryBudgetError(f"out of memory with {least}: a smaller network or grid fits")
