"""Writes the pages that come from code: docs/equations.md and docs/api. Type: python tools/pages.py.

tests/test_site.py compares the files with what is written here, and fails where an object is no longer there.
"""

import importlib
import inspect
from dataclasses import dataclass
from pathlib import Path

import molere
from molere import equations, registry

DOCS = Path(__file__).parents[1] / "docs"


# ---- from equations to code


@dataclass(frozen=True)
class Row:
    """A statement of the paper and what carries it out."""

    where: str
    """Equation, line or name in the paper."""
    says: str
    """The statement."""
    code: tuple[str, ...]
    """Objects, as MODULE:NAME below molere; or files of the repository."""
    mark: str = ""
    """What the comment at the end of the line of code says: a number of Algorithm 1, or `eq. N`."""
    note: str = ""
    """How code and statement differ."""


ALGORITHM = (
    Row("1", "initialise theta, Theta, phi", ("methods.lrwopt:LRWOpt.init",), "1",
        "Theta and phi are random; theta is trained with equal weights first (`warmup`), as in appendix D."),
    Row("3", "for each epoch", ("training:Training.loop",), "",
        "An epoch is one pass over the pool's worth of updates, so that every method makes as many."),
    Row("4", "S_tr, S_val = GenerateSplit(D, Theta)",
        ("methods.lrwopt:LRWOpt.split", "methods.lrwopt:LRWOpt.generate_split", "split:generate_split"), "4"),
    Row("5, 6", "for each batch (x_v, y_v) of S_val",
        ("methods.lrwopt:LRWOpt.step", "method:Run.look_back", "method:Run.val_batch"), "6",
        "Batches of S_val are cycled through while the training part is passed over once."),
    Row("7", "Theta <- Theta - beta_1 grad sum (L_split - l(y_v, f(x_v)))",
        ("methods.lrwopt:LRWOpt.learn", "methods.lrwopt:LRWOpt.splitter_loss"), "7",
        "Read literally the loss has no gradient in Theta; it enters through soft membership, J below."),
    Row("8", "phi <- phi - beta_2 grad sum (l(y_v, f(x_v)) - L_split)",
        ("methods.lrwopt:LRWOpt.learn", "weighting:Weights.learn"), "8",
        "Read literally it has none in phi either; it enters through one step of theta, as in appendix C."),
    Row("9", "Q times", ("methods.lrwopt:LRWOpt.step", "method:Run.due"), "9"),
    Row("10", "(x, y) from S_tr", ("methods.lrwopt:LRWOpt.step", "method:Run.train_batch"), "10"),
    Row("11", "theta <- theta - beta_3 grad sum g_phi(x) l(f(x), y)",
        ("methods.lrwopt:LRWOpt.step", "method:Run.update"), "11"),
    Row("14, 15", "if the gap between validation and training loss has shrunk: stop",
        ("methods.lrwopt:LRWOpt.split", "methods.lrwopt:LRWOpt.stops"), "14",
        "Off unless `patience` is set; means on both sides, where the paper compares a sum with a mean."),
    Row("17", "ge = that gap", ("methods.lrwopt:LRWOpt.stops",), "17"),
)  # fmt: skip

