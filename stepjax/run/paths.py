"""Paths of people: ~ is their home folder, and object storage is refused by name.

A shell replaces ~ at the beginning of a word only, and not in ``--workdir=~/x`` or in
a config file. Object storage (gs://...) is read where weights and tokenizers are, and
written by ``stepjax export``; anywhere else it would become a local folder "gs:".
"""

import os
import pathlib
import re
from typing import Any

import ml_collections

from stepjax.lm import addresses

_NO_ARRAYS = re.compile(r"[\[\\]")  # orbax takes them for parts of a pattern
# Settings that name a file or a folder, and those that do so after "hf:" or "gguf:".
_FILES = (
    *("tokenizer", "data.ift", "data.eft", "data.question_file", "data.test"),
    *("data.equations", "prm.labels", "mcts.question_file", "teacher.file"),
    "compile_cache",
)
_MODELS = ("model.init", "teacher.model")
_MADE = "data/manifest.json"  # of a run


def expanded(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Returns a copy of the settings with the home folder in the place of ~."""
    config = config.copy_and_resolve_references()
    changed = {}
    for name in (*_FILES, *_MODELS):
        kind, colon, path = "", "", _value(config, name)
        if name in _MODELS:
            kind, colon, path = path.partition(":")
        changed[name] = f"{kind}{colon}{os.path.expanduser(path)}"
    config.update_from_flattened_dict(changed)
    return config


def _value(config: Any, name: str) -> str:
    for part in name.split("."):
        config = config[part]
    return config


def elsewhere(name: str, path: str, expected: str, remedy: str) -> str:
    """Returns a sentence about a path that is an address; "" for any other path.

    Args:
      name: of the setting or the option.
      path: its value.
      expected: what it should be, e.g. "a folder".
      remedy: a sentence that says what to do.
    """
    if not addresses.is_address(path):
        return ""
    return (
        f"{name}={path}: this is an address and no path; expected {expected} on a disk "
        f"of this computer, or on one that is mounted. {remedy}"
    )


def no_run(name: str, path: str) -> str:
    """Returns a sentence about a path at which no run can be; "" for any other path.

    Args:
      name: of the option or the argument.
      path: of the run directory; "" for none.
    """
    remedy = "Mount the bucket (gcsfuse, NFS) and name the folder where it is mounted."
    if address := elsewhere(name, path, "a folder", remedy):
        return address
    whole = os.path.abspath(os.path.expanduser(path)) if path else ""
    if bad := _NO_ARRAYS.search(whole):
        return (
            f"{name}={path}: there is a {bad[0]!r} in {whole}; expected a path without "
            "[ and \\, because orbax does not find arrays again that it has saved "
            "there. Choose another path."
        )
    for parent in pathlib.Path(whole).parents if whole else ():
        if (parent / "config.json").is_file() and (parent / _MADE).is_file():
            return (
                f"{name}={path}: this is inside of the run directory {parent}; "
                "expected that directory, or one outside of it."
            )
    return ""
