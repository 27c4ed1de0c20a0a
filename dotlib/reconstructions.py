"""The arms of section 4.6: a network that reconstructs from 256 measurements, by what it sees of them."""

from .config import ONECYCLE, Augmentation, Config, Lift, Links, Pretrained
from .recipes import Arm, Change, Study


def _reconstruct(source: str, lift: Lift | None = None, **changes: Change) -> Arm:
    """The one-cycle recipe on lifts; `model__name` in `changes` is `model.name`."""
    fields = {"task": "reconstruct", "model.name": "unet", "lift": lift or Lift(), "optim": ONECYCLE}
    return Arm(fields | {name.replace("__", "."): value for name, value in changes.items()}, source)


def _pretrained(base: Config) -> Pretrained:
    """With as many steps as the run itself has."""
    return Pretrained(epochs=base.training.epochs, batch=base.training.batch)


INPUTS = {
    "reconstruct": _reconstruct("ours: a U-Net on a regularised linear lift of 256 random pairs, four draws a phantom"),
    "reconstruct-blind": _reconstruct("control: the tissue and the fitted mua0, musp0 alone", Lift(kind="none")),
    "reconstruct-back-projection": _reconstruct("back-projection in place of the lift", Lift(kind="back-projection")),
    "reconstruct-closed-form": _reconstruct("lift by half-space Green's functions", Lift(kind="closed-form")),
    "reconstruct-gauss-newton": _reconstruct("after one Gauss-Newton step", Lift(kind="gauss-newton")),
    "reconstruct-gauss-newton-2": _reconstruct("after two of them", Lift(kind="gauss-newton", steps=2)),
    "reconstruct-one-draw": _reconstruct("one draw a phantom", Lift(draws=1)),
}
NETWORKS = {
    "reconstruct-symmetry": _reconstruct(
        "moved by the grid's eight motions about the probe's axis",
        augment=Augmentation(rotation=0, elastic=0, noise=0, symmetry=True),
    ),
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
ARMS = INPUTS | NETWORKS
STUDIES = {
    "4.6-shown": Study(("reconstruct",), 2),
    "4.6-control": Study(("reconstruct-blind",), 1),
    "4.6-inputs": Study(tuple(INPUTS), 3),
    "4.6-networks": Study(("reconstruct", *NETWORKS), 3),
}
