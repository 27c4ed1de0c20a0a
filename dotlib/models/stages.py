"""A network in two halves of stages, and what an arm adds behind each of them.

Additions lie beside the network, in `added`, under the names of their stages: so the parts that two arms share have the
same names, and the same initial weights. Stages are counted from the deepest: encoder1, whose output is flattened into
the code, encoder2, ...; decoder1, the first behind the code, decoder2, ...
"""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..config import ConfigError, Model
from . import attention, skips
from .blocks import Residual


class Addition(nn.Module):
    """Behind one stage: a link from earlier stages, residual blocks, a gate, dropout of whole feature maps."""

    def __init__(self):
        super().__init__()
        self.link = self.gate = None
        self.blocks, self.dropout = nn.Sequential(), nn.Identity()

    def before_gate(self, x: Tensor, sources: Sequence[Tensor]) -> Tensor:
        return self.blocks(x if self.link is None else self.link(x, *sources))

    def gated(self, x: Tensor) -> Tensor:
        return self.dropout(x if self.gate is None else self.gate(x))


class Staged(nn.Module):
    """What the networks of stages share.

    A subclass has `halves`, for "encoder" and "decoder" the layers of each stage by name, as a slice of one of its
    sequences, `first`, what comes before the encoder's, and `code`, what comes of its features.
    """

    def __init__(self):
        super().__init__()
        self.added = nn.ModuleDict()
        self.sources: dict[str, list[str]] = {}
        self.halves: dict[str, dict[str, tuple[str, slice]]] = {}

    def first(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def code(self, features: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def encode(self, z: Tensor) -> Tensor:
        return self.code(self.features(z))

    def features(self, z: Tensor) -> dict[str, Tensor]:
        """What lies behind each stage of the encoder, (B, C, D, D, D), by stage."""
        return self.walk("encoder", self.first(z))

    def extend(self, config: Model, channels: Mapping[str, int], deepened: Sequence[str]) -> None:
        """Add what `config` asks for; `channels` of each stage, in the order of the pass, and those with blocks.

        Dropout leaves out the last stage, whose maps are the output's. Raises ConfigError for a stage that is missing.
        """
        names = {half: [n for n in channels if n.startswith(half)] for half in ("encoder", "decoder")}
        for name in deepened if config.depth > 1 else ():
            blocks = [Residual(channels[name], channels[name], start_identity=True) for _ in range(config.depth - 1)]
            self._at(name).blocks = nn.Sequential(*blocks)
        if config.attention:
            for name in _places(config.attention.side, config.attention.stages, channels):
                self._at(name).gate = attention.KINDS[config.attention.kind](channels[name])
        if config.links:
            self.sources = _linked(config.links.kind, config.links.side, names)
            if not self.sources:
                raise ConfigError(f"model.links: no two stages in {config.links.side!r}; here: {', '.join(channels)}")
            for name, sources in self.sources.items():
                link = skips.KINDS[config.links.kind]
                self._at(name).link = link([channels[source] for source in sources], channels[name])
        for name in list(channels)[:-1] if config.dropout else ():
            self._at(name).dropout = nn.Dropout3d(config.dropout)

    def _at(self, name: str) -> Addition:
        if name not in self.added:
            self.added[name] = Addition()
        return self.added[name]

    def walk(
        self, half: str, x: Tensor, earlier: Mapping[str, Tensor] | None = None, maps: dict | None = None
    ) -> dict[str, Tensor]:
        """The features behind each stage of one half, by name, in the order of the pass.

        `earlier`: features of the other half, for links across; `maps` is filled with what the gates multiply by.
        """
        seen: dict[str, Tensor] = {}
        for name in self.halves[half]:
            seen |= self.stage(half, name, x, {**(earlier or {}), **seen}, maps)
            x = seen[name]
        return seen

    def stage(
        self, half: str, name: str, x: Tensor, earlier: Mapping[str, Tensor], maps: dict | None = None
    ) -> dict[str, Tensor]:
        """The features behind one stage, by its name, from what comes in and what lies behind `earlier` stages."""
        part, chosen = self.halves[half][name]
        for layer in list(getattr(self, part))[chosen]:
            x = layer(x)
        if name in self.added:
            addition = self.added[name]
            x = addition.before_gate(x, [earlier[s] for s in self.sources.get(name, ())])
            if maps is not None and addition.gate is not None:
                maps[name] = addition.gate.map(x)
            x = addition.gated(x)
        return {name: x}

    def maps(self, z: Tensor) -> dict[str, Tensor]:
        """What each gate of the encoder multiplies its voxels by, (B, 1, D, D, D), by stage; of kinds with a map."""
        found: dict[str, Tensor | None] = {}
        self.walk("encoder", self.first(z), maps=found)
        return {name: weights for name, weights in found.items() if weights is not None}


def _places(side: str, stages: Sequence[int], channels: Mapping[str, int]) -> list[str]:
    wanted = [f"{half}{k}" for half in ("encoder", "decoder") if side in (half, "both") for k in sorted(stages)]
    if missing := [name for name in wanted if name not in channels]:
        raise ConfigError(f"model.attention: no stage {', '.join(missing)} here; accepted: {', '.join(channels)}")
    return wanted


def _linked(kind: str, side: str, names: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The stages that are linked, each with the stages it is linked from, in the order of the pass.

    Fused links go to a half's last stage alone. Across the bottleneck each stage of the decoder sees every one of the
    encoder, guided ones that of its own grid.
    """
    if side == "across":
        grid = {f"decoder{k - 1}": f"encoder{k}" for k in range(2, len(names["encoder"]) + 1)}
        targets = [name for name in names["decoder"] if name in grid]
        every = [*names["encoder"]]
        return {name: every if kind != "guided" else [grid[name]] for name in targets}
    found = {}
    for half in ("encoder", "decoder") if side == "both" else (side,):
        stages = names[half]
        for i, name in enumerate(stages):
            if i and (kind != "fused" or i == len(stages) - 1):
                found[name] = list(stages[:i])
    return found
