"""What there is: methods, models, data sets. Answered from plain tables, without torch."""

import json
from collections.abc import Iterable, Sequence

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
        return _json({"models": dict(registry.MODELS), "paper": dict(registry.PAPER_MODELS)})
    names = dict[str, list[str]]()
    for data, model in registry.PAPER_MODELS.items():
        names.setdefault(model, []).append(data)
    of_paper = [(model, ", ".join(data)) for model, data in [*names.items(), ("resnet50", ["all others"])]]
    more = [
        ("torchvision:NAME", "any other classifier of torchvision"),
        ("timm:NAME", "any classifier of timm (pip install timm), such as timm:convnext_atto"),
        ("paper", "the one that the paper trains on the data set:"),
    ]
    lines = [*_columns([*registry.MODELS.items(), *more]), *("  " + line for line in _columns(of_paper)), ""]
    start = "train.weights=NAME starts from weights of torchvision (IMAGENET1K_V1) or timm (default, or a tag);"
    lines += [start, "train.weights=FILE from a file (.safetensors, .pt, .pth). In Python any nn.Module will do."]
    return "\n".join(lines)


def data(root: str | None, as_json: bool) -> str:
    """All data sets: what they are, their scenarios, and whether they are there."""
    from molere.cli.datasets import listing  # here: the lists above need none of what it imports

    return listing(root, as_json)


def _columns(rows: Iterable[Sequence[str]]) -> list[str]:
    table = list(rows)
    width = max(len(row[0]) for row in table)
    return [f"{name:<{width}}  {summary}" for name, summary in table]


def _json(value: object) -> str:
    return json.dumps(value, indent=2)
