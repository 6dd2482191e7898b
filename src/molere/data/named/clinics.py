"""Diabetic retinopathy: the labels and images of two Kaggle competitions, referable (grade 2 and above) or not."""

import warnings
from pathlib import Path

from molere.data.corrupt import stratified_split
from molere.data.index import Index
from molere.data.named.about import find, folder_of
from molere.data.named.rows import Parts, columns_of, rows_of, whole_numbers
from molere.errors import DataError
from molere.rng import key

APTOS = "retinopathy-aptos"
CLASSES = ("not referable", "referable")  # grades 0, 1 and 2, 3, 4


def retinopathy(root: Path, variant: str) -> Parts:
    """The training images of 2015 as the pool; `test`: those of the private leaderboard, `aptos`: another country's.

    Without retinopathy_solution.csv a tenth of the training images, always the same, is the test instead; without
    the APTOS folder that test is left out. Both are said in a warning.
    """
    folder = folder_of("retinopathy", root)
    pool = _graded(folder, "trainLabels.csv", "image", "level", "train")
    if (folder / "retinopathy_solution.csv").is_file() and (folder / "test").is_dir():
        tests = {"test": _graded(folder, "retinopathy_solution.csv", "image", "level", "test", usage="Private")}
    else:
        said = "lacks retinopathy_solution.csv or test; a tenth of the training images is the test"
        warnings.warn(f"{folder} {said}", stacklevel=2)
        rest, held = stratified_split(pool.y, round(0.1 * len(pool)), key(0, "retinopathy-test"))
        pool, tests = pool.take(rest), {"test": pool.take(held)}
    shifted = find(APTOS, root)
    if shifted.complete:
        tests["aptos"] = aptos(root)
    else:
        warnings.warn(f"{shifted.lacking}; there is no shifted test (molere data get {APTOS})", stacklevel=2)
    return Parts(train=pool, tests=tests)


def aptos(root: Path) -> Index:
    """The images of the competition of 2019, the shifted test."""
    return _graded(folder_of(APTOS, root), "train.csv", "id_code", "diagnosis", "train_images")


def _graded(folder: Path, table: str, image: str, grade: str, images: str, usage: str = "") -> Index:
    """Images of one table by grade, 1 for grade 2 and above; with `usage`, only those of that part of the table."""
    path = folder / table
    columns = columns_of(path, image, grade, *(("Usage",) if usage else ()))
    grades = whole_numbers(path, grade, columns[grade], 5)
    used = [not usage or one == usage for one in columns.get("Usage", [usage] * len(grades))]
    if not any(used):
        raise DataError(f"{path} has no rows{f' of Usage {usage}' if usage else ''}; get it again")
    names = [name for name, use in zip(columns[image], used, strict=True) if use]
    suffix = _suffix(folder / images, names)
    y = [int(level >= 2) for level, use in zip(grades, used, strict=True) if use]
    return rows_of(folder, [f"{images}/{name}{suffix}" for name in names], y, CLASSES)


def _suffix(folder: Path, names: list[str]) -> str:
    """How image files end there: .jpeg as in the competition of 2015, .png as in that of 2019, or .jpg (copies)."""
    endings = (".jpeg", ".png", ".jpg")
    return next((end for name in names[:20] for end in endings if (folder / f"{name}{end}").is_file()), endings[0])
