"""Networks that are no part of a run: what a perceptual term sees volumes through, and what a decoder starts from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from .config import ONECYCLE, Config, ConfigError, Loss, Model, Training, replace
from .inference import mixed, network

DECODER = ("from_code.", "decoder.", "head.")  # parts of `stage1` behind the code


def teacher_config(config: Config) -> Config | None:
    """The autoencoder whose encoder trained features look through, or whose decoder the network starts from.

    It is the same whatever the run's seed.
    """
    features = config.loss.features
    chosen = config.model.pretrained or (features if features and features.source == "trained" else None)
    if chosen is None:
        return None
    training = Training(epochs=chosen.epochs, batch=chosen.batch, precision=config.training.precision)
    changes = {"optim": ONECYCLE, "training": training, "test": None, "seed": chosen.seed}
    return replace(config, _plain(config) | changes)


def _plain(config: Config) -> dict[str, Any]:
    """What makes the run of a plain autoencoder of one that may be anything."""
    model = Model(name="stage1", width=config.model.width, code=config.model.code)
    return {"task": "autoencode", "lift": None, "augment": None, "model": model, "loss": Loss()}


def start(config: Config, model: nn.Module, teacher: nn.Module | None) -> None:
    """Give the decoder the teacher's weights and statistics, where the configuration asks for it; the rest stays.

    Raises ConfigError without the teacher that is needed.
    """
    if config.model.pretrained is None:
        return
    if teacher is None:
        raise ConfigError("model.pretrained: its network must be given; a study trains it")
    held = {name: value for name, value in teacher.network.state_dict().items() if name.startswith(DECODER)}
    model.network.load_state_dict(held, strict=False)


def features(
    config: Config, standard: nn.Module, teacher: nn.Module | None, on: str, dtype: torch.dtype
) -> Callable[[Tensor], list[Tensor]] | None:
    """Features of volumes (B, 2, D, H, W), mm^-1, for the loss's perceptual term; None where it has none.

    `teacher`: the trained network, for trained features; `standard`: channel statistics of the training split, for
    random ones. The network is in evaluation mode, and its weights take no gradient. Raises ConfigError without the
    teacher that is needed, and for a path that holds no exported program.
    """
    chosen = config.loss.features
    if chosen is None:
        return None
    if chosen.source == "trained" and teacher is None:
        raise ConfigError("loss.features 'trained': their network must be given; a study trains it")
    if chosen.source in ("trained", "random"):
        if chosen.source == "random":
            plain = replace(config, _plain(config) | {"seed": chosen.seed})
            teacher = network(plain, standard.mean, standard.sd)
        teacher.to(on, memory_format=torch.channels_last_3d).eval()
        seen = teacher.features
    else:
        seen = teacher = _program(Path(chosen.source)).to(on)
    teacher.requires_grad_(False)

    def looked(x: Tensor) -> list[Tensor]:
        with mixed(on, dtype):
            found = seen(x)
        return list(found.values() if isinstance(found, dict) else [found] if isinstance(found, Tensor) else found)

    return looked


def _program(path: Path) -> nn.Module:
    if not path.is_file():
        raise ConfigError(f"loss.features.source {str(path)!r}: 'trained', 'random' or an exported program is accepted")
    try:
        program = torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, OSError, BadZipFile) as error:
        raise ConfigError(f"{path}: no program that torch.export saved ({str(error).splitlines()[0]})") from None
    plain = program.run_decompositions()
    if plain.graph_signature.buffers_to_mutate or any("dropout" in str(node.target) for node in plain.graph.nodes):
        raise ConfigError(
            f"{path}: exported in training mode: it would not stay as it is; one after eval() is accepted"
        )
    seen = next(node for node in program.graph.nodes if node.name in program.graph_signature.user_inputs)
    if not isinstance(batch := seen.meta["val"].shape[0], torch.SymInt):
        raise ConfigError(f"{path}: exported for batches of {batch}; one whose batch axis is dynamic is accepted")
    return program.module()
