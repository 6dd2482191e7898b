"""What all tests share: one thread, fixed seeds, small data."""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # also for the processes that tests start

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch import Tensor, nn

from commands import molere  # noqa: F401  # a fixture
from reliability import count, pytest_addoption, pytest_configure, row  # noqa: F401  # hooks and fixtures

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts its background jobs so; tests interrupt programs
    signal.signal(signal.SIGINT, signal.default_int_handler)

torch.set_num_threads(1)

# Deadlines and the check of slowness measure the machine, not the code. Examples are the same in every run, unless
# `--hypothesis-profile=explore` asks for new ones.
slow = [HealthCheck.too_slow]
settings.register_profile("fixed", deadline=None, suppress_health_check=slow, derandomize=True, max_examples=50)
settings.register_profile("explore", deadline=None, suppress_health_check=slow, max_examples=500)
settings.load_profile("fixed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tests that found no browser say so where it is read, at the end."""
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "no page was looked at" in str(r.longrepr)]
    if skipped:
        line = f"NO BROWSER: {len(skipped)} tests looked at no report; install Debian's package chromium"
        terminalreporter.write_line(line, red=True, bold=True)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Each test starts from the same global generator, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_reports(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and comparisons draw no figures, which takes longer than most of them, but in tests marked `report`."""
    if not request.node.get_closest_marker("report"):
        monkeypatch.setattr("molere.show.reports.write_report", lambda *_, **__: None)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def points(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """60 points of 4 features in 3 overlapping classes, 20 each: x [60, 4] float32, y [60]."""
    y = torch.arange(60) % 3
    centres = 2 * torch.randn(3, 4, generator=generator)
    return centres[y] + torch.randn(60, 4, generator=generator), y


@pytest.fixture
def small_mlp() -> nn.Module:
    """A classifier from 4 features to 3 classes."""
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
