"""Settings of generation: which ids end a text, and how transformers samples one.

They are in generation_config.json. transformers takes them from config.json where that
file is missing. What they are, and what is written of them, is said here only.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from stepjax.lm.json_files import read_json

NAME = "generation_config.json"
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
# Keys of an earlier file that say nothing about the model that is written.
_NOT_CARRIED = ("transformers_version", "_from_model_config")


def read(directory: str | os.PathLike) -> tuple[epath.Path, dict[str, Any]]:
    """Returns a folder's settings of generation, and the file that holds them.

    They are read as transformers reads them: from generation_config.json, else from
    config.json, else there are none.

    Raises:
      ValueError: when the file is no JSON object.
    """
    directory = epath.Path(directory)
    for name in (NAME, "config.json"):
        file = directory / name
        if not file.is_file():
            continue
        settings = read_json(file)
        if name == "config.json":
            keys = (*_IDS, *_SAMPLING)
            settings = {key: settings[key] for key in keys if key in settings}
        return file, settings
    return directory / NAME, {}


def of_model(
    config: Mapping[str, Any],
    stop_ids: Sequence[int],
    earlier: str | os.PathLike | None = None,
) -> dict[str, Any]:
    """Returns the settings of generation that are written beside a config.json.

    Args:
      config: what that config.json holds, from `hf_config.config_to_hf`.
      stop_ids: token ids that end a generation, the end-of-sequence id first.
      earlier: folder with the model's earlier settings. They say how it samples, and
        their padding id comes before that of the config; None for a new model.
    """
    kept = {} if earlier is None else read(earlier)[1]
    kept = {key: value for key, value in kept.items() if key not in _NOT_CARRIED}
    pad = kept.get("pad_token_id")
    return kept | {
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": list(stop_ids) or None,
        "pad_token_id": config["pad_token_id"] if pad is None else pad,
    }
