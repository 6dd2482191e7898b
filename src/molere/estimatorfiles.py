"""Files of a fitted estimator: safetensors, Parquet and JSON with a manifest of SHA-256; no pickle, no code.

FOLDER/ estimator.json (settings, labels, columns, metrics) module.safetensors samples.parquet manifest.json
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import safetensors.torch
from torch import Tensor, nn

from molere.adapters import Adapted, Read
from molere.errors import ConfigError, StorageError
from molere.inputs import Inputs
from molere.models import build
from molere.result import Result
from molere.steps import Cost
from molere.storage import read_json, read_samples, write_bytes, write_json, write_samples

if TYPE_CHECKING:
    from molere.estimator import Model, MolereClassifier
    from molere.method import Method

FORMAT = 1
FILES = ("estimator.json", "module.safetensors", "samples.parquet")


def save(estimator: "MolereClassifier", folder: Path) -> None:
    """Write all files, the manifest last; NotFittedError before `fit`."""
    from sklearn.utils.validation import check_is_fitted  # pyright: ignore[reportUnknownVariableType]

    check_is_fitted(estimator, "module_")
    state = {k: v.detach().cpu().contiguous().clone() for k, v in estimator.module_.state_dict().items()}
    said = _said(estimator)
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file; give a folder, which is made if it is not there")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").unlink(missing_ok=True)
    write_bytes(folder / "module.safetensors", safetensors.torch.save(state))
    write_samples(folder / "samples.parquet", cast(Any, estimator.result_.samples))
    write_json(folder / "estimator.json", said)
    write_json(folder / "manifest.json", {name: _hash(folder / name) for name in FILES})


def load(
    make: Callable[..., "MolereClassifier"],
    folder: Path,
    model: "Model | None",
    logits: Read | None,
    method: "Method[Any] | None",
) -> "MolereClassifier":
    """Undo `save`; StorageError for damaged files, ConfigError where the user's own module is missing."""
    _check(folder)
    said = read_json(folder / "estimator.json")
    estimator = make(
        **{
            **said["settings"],
            **{k: v for k, v in (("model", model), ("logits", logits), ("method", method)) if v is not None},
        }
    )
    estimator.classes_ = _labels(said["classes"])
    estimator.n_features_in_ = said["features"]
    if said["names"] is not None:
        estimator.feature_names_in_ = np.asarray(said["names"], dtype=object)
    columns = {k: None if said[k] is None else np.asarray(said[k]) for k in ("shift", "scale")}
    estimator._inputs = Inputs(tuple(said["shape"]), said["images"], **columns)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    state = safetensors.torch.load((folder / "module.safetensors").read_bytes())
    module = _module(said, len(estimator.classes_), model, logits)
    estimator.module_ = _filled(module, state)
    samples = read_samples(folder / "samples.parquet")
    stored: dict[str, Any] = {**said["result"], "cost": Cost.of(said["result"]["cost"]), "history": said["history"]}
    estimator.result_ = Result(classifier=estimator.module_, samples=cast(Any, samples), **stored)
    estimator._learn_of_examples(estimator.result_, said["examples"])  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return estimator


def _said(estimator: "MolereClassifier") -> dict[str, Any]:  # Any: JSON
    result, found = estimator.result_, estimator._inputs  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    given = cast(dict[str, Any], cast(Any, estimator).get_params(deep=False))
    names = getattr(estimator, "feature_names_in_", None)
    return {
        "format": FORMAT,
        "settings": {k: v for k, v in given.items() if _is_plain(v)},
        "own_model": None if isinstance(estimator.model, str | None) else _name(estimator.model),
        "own_logits": estimator.logits is not None,
        "method": result.label,
        "classes": _listed(estimator.classes_),
        "features": estimator.n_features_in_,
        "names": None if names is None else [str(n) for n in names],
        "shape": list(found.shape),
        "images": found.images,
        "shift": None if found.shift is None else found.shift.tolist(),
        "scale": None if found.scale is None else found.scale.tolist(),
        "examples": len(estimator.weights_),
        "result": result.as_dict(),
        "history": result.history,
    }


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in cast(dict[object, object], value).items())
    return isinstance(value, str | int | float | bool | None)


def _name(model: object) -> str:
    return type(model).__name__ if isinstance(model, nn.Module) else getattr(model, "__name__", "model")


def _listed(labels: npt.NDArray[Any]) -> dict[str, Any]:  # Any: labels of any kind
    """Labels as JSON, points in time as the integers that numpy keeps."""
    plain = labels.astype(np.int64) if labels.dtype.kind in "mM" else labels
    return {"values": plain.tolist(), "type": labels.dtype.str}


def _labels(stored: dict[str, Any]) -> Any:  # Any: as above
    kind = np.dtype(stored["type"])
    return np.asarray(stored["values"], np.int64 if kind.kind in "mM" else kind).astype(kind)


def _module(said: dict[str, Any], classes: int, model: "Model | None", logits: Read | None) -> nn.Module:
    own, name = said["own_model"], said["settings"].get("model")
    if own is not None and (model is None or isinstance(model, str)):
        raise ConfigError(f"the module was a {own} of yours, whose code is not stored: pass model={own}")
    if said["own_logits"] and logits is None:
        raise ConfigError("the module's output was read by a function of yours, which is not stored: pass logits=...")
    if own is None:
        default = "cnn" if len(said["shape"]) == 3 or said["images"] else "mlp"
        shape = (1, *said["shape"]) if said["images"] and len(said["shape"]) == 2 else tuple(said["shape"])
        return build(name or default, num_classes=classes, input_shape=shape, dropout=_dropout(said))
    made = model if isinstance(model, nn.Module) else cast(Callable[[], nn.Module], model)()
    return made if logits is None else Adapted(made, logits)


def _dropout(said: dict[str, Any]) -> float:
    recipe: dict[str, Any] = said["settings"].get("recipe") or {}
    return float(recipe.get("dropout", 0.0))


def _filled(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The module with the stored values, in their type; StorageError where they do not fit."""
    floats = [v.dtype for v in state.values() if v.is_floating_point()]
    module = module.to(floats[0]) if floats else module
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise StorageError(
            f"the stored values do not fit {type(module).__name__}: {said}; pass the model that was fitted"
        ) from error
    return module.eval()


def _check(folder: Path) -> None:
    if not (folder / "manifest.json").is_file():
        raise StorageError(f"{folder} holds no saved classifier; give a folder that MolereClassifier.save wrote")
    for name, digest in read_json(folder / "manifest.json").items():
        if not (folder / name).is_file() or _hash(folder / name) != digest:
            raise StorageError(f"{folder / name} is missing or damaged; save the classifier again")
    said = read_json(folder / "estimator.json")
    if said.get("format") != FORMAT:
        raise StorageError(f"{folder} is of format {said.get('format')}, this version reads {FORMAT}; update molere")


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
