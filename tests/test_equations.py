"""Every equation can be imported by name, says its formula or what it gives, and is what the library itself uses."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

from molere import equations

LISTED = [f for section in equations.SECTIONS.values() for f in section]
IMPORTED = {name: f for name, f in vars(equations).items() if inspect.isfunction(f)}
NAMED_IN_THE_ISSUE = [
    "probabilistic_margin", "generate_split", "split_loss", "soft_validation_objective", "share_penalty",
    "label_penalty",
    "weight_gradient", "uniform_noise", "instance_noise", "transition_noise", "cross_entropy",
]  # fmt: skip


def test_every_equation_belongs_to_one_section() -> None:
    assert len(LISTED) == len(set(LISTED))
    assert set(IMPORTED.values()) == set(LISTED)
    assert set(NAMED_IN_THE_ISSUE) <= set(IMPORTED)


@pytest.mark.parametrize("name", sorted(IMPORTED))
def test_an_equation_is_public_documented_and_typed(name: str) -> None:
    equation = IMPORTED[name]
    home = importlib.import_module(equation.__module__)
    assert getattr(home, name) is equation
    assert inspect.getdoc(equation)
    signature = inspect.signature(equation)
    assert signature.return_annotation is not inspect.Signature.empty
    assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


@pytest.mark.parametrize("module", ["losses", "split", "hardness", "networks", "data.corrupt", "metagrad"])
def test_no_public_function_of_tensors_is_left_out(module: str) -> None:
    """What these files define is either an equation here or one of the exceptions."""
    not_equations = {"gradients", "rotate90", "corner_patch", "stratified_subset", "stratified_split", "take", "choose"}
    home = importlib.import_module(f"molere.{module}")
    defined = {n for n, f in vars(home).items() if inspect.isfunction(f) and f.__module__ == home.__name__}
    public = {n for n in defined if not n.startswith("_")} - not_equations
    assert public <= set(IMPORTED)


def test_the_files_named_beside_the_sections_are_the_homes() -> None:
    source = inspect.getsource(equations)
    for section, functions in equations.SECTIONS.items():
        homes = {f.__module__.rpartition(".")[2] for f in functions}
        constant = next(n for n, v in vars(equations).items() if v is functions)
        words = re.search(rf'^{constant} = .*?^"""(.*?)"""', source, re.DOTALL | re.MULTILINE)
        assert words, section
        assert all(home in words[1] for home in homes), (section, homes)


def test_this_file_is_where_the_documentation_says() -> None:
    assert Path(inspect.getfile(equations)).name == "equations.py"
