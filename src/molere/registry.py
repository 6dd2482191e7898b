"""The tables of names: what can be asked for, and where it lives. Plain strings, so that listing costs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """One name: the module and attribute behind it, settings it fixes, and a line for listings."""

    module: str
    attribute: str
    summary: str
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    paper: Mapping[str, object] = field(default_factory=dict[str, object])
    """What the preset `paper` changes: the method as published, literally."""
    needs: str = ""


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


def _lrw(holdout: str, summary: str) -> Entry:
    paper = {**_LRW_PAPER, "holdout": {"stratified": False} if holdout == "random" else _PAPER_MARGINS}
    return Entry("molere.methods.lrw", "LRW", summary, {"holdout": {"kind": holdout}}, paper)


METHODS: Mapping[str, Entry] = {
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
    ),
    "upweight": Entry("molere.methods.control", "Upweight", "ERM with the errors of cross-fitted models weighted up"),
    "lrw-easy": _lrw("easiest", "learned weights, validated on the easiest part"),
    "lrw-random": _lrw("random", "learned weights, validated on a random part"),
    "lrw-hard": _lrw("hardest", "learned weights, validated on the hardest part (train twice)"),
    "lrwopt": Entry(
        "molere.methods.lrwopt",
        "LRWOpt",
        "learns the split, the weights and the classifier in one run",
        paper=_LRWOPT_PAPER,
    ),
    "molere": Entry(
        "molere.methods.molere",
        "Molere",
        "recommended: smoothed early hardness, then weights; nothing removed",
    ),
}

PRESETS: Mapping[str, str] = {
    "default": "settings that worked in our measurements",
    "paper": "settings as published, literally",
}

HOLDOUTS: Mapping[str, Entry] = {
    "random": Entry("molere.split", "Random", "a stratified random part"),
    "easiest": Entry("molere.split", "Easiest", "the examples of largest margin"),
    "hardest": Entry("molere.split", "Hardest", "the examples of smallest margin"),
    "given": Entry("molere.split", "Given", "examples named by position"),
}

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
    "wrn-28-10": "Wide ResNet 28-10, the paper's for CIFAR-100",
}


@dataclass(frozen=True)
class DatasetEntry:
    """One data set: what it is, the scenarios it can be trained under, and the folder it is looked for in."""

    summary: str
    scenarios: tuple[str, ...]
    folder: str = ""
    """Where below --root; empty: embedded, nothing to download."""
    model: str = "cnn"


_IMAGE_SCENARIOS = ("clean", "hidden-group", "hidden-group-noise", "noise", "longtail")

DATASETS: Mapping[str, DatasetEntry] = {
    "digits": DatasetEntry(
        "1,797 handwritten digits, 8 x 8 (scikit-learn)",
        ("hidden-group", "hidden-group-noise", "noise", "longtail", "clean"),
        model="mlp",
    ),
    "fashion-mnist": DatasetEntry("70,000 grey images of clothing, 28 x 28", _IMAGE_SCENARIOS, "FashionMNIST/raw"),
    "cifar10": DatasetEntry(
        "60,000 colour images, 32 x 32, 10 classes", _IMAGE_SCENARIOS, "cifar-10-batches-py", "resnet20"
    ),
    "cifar100": DatasetEntry(
        "60,000 colour images, 32 x 32, 100 classes", _IMAGE_SCENARIOS, "cifar-100-python", "resnet20"
    ),
}
