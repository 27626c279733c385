"""Reads rows of tensors in safetensors files: local, gs://, and all that epath opens.

A file is the length of a header (8 bytes), the header (JSON: type, shape and place of
every tensor), and the tensors' bytes, row-major (https://github.com/huggingface/
safetensors#format). Consecutive rows of a tensor are one range of bytes, so a host
reads only the rows that it needs.
"""

import math
import reprlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath

from stepjax.lm import limits, ordinary
from stepjax.lm.json_files import parse_json

KINDS = {
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
}
_AXES = 8  # most axes of a tensor


class Stored(NamedTuple):
    """The place of a tensor: its file, type, shape, first byte, and count of bytes."""

    file: epath.Path
    kind: str
    shape: tuple[int, ...]
    start: int
    bytes: int

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

    The header is not believed: it is short, every tensor has the bytes that its shape
    needs, and together the tensors fill the rest of the file without gap or overlap.

    Raises:
      ValueError: for a file that is missing or damaged, a pipe or a device.
    """
    ordinary.check(file)
    try:
        length = file.stat().length
        with file.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if not 2 <= size <= length - 8:
                raise ValueError(f"a header of {size} bytes in a file of {length}")
            if size > limits.HEADER_BYTES:
                raise ValueError(
                    f"a header of {size:,} bytes, with at most {limits.HEADER_BYTES:,} "
                    "expected"
                )
            header = parse_json(opened.read(size))
        tensors = dict(_places(file, header, 8 + size))
        _check_filled(tensors, 8 + size, length)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file}: missing or damaged ({error}); expected a whole safetensors file. "
            "Download it again."
        ) from error
    return tensors


def _places(file: epath.Path, header: Any, begin: int) -> Iterator[tuple[str, Stored]]:
    """Yields name and place of the tensors of a header; ValueError for another one.

    Args:
      file: for the places.
      header: what its JSON holds.
      begin: first byte behind the header.
    """
    if not isinstance(header, dict):
        raise ValueError("a header that is no JSON object")
    if len(header) > limits.TENSORS:
        raise ValueError(f"{len(header):,} tensors, of {limits.TENSORS:,} at most")
    for name, item in header.items():
        if name == "__metadata__":
            continue
        shown = reprlib.repr(name)
        if not isinstance(item, dict):
            raise ValueError(f"{shown} is {reprlib.repr(item)}")
        shape, kind = item.get("shape"), item.get("dtype")
        offsets = item.get("data_offsets")
        if not _are_counts(shape) or not isinstance(kind, str):
            raise ValueError(f"{shown} has the shape {reprlib.repr(shape)}")
        if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            raise ValueError(f"{shown} is at {reprlib.repr(offsets)}")
        first, last = offsets
        if kind in KINDS and last - first != math.prod(shape) * _size(kind):
            raise ValueError(
                f"{shown} has {last - first} bytes for {reprlib.repr(shape)} {kind}"
            )
        yield name, Stored(file, kind, tuple(shape), begin + first, last - first)


def _are_counts(value: Any) -> bool:
    """Whether a value is a short list of whole numbers from 0."""
    return (
        isinstance(value, list)
        and len(value) <= _AXES
        and all(type(number) is int and number >= 0 for number in value)
    )


def _check_filled(tensors: dict[str, Stored], begin: int, length: int) -> None:
    """Raises ValueError unless tensors fill a file from a byte to its end."""
    at = begin
    by_place = sorted(tensors.items(), key=lambda item: (item[1].start, item[1].bytes))
    for name, stored in by_place:
        if stored.start != at:
            raise ValueError(
                f"{reprlib.repr(name)} begins at byte {stored.start} and not at {at}"
            )
        at += stored.bytes
    if at != length:
        raise ValueError(f"{length} bytes instead of {at}")


def _size(kind: str) -> int:
    return KINDS[kind].itemsize
