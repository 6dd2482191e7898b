"""What a result was computed with, and how much memory it took."""

import contextlib
import os
import platform
import re
import subprocess
import sys
from functools import cache
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch

resource: ModuleType | None = None
with contextlib.suppress(ImportError):  # not on Windows
    import resource

_LIBRARIES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "safetensors", "pyarrow")


def environment(device: str | torch.device = "cpu") -> dict[str, object]:
    """Versions, processor and device, for env.json; no names of users or hosts and no paths."""
    return {
        "molere": _version("molere"),
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libraries": {name: version for name in _LIBRARIES if (version := _version(name))},
        "cpu": _cpu_model(),
        "cpu_count": _cpu_count(),
        "threads": torch.get_num_threads(),
        "device": _device_name(torch.device(device)),
        "cuda": torch.version.cuda,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


class PeakMemory:
    """The highest memory in use, in MiB, since `reset` or the start of a `with` block: `.mib`, then or after.

    On CUDA that of torch's tensors on the device; elsewhere the resident set of the whole process (Linux: its
    high-water mark is reset; other systems: since the process started). One measurement at a time.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._stopped: float | None = None

    def reset(self) -> None:
        """Start again from what is in use now."""
        self._stopped = None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    @property
    def mib(self) -> float:
        """The peak in MiB, so far or of the block; nan where the system does not tell."""
        if self._stopped is not None:
            return self._stopped
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) / 2**20
        return _peak_resident_mib()

    def __enter__(self) -> "PeakMemory":
        self.reset()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = self.mib


def _peak_resident_mib() -> float:
    with contextlib.suppress(OSError):
        if found := re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text()):
            return int(found[1]) / 1024
    if resource is None:
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024  # bytes there, KiB elsewhere


@cache  # reading it takes longer than a checkpoint, and it does not change while a process runs
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@cache  # of the code that was loaded
def _commit() -> str | None:
    """The commit of the source tree this package runs from, "+" where it was changed; None when installed."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    head = _git(root, "rev-parse", "HEAD")
    return f"{head}+" if head and _git(root, "status", "--porcelain", "--", "src") else head


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        if found := re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text()):
            return found[1].strip()
    return platform.processor() or platform.machine()


def _cpu_count() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
