"""A few examples to look at: the hardest and the most suspect of a run, with their images or texts."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, cast  # Any: JSON, and columns of numbers or ids

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from molere.show.page import Example, Examples
from molere.show.records import Columns, part
from molere.suspects import suspect_score

MOST = 24
"""Examples in a list."""
LONGEST = 400
"""Characters of a text."""
SIDE = 96
"""Pixels of the longer side of an image, at most."""

TITLES = {
    "suspect": (
        "Suspect labels",
        "The labels most likely to be wrong, by the suspect score (1: the most suspect); look before you relabel.",
    ),
    "hardest": (
        "Hardest of the others",
        "The smallest margins of the finished classifier, the suspects above left out; below zero it prefers another "
        "class than the label.",
    ),
}
OUT_OF_FOLD = "Out of fold: by models that have not trained on the example; the rest is by the finished classifier."


def chosen(samples: Columns) -> dict[str, npt.NDArray[np.int64]]:
    """Rows of the most suspect examples, and of the hardest that are not among them, the first the worst."""
    suspects = np.argsort(-suspect_score(samples), kind="stable")[:MOST]
    hard = np.argsort(_margin(samples), kind="stable")[: 2 * MOST]
    return {"suspect": suspects, "hardest": hard[~np.isin(hard, suspects)][:MOST]}


def _margin(samples: Columns) -> npt.NDArray[np.float64]:
    return np.nan_to_num(samples["margin"].astype(float), nan=np.inf)


def kept(samples: Columns, data: Any) -> dict[str, Any]:  # data: a Data, which is not imported here
    """What shown.json holds: class names, and by id the image (PNG, base64) or text of each chosen example."""
    rows = np.unique(np.concatenate(list(chosen(samples).values())))
    ids = _ids(samples)
    texts = cast("Mapping[Any, str] | None", getattr(data, "texts", None))
    out: dict[str, Any] = {"class_names": list(getattr(data, "class_names", ()))}
    if texts is not None:
        out["texts"] = {str(ids[r]): str(texts.get(_plain(ids[r]), ""))[: LONGEST + 1] for r in rows}
        return out
    images = _images(data.train, torch.as_tensor(samples["sample_id"][rows]))
    if images is not None:
        out["images"] = {str(ids[r]): image for r, image in zip(rows, images, strict=True)}
    return out


def _plain(value: Any) -> Any:
    return cast(Any, value).item() if isinstance(value, np.generic) else value


def _ids(samples: Columns) -> npt.NDArray[Any]:
    return samples["id"] if "id" in samples else samples["sample_id"]


def _images(pool: Any, index: Tensor) -> list[str] | None:
    """The examples as PNG, base64, if they have the shape of images [1 or 3, height, width]."""
    own = getattr(pool, "x", None)
    raw = own[index.to(own.device)] if isinstance(own, Tensor) else pool.batch(index.to(pool.y.device)).x
    raw = raw.detach().cpu()
    raw = raw[:, None] if raw.ndim == 3 and raw.dtype == torch.uint8 else raw
    if raw.ndim != 4 or raw.shape[1] not in (1, 3) or min(raw.shape[2:]) < 4:
        return None
    return [_png(picture) for picture in raw]


def _png(x: Tensor) -> str:
    if x.dtype != torch.uint8:
        low, high = float(x.min()), float(x.max())
        x = (255 * (x - low) / (high - low if high > low else 1)).round().to(torch.uint8)
    array = x.permute(1, 2, 0).numpy()
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    image.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def lists(samples: Columns, shown: Mapping[str, Any]) -> list[Examples]:
    """The lists of a report, as far as the columns go."""
    if "margin" not in samples or not len(samples["margin"]):
        return []
    scores, rows = suspect_score(samples), {name: found.tolist() for name, found in chosen(samples).items()}
    found = {
        "suspect": [_example(samples, shown, r, _suspicion(samples, shown, scores, r)) for r in rows["suspect"]],
        "hardest": [_example(samples, shown, r) for r in rows["hardest"]],
    }
    return [Examples(*_titled(name, samples), examples) for name, examples in found.items() if examples]


def _titled(name: str, samples: Columns) -> tuple[str, str]:
    """Title and words of a list."""
    title, words = TITLES[name]
    return title, f"{words} {OUT_OF_FOLD}" if name == "suspect" and "out_of_fold_margin" in samples else words


def _suspicion(
    samples: Columns, shown: Mapping[str, Any], scores: npt.NDArray[np.float64], row: int
) -> list[tuple[str, str]]:
    """What the list of suspects goes by: the score, and what models say that have not seen the example."""
    found = [("suspect score", f"{scores[row]:.3f}")]
    if "out_of_fold_prediction" in samples:
        name = _name(int(samples["out_of_fold_prediction"][row]), shown.get("class_names") or ())
        found.append(("out-of-fold prediction", name))
    if "out_of_fold_margin" in samples:
        found.append(("out-of-fold margin", f"{float(samples['out_of_fold_margin'][row]):.2f}"))
    return found


def _example(samples: Columns, shown: Mapping[str, Any], row: int, further: Sequence[tuple[str, str]] = ()) -> Example:
    names: Sequence[str] = shown.get("class_names") or ()
    own = str(_ids(samples)[row])
    margin = float(samples["margin"][row])
    label, predicted = (int(samples[k][row]) for k in ("label", "prediction"))
    true = samples.get("clean_label")
    text = part(shown, "texts").get(own)
    return Example(
        id=own,
        label=_name(label, names),
        prediction=_name(predicted, names),
        weight=_weight(float(samples["weight"][row])) if "weight" in samples else "–",
        wrong=label != predicted,
        true_label=None if true is None or int(true[row]) == label else _name(int(true[row]), names),
        score=f"{margin:.2f}",
        further=further,
        image=str(part(shown, "images").get(own, "")),
        text=None if text is None else text if len(text) <= LONGEST else f"{text[:LONGEST]}…",
    )


def _weight(weight: float) -> str:
    return "–" if np.isnan(weight) else f"{weight:.2f}"


def _name(label: int, names: Sequence[str]) -> str:
    return names[label] if label < len(names) else str(label)
