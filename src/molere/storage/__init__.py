"""Files of a run: state that survives a crash, tables, caches, what the machine was. No pickle anywhere.

The names are loaded on first use, so that the light files (`files`, `lock`, `logs`) need no torch.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from molere.storage.cache import ContentCache
    from molere.storage.checkpoint import load_checkpoint, load_latest, save_checkpoint
    from molere.storage.files import read_json, write_bytes, write_json, write_yaml
    from molere.storage.lock import FileLock
    from molere.storage.logs import MetricsFile, append_event
    from molere.storage.machine import PeakMemory, environment
    from molere.storage.nested import flatten, unflatten
    from molere.storage.runfolder import RunFolder
    from molere.storage.samples import read_samples, write_samples, write_table

__all__ = [
    "ContentCache",
    "FileLock",
    "MetricsFile",
    "PeakMemory",
    "RunFolder",
    "append_event",
    "environment",
    "flatten",
    "load_checkpoint",
    "load_latest",
    "read_json",
    "read_samples",
    "save_checkpoint",
    "unflatten",
    "write_bytes",
    "write_json",
    "write_samples",
    "write_table",
    "write_yaml",
]

_MODULES = {
    "cache": ("ContentCache",),
    "checkpoint": ("load_checkpoint", "load_latest", "save_checkpoint"),
    "files": ("read_json", "write_bytes", "write_json", "write_yaml"),
    "lock": ("FileLock",),
    "logs": ("MetricsFile", "append_event"),
    "machine": ("PeakMemory", "environment"),
    "nested": ("flatten", "unflatten"),
    "runfolder": ("RunFolder",),
    "samples": ("read_samples", "write_samples", "write_table"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    """Load a name from the file that defines it, once."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
