"""Classifiers of timm, an extra: by timm's names, with timm's weights."""

import importlib
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any  # Any: timm is untyped

from torch import nn

from molere.errors import ConfigError, ResourceError
from molere.models.small import Shape
from molere.models.structure import with_dropout
from molere.models.weights import fetching
from molere.names import nearest, one_line

DEFAULT = ("default", "DEFAULT", "pretrained")
"""What stands for the weights that timm itself would take."""


def from_timm(name: str, shape: Shape, num_classes: int, dropout: float, weights: str | None) -> nn.Module:
    """A timm classifier for images of a shape; `weights` is `default`, or the tag that they were published under."""
    timm = _timm()
    base, _, tag = name.partition(".")
    if base not in timm.list_models():
        near = nearest(base, timm.list_models())
        hint = f"did you mean timm:{near}?" if near else "see timm.list_models()"
        raise ConfigError(f"unknown model {one_line(f'timm:{name}')}: {hint}")
    if len(shape) != 3:
        raise ConfigError(f"timm:{name} takes images (channels, height, width), not shape {shape}: use mlp or linear")
    tag = tag if weights is None or weights in DEFAULT else weights
    full = _tagged(timm, base, tag)
    try:
        model = _created(timm, full, weights is not None, num_classes, shape)
    except (OSError, ImportError) as error:
        raise ResourceError(fetching(f"timm:{full}: {weights}", error)) from error
    except Exception as error:  # of shapes that do not fit, or of a download
        said = " ".join(str(error).split())[:200]
        if weights is not None:
            raise ResourceError(fetching(f"timm:{full}: {weights}", error)) from error
        raise ConfigError(f"timm:{name} cannot be built for images of shape {shape}: {said}") from error
    return with_dropout(model, dropout)


def _tagged(timm: Any, base: str, tag: str) -> str:
    """base.tag; ConfigError if there are no weights of that tag."""
    if not tag:
        return base
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{base}.*")]
    if tag not in known:
        listed = ", ".join(known) or "none; give a file"
        raise ConfigError(f"unknown weights {one_line(tag)} of timm:{base}. Known: {listed}")
    return f"{base}.{tag}"


def _created(timm: Any, name: str, is_pretrained: bool, num_classes: int, shape: Shape) -> nn.Module:
    more = {"img_size": shape[1:]} if getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False) else {}
    with warnings.catch_warnings(), _quiet("huggingface_hub"):
        warnings.simplefilter("ignore")  # of timm about itself
        return timm.create_model(name, pretrained=is_pretrained, num_classes=num_classes, in_chans=shape[0], **more)


@contextmanager
def _quiet(library: str) -> Generator[None]:
    """Errors of a library alone: it speaks of every attempt to download."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _timm() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("timm")
        except ImportError as error:
            raise ConfigError("timm: models need timm, which is not installed; type: pip install timm") from error
