"""A server for test_resume.py: forks workers that train, and that SIGKILL themselves at a given point.

It loads torch once and never computes with it, so a fork is a fresh process without the seconds of an import. Each line
on its input is {"method": ..., "out": ..., "kill": [point, update] or null}; each line on its output is how the worker
ended, as [exit code, signal].
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401  # what workers would load one by one
import torch
import torch._dynamo
from torch import Tensor, nn

from molere import run as running
from molere.data.pool import Data, TensorPool
from molere.method import Run
from molere.recipe import Recipe
from molere.run import fit
from molere.storage import files
from molere.training import Training

SIZE, EPOCHS, BATCH, SAVE_EVERY = 160, 5, 16, 3
SECONDS = 100


class Net(nn.Module):
    """Everything that has a state of its own or draws numbers: convolution, BatchNorm, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2)
        )
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def images(seed: int) -> TensorPool:
    """8 x 8 pictures of four classes: noise, brighter in one quarter; every tenth is turned upside down."""
    made = torch.Generator().manual_seed(seed)
    y = torch.arange(SIZE) % 4
    x = torch.randint(0, 120, (SIZE, 1, 8, 8), generator=made)
    for label in range(4):
        row, column = 4 * (label // 2), 4 * (label % 2)
        x[y == label, :, row : row + 4, column : column + 4] += 60
    turned = torch.arange(SIZE) // 4 % 10 == 0
    x[turned] = x[turned].flip(2)
    return TensorPool(x.to(torch.uint8), y, group=turned.long(), augment="crop-flip", crop_padding=1)


def train(method: str, out: str) -> None:
    data = Data("quarters", images(0), images(1), {"test": images(2)})
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, lr=0.05, save_every=SAVE_EVERY, device="cpu")
    fit(method, data=data, model=Net, recipe=recipe, out=out)


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, update: int) -> None:
    """Have this process killed when it first passes a point at this update or later; scouts do not count."""
    owner, name = {"before a step": (Run, "train_batch"), "after an update": (Run, "update")}.get(
        point, (Training, "save")
    )
    call = getattr(owner, name)

    def armed(self: Any, *arguments: Any, **keywords: Any) -> Any:
        run = self if isinstance(self, Run) else self.run
        if len(run.pool) < SIZE or run.updates < update:
            return call(self, *arguments, **keywords)
        if point == "after an update":
            call(self, *arguments, **keywords)
        elif point == "within a save":
            files.write_new = torn_at_third(files.write_new)
        elif point == "before the pointer":
            files.write_bytes = die
        elif point == "among the last files":
            running.write_bytes = die
        if point in ("before a step", "after an update", "between metrics and save"):
            die()
        return call(self, *arguments, **keywords)

    setattr(owner, name, armed)


def torn_at_third(write: Any) -> Any:
    """The call, killed at its third time, when half of the file has been written."""
    calls: list[Path] = []

    def written(path: Path, data: bytes, **arguments: Any) -> None:
        calls.append(path)
        write(path, data[: len(data) // 2] if len(calls) == 3 else data, **arguments)
        if len(calls) == 3:
            die()

    return written


def work(request: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    signal.alarm(SECONDS)
    if request["kill"] is not None:
        arm(*request["kill"])
    train(request["method"], request["out"])


def main() -> None:
    for line in sys.stdin:
        worker = os.fork()
        if worker == 0:
            try:
                work(json.loads(line))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        _, status = os.waitpid(worker, 0)
        ended = [0, os.WTERMSIG(status)] if os.WIFSIGNALED(status) else [os.WEXITSTATUS(status), 0]
        print(json.dumps(ended), flush=True)


if __name__ == "__main__":
    main()
