"""Nested state to tensors and JSON, and back, with nothing lost.

`flatten` takes the tensors out of a structure of dicts, lists, tuples and scalars; what is left is JSON.
Values that JSON would change are tagged by an object with one `$` key:

    {"$tensor": name}                                   a tensor, stored under that name
    {"$tensor": name, "dtype": ..., "shape": [...]}     one whose dtype safetensors lacks, stored as its bytes
    {"$float": "000000000000f87f"}                      nan or an infinity, by its bits (little endian)
    {"$tuple": [...]}, {"$dict": [[key, value], ...]}   tuples; dicts with other keys than plain text
    {"$ordered": ...}, {"$counter": ...}                OrderedDict and Counter (torch's schedulers keep one)
"""

import json
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from molere.errors import StorageError

# Any: the structure is a tree whose type Python cannot yet state without quoting itself.
Json = Any

_DTYPES = {  # stored as they are, under these names
    **{torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.int32: "I32"},
    **{torch.int64: "I64", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32"},
    torch.float64: "F64",
}
_MAPPINGS: dict[str, type] = {"$ordered": OrderedDict, "$counter": Counter, "$dict": dict}


def flatten(state: object) -> tuple[dict[str, Tensor], Json]:
    """Split state into tensors by name (on the CPU, contiguous, none sharing memory) and a JSON structure.

    Accepts dict, list, tuple, int, float, str, bool, None and dense tensors, nested at will; subclasses of
    these come back as the plain type (OrderedDict and Counter as themselves). Names are the path, such as
    `model/head.weight`. Tensors may share memory with the state: write them before it changes. Raises
    StorageError naming the path of anything else.
    """
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    structure = _encode(state, "", tensors, seen)
    return tensors, structure


def unflatten(tensors: Mapping[str, Tensor], structure: Json) -> Any:
    """The state `flatten` was given: same types, keys, order, dtypes, shapes, bits; tensors on the CPU."""
    if isinstance(structure, list):
        return [unflatten(tensors, item) for item in cast("list[Json]", structure)]
    if not isinstance(structure, dict):
        return structure
    node = cast("dict[str, Json]", structure)
    tag = next(iter(node), "")
    if tag == "$tensor":
        return _restored(tensors[node[tag]], node)
    if tag == "$float":
        return struct.unpack("<d", bytes.fromhex(node[tag]))[0]
    if tag == "$tuple":
        return tuple(unflatten(tensors, item) for item in node[tag])
    if tag in _MAPPINGS:
        pairs = {unflatten(tensors, key): unflatten(tensors, value) for key, value in node[tag]}
        return pairs if tag == "$dict" else _MAPPINGS[tag](pairs)
    return {key: unflatten(tensors, value) for key, value in node.items()}


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of tensors from `flatten`; for small ones faster than the library's writer.

    The format: length of the header (8 bytes), header (JSON: dtype, shape and place of each), data.
    """
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))  # keeps data aligned
    header: dict[str, Json] = {}
    end = 0
    for name, tensor in ordered:
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = [tensor.reshape(-1).view(torch.uint8).numpy().data for _, tensor in ordered]
    return b"".join([struct.pack("<Q", len(text)), text, *data])


def _encode(value: object, path: str, tensors: dict[str, Tensor], seen: set[int]) -> Json:
    if isinstance(value, Tensor):
        return _encode_tensor(value, path, tensors, seen)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": struct.pack("<d", value).hex()}
    if isinstance(value, dict):
        return _encode_dict(cast("dict[object, object]", value), path, tensors, seen)
    if isinstance(value, list | tuple):
        items = cast("list[object]", value)
        encoded = [_encode(item, f"{path}/{i}", tensors, seen) for i, item in enumerate(items)]
        return {"$tuple": encoded} if isinstance(value, tuple) else encoded
    raise StorageError(
        f"cannot save {path.lstrip('/') or 'the state'}: {type(value).__name__} is not a tensor, number, "
        "text, dict, list or tuple; give it as one of these"
    )


def _encode_dict(value: dict[object, object], path: str, tensors: dict[str, Tensor], seen: set[int]) -> Json:
    tag = "$ordered" if isinstance(value, OrderedDict) else "$counter" if isinstance(value, Counter) else "$dict"
    items = {key: _encode(item, f"{path}/{key}", tensors, seen) for key, item in value.items()}
    if tag == "$dict" and all(type(key) is str and not key.startswith("$") for key in items):
        return items
    return {tag: [[_encode(key, f"{path}/{key}", tensors, seen), item] for key, item in items.items()]}


def _encode_tensor(value: Tensor, path: str, tensors: dict[str, Tensor], seen: set[int]) -> Json:
    name = _free_name(path, tensors)
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        raise StorageError(f"cannot save {name}: it is not a dense tensor with data; give it as one")
    data = _own_memory(value, seen)
    node: dict[str, Json] = {"$tensor": name}
    if value.dtype not in _DTYPES:
        node |= {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape)}
        data = data.reshape(-1).view(torch.uint8)
    tensors[name] = data
    return node


def _own_memory(value: Tensor, seen: set[int]) -> Tensor:
    """The tensor on the CPU, contiguous, copied where its memory holds more or is taken already."""
    data = value.detach().resolve_conj().resolve_neg().cpu().contiguous()
    storage = data.untyped_storage()
    if storage.nbytes() != data.nbytes or storage.data_ptr() in seen:
        data = data.clone()
    seen.add(data.untyped_storage().data_ptr())
    return data


def _free_name(path: str, tensors: Mapping[str, Tensor]) -> str:
    """The path as a name that is valid text and not yet taken (`1` and "1" are two keys with one path)."""
    base = name = path.removeprefix("/").encode("utf-8", "backslashreplace").decode() or "."
    again = 1
    while name in tensors or name == "__metadata__":
        again += 1
        name = f"{base}~{again}"
    return name


def _restored(data: Tensor, node: Mapping[str, Json]) -> Tensor:
    if "dtype" not in node:
        return data
    return data.view(getattr(torch, node["dtype"])).reshape(node["shape"])
