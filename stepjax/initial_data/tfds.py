"""Records from tensorflow-datasets (TFDS), read without TensorFlow.

`read` and `stream` take records from any TFDS dataset that is on the disk, by a place
such as

    tfds:step_ift/train
    tfds:my_set/my_config:1.0.0/test?problem=question&data_dir=/data/tfds

A place is the dataset's name, with a config and a version where there are several, and
a split or a slice of one ("train[:10%]"). Each FIELD=NAME says which field of the
dataset is a field of the record; a field that is not named has the same name in both.
data_dir is the folder of the datasets; without it that is the environment variable
TFDS_DATA_DIR, or ~/tensorflow_datasets.

Only files of the format array_record are read: TFDS reads its own default, tfrecord,
with TensorFlow only, and TFDS 4.9.10 loses rows when it writes parquet.
`tfds_builder.write` makes such datasets of records.
"""

import dataclasses
import functools
import json
import reprlib
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np

from stepjax import records
from stepjax.initial_data.tfds_files import PREFIX, Place, library, open_split, parse

TEXTS = (tuple[str, ...], list[str])  # types of a field that holds several texts
NUMBERS = (tuple[float | None, ...], list[float | None])
_AS_THEY_ARE = (int, float, list[int], *TEXTS, *NUMBERS)


def is_place(text: str) -> bool:
    """Whether a text names rows of TFDS, and not a file."""
    return text.startswith(PREFIX)


def rows(text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Reads one split as JSON objects, for readers of a public schema.

    Args:
      text: its place, see the head of this file. A field that FIELD=NAME names is
        called FIELD; every other field of the dataset keeps its name.

    Yields:
      (place, object): "PLACE:N" (rows from 1, for messages), and the row: texts,
      numbers, and lists of them. A class label is its name. NaN, which JSON has not,
      is None.

    Raises:
      ValueError: see `read`.
    """
    place = parse(text)
    split = open_split(place)
    for name in place.fields.values():
        if name not in split.features:
            raise ValueError(
                f"{place}: the dataset has no field {name!r}; its fields are "
                f"{sorted(split.features)}."
            )
    renamed = set(place.fields.values())
    names = {name: name for name in split.features if name not in renamed}
    source = _Rows(place, split.rows, split.features, names | dict(place.fields))
    for index in range(len(source)):
        yield f"{place}:{index + 1}", source[index][1]


def read(text: str, record_type: type) -> list:
    """Reads one split as records, checking every row.

    Args:
      text: its place, see the head of this file.
      record_type: the dataclass of the rows. A dataset may have more fields; without a
        field "id" the rows are named "NAME-SPLIT-INDEX", from 0. A whole number may
        stand where the record has a text. A number that is NaN is read as None.

    Returns:
      The records, in the dataset's order.

    Raises:
      ValueError: "PLACE: reason; expected ..." when the dataset, version, split or a
        field is not there, or the files are not array_record, cut off or damaged;
        "PLACE:N: reason" (rows from 1) for a row that does not fit or is not UTF-8, or
        an id that an earlier row has.
    """
    return read_place(parse(text), record_type)


def read_place(place: Place, record_type: type) -> list:
    """Does what `read` does for a place that is taken apart already."""
    source = _source(place, record_type)
    first: dict[str, int] = {}
    result = []
    for index in range(len(source)):
        row = _record(source[index], place=place, record_type=record_type)
        if first.setdefault(row.id, index) != index:
            raise ValueError(
                f"{place}:{index + 1}: id {row.id!r} is at {place}:"
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
      text: the place of the split, see the head of this file.
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
    place = parse(text)
    source = _source(place, record_type)
    if not len(source):
        raise ValueError(f"{place}: no rows; expected at least one.")
    dataset = grain.MapDataset.source(source)
    if seed is not None:
        dataset = dataset.shuffle(seed=seed)
    dataset = dataset.repeat(epochs)[host::hosts].map(
        functools.partial(_record, place=place, record_type=record_type)
    )
    return dataset.batch(batch_size, batch_fn=list) if batch_size else dataset


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The rows of a split as grain takes a source: (index, object of JSON values)."""

    place: Place
    source: Any  # the rows as TFDS has them
    features: dict[str, Any]
    names: dict[str, str]  # field of the object → field of the dataset

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        try:
            row = self.source[index]
        except Exception as error:  # of array_record, protobuf or a feature's decoder
            raise ValueError(
                f"{self.place}:{index + 1}: cannot be read ({error}); expected a whole "
                "file. Make the dataset again."
            ) from error
        values = {}
        for name, theirs in self.names.items():
            value = row
            for part in theirs.split("/"):
                value = value[part]
            try:
                values[name] = _plain(value, self.features[theirs])
            except ValueError as error:
                raise ValueError(
                    f"{self.place}:{index + 1}: field {theirs!r} {error}"
                ) from error
        return index, values


def _source(place: Place, record_type: type) -> _Rows:
    """Opens a split for records: every field that has no default must be there."""
    split = open_split(place)
    fields = {field.name: field for field in dataclasses.fields(record_type)}
    for name, theirs in place.fields.items():
        if name not in fields:
            raise ValueError(
                f"{place}: {name}={theirs} names no field of {record_type.__name__}; "
                f"expected one of {list(fields)}."
            )
    names = {}
    for name, field in fields.items():
        theirs = place.fields.get(name, name)
        needed = name != "id" and field.default is dataclasses.MISSING
        if theirs in split.features:
            names[name] = theirs
        elif name in place.fields or needed:
            raise ValueError(
                f"{place}: the dataset has no field {theirs!r} for {name!r} of "
                f"{record_type.__name__}; its fields are {sorted(split.features)}. Say "
                f"which one it is: {place}?{name}=NAME."
            )
    return _Rows(place, split.rows, split.features, names)


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


def _record(
    found: tuple[int, dict[str, Any]], *, place: Place, record_type: type
) -> Any:
    """Returns the record of one row."""
    index, values = found
    hints = typing.get_type_hints(record_type)
    record = {"id": f"{place.name}-{place.split}-{index}"}
    try:
        for name, value in values.items():
            hint = hints[name]
            if hint is str and type(value) is int:
                value = str(value)
            elif not (
                is_text(hint) or hint in (int, float, list[int], *TEXTS, *NUMBERS)
            ):
                value = [json.loads(item) for item in value]
            record[name] = value
        return records.from_object(record, record_type)
    except ValueError as error:
        raise ValueError(f"{place}:{index + 1}: {error}") from error


def is_text(hint: Any) -> bool:
    """Whether a field of this type holds one text."""
    return hint is str or typing.get_origin(hint) is typing.Literal
