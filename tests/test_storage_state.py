"""State to files and back: nothing changed, nothing half written, damage found."""

import json
import math
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from molere.errors import StorageError
from molere.storage import files, flatten, load_checkpoint, load_latest, save_checkpoint, unflatten
from molere.storage.checkpoint import remove_all
from molere.storage.nested import to_bytes
from reliability import Row, counted

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    torch.float8_e4m3fn,
]


def same(a: Any, b: Any) -> bool:
    """Equal in type, order, dtype, shape and bits."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor):
        alike = (a.dtype, a.shape) == (b.dtype, b.shape)
        return alike and bytes(a.contiguous().untyped_storage()) == bytes(b.contiguous().untyped_storage())
    if isinstance(a, float):
        return struct.pack("<d", a) == struct.pack("<d", b)
    if isinstance(a, dict):
        pairs = zip(a.items(), b.items(), strict=True)
        return len(a) == len(b) and all(same(k, m) and same(v, w) for (k, v), (m, w) in pairs)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    n = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    raw = draw(st.binary(min_size=n, max_size=n))
    if dtype == torch.bool:
        raw = bytes(b & 1 for b in raw)
    flat = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if n else torch.empty(0, dtype=torch.uint8)
    return flat.view(dtype).reshape(shape)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ODD = ["$tensor", "$dict", "0", "a/b", "__metadata__", "."]
KEYS = st.text(max_size=4) | st.integers() | st.sampled_from(ODD)
STATES = st.recursive(
    SCALARS | tensors(),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.dictionaries(KEYS, inner, max_size=3).map(OrderedDict),
    ),
    max_leaves=12,
)


def through_files(state: object) -> Any:
    found, structure = flatten(state)
    text = json.dumps(structure, allow_nan=False)
    return unflatten(safetensors.torch.load(to_bytes(found)), json.loads(text))


@given(STATES)
def test_any_state_comes_back_bit_for_bit(state: object) -> None:
    assert same(through_files(state), state)


def test_optimiser_and_scheduler_states_come_back() -> None:
    model = nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimiser, [2, 2, 5])
    model(torch.randn(4, 3)).sum().backward()
    optimiser.step()
    scheduler.step()
    state = {
        "optimiser": optimiser.state_dict(),
        "scheduler": scheduler.state_dict(),
        "count": Counter("aab"),
    }
    assert same(through_files(state), state)
    assert type(through_files(state)["scheduler"]["milestones"]) is Counter


def test_views_ties_and_gradients_are_stored_as_plain_tensors() -> None:
    base = torch.arange(6.0)
    grid = base.view(2, 3)
    state = {"a": base, "b": base, "row": grid[1], "turned": grid.T, "p": nn.Parameter(base)}
    back = through_files(state)
    assert all(torch.equal(back[key], state[key].detach()) for key in state)
    assert type(back["p"]) is torch.Tensor
    assert torch.equal(through_files(torch.tensor([1 + 2j]).conj()), torch.tensor([1 - 2j]))


@pytest.mark.parametrize(
    "thing", [object(), {1, 2}, b"bytes", torch.zeros(2).to_sparse(), torch.empty(2, device="meta")]
)
def test_what_cannot_be_saved_is_named_by_its_path(thing: object) -> None:
    with pytest.raises(StorageError, match="cannot save a/1"):
        flatten({"a": [0, thing]})


def run_python(code: str, *arguments: object) -> str:
    """What a fresh interpreter prints when it runs the code to a good end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def state_of(step: int) -> dict[str, Any]:
    return {"step": step, "w": torch.full((50,), float(step)), "optim": {0: {"m": torch.ones(3)}}}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with checkpoints 5 and 10."""
    for step in (5, 10):
        save_checkpoint(tmp_path / "checkpoints", step, state_of(step))
    return tmp_path / "checkpoints"


def test_the_last_two_checkpoints_are_kept_and_the_latest_is_loaded(saved: Path) -> None:
    save_checkpoint(saved, 1_000_000, state_of(1_000_000))
    assert names(saved) == ["LATEST", "step-000010", "step-1000000"]
    assert names(saved / "step-000010") == ["manifest.json", "state.json", "state.safetensors"]
    assert (saved / "LATEST").read_text() == "step-1000000\n"
    found = load_latest(saved)
    assert found is not None
    assert same(found, (1_000_000, state_of(1_000_000)))


def test_nothing_saved_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "missing") is None


def test_equal_states_give_equal_bytes(tmp_path: Path) -> None:
    a, b = (save_checkpoint(tmp_path / name, 3, state_of(3)) for name in "ab")
    assert all((a / name).read_bytes() == (b / name).read_bytes() for name in names(a))


def test_saving_a_step_again_replaces_it_and_drops_the_future_that_was_given_up(saved: Path) -> None:
    save_checkpoint(saved, 5, {"new": True})
    assert load_latest(saved) == (5, {"new": True})
    assert names(saved) == ["LATEST", "step-000005"]


def test_remove_all_leaves_no_checkpoint(saved: Path) -> None:
    remove_all(saved)
    assert names(saved) == []


@counted(40, 200)
def test_every_flipped_bit_is_found_and_the_previous_checkpoint_used(saved: Path, count: int, row: Row) -> None:
    newest, choose, wrong = saved / "step-000010", random.Random(0), list[tuple[object, object]]()
    for _ in range(count):
        path = newest / choose.choice(names(newest))
        good = path.read_bytes()
        bad, at, bit = bytearray(good), choose.randrange(len(good)), choose.randrange(8)
        bad[at] ^= 1 << bit
        path.write_bytes(bad)
        told: list[str] = []
        found = load_latest(saved, on_damage=told.append)
        if found is None or found[0] != 5 or len(told) != 1 or path.name not in told[0]:
            wrong.append(((path.name, at, bit), told))
        path.write_bytes(good)
    assert same(load_latest(saved), (10, state_of(10)))
    row.judge("S4", wrong, count)


@counted(15, 100)
def test_every_truncated_or_missing_file_is_found(saved: Path, count: int, row: Row) -> None:
    newest, choose, wrong = saved / "step-000010", random.Random(0), list[tuple[object, object]]()
    for case in range(count):
        path = newest / names(newest)[case % 3]
        good = path.read_bytes()
        length = [None, 0, 1, len(good) - 1, choose.randrange(len(good))][min(case // 3, 4)]
        if length is None:
            path.unlink()
        else:
            path.write_bytes(good[:length])
        told: list[str] = []
        found = load_latest(saved, on_damage=told.append)
        if found is None or found[0] != 5 or len(told) != 1 or path.name not in told[0]:
            wrong.append(((path.name, length), told))
        path.write_bytes(good)
    row.judge("S3", wrong, count)


@pytest.mark.parametrize("pointer", [None, "", "step-999999\n", "../elsewhere", "\x00"])
def test_a_damaged_pointer_falls_back_to_the_newest(saved: Path, pointer: str | None) -> None:
    (saved / "LATEST").unlink()
    if pointer is not None:
        (saved / "LATEST").write_text(pointer)
    found = load_latest(saved)
    assert found is not None
    assert found[0] == 10


def test_all_damaged_is_an_error_that_names_the_files(saved: Path) -> None:
    for step in ("step-000005", "step-000010"):
        (saved / step / "state.json").write_text("{}")
    with pytest.raises(StorageError, match=r"step-000010/state\.json is damaged.*step-000005/state\.json"):
        load_latest(saved)


def test_a_checkpoint_under_another_name_is_refused(saved: Path) -> None:
    (saved / "step-000010").rename(saved / "step-000011")
    with pytest.raises(StorageError, match="manifest"):
        load_checkpoint(saved / "step-000011")


def test_a_newer_format_says_so(saved: Path) -> None:
    manifest = saved / "step-000010" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(StorageError, match="update molere"):
        load_checkpoint(manifest.parent)


def test_a_full_disk_is_found_before_writing(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "free_bytes", lambda _: 17)
    with pytest.raises(StorageError, match=r"\d+ bytes needed, 17 free"):
        save_checkpoint(saved, 20, state_of(20))
    assert names(saved) == ["LATEST", "step-000005", "step-000010"]


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files can grow to so many bytes, as on a disk that is nearly full."""
    import resource  # which Windows has not

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs file size limits")
@counted(4, 16)
def test_a_disk_that_fills_while_saving_leaves_no_part(saved: Path, count: int, row: Row) -> None:
    state, choose, wrong = {"w": torch.zeros(5000)}, random.Random(0), list[tuple[object, object]]()
    for case in range(count):
        size = (0, 4096)[case] if case < 2 else choose.randrange(1, 20_000)
        try:
            with room_for(size):
                save_checkpoint(saved, 20, state)
            wrong.append((size, "saved"))
        except StorageError as error:
            said = str(error)
            if not re.search(r"^[^\n]*\d+ bytes needed, \d+ free[^\n]*$", said):
                wrong.append((size, said))
        if names(saved) != ["LATEST", "step-000005", "step-000010"] or not same(load_latest(saved), (10, state_of(10))):
            wrong.append((size, names(saved)))
    row.judge("S1", wrong, count)


