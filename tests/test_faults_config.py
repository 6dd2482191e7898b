"""Malformed settings, settings that go round, devices that are not here, and output without a terminal."""

import dataclasses
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import stub_training
from molere.cli import main
from molere.cli.console import EVERY, Meter
from molere.compare import compare
from molere.comparison import Comparison
from molere.config import dump_value, flatten, merge_all, parse_yaml, read_overrides
from molere.experiment import experiment, resolved_yaml
from molere.settings import recipe_settings
from reliability import Row, counted
from test_cli import FILES, environment
from test_experiment import EXPERIMENTS

Wrong = list[tuple[object, object]]

# ---- C1: malformed settings; each case holds one mistake, and so must say one line

GOOD = """\
data: {name: digits, scenario: noise, limit: 300}
methods: [erm, lrwopt]
seeds: [0, 1]
train:
  epochs: 3
  batch_size: 32
  lr: 0.05
  optimizer: sgd
method:
  delta: 0.2
"""
WORDS = ("fast", "yes", "1e", "0x10", "--", "ten", "None", "1,5", "1_000")


def misspelt(draw: random.Random) -> str:
    """A key with a letter too many, too few, or two changed round."""
    key = draw.choice(["data", "methods", "seeds", "train", "epochs", "batch_size", "method", "delta", "scenario"])
    at = draw.randrange(1, len(key) - 1)
    wrong = draw.choice([key[:at] + key[at + 1 :], key[:at] + "q" + key[at:], key[:at] + "_" + key[at:]])
    return GOOD.replace(f"{key}:", f"{wrong}:", 1)


def twice(draw: random.Random) -> str:
    line = draw.choice(GOOD.splitlines()[:3])
    return GOOD + line.replace("digits", draw.choice(["digits", "cifar10"])) + "\n"


def of_a_wrong_type(draw: random.Random) -> str:
    """A setting of training with a word, a list, a mapping, or nothing where a number belongs."""
    known = [name for name, entry in recipe_settings().items() if type(entry.get("default")) in (int, float)]
    value = draw.choice([*WORDS, "[1]", "{a: 1}", "true", "''", "null"])
    return f"train: {{{draw.choice(known)}: {value}}}\n"


def outside_its_limits(draw: random.Random) -> str:
    key = draw.choice(["epochs", "batch_size", "lr", "grad_clip", "save_every", "eval_every", "accumulate", "q"])
    value = draw.choice(["-1", "0", ".nan", ".inf", "-.inf", "-1e9", f"-{draw.randrange(1, 10**6)}"])
    return f"train: {{{key}: {value}}}\n"


def no_such_name(draw: random.Random) -> str:
    name = "".join(draw.choices("abcdefghkxyz", k=draw.randrange(3, 12)))
    return draw.choice(
        [f"data: {name}", f"methods: [{name}]", f"model: {name}", f"preset: {name}", f"train: {{optimizer: [{name}]}}"]
    )


def cut_off(draw: random.Random) -> str:
    """A bracket or a quotation mark that is not closed."""
    opened = draw.choice(["[1, 2", "{a: 1", "'text", '"text', "[{a: [1}", "[erm, molere"])
    return f"train: {{epochs: 3}}\nmethods: {opened}\n"


def tabbed(draw: random.Random) -> str:
    lines = GOOD.splitlines()
    at = draw.choice([4, 5, 6, 7, 9])
    return "\n".join([*lines[:at], "\t" + lines[at].strip(), *lines[at + 1 :]])


def alive(draw: random.Random) -> str:
    """Anchors, aliases, tags: YAML that would build something."""
    bomb = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n"
    tags = ["!!python/object/apply:os.system [touch pwned]", "!!python/name:os.system", "!!binary aGk=", "!mine x"]
    return draw.choice([bomb, *(f"model: {tag}\n" for tag in tags), "seeds: &s [1]\n", f"out: {draw.choice(tags)}\n"])


def noise(draw: random.Random) -> bytes:
    """Bytes of anything: zeros, pictures, text of other encodings."""
    raw = draw.randbytes(draw.randrange(1, 300))
    return draw.choice(
        [b"\x00" * 40, b"\x89PNG\r\n\x1a\n" + raw, b"\xff\xfe" + raw, b"\x80\x04" + raw, b"\xc3\x28" + raw]
    )


