"""Records as datasets of tensorflow-datasets (TFDS), written without TensorFlow.

`write` is the way to make one; `builder` is the TFDS builder inside it. The features
of a dataset are made from the fields of the record's dataclass:

    str                          Text
    tuple[str, ...], list[str]   Sequence of Text
    int, list[int]               int64
    float                        float64; NaN where a list of numbers has None
    anything else: a list        Sequence of Text, each item as JSON
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import re
import reprlib
import tempfile
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from stepjax.initial_data.formats import tfds
from stepjax.initial_data.formats.tfds_files import (
    FORMAT,
    VERSION,
    Address,
    library,
)
from stepjax.lm import addresses


def write(
    splits: Mapping[str, Iterable[Any]],
    name: str,
    data_dir: str | os.PathLike,
    *,
    record_type: type,
    version: str = "1.0.0",
) -> pathlib.Path:
    """Writes records as a TFDS dataset, all of its splits or nothing.

    The dataset is written into a hidden folder, read back and compared with the rows,
    and only then renamed to its place: a kill leaves nothing that looks finished.

    Args:
      splits: name of a split → its rows, which are read back in the same order.
      name: of the dataset: small letters, digits and "_".
      data_dir: local folder of the datasets, made when it is missing.
      record_type: the dataclass of the rows.
      version: of the dataset.

    Returns:
      The dataset's folder, data_dir/name/version.

    Raises:
      ValueError: the dataset is there already; a name that TFDS cannot hold; a row of
        another type, with a value that cannot be stored or with an id that an earlier
        row has; rows that do not read back equal.
    """
    if addresses.is_address(data_dir):
        raise ValueError(
            f"data_dir={os.fspath(data_dir)!r}; expected a local folder. Copy the "
            "finished dataset from there."
        )
    folder = pathlib.Path(data_dir).expanduser()
    final = folder / name / version
    if final.exists():
        raise ValueError(
            f"{final} exists; expected a new dataset. Take another version or name, "
            "or delete that folder."
        )
    lists = {split: list(rows) for split, rows in splits.items()}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".incomplete-") as scratch:
        made = builder(lists, name, scratch, record_type=record_type, version=version)
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints where it writes
            made.download_and_prepare()
        for split, rows in lists.items():
            address = Address(name, "", version, split, {}, scratch)
            back = tfds.read_address(address, record_type)
            if len(back) != len(rows):
                raise ValueError(
                    f"{address}: {len(rows)} rows were written and {len(back)} are "
                    "read back; expected as many. Nothing is kept: report this with "
                    "the versions of tensorflow-datasets and array_record."
                )
            for index, (row, found) in enumerate(zip(rows, back, strict=True)):
                for field, value in vars(row).items():
                    if value != getattr(found, field):
                        raise ValueError(
                            f"{address}:{index + 1}: field {field!r} is "
                            f"{reprlib.repr(value)} and reads back as "
                            f"{reprlib.repr(getattr(found, field))}; expected the same "
                            f"value. Has it the type of {record_type.__name__}?"
                        )
        final.parent.mkdir(parents=True, exist_ok=True)
        os.rename(f"{scratch}/{name}/{version}", final)
    return final


def builder(
    splits: Mapping[str, Iterable[Any]],
    name: str,
    data_dir: str | os.PathLike,
    *,
    record_type: type,
    version: str = "1.0.0",
) -> Any:
    """Returns a TFDS builder of records, whose features are made from their dataclass.

    `write` is the safe way to use it: TFDS itself keeps an older dataset of the same
    version in silence.

    Args:
      splits: see `write`.
      name: see `write`.
      data_dir: folder of the datasets.
      record_type: the dataclass of the rows.
      version: of the dataset.

    Returns:
      A `tensorflow_datasets.core.ShardBasedBuilder`. It keeps the rows in their order.

    Raises:
      ValueError: for a name or version that TFDS cannot hold. `download_and_prepare`
        raises it for rows that `write` refuses, and for a file format that is not
        array_record.
    """
    tensorflow_datasets = library()
    names = {"name": name, **{f"split {split!r}": split for split in splits}}
    for what, text in names.items():
        if not re.fullmatch(r"[a-z][a-z0-9_]*", text) or text == "all":
            raise ValueError(
                f"{what} is {text!r}; expected small letters, digits and '_', a letter "
                "first, and not 'all'."
            )
    if not VERSION.fullmatch(version):
        raise ValueError(f"version={version!r}; expected the form '1.0.0'.")

    class Records(tensorflow_datasets.core.ShardBasedBuilder, skip_registration=True):
        """A TFDS dataset of the given rows, in their order."""

        VERSION = tensorflow_datasets.core.Version(version)
        code_path = None  # else TFDS looks for checksums of downloads beside this file

        def _info(self):
            return tensorflow_datasets.core.DatasetInfo(
                builder=self,
                description=f"Rows of stepjax's record type {record_type.__name__}.",
                features=_features(record_type),
                disable_shuffling=True,
            )

        def _shard_iterators_per_split(self, dl_manager):
            del dl_manager
            return {split: [_examples(splits, split, record_type)] for split in splits}

        def download_and_prepare(self, *, file_format=None, **options):
            name = getattr(file_format, "value", file_format)
            if name not in (None, FORMAT):
                raise ValueError(
                    f"file_format={name!r}; expected {FORMAT!r}. tfrecord needs "
                    "TensorFlow, and TFDS 4.9.10 loses rows when it writes parquet."
                )
            super().download_and_prepare(**options)

    Records.name = name
    return Records(data_dir=os.fspath(data_dir), file_format=FORMAT)


def _features(record_type: type) -> Any:
    """Returns the features of a record's dataset."""
    features = library().features
    # An example of TFDS holds float32; float64 fits in as bytes only.
    number = {"dtype": np.float64, "encoding": "bytes"}

    def feature(hint):
        if tfds.is_text(hint):
            return features.Text()
        if hint is int:
            return features.Scalar(np.int64)
        if hint is float:
            return features.Tensor(shape=(), **number)
        if hint == list[int]:
            return features.Sequence(features.Scalar(np.int64))
        if hint in tfds.NUMBERS:
            return features.Tensor(shape=(None,), **number)
        return features.Sequence(features.Text())

    hints = typing.get_type_hints(record_type)
    fields = [field.name for field in dataclasses.fields(record_type)]
    return features.FeaturesDict({name: feature(hints[name]) for name in fields})


