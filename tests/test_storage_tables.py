"""Per-sample tables, the cache, and what is known about the machine."""

import getpass
import hashlib
import json
import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from molere.errors import StorageError
from molere.storage import ContentCache, PeakMemory, environment, read_samples, write_samples
from molere.storage.lock import FileLock

COLUMNS = {
    "sample_id": torch.tensor([2, 0, 1]),
    "label": np.array([5, 6, 7]),
    "margin": torch.tensor([0.5, float("nan"), -1.0]),
    "in_validation": torch.tensor([True, False, True]),
    "group": ["rotated", None, "upright"],
}


def test_samples_are_sorted_by_id_and_keep_their_types(tmp_path: Path) -> None:
    write_samples(tmp_path / "samples.parquet", COLUMNS)
    back = read_samples(tmp_path / "samples.parquet")
    assert list(back) == list(COLUMNS)
    assert back["sample_id"].tolist() == [0, 1, 2]
    assert back["label"].tolist() == [6, 7, 5]
    assert back["margin"].dtype == np.float32
    np.testing.assert_array_equal(back["margin"], [np.nan, -1, 0.5])
    assert back["in_validation"].tolist() == [False, True, True]
    assert back["group"].tolist() == [None, "upright", "rotated"]
    column = pq.ParquetFile(tmp_path / "samples.parquet").metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"


def test_samples_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    n = 1000
    order = torch.randperm(n)
    columns = {"sample_id": torch.arange(n), "loss": torch.randn(n)}
    write_samples(tmp_path / "a", columns)
    write_samples(tmp_path / "b", {name: column[order] for name, column in columns.items()})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("columns", [{"label": [1]}, {"sample_id": [0, 1], "label": [1]}, {"sample_id": [3, 3]}, {}])
def test_samples_need_an_id_once_and_equal_lengths(tmp_path: Path, columns: dict[str, list[int]]) -> None:
    with pytest.raises(ValueError, match="samples need"):
        write_samples(tmp_path / "samples.parquet", columns)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "text"])
