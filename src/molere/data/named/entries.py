"""The data sets by name: what each is, its scenarios, its usual folder. Plain strings: no torch."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetEntry:
    """One data set: what it is, the scenarios it can be trained under, and the folder it is looked for in."""

    summary: str
    scenarios: tuple[str, ...]
    folder: str = ""
    """Where below --root; empty: embedded, nothing to download."""
    model: str = "cnn"


_IMAGE_SCENARIOS = ("clean", "hidden-group", "hidden-group-noise", "noise", "longtail", "spurious")

DATASETS: Mapping[str, DatasetEntry] = {
    "digits": DatasetEntry(
        "1,797 handwritten digits, 8 x 8 (scikit-learn)",
        ("hidden-group", "hidden-group-noise", "noise", "longtail", "spurious", "clean"),
        model="mlp",
    ),
    "fashion-mnist": DatasetEntry("70,000 grey images of clothing, 28 x 28", _IMAGE_SCENARIOS, "FashionMNIST/raw"),
    "cifar10": DatasetEntry(
        "60,000 colour images, 32 x 32, 10 classes", _IMAGE_SCENARIOS, "cifar-10-batches-py", "resnet20"
    ),
    "cifar100": DatasetEntry(
        "60,000 colour images, 32 x 32, 100 classes", _IMAGE_SCENARIOS, "cifar-100-python", "resnet20"
    ),
    "cifar10n": DatasetEntry(
        "CIFAR-10 with labels that people gave (CIFAR-10N), 9 to 40 % wrong",
        ("worst", "aggregate", "random1", "random2", "random3", "clean"),
        "cifar-n",
        "resnet20",
    ),
    "cifar100n": DatasetEntry(
        "CIFAR-100 with labels that people gave (CIFAR-100N), 40 % wrong", ("noisy", "clean"), "cifar-n", "resnet20"
    ),
    "cifar10.1": DatasetEntry(
        "CIFAR-10 with a second test, CIFAR-10.1 (2,000 images)", _IMAGE_SCENARIOS, "CIFAR-10.1", "resnet20"
    ),
    "imagenet": DatasetEntry("1.28 million photographs, 1,000 classes", _IMAGE_SCENARIOS, "imagenet", "resnet50"),
    "imagenet-100": DatasetEntry("100 classes of ImageNet", _IMAGE_SCENARIOS, "imagenet-100", "vgg16"),
    "imagenet-a": DatasetEntry(
        "ImageNet with a second test, natural adversarial examples; or half of them to validate on",
        ("clean", "validation", "half"),
        "imagenet-a",
        "resnet50",
    ),
    "imagenet-r": DatasetEntry(
        "ImageNet with a second test, renditions; or half of them to validate on",
        ("clean", "validation", "half"),
        "imagenet-r",
        "resnet50",
    ),
    "aircraft": DatasetEntry(
        "10,000 photographs of aircraft, 100 variants", _IMAGE_SCENARIOS, "fgvc-aircraft-2013b", "resnet32"
    ),
    "cars": DatasetEntry("16,185 photographs of cars, 196 models", _IMAGE_SCENARIOS, "stanford_cars", "resnet32"),
    "pet": DatasetEntry(
        "7,349 photographs of cats and dogs, 37 breeds", _IMAGE_SCENARIOS, "oxford-iiit-pet", "resnet152"
    ),
    "clothing1m": DatasetEntry(
        "1 million photographs of clothes, 14 classes, labels from surrounding text",
        ("noisy", "right-labels"),
        "clothing1m",
        "resnet50",
    ),
    "camelyon": DatasetEntry(
        "patches of lymph nodes from three hospitals, tested on another one", ("clean",), "camelyon17_v1.0", "resnet50"
    ),
    "iwildcam": DatasetEntry(
        "photographs of 182 animals by camera traps, tested on other traps", ("clean",), "iwildcam_v2.0", "resnet50"
    ),
    "retinopathy": DatasetEntry(
        "eyes with diabetic retinopathy or without, tested on another country's too (APTOS)",
        ("clean",),
        "diabetic-retinopathy-detection",
        "resnet50",
    ),
    "pacs": DatasetEntry(
        "9,991 photos, art paintings, cartoons and sketches of 7 things, tested on a style of its own",
        ("sketch", "photo", "cartoon", "art-painting"),
        "PACS",
        "resnet50",
    ),
}
