"""Camelyon17 and iWildCam2020 as WILDS lays them out: a folder of images and metadata.csv (Koh et al. 2021)."""

from pathlib import Path

from molere.data.named.about import folder_of
from molere.data.named.rows import Parts, columns_of, only, rows_of, ungrouped, whole_numbers
from molere.errors import DataError

HOSPITAL_OF_TEST, HOSPITAL_OF_VALIDATION = 2, 1


def camelyon(root: Path, variant: str) -> Parts:
    """Patches of three hospitals as the pool (groups: the hospital), tests on another hospital and on the same ones.

    `test`: hospital 2, out of distribution; `id`: patches of the pool's hospitals that WILDS holds out.
    """
    folder = folder_of("camelyon", root)
    names = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")
    table = columns_of(folder / "metadata.csv", *names)
    numbers = {
        name: whole_numbers(folder / "metadata.csv", name, table[name], limit)
        for name, limit in (("tumor", 2), ("center", 5), ("split", None))
    }
    stems = zip(*(table[name] for name in names[:4]), strict=True)
    paths = [f"patches/patient_{p}_node_{n}/patch_patient_{p}_node_{n}_x_{x}_y_{y}.png" for p, n, x, y in stems]
    hospitals = [f"hospital {center}" for center in range(5)]
    every = rows_of(folder, paths, numbers["tumor"], ("normal", "tumor"), numbers["center"], hospitals)
    away = (HOSPITAL_OF_TEST, HOSPITAL_OF_VALIDATION)
    rows = list(zip(numbers["center"], numbers["split"], strict=True))
    return Parts(
        train=only(every, [c not in away and s == 0 for c, s in rows]),
        tests={
            "test": ungrouped(only(every, [c == HOSPITAL_OF_TEST for c, _ in rows])),
            "id": ungrouped(only(every, [c not in away and s == 1 for c, s in rows])),
        },
    )


def iwildcam(root: Path, variant: str) -> Parts:
    """Photographs of camera traps (groups: the trap); `test` is of other traps, `id` of the same on other days."""
    folder = folder_of("iwildcam", root)
    path = folder / "metadata.csv"
    table = columns_of(path, "split", "filename", "y", "location_remapped")
    y, trap = (whole_numbers(path, name, table[name]) for name in ("y", "location_remapped"))
    if not y:
        raise DataError(f"{path} has no rows; get it again")
    traps = [f"trap {k}" for k in range(max(trap) + 1)]
    every = rows_of(
        folder, [f"train/{name}" for name in table["filename"]], y, _species(folder, max(y) + 1), trap, traps
    )
    return Parts(
        train=only(every, [split == "train" for split in table["split"]]),
        tests={
            "test": ungrouped(only(every, [split == "test" for split in table["split"]])),
            "id": ungrouped(only(every, [split == "id_test" for split in table["split"]])),
        },
    )


def _species(folder: Path, classes: int) -> list[str]:
    """Names of the classes from categories.csv, where it is there; WILDS marks categories left out by 99999."""
    path = folder / "categories.csv"
    if not path.is_file():
        return [f"class {k}" for k in range(classes)]
    table = columns_of(path, "y", "name")
    named = dict(zip(table["y"], table["name"], strict=True))
    return [named.get(str(k), f"class {k}") for k in range(classes)]
