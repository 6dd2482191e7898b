"""Weights for a classifier: by their published name, or from a file that cannot run code.

A file is .safetensors, or .pt or .pth as `torch.save(model.state_dict(), file)` makes it; it may hold the state under
`state_dict` or `model`, and names may begin with `module.` (DataParallel) or `_orig_mod.` (torch.compile).
"""

import hashlib
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, cast  # Any: what a file holds, and torchvision, which is untyped

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from molere.errors import ConfigError, DataError, ResourceError
from molere.models.structure import head_of, head_or_none
from molere.names import one_line, unknown

ENDINGS: Final = (".safetensors", ".pt", ".pth")
INSIDE: Final = ("state_dict", "model_state_dict", "model", "state_dict_ema")
PREFIXES: Final = ("module.", "_orig_mod.", "model.")
POSITIONS: Final = "encoder.pos_embedding"

State = dict[str, Tensor]


def is_file(weights: str) -> bool:
    """Whether weights are named by a file rather than by their published name."""
    return Path(weights).suffix.lower() in ENDINGS or bool(re.search(r"[/\\~]", weights)) or Path(weights).is_file()


def content(weights: str | None) -> str | None:
    """Hash of a file of weights; None for published names and for none, and where there is no such file."""
    if weights is None or not is_file(weights) or not Path(weights).expanduser().is_file():
        return None
    with Path(weights).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_weights(path: str | Path) -> State:
    """The tensors of a file by name; DataError, in one line, for anything but tensors."""
    place = Path(path).expanduser()
    if place.suffix.lower() not in ENDINGS:
        raise ConfigError(f"weights {one_line(str(path))}: expected a file that ends in {', '.join(ENDINGS)}")
    if not place.is_file():
        raise DataError(f"weights {place}: there is no such file; correct train.weights")
    try:
        found = _tensors_of(place) if place.suffix.lower() == ".safetensors" else _unpickled(place)
    except Exception as error:  # a damaged file can raise anything
        why = "it is damaged, or asks to run code"
        raise DataError(
            f"weights {place} cannot be read: {why} ({type(error).__name__}); save model.state_dict()"
        ) from error
    return _without_prefix(_checked(_inner(found), place))


def _tensors_of(place: Path) -> object:
    return safetensors.torch.load(place.read_bytes())


