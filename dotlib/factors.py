"""The factor that an arm of sections 4.4 to 4.6 declares, and the check that it differs in nothing else."""

from .config import Config, ConfigError
from .improvements import ALTERNATIVES, ATTENTION, BUDGETS, FAMILIES, IMPROVEMENTS, PHANTOMS, label
from .recipes import SHORTENED, averaging, steps
from .reconstructions import ARCHITECTURE, CONTROL, INPUTS, NETWORK, PATTERNS, SHORT, SHORT_CONTROL

# what each improvement may touch; epochs follow from the phantoms and the batch, at as many samples
FIELDS = {
    "optimiser": {"optim.name", "optim.betas"},
    "schedule": {"optim.schedule", "optim.lr"},
    "decay schedule": {"optim.weight_decay", "optim.final_decay"},
    "duration": {"training.epochs"},
    "batch": {"training.batch", "training.micro", "training.epochs"},
    "data size": {"data.train", "training.epochs", "loss.features"},  # a teacher's phantoms are as many, its steps too
    "tumour size": {"data.family"},
    "attention": {"model.attention"},
    "depth": {"model.depth"},
    "dropout": {"model.dropout"},
    "multi-scale loss": {"loss.ssim", "loss.perceptual", "loss.features"},
    "channel weight": {"loss.channels"},
    "augmentation": {"augment"},
    "dense links": {"model.links"},
    "hybrid ViT": {"model.name"},
    "EMA": {"training.ema"},
    "progressive": {"optim.schedule", "optim.lr"},
    "SSIM loss": {"loss.rmse", "loss.ssim", "loss.perceptual", "loss.features"},
    "gradient loss": {"loss.gradient", "loss.ssim", "loss.perceptual", "loss.features"},
    "random features": {"loss.ssim", "loss.perceptual", "loss.features"},
    "fused links": {"model.links"},
    "identity gate": {"model.attention"},
    "guided links": {"model.links"},
    "depth 3": {"model.depth"},
}
FIRST = ("optimiser", "schedule", "data size", "tumour size")  # the roadmap's first phase changes them at once
PHASES = (set().union(*(FIELDS[name] for name in FIRST)), FIELDS["attention"], FIELDS["multi-scale loss"])
# compared as one value
WHOLE = {"model.attention", "model.links", "model.pretrained", "augment", "loss.features", "test", "lift"}
# by arm: the arm that it is compared with, and the fields of its factor
DECLARED: dict[str, tuple[str, set[str]]] = (
    {name: ("stage1-onecycle", {"model.attention"}) for name in ATTENTION}
    | {name: ("stage1-onecycle", {"model.width"}) for name in ("narrow", "wide")}
    | {name: ("stage1-onecycle", {"model.name"}) for name in ("hybrid", "vit")}
    | {name: ("stage1-onecycle", {"data.family"}) for name in FAMILIES}
    | {name: ("stage1-onecycle", {"data.phantoms", "data.train", "training.epochs"}) for name in PHANTOMS}
    | {f"{net}-phase{n + 1}": (f"{net}-phase{n}", PHASES[n]) for net in ("legacy", "stage1") for n in range(3)}
    | {f"specified-{n}": ("specified-1", FIELDS["duration"]) for n in BUDGETS if n > 1}
    | {f"half-{n}": (f"specified-{n}", {"model.width"}) for n in BUDGETS}
    | {name: (NETWORK, {"lift"}) for name in (*INPUTS, *PATTERNS) if name != NETWORK}
    | {
        name: (NETWORK, {f"model.{'attention' if arm.changes.get('model.attention') else 'links'}"})
        for name, arm in ARCHITECTURE.items()
    }
    | {"reconstruct-more": (NETWORK, {"lift", "data.phantoms", "data.train", "training.epochs"})}
    | {"reconstruct-longer": ("reconstruct-more", FIELDS["duration"])}
    | {"reconstruct-symmetry-longer": ("reconstruct-symmetry", FIELDS["duration"])}
    | {name: (of, FIELDS["duration"]) for name, of in ((SHORT, NETWORK), (SHORT_CONTROL, CONTROL), *SHORTENED.items())}
    | {"reconstruct-symmetry": ("reconstruct", {"augment"}), "reconstruct-code": ("reconstruct", {"model.name"})}
    | {"reconstruct-code-links": ("reconstruct-code", {"model.links"})}
    | {"reconstruct-tokens": ("reconstruct-code", {"model.name", "lift"})}
    | {"reconstruct-pretrained": ("reconstruct-code", {"model.pretrained"})}
    | {"reconstruct-tokens-pretrained": ("reconstruct-tokens", {"model.pretrained"})}
    | {f"add-{label(name)}": ("baseline", FIELDS[name]) for name in IMPROVEMENTS}
    | {f"{'swap' if name in ALTERNATIVES else 'leave'}-{label(name)}": ("full", FIELDS[name]) for name in IMPROVEMENTS}
)


def differing(a: Config, b: Config) -> set[str]:
    """The fields, by dotted name, in which two configurations differ."""
    one, other = _leaves(a.model_dump()), _leaves(b.model_dump())
    return {path for path in one | other if one.get(path) != other.get(path)}


def _leaves(tree: dict, prefix: str = "") -> dict:
    """Fields by dotted name, down to those of `WHOLE`."""
    found = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        deeper = isinstance(value, dict) and path not in WHOLE
        found |= _leaves(value, f"{path}.") if deeper else {path: value}
    return found


def samples(config: Config) -> int:
    """Training samples that a configuration sees."""
    return steps(config) * config.training.batch


def require(arm: str, config: Config, reference: Config) -> None:
    """Raise ConfigError unless an arm of `DECLARED` differs from its reference in its own factor alone.

    `test` may name the common set of arms that train with other phantoms; a moving average over the last tenth of the
    steps follows their number where both arms have it. Their samples are as many, to within an epoch, which cannot be
    parted, but where the factor is the duration.
    """
    against, fields = DECLARED[arm]
    averaged = all(c.training.ema == averaging(c) for c in (config, reference))
    follows = {"seed", "test"} | ({"training.ema"} if averaged else set())
    if undeclared := differing(config, reference) - fields - follows:
        more, own = (", ".join(sorted(names)) for names in (undeclared, fields))
        raise ConfigError(f"arm {arm}: differs from {against} in {more}; declared: {own}")
    seen, theirs = samples(config), samples(reference)
    epoch = max(seen / config.training.epochs, theirs / reference.training.epochs)
    if fields != FIELDS["duration"] and abs(seen - theirs) > epoch:
        raise ConfigError(f"arm {arm}: sees {seen} training samples, {against} {theirs}; as many are accepted")
