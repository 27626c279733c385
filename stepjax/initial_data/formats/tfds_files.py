"""Datasets of tensorflow-datasets (TFDS) on the disk: their addresses and their files.

TFDS is imported without TensorFlow. Nothing here downloads anything, or runs the code
of a registered dataset: a dataset is what its folder says that it is.
"""

import importlib
import os
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath

from stepjax.lm import addresses

PREFIX = "tfds:"
FORMAT = "array_record"  # the only file format
VERSION = re.compile(r"\d+\.\d+\.\d+")
_ADDRESS = re.compile(
    rf"(\w[\w.-]*)(?:/([^/:?]+))?(?::({VERSION.pattern}))?/([^/?]+)(\?.*)?"
)


class Address(NamedTuple):
    """Where the rows of one split are, see the head of this file.

    Attributes:
      name: of the dataset.
      config: its config, or "".
      version: such as "1.0.0"; "" takes the newest that is on the disk.
      split: a split, or a slice of one.
      fields: field of the record → field of the dataset.
      data_dir: folder of the datasets, or "".
    """

    name: str
    config: str
    version: str
    split: str
    fields: Mapping[str, str]
    data_dir: str

    def __str__(self):
        version = self.version and f":{self.version}"
        name = "/".join(filter(None, (self.name, self.config)))
        return f"{PREFIX}{name}{version}/{self.split}"


def parse(text: str) -> Address:
    """Takes an address apart.

    Args:
      text: see the head of this file. Nothing in it is escaped, so that no name and no
        folder may hold "&".

    Raises:
      ValueError: for a text of another form.
    """
    found = _ADDRESS.fullmatch(text.removeprefix(PREFIX))
    if not (found and text.startswith(PREFIX)):
        raise ValueError(
            f"{text!r} is no address of TFDS; expected tfds:NAME/SPLIT, or "
            "tfds:NAME/CONFIG:VERSION/SPLIT?FIELD=NAME&data_dir=DIR."
        )
    name, config, version, split, query = (part or "" for part in found.groups())
    options: dict[str, str] = {}
    for option in query[1:].split("&") if query else ():
        key, _, value = option.partition("=")
        if not (key and value) or key in options:
            raise ValueError(
                f"{text!r} has the part {option!r}; expected FIELD=NAME, once per "
                "field, or data_dir=DIR."
            )
        options[key] = value
    folder = options.pop("data_dir", "")
    return Address(name, config, version, split, options, folder)


def library(name: str = "tensorflow_datasets") -> types.ModuleType:
    """Imports a library of the extra `data` that reads array_record files.

    Raises:
      ValueError: it is not installed, or array_record is not.
    """
    try:
        importlib.import_module("array_record.python.array_record_data_source")
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{name} cannot be used ({error}); expected the extra `data`: "
            'pip install -e ".[data]". array_record has no wheel for every system and '
            "Python; where there is none, use files of JSON lines."
        ) from error


class Split(NamedTuple):
    """One split of a dataset, checked to be whole.

    Attributes:
      rows: has a length, takes an index, and returns a row as TFDS has it.
      features: name of a field → its feature. A field inside another one is named
        "OUTER/INNER".
    """

    rows: Any
    features: dict[str, Any]


def open_split(address: Address) -> Split:
    """Finds the files of an address and checks that all rows are there.

    Raises:
      ValueError: "ADDRESS: reason; expected ..." when the dataset, version or split is
        not there, or the files are not array_record, cut off or damaged.
    """
    folder = _folder(address)
    try:
        made = library().builder_from_directory(os.fspath(folder), file_format=FORMAT)
    except Exception as error:  # another format; or of JSON, protobuf, a feature's code
        raise ValueError(
            f"{address}: TFDS cannot read {folder} ({error}); expected a whole dataset "
            f"in the format {FORMAT}. Make it again, with download_and_prepare("
            f"file_format={FORMAT!r})."
        ) from error
    features = dict(_flat("", made.info.features))
    splits = made.info.splits
    if address.split in splits and not splits[address.split].num_examples:
        return Split((), features)
    try:
        files = splits[address.split].file_instructions
    except Exception as error:  # of TFDS's parser of slices
        raise ValueError(
            f"{address}: TFDS cannot take this split ({error}); expected one of "
            f"{sorted(splits)}, or a slice such as 'train[:10%]'."
        ) from error
    for file in files:
        _check_whole(address, file)
    return Split(made.as_data_source(address.split) if files else (), features)


def _check_whole(address: Address, file: Any) -> None:
    """Raises ValueError when a file has not the rows that its dataset states."""
    from array_record.python import array_record_module

    try:
        there = array_record_module.ArrayRecordReader(file.filename).num_records()
    except RuntimeError:
        there = 0
    if there != file.examples_in_shard:
        raise ValueError(
            f"{address}: {file.filename} has {there} whole rows; expected "
            f"{file.examples_in_shard}. It is missing, cut off or damaged: make the "
            "dataset again."
        )


def _flat(name: str, feature: Any) -> Iterator[tuple[str, Any]]:
    """Yields the fields of a dataset and those inside them, by name."""
    if not hasattr(feature, "items"):
        yield name, feature
        return
    for inner, item in feature.items():
        yield from _flat(f"{name}/{inner}" if name else inner, item)


def _folder(address: Address) -> epath.Path:
    """Finds the folder of a dataset's version, the newest where none is asked for."""
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    place = address.data_dir or default
    if addresses.is_unreachable(place):
        raise ValueError(
            f"{address}: {place} is an address that nothing here reads; expected a "
            f"folder, or object storage: {', '.join(addresses.STORAGE)}. Check "
            "data_dir=DIR and TFDS_DATA_DIR."
        )
    data_dir = epath.Path(place).expanduser()
    root = data_dir / address.name
    if not root.is_dir():
        names = [f.name for f in _folders(data_dir) if any(map(_versions, _tree(f)))]
        raise ValueError(
            f"{address}: no dataset {address.name!r} in {data_dir}; there are {names}. "
            "Check the name, data_dir=DIR and TFDS_DATA_DIR. Datasets are not "
            f"downloaded: make it with TFDS, file_format={FORMAT!r}."
        )
    versions = _versions(root / address.config if address.config else root)
    if not versions or address.version and address.version not in versions:
        inner = {
            "/".join(f.relative_to(data_dir).parts): _versions(f) for f in _tree(root)
        }
        known = [f"{name}:{v}" for name, found in inner.items() for v in found]
        raise ValueError(
            f"{address}: no such config or version in {root}; expected one of {known}."
        )
    return root / address.config / (address.version or versions[-1])


def _folders(path: epath.Path) -> list[epath.Path]:
    """Returns the folders in a folder, without hidden ones."""
    if not path.is_dir():
        return []
    inside = sorted(path.iterdir())
    return [f for f in inside if f.is_dir() and not f.name.startswith(".")]


def _tree(root: epath.Path) -> list[epath.Path]:
    """Returns the folder of a dataset and those of its configs."""
    return [root, *(f for f in _folders(root) if not VERSION.fullmatch(f.name))]


def _versions(folder: epath.Path) -> list[str]:
    """Returns the finished versions in a folder, the newest last."""
    names = [f.name for f in _folders(folder) if (f / "features.json").exists()]
    found = [name for name in names if VERSION.fullmatch(name)]
    return sorted(found, key=_numbers)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
