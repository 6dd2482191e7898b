"""Row S8: a file that holds a pickle which runs code is refused wherever a file is read, and nothing runs."""

import ast
import hashlib
import io
import json
import pickle
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import molere
from molere import MolereClassifier
from molere.config import read_yaml
from molere.data.corrections import corrected
from molere.data.files import read
from molere.data.named.cifars import human_labels
from molere.data.pool import Data, TensorPool
from molere.data.sources import load
from molere.errors import MolereError, StorageError
from molere.models.weights import read_weights
from molere.storage import RunFolder, read_samples
from molere.storage.cache import ContentCache
from molere.storage.checkpoint import _manifest, load_checkpoint, load_latest, save_checkpoint  # pyright: ignore

pytestmark = [pytest.mark.faults, pytest.mark.filterwarnings("ignore:.*is not the official file")]


class Runs:
    """Calls something when it is unpickled."""

    def __init__(self, call: Any, *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


def bombs(mark: Path) -> dict[str, bytes]:
    """Files that make the file `mark` when they are read carelessly."""
    code = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    command = f"import os; os.system('touch {mark}')"
    array = np.empty(2, object)
    array[:] = [Runs(eval, code), 1]
    saved, packed = io.BytesIO(), io.BytesIO()
    torch.save({"weight": torch.zeros(2), "more": Runs(exec, command)}, saved)
    np.savez(packed, x=array, y=np.arange(2))
    return {
        "eval": pickle.dumps(Runs(eval, code)),
        "within a batch": pickle.dumps({"data": Runs(exec, command), "labels": [0], "fine_labels": [0]}, protocol=2),
        "GLOBAL and REDUCE": f"cbuiltins\neval\n(S{code!r}\ntR.".encode(),
        "torch.save": saved.getvalue(),
        "npz with objects": packed.getvalue(),
        "os.system": pickle.dumps(Runs(__import__("os").system, f"touch {mark}"), protocol=0),
    }


# Each reads the file in the way that its owner does, and gives what came of it: None where it counts as missing.


def as_cifar10(content: bytes, folder: Path) -> object:
    base = folder / "cifar-10-batches-py"
    base.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (base / name).write_bytes(content)
    return read("cifar10", folder)


def as_cifar100(content: bytes, folder: Path) -> object:
    base = folder / "cifar-100-python"
    base.mkdir()
    for name in ("train", "test"):
        (base / name).write_bytes(content)
    return read("cifar100", folder)


def as_a_checkpoint(content: bytes, folder: Path) -> object:
    """Tensors of a checkpoint, with a manifest that fits."""
    path = save_checkpoint(folder, 3, {"x": torch.zeros(2)}, fsync=False)
    data = {"state.safetensors": content, "state.json": (path / "state.json").read_bytes()}
    (path / "state.safetensors").write_bytes(content)
    (path / "manifest.json").write_bytes(_manifest(3, data))
    return load_checkpoint(path)


def as_the_rest_of_a_checkpoint(content: bytes, folder: Path) -> object:
    """Numbers and texts of a checkpoint, with a manifest that fits."""
    path = save_checkpoint(folder, 3, {"x": torch.zeros(2)}, fsync=False)
    data = {"state.safetensors": (path / "state.safetensors").read_bytes(), "state.json": content}
    (path / "state.json").write_bytes(content)
    (path / "manifest.json").write_bytes(_manifest(3, data))
    return load_latest(folder)


def as_a_cached_result(content: bytes, folder: Path) -> object:
    """An entry of the cache, under the digest that fits."""
    ContentCache(folder).put("key", {"x": torch.zeros(2)})
    (entry,) = folder.glob("*.safetensors")
    entry.unlink()
    name = f"{entry.name.split('-')[0]}-{hashlib.sha256(content).hexdigest()}.safetensors"
    (folder / name).write_bytes(content)
    return ContentCache(folder).get("key")


def as_settings(content: bytes, folder: Path) -> object:
    (folder / "my.yaml").write_bytes(content)
    return read_yaml(folder / "my.yaml")


def as_samples(content: bytes, folder: Path) -> object:
    (folder / "samples.parquet").write_bytes(content)
    return read_samples(folder / "samples.parquet")


def as_weights(ending: str) -> Callable[[bytes, Path], object]:
    def as_weights_of(content: bytes, folder: Path) -> object:
        (folder / f"w{ending}").write_bytes(content)
        return read_weights(folder / f"w{ending}")

    as_weights_of.__name__ = f"as_weights{ending}"
    return as_weights_of


def as_human_labels(content: bytes, folder: Path) -> object:
    """CIFAR-10N's labels, which come as a pickle of torch."""
    (folder / "cifar-n").mkdir()
    (folder / "cifar-n" / "CIFAR-10_human.pt").write_bytes(content)
    return human_labels("cifar10n", folder, "worst")


def as_own_data(ending: str) -> Callable[[bytes, Path], object]:
    """Tables, arrays and embeddings of the user's own."""

    def as_data(content: bytes, folder: Path) -> object:
        (folder / f"mine{ending}").write_bytes(content)
        return load(str(folder / f"mine{ending}"))

    as_data.__name__ = f"as_own_data{ending}"
    return as_data


def as_an_image(content: bytes, folder: Path) -> object:
    for name in ("ant", "bee"):
        (folder / name).mkdir()
        (folder / name / "1.png").write_bytes(content)
    return load(str(folder), image_size=8)


def as_corrections(kind: str, ending: str) -> Callable[[bytes, Path], object]:
    def as_correction(content: bytes, folder: Path) -> object:
        (folder / f"mine{ending}").write_bytes(content)
        pool = TensorPool(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        return corrected(Data("x", pool, None, {"test": pool}), **{kind: folder / f"mine{ending}"})

    as_correction.__name__ = f"as_{kind}{ending}"
    return as_correction


@lru_cache
def saved_classifier() -> dict[str, bytes]:
    """The files that MolereClassifier.save writes."""
    x = np.random.default_rng(0).normal(size=(20, 2))
    with tempfile.TemporaryDirectory() as folder:
        MolereClassifier("erm", epochs=1, model="linear").fit(x, x[:, 0] > 0).save(f"{folder}/saved")
        return {p.name: p.read_bytes() for p in Path(folder, "saved").iterdir()}


def as_a_part_of_a_classifier(name: str) -> Callable[[bytes, Path], object]:
    """One file of a saved classifier, under a manifest that fits."""

    def as_part(content: bytes, folder: Path) -> object:
        files = {**saved_classifier(), name: content}
        manifest = {n: hashlib.sha256(files[n]).hexdigest() for n in files if n != "manifest.json"}
        for file, data in {**files, "manifest.json": json.dumps(manifest).encode()}.items():
            (folder / file).write_bytes(data)
        return MolereClassifier.load(folder)

    as_part.__name__ = f"as_a_classifiers_{name}"
    return as_part


def as_the_state_of_a_run(content: bytes, folder: Path) -> object:
    run = RunFolder(folder)
    (folder / "result.json").write_bytes(content)
    return run.read_json("result.json")


PLACES: list[Callable[[bytes, Path], object]] = [
    as_cifar10, as_cifar100, as_a_checkpoint, as_the_rest_of_a_checkpoint, as_a_cached_result, as_settings, as_samples,
    *map(as_weights, (".pt", ".pth", ".safetensors")), as_human_labels,
    *map(as_own_data, (".npz", ".parquet", ".feather", ".jsonl", ".svmlight")), as_an_image,
    as_corrections("labels", ".csv"), as_corrections("weights", ".parquet"), as_corrections("drop", ".txt"),
    as_a_part_of_a_classifier("module.safetensors"), as_the_state_of_a_run,
]  # fmt: skip


def test_pickles_that_run_code_are_refused_wherever_a_file_is_read(tmp_path: Path, row: Any) -> None:
    mark, wrong, total = tmp_path / "mark", list[tuple[object, object]](), 0
    for place in PLACES:
        for kind, content in bombs(mark).items():
            total += 1
            folder = tmp_path / "folder"
            folder.mkdir()
            try:
                if place(content, folder) is not None:
                    wrong.append(((place.__name__, kind), "taken"))
            except MolereError as error:
                if "\n" in str(error):
                    wrong.append(((place.__name__, kind), str(error)))
            except Exception as error:
                wrong.append(((place.__name__, kind), repr(error)))
            if mark.exists():
                mark.unlink()
                wrong.append(((place.__name__, kind), "it ran"))
            shutil.rmtree(folder)
    row.judge("S8", wrong, total)


@pytest.mark.parametrize("name", ["module.safetensors", "samples.parquet", "estimator.json"])
def test_a_classifiers_files_are_read_once_their_manifest_fits(name: str, tmp_path: Path) -> None:
    """What was saved is loaded, and a pickle in its place is refused for what it is, after the manifest was passed."""
    place = as_a_part_of_a_classifier(name)
    assert isinstance(place(saved_classifier()[name], tmp_path), MolereClassifier)
    refusals = {"module.safetensors": "SafetensorError", "samples.parquet": "as a table", "estimator.json": "JSON"}
    for kind, content in bombs(tmp_path / "mark").items():
        with pytest.raises(StorageError, match=refusals[name]):
            place(content, tmp_path)
        assert not (tmp_path / "mark").exists(), kind
    if name == "module.safetensors":
        other = safetensors.torch.save({"weight": torch.zeros(3)})
        with pytest.raises(StorageError, match="the stored values do not fit"):
            place(other, tmp_path)


def test_the_bombs_go_off_where_they_are_read_carelessly(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for kind, content in bombs(mark).items():
        if kind == "torch.save":
            torch.load(io.BytesIO(content), weights_only=False)
        elif kind == "npz with objects":
            np.load(io.BytesIO(content), allow_pickle=True)["x"]
        else:
            pickle.loads(content)
        assert mark.exists(), kind
        mark.unlink()


def test_a_column_of_objects_is_no_input() -> None:
    with pytest.raises(MolereError, match="x must be numbers; got object"):
        TensorPool(np.array([[1.0], [None]], object), [0, 1])


CARELESS = {
    "pickle": {"load", "loads"},
    "torch": {"load"},
    "yaml": {"load", "load_all", "unsafe_load", "full_load"},
    "joblib": {"load"},
    "pd": {"read_pickle"},
    "dill": {"load", "loads"},
    "shelve": {"open"},
}


def test_no_source_file_reads_pickles_but_the_guarded_reader() -> None:
    found = list[str]()
    root = Path(molere.__file__).parent
    for path in sorted(root.rglob("*.py")):
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)) if re.search("load|pickle|shelve", text) else ():
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = node.func.value.id if isinstance(node.func.value, ast.Name) else ""
                given = {k.arg: ast.unparse(k.value) for k in node.keywords}
                careless = node.func.attr in CARELESS.get(owner, ()) and given.get("weights_only") != "True"
                if careless or given.get("allow_pickle", "False") != "False" or given.get("weights_only") == "False":
                    found.append(f"{path.relative_to(root)}:{node.lineno}")
    assert found == []


def test_the_parameters_that_a_run_leaves_are_read_without_pickle(tmp_path: Path) -> None:
    content = bombs(tmp_path / "mark")["torch.save"]
    with pytest.raises(Exception, match="(?i)header"):
        safetensors.torch.load(content)
    assert not (tmp_path / "mark").exists()
