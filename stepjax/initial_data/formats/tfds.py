"""Records from tensorflow-datasets (TFDS), read without TensorFlow.

`read` and `stream` take records from any TFDS dataset that is on the disk. Its address
is such as

    tfds:step_ift/train
    tfds:my_set/my_config:1.0.0/test?problem=question&data_dir=/data/tfds

An address is the dataset's name, with a config and a version where there are several,
and a split or a slice of one ("train[:10%]"). Each FIELD=NAME says which field of the
dataset is a field of the record; a field that is not named has the same name in both.
data_dir is the folder of the datasets; without it that is the environment variable
TFDS_DATA_DIR, or ~/tensorflow_datasets.

Only files of the format array_record are read: TFDS reads its own default, tfrecord,
with TensorFlow only, and TFDS 4.9.10 loses rows when it writes parquet.
`tfds_builder.write` makes such datasets of records.
"""

import dataclasses
import json
import reprlib
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np

from stepjax import records
from stepjax.initial_data.formats import fields, files
from stepjax.initial_data.formats.tfds_files import (
    PREFIX,
    Address,
    library,
    open_split,
    parse,
)

TEXTS = (tuple[str, ...], list[str])  # types of a field that holds several texts
NUMBERS = (tuple[float | None, ...], list[float | None])
_AS_THEY_ARE = (int, float, list[int], *TEXTS, *NUMBERS)


def is_address(text: str) -> bool:
    """Whether a text names rows of TFDS, and not a file."""
    return text.startswith(PREFIX)


def rows(
    text: str, rejects: files.Rejects, record_type: type | None = None
) -> Iterator[tuple[files.Place, dict[str, Any]]]:
    """Reads one split as `files.rows` reads a file.

    Args:
      text: its address, see the head of this file. A field that FIELD=NAME names is
        called FIELD; every other field of the dataset keeps its name.
      rejects: where rows are counted and bad ones listed.
      record_type: the dataclass that the rows are for: only its fields are taken, and
        "id" is there; see `read`. None takes all fields as they are, for a reader of a
        public schema.

    Yields:
      (place, object) of each row: texts, numbers, and lists of them. A class label is
      its name. NaN, which JSON has not, is None.

    Raises:
      ValueError: "ADDRESS:N: reason" for a row that is not in UTF-8, unless it is
        listed; see also `read`.
    """
    source = _source(parse(text), record_type)
    if not len(source):
        raise ValueError(f"{source.address}: no rows; expected at least one.")
    for index in range(len(source)):
        found = source[index]
        number, name = index + 1, source.name(index)
        place = files.Place(str(source.address), number, number, name)
        rejects.count()
        try:
            values = source.values(found)
        except ValueError as error:
            rejects.add(place, str(error), repr(found[1]))
            continue
        yield place, values


def read(text: str, record_type: type) -> list:
    """Reads one split as records, checking every row.

    Args:
      text: its address, see the head of this file.
      record_type: the dataclass of the rows. A dataset may have more fields; without a
        field "id" the rows are named "NAME-SPLIT-INDEX", from 0. A whole number
        may stand where the record has a text, and any number where it has an answer. A
        number that is NaN is read as None.

    Returns:
      The records, in the dataset's order.

    Raises:
      ValueError: "ADDRESS: reason; expected ..." when the dataset, version, split or a
        field is not there, or the files are not array_record, cut off or damaged;
        "ADDRESS:N: reason" (rows from 1) for a row that does not fit or is not UTF-8,
        or an id that an earlier row has.
    """
    return read_address(parse(text), record_type)


def read_address(address: Address, record_type: type) -> list:
    """Does what `read` does for an address that is taken apart already."""
    source = _source(address, record_type)
    first: dict[str, int] = {}
    result = []
    for index in range(len(source)):
        row = source.record(source[index])
        if first.setdefault(row.id, index) != index:
            raise ValueError(
                f"{address}:{index + 1}: id {row.id!r} is at {address}:"
                f"{first[row.id] + 1} already; expected every id once."
            )
        result.append(row)
    return result


