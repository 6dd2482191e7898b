"""Files of a fitted estimator: safetensors, Parquet and JSON with a manifest of SHA-256; no pickle, no code.

FOLDER/ estimator.json (settings, labels, columns, metrics) module.safetensors samples.parquet manifest.json

The folder is written beside its place and then renamed, so that a save that fails leaves the one before.
"""

import hashlib
import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import safetensors.torch
from torch import Tensor, nn

from molere.adapters import Adapted, made_of
from molere.errors import MolereError, StorageError
from molere.estimatorsettings import Stored
from molere.inputs import Inputs
from molere.models import build
from molere.result import Result
from molere.steps import Cost
from molere.storage import read_json, read_samples
from molere.storage.checkpoint import write_folder
from molere.storage.files import strict
from molere.storage.samples import samples_bytes

if TYPE_CHECKING:
    from molere.estimator import MolereClassifier

FORMAT = 2
FILES = ("estimator.json", "module.safetensors", "samples.parquet")
MANIFEST = "manifest.json"


def save(estimator: "MolereClassifier", folder: Path) -> None:
    """Put all files in place at once; NotFittedError before `fit`, StorageError where that cannot be done."""
    from sklearn.utils.validation import check_is_fitted  # pyright: ignore[reportUnknownVariableType]

    check_is_fitted(estimator, "module_")
    contents = _contents(estimator)
    try:
        target = _free(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_folder(target, contents, prefix=f".{target.name}.tmp-")
    except OSError as error:
        size = sum(map(len, contents.values()))
        said = f"{error.strerror or error}; {size} bytes are needed"
        raise StorageError(
            f"cannot save to {folder} ({said}), where nothing was changed; give another folder"
        ) from error


def load(make: Callable[..., "MolereClassifier"], folder: Path, given: Mapping[str, Any]) -> "MolereClassifier":
    """Undo `save`; StorageError for damaged files, ConfigError where something of the user's own is missing."""
    _check(folder)
    with _understood(folder):
        said = read_json(folder / "estimator.json")
        _check_format(folder, said)
        estimator = _unfilled(make, said, given)
        state = safetensors.torch.load((folder / "module.safetensors").read_bytes())
        samples = read_samples(folder / "samples.parquet")
        stored: dict[str, Any] = {**said["result"], "cost": Cost.of(said["result"]["cost"]), "history": said["history"]}
    estimator.module_ = _filled(_module(estimator), state)
    with _understood(folder):
        estimator.result_ = Result(classifier=estimator.module_, samples=cast(Any, samples), **stored)
        estimator._learn_of_examples(estimator.result_, said["examples"])  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return estimator


# ---- what is written


def _contents(estimator: "MolereClassifier") -> dict[str, bytes]:
    """Each file, the manifest last."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in estimator.module_.state_dict().items()}
    made = {
        "estimator.json": _json(_said(estimator)),
        "module.safetensors": safetensors.torch.save(state),
        "samples.parquet": samples_bytes(cast(Any, estimator.result_.samples)),
    }
    return {**made, MANIFEST: _json({name: _hash(data) for name, data in made.items()})}


def _said(estimator: "MolereClassifier") -> dict[str, Any]:  # Any: JSON
    result, found = estimator.result_, estimator._inputs  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    settings = Stored.of(cast(Any, estimator).get_params(deep=False))
    names = getattr(estimator, "feature_names_in_", None)
    return {
        "format": FORMAT,
        "settings": settings.plain,
        "spec": settings.spec,
        "own": settings.own,
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


def _free(folder: Path) -> Path:
    """The folder in full, if it is not there, empty or a saved classifier's; StorageError otherwise."""
    target = folder.resolve()
    if target.exists() and not target.is_dir():
        raise StorageError(f"{folder} is a file; give a folder, which is made if it is not there")
    if Path.cwd().is_relative_to(target):
        raise StorageError(f"{folder} is where this program works; give a folder in it, which is made")
    held = sorted(p.name for p in target.iterdir()) if target.exists() else []
    if strangers := [name for name in held if name not in (*FILES, MANIFEST)]:
        raise StorageError(f"{folder} holds {strangers[0]}; give an empty folder, or one of a saved classifier alone")
    if held and not _is_manifest(target):
        raise StorageError(
            f"{folder} holds {held[0]}, but no saved classifier; give an empty folder, or clear this one"
        )
    return target


def _is_manifest(folder: Path) -> bool:
    try:
        _manifest(folder)
    except StorageError:
        return False
    return True


def _listed(labels: npt.NDArray[Any]) -> dict[str, Any]:  # Any: labels of any kind
    """Labels as JSON, points in time as the integers that numpy keeps."""
    plain = labels.astype(np.int64) if labels.dtype.kind in "mM" else labels
    return {"values": plain.tolist(), "type": labels.dtype.str}


def _json(value: object) -> bytes:
    return f"{json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False)}\n".encode()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- what is read


def _check(folder: Path) -> None:
    """StorageError unless there is a manifest of exactly these files, and each is as it says."""
    for name, digest in _manifest(folder).items():
        if not (folder / name).is_file() or _hash((folder / name).read_bytes()) != digest:
            raise StorageError(f"{folder / name} is missing or damaged; save the classifier again")


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise StorageError(f"{folder} holds no saved classifier; give a folder that MolereClassifier.save wrote")
    found = read_json(path)
    if not isinstance(found, dict) or set(cast(dict[str, Any], found)) != set(FILES):
        raise StorageError(f"{path} does not list the files of a saved classifier; save the classifier again")
    return cast(dict[str, Any], found)


@contextmanager
def _understood(folder: Path) -> Generator[None]:
    """StorageError for what files that fit their manifest, but were not written here, may hold."""
    try:
        yield
    except MolereError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:80]}"
        raise StorageError(
            f"{folder} is not as MolereClassifier.save leaves it ({said}); save the classifier again"
        ) from error


