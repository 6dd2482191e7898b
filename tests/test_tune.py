"""Tuning: what is searched, what is chosen, what is kept of it, and that test data have no say."""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from molere import cli, registry, settings
from molere.compare import compare
from molere.comparison import Comparison
from molere.data.pool import Data, TensorPool
from molere.errors import ConfigError, DataError, NumericsError, StorageError
from molere.jobs import Progress
from molere.methods.erm import ERM
from molere.recipe import Recipe
from molere.registry import SEARCH, SEARCH_TRAIN, Choice, LogUniform
from molere.run import fit
from molere.search import applied, drawn, space_of
from molere.settings import MethodSpec
from molere.testing import rare_region

# ---- what is searched


def ends(space: LogUniform | Choice) -> list[Any]:
    return list(space.values) if isinstance(space, Choice) else [space.low, space.high]


@pytest.mark.parametrize("name", SEARCH)
def test_every_range_lies_within_the_limits_of_its_setting(name: str) -> None:
    assert name in registry.METHODS
    for key, space in SEARCH[name].items():
        for value in ends(space):
            spec, _ = applied(name, {f"method.{key}": value})
            settings.make_method(spec)
            assert not settings.check_spec(MethodSpec.parse(spec), {})


@pytest.mark.parametrize("name", SEARCH)
def test_every_trial_makes_a_method(name: str) -> None:
    for trial in range(1, 40):
        chosen = drawn({f"method.{k}": v for k, v in SEARCH[name].items()}, seed=0, trial=trial)
        settings.make_method(applied(name, chosen)[0])


@pytest.mark.parametrize("kind", SEARCH_TRAIN)
def test_ranges_of_training_lie_within_its_limits(kind: str) -> None:
    for key, space in SEARCH_TRAIN[kind].items():
        for value in ends(space):
            assert not settings.mistakes_in({key: value}, settings.recipe_settings(), "train")


def test_training_is_searched_for_every_method_and_method_settings_where_declared() -> None:
    assert list(space_of("erm", None)) == ["train.lr", "train.weight_decay"]
    assert list(space_of("cvar", None)) == ["train.lr", "train.weight_decay", "method.alpha"]
    assert list(space_of(ERM(), None)) == ["train.lr", "train.weight_decay"]
    adam = space_of("erm", {"optimizer": "AdamW"})
    assert adam["train.lr"] == SEARCH_TRAIN["other"]["lr"] != SEARCH_TRAIN["sgd"]["lr"]


@pytest.mark.parametrize(
    ("method", "recipe", "held"),
    [
        ("erm", {"lr": 0.05}, "train.lr"),
        ("erm", Recipe(weight_decay=0.0), "train.weight_decay"),
        ("lrw-hard[delta=0.3]", None, "method.delta"),
        ("lrw-hard[weights.lr=0.1]", None, "method.weights.lr"),
        ("lrw-hard@paper", None, "method.weights.lr"),
        ("molere", {"warmup": 0.1}, "method.warmup"),
    ],
)
def test_what_was_stated_is_not_searched(method: str, recipe: Any, held: str) -> None:
    whole = space_of(MethodSpec.parse(method).name, None)
    assert set(whole) - set(space_of(method, recipe)) == {held}


@given(st.integers(0, 2**62), st.integers(1, 1000))
def test_draws_lie_in_their_ranges(seed: int, trial: int) -> None:
    for key, value in drawn(space_of("lrwopt", None), seed, trial).items():
        space = space_of("lrwopt", None)[key]
        if isinstance(space, Choice):
            assert value in space.values
        else:
            assert space.low * 0.99 <= value <= space.high * 1.01


def test_a_setting_has_the_same_value_in_the_same_trial_of_every_method() -> None:
    erm, opt = (drawn(space_of(name, None), 0, 7) for name in ("erm", "lrwopt"))
    assert {key: opt[key] for key in erm} == erm
    assert drawn(space_of("erm", None), 0, 7) == erm
    assert drawn(space_of("erm", None), 0, 8) != erm != drawn(space_of("erm", None), 1, 7)
    assert drawn(space_of("erm", None), 0, 0) == {}


