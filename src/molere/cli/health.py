"""`molere doctor` without a model: what is here to work with, and what is missing. Nothing missing is an exception."""

import importlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType

from molere import registry
from molere.errors import ResourceError

NEEDED = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "pyarrow", "safetensors", "jinja2", "matplotlib")
IMPORTS = {"scikit-learn": "sklearn"}
"""Where a distribution's module has another name."""
LEAST_DISK = 1.0
"""GiB that the folder of results should have free."""


@dataclass
class Health:
    """Sections of name -> what was found; what is wrong enough that work cannot begin, a sentence each."""

    sections: dict[str, dict[str, str]] = field(default_factory=dict[str, dict[str, str]])
    problems: list[str] = field(default_factory=list[str])

    @property
    def exit_code(self) -> int:
        """0, or that of a missing resource."""
        return ResourceError.exit_code if self.problems else 0

    def __str__(self) -> str:
        width = max(len(name) for found in self.sections.values() for name in found)
        lines = list[str]()
        for title, found in self.sections.items():
            lines += [title, *(f"  {name:<{width}}  {words}" for name, words in found.items())]
        end = [f"problem: {p}" for p in self.problems] or ["nothing needed is missing"]
        return "\n".join([*lines, *end])

    def to_json(self) -> str:
        """The same as one JSON object."""
        return json.dumps({**self.sections, "problems": self.problems, "exit_code": self.exit_code}, indent=2)


def examine(root: str | None, out: str, device: str) -> Health:
    """Look at libraries, devices, disk, data and back-ends; reads only, and leaves nothing behind."""
    health = Health()
    torch = _torch(health)
    health.sections["environment"] = _environment(health)
    health.sections["devices"] = _devices(torch, device, health)
    health.sections["disk"] = {out: _disk(Path(out), health)}
    health.sections["data"] = {name: _data(name, root) for name in registry.DATASETS}
    health.sections["back-ends"] = _back_ends(torch)
    return health


def _torch(health: Health) -> ModuleType | None:
    try:
        return importlib.import_module("torch")
    except Exception as error:  # a broken installation can raise anything
        reason = " ".join(str(error).split())
        health.problems.append(f"torch cannot be imported ({reason}); type: pip install torch torchvision")
        return None


def _environment(health: Health) -> dict[str, str]:
    found = {
        "molere": str(getattr(sys.modules["molere"], "__version__", "unknown")),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    for name in NEEDED:
        found[name] = _version(name) or "missing"
        if found[name] == "missing" and name != "torch":
            health.problems.append(f"{name} is not installed; type: pip install {name}")
    return found


def _version(name: str) -> str | None:
    """The version of a distribution whose module is there, too."""
    try:
        there = importlib.util.find_spec(IMPORTS.get(name, name)) is not None
        return metadata.version(name) if there else None
    except metadata.PackageNotFoundError:
        return "installed, of unknown version"
    except (ImportError, ValueError):  # what stands in its place is no package
        return None


def _devices(torch: ModuleType | None, asked: str, health: Health) -> dict[str, str]:
    found = {"cpu": _processor(torch)}
    if torch is None:
        return found
    if not torch.cuda.is_available():
        found["cuda"] = "none" if torch.version.cuda else "none: this torch is built without CUDA"
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(i)
        found[f"cuda:{i}"] = f"{torch.cuda.get_device_name(i)}, {_gib(free)} of {_gib(total)} GiB free"
    chosen = "cuda:0" if "cuda:0" in found else "cpu"
    found["auto"] = chosen
    if {"auto": chosen, "cuda": "cuda:0"}.get(asked, asked) not in found:
        health.problems.append(f"device {asked!r} is not here; use --device {' or '.join(k for k in found)}")
    return found


def _processor(torch: ModuleType | None) -> str:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    used = torch.get_num_threads() if torch is not None else 0
    threads = f", torch uses {used} thread{'s' if used > 1 else ''}" if used else ""
    return f"{cores} cores{threads}{_memory()}"


def _memory() -> str:
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text("ascii").splitlines())
        free, total = (int(lines[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))
        return f", {_gib(free)} of {_gib(total)} GiB memory free"
    except (OSError, ValueError, KeyError):  # another system
        return ""


def _disk(out: Path, health: Health) -> str:
    """Free space where results go, and whether they can be written."""
    above = next((p for p in (out, *out.absolute().parents) if p.exists()), Path("/"))
    if not above.is_dir():
        health.problems.append(f"{out} cannot be a folder: {above} is a file; choose another with --out")
        return "a file stands in its place"
    if not os.access(above, os.W_OK | os.X_OK):
        health.problems.append(f"{out} cannot be written to; choose another folder with --out")
        return "cannot be written to"
    free = shutil.disk_usage(above).free
    if free < LEAST_DISK * 2**30:
        health.problems.append(f"{out} has {_gib(free)} GiB free; free some, or choose another folder with --out")
    return f"{_gib(free)} GiB free, can be written to"


def _data(name: str, root: str | None) -> str:
    entry = registry.DATASETS[name]
    if not entry.folder:
        return "embedded"
    if root is None:
        return f"not looked for: give --root PATH, the folder that holds {entry.folder}"
    folder = Path(root).expanduser() / entry.folder
    if not folder.is_dir():
        return f"not found: there is no folder {folder}"
    missing = _missing(name, root)
    return f"found: {folder}" if not missing else f"incomplete: {folder} lacks {', '.join(missing)}"


def _missing(name: str, root: str) -> list[str]:
    """Files that the folder of a data set lacks, as far as that can be told here."""
    try:
        folder = importlib.import_module("molere.data.files").FOLDERS.get(name)
    except ImportError:  # without torch
        return []
    return [] if folder is None else folder.missing(root)


def _back_ends(torch: ModuleType | None) -> dict[str, str]:
    """The ways to take a meta-gradient, as `estimator` names them, and torch.compile."""
    if torch is None:
        return dict.fromkeys(("one-sided", "central", "exact", "ghost", "compile"), "needs torch")
    found: dict[str, str] = {name: "works with every classifier" for name in ("one-sided", "central")}
    found["exact"] = _tried(lambda: torch.func.jvp(torch.sin, (torch.ones(2),), (torch.ones(2),)))
    found["ghost"] = _tried(lambda: importlib.import_module("molere.ghost"))
    compiler = next((c for c in ("c++", "g++", "clang++", "cl") if shutil.which(c)), None)
    found["compile"] = f"compiler found ({compiler})" if compiler else "no C++ compiler: leave train.compile out on CPU"
    return found


def _tried(work: Callable[[], object]) -> str:
    try:
        with warnings.catch_warnings(action="ignore"):
            work()
    except Exception as error:  # an installation may break in any way
        return f"fails here ({type(error).__name__}: {' '.join(str(error).split())[:80]})"
    return "works"


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
