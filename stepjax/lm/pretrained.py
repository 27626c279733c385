"""A pretrained model by its name: "hf:DIR", a Hugging Face folder, or "gguf:FILE".

`model.init` and `teacher.model` name models in this way. A Hugging Face folder may be
on object storage (gs://...). A GGUF file is mapped into memory, so it is on a disk.
"""

import os
import pathlib
import tempfile

from etils import epath

from stepjax.lm import (
    addresses,
    generation_config,
    gguf_files,
    gguf_tokenizer,
    hf_config,
    sharding,
    tokenizer,
    weights,
)
from stepjax.lm import model as lm
from stepjax.lm.model_config import ModelConfig

KINDS = ("hf", "gguf")


def place(name: str) -> str:
    """Returns the whole path of a model's folder or file; "" for a random model."""
    kind, _, source = name.partition(":")
    if kind not in KINDS or addresses.is_address(source):
        return source
    return os.path.abspath(source)


def read_config(name: str) -> ModelConfig:
    """Returns the config of a model, with the default numerics of `ModelConfig`.

    Raises:
      ValueError: see `hf_config.config_from_hf` and `gguf_files.config_from_gguf`.
    """
    kind, _, source = name.partition(":")
    if kind == "hf":
        return hf_config.config_from_hf(source)
    return gguf_files.config_from_gguf(gguf_files.GgufFile(source))


def save_tokenizer(
    name: str, directory: str | pathlib.Path, other: str = ""
) -> tokenizer.Tokenizer:
    """Writes a model's tokenizer into a folder and returns it.

    Beside it go the model's config.json and generation_config.json.

    Args:
      name: of the model.
      directory: target folder, made if missing; files there are overwritten.
      other: folder or file of the tokenizer to take; "" takes the model's own.

    Raises:
      ValueError: when files cannot be read, or the decoder does not compute the model.
    """
    kind, _, source = name.partition(":")
    directory = pathlib.Path(directory)
    opened = gguf_files.GgufFile(source) if kind == "gguf" else None
    with tempfile.TemporaryDirectory() as folder:
        if opened:
            path = other or _of_gguf(opened, folder)
        else:
            hf_config.config_from_hf(source)  # refuses it before anything is written
            path = other or source
        tokenizer.load(tokenizer.fetch(path, folder)).save(directory)
    if opened:
        gguf_tokenizer.save_configs(opened, directory)
    else:
        _keep(epath.Path(source), directory)
    return tokenizer.load(directory)


def load(
    name: str,
    source: str,
    model: lm.Decoder,
    dtype: str = "float32",
    form: str = "full",
) -> dict:
    """Returns the parameters of a model, split over the devices of the decoder.

    Args:
      name: of the model, which says how it is read.
      source: path of its folder or file now.
      model: the decoder, without adapters.
      dtype: of the parameters. They are rounded tensor by tensor, so that they are
        never there in float32 as well.
      form: see `weights.load_hf`.

    Raises:
      ValueError: when files are missing or damaged.
    """
    shardings = sharding.param_shardings(model.mesh, lm.abstract_params(model))
    if name.startswith("gguf:"):
        file = gguf_files.GgufFile(source)
        return gguf_files.load_gguf(file, model.config, shardings, dtype, form)
    return weights.load_hf(source, model.config, shardings, dtype, form)


def _of_gguf(file: gguf_files.GgufFile, folder: str) -> str:
    """Returns a folder with the tokenizer of a GGUF file.

    It is made of the file, or is the one beside the file when that cannot be done.
    """
    try:
        gguf_tokenizer.save_tokenizer(file, folder)
    except ValueError:
        beside = pathlib.Path(file.path).parent
        if not (beside / "tokenizer.json").is_file():
            raise
        return str(beside)
    return folder


def _keep(source: epath.Path, directory: pathlib.Path) -> None:
    """Copies what a Hugging Face directory says of its model.

    A generation_config.json that came with the tokenizer stays.
    """
    for name in ("config.json", generation_config.NAME):
        kept = directory / name
        if (source / name).exists() and (name == "config.json" or not kept.exists()):
            kept.write_bytes((source / name).read_bytes())