EQUATIONS = (
    Row("(1)", "theta*(phi) = argmin sum_train g_phi(x) l, phi* = argmin sum_val l", ("methods.lrw:LRW",), "",
        "One step of theta for each meta update stands for the inner argmin."),
    Row("(2)", "Theta* = argmax of the validation loss of (1), with S_val at most delta of S",
        ("methods.lrwopt:LRWOpt", "split:part_size"), "", "By alternating steps, as Algorithm 1."),
    Row("(3)", "max over parts S' of delta of the pool of min over theta of sum_S' l", ("tests/test_theory.py",), "",
        "A statement about (2) (Theorem 1), not something that is run."),
    Row("(4)", "min over theta of max over S' of sum_S' l",
        ("methods.dro:CVaR", "losses:worst_mean", "tests/test_theory.py"), "",
        "CVaR; here over the examples of a batch. Never below (3)."),
    Row("(5)", "L_split = CE(g_Theta(x, y), 1[argmax f(x) = y])", ("losses:split_loss", "networks:Splitter"), ""),
    Row("(6)", "argmax_Theta min_phi sum_val (l - L_split), S_tr = {g_Theta > 0.5}",
        ("methods.lrwopt:LRWOpt.learn", "split:generate_split"), "",
        "Of those below one half the lowest validate, delta of the pool at most; no class is taken out altogether."),
    Row("(7), PM", "PM = p_y - max over j != y of p_j",
        ("split:probabilistic_margin", "holdouts:Hardest", "holdouts:Easiest"), ""),
    Row("(8)", "(3) again, for the proof", ("tests/test_theory.py",), ""),
    Row("(9)", "min over theta of sum_val l, for the proof", ("methods.erm:ERM",), "",
        "No method trains on the validation part alone; ERM is the same sum over the part that it is given."),
    Row("(10)", "(1) again, for the proof", ("methods.lrw:LRW",), ""),
    Row("(11)", "Theta <- Theta - (beta_1 / M) sum grad_Theta [L_split - l(y_v, f_theta*(x_v))]",
        ("methods.lrwopt:LRWOpt.learn", "methods.lrwopt:LRWOpt.splitter_loss"), "eq. 11",
        "`adversary` says how l enters: `soft` (J), `hypergradient` (through theta') or `none`."),
    Row("(12)", "phi <- phi - beta_2 grad_phi sum [l(y_v, f_theta*(x_v)) - CE]", ("methods.lrwopt:LRWOpt.learn",), "",
        "CE does not contain phi, so this is (13)."),
    Row("(13)", "phi <- phi - beta_2 sum d l(y_v, f_theta*(x_v)) / d phi",
        ("methods.lrwopt:LRWOpt.learn", "metagrad:weight_gradient", "method:Run.weight_gradient",
         "weighting:Weights.learn"), "eq. 13", "Batch means. [How](meta-gradient.md)."),
    Row("(14)", "theta <- theta - beta_3 sum grad_theta [g_phi(x) l]", ("method:Run.update",), "",
        "The same as (15), since phi is constant in this step."),
    Row("(15)", "theta <- theta - beta_3 sum g_phi(x) grad_theta l",
        ("methods.lrwopt:LRWOpt.step", "method:Run.update", "weighting:Weights"), "eq. 15",
        "Weights have mean 1 over the batch."),
    Row("Omega_1", "the share of the parts stays near (1 - delta, delta)", ("losses:share_penalty",), "",
        "KL of the share from the prior, which is infinite where a part vanishes; the paper does not say which way."),
    Row("Omega_2", "the labels of either part stay near those of the pool", ("losses:label_penalty",), ""),
    Row("J", "sum (1 - a_i) l_i / sum (1 - a_i), a = g_Theta", ("losses:soft_validation_objective",), "",
        "Ours: the validation loss under soft membership, which has the gradient that lines 7 and (11) lack."),
    Row("theta*", "one step of the classifier with weights w",
        ("learner:Learner.lookahead", "method:Run.look_back", "method:Run.look_ahead"), "",
        "The real step by default; its answer to the gradient in closed form for SGD, Adam and AdamW."),
    Row("Theorem 1", "(2) and (3) have the same value, if weights see x and y", ("tests/test_theory.py",), "",
        "Weights of x alone cannot change the labels' distribution given x: `weights.inputs=xy` sees both."),
    Row("train twice", "Easy, Random, Hard, by margins of a first model",
        ("holdouts:Easiest", "holdouts:Random", "holdouts:Hardest"), "",
        "Margins by cross-fitting; `paper` takes those of one model, as published."),
    Row("appendix E", "time and operations over ERM", ("steps:Cost",), "", "[Measured](results/main-job.md)."),
    Row("appendix F, 1", "the meta loss -L^eta log(1 - L)", ("losses:difficulty_aware",), "",
        "`lrw-hard[objective=difficulty-aware]`."),
    Row("appendix F, 2", "the threshold 0.2", ("methods.lrwopt:LRWOpt.threshold",), "", "`lrwopt[threshold=0.2]`."),
    Row("appendix F, 3", "only misclassified examples validate", ("holdouts:Hardest.negative_only",), "",
        "`lrw-hard[holdout.negative_only=true]`."),
)  # fmt: skip


