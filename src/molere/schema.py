"""Writes schema.json: every setting of the methods and of the recipe; listings and checks then need no torch.

Run `python -m molere.schema` after a change of settings; a test compares the file with the classes.
"""

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast  # Any: entries become JSON

from molere import registry
from molere.experiment import Experiment
from molere.fields import Kinds, classes_in, default_of, hints, kinds_in
from molere.limits import Limits
from molere.recipe import Recipe
from molere.settings import kinds, load

FILE = Path(__file__).with_name("schema.json")


def describe() -> dict[str, Any]:
    """The settings of all registered methods, by class, and those of Recipe and Experiment."""
    by_class = {f"{e.module}:{e.attribute}": e for e in registry.METHODS.values()}
    methods = {key: describe_class(load(entry), kinds()) for key, entry in sorted(by_class.items())}
    others = {"recipe": Recipe, "experiment": Experiment}
    return {"methods": methods, **{name: describe_class(cls, {}) for name, cls in others.items()}}


def describe_class(cls: type, kinds: Kinds) -> dict[str, Any]:
    """Each field of a dataclass: its limits, default and docstring; nested dataclasses under `fields`."""
    helps = field_docs(cls)
    return {
        name: _entry(a, default_of(cls, name), kinds) | {"help": helps.get(name, "")} for name, a in hints(cls).items()
    }


def field_docs(cls: type) -> dict[str, str]:
    """The docstring under each field of a class and of those it inherits from, in one line each."""
    docs = dict[str, str]()
    for c in reversed(cls.__mro__):
        if dataclasses.is_dataclass(c) and c.__module__ != "builtins":
            docs |= _docs_in(c)
    return docs


def _docs_in(cls: type) -> dict[str, str]:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    body = cast(ast.ClassDef, node).body
    return {
        line.target.id: " ".join(text.split())
        for line, after in zip(body, body[1:], strict=False)
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and (text := _docstring(after))
    }


def _docstring(node: ast.stmt) -> str:
    value = node.value if isinstance(node, ast.Expr) else None
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""


def _entry(annotation: Any, default: object, kinds: Kinds) -> dict[str, Any]:
    if choice := kinds_in(annotation, kinds):
        described = {kind: describe_class(get(), kinds) for kind, get in choice.items()}
        name = next((k for k, get in choice.items() if get() is type(default)), None)
        return {"kinds": described, "default": {"kind": name} if name else {}}
    if nested := classes_in(annotation):
        fields = describe_class(nested[0], kinds)
        plain = dataclasses.asdict(cast(Any, default)) if isinstance(default, nested[0]) else {}
        return {
            **Limits.of(annotation).plain(),
            "fields": {k: _overlaid(f, k, plain) for k, f in fields.items()},
        }
    stated = Limits.of(annotation).plain()
    return stated if default is dataclasses.MISSING else {**stated, "default": _plain(default)}


def _overlaid(entry: Mapping[str, Any], key: str, plain: Mapping[str, object]) -> dict[str, Any]:
    return (
        {**entry, "default": _plain(plain[key])}
        if key in plain and "default" in entry and "kinds" not in entry
        else dict(entry)
    )


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in cast(Mapping[object, object], value).items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in cast(list[object], value)]
    return value if value is None or isinstance(value, str | int | float | bool) else repr(value)


def text() -> str:
    """The file's text."""
    return json.dumps(describe(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(f"wrote {FILE}")
