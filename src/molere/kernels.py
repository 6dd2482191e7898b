"""Kernels: torch's own switches for numerics, set for the length of a block."""

import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

_PLACES = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")


def _switches() -> list[Any]:
    """The backends with an `fp32_precision` of their own (torch 2.9 and newer)."""
    found: list[Any] = []
    for place in _PLACES:
        owner: Any = torch.backends
        for part in place.split("."):
            owner = getattr(owner, part, None)
        if hasattr(owner, "fp32_precision"):
            found.append(owner)
    return found


def is_reduced(device: torch.device) -> bool:
    """Whether float32 products on a device may be rounded to TF32 or bfloat16 inputs."""
    if switches := _switches():
        ours = switches[:3] if device.type == "cuda" else switches[3:]
        return any(s.fp32_precision not in ("ieee", "none") for s in ours)
    matmul = torch.get_float32_matmul_precision() != "highest"
    return matmul or (device.type == "cuda" and torch.backends.cudnn.allow_tf32)


@contextmanager
def full_float32() -> Generator[None]:
    """Float32 products in full, as differences need; the user's setting is back after the block."""
    if switches := _switches():
        before = [s.fp32_precision for s in switches]
        try:
            for s in switches:
                s.fp32_precision = "ieee"
            yield
        finally:
            for s, value in zip(switches, before, strict=True):
                s.fp32_precision = value
        return
    matmul, cudnn = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = cudnn


def uncompiled() -> AbstractContextManager[object]:
    """Compiled modules run as they were written: for dual numbers and for calls that have to be seen."""
    if "torch._dynamo" not in sys.modules:  # nothing has been compiled; asking would take seconds to load it
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
