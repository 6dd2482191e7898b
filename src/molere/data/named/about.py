"""What is known of each data set by name, and whether it is there. Plain strings and paths: no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from molere.data.named.facts import FACTS
from molere.data.named.factsheet import Facts
from molere.errors import DataError
from molere.names import pick

__all__ = ["Facts", "Found", "available", "find", "folder_of", "how_to_get", "together"]


@dataclass(frozen=True, slots=True)
class Found:
    """Where a data set lies, and what it lacks there; `folder` is the usual place where nothing was found."""

    name: str
    folder: Path | None
    missing: tuple[str, ...] = ()
    others: Mapping[str, "Found"] = field(default_factory=dict[str, "Found"])
    """Data sets that it is used with, and cannot do without."""

    @property
    def complete(self) -> bool:
        """Nothing is missing, here and in the data sets it is used with."""
        return not self.missing and all(other.complete for other in self.others.values())

    @property
    def lacking(self) -> str:
        """What is not there, in words; empty if complete."""
        parts = [self._own()] if self.missing else []
        return "; ".join([*parts, *(other.lacking for other in self.others.values() if not other.complete)])

    def _own(self) -> str:
        if self.folder is None:
            return f"{self.name}: no folder given; pass --root PATH, the folder that holds {self.missing[0]}"
        if not self.folder.is_dir():
            return f"{self.name}: there is no folder {self.folder}"
        named = ", ".join(self.missing[:5]) + (f" and {len(self.missing) - 5} more" if len(self.missing) > 5 else "")
        return f"{self.name}: {self.folder} lacks {named}"


def find(name: str, root: str | Path | None) -> Found:
    """The place below the root that holds the data set, or else the usual one and what it lacks."""
    facts = pick("data set", name, FACTS)
    others = {other: find(other, root) for other in facts.needs}
    if not facts.places:
        return Found(name, None, (), others)
    if root is None:
        return Found(name, None, facts.places[:1], others)
    base = Path(root).expanduser()
    lacking = {place: tuple(_lacking(base / place, facts.holds)) for place in facts.places}
    best = min(facts.places, key=lambda place: len(lacking[place]))  # ties: the usual one
    best = best if len(lacking[best]) < len(facts.holds) else facts.places[0]
    return Found(name, base / best, lacking[best], others)


def _lacking(folder: Path, holds: Sequence[str]) -> list[str]:
    """Entries that are not in the folder; `a|b` is there if either is."""
    return [entry for entry in holds if not any((folder / one).exists() for one in entry.split("|"))]


def available(name: str, root: str | Path | None = None) -> bool:
    """Is all there that the data set is recognised by? Embedded data always is."""
    return find(name, root).complete


def folder_of(name: str, root: str | Path | None) -> Path:
    """The folder that holds the data set; DataError says what was looked for, where, and how to get it."""
    found = find(name, root)
    if found.missing or found.folder is None:
        raise DataError(f"{found.lacking}; correct --root, or type: molere data get {name}")
    return found.folder


def together(name: str) -> list[str]:
    """The data set, and those that it is used with, needed or not."""
    facts = FACTS[name]
    return [name, *facts.needs, *facts.extra]


def how_to_get(name: str) -> list[str]:
    """Steps that a person takes, in order."""
    facts = FACTS[name]
    first = [f"{other} is needed too: molere data get {other}" for other in facts.needs]
    more = [f"{other} adds a test: molere data get {other}" for other in facts.extra]
    own = [f"molere data get {name} --root PATH fetches it"] if facts.fetch and not facts.steps else [*facts.steps]
    return [*own, *first, *more]