def of_another_kind(draw: random.Random) -> str:
    return draw.choice(
        ["", "# nothing", "- 1\n- 2", "just text", "3", "null", "true", "[a, b]", "---\n---\na: 1", "a: 1\n---\nb: 2"]
    )


def at_odds(draw: random.Random) -> str:
    """Settings of which each is right alone."""
    return draw.choice(
        [
            "seeds: [1, 1]",
            f"methods: [erm, molere]\nseeds: [{draw.randrange(9)}]",  # for train
            "methods: [erm]\nmethod: {delta: 0.1}",
            "data: {name: digits, scenario: imbalance-of-nothing}",
            "methods: [erm, erm]",
            "tune: 3",
            "methods: [lrwopt]\nmethod: {delta: 3}",
        ]
    )


MAKERS: tuple[Callable[[random.Random], str | bytes], ...] = (
    *(misspelt, twice, of_a_wrong_type, outside_its_limits, no_such_name, cut_off),
    *(tabbed, alive, noise, of_another_kind, at_odds),
)

ASK = """
import contextlib, io, json, sys, time
from molere.cli import main
found = []
for path in json.loads(sys.stdin.read()):
    sys.argv, said = ["molere", "train", "-c", path], io.StringIO()
    began = time.process_time()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        code = main()
    found.append([path, code, said.getvalue(), time.process_time() - began])
print(json.dumps([found, sorted({"torch", "numpy", "scipy"} & set(sys.modules))]))
"""


@counted(40, 200)
def test_malformed_settings_are_refused_in_a_line_within_a_second_without_torch(
    tmp_path: Path, count: int, row: Row
) -> None:
    draw, cases = random.Random(1), list[str | bytes](FILES.values())[: count // 2]
    cases += [MAKERS[i % len(MAKERS)](draw) for i in range(count - len(cases))]
    paths = [tmp_path / f"{i}.yaml" for i in range(count)]
    for path, content in zip(paths, cases, strict=True):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    call = subprocess.run(
        [sys.executable, "-c", ASK],
        input=json.dumps([str(p) for p in paths]),
        capture_output=True,
        text=True,
        env=environment(),
        cwd=tmp_path,
        check=True,
    )
    found, slow = json.loads(call.stdout)
    wrong = Wrong()
    for content, (_, code, said, seconds) in zip(cases, found, strict=True):
        lines = said.splitlines()
        told = 1 <= len(lines) <= 4 and all(line.startswith("error: ") for line in lines)  # a line for each mistake
        if code != 2 or not told or "fault of molere" in said or seconds > 1:
            wrong.append((content[-60:], (code, said, round(seconds, 2))))
    assert slow == []
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in paths)
    row.judge("C1", wrong, count)


# ---- C2: settings go round


@counted(10, 1000, dear=True)
def test_settings_go_through_files_and_overrides_in_any_order(count: int, row: Row) -> None:
    tried, wrong = list[int](), Wrong()

    @settings(max_examples=count)
    @given(EXPERIMENTS, st.randoms(use_true_random=False))
    def goes_round(layer: dict[str, Any], draw: random.Random) -> None:
        e = experiment(layer)
        again = experiment(parse_yaml(resolved_yaml(e)))
        flat = [f"{k}={dump_value(v)}" for k, v in flatten(dataclasses.asdict(e)).items() if (k, v) != ("method", {})]
        mixed = experiment(read_overrides(draw.sample(flat, len(flat))))
        halves = [read_overrides(part) for part in (flat[::2], flat[1::2])]
        layered = experiment(merge_all(*draw.sample(halves, 2)))
        tried.append(1)
        if not e == again == mixed == layered:
            wrong.append((layer, (again, mixed, layered)))

    goes_round()
    row.judge("C2", wrong, len(tried))
    assert len(tried) >= count


# ---- A3: help


