"""Paths that files of the user's name: they may not lead out of the folder that they are relative to."""

import os
from pathlib import Path


def stays(base: str | Path, path: str | Path) -> bool:
    """Whether a path, relative to `base` or absolute, ends below it once `..` and links are followed."""
    whole = os.path.realpath(base)
    return os.path.commonpath((whole, os.path.realpath(os.path.join(whole, path)))) == whole


def inside(folder: str, base: str | Path) -> dict[str, bool]:
    """The files of a folder, and whether each ends below `base` once links are followed; {} where there is none."""
    if not os.path.isdir(folder):
        return {}
    here = stays(base, folder)
    found = [entry for entry in os.scandir(folder) if entry.is_file()]
    return {e.name: stays(base, e.path) if e.is_symlink() else here for e in found}
