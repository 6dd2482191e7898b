"""The classifiers: named builders, and the rule that finds the head of any module.

mlp, linear                    any input shape
cnn, resnet20, resnet32, ...   images of any number of channels, 8x8 to 64x64
wrn-16-2, ..., wrn-28-10       the same; any wrn-DEPTH-WIDTH with depth 6n+4
resnet18, vgg16, vit_b_16 ...  every torchvision classifier, by torchvision's name; three channels
timm:NAME                      every timm classifier, by timm's name (with its tag, if any); the extra `timm`
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from torch import nn

from molere.errors import ConfigError
from molere.models.pretrained import from_timm
from molere.models.small import Classifier, Shape, cnn, linear, mlp, resnet, wide_resnet
from molere.models.structure import feature_width, head_of, head_or_none, is_shallow, replace_head, with_dropout
from molere.models.weights import is_file, load_published, load_weights
from molere.names import nearest, one_line
from molere.rng import key, seeded

__all__ = ["Classifier", "build", "feature_width", "head_of", "head_or_none", "is_shallow", "replace_head"]

Maker = Callable[[Shape, int, float], nn.Module]

TABULAR: Final[dict[str, Maker]] = {"mlp": mlp, "linear": linear}
IMAGE: Final[dict[str, Maker]] = {
    "cnn": cnn,
    **{f"resnet{depth}": partial(resnet, depth=depth) for depth in (20, 32, 44, 56, 110)},
}
WRN_EXAMPLES: Final = ("wrn-16-2", "wrn-16-4", "wrn-28-2", "wrn-28-10")


def build(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    dropout: float = 0.0,
    seed: int = 0,
    weights: str | None = None,
) -> nn.Module:
    """A new classifier from x [n, *input_shape] to logits [n, num_classes], on the CPU.

    Initialised from (seed, "init") alone; the global generators are left as they were. `dropout` in [0, 1)
    acts right before the head, on top of any dropout the architecture has itself. `weights` replace the initial
    parameters: a name that torchvision or timm published them under, or a file (`molere.models.weights`); a head for
    another number of classes starts new. Raises ConfigError, DataError for files, ResourceError for downloads.
    """
    if not 0 <= dropout < 1:
        raise ConfigError(f"dropout {dropout} is outside [0, 1): give a share of features to drop, e.g. dropout=0.25")
    published = weights if weights is not None and not is_file(weights) else None
    with seeded(key(seed, "init")):
        if name.startswith("timm:"):
            model = from_timm(name.removeprefix("timm:"), input_shape, num_classes, dropout, published)
        else:
            model = _maker(name, input_shape)(input_shape, num_classes, dropout)
            if published is not None:
                _publish(model, name, published)
    return model if weights is None or weights == published else load_weights(model, weights, name)


def _publish(model: nn.Module, name: str, weights: str) -> None:
    if name in TABULAR or name in IMAGE or _wide_resnet(name):
        known = "no published weights are known of it: give a file that ends in .safetensors, .pt or .pth"
        raise ConfigError(f"weights {one_line(weights)} of {name}: {known}")
    load_published(model, name.removeprefix("torchvision:"), weights)


def _maker(name: str, shape: Shape) -> Maker:
    if name in TABULAR:
        return TABULAR[name]
    maker = IMAGE.get(name) or _wide_resnet(name) or _torchvision_maker(name)
    if len(shape) != 3:
        raise ConfigError(f"{name} takes images (channels, height, width), not shape {shape}: use mlp or linear")
    return maker


def _wide_resnet(name: str) -> Maker | None:
    match = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if match is None:
        return None
    depth, widen = map(int, match.groups())
    if depth < 10 or depth % 6 != 4 or widen < 1:
        raise ConfigError(f"{name}: the depth must be 6n+4 (10, 16, 22, 28, 40) and the width >= 1, e.g. wrn-16-2")
    return partial(wide_resnet, depth=depth, widen=widen)


def _torchvision_maker(name: str) -> Maker:
    models = _torchvision()

    theirs: list[str] = models.list_models(module=models)
    if name.removeprefix("torchvision:") in theirs:
        return partial(_from_torchvision, name.removeprefix("torchvision:"))
    ours = [*TABULAR, *IMAGE, *WRN_EXAMPLES]
    near = nearest(name, [*ours, *theirs])
    hint = f"did you mean {near!r}?" if near else f"use {', '.join(ours)}, a torchvision classifier or timm:NAME"
    raise ConfigError(f"unknown model {one_line(name)}: {hint}")


def _torchvision() -> Any:  # Any: torchvision is untyped
    # Imported only here: it takes a second, and most models do not need it.
    from torchvision import models

    return models


def _from_torchvision(name: str, shape: Shape, num_classes: int, dropout: float) -> nn.Module:
    models = _torchvision()
    if shape[0] != 3:
        raise ConfigError(f"{name} takes 3 channels, not {shape[0]}: use cnn, resnet20 or wrn-16-2, which take any")
    try:
        model = models.get_model(name, weights=None, num_classes=num_classes, **_options(name, shape))
    except (ValueError, AssertionError) as error:
        raise ConfigError(f"{name} cannot be built for images of shape {shape}: {error}") from error
    return with_dropout(model, dropout)


def _options(name: str, shape: Shape) -> dict[str, Any]:  # Any: passed on to torchvision as keywords
    if name in ("googlenet", "inception_v3"):  # without auxiliary heads a model returns logits, not a tuple
        return {"aux_logits": False, "init_weights": True}
    if name.startswith("vit_"):  # the position embedding has the size of the images
        if shape[1] != shape[2]:
            raise ValueError("they must be square")
        return {"image_size": shape[-1]}
    if name.startswith("maxvit"):
        return {"input_size": shape[1:]}
    return {}
