"""Checks the counts and lengths in the header of a GGUF file before it is read.

The `gguf` package believes them: a list with 2^63 entries makes it count for ever, and
a place before the tensors makes it read the header as weights.
"""

import mmap
import os
import struct
from typing import Any

from stepjax.lm import limits

# Type of a value in the metadata → its bytes.
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _LIST = 8, 9
_VALUES = 100_000  # of the metadata
_AXES = 4  # of a tensor


def check(path: str) -> None:
    """Walks through the header of a file.

    Args:
      path: of a file on a disk.

    Raises:
      ValueError: a reason without the path, when a count or a length leads out of the
        file or has no meaning.
    """
    if os.path.getsize(path) < 24:
        raise ValueError("it has less than 24 bytes")
    with open(path, "rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _Walk(data).header()


class _Walk:
    """A place in the header that moves on with everything that is read."""

    def __init__(self, data: mmap.mmap):
        self.data, self.at = data, 0

    def skip(self, count: int) -> None:
        if count > len(self.data) - self.at:
            raise ValueError(
                f"{count} bytes should follow byte {self.at}, and the file has "
                f"{len(self.data)}"
            )
        self.at += count

    def number(self, form: str) -> int:
        start = self.at
        self.skip(struct.calcsize(form))
        return struct.unpack_from(form, self.data, start)[0]

    def text(self) -> None:
        self.skip(self.number("<Q"))

    def header(self) -> None:
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.skip(4)
        version = self.number("<I")
        if version not in (2, 3):
            raise ValueError(
                f"version {version}, or the byte order of another kind of machine; "
                "gguf's gguf-convert-endian changes it"
            )
        tensors, values = self.number("<Q"), self.number("<Q")
        if tensors > limits.TENSORS or values > _VALUES:
            raise ValueError(f"{tensors} tensors and {values} values are too many")
        for _ in range(values):
            self.text()
            self.value(self.number("<I"))
        for _ in range(tensors):
            self.text()
            axes = self.number("<I")
            if axes > _AXES:
                raise ValueError(f"a tensor has {axes} axes")
            self.skip(8 * axes + 4)
            if (place := self.number("<Q")) > len(self.data):
                raise ValueError(
                    f"a tensor is at {place}, and the file has {len(self.data)} bytes"
                )

    def value(self, kind: int) -> None:
        if kind == _STRING:
            self.text()
        elif kind == _LIST:
            kind, count = self.number("<I"), self.number("<Q")
            if kind in _SIZES:
                self.skip(count * _SIZES[kind])
            elif kind == _STRING:
                for _ in range(min(count, len(self.data))):
                    self.text()
            else:
                raise ValueError(f"a list of values of type {kind}")
        elif kind in _SIZES:
            self.skip(_SIZES[kind])
        else:
            raise ValueError(f"a value of type {kind}")


def check_places(tensors: list[Any], begin: int, length: int) -> None:
    """Raises ValueError unless tensors lie behind the header and beside each other.

    Args:
      tensors: each with a name, a data_offset and n_bytes.
      begin: first byte behind the header.
      length: of the file.
    """
    at = begin
    for tensor in sorted(tensors, key=lambda tensor: int(tensor.data_offset)):
        first, count = int(tensor.data_offset), int(tensor.n_bytes)
        if first < at or count <= 0 or first + count > length:
            raise ValueError(
                f"tensor {tensor.name[:80]!r} has {count} bytes from byte {first} on; "
                f"they should lie between {at} and {length}"
            )
        at = first + count
