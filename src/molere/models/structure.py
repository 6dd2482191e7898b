"""Where a classifier ends: its head, the features that enter it, and whether the network is shallow.

The rule for any `nn.Module`: the head is the attribute `head` if the model has both `features` and `head`,
else the last `nn.Linear` in registration order. The input of that module is the penultimate feature, [n, d].
"""

from collections.abc import Iterator
from itertools import islice
from typing import Final, cast

from torch import nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage]  # the one base of all convolutions
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from molere.errors import ConfigError

DEEP: Final = (
    _ConvNd,
    nn.RNNBase,
    nn.RNNCellBase,
    nn.MultiheadAttention,
    nn.TransformerEncoderLayer,
    nn.TransformerDecoderLayer,
)


def head_of(model: nn.Module) -> tuple[str, nn.Module]:
    """The qualified name and the module of a classifier's head; the name is "" if the model is a bare Linear.

    Raises ConfigError if the model has no Linear layer, or if its last one is tied to another module.
    """
    head = getattr(model, "head", None)
    if isinstance(head, nn.Module) and hasattr(model, "features"):
        return "head", head
    modules = cast(Iterator[tuple[str, nn.Module]], model.named_modules(remove_duplicate=False))
    linear = [(name, module) for name, module in modules if _is_called_linear(module)]
    if not linear:
        raise ConfigError(_advice(model, "has no nn.Linear layer to take as its head"))
    name, head = linear[-1]
    if _is_tied(model, head):
        raise ConfigError(_advice(model, f"shares the weight of its last nn.Linear, {name!r}"))
    return name, head


def head_or_none(model: nn.Module) -> nn.Module | None:
    """The module of the head, or none where `head_of` finds none; methods that read its input say so themselves."""
    try:
        return head_of(model)[1]
    except ConfigError:
        return None


def feature_width(model: nn.Module) -> int:
    """The number d of penultimate features: `in_features` of the head, or of the first Linear inside it."""
    _, head = head_of(model)
    widths = (m.in_features for m in head.modules() if isinstance(m, nn.Linear))
    width = next(widths, None)
    if width is None:
        raise ConfigError(_advice(model, "has a head without an nn.Linear, so its feature width is unknown"))
    return width


def replace_head(model: nn.Module, head: nn.Module) -> nn.Module:
    """Put another module where the head is, in place; returns the model, or the head if that is all of it."""
    name, _ = head_of(model)
    if not name:
        return head
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, head)
    return model


def with_dropout(model: nn.Module, share: float) -> nn.Module:
    """The classifier with dropout on what enters its head, in place; unchanged for a share of 0."""
    return model if share == 0 else replace_head(model, nn.Sequential(nn.Dropout(share), head_of(model)[1]))


def is_shallow(model: nn.Module) -> bool:
    """Whether at most 3 Linear layers are trained and no convolution, recurrence or attention is.

    Layers whose parameters are all frozen do not count: a linear head on a frozen backbone is shallow.
    Learned weights help such models; a deep network trained end to end interpolates its training data.
    """
    trained = [m for m in model.modules() if any(p.requires_grad for p in m.parameters())]
    linear = (m for m in trained if isinstance(m, nn.Linear))
    return not any(isinstance(m, DEEP) for m in trained) and len(list(islice(linear, 4))) <= 3


def _is_called_linear(module: nn.Module) -> bool:
    # MultiheadAttention reads the weight of its output projection and never calls the layer: no input to tap.
    return isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear)


def _is_tied(model: nn.Module, head: nn.Module) -> bool:
    parameters = model.named_parameters(remove_duplicate=False)
    return sum(parameter is head.weight for _, parameter in parameters) > 1


def _advice(model: nn.Module, problem: str) -> str:
    return f"{type(model).__name__} {problem}: give it `features` (x to [n, d]) and `head` (nn.Linear)"