def test_a_damaged_samples_file_is_named(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "samples.parquet"
    write_samples(path, {"sample_id": torch.arange(1000), "loss": torch.randn(1000)})
    good = path.read_bytes()
    bad = {"cut": good[:-20], "text": b"hello", "flipped": good[:600] + bytes([good[600] ^ 4]) + good[601:]}
    path.unlink() if damage == "missing" else path.write_bytes(bad[damage])
    with pytest.raises(StorageError, match=r"samples\.parquet cannot be read"):
        read_samples(path)


# The cache


def entry(value: float, size: int = 4) -> dict[str, torch.Tensor]:
    return {"margin": torch.full((size,), float(value))}


def test_what_was_put_is_got_from_memory_and_by_another_process_from_disk(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path / "cache")
    cache.put("a/b:ü", entry(1))
    for one in (cache, ContentCache(tmp_path / "cache")):
        found = one.get("a/b:ü")
        assert found is not None
        assert torch.equal(found["margin"], torch.ones(4))
        assert one.get("other") is None
    assert ContentCache().get("a/b:ü") is None


def test_changing_a_tensor_outside_does_not_change_the_cache() -> None:
    cache, mine = ContentCache(), entry(1)
    cache.put("k", mine)
    mine["margin"].zero_()
    first = cache.get("k")
    assert first is not None
    first["margin"].zero_()
    second = cache.get("k")
    assert second is not None
    assert torch.equal(second["margin"], torch.ones(4))


def test_a_damaged_entry_counts_as_missing_and_is_computed_again(tmp_path: Path) -> None:
    ContentCache(tmp_path).put("k", entry(1))
    (path,) = tmp_path.iterdir()
    for bad in (b"", path.read_bytes()[:-1], path.read_bytes()[:-1] + b"\x01"):
        path.write_bytes(bad)
        cache = ContentCache(tmp_path)
        assert cache.get("k") is None
        assert cache.get_or_put("k", lambda: entry(1))["margin"].tolist() == [1] * 4
        assert len(list(tmp_path.iterdir())) == 1


def test_the_memory_is_bounded_and_keeps_what_was_used_last() -> None:
    cache = ContentCache(memory_mib=3 * 4000 / 2**20)
    for k in range(3):
        cache.put(str(k), entry(k, 1000))
    cache.get("0")
    cache.put("3", entry(3, 1000))
    assert [cache.get(str(k)) is None for k in range(4)] == [False, True, False, False]
    cache.put("large", entry(9, 100_000))
    assert cache.get("large") is not None
    assert cache.get("3") is None


def test_a_cache_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the cache folder"):
        ContentCache(tmp_path / "file" / "cache").put("k", entry(1))


@pytest.mark.parametrize("on_disk", [True, False])
def test_threads_compute_a_key_once(tmp_path: Path, on_disk: bool) -> None:
    cache, calls = ContentCache(tmp_path if on_disk else None), []

    def compute() -> dict[str, torch.Tensor]:
        calls.append(1)
        time.sleep(0.05)
        return entry(len(calls))

    threads = [threading.Thread(target=cache.get_or_put, args=("k", compute)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1


# One process imports torch and forks the others, which then start at once.
ONCE = """
import os, sys, time, torch
from pathlib import Path
from molere.storage.cache import ContentCache
folder = Path(sys.argv[1])
def process(die):
    def compute():
        with open(folder / "calls", "a") as f:
            f.write("x")
        if die:
            os.kill(os.getpid(), 9)
        time.sleep(0.2)
        return {"a": torch.ones(2)}
    if (pid := os.fork()) == 0:
        found = ContentCache(folder / "cache").get_or_put("k", compute)
        os._exit(int(found["a"].sum()))
    return pid
def end(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
print(end(process(True)), *[end(pid) for pid in [process(False) for _ in range(3)]])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_processes_compute_a_key_once_and_one_that_dies_gives_way(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ONCE, str(tmp_path)]
    paths = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    output = subprocess.run(command, env=paths, capture_output=True, text=True, timeout=120, check=True).stdout
    assert output == "-9 2 2 2\n"
    assert (tmp_path / "calls").read_text() == "xx"
    (stored,) = (tmp_path / "cache").iterdir()
    assert stored.stem.endswith(hashlib.sha256(stored.read_bytes()).hexdigest())


def test_waiting_for_a_lock_ends_when_it_is_released(tmp_path: Path) -> None:
    first, order = FileLock(tmp_path / "lock"), []
    assert first.try_acquire() is None

    def wait() -> None:
        with FileLock(tmp_path / "lock").waiting(poll=0.001):
            order.append("second")

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.03)
    order.append("first")
    first.release()
    thread.join()
    assert order == ["first", "second"]
    assert not (tmp_path / "lock").exists()


# The machine


def test_the_environment_is_json_without_names_and_paths() -> None:
    text = json.dumps(environment())
    assert environment()["libraries"]["torch"].startswith(torch.__version__.split("+")[0])  # pyright: ignore
    for private in (str(Path.home()), os.getcwd(), sys.prefix):
        assert private not in text
    for name in (getpass.getuser(), socket.gethostname()):
        assert f'"{name}"' not in text
    assert {
        "python",
        "platform",
        "cpu",
        "cpu_count",
        "threads",
        "device",
        "molere",
        "commit",
    } <= environment().keys()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can reset the mark")
def test_peak_memory_sees_what_was_freed_within_and_forgets_what_was_before() -> None:
    def touch(mib: int) -> None:
        with mmap.mmap(-1, mib * 2**20) as fresh:  # pages of its own, whatever lies free in the process
            for page in range(0, len(fresh), mmap.PAGESIZE):
                fresh[page] = 1

    with PeakMemory() as nothing:
        pass
    with PeakMemory() as peak:
        touch(64)
        inside = peak.mib
    touch(256)
    assert peak.mib == pytest.approx(inside, abs=1)
    assert 60 < peak.mib - nothing.mib < 80
    with PeakMemory() as after:
        pass
    assert after.mib < peak.mib - 50


@pytest.mark.gpu
def test_peak_memory_on_cuda_counts_tensors() -> None:
    with PeakMemory("cuda") as peak:
        torch.zeros(64 * 2**20, dtype=torch.uint8, device="cuda")
    assert 64 <= peak.mib < 512
