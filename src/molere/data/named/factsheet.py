"""The form in which facts about a data set are written down."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Facts about one data set, as its makers state them."""

    title: str
    size: str
    """Examples, classes and room on disk."""
    licence: str
    citation: str
    page: str = ""
    places: tuple[str, ...] = ()
    """Folders below the root where it is looked for, the usual one first; none: embedded."""
    holds: tuple[str, ...] = ()
    """What such a folder must hold to be taken for this data set; `a|b`: either."""
    md5: Mapping[str, str] = field(default_factory=dict[str, str])
    """Published checksums of files in that folder."""
    needs: tuple[str, ...] = ()
    """Other data sets without which it cannot be used."""
    extra: tuple[str, ...] = ()
    """Other data sets that add a test where they are there."""
    fetch: str = ""
    """Who fetches it: a class of torchvision, `files` (the ones below), or nobody (empty)."""
    urls: Mapping[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """File or archive, relative to the root -> address and md5."""
    steps: tuple[str, ...] = ()
    """What a person does to get it, in order."""
    validation: str = ""
    """The validation part of the paper (Jain, Suggala and Shenoy 2024, appendix D.2)."""