def _check_format(folder: Path, said: dict[str, Any]) -> None:
    if said["format"] != FORMAT:
        hint = "save the classifier again" if said["format"] < FORMAT else "update molere"
        raise StorageError(f"{folder} is of format {said['format']}, this version reads {FORMAT}; {hint}")


def _unfilled(
    make: Callable[..., "MolereClassifier"], said: dict[str, Any], given: Mapping[str, Any]
) -> "MolereClassifier":
    """The estimator without its module."""
    estimator = make(**Stored(said["settings"], said["spec"], said["own"]).settings(given))
    estimator.classes_ = _labels(said["classes"])
    estimator.n_features_in_ = said["features"]
    if said["names"] is not None:
        estimator.feature_names_in_ = np.asarray(said["names"], dtype=object)
    columns = {k: None if said[k] is None else np.asarray(said[k]) for k in ("shift", "scale")}
    estimator._inputs = Inputs(tuple(said["shape"]), said["images"], **columns)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    return estimator


def _labels(stored: dict[str, Any]) -> Any:  # Any: as above
    kind = np.dtype(stored["type"])
    return np.asarray(stored["values"], np.int64 if kind.kind in "mM" else kind).astype(kind)


def _module(estimator: "MolereClassifier") -> nn.Module:
    """A new module, as `fit` makes it."""
    model, found = estimator.model, estimator._inputs  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    if model is not None and not isinstance(model, str):
        made = made_of(model)
        return made if estimator.logits is None else Adapted(made, estimator.logits)
    shape = (1, *found.shape) if found.images and len(found.shape) == 2 else found.shape
    dropout = float(cast(float, (estimator.recipe or {}).get("dropout", 0.0)))
    name = model or ("cnn" if found.are_images else "mlp")
    return build(name, num_classes=len(estimator.classes_), input_shape=shape, dropout=dropout)


def _filled(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """The module with the stored values, each in its type; StorageError where they do not fit."""
    for name, held in (*module.named_parameters(), *module.named_buffers()):
        if name in state:
            held.data = held.data.to(state[name].dtype)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        said = " ".join(str(error).split())
        raise StorageError(
            f"the stored values do not fit {type(module).__name__}: {said}; pass the model that was fitted"
        ) from error
    return module.eval()