@counted(1, 6)
def test_help_takes_half_a_second_and_no_torch(count: int, row: Row, tmp_path: Path) -> None:
    kept = {**environment(), "PYTHONPYCACHEPREFIX": str(tmp_path)}  # compiled once, as where molere is installed
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    wrong, code = (
        Wrong(),
        "import sys; from molere.cli import main; c = main(); print('torch' in sys.modules); sys.exit(c)",
    )
    asked = ("--help", "train --help", "compare --help", "methods", "models", "data list")
    for arguments in asked[:count]:
        times = list[float]()
        for _ in range(3):
            before = os.times()
            call = subprocess.run(
                [sys.executable, "-c", code, *arguments.split()],
                capture_output=True,
                text=True,
                env=kept,
                check=False,
            )
            after = os.times()
            times.append(after.children_user - before.children_user + after.children_system - before.children_system)
        if call.returncode or call.stdout.splitlines()[-1] != "False" or min(times) > 0.5:
            wrong.append((arguments, (call.returncode, call.stderr, times)))
    row.judge("A3", wrong, count)


# ---- R2: devices


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Any:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["molere", *arguments])
        capsys.readouterr()
        code = main()
        return code, *capsys.readouterr()

    return run


@counted(6, 6)
def test_a_device_that_is_not_here_is_one_line(
    count: int, row: Row, say: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = Wrong()
    asked = (("auto", 0, 0), ("cuda", 6, 0), ("cuda:7", 6, 1), ("gpu", 2, 0), ("cuda:-1", 2, 1), ("meta", 2, 0))
    for device, expected, here in asked[:count]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda n=here: n > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda n=here: n)
        out = f"out-{expected}-{device.replace(':', '')}"
        code, _, err = say(*f"train --method erm --limit 100 --epochs 1 --device {device} --out {out}".split())
        said = [line for line in err.splitlines() if line.startswith("error: ")]
        if code != expected or len(said) != (expected > 0) or (expected and (tmp_path / out).exists()):
            wrong.append((device, (code, err)))
    row.judge("R2", wrong, count)


# ---- O2: where output goes


@pytest.fixture
def comparison(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Comparison:
    parts = {"fit": "stub_training:fit", "load": "stub_training:load", "store": "stub_training:store"}
    monkeypatch.setattr(sys.modules["molere.compare"], "PARTS", parts)
    monkeypatch.setenv("STUB_LOG", str(tmp_path / "stub.log"))
    assert stub_training.noted() == []
    return compare(["erm", "molere", "lrw-hard"], seeds=3)


def drawn(comparison: Comparison, width: int, **more: Any) -> str:
    """What a terminal of that width shows."""
    file = io.StringIO()
    Console(file=file, width=width, force_terminal=True, legacy_windows=False, **more).print(comparison)
    return file.getvalue()


@counted(6, 6)
def test_output_is_readable_without_a_terminal_in_a_notebook_without_colours_and_narrow(
    count: int, row: Row, comparison: Comparison, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    narrow = drawn(comparison, 40, color_system=None)
    monkeypatch.setenv("NO_COLOR", "1")
    uncoloured = drawn(comparison, 100, color_system="truecolor")
    ascii_only = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", ascii_only)
    monkeypatch.setattr(sys, "argv", ["molere", "methods", "molere"])
    checks = {
        "no terminal": lines_of_progress(capsys, monkeypatch) <= 10,
        "a notebook": comparison._repr_html_().startswith("<") and "<script" not in comparison._repr_html_(),
        "NO_COLOR": "\x1b[3" not in uncoloured and "molere" in uncoloured,
        "narrow": all(len(line) <= 40 for line in narrow.splitlines()) and "p" in narrow,
        "plain text": "\x1b" not in str(comparison) and "molere" in str(comparison),
        "ascii": main() == 0,
    }
    row.judge("O2", [(what, "no") for what, good in list(checks.items())[:count] if not good], count)


def lines_of_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Lines that a hundred seconds of news make in a file."""
    now = [0.0]
    with monkeypatch.context() as patch:
        patch.setattr("time.monotonic", lambda: now[0])
        with Meter(3, shows=True, bars=False) as meter:
            for step in range(1000):
                now[0] = 0.1 * step
                meter.update(step % 3, "running", step / 1000, {"accuracy": 0.5}, "erm seed 0")
    lines = capsys.readouterr().err.splitlines()
    assert all(len(line) < 80 for line in lines)
    assert EVERY >= 10
    return len(lines)