def found(name: str) -> object:
    """The object MODULE:NAME of molere; AttributeError or ModuleNotFoundError where it is gone."""
    module, _, path = name.partition(":")
    value: object = importlib.import_module(f"molere.{module}")
    for part in path.split("."):
        value = getattr(value, part)
    return value


def marked(row: Row) -> list[str]:
    """The lines of code whose comment has the row's mark, in the order of its objects."""
    lines = [line for name in row.code if row.mark for line in _lines(name)]
    return list(dict.fromkeys(code for code, comment in lines if _has(comment, row.mark)))


def _lines(name: str) -> list[tuple[str, str]]:
    """(code, comment) of an object's lines that end in a comment."""
    value = found(name)
    if not inspect.isfunction(value):
        return []
    split = (line.strip().rpartition("  # ") for line in inspect.getsource(value).splitlines())
    return [(code, comment) for code, mark, comment in split if mark and code]


def _has(comment: str, mark: str) -> bool:
    """Whether `7, eq. 11` or `14-17` has a mark: numbers are lines, `eq. N` equations."""
    for part in comment.split(", "):
        first, _, last = part.partition("-")
        spans = first.isdigit() and last.isdigit() and mark.isdigit()
        if part == mark or (spans and int(first) <= int(mark) <= int(last)):
            return True
    return False


def _linked(name: str) -> str:
    if "/" in name:
        return f"[`{name}`](../{name})"
    module, _, path = name.partition(":")
    return f"`{module}.{path}`"


def _table(rows: tuple[Row, ...], head: str) -> str:
    lines = [f"| {head} | says | code | |", "|---|---|---|---|"]
    for row in rows:
        shown = "; ".join(f"`{line}`" for line in marked(row))
        code = ", ".join(map(_linked, row.code)) + (f": {shown}" if shown else "")
        lines.append(f"| {row.where} | `{row.says}` | {code} | {row.note} |")
    return "\n".join(lines)


EQUATIONS_PAGE = """# From equations to code

Jain, Suggala and Shenoy, "Improving Generalization via Meta-Learning on Hard Samples" (CVPR 2024): each line of its
Algorithm 1 and each equation, and the objects below `molere` that carry it out. theta: the classifier, phi: the weight
network, Theta the splitter. `python tools/pages.py` writes this page; a test compares it with the code, and fails where
an object is gone or a line of code no longer says which line of the algorithm it is.

## Algorithm 1

{algorithm}

## Equations and names

{equations}

## Every equation as a function

`molere.equations` has the functions of all methods, by subject; the [reference](api/equations.md)
describes them.

{functions}
"""


def equations_page() -> str:
    """docs/equations.md."""
    names = [f"- {subject}: {', '.join(f'`{f.__name__}`' for f in functions)}" for subject, functions in _sections()]
    return EQUATIONS_PAGE.format(
        algorithm=_table(ALGORITHM, "line"), equations=_table(EQUATIONS, "in the paper"), functions="\n".join(names)
    )


def _sections() -> list[tuple[str, list[object]]]:
    return [(subject, list(functions)) for subject, functions in equations.SECTIONS.items()]


# ---- reference


@dataclass(frozen=True)
class Page:
    """A page of the reference: the public names from some modules."""

    title: str
    about: str
    modules: tuple[str, ...]
    also: tuple[str, ...] = ()
    """Objects that are not public names of `molere`."""


