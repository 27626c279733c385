"""Reads rows of tensors in safetensors files: local, gs://, and all that epath opens.

A file is the length of a header (8 bytes), the header (JSON: type, shape and place of
every tensor), and the tensors' bytes, row-major (https://github.com/huggingface/
safetensors#format). Consecutive rows of a tensor are one range of bytes, so a host
reads only the rows that it needs.
"""

import json
import math
from typing import NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

KINDS = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}


class Stored(NamedTuple):
    """The place of a tensor: its file, type, shape, and first byte in the file."""

    file: epath.Path
    kind: str
    shape: tuple[int, ...]
    start: int

    def rows(self, first: int, last: int) -> np.ndarray:
        """Returns the rows first..last (not included), [last - first, ...].

        Raises:
          ValueError: when the file has become shorter.
        """
        row = math.prod(self.shape[1:]) * _size(self.kind)
        with self.file.open("rb") as opened:
            opened.seek(self.start + first * row)
            data = opened.read((last - first) * row)
        if len(data) != (last - first) * row:
            raise ValueError(
                f"{self.file}: damaged, it ends inside a tensor; expected a whole "
                "safetensors file. Download it again."
            )
        array = np.frombuffer(data, KINDS[self.kind])
        return array.reshape(last - first, *self.shape[1:])


def stored_tensors(file: epath.Path) -> dict[str, Stored]:
    """Returns name → place of every tensor of a file.

    Raises:
      ValueError: for a file that is missing or damaged.
    """
    try:
        length = file.stat().length
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if not 2 <= size <= length - 8:
                raise ValueError(f"a header of {size} bytes in a file of {length}")
            header = json.loads(opened.read(size))
        header.pop("__metadata__", None)
        tensors, end = {}, 0
        for name, item in header.items():
            first, last = item["data_offsets"]
            shape, kind = tuple(item["shape"]), item["dtype"]
            if kind in KINDS and last - first != math.prod(shape) * _size(kind):
                raise ValueError(f"{name} has {last - first} bytes for {shape} {kind}")
            tensors[name] = Stored(file, kind, shape, 8 + size + first)
            end = max(end, last)
        if 8 + size + end != length:
            raise ValueError(f"{length} bytes instead of {8 + size + end}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{file}: missing or damaged ({error}); expected a whole safetensors file. "
            "Download it again."
        ) from error
    return tensors


def _size(kind: str) -> int:
    return KINDS[kind].itemsize