def _examples(splits: Mapping[str, Iterable], split: str, record_type: type) -> Any:
    """Returns the function that makes the examples of one split for TFDS."""
    hints = typing.get_type_hints(record_type)

    def make() -> Iterator[tuple[int, dict]]:
        seen: dict[str, int] = {}
        for index, row in enumerate(splits[split]):
            place = f"{split}:{index + 1}"
            if type(row) is not record_type:
                raise ValueError(
                    f"{place}: {reprlib.repr(row)}; expected a {record_type.__name__}."
                )
            example = {}
            for name, hint in hints.items():
                try:
                    example[name] = _stored(getattr(row, name), hint)
                except (TypeError, ValueError, OverflowError) as error:
                    raise ValueError(
                        f"{place}: field {name!r} is "
                        f"{reprlib.repr(getattr(row, name))}, which cannot be stored "
                        f"({error}); expected {hint}."
                    ) from error
            first = seen.setdefault(row.id, index)
            if first != index:
                raise ValueError(
                    f"{place}: id {row.id!r} is at {split}:{first + 1} already; "
                    "expected every id once."
                )
            yield index, example

    return make


def _stored(value: Any, hint: Any) -> Any:
    """Returns one field as its feature takes it."""
    if tfds.is_text(hint):
        return _utf8(value)
    if hint is int or hint == list[int]:
        return np.array(value, np.int64)
    if hint is float:
        return np.array(value, np.float64)
    if hint in tfds.NUMBERS:
        return np.array([np.nan if x is None else x for x in value], np.float64)
    if hint in tfds.TEXTS:
        return [_utf8(text) for text in value]
    return [json.dumps(item, ensure_ascii=False, allow_nan=False) for item in value]


def _utf8(text: Any) -> bytes:
    if not isinstance(text, str):
        raise TypeError("not a string")
    return text.encode()
