"""PACS: seven things in four styles; one style, or domain, is kept for the test (Li et al. 2017)."""

from pathlib import Path
from typing import cast

import numpy as np
import torch

from molere.data.corrupt import stratified_split
from molere.data.folders import listed
from molere.data.index import Index
from molere.data.named.about import folder_of
from molere.data.named.rows import Parts, at_root, rows_of, ungrouped
from molere.errors import DataError
from molere.rng import key

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")


def pacs(root: Path, variant: str) -> Parts:
    """Three domains as the pool (groups: the domain); `test`: the domain named, `id`: a tenth of the other three."""
    folder = folder_of("pacs", root)
    away = variant.replace("-", "_")
    every = {domain: _domain(folder, domain) for domain in DOMAINS}
    classes = every[away].classes
    if any(index.classes != classes for index in every.values()):
        told = "; ".join(f"{domain}: {', '.join(index.classes)}" for domain, index in every.items())
        raise DataError(f"{folder}: the domains have different classes ({told}); get the data again")
    near = [domain for domain in DOMAINS if domain != away]
    paths = np.concatenate([every[domain].paths for domain in near])
    group = np.repeat(np.arange(len(near)), [len(every[domain]) for domain in near])
    y = torch.cat([every[domain].y for domain in near])
    pool = rows_of(folder, paths.tolist(), cast(list[int], y.tolist()), classes, group.tolist(), near)
    cells = pool.y * len(near) + torch.from_numpy(group)
    rest, held = stratified_split(cells, round(0.1 * len(pool)), key(0, "pacs-id"))
    return Parts(train=pool.take(rest), tests={"test": every[away], "id": ungrouped(pool.take(held))})


def _domain(folder: Path, domain: str) -> Index:
    listing = listed(folder / domain)
    return at_root(rows_of(folder / domain, listing.paths.tolist(), listing.y.tolist(), listing.classes), folder)
