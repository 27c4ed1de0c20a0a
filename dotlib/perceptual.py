"""What a perceptual term sees volumes through: a frozen network that is no part of the run."""

from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import torch
from torch import Tensor, nn

from .config import ONECYCLE, Config, ConfigError, Loss, Model, Training, replace
from .evaluation import mixed, network


def teacher_config(config: Config) -> Config | None:
    """The run whose encoder is looked through, where features are trained ones; the same whatever the run's seed."""
    chosen = config.loss.features
    if chosen is None or chosen.source != "trained":
        return None
    training = Training(epochs=chosen.epochs, batch=chosen.batch, precision=config.training.precision)
    changes = {
        "model": _plain(config),
        "loss": Loss(),
        "optim": ONECYCLE,
        "training": training,
        "augment": None,
        "test": None,
    }
    return replace(config, changes | {"seed": chosen.seed})


def _plain(config: Config) -> Model:
    return Model(name="stage1", width=config.model.width, code=config.model.code)


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
            plain = {"model": _plain(config), "loss": Loss(), "seed": chosen.seed}
            teacher = network(replace(config, plain), standard.mean, standard.sd)
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
