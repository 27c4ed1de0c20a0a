"""A run's network, its trained weights, and what it predicts: without the packages that judging and training take."""

from pathlib import Path

import torch
from torch import Tensor, nn

from . import checkpoint
from .config import Config
from .models import autoencoder, reconstructor
from .models.blocks import Block

BATCH = 32
CHANNELS = ("mua", "musp")


def network(
    config: Config, mean: Tensor | None = None, sd: Tensor | None = None, seen: tuple[Tensor, Tensor] | None = None
) -> autoencoder.Autoencoder | reconstructor.Reconstructor:
    """The run's network, initialised from its seed; without `mean` and `sd` they come with loaded weights.

    `seen`: mean and sd of the input's channels, for a network that sees lifts or tokens.
    """
    ones, grid = torch.ones(2), config.data.grid
    standard = (ones if mean is None else mean, ones if sd is None else sd)
    if config.task == "reconstruct":
        plain = torch.ones(reconstructor.channels(grid, config.model.name))
        model = reconstructor.build(config.model, grid, config.seed, standard, seen or (plain, plain))
    else:
        model = autoencoder.build(config.model, grid, config.seed, *standard)
    for block in model.modules():
        if isinstance(block, Block):
            block.recompute = config.training.checkpointing
    return model


def trained(config: Config, folder: Path, name: str = "last", on: str = "cpu") -> nn.Module:
    """The network with the weights that the checkpoint `last`, `best` or a milestone is judged by, ready to predict."""
    model = network(config)
    model.load_state_dict(checkpoint.load(folder / f"{name}.pt", config.digest())["judged"])
    return model.to(on, memory_format=torch.channels_last_3d).eval()


@torch.no_grad()
def predict(model: nn.Module, volumes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Predicted volumes in fp32, mm^-1, of what the network sees, (P, C, D, H, W), on its device."""
    model.eval()
    out = []
    for x in volumes.split(BATCH):
        with mixed(x.device.type, dtype):
            out.append(model(prepared(x)).float())
    return torch.cat(out)


def prepared(volumes: Tensor) -> Tensor:
    """Volumes as the network takes them: fp32, channels-last."""
    return volumes.float().contiguous(memory_format=torch.channels_last_3d)


def mixed(on: str, dtype: torch.dtype) -> torch.autocast:
    """Convolutions and products in `dtype`; fp32 switches nothing."""
    return torch.autocast(on, dtype=dtype, enabled=dtype != torch.float32)
