"""The library depends downwards only, and its light part needs no torch. The source is read, not run."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"

# A file may import, at run time, only what stands on an earlier line. The __init__ file of a package
# imports nothing of ours, unless it is listed here itself.
ORDER = [
    "errors",
    "signals",
    "rng",
    "data.named.entries",
    "registry",
    "names",
    "data.named.factsheet",
    "data.named.facts_medical",
    "data.named.facts_nature",
    "data.named.facts",
    "data.named.about",
    "meter",
    "summary",
    "identity",
    "limits",
    "fields",
    "strictyaml",
    "config",
    "recipe",
    "paths",
    "corruption",
    "superclasses",
    "settings",
    "data.decided",
    "experiment",
    "schema",
    "data.labels",
    "data.augment",
    "data.items",
    "data.embedded",
    "data.files",
    "data.pool",
    "data.view",
    "data.cachefolder",
    "data.bad",
    "data.within",
    "data.rows",
    "data.pixels",
    "data.imagefiles",
    "data.weighted",
    "data.sparse",
    "data.corrupt",
    "data.noise",
    "data.imagepool",
    "data.overlaid",
    "data.corrections",
    "data.folders",
    "data.index",
    "data.decoded",
    "data.readable",
    "data.scenarios",
    "data.build",
    "data.joined",
    "data.repeats",
    "data.named.rows",
    "data.named.fine",
    "data.named.wilds",
    "data.named.clinics",
    "data.named.clothing",
    "data.named.pacs",
    "data.named.imagenets",
    "data.named.cifars",
    "data.named.catalog",
    "data.named.checking",
    "data.named.getting",
    "data.readers",
    "data.arrays",
    "data.texts",
    "data.tables",
    "data.own",
    "data.ownrows",
    "data.ownimages",
    "data.bypath",
    "data.given",
    "data.classnames",
    "data.sources",
    "losses",
    "split",
    "holdouts",
    "hardness",
    "models.structure",
    "models.small",
    "models.weights",
    "models.pretrained",
    "models",
    "adapters",
    "networks",
    "optim",
    "ghost",
    "suffix",
    "learner",
    "kernels",
    "metagrad",
    "probe",
    "bank",
    "batches",
    "steps",
    "passes",
    "notes",
    "result",
    "guard",
    "rundata",
    "runguard",
    "runpasses",
    "runlooks",
    "outcome",
    "method",
    "learned",
    "fullbatch",
    "weighting",
    "metaweights",
    "methods.*",
    "examples",
    "evaluate",
    "equations",
    "storage.files",
    "storage.nested",
    "storage.lock",
    "storage.logs",
    "storage.machine",
    "storage.samples",
    "storage.checkpoint",
    "storage.writer",
    "storage.runfolder",
    "storage.cache",
    "storage",
    "opening",
    "recovery",
    "training",
    "embed",
    "suspects",
    "samples",
    "margins",
    "statistics",
    "jobs",
    "request",
    "ledger",
    "search",
    "tuning",
    "workers",
    "table",
    "wording",
    "logged",
    "report",
    "terminal",
    "show.style",
    "show.page",
    "show.records",
    "show.tags",
    "show.gains",
    "show.curves",
    "show.clouds",
    "show.things",
    "show.runpage",
    "show.compared",
    "show.comparisonpage",
    "show.printed",
    "show.reproductionpage",
    "show.reports",
    "show.plots",
    "show.trackers",
    "doctor",
    "scouts",
    "run",
    "inputs",
    "estimatorsettings",
    "estimatorfiles",
    "estimatordata",
    "estimatorresults",
    "estimator",
    "borrowed",
    "lending",
    "validation",
    "loan",
    "loanstate",
    "reweight",
    "watch",
    "testing",
    "comparison",
    "tally",
    "compare",
    "reproduce.claims",
    "reproduce.presets",
    "reproduce.resolve",
    "reproduce.verdicts",
    "reproduce.page",
    "reproduce.margins",
    "reproduce.measure",
    "reproduce.figures",
    "reproduce.rows",
    "reproduce.theorem",
    "reproduce.theorem_page",
    "reproduce.cost",
    "cli.options",
    "cli.plan",
    "cli.console",
    "cli.page",
    "cli.datasets",
    "cli.listings",
    "cli.checkup",
    "cli.embed",
    "cli.look",
    "cli.health",
    "cli.configure",
    "cli.work",
    "cli.studies",
    "cli.reproduce",
    "cli.ofconfig",
    "cli.ofdata",
    "cli.app",
    "cli",
    "__main__",
]

LIGHT = [
    "molere",
    "molere.errors",
    "molere.registry",
    "molere.config",
    "molere.recipe",
    "molere.settings",
    "molere.compare",
    "molere.workers",
    "molere.cli",
]
HEAVY = {"torch", "torchvision", "sklearn", "scipy", "matplotlib"}


def name_of(path: Path) -> str:
    """src/molere/data/pool.py is data.pool; the __init__ files are '' and data."""
    parts = path.relative_to(SOURCE / "molere").with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted((SOURCE / "molere").rglob("*.py"))}
PACKAGES = [name for name, path in FILES.items() if path.name == "__init__.py"]
BARE = [name for name in PACKAGES if name not in ORDER]
MODULES = [name for name in FILES if name not in BARE]


def rank(name: str) -> int:
    places = [i for i, pattern in enumerate(ORDER) if fnmatch(name, pattern)]
    assert places, f"add {name} to ORDER in {Path(__file__).name}"
    return places[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def run_time_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            assert isinstance(child, ast.If)
            for other in child.orelse:
                yield other
                yield from run_time_nodes(other)
        else:
            yield child
            yield from run_time_nodes(child)


def imported_names(node: ast.AST, package: str) -> list[str]:
    """Absolute dotted names that one node imports: `from a import b` gives a.b."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    above = package.split(".")[: len(package.split(".")) - (node.level - 1)] if node.level else []
    base = ".".join([*above, *([node.module] if node.module else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def our_imports(name: str, *, source: str | None = None) -> set[str]:
    """The files of this library that a file imports at run time, with the packages around them."""
    around = name if name in PACKAGES else name.rpartition(".")[0]
    package = f"molere.{around}".rstrip(".")
    tree = ast.parse(FILES[name].read_text() if source is None else source)
    found: set[str] = set()
    for node in run_time_nodes(tree):
        for full in imported_names(node, package):
            parts = full.split(".")
            if parts[0] == "molere":
                tails = [".".join(parts[1:end]) for end in range(1, len(parts) + 1)]
                *packages, last = [tail for tail in tails if tail in FILES]
                entered = {tail for tail in packages if tail not in BARE and tail != name}
                found |= {last, *(tail for tail in entered if not name.startswith(f"{tail}."))}
    return found


@pytest.mark.parametrize("name", MODULES)
def test_every_source_file_has_a_place_in_the_order(name: str) -> None:
    assert rank(name) >= 0


@pytest.mark.parametrize("pattern", ORDER)
def test_every_place_in_the_order_belongs_to_a_file(pattern: str) -> None:
    assert any(fnmatch(name, pattern) for name in MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_to_earlier_files_only(name: str) -> None:
    late = {other for other in our_imports(name) if other in BARE or rank(other) >= rank(name)}
    assert not late, f"{name} must not import {sorted(late)} at run time (a name of `molere` itself: name its file)"


@pytest.mark.parametrize("name", BARE)
def test_bare_packages_import_nothing_of_ours(name: str) -> None:
    assert not our_imports(name)


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("methods.")])
def test_methods_do_not_import_each_other(name: str) -> None:
    assert not [other for other in our_imports(name) if other.startswith("methods")]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "__main__"])