def _unpickled(place: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch speaks of old formats, which are then refused or read
        return cast(object, torch.load(place, map_location="cpu", weights_only=True))


def _inner(found: object) -> object:
    """The state inside a checkpoint."""
    if isinstance(found, Mapping):
        whole = cast(Mapping[Any, Any], found)
        return next((whole[key] for key in INSIDE if isinstance(whole.get(key), Mapping)), whole)
    return found


def _checked(found: object, place: Path) -> State:
    if not isinstance(found, Mapping):
        raise DataError(f"weights {place} hold a {type(found).__name__}, expected tensors by name; save state_dict()")
    state = cast(Mapping[Any, Any], found)
    stray = next((k for k, value in state.items() if not isinstance(k, str) or not isinstance(value, Tensor)), None)
    if stray is not None or not state:
        what = f"{one_line(stray)} is a {type(state[stray]).__name__}" if state else "there is none"
        raise DataError(f"weights {place}: expected tensors by name, but {what}; save model.state_dict()")
    return dict(state)


def _without_prefix(state: State) -> State:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_prefix({name.removeprefix(prefix): value for name, value in state.items()})
    return state


def load_weights(model: nn.Module, weights: str, name: str) -> nn.Module:
    """Put the tensors of a file into a classifier, in place; `name` is the classifier's in messages.

    A head for another number of classes starts new, which a warning says. Anything else that is missing, left over or
    of another shape is a ConfigError.
    """
    state, new = fitted(model, read_weights(weights), f"weights {weights}", name)
    if new:
        warnings.warn(f"weights {weights}: {new}; the head of {name} starts new", stacklevel=2)
    model.load_state_dict(state, strict=False)
    return model


def load_published(model: nn.Module, architecture: str, weights: str) -> nn.Module:
    """Put torchvision's weights of that name into its classifier, in place; another number of classes: but the head."""
    from torchvision import models

    choice = cast(Any, models).get_model_weights(architecture)
    known = {"DEFAULT": choice.DEFAULT, **{entry.name: entry for entry in choice}}
    short = weights.removeprefix(f"{choice.__name__}.")
    if short not in known:
        raise ConfigError(f"{unknown(f'weights of {architecture}', weights, known)}; or a file")
    try:
        state = known[short].get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # of the network, of the disk, or a wrong hash
        raise ResourceError(fetching(f"{architecture}: {weights}", error)) from error
    model.load_state_dict(fitted(model, state, f"weights {weights}", architecture)[0], strict=False)
    return model


def fetching(what: str, error: Exception) -> str:
    """The sentence for weights that could not be fetched."""
    why = " ".join(str(error).split())[:120] or type(error).__name__
    return f"weights {what} cannot be fetched ({why}); fetch them by hand and set train.weights=FILE"


def fitted(model: nn.Module, state: State, what: str, name: str) -> tuple[State, str]:
    """The tensors as the classifier names and shapes them, and where its head differs, in words ("": it does not).

    Raises ConfigError if more than the head differs.
    """
    wanted = cast(State, model.state_dict())
    head = None if head_or_none(model) is None else head_of(model)[0]
    state = _positions_fitted(_as_wrapped(state, wanted, head or ""), wanted)
    state = {k: v for k, v in state.items() if k in wanted or not k.startswith(("aux", "AuxLogits"))}
    own = {k for k in wanted if head is not None and (k.startswith(f"{head}.") or k == "head" or not head)}
    other = sorted(k for k in own if k in state and state[k].shape != wanted[k].shape)
    wrong = sorted(k for k in wanted if k in state and k not in own and state[k].shape != wanted[k].shape)
    missing = [k for k in wanted if k not in state and not k.endswith("num_batches_tracked") and k not in own]
    spare = [k for k in state if k not in wanted]
    if wrong or missing or spare:
        parts = {"missing": missing, "left over": spare, "of another shape": wrong}
        told = "; ".join(f"{len(k)} {kind} ({', '.join(k[:2])})" for kind, k in parts.items() if k)
        raise ConfigError(f"{what} do not fit {name}: {told}; choose the classifier they are of with --model")
    absent = [k for k in own if k not in state]
    new = f"there is no {min(absent)}" if absent else ""
    if other:
        new = f"{other[-1]} is {list(state[other[-1]].shape)}, here {list(wanted[other[-1]].shape)}"
    return {k: v for k, v in state.items() if k not in own or not (other or absent)}, new


def _as_wrapped(state: State, wanted: State, head: str) -> State:
    """Names of the head's tensors as in the classifier, whichever of the two has dropout before the head."""
    for bare in {head, head.removesuffix(".1")}:
        here, there = (_begins(names, f"{bare}.1.") for names in (wanted, state))
        if here and not there:
            state = {re.sub(rf"^{re.escape(bare)}\.", f"{bare}.1.", k): v for k, v in state.items()}
        elif there and not here and _begins(wanted, f"{bare}."):
            state = {re.sub(rf"^{re.escape(bare)}\.1\.", f"{bare}.", k): v for k, v in state.items()}
    return state


def _begins(names: Iterable[str], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in names)


def _positions_fitted(state: State, wanted: State) -> State:
    """A vision transformer's position embedding, resized to the number of patches here."""
    if POSITIONS not in state or POSITIONS not in wanted or state[POSITIONS].shape[1] == wanted[POSITIONS].shape[1]:
        return state
    return {**state, POSITIONS: _resized(state[POSITIONS], wanted[POSITIONS].shape[1])}


def _resized(embedding: Float[Tensor, "1 old d"], count: int) -> Float[Tensor, "1 new d"]:
    """Interpolated over the square of patches, bicubic; the class token stays (Dosovitskiy et al. 2021, sec. 3.2)."""
    token, grid = embedding[:, :1], embedding[:, 1:]
    side, new = round(grid.shape[1] ** 0.5), round((count - 1) ** 0.5)
    square = grid.transpose(1, 2).reshape(1, -1, side, side)
    resized = F.interpolate(square, size=new, mode="bicubic", align_corners=True)
    return torch.cat([token, resized.flatten(2).transpose(1, 2)], dim=1)
