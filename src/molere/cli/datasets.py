"""The data sets by name, for people: the list, the state of one on disk, and how to get it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any  # Any: values of a JSON object

from molere import registry
from molere.data.named.about import Found, find, how_to_get
from molere.data.named.facts import FACTS
from molere.names import pick

INCOMPLETE = 3  # the exit code of DataError


def listing(root: str | None, as_json: bool) -> str:
    """All data sets: what they are, size and licence, scenarios, whether they are there, and what may be added."""
    found = {name: find(name, root) for name in registry.DATASETS}
    if as_json:
        return _json({"data": {name: _entry(name, found[name]) for name in registry.DATASETS}})
    lines = list[str]()
    for name, entry in registry.DATASETS.items():
        facts = FACTS[name]
        lines += [f"{name}: {entry.summary}", f"  {facts.size}; licence: {facts.licence}"]
        lines += [f"  scenarios: {', '.join(entry.scenarios)}", f"  {_state(found[name])}"]
        lines += [f"  with {other}: {_state(find(other, root))}" for other in facts.extra]
    more = "molere data check NAME --root PATH looks closer; molere data get NAME --root PATH fetches it, or says how."
    return "\n".join([*lines, "", more])


def _entry(name: str, found: Found) -> dict[str, Any]:
    entry, facts = registry.DATASETS[name], FACTS[name]
    used = {"summary": entry.summary, "scenarios": list(entry.scenarios), "model": entry.model}
    stated = {"title": facts.title, "size": facts.size, "licence": facts.licence, "citation": facts.citation}
    more = {"page": facts.page, "validation": facts.validation, "how_to_get": how_to_get(name)}
    return {**used, **stated, **more, "available": found.complete, "found": _state(found)}


def _state(found: Found) -> str:
    facts = FACTS[found.name]
    if not facts.places:
        return "embedded: nothing to download"
    if found.folder is None:
        return f"give --root PATH, the folder that holds {facts.places[0]}"
    if found.complete:
        return f"found: {found.folder}"
    return f"not found: {found.folder}" if found.missing else f"found: {found.folder}; but {found.lacking}"


def check(name: str, root: str | None, images: bool, as_json: bool) -> tuple[str, int]:
    """What is on disk of one data set, in full, and the exit code: 3 where it cannot be used as it is."""
    pick("data set", name, FACTS)
    from molere.data.named import checking  # here: the list needs none of what they import
    from molere.data.repeats import told

    checked = checking.check(name, root, images)
    code = 0 if checked.fine else INCOMPLETE
    folder = None if checked.found.folder is None else str(checked.found.folder)
    if as_json:
        state = {"problem": checked.problem, "missing": list(checked.missing), "bad": list(checked.bad)}
        more = {"checksums": dict(checked.checksums), "parts": dict(checked.parts), "notes": list(checked.notes)}
        more["repeated"] = dict(checked.repeated)
        return _json({"name": name, "fine": checked.fine, "folder": folder, **more, **state}), code
    embedded = not FACTS[name].places
    lines = [*_about(name), f"folder:    {folder or ('none: it comes with a package' if embedded else 'none')}"]
    sums = [f"{file}: {state}" for file, state in checked.checksums.items()]
    unknown = "none is published" if folder else "not looked at: no folder is given"
    lines += [f"checksum:  {told}" for told in sums or [unknown] * (not embedded)]
    if checked.parts:
        lines.append(f"examples:  {', '.join(f'{part} {count:,}' for part, count in checked.parts.items())}")
    lines += [f"note:      {note}" for note in checked.notes]
    lines += [f"repeated:  {told(part, count, checked.parts[part])}" for part, count in checked.repeated.items()]
    lines += _counted("missing", checked.missing, "images are not there") + _counted("broken", checked.bad, "images")
    lines += [f"problem:   {checked.problem}", *_steps(name)] if checked.problem else []
    seen = "all images were opened" if images else "--images opens every image"
    whole = "in part" if "not there" in checked.checksums.values() else "yes"
    return "\n".join([*lines, *([f"complete:  {whole} ({seen})"] if checked.fine else [])]), code


def _about(name: str) -> list[str]:
    facts = FACTS[name]
    told = {"title": facts.title, "size": facts.size, "licence": facts.licence}
    told |= {"cite": facts.citation, "page": facts.page}
    return [f"{key + ':':<10} {value}" for key, value in told.items() if value]


def _counted(key: str, items: Sequence[str], what: str) -> list[str]:
    if not items:
        return []
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return [f"{key + ':':<10} {len(items):,} {what}: {'; '.join(items[:5])}{more}"]


def _steps(name: str) -> list[str]:
    return ["how to get it:", *(f"  {k}. {step}" for k, step in enumerate(how_to_get(name), start=1))]


def get(name: str, root: str | None) -> tuple[str, int]:
    """Fetch a data set and those it needs where that may be done, else say what a person does; and the exit code."""
    facts = pick("data set", name, FACTS)
    if not facts.places:
        return f"{name} comes with a package: nothing to download", 0
    if root is None:
        told = "give --root PATH to fetch it to" if facts.fetch and not facts.steps else "molere cannot fetch it"
        return "\n".join([f"{name}: {told}", *_about(name), *_steps(name)]), INCOMPLETE
    told = [_got(one, root) for one in (*facts.needs, name)]
    return "\n".join(line for lines, _ in told for line in lines), max(code for _, code in told)


def _got(name: str, root: str) -> tuple[list[str], int]:
    """What was done to get one data set, in lines, and the exit code."""
    found = find(name, root)
    if FACTS[name].fetch:
        from molere.data.named import getting  # here: nothing else needs what it imports

        if getting.there(name, root):
            return [f"{name} is there: {found.folder}"], 0
        if getting.fetchable(name, root):
            return [f"{name} fetched: {getting.fetch(name, Path(root))}"], 0
    elif not found.missing:
        return [f"{name} is there: {found.folder}"], 0
    return [f"{name}: molere cannot fetch it", *_about(name), *_steps(name)], INCOMPLETE


def _json(value: object) -> str:
    return json.dumps(value, indent=2)
