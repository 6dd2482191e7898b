"""`fit` and `compare` do what the command line does: same defaults, presets, settings, progress on request."""

import inspect
from typing import Any

import pytest

from molere import compare, fit, settings
from molere.errors import ConfigError
from molere.experiment import Experiment, experiment
from molere.result import Result
from molere.testing import rare_region

SMALL: dict[str, Any] = {"data": rare_region(), "recipe": {"epochs": 2, "batch_size": 32, "device": "cpu"}}


@pytest.fixture(scope="module")
def result() -> Result:
    return fit("erm", **SMALL)


def test_the_defaults_are_those_of_the_command() -> None:
    shown, asked = inspect.signature(fit).parameters, Experiment()
    assert (shown["method"].default,) == asked.methods
    assert shown["data"].default == asked.data.name == inspect.signature(compare).parameters["data"].default
    assert shown["preset"].default == asked.preset == inspect.signature(compare).parameters["preset"].default


@pytest.mark.parametrize(
    ("method", "preset", "given"),
    [
        ("lrw-hard", "paper", {}),
        ("lrw-hard@default", "paper", {"delta": 0.2}),
        ("erm", "paper", {}),
        ("mwn[q=3]", "default", {"delta": 0.2, "q": 2}),
    ],
)
def test_presets_and_settings_are_written_into_a_name_as_the_command_does(
    method: str, preset: str, given: dict[str, Any]
) -> None:
    planned = experiment({"methods": [method], "preset": preset, "method": given})
    assert settings.MethodSpec.parse(settings.written(method, preset, given)) == settings.MethodSpec.parse(
        planned.labels[0]
    )


def test_a_preset_and_settings_reach_the_run() -> None:
    found = fit("mwn", preset="default", settings={"delta": 0.25, "q": 4}, **SMALL)
    assert found.label == "mwn[delta=0.25,q=4]"
    assert found.samples["in_validation"].sum() == 24  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"settings": {"dleta": 0.2}}, "did you mean method.delta"),
        ({"preset": "papper"}, "did you mean 'paper'"),
        ({"method": settings.make_method("erm"), "preset": "paper"}, "a Method has its settings"),
    ],
)
def test_a_mistake_in_them_is_a_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        fit(**{"method": "mwn", **SMALL, **given})


def test_a_comparison_takes_them_for_the_methods_that_have_them() -> None:
    found = compare(["erm", "mwn"], seeds=1, settings={"q": 2}, **SMALL)
    assert [r["label"] for r in found.results] == ["erm", "mwn[q=2]"]


def test_quiet_by_default_and_progress_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("molere.meter.EVERY", 0.0)
    fit("erm", **SMALL)
    assert capsys.readouterr() == ("", "")
    fit("erm", progress=True, **SMALL)
    out, err = capsys.readouterr()
    assert out == ""
    assert "50%" in err
    assert "erm" in err
    compare(["erm", "cvar"], seeds=1, progress=True, **SMALL)
    out, err = capsys.readouterr()
    assert out == ""
    assert "cvar, seed 0" in err


def test_a_result_shows_itself_as_text_and_as_html(result: Result) -> None:
    head, titles, *rows = str(result).splitlines()
    assert head.startswith("erm, seed 0: 6 updates in ")
    assert titles.split()[:2] == ["last", "best"]
    assert rows[0].split()[0] == "accuracy"
    assert f"{100 * result.last['accuracy']:.2f} %" in rows[0]
    shown = result._repr_html_()
    assert shown.startswith("<div>")
    assert f"Accuracy {100 * result.last['accuracy']:.1f} %" in shown


def test_without_selection_data_nothing_is_called_best() -> None:
    data = rare_region()
    alone = fit("erm", data=type(data)(data.name, data.train, None, data.tests), recipe=SMALL["recipe"])
    assert "best" not in str(alone)
