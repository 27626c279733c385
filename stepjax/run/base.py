"""M0: drawn from the seed, or read from its files; and the base of adapters.

Without adapters (`lora.rank` = 0) training changes all parameters of M0. With them M0
is the base of M1 … Mn and stays as it is: it is held once, in the compute type, and a
model's folder holds its adapters only. The manifest beside them has the digest of the
base as it is held, so that adapters are never put on another base than they were
trained on.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping

from etils import epath
from flax import traverse_util

from stepjax.lm import checkpoint, files, lora, pretrained, train
from stepjax.lm import model as lm
from stepjax.settings import Settings

NAME = "base"  # of its digest, beside those of the adapters


def plain(model: lm.Decoder) -> lm.Decoder:
    """Returns the decoder without adapters, on the same devices."""
    return lm.Decoder(dataclasses.replace(model.config, adapters=None), model.mesh)


def whole(
    settings: Settings,
    folder: pathlib.Path,
    model: lm.Decoder,
    dtype: str = "float32",
    form: str = "full",
) -> dict:
    """Returns the parameters of M0 without adapters.

    Args:
      settings: of the run.
      folder: the run directory.
      model: the decoder on the devices of training, or of sampling.
      dtype: of the parameters. What is read from files is rounded tensor by tensor, so
        that they are never there in float32 as well.
      form: see `weights.load_hf`; a random M0 is "full".

    Raises:
      ValueError: when its files are missing or damaged.
    """
    init, model = settings.init, plain(model)
    if init == "random":
        flat = traverse_util.flatten_dict(
            train.init_params(model, model.mesh, settings.seed)
        )
        for path in flat:  # one by one, so that never two types of all are there
            flat[path] = flat[path].astype(dtype)
        return traverse_util.unflatten_dict(flat)
    return pretrained.load(init, _place(settings, folder), model, dtype, form)


def _place(settings: Settings, folder: pathlib.Path) -> str:
    """Returns where the weights of a pretrained M0 are.

    The run was perhaps begun in another working directory, so the whole path that it
    kept comes first. The path of the settings serves a run that was moved together
    with the weights.
    """
    kept = files.read_json(folder / "data" / "manifest.json")
    here = pretrained.place(settings.init)
    places = [kept.get("initial_weights", here), here]
    for place in places:
        if epath.Path(place).exists():
            return place
    remedy = "M1 and later models are in the run directory and need no M0."
    if settings.shape.adapters is not None:
        remedy = "M1 and later models are adapters beside M0, so they need it as well."
    raise ValueError(
        f"{' and '.join(dict.fromkeys(places))}: no such file or folder; expected "
        f"the weights of M0 (model.init={settings.init!r}). Put them back. {remedy}"
    )


def fixed(
    settings: Settings, folder: pathlib.Path, model: lm.Decoder
) -> tuple[dict, dict[str, str]]:
    """Returns what no training changes, in the compute type, and its digest.

    Both are empty without adapters. See `whole` for arguments and errors.
    """
    if model.config.adapters is None:
        return {}, {}
    params = whole(settings, folder, model, model.config.dtype)
    digests = checkpoint.array_digests(traverse_util.flatten_dict(params))
    text = json.dumps(digests, sort_keys=True)
    return params, {NAME: hashlib.sha256(text.encode()).hexdigest()}


def trained(settings: Settings, folder: pathlib.Path, model: lm.Decoder) -> dict:
    """Returns what training changes, as it is in M0: all of it, or new adapters.

    See `whole` for arguments and errors.
    """
    if model.config.adapters is None:
        return whole(settings, folder, model)

    def adapters(params):
        return lora.split(params)[1]

    return train.init_params(model, model.mesh, settings.seed, adapters)


def merged(
    settings: Settings, folder: pathlib.Path, model: lm.Decoder, params: dict
) -> dict:
    """Returns the float32 parameters of a model with its adapters added to them.

    Args:
      settings: of the run.
      folder: the run directory.
      model: the decoder on the devices of training.
      params: of the model; without adapters they are returned as they are.
    """
    options = model.config.adapters
    if options is None:
        return params
    fixed, adapters = lora.split(params)
    if model.config.dtype != "float32":  # the base that training reads is rounded to it
        fixed = whole(settings, folder, model)
    return lora.merged(lora.join(fixed, adapters), options)


def check(
    digests: Mapping[str, str], mine: Mapping[str, str], manifest: pathlib.Path
) -> None:
    """Checks that a model was trained on the base that this command has.

    Args:
      digests: of the model, from its manifest.
      mine: digest of the base that this command has, from `fixed`.
      manifest: for messages.

    Raises:
      ValueError: when the model was trained on another base.
    """
    if digests.get(NAME) != mine.get(NAME):
        raise ValueError(
            f"{manifest}: the adapters were trained on other weights of M0 than these; "
            "expected the same numbers in model.init (of a random M0, the same seed, "
            "version of JAX and kind of device). Put the weights of M0 back."
        )
