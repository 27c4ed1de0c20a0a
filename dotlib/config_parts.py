"""The parts of a configuration that say what is trained: data, network, loss, augmentation."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

FamilyName = Literal[
    "default", "small", "small-5mm", "none", "superficial", "deep", "single", "many", "low-contrast", "high-contrast",
    "mua-only", "musp-only", "out-of-range", "superellipsoid",
]  # fmt: skip
PatternName = Literal[
    "random", "snr", "circular", "linear", "clustered", "adaptive", "clinical", "stratified",
]  # fmt: skip
# of a lift, in order; x is ln(mua / mua0), ln(musp / musp0), regularised by lambda
CHANNELS = (
    "mua, lambda 1",
    "musp, lambda 1",
    "mua, lambda 16",
    "musp, lambda 16",
    "coverage",
    "tissue",
    "mua0",
    "musp0",
)
LIFTED = 16  # voxels a side of a lift
# of a pair as a token, in order: whitened data that the fit leaves, the sd that whitens them; mm, mm^-1
TOKEN = (
    "ln A", "-phase", "ln sd of ln A", "ln sd of phase", "source x", "source y", "source z", "detector x", "detector y",
    "detector z", "separation", "mua0", "musp0",
)  # fmt: skip
Positive = Annotated[int, Field(strict=True, gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class ConfigError(ValueError):
    """A wrong name, type or range in a configuration, as one line."""


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Noise(Frozen):
    """Detector noise of one recording: shot and floor by amplitude, phase jitter, and the options of real instruments.

    The relative standard deviation at the reference amplitude (99.5 % quantile of a phantom's pairs) is `relative`.
    """

    relative: float = Field(0.005, ge=0)
    floor: float = Field(1e-4, ge=0)  # of the variance, relative to the reference amplitude squared
    jitter: float = Field(0.41, ge=0)  # degrees, independent of amplitude
    coupling: float = Field(0.0, ge=0)  # sd of the log-amplitude that one optode adds to all its pairs
    coupling_phase: float = Field(0.0, ge=0)  # degrees, likewise
    dropout: float = Field(0.0, ge=0, lt=1)  # share of the pairs that are lost
    dark: float = Field(0.0, ge=0)  # pairs below this share of the reference amplitude are lost
    saturation: float | None = Field(None, gt=0)  # pairs above this share of it are lost
    seed: Seed = 0


class Measurements(Frozen):
    """Frequency-domain readings of one probe a phantom, on `grid`; None: that of the volumes, 32 at least.

    On coarser ones an optode's surroundings reach its neighbours, and fluence may come out negative. The probe is one
    patch, or `patches` = 2 on opposite sides, each with half of the optodes within `radius`, mm, of its centre; None:
    all around.
    """

    frequency: float = Field(140e6, ge=0)  # Hz
    n: float = Field(1.33, ge=1)  # refractive index of the tissue, in air
    sources: Positive = 50
    detectors: Positive = 40
    pairs: Positive = 1000
    radius: float | None = Field(30.0, gt=0)
    patches: Literal[1, 2] = 1
    grid: Literal[32, 48, 64, 96] | None = None
    precise: bool = False  # fp64 outer loop
    noise: Noise = Noise()

    @model_validator(mode="after")
    def _paired(self) -> Measurements:
        if self.pairs % self.sources or self.pairs > self.sources * self.detectors:
            whole = f"a multiple of sources = {self.sources}, {self.sources * self.detectors} at most, is accepted"
            raise ValueError(f"pairs = {self.pairs}: {whole}")
        if self.patches == 2 and self.radius is None:
            raise ValueError("patches = 2, radius = None: one patch is accepted where it is the whole surface")
        return self


class Data(Frozen):
    """Phantoms of one family, split into training, validation and test by `fractions`.

    With `measurements` each phantom is described in the frame of its probe, and has readings.
    """

    family: FamilyName = "default"
    phantoms: int = Field(gt=0, le=10_000_000)
    fractions: tuple[Positive, Positive, Positive] = (14, 3, 3)  # 70 / 15 / 15 %
    seed: Seed = 0
    grid: Literal[16, 32, 64]
    measurements: Measurements | None = None
    train: Positive | None = None  # only so many phantoms of the training part, the first

    @property
    def light_grid(self) -> int:
        """The grid on which readings are simulated."""
        return (self.measurements and self.measurements.grid) or self.model_grid

    @property
    def model_grid(self) -> int:
        """The grid of the model that a reconstruction compares readings with, whatever they were simulated on."""
        return max(self.grid, 32)


class Lift(Frozen):
    """What a network reconstructs from: `count` pairs of a phantom's readings, lifted to volumes of 16^3.

    Draw 0 takes the readings as recorded and judges; training phantoms have `draws` of them, each with pairs and noise
    of its own. `kind` "none" leaves the readings out but for the fitted mua0 and musp0: a control; "tokens" lifts
    nothing: each pair is shown as it is, after the fit. `surface` "sphere" takes tissue for the sphere that fits the
    optodes, which are moved onto it.
    """

    kind: Literal["linear", "gauss-newton", "closed-form", "back-projection", "none", "tokens"] = "linear"
    steps: Literal[1, 2] = 1  # of gauss-newton
    pattern: PatternName = "random"
    count: Positive = 256
    draws: Positive = 4
    gain: Literal["global", "optode", "known"] = "global"  # what is unknown of amplitude and phase
    noise: Noise | None = None  # of the draws after the first; None: that of the measurements
    seed: Seed = 0
    surface: Literal["known", "sphere"] = "known"

    @property
    def column(self) -> str:
        """The dataset that stored draws are in."""
        return "tokens" if self.kind == "tokens" else "lift"


Stages = Annotated[tuple[Positive, ...], Field(min_length=1)]


class Attention(Frozen):
    """Gates behind some stages of the network, counted from the deepest, 1: kinds as in `models.attention`."""

    kind: Literal["sigmoid", "identity", "cbam", "se", "attention-gate", "random", "conv"]
    stages: Stages = (1, 2)
    side: Literal["encoder", "decoder", "both"] = "encoder"


class Links(Frozen):
    """Links between stages: kinds as in `models.skips`; inside the encoder, the decoder, or across the bottleneck."""

    kind: Literal["dense", "fused", "guided"]
    side: Literal["encoder", "decoder", "both", "across"] = "both"


class Pretrained(Frozen):
    """An autoencoder whose decoder a network starts from: a `stage1` of its width, code and data, by one cycle."""

    epochs: Positive
    batch: Annotated[int, Field(strict=True, gt=1)]
    seed: Seed = 2000


class Model(Frozen):
    """A network: volume -> `code` numbers -> volume, or lift -> volume; what an arm may add to it is off by default."""

    name: Literal["legacy", "stage1", "hybrid", "vit", "unet", "tokens"]
    width: int = Field(ge=2)  # channels of the first stage; 16 is the full network of about 7 M parameters
    code: int = Field(256, gt=0)
    depth: Literal[1, 2, 3] = 1  # 2 and 3 add one and two residual blocks to a stage
    dropout: float = Field(0.0, ge=0, lt=1)  # share of a stage's feature maps that a training step drops
    attention: Attention | None = None
    links: Links | None = None
    pretrained: Pretrained | None = None

    @model_validator(mode="after")
    def _staged(self) -> Model:
        if self.name in ("vit", "tokens") and (self.depth > 1 or self.dropout or self.attention or self.links):
            raise ValueError(
                f"{self.name} has no stages: depth, dropout, attention and links are accepted with other networks"
            )
        if self.pretrained and self.name not in ("stage1", "tokens"):
            raise ValueError(
                f"pretrained with {self.name!r}: accepted with 'stage1' and 'tokens', which have its decoder"
            )
        return self


class Features(Frozen):
    """What a perceptual term sees volumes through: the stages of a frozen network that is no part of the run.

    `trained`: a `stage1` of the run's width and data, trained with `seed` for `epochs` in batches of `batch`; `random`:
    the same as its initialisation left it; else the path of a program that torch.export saved, of a network in
    evaluation mode and with a dynamic batch axis.
    """

    source: str = "trained"
    seed: Seed = 2000
    epochs: Positive | None = None
    batch: Positive | None = None

    @model_validator(mode="after")
    def _teachable(self) -> Features:
        if (self.source == "trained") != bool(self.epochs and self.batch):
            raise ValueError(f"source {self.source!r}: epochs and batch are accepted with 'trained', and needed there")
        return self


class Loss(Frozen):
    """Weights of the terms that training minimises, and of the channels (mua, musp) in them."""

    rmse: float = Field(1.0, ge=0)
    ssim: float = Field(0.0, ge=0)  # of 1 - SSIM
    perceptual: float = Field(0.0, ge=0)
    gradient: float = Field(0.0, ge=0)
    channels: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 1.0)
    features: Features | None = None

    @model_validator(mode="after")
    def _whole(self) -> Loss:
        if not (self.rmse or self.ssim or self.perceptual or self.gradient):
            raise ValueError("every term has weight 0: one of rmse, ssim, perceptual, gradient must be positive")
        if bool(self.perceptual) != (self.features is not None):
            raise ValueError(f"perceptual {self.perceptual:g}, features {self.features}: both or none are accepted")
        return self


class Augmentation(Frozen):
    """Random deformations and noise of training samples; each may be 0, and `symmetry` off."""

    rotation: float = Field(5.0, ge=0, le=45)  # degrees either way about each axis, uniform
    elastic: float = Field(1.0, ge=0, le=4)  # mm, sd of the coefficients of a cubic B-spline
    spacing: float = Field(16.0, ge=4)  # mm between its control points
    noise: float = Field(0.01, ge=0)  # sd of what the network sees, over each channel's range
    symmetry: bool = False  # one of the eight motions of the grid that keep the probe's axis z
