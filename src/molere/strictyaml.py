"""YAML read strictly: PyYAML's safe loader without its surprises. No torch.

Plain YAML 1.1 lets a key appear twice, reads 1e-3 as text and `no` as false. Here a repeated key is a
mistake, numbers are numbers, only true and false are booleans, and anchors, aliases and tags are refused.
"""

import re
from itertools import accumulate
from typing import Any, cast  # Any: PyYAML's constructors are untyped

import yaml

from molere.errors import ConfigError
from molere.fields import first_of, refuse
from molere.names import one_line

DEEPEST = 60
"""Brackets within brackets; settings need four, and PyYAML takes seconds for thousands."""
MOST_KEYS = 2000
"""Keys of a settings file; all settings of all methods are a tenth of them, and PyYAML takes seconds for more."""
_PLAIN = "tag:yaml.org,2002:"
_ALIAS = "tag:alias"
_BOOL = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
_NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9]*)$")
_FLOAT = re.compile(
    r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)


class _StrictLoader(yaml.SafeLoader):
    """PyYAML's safe loader, made strict; mistakes that do not stop the reading are collected."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own form)

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.mistakes: list[str] = []
        self._depth, self._keys, self._anchored = 0, 0, False

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = cast(Any, self).peek_event()
        self._refuse_extras(event)
        if isinstance(event, yaml.AliasEvent):
            cast(Any, self).get_event()
            return yaml.ScalarNode(_ALIAS, "")
        if self._depth == DEEPEST:
            raise RecursionError
        self._keys += isinstance(parent, yaml.MappingNode) and cast(object, index) is None
        if self._keys > MOST_KEYS:
            raise ConfigError(f"line {event.start_mark.line + 1}: more than {MOST_KEYS} keys; that is no settings file")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def _refuse_extras(self, event: Any) -> None:
        """Note anchors, aliases and tags as mistakes, and go on as if the value were a plain one."""
        line = event.start_mark.line + 1
        if getattr(event, "anchor", None) and not self._anchored:  # one is told for all: there may be thousands
            self._anchored = True
            self.mistakes.append(f"line {line}: anchors and aliases (& and *) are not allowed; write the value out")
        if getattr(event, "tag", None) is not None:
            self.mistakes.append(f"line {line}: tags (!...) are not allowed; write a plain value")
            event.implicit = (True, False) if isinstance(event, yaml.ScalarEvent) else True
            event.tag = None
        if not isinstance(event, yaml.AliasEvent):
            event.anchor = None

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        found: dict[str, object] = {}
        for key_node, value_node in node.value:
            line, key = key_node.start_mark.line + 1, self._key(key_node)
            if key in found:
                self.mistakes.append(f"line {line}: {one_line(key)} is given twice; keep one")
            value = cast(object, cast(Any, self).construct_object(value_node, deep=True))
            if key and value_node.tag != _ALIAS:
                found[key] = value
        return found

    def _key(self, node: Any) -> str:
        if isinstance(node, yaml.ScalarNode) and node.value:
            return node.value
        self.mistakes.append(f"line {node.start_mark.line + 1}: a key must be a name")
        return ""


for _tag, _pattern, _starts in (
    ("bool", _BOOL, "tTfF"),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
):
    _StrictLoader.add_implicit_resolver(_PLAIN + _tag, _pattern, list(_starts))


def _float(loader: Any, node: Any) -> float:
    text = node.value.lower()
    return float(text.replace(".", "")) if "inf" in text or "nan" in text else float(text)


def _int(loader: Any, node: Any) -> int:
    if len(node.value) > 30:
        raise ConfigError(f"line {node.start_mark.line + 1}: {one_line(node.value, 30)} is too large a number")
    return int(node.value)


def _mapping(loader: Any, node: Any) -> Any:
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(_ALIAS, lambda loader, node: None)  # the mistake is noted
_StrictLoader.add_constructor(_PLAIN + "float", _float)
_StrictLoader.add_constructor(_PLAIN + "int", _int)
_StrictLoader.add_constructor(_PLAIN + "map", _mapping)


def load(text: str, where: str, aside: list[str] | None = None) -> object:
    """The value that strict YAML text states; ConfigError, each mistake on a line that `where` begins.

    aside: takes the mistakes that did not stop the reading, instead of their being raised.
    """
    try:
        if _depth(text) > DEEPEST:
            raise RecursionError
        loader = _StrictLoader(text)
        value: object = loader.get_single_data()
    except ConfigError as e:
        raise ConfigError(f"{where}: {e}") from None
    except yaml.YAMLError as e:
        raise ConfigError(f"{where}: {_yaml_mistake(e, text)}") from None
    except (RecursionError, ValueError) as e:
        reason = "nested too deeply" if isinstance(e, RecursionError) else str(e)
        raise ConfigError(f"{where}: {' '.join(reason.split())}") from None
    mistakes = first_of([lambda m=m: f"{where}: {m}" for m in loader.mistakes], f"{where}: ", "mistakes")
    if aside is None:
        refuse(mistakes)
    else:
        aside += mistakes
    return value


def _depth(text: str) -> int:
    """How many brackets are open at once, at most; those within quotation marks count, where there are very many."""
    if text.count("[") + text.count("{") <= 10 * DEEPEST:
        return 0
    return max(accumulate((c in "[{") - (c in "]}") for c in text))


def _yaml_mistake(error: yaml.YAMLError, text: str) -> str:
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return "not a text file (it holds characters that text does not)"
    row, column = error.problem_mark.line, error.problem_mark.column
    before = "".join(text.splitlines()[row : row + 1])[: column + 1]
    if "\t" in before:
        return f"line {row + 1}: a tab cannot indent; use spaces"
    several = "single document" in str(error.context)
    problem = "one document only, without ---" if several else " ".join(str(error.problem).split())
    return f"line {row + 1}, column {column + 1}: {problem}"