def stream(
    text: str,
    record_type: type,
    *,
    seed: int | None = None,
    epochs: int = 1,
    host: int = 0,
    hosts: int = 1,
    batch_size: int = 0,
) -> Any:
    """Reads one split piece by piece, for jobs that do not hold it in memory.

    The rows of all epochs are one sequence, and host h takes the rows h, h + hosts,
    h + 2 hosts, ... of it: the hosts' rows, taken in turns, are the rows of one host.
    Every row of an epoch goes to exactly one host.

    Args:
      text: the address of the split, see the head of this file.
      record_type: see `read`.
      seed: of the order, which differs from epoch to epoch; None keeps the dataset's.
      epochs: how often the split is read.
      host: index of this process, `jax.process_index()`.
      hosts: number of processes, `jax.process_count()`.
      batch_size: records per list; 0 gives single records. The last list may be
        shorter.

    Returns:
      A `grain.MapDataset` of records, or of lists of them. `get_state` of its iterator
      returns a dict that JSON can hold; after `set_state` of that dict, an iterator of
      the same arguments goes on with the next record.

    Raises:
      ValueError: see `read`; a split without rows; numbers out of range. A row that
        does not fit raises it when it is reached. Ids that occur twice are not seen.
    """
    grain = library("grain")
    if epochs < 1 or batch_size < 0 or not 0 <= host < hosts:
        raise ValueError(
            f"epochs={epochs}, batch_size={batch_size}, host={host} of hosts={hosts}; "
            "expected at least 1 epoch, a size of at least 0, and 0 <= host < hosts."
        )
    address = parse(text)
    source = _source(address, record_type)
    if not len(source):
        raise ValueError(f"{address}: no rows; expected at least one.")
    dataset = grain.MapDataset.source(source)
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    dataset = dataset.repeat(epochs)[host::hosts].map(source.record)
    return dataset.batch(batch_size, batch_fn=list) if batch_size else dataset


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of a split; grain takes it as a source of (index, row of TFDS)."""

    address: Address
    source: Any  # the rows as TFDS has them
    features: dict[str, Any]
    names: dict[str, str]  # field of the object → field of the dataset
    record_type: type | None

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        try:
            return index, self.source[index]
        except Exception as error:  # of array_record, protobuf or a feature's decoder
            raise ValueError(
                f"{self.address}:{index + 1}: cannot be read ({error}); expected a "
                "whole file. Make the dataset again."
            ) from error

    def name(self, index: int) -> str:
        """Returns the id of a row that has none of its own."""
        return f"{self.address.name}-{self.address.split}-{index}"

    def values(self, found: tuple[int, dict]) -> dict[str, Any]:
        """Returns the JSON object of a row, or raises ValueError(reason)."""
        index, row = found
        hints = typing.get_type_hints(self.record_type) if self.record_type else {}
        values = {"id": self.name(index)} if self.record_type else {}
        for name, theirs in self.names.items():
            value = row
            for part in theirs.split("/"):
                value = value[part]
            try:
                value = _plain(value, self.features[theirs])
                values[name] = _as_field(name, value, hints[name]) if hints else value
            except ValueError as error:
                raise ValueError(f"field {theirs!r} {error}") from error
        return values

    def record(self, found: tuple[int, dict]) -> Any:
        """Returns the record of a row, or raises ValueError("ADDRESS:N: reason")."""
        try:
            return records.from_object(self.values(found), self.record_type)
        except ValueError as error:
            raise ValueError(f"{self.address}:{found[0] + 1}: {error}") from error


def _source(address: Address, record_type: type | None) -> _Rows:
    """Opens a split and finds the fields of a record, or all fields for None."""
    split = open_split(address)
    there, fields = split.features, {}
    if record_type:
        fields = {field.name: field for field in dataclasses.fields(record_type)}
    names = {} if record_type else {name: name for name in there}
    for name, theirs in address.fields.items():
        if record_type and name not in fields:
            raise ValueError(
                f"{address}: {name}={theirs} names no field of {record_type.__name__}; "
                f"expected one of {list(fields)}."
            )
        names.pop(theirs, None)
    for name in dict.fromkeys((*fields, *address.fields)):
        theirs = address.fields.get(name, name)
        if theirs in there:
            names[name] = theirs
        elif name in address.fields or (
            name != "id" and fields[name].default is dataclasses.MISSING
        ):
            wanted = f"{name!r} of {record_type.__name__}" if record_type else name
            raise ValueError(
                f"{address}: the dataset has no field {theirs!r} for {wanted}; its "
                f"fields are {sorted(there)}. Say which one it is: "
                f"{address}?{name}=NAME."
            )
    return _Rows(address, split.rows, there, names, record_type)


def _plain(value: Any, feature: Any) -> Any:
    """Returns a value of TFDS as JSON has it; NaN, which JSON has not, becomes None."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        inner = getattr(feature, "feature", feature)
        return [_plain(item, inner) for item in value]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"is {reprlib.repr(value)}, which is not UTF-8 ({error.reason} at byte "
                f"{error.start}); expected text in UTF-8."
            ) from error
    if isinstance(value, np.generic):
        value = value.item()
    if hasattr(feature, "int2str"):  # a ClassLabel; -1 where there is no label
        return None if value < 0 else feature.int2str(value)
    return None if value != value else value


def _as_field(name: str, value: Any, hint: Any) -> Any:
    """Returns a JSON value as a record's field of this name and type takes it."""
    if hint is str and (type(value) is int or name == "answer"):
        return fields.number_as_text(value)
    if is_text(hint) or hint in _AS_THEY_ARE:
        return value
    return [json.loads(item) for item in value]  # stored so by `tfds_builder`


def is_text(hint: Any) -> bool:
    """Whether a field of this type holds one text."""
    return hint is str or typing.get_origin(hint) is typing.Literal