def test_nothing_imports_the_command_line(name: str) -> None:
    assert "cli" not in our_imports(name)


def test_the_reader_of_imports_sees_every_form_and_skips_typing_only_ones() -> None:
    source = """
from typing import TYPE_CHECKING
import molere.errors
from molere import rng
from .data.pool import Batch
from . import registry
def later():
    from molere.recipe import Recipe
if TYPE_CHECKING:
    from molere.config import anything
else:
    import molere.split
"""
    names = {"errors", "rng", "data.pool", "registry", "recipe", "split"} & set(FILES)
    assert our_imports("errors", source=source) - {"", "data"} == names


def heavy_modules_after(code: str) -> set[str]:
    """Run code in a fresh interpreter; which of the slow libraries has it loaded?"""
    check = f"{code}\nimport sys\nprint('\\nLOADED', *sorted({HEAVY!r} & set(sys.modules)))"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SOURCE), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, "-c", check],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("LOADED", 1)[1].split())


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_load_no_slow_library(module: str) -> None:
    assert not heavy_modules_after(f"import {module}")


@pytest.mark.parametrize(
    "arguments", ["--help", "methods", "models", "data list", "train --help", "compare --help", "reproduce --list"]
)
def test_help_and_listings_load_no_slow_library(arguments: str) -> None:
    call = f"""
import sys
from molere.cli import main
sys.argv = ["molere", *{arguments.split()!r}]
try:
    code = main()
except SystemExit as end:
    code = end.code
assert not code, code"""
    assert not heavy_modules_after(call)
