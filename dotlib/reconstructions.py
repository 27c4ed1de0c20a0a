"""The arms of section 4.6: a network that reconstructs from 256 measurements, by what it sees of them."""

from typing import get_args

from .config import ONECYCLE, Attention, Augmentation, Config, Lift, Links, Pretrained
from .config_parts import PatternName
from .improvements import PHANTOMS, SIZES_OF_DATA
from .recipes import Arm, Change, Study, epochs

NETWORK, CONTROL = "reconstruct", "reconstruct-blind"
SHORT, SHORT_CONTROL = f"{NETWORK}-short", f"{CONTROL}-short"  # what a page has the time for


def _reconstruct(source: str, lift: Lift | None = None, **changes: Change) -> Arm:
    """The one-cycle recipe on lifts; `model__name` in `changes` is `model.name`."""
    fields = {"task": "reconstruct", "model.name": "unet", "lift": lift or Lift(), "optim": ONECYCLE}
    return Arm(fields | {name.replace("__", "."): value for name, value in changes.items()}, source)


def _pretrained(base: Config) -> Pretrained:
    """With as many steps as the run itself has."""
    return Pretrained(epochs=base.training.epochs, batch=base.training.batch)


INPUTS = {
    NETWORK: _reconstruct("ours: a U-Net on a regularised linear lift of 256 random pairs, four draws a phantom"),
    CONTROL: _reconstruct("control: the tissue and the fitted mua0, musp0 alone", Lift(kind="none")),
    "reconstruct-back-projection": _reconstruct("back-projection in place of the lift", Lift(kind="back-projection")),
    "reconstruct-closed-form": _reconstruct("lift by half-space Green's functions", Lift(kind="closed-form")),
    "reconstruct-gauss-newton": _reconstruct("after one Gauss-Newton step", Lift(kind="gauss-newton")),
    "reconstruct-gauss-newton-2": _reconstruct("after two of them", Lift(kind="gauss-newton", steps=2)),
    "reconstruct-sphere": _reconstruct("the surface unknown: a sphere fitted to the optodes", Lift(surface="sphere")),
    "reconstruct-one-draw": _reconstruct("one draw a phantom", Lift(draws=1)),
}
MOTIONS = Augmentation(rotation=0, elastic=0, noise=0, symmetry=True)
NETWORKS = {
    "reconstruct-symmetry": _reconstruct("moved by the grid's eight motions about the probe's axis", augment=MOTIONS),
    "reconstruct-code": _reconstruct("`stage1` with a stem for lifts: all through 256 numbers", model__name="stage1"),
    "reconstruct-code-links": _reconstruct(
        "the same with dense links across the bottleneck", model__name="stage1",
        model__links=Links(kind="dense", side="across"),
    ),
    "reconstruct-pretrained": _reconstruct(
        "`reconstruct-code` with the decoder of an autoencoder to begin with", model__name="stage1",
        model__pretrained=_pretrained,
    ),
    "reconstruct-tokens": _reconstruct(
        "comparator of the earlier work's second stage: a transformer over (reading, source, detector) into the code",
        Lift(kind="tokens"), model__name="tokens",
    ),
    "reconstruct-tokens-pretrained": _reconstruct(
        "the same with the decoder of an autoencoder to begin with", Lift(kind="tokens"), model__name="tokens",
        model__pretrained=_pretrained,
    ),
}  # fmt: skip
PATTERNS = {
    f"reconstruct-{name}": _reconstruct(f"trained with pairs chosen as {name}", Lift(pattern=name))
    for name in get_args(PatternName)
    if name != "random"
}
_MORE = PHANTOMS[f"phantoms-{SIZES_OF_DATA[-1]}"].changes


def _longer(base: Config) -> int:
    return 4 * _MORE["training.epochs"](base)


def _more(source: str, epochs: Change) -> Arm:
    return _reconstruct(source, Lift(draws=1), data=_MORE["data"], test=_MORE["test"], training__epochs=epochs)


MORE = {
    "reconstruct-more": _more(f"{SIZES_OF_DATA[-1]} phantoms with one draw each", _MORE["training.epochs"]),
    "reconstruct-longer": _more("the same for four times as many steps", _longer),
    "reconstruct-symmetry-longer": _reconstruct(
        "as many steps on as few phantoms as `reconstruct` has, moved by the grid's eight motions",
        augment=MOTIONS,
        training__epochs=epochs(4),
    ),
}
GATES = {
    "sigmoid": "the specification's gate",
    "identity": "the same from identity",
    "random": "control: never trained",
}
LINKS = {"dense": "both", "fused": "both", "guided": "across"}
ARCHITECTURE = {
    f"reconstruct-{kind}": _reconstruct(f"{words}, at the two deepest stages", model__attention=Attention(kind=kind))
    for kind, words in GATES.items()
} | {
    f"reconstruct-{kind}": _reconstruct(f"{kind} links, {side}", model__links=Links(kind=kind, side=side))
    for kind, side in LINKS.items()
}
SHOWN = {
    SHORT: _reconstruct("the first in a quarter of the steps", training__epochs=epochs(0.25)),
    SHORT_CONTROL: _reconstruct("its control, in as few", Lift(kind="none"), training__epochs=epochs(0.25)),
}
ARMS = INPUTS | NETWORKS | PATTERNS | ARCHITECTURE | MORE | SHOWN
EVERYWHERE = (NETWORK, *MORE)  # judged on every set
ON_PATTERNS = tuple(PATTERNS)  # and on the sets of other patterns
OURS = (*EVERYWHERE, SHORT)  # set against the classical methods
STUDIES = {
    "4.6-shown": Study((SHORT,), 2),
    "4.6-control": Study((SHORT_CONTROL,), 1),
    "4.6-inputs": Study(tuple(INPUTS), 3),
    "4.6-networks": Study((NETWORK, *NETWORKS), 3),
    "4.6-patterns": Study((NETWORK, *PATTERNS), 3),
    "4.6-architecture": Study((NETWORK, *ARCHITECTURE), 3),
    "4.6-more": Study((NETWORK, *MORE), 3),
}
QUICK = ("4.6-shown", "4.6-control")  # what the notebook trains itself
