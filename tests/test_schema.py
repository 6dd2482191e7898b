"""The stored description of all settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge

from molere import schema, settings


def leaves(entries: Mapping[str, Any], prefix: str = "") -> dict[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for key, entry in entries.items():
        if "fields" in entry:
            found |= leaves(entry["fields"], f"{prefix}{key}.")
        for kind, fields in entry.get("kinds", {}).items():
            found |= leaves(fields, f"{prefix}{key}({kind}).")
        if "fields" not in entry and "kinds" not in entry:
            found[prefix + key] = entry
    return found


def test_the_file_is_up_to_date() -> None:
    assert schema.FILE.read_text("utf-8") == schema.text(), "run `python -m molere.schema`"


def test_every_setting_has_a_help_text_and_a_default() -> None:
    stored = settings.schema()
    tables = {**stored["methods"], "recipe": stored["recipe"], "experiment": stored["experiment"]}
    for name, table in tables.items():
        for key, entry in leaves(table).items():
            assert entry["help"], f"{name}: {key} has no docstring"
            assert "default" in entry or "given" in key, f"{name}: {key} has no default"


@dataclass(frozen=True)
class Inner:
    """Nested."""

    lr: Annotated[float, Ge(0)] = 0.1
    """Learning
    rate."""


@dataclass(frozen=True)
class Outer:
    """Outer."""

    inner: Inner = Inner(lr=0.5)
    """The inner one."""
    plain: int = 3


@dataclass(frozen=True)
class Derived(Outer):
    """Inherits."""

    more: str | None = None
    """More."""


def test_a_class_is_described_with_what_it_inherits_and_nests() -> None:
    assert schema.describe_class(Derived, {}) == {
        "inner": {
            "types": ["object"],
            "fields": {"lr": {"types": ["float"], "ge": 0, "default": 0.5, "help": "Learning rate."}},
            "help": "The inner one.",
        },
        "plain": {"types": ["int"], "default": 3, "help": ""},
        "more": {"types": ["text", "null"], "default": None, "help": "More."},
    }