# One process imports torch and forks a writer for each point, so that 20 kills take a second.
KILLED = """
import os, random, signal, sys, time, torch
from pathlib import Path
from molere.storage import load_latest, save_checkpoint
folder, choose, last, points = Path(sys.argv[1]), random.Random(0), 0, 0
while points < 20 or last < 6:
    points += 1
    begun, started = os.pipe()
    pid = os.fork()
    if pid == 0:
        step = last
        os.write(started, b"1")
        while True:
            step += 1
            state = {"w": torch.full((20_000,), float(step)), "step": step}
            save_checkpoint(folder, step, state, fsync=False)
    os.read(begun, 1)
    time.sleep(choose.uniform(0, 0.03))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    damage = []
    found = load_latest(folder, on_damage=damage.append)
    assert not damage, damage
    if found is not None:
        step, state = found
        assert step == state["step"] >= last and (state["w"] == step).all(), (step, last)
        last = step
save_checkpoint(folder, last + 1, {})
assert sorted(p.name for p in folder.iterdir())[0] == "LATEST", list(folder.iterdir())
print(last)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_while_saving_leaves_the_newest_checkpoint_whole(tmp_path: Path) -> None:
    assert int(run_python(KILLED, tmp_path / "checkpoints")) > 5


def test_a_small_checkpoint_costs_milliseconds(tmp_path: Path) -> None:  # with room for a busy machine
    state = {f"layer{i}": torch.zeros(1000) for i in range(40)}
    save_checkpoint(tmp_path, 0, state, fsync=False)
    times: list[float] = []
    for step in range(1, 11):
        start = time.perf_counter()
        save_checkpoint(tmp_path, step, state, fsync=False)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1


def test_checkpoints_can_be_copied_elsewhere(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "a folder, moved ü")
    assert same(load_latest(tmp_path / "a folder, moved ü"), (10, state_of(10)))