def test_logarithms_are_drawn_uniformly() -> None:
    space = {"train.lr": LogUniform(1e-4, 1.0)}
    logs = [math.log10(drawn(space, 0, t)["train.lr"]) for t in range(1, 2001)]
    for cut in (-3, -2, -1):
        assert sum(x < cut for x in logs) / 2000 == pytest.approx((cut + 4) / 4, abs=0.04)


def test_drawn_settings_join_those_that_a_spec_states() -> None:
    chosen = {"train.lr": 0.01, "method.weights.lr": 0.003, "method.keep": True}
    assert applied("lrw-hard@paper[weights.c=1.0]", chosen) == (
        "lrw-hard@paper[keep=true,weights.c=1.0,weights.lr=0.003]",
        {"lr": 0.01},
    )
    method = ERM()
    assert applied(method, {"train.lr": 0.01}) == (method, {"lr": 0.01})


# ---- what is chosen: training is a stand-in that scores a recipe


def pool(size: int) -> TensorPool:
    return TensorPool(torch.zeros(size, 2), torch.arange(size) % 2)


DATA = Data("points", pool(8), pool(4), {"test": pool(6)})
Call = tuple[str, Mapping[str, Any], int, tuple[str, ...], Path | None]


class Stub:
    """Stands for `fit`: notes each call, and scores it by a function of method, recipe and trial's draw."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.score: Callable[[str, Mapping[str, Any]], tuple[float, float]] = lambda m, r: (r.get("lr", 0.1), 1.0)
        self.stop_at = -1

    def __call__(
        self, method: str, *, data: Data, recipe: Any, seed: int, out: Path | None, label: str, **_: Any
    ) -> Any:
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        given = vars(recipe) if isinstance(recipe, Recipe) else dict(recipe or {})
        self.calls.append((str(method), given, seed, tuple(data.tests), out))
        accuracy, nll = self.score(str(method), given)
        metrics = {"accuracy": accuracy, "nll": nll}
        if "test" in data.tests:
            metrics = {"accuracy": 0.5, "nll": 1.0}
        cost = {"seconds": 2.0, "scout_seconds": 1.0, "forward": 10.0, "backward": 10.0}
        stored = {"method": label, "label": label, "seed": seed, "data": "points", "scenario": "", "updates": 10,
                  "last": {"accuracy": 0.0, "nll": 9.0}, "best": metrics, "cost": cost, "settings": {}}  # fmt: skip
        if out is not None:
            out.mkdir(parents=True)
            (out / "result.json").write_text(json.dumps(stored))
            (out / "DONE").touch()
        return SimpleNamespace(as_dict=lambda: dict(stored))

    @property
    def trials(self) -> list[Call]:
        return [c for c in self.calls if c[3] == ("validation",)]

    @property
    def finals(self) -> list[Call]:
        return [c for c in self.calls if c[3] == ("test",)]


STUB = Stub()


def stub_fit(*arguments: Any, **named: Any) -> Any:
    return STUB(*arguments, **named)


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Stub:
    """A fresh stand-in for `fit`."""
    fresh = Stub()
    monkeypatch.setitem(globals(), "STUB", fresh)
    monkeypatch.setitem(sys.modules, "stub_of_tune", sys.modules[__name__])
    parts = {"fit": "stub_of_tune:stub_fit"}
    monkeypatch.setattr(sys.modules["molere.compare"], "PARTS", parts)
    return fresh


def compared(methods: Sequence[Any] = ("erm", "cvar"), **arguments: Any) -> Comparison:
    return compare(list(methods), **{"data": DATA, "seeds": [3, 5], "tune": 4, **arguments})


def test_every_method_gets_the_same_number_of_trials_on_one_seed_without_test_data(stub: Stub) -> None:
    compared()
    assert [c[2] for c in stub.trials] == [3] * 8
    assert {c[3] for c in stub.trials} == {("validation",)}
    assert stub.calls == [*stub.trials, *stub.finals]
    assert [c[2] for c in stub.finals] == [3, 3, 5, 5]
    first = [c for c in stub.trials if c[1] == {}]
    assert [c[0] for c in first] == ["erm", "cvar"]


def test_the_trial_of_best_selection_accuracy_is_used_on_every_seed(stub: Stub) -> None:
    found = compared()
    for name in ("erm", "cvar"):
        trials = [c for c in stub.trials if MethodSpec.parse(c[0]).name == name]
        best = max(trials, key=lambda c: c[1].get("lr", 0.1))
        assert [c[:2] for c in stub.finals if MethodSpec.parse(c[0]).name == name] == [best[:2]] * 2
    assert [c.label for c in found.tuning] == ["erm", "cvar"]
    assert [r["label"] for r in found.results] == ["erm", "erm", "cvar", "cvar"]


def test_of_equal_accuracies_the_smaller_loss_wins_and_then_the_earlier_trial(stub: Stub) -> None:
    stub.score = lambda _, recipe: (0.9, 1.0)
    assert [c.trial for c in compared().tuning] == [0, 0]
    stub.calls.clear()
    stub.score = lambda _, recipe: (0.9, recipe.get("lr", 99.0))
    lr = [drawn(space_of("erm", None), 3, t).get("train.lr", 99.0) for t in range(4)]
    assert compared(["erm"]).tuning[0].trial == lr.index(min(lr))


def test_a_recipe_object_and_a_method_object_are_tuned_as_well(stub: Stub) -> None:
    found = compared([ERM()], recipe=Recipe(epochs=2, lr=0.2))
    assert list(found.tuning[0].search) == ["train.weight_decay"]
    assert {c[1]["epochs"] for c in stub.calls} == {2}
    assert {c[1]["lr"] for c in stub.calls} == {0.2}


def test_a_trial_that_fails_counts_and_is_not_chosen(stub: Stub) -> None:
    def score(_: str, recipe: Mapping[str, Any]) -> tuple[float, float]:
        if not recipe:
            raise NumericsError("the loss is no longer finite")
        return recipe["lr"], 1.0

    stub.score = score
    with_failure = compared(["erm"]).tuning[0]
    assert (with_failure.trials, with_failure.failed, with_failure.given) == (4, 1, None)
    assert with_failure.trial > 0


def test_if_all_trials_of_a_method_fail_it_is_missing_and_the_others_go_on(stub: Stub) -> None:
    def score(method: str, _: Mapping[str, Any]) -> tuple[float, float]:
        if method.startswith("cvar"):
            raise NumericsError("not finite")
        return 0.5, 1.0

    stub.score = score
    found = compared()
    assert [(m.label, m.seed, m.reason) for m in found.table.missing] == [
        ("cvar", seed, "all 4 trials failed; the first: not finite") for seed in (3, 5)
    ]
    assert [c.label for c in found.tuning] == ["erm"]
    assert found.exit_code == NumericsError.exit_code


# ---- what is kept


def test_trials_choice_and_cost_are_kept_and_reported(stub: Stub, tmp_path: Path) -> None:
    found = compared(out=tmp_path)
    assert sorted(p.name for p in (tmp_path / "tune/cvar").iterdir()) == [f"trial-{t}" for t in range(4)]
    chosen = found.tuning[1]
    kept = json.loads((tmp_path / "runs/cvar/seed-5/result.json").read_text())["tuned"]
    assert kept["settings"] == chosen.settings
    assert kept["search"]["method.alpha"] == "log-uniform in [0.1, 0.8]"
    assert all(r["tuned"]["trial"] == chosen.trial for r in found.results if r["label"] == "cvar")
    assert json.loads((tmp_path / "table.json").read_text())["about"]["tuning"][1]["settings"] == chosen.settings
    assert chosen.cost["forward"] == 40
    section = (tmp_path / "table.md").read_text().split("## Tuning")[1]
    assert f"| cvar | {chosen.words} | {100 * chosen.accuracy:.2f} | 10.00 | 0 | 12.0 | 6.00 |" in section
    assert "- `train.lr`: log-uniform in [0.005, 0.5] (every method)" in section
    assert "- `method.alpha`: log-uniform in [0.1, 0.8] (cvar)" in section
    assert f"Tuned, 4 trials: cvar {chosen.words}" in str(found)


def test_without_tuning_nothing_of_it_is_written(stub: Stub, tmp_path: Path) -> None:
    found = compared(out=tmp_path, tune=0)
    assert len(stub.calls) == 4
    assert found.tuning == ()
    assert not (tmp_path / "tune").exists()
    assert "tune" not in (tmp_path / "config.yaml").read_text()
    assert "Tuning" not in found.to_markdown()
    assert "tuned" not in found.results[0]


@pytest.mark.parametrize("at", [2, 7, 9])
def test_an_interrupted_search_goes_on_where_it_stopped(stub: Stub, tmp_path: Path, at: int) -> None:
    whole = compared(out=tmp_path / "whole")
    calls, stub.calls, stub.stop_at = [c[:4] for c in stub.calls], [], at
    with pytest.raises(KeyboardInterrupt):
        compared(out=tmp_path / "parts")
    assert json.loads((tmp_path / "parts/status.json").read_text())["state"] == "interrupted"
    stub.stop_at = -1
    again = compared(out=tmp_path / "parts")
    assert [c[:4] for c in stub.calls] == calls
    assert (again.tuning, again.table) == (whole.tuning, whole.table)


def test_finished_trials_and_runs_are_not_made_again(stub: Stub, tmp_path: Path) -> None:
    first = compared(out=tmp_path)
    count, told = len(stub.calls), list[Progress]()
    again = compared(out=tmp_path, progress=told.append)
    assert len(stub.calls) == count
    assert [(p.state, p.job.trial is None) for p in told] == [("kept", False)] * 8 + [("kept", True)] * 4
    assert again.results == first.results
    assert again.tuning == first.tuning


def test_a_method_that_is_added_gets_its_own_trials(stub: Stub, tmp_path: Path) -> None:
    compared(["erm"], out=tmp_path)
    stub.calls.clear()
    compared(["erm", "cvar"], seeds=[3, 5, 8], out=tmp_path)
    assert [MethodSpec.parse(c[0]).name for c in stub.trials] == ["cvar"] * 4
    assert [(MethodSpec.parse(c[0]).name, c[2]) for c in stub.finals] == [
        ("cvar", 3), ("cvar", 5), ("erm", 8), ("cvar", 8),
    ]  # fmt: skip


def test_a_choice_that_was_made_stays_though_a_failed_trial_might_now_succeed(stub: Stub, tmp_path: Path) -> None:
    def score(_: str, recipe: Mapping[str, Any]) -> tuple[float, float]:
        if not recipe:
            raise NumericsError("no")
        return 0.5, 1.0

    stub.score = score
    before = compared(["erm"], out=tmp_path).tuning
    stub.score = lambda _, recipe: (0.99, 1.0)
    assert compared(["erm"], out=tmp_path).tuning == before


def test_another_number_of_trials_or_another_search_is_refused(
    stub: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared(["erm"], out=tmp_path)
    with pytest.raises(StorageError, match=r"tune \(4 there, 5 here\)"):
        compared(["erm"], tune=5, out=tmp_path)
    with pytest.raises(StorageError, match=r"tune \(4 there, default here\)"):
        compared(["erm"], tune=0, out=tmp_path)
    other = {"sgd": {"lr": LogUniform(0.1, 0.2)}}
    monkeypatch.setattr(registry, "SEARCH_TRAIN", other)
    with pytest.raises(StorageError, match=r"holds trials of erm from another search; choose another folder"):
        compared(["erm"], out=tmp_path)


def test_starting_over_makes_all_trials_again(stub: Stub, tmp_path: Path) -> None:
    compared(["erm"], out=tmp_path / "a")
    count = len(stub.calls)
    (tmp_path / "a/tune/erm").rename(tmp_path / "old")
    for seed in (3, 5):
        (tmp_path / f"a/runs/erm/seed-{seed}").rename(tmp_path / f"old-{seed}")
    compared(["erm"], out=tmp_path / "a", resume=False)
    assert len(stub.calls) == 2 * count


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tune": -1}, "tune must be a number of trials, 0 for none; got -1"),
        ({"tune": True}, "tune must be a number of trials, 0 for none; got True"),
        ({"recipe": {"lr": 0.1, "weight_decay": 0.0}}, "tune=4: nothing is left to search for erm, as all of it"),
        ({"data": dataclasses.replace(DATA, select=None)}, "tune=4 needs selection data, and these have none"),
        ({"data": {"name": "digits", "select": 0}}, "tune=4 needs selection data, and these have none"),
    ],
)
def test_a_search_that_cannot_be_made_is_refused_in_one_line(
    stub: Stub, arguments: dict[str, Any], sentence: str
) -> None:
    with pytest.raises((ConfigError, DataError), match=sentence) as told:
        compared(["erm"], **arguments)
    assert len(str(told.value).splitlines()) == 1
    assert stub.calls == []


# ---- with real trainings


def test_a_tuned_run_is_the_run_with_the_chosen_settings(tmp_path: Path) -> None:
    recipe = {"epochs": 2, "batch_size": 16, "device": "cpu"}
    found = compare(["erm", "trimmed"], data=rare_region(), model="mlp", recipe=recipe, seeds=1, tune=3, out=tmp_path)
    for chosen, result in zip(found.tuning, found.results, strict=True):
        spec, train = applied(chosen.label, chosen.settings)
        alone = fit(spec, data=rare_region(), model="mlp", recipe={**recipe, **train}, label=chosen.label)
        assert dict(alone.best) == result["best"]
        assert result["settings"]["train"] == alone.settings["train"]
        trials = [json.loads((tmp_path / f"tune/{chosen.label}/trial-{t}/result.json").read_text()) for t in range(3)]
        best = [t["best"]["accuracy"] for t in trials]
        assert chosen.accuracy == max(best) == best[chosen.trial]
        assert best[chosen.trial] == max(row["select_accuracy"] for row in alone.history)
        assert chosen.cost["seconds"] == pytest.approx(sum(t["cost"]["seconds"] for t in trials))


# ---- on the command line


@pytest.fixture
def molere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["molere", *arguments])
        capsys.readouterr()
        code = cli.main()
        return code, *capsys.readouterr()

    return run


def test_a_dry_run_shows_trials_and_search_space(molere: Callable[..., tuple[int, str, str]]) -> None:
    arguments = ("compare", "--methods", "erm,cvar", "--seeds", "2", "--tune", "8", "train.lr=0.1", "--dry-run")
    code, out, _ = molere(*arguments, "--json")
    plan = json.loads(out)
    assert (code, plan["runs"]) == (0, 4)
    assert plan["tune"] == {
        "trials": 8,
        "runs": 16,
        "search": {
            "erm": {"train.weight_decay": "log-uniform in [1e-05, 0.01]"},
            "cvar": {
                "train.weight_decay": "log-uniform in [1e-05, 0.01]",
                "method.alpha": "log-uniform in [0.1, 0.8]",
            },
        },
    }
    assert molere(*arguments)[1].startswith("would train 4 runs after 16 trials; nothing is done")
    other = json.loads(molere(*arguments[:5], *arguments[7:], "--json")[1])
    assert "tune" not in other
    assert other["folder"] != plan["folder"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("train --tune 3", "error: --tune 3: train runs one method as given; `molere compare` tunes"),
        ("compare --tune -1", "error: tune must be an int of at least 0; got -1."),
        ("compare --methods erm --tune 2 train.lr=0.1 train.weight_decay=0.0", "error: tune=2: nothing is left"),
    ],
)
def test_commands_refuse_in_one_line(
    molere: Callable[..., tuple[int, str, str]], arguments: str, sentence: str
) -> None:
    code, out, err = molere(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith(sentence)
    assert len(err.splitlines()) == 1


def test_a_tuned_comparison_runs_and_resumes(molere: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    arguments = ("--methods", "erm", "--seeds", "1", "--tune", "2", "--epochs", "1", "--out", "x", "--jobs", "1", "-q")
    code, out, _ = molere("compare", *arguments)
    assert code == 0
    assert "Tuned, 2 trials: erm" in out
    settings_file = tmp_path / "x/config.yaml"
    assert "tune: 2" in settings_file.read_text()
    code, again, _ = molere("resume", "x", "-q")
    assert (code, again) == (0, out)
