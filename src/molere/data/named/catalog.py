"""The image data sets by name: who reads them, at which size, with which model and recipe; and their pools."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from molere.corruption import canonical, scenario_of, scenarios
from molere.data.build import data_of
from molere.data.index import Index
from molere.data.joined import JoinedPool
from molere.data.named import clinics, clothing, fine, imagenets, pacs, wilds
from molere.data.named.about import folder_of
from molere.data.named.entries import DATASETS
from molere.data.named.rows import Parts
from molere.data.pool import Data

SELECT = 10_000  # images kept apart to pick the best update by, at most
SMALL = 100  # pixels below which images are cropped after padding instead of zoomed into
VALIDATION = "to validate on"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSet:
    """How a data set of image files is read, and what suits it."""

    read: Callable[[Path, str], Parts]
    """Root and variant -> parts."""
    recipe: Mapping[str, object]
    variants: tuple[str, ...] = ("",)
    """Scenarios that say which parts are read, the default first."""
    size: int = 224
    augment: str = "imagenet"
    headline: tuple[str, ...] = ("accuracy",)


Settings = Mapping[str, object]
_SCRATCH: Settings = {"epochs": 100, "batch_size": 64, "lr": 0.1, "weight_decay": 5e-4, "channels_last": True}
_LARGE: Settings = {"epochs": 90, "batch_size": 256, "lr": 0.1, "weight_decay": 1e-4, "channels_last": True}
_TUNED: Settings = {"epochs": 10, "batch_size": 64, "lr": 0.01, "weight_decay": 1e-3, "channels_last": True}

IMAGE_SETS: Mapping[str, ImageSet] = {
    "imagenet": ImageSet(read=imagenets.imagenet, recipe=_LARGE),
    "imagenet-100": ImageSet(read=imagenets.imagenet100, recipe=_SCRATCH),
    "imagenet-a": ImageSet(
        read=imagenets.imagenet_a,
        recipe=_LARGE,
        variants=("clean", "validation", "half"),
        headline=("accuracy", "imagenet-a/accuracy"),
    ),
    "imagenet-r": ImageSet(
        read=imagenets.imagenet_r,
        recipe=_LARGE,
        variants=("clean", "validation", "half"),
        headline=("accuracy", "imagenet-r/accuracy"),
    ),
    "aircraft": ImageSet(read=fine.aircraft, recipe=_SCRATCH),
    "cars": ImageSet(read=fine.cars, recipe=_SCRATCH),
    "pet": ImageSet(read=fine.pet, recipe=_SCRATCH),
    "clothing1m": ImageSet(read=clothing.clothing1m, recipe=_TUNED, variants=("noisy", "right-labels")),
    "camelyon": ImageSet(
        read=wilds.camelyon, recipe=_TUNED, size=96, augment="flip", headline=("accuracy", "id/accuracy")
    ),
    "iwildcam": ImageSet(read=wilds.iwildcam, recipe=_TUNED, headline=("accuracy", "id/accuracy")),
    "retinopathy": ImageSet(
        read=clinics.retinopathy, recipe=_TUNED, augment="flip", headline=("accuracy", "aptos/accuracy")
    ),
    "pacs": ImageSet(
        read=pacs.pacs,
        recipe=_SCRATCH,
        variants=("sketch", "photo", "cartoon", "art-painting"),
        augment="crop-flip",
        headline=("accuracy", "id/accuracy"),
    ),
}

COMPANIONS: Mapping[str, Callable[[Path], Index]] = {clinics.APTOS: clinics.aptos}
"""Further tests of these sets that are got and looked at by a name of their own."""


def parts_of(name: str, root: str | Path | None, variant: str) -> Parts:
    """Rows of all parts, no image opened; the first variant where there is no such one.

    DataError says what is missing and how to get it.
    """
    folder_of(name, root)
    known = IMAGE_SETS[name]
    return known.read(Path(root or ".").expanduser(), variant if variant in known.variants else known.variants[0])


def variant_of(scenario: str) -> str:
    """The name at the beginning of a scenario: of `sketch[uniform=0.2]` it is `sketch`."""
    return scenario.partition("[")[0].strip()


def image_data(
    name: str,
    root: str | Path | None,
    scenario: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    select: float = 0.1,
    *,
    noise_seed: int | None = None,
    image_size: int | None = None,
    on_bad: str | None = None,
) -> Data:
    """Pools of a data set of image files; see `sources.load`. Official validation parts are selected by, as a whole."""
    chosen = canonical(scenario) if scenario is not None else next(iter(scenarios(name)))
    setting = scenario_of(name, chosen)
    known, size = IMAGE_SETS[name], image_size or IMAGE_SETS[name].size
    parts = parts_of(name, root, variant_of(chosen))
    tests = parts.tests if parts.validation is None else {**parts.tests, VALIDATION: parts.validation}
    there = tuple(metric for metric in known.headline if metric.rpartition("/")[0] in {"", *tests})
    data = data_of(
        name,
        parts.train,
        tests,
        select=_selection(parts, select),
        size=size,
        augment="crop-flip" if known.augment == "imagenet" and size < SMALL else known.augment,
        on_bad=on_bad or "error",
        scenario=setting,
        scenario_name=chosen,
        limit=limit,
        seed=seed,
        noise_seed=noise_seed,
        headline=None if setting.groups else there,
        model=DATASETS[name].model,
        recipe=known.recipe,
    )
    return _with_validation(replace(data, answers=parts.answers, class_names=parts.train.classes))


def _selection(parts: Parts, select: float) -> float | Index:
    """The official part to select by, if one is wanted at all; else a share that is no more than SELECT images."""
    if parts.select is not None and select:
        return parts.select
    return min(select, SELECT / len(parts.train))


def _with_validation(data: Data) -> Data:
    """The data with the examples to validate on moved from the tests to the pool."""
    if VALIDATION not in data.tests:
        return data
    tests = {name: pool for name, pool in data.tests.items() if name != VALIDATION}
    return replace(data, train=JoinedPool(data.train, data.tests[VALIDATION]), tests=tests)
