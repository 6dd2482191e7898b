"""What there is: methods, models, data sets. Answered from plain tables, without torch."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from molere import registry


def quick(arguments: Sequence[str]) -> str | None:
    """The answer to a listing in its plain form, for which nothing needs to be imported; None for anything else."""
    as_json = "--json" in arguments
    match [a for a in arguments if a != "--json"]:
        case ["methods"]:
            return methods(as_json)
        case ["methods", name] if not name.startswith("-"):
            return method(name, as_json)
        case ["models"]:
            return models(as_json)
        case ["data"] | ["data", "list"]:
            return data(None, as_json)
        case ["data", "list", "--root", root]:
            return data(root, as_json)
        case _:
            return None


def methods(as_json: bool) -> str:
    """All methods with a line each."""
    if as_json:
        needs = {n: {"default": [*e.needs], "paper": [*e.needs, *e.paper_needs]} for n, e in registry.METHODS.items()}
        summaries = {name: entry.summary for name, entry in registry.METHODS.items()}
        return _json({"methods": summaries, "needs": needs, "presets": dict(registry.PRESETS)})
    width = max(len(_needs(entry)) for entry in registry.METHODS.values())
    rows = [(name, f"{_needs(entry):<{width}}  {entry.summary}") for name, entry in registry.METHODS.items()]
    lines = [*_columns([("METHOD", f"{'NEEDS':<{width}}"), *rows]), "", "What they need:"]
    lines += [
        *_columns(registry.NEEDS.items()),
        "",
        "Settings of one: molere methods NAME. Presets, as in lrwopt@paper:",
    ]
    return "\n".join(line.rstrip() for line in [*lines, *_columns(registry.PRESETS.items())])


def _needs(entry: registry.Entry) -> str:
    more = f" (paper: {', '.join(entry.paper_needs)})" if entry.paper_needs else ""
    return (", ".join(entry.needs) or "-") + more


def method(name: str, as_json: bool) -> str:
    """One method and its settings."""
    from molere.cli.page import page  # here: the lists above need none of what it imports

    return page(name, as_json)


def models(as_json: bool) -> str:
    """All named classifiers with a line each."""
    if as_json:
        return _json({"models": dict(registry.MODELS)})
    more = ["", "torchvision:NAME is a classifier of torchvision; in Python any nn.Module will do."]
    return "\n".join([*_columns(registry.MODELS.items()), *more])


def data(root: str | None, as_json: bool) -> str:
    """All data sets: scenarios, and whether they are there."""
    found = {name: _found(entry, root) for name, entry in registry.DATASETS.items()}
    if as_json:
        whole = {
            name: {"summary": e.summary, "scenarios": list(e.scenarios), "model": e.model, "found": found[name]}
            for name, e in registry.DATASETS.items()
        }
        return _json({"data": whole})
    lines = list[str]()
    for name, entry in registry.DATASETS.items():
        lines += [f"{name}: {entry.summary}", f"  scenarios: {', '.join(entry.scenarios)}", f"  {found[name]}"]
    return "\n".join(lines)


def _found(entry: registry.DatasetEntry, root: str | None) -> str:
    if not entry.folder:
        return "embedded: nothing to download"
    if root is None:
        return f"give --root PATH, the folder that holds {entry.folder}"
    folder = Path(root).expanduser() / entry.folder
    return f"found: {folder}" if folder.is_dir() and any(folder.iterdir()) else f"not found: {folder}"


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    table = list(rows)
    width = max(len(row[0]) for row in table)
    return [f"{name:<{width}}  {summary}" for name, summary in table]


def _json(value: object) -> str:
    return json.dumps(value, indent=2)
