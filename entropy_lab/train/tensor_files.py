"""Tensors in the safetensors format, written one at a time and read by memory map.

A file is 8 bytes with the length of a JSON header (little endian), the header, and the tensors'
bytes one after the other. Written here rather than by the library because some of its versions
copy all tensors first: a model on a device then needs its size twice in host memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from entropy_lab.errors import RunError

Sum = dict[str, Any]  # {"size": bytes, "sha256": of the whole file}
_CHUNK = 2**24
# torch's name of a dtype: that of the format.
_NAMES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> Sum:
    """Write tensors to `path`, durably; at most one of them is copied to the host at a time.

    Raises RunError for a dtype that the format lacks, OSError where the disk refuses.
    """
    # Wide types first, so that each starts at a multiple of its width.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _name(tensor, name),
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = [len(text).to_bytes(8, "little"), text]
    return write_chunks(path, _bytes(start, (tensors[name] for name in order)))


def _bytes(start: list[bytes], tensors: Iterable[Tensor]) -> Iterator[bytes | memoryview]:
    yield from start
    for tensor in tensors:
        if tensor.numel():
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            yield flat.view(torch.uint8).numpy().data


def _name(tensor: Tensor, name: str) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in _NAMES:
        raise RunError(f"cannot save the tensor {name}: safetensors has no type {dtype}")
    return _NAMES[dtype]


def write_chunks(path: Path, chunks: Iterable[bytes | memoryview]) -> Sum:
    """Write `chunks` to `path`, durably; returns its size and digest."""
    digest, size = hashlib.sha256(), 0
    with open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def seal(path: Path) -> Sum:
    """Make a file that somebody else wrote durable; returns its size and digest."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return {"size": path.stat().st_size, "sha256": file_digest(path)}


def file_digest(path: Path) -> str:
    """sha256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, mapped into memory: read when used, gone when dropped."""
    from safetensors.torch import load_file

    return load_file(path)


def shards(tensors: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    """The tensors in their order, cut into parts of at most `limit` bytes (one tensor at least)."""
    parts: list[dict[str, Tensor]] = [{}]
    room = limit
    for name, tensor in tensors.items():
        size = tensor.numel() * tensor.element_size()
        if parts[-1] and size > room:
            parts.append({})
            room = limit
        parts[-1][name] = tensor
        room -= size
    return parts


def sync_folder(folder: Path) -> None:
    """Make renames and deletions inside the folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
