"""The tables of names: what can be asked for, and where it lives. Plain strings, so that listing costs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata

from molere.data.named.entries import DATASETS as DATASETS
from molere.data.named.entries import DatasetEntry as DatasetEntry


@dataclass(frozen=True)
class Entry:
    """One name: the module and attribute behind it, settings it fixes, and a line for listings."""

    module: str
    attribute: str
    summary: str
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    paper: Mapping[str, object] = field(default_factory=dict[str, object])
    """What the preset `paper` changes: the method as published, literally."""
    needs: tuple[str, ...] = ()
    """Keys of NEEDS."""
    paper_needs: tuple[str, ...] = ()
    """What the preset `paper` needs besides."""


_LRW_PAPER: dict[str, object] = {
    "weights": {"network": "full", "output": "sigmoid", "optimizer": "sgd", "lr": 1e-3, "scaled": False},
    "order": "strict",
}
_PAPER_MARGINS: dict[str, object] = {"margins": "scout"}
_LRWOPT_PAPER: dict[str, object] = {
    **_LRW_PAPER,
    "splitter_optimizer": "sgd",
    "lr_splitter": 1e-3,
    "exact_pass": True,
    "learn_in_warmup": False,
}
_MWN_IMBALANCE_PAPER: dict[str, object] = {
    "holdout": {"kind": "random", "per_class": 10},  # where nothing but the class sizes is wrong, all labels are right
    "optimizer": "sgd",
    "lr": 1e-5,
    "nesterov": True,
    "weight_decay": 5e-4,
}


def _lrw(holdout: str, summary: str) -> Entry:
    paper = {**_LRW_PAPER, "holdout": {"stratified": False} if holdout == "random" else _PAPER_MARGINS}
    needs = ("validation",) if holdout == "random" else ("validation", "scout")
    return Entry("molere.methods.lrw", "LRW", summary, {"holdout": {"kind": holdout}}, paper, needs)


METHODS: dict[str, Entry] = {
    "erm": Entry("molere.methods.erm", "ERM", "every example counts the same, the whole pool"),
    "erm-part": Entry(
        "molere.methods.control",
        "Drop",
        "ERM on the training part of a random split: the control of lrw-random",
        {"holdout": {"kind": "random"}},
    ),
    "drop-easy": Entry(
        "molere.methods.control",
        "Drop",
        "ERM without the easiest part: the control of lrw-easy",
        {"holdout": {"kind": "easiest"}},
        {"holdout": _PAPER_MARGINS},
        ("scout",),
    ),
    "drop-random": Entry(
        "molere.methods.control",
        "Drop",
        "ERM without a random part",
        {"holdout": {"kind": "random", "stratified": False}},
    ),
    "drop-hard": Entry(
        "molere.methods.control",
        "Drop",
        "ERM without the hardest part: the control of lrw-hard",
        {"holdout": {"kind": "hardest"}},
        {"holdout": _PAPER_MARGINS},
        ("scout",),
    ),
    "upweight": Entry(
        "molere.methods.control", "Upweight", "ERM with the errors of cross-fitted models weighted up", needs=("scout",)
    ),
    "lrw-easy": _lrw("easiest", "learned weights, validated on the easiest part"),
    "lrw-random": _lrw("random", "learned weights, validated on a random part"),
    "lrw-hard": _lrw("hardest", "learned weights, validated on the hardest part (train twice)"),
    "lrwopt": Entry(
        "molere.methods.lrwopt",
        "LRWOpt",
        "learns the split, the weights and the classifier in one run",
        paper=_LRWOPT_PAPER,
    ),
    "maple": Entry(
        "molere.methods.maple",
        "MAPLE",
        "learns which examples to keep, so that training on them has a low risk elsewhere",
        paper={"form": "full", "risk": "irmv1", "judge": "pool", "share": 0.3, "lr": 1.5},
        needs=("validation",),
        paper_needs=("groups",),
    ),
    "stablenet": Entry(
        "molere.methods.stablenet", "StableNet", "weights that make random functions of the features independent"
    ),
    "mbr": Entry(
        "molere.methods.mbr", "MBR", "margins of a finished ERM model as weights, trained again", needs=("scout",)
    ),
    "rho-loss": Entry(
        "molere.methods.rho_loss",
        "RhoLoss",
        "trains on a tenth of the candidates, those of largest loss beyond what a holdout model leaves",
        paper={"mode": "moving", "epochs": 2 / 3},
        needs=("validation", "scout"),
    ),
    "jtt": Entry(
        "molere.methods.jtt",
        "JTT",
        "just train twice: errors of a short first training are repeated",
        paper={"factor": 100.0, "epochs": 0.2},
        needs=("scout",),
    ),
    "molere": Entry(
        "molere.methods.molere",
        "Molere",
        "recommended: smoothed early hardness, then weights; nothing removed",
    ),
    "l2r": Entry(
        "molere.methods.l2r",
        "L2R",
        "weights of each batch from the agreement of its gradients with a validation gradient",
        paper={"holdout": {"kind": "clean"}},
        needs=("validation",),
        paper_needs=("clean",),
    ),
    "mwn": Entry(
        "molere.methods.mwn",
        "MWN",
        "weight as a learned function of the loss (Meta-Weight-Net), as for label noise",
        paper={"holdout": {"kind": "clean"}},
        needs=("validation",),
        paper_needs=("clean",),
    ),
    "mwn-imbalance": Entry(
        "molere.methods.mwn",
        "MWN",
        "the same as for rare classes: weights over their sum",
        {"normalize": "sum1"},
        _MWN_IMBALANCE_PAPER,
        needs=("validation",),
    ),
    "bilaw": Entry(
        "molere.methods.bilaw",
        "BiLAW",
        "weight as a learned function of the margins to all classes",
        paper={"holdout": {"kind": "clean"}},
        needs=("validation",),
        paper_needs=("clean",),
    ),
    "gdw": Entry(
        "molere.methods.gdw",
        "GDW",
        "a weight for each example and class, on the gradient of the logits",
        paper={"holdout": {"kind": "clean"}},
        needs=("validation",),
        paper_needs=("clean",),
    ),
    "fsr": Entry(
        "molere.methods.fsr",
        "FSR",
        "weights of each batch from the last layer's gradients, validated on examples it learns easily",
        paper={"buffer": 2000, "probe": 200, "warmup": 0.05, "mixup": True, "pseudo": 2.0},
    ),
    "fsr-imbalance": Entry(
        "molere.methods.fsr",
        "FSR",
        "the same as for rare classes: no weight is zero",
        {"mode": "shift"},
        {"buffer": 3000, "probe": 800, "warmup": 0.8},
    ),
    "cvar": Entry("molere.methods.dro", "CVaR", "trains on the largest losses of each batch"),
    "doro": Entry(
        "molere.methods.dro", "DORO", "the same (or chi-square) once the very largest losses are left out as outliers"
    ),
    "trimmed": Entry("molere.methods.dro", "Trimmed", "leaves out the largest losses of each batch"),
}

GROUP = "molere.methods"
"""Entry points by which other packages offer methods: `name = "package.module:Class"`."""


def discovered() -> dict[str, Entry]:
    """Methods of other installed packages, by name; the package's own summary stands for theirs. Imports none of them.

    A name that is one of ours stays ours; of two packages that offer the same name the first by package name has it.
    """
    found = dict[str, Entry]()
    offered = [(p.dist, p) for p in metadata.entry_points(group=GROUP) if p.dist is not None and p.name not in METHODS]
    for package, point in sorted(offered, key=lambda each: each[0].name):
        about = (package.metadata.get_all("Summary") or ["no summary"])[0]
        found.setdefault(point.name, Entry(point.module, point.attr, f"{about} (package {package.name})"))
    return found


METHODS.update(discovered())

PRESETS: Mapping[str, str] = {
    "default": "settings that worked in our measurements",
    "paper": "as published, where that carries over to any data; a method's page says what does not",
}

NEEDS: Mapping[str, str] = {
    "validation": "a validation part, taken from the pool by its holdout",
    "clean": "true labels of that part, as holdout=clean takes them",
    "groups": "groups of the pool",
    "scout": "a model trained before, which it trains itself",
}

HOLDOUTS: Mapping[str, Entry] = {
    "random": Entry("molere.holdouts", "Random", "a stratified random part"),
    "easiest": Entry("molere.holdouts", "Easiest", "the examples of largest margin"),
    "hardest": Entry("molere.holdouts", "Hardest", "the examples of smallest margin"),
    "clean": Entry("molere.holdouts", "Clean", "a stratified random part of the examples whose label is right"),
    "learned": Entry("molere.learned", "Learned", "the part that a predictor trained on the rest generalises worst to"),
    "given": Entry("molere.holdouts", "Given", "the examples given to validate on (--val-root), or named by position"),
}


@dataclass(frozen=True)
class LogUniform:
    """A number between two others, its logarithm drawn uniformly."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"log-uniform in [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class Choice:
    """One of some values, each as likely."""

    values: tuple[str | int | float | bool, ...]

    def __str__(self) -> str:
        return f"one of {', '.join(str(v).lower() if isinstance(v, bool) else str(v) for v in self.values)}"


SEARCH_TRAIN: Mapping[str, Mapping[str, LogUniform | Choice]] = {
    "sgd": {"lr": LogUniform(0.005, 0.5), "weight_decay": LogUniform(1e-5, 1e-2)},
    "other": {"lr": LogUniform(1e-4, 1e-2), "weight_decay": LogUniform(1e-5, 1e-1)},
}
"""What tuning searches for every method, by optimiser: settings of training."""

_PART = {"delta": Choice((0.05, 0.1, 0.2))}
_LRW_SEARCH = {**_PART, "keep": Choice((False, True)), "weights.lr": LogUniform(1e-3, 1e-1)}
_META_SEARCH = {**_PART, "lr": LogUniform(1e-4, 1e-2)}

SEARCH: Mapping[str, Mapping[str, LogUniform | Choice]] = {
    "erm-part": _PART,
    "drop-easy": _PART,
    "drop-random": _PART,
    "drop-hard": _PART,
    "upweight": {"factor": LogUniform(1.5, 20.0)},
    "lrw-easy": _LRW_SEARCH,
    "lrw-random": _LRW_SEARCH,
    "lrw-hard": _LRW_SEARCH,
    "lrwopt": {**_LRW_SEARCH, "lr_splitter": LogUniform(1e-3, 1e-1)},
    "molere": {"expect": Choice(("nothing", "rare-groups", "noise")), "warmup": Choice((0.1, 0.2, 0.4))},
    "gdw": {**_PART, "lr": LogUniform(1e-4, 1e-2), "clip": LogUniform(0.05, 0.5)},
    "fsr": {"meta_lr": LogUniform(0.01, 1.0), "warmup": Choice((0.1, 0.25, 0.5))},
    "fsr-imbalance": {"meta_lr": LogUniform(0.01, 1.0), "warmup": Choice((0.25, 0.5, 0.75))},
    "l2r": _PART,
    "mwn": _META_SEARCH,
    "mwn-imbalance": _META_SEARCH,
    "bilaw": _META_SEARCH,
    "maple": {**_PART, "share": Choice((0.3, 0.5, 0.7)), "lr": LogUniform(0.01, 0.5)},
    "stablenet": {"strength": LogUniform(1.0, 100.0)},
    "mbr": {"gamma": LogUniform(0.5, 10.0), "beta": Choice((-0.5, 0.0, 0.5))},
    "rho-loss": {**_PART, "share": Choice((0.1, 0.2, 0.5))},
    "jtt": {"factor": Choice((2.0, 3.0, 5.0, 10.0, 20.0, 50.0)), "epochs": Choice((0.05, 0.1, 0.2, 0.4))},
    "cvar": {"alpha": LogUniform(0.1, 0.8)},
    "doro": {"alpha": LogUniform(0.1, 0.8), "epsilon": LogUniform(0.005, 0.3)},
    "trimmed": {"share": LogUniform(0.02, 0.4)},
}
"""What it searches besides, by method; those not named here have their training tuned alone."""

MODELS: Mapping[str, str] = {
    "linear": "softmax regression",
    "mlp": "two hidden layers, for small images and tables",
    "cnn": "small convolutional network, for images of 8 to 64 pixels",
    "resnet20": "ResNet-20 for 32-pixel images",
    "resnet32": "ResNet-32 for 32-pixel images",
    "resnet44": "ResNet-44 for 32-pixel images",
    "resnet56": "ResNet-56 for 32-pixel images",
    "resnet110": "ResNet-110 for 32-pixel images",
    "wrn-16-2": "Wide ResNet 16-2 (any wrn-DEPTH-WIDTH)",
    "wrn-16-4": "Wide ResNet 16-4",
    "wrn-28-2": "Wide ResNet 28-2",
    "wrn-28-10": "Wide ResNet 28-10",
    "resnet18": "ResNet-18 of torchvision, for photographs",
    "resnet50": "ResNet-50 of torchvision",
    "resnet152": "ResNet-152 of torchvision",
    "vgg16": "VGG-16 of torchvision",
    "vit_b_16": "ViT-B/16 of torchvision",
}


TRACKERS: Mapping[str, str] = {
    "tensorboard": "scalars in tensorboard/ of the run's folder",
    "wandb": "Weights & Biases, in the project that WANDB_PROJECT names",
    "mlflow": "MLflow, at MLFLOW_TRACKING_URI",
}
"""Where figures can be sent while a run goes on; each is an extra of the same name."""


PAPER_MODELS: Mapping[str, str] = {
    "cifar100": "wrn-28-10",
    "cifar100n": "wrn-28-10",
    "imagenet-100": "vgg16",
    "pet": "resnet152",
    "aircraft": "resnet32",
    "cars": "resnet32",
}
"""The paper's classifier by data set (appendix D.1), which `--model paper` stands for; resnet50 elsewhere.

Its first table has another one, vit_b_16 from published weights.
"""


def paper_model(data: str) -> str:
    """The classifier that the paper trains on a data set."""
    return PAPER_MODELS.get(data, "resnet50")
