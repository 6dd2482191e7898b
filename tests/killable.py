"""A server for test_resume.py: forks workers that train, and that SIGKILL themselves at a given point.

It loads torch once and never computes with it, so a fork is a fresh process without the seconds of an import. Each line
on its input is {"methods": [...], "out": ..., "kill": [point, update, runs before] or null, "signals": ...}: one method
is trained, several are compared. Signals are {"at": update, "wait": seconds, "numbers": [...], "stuck": whether that
update never ends}, sent from here. Each line on its output is how the worker ended, as [exit code, signal, seconds
since the first signal]. A worker that ends by itself writes to OUT.updates how many it made, those of scouts included.
"""

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401  # what workers would load one by one
import torch
import torch._dynamo
from torch import Tensor, nn

from molere import run as running
from molere import signals
from molere.compare import compare
from molere.data.pool import Data, TensorPool
from molere.method import Run
from molere.recipe import Recipe
from molere.run import fit
from molere.storage import files
from molere.training import Training

SIZE, EPOCHS, BATCH, SAVE_EVERY = 160, 5, 16, 3
SECONDS = 600  # busy machines are slow


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


def train(methods: list[str], out: str) -> None:
    data = Data("quarters", images(0), images(1), {"test": images(2)})
    recipe = Recipe(epochs=EPOCHS, batch_size=BATCH, lr=0.05, save_every=SAVE_EVERY, device="cpu")
    if len(methods) == 1:
        fit(methods[0], data=data, model=Net, recipe=recipe, out=out)
    else:
        compare(methods, data=data, model=Net, recipe=recipe, seeds=2, out=out)


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(point: str, update: int, skipped: int = 0) -> None:
    """Have this process killed when a run first passes a point at this update or later, the first runs left out.

    Scouts do not count, unless the point is in one of them.
    """
    owner, name = {"before a step": (Run, "train_batch"), "after an update": (Run, "update")}.get(
        point, (Run, "update") if point == "in a first stage" else (Training, "save")
    )
    call, seen = getattr(owner, name), dict[int, Run]()

    def armed(self: Any, *arguments: Any, **keywords: Any) -> Any:
        run = self if isinstance(self, Run) else self.run
        if (len(run.pool) < SIZE) != (point == "in a first stage"):
            return call(self, *arguments, **keywords)
        seen[id(run)] = run
        if len(seen) <= skipped or run.updates < update:
            return call(self, *arguments, **keywords)
        if point in ("after an update", "in a first stage"):
            call(self, *arguments, **keywords)
        elif point == "within a save":
            files.write_new = torn_at_third(files.write_new)
        elif point == "before the pointer":
            files.write_bytes = die
        elif point == "among the last files":
            running.write_bytes = die
        if point in ("before a step", "after an update", "between metrics and save", "in a first stage"):
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


def counting() -> list[int]:
    """The updates that are begun from now on."""
    begun, batch = [0], Run.train_batch

    def counted(run: Run) -> Any:
        begun[0] += 1
        return batch(run)

    Run.train_batch = counted
    return begun


def tell(pipe: int, at: int, stuck: bool) -> None:
    """Write to the pipe when a run begins an update; it and those after it take their time for the signal to come."""
    batch, told = Run.train_batch, list[int]()

    def telling(run: Run) -> Any:
        if len(run.pool) == SIZE and run.updates >= at:
            if not told:
                told.append(os.write(pipe, b"1"))
            time.sleep(60 if stuck else 0.05)
        return batch(run)

    Run.train_batch = telling


def work(request: dict[str, Any], pipe: int) -> int:
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # the machine lives on; what a file has been given stays
    if request["kill"] is not None:
        arm(*request["kill"])
    begun = counting()
    if (sent := request.get("signals")) is None:
        signal.alarm(SECONDS)
        train(request["methods"], request["out"])
    else:
        tell(pipe, sent["at"], sent["stuck"])
        try:
            with signals.heeded():
                train(request["methods"], request["out"])
        except signals.Stopped as stopped:
            return stopped.exit_code
    Path(f"{request['out']}.updates").write_text(str(begun[0]))
    return 0


def send(worker: int, sent: dict[str, Any], pipe: int) -> float:
    """Send the signals once the worker is where it was asked to tell; when the first went out."""
    os.read(pipe, 1)
    time.sleep(sent["wait"])
    began = time.monotonic()
    for number in sent["numbers"]:
        os.kill(worker, number)
        time.sleep(0.1)
    return began


def main() -> None:
    for line in sys.stdin:
        request, (told, telling) = json.loads(line), os.pipe()
        worker = os.fork()
        if worker == 0:
            try:
                os._exit(work(request, telling))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        os.close(telling)
        began = send(worker, sent, told) if (sent := request.get("signals")) else time.monotonic()
        os.close(told)
        _, status = os.waitpid(worker, 0)
        ended = [0, os.WTERMSIG(status)] if os.WIFSIGNALED(status) else [os.WEXITSTATUS(status), 0]
        print(json.dumps([*ended, time.monotonic() - began]), flush=True)


if __name__ == "__main__":
    main()