REFERENCE = {
    "running": Page(
        "Training and comparing",
        "One run, several methods on equal budgets and seeds, and what comes out.",
        ("run", "compare", "recipe", "result"),
        ("molere.comparison.Comparison",),
    ),
    "estimator": Page("The estimator", "[With examples](../estimator.md).", ("estimator",)),
    "reweighter": Page("Your own loop", "[With examples](../your-own-loop.md).", ("reweight",)),
    "data": Page("Data", "Pools of examples, and what makes them.", ("data.pool", "data.sources", "data.given")),
    "splits": Page(
        "Splits and holdouts", "Which examples validate.", ("split", "holdouts"), ("molere.learned.Learned",)
    ),
    "meta-gradients": Page(
        "Meta-gradients",
        "[How they are taken](../meta-gradient.md).",
        ("metagrad", "learner"),
        ("molere.doctor.examine", "molere.doctor.Diagnosis"),
    ),
    "methods": Page(
        "Methods",
        "Their settings; [a page for each](../methods/README.md) says more.",
        (),
        ("molere.weighting.Weights",),
    ),
    "new-methods": Page(
        "Writing a method",
        "[With an example](../adding-a-method.md).",
        ("method", "testing"),
        ("molere.steps.Seen", "molere.steps.Taken", "molere.steps.Look", "molere.steps.Cost"),
    ),
}


def homes() -> dict[str, str]:
    """The module, below molere, of each public name."""
    return {name: getattr(molere, name).__module__.removeprefix("molere.") for name in molere.__all__}


def method_classes() -> list[str]:
    """Every class of methods, in the order of listings."""
    return list(dict.fromkeys(f"{entry.module}.{entry.attribute}" for entry in registry.METHODS.values()))


def names_of(key: str) -> list[str]:
    """What stands on a page: public names under `molere`, other objects under their module."""
    page, home = REFERENCE[key], homes()
    public = [f"molere.{name}" for module in page.modules for name, where in home.items() if where == module]
    return (method_classes() if key == "methods" else public) + list(page.also)


def left_out() -> list[str]:
    """Public names that are on no page of the reference."""
    shown = {name for key in REFERENCE for name in names_of(key)}
    known = {f"molere.{home}.{name}" for name, home in homes().items()} & shown  # classes of methods
    return [
        name for name, home in homes().items() if f"molere.{name}" not in shown and f"molere.{home}.{name}" not in known
    ]


def reference_page(key: str) -> str:
    """A page of docs/api."""
    page = REFERENCE[key]
    return "\n\n".join([f"# {page.title}", page.about, *(f"::: {name}" for name in names_of(key))]) + "\n"


def equations_reference() -> str:
    """docs/api/equations.md: the functions of `molere.equations`, where they are defined."""
    parts = ["# Equations", "All can be imported from `molere.equations`."]
    for subject, functions in _sections():
        parts.append(f"## {subject[0].upper()}{subject[1:]}")
        parts += [f"::: {f.__module__}.{f.__name__}\n    options:\n      heading_level: 3" for f in functions]
    return "\n\n".join(parts) + "\n"


def reference_index() -> str:
    """docs/api/README.md."""
    about = "Everything public, from the docstrings. The site shows it; in the repository these pages only name it."
    pages = [f"- [{page.title}]({key}.md)" for key, page in REFERENCE.items()] + ["- [Equations](equations.md)"]
    return "\n".join(["# Reference", "", about, "", *pages]) + "\n"


def pages() -> dict[Path, str]:
    """All files that this script writes, and what is in them."""
    api = DOCS / "api"
    written = {api / f"{key}.md": reference_page(key) for key in REFERENCE}
    return {
        DOCS / "equations.md": equations_page(),
        api / "README.md": reference_index(),
        api / "equations.md": equations_reference(),
        **written,
    }


if __name__ == "__main__":
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
