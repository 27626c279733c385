"""Finished models, read from their folders: to train them, or only to sample."""

import pathlib
from collections.abc import Callable
from typing import Any

import jax

from stepjax.lm import checkpoint, hosts, lora, pieces, sharding, weights
from stepjax.lm import model as lm
from stepjax.run import base, manifest, stage

_DIVERGED = "Its training has diverged, so lower the learning rate and repeat it."


def read(
    folder: pathlib.Path, load: Callable[[pathlib.Path, dict[str, str]], Any]
) -> tuple[Any, dict[str, str]]:
    """Returns (what is loaded of a finished model, the digests of its manifest).

    Args:
      folder: of the model.
      load: (directory of its arrays, their digests) → what is loaded; see
        `checkpoint.load_tree` for its errors.

    Raises:
      ValueError: when the model is not finished.
      Damaged: when it is damaged.
      OSError: when one of its files cannot be read, which does not mean that.
    """
    path = folder / "manifest.json"
    if not path.exists():
        raise ValueError(
            f"{folder} is not finished; expected an earlier stage to have made it. "
            "Run `stepjax run` on the same --workdir."
        )
    try:
        digests = manifest.read(path)["arrays"]
        own = {k: v for k, v in digests.items() if k != base.NAME}
        return load(folder / "params", own), digests
    except (ValueError, LookupError) as error:
        reason = str(error).partition("; expected")[0]
        raise stage.Damaged(
            f"{reason}; expected the model as it was saved. `stepjax run` on "
            "the same --workdir makes it again.",
            path,
        ) from error


def like(model: lm.Decoder) -> dict:
    """Returns shapes and shardings of what the folder of a model holds.

    Args:
      model: the decoder on the devices of training.
    """
    boxed = lm.abstract_params(model)
    every = jax.tree.map(
        lambda x, own: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=own),
        lm.unboxed(boxed),
        sharding.param_shardings(model.mesh, boxed),
    )
    return lora.split(every)[1]


def in_pieces(model: lm.Decoder) -> bool:
    """Whether models are read piece by piece to sample from them, see `sampled`.

    Otherwise they are read as training reads them, and copied. That is so on several
    hosts, whose devices have the room because they train; and with adapters, which are
    small, and whose base is held in the compute type anyway.

    Args:
      model: the decoder.
    """
    return hosts.count() == 1 and model.config.adapters is None


def sampled(folder: pathlib.Path, model: lm.Decoder, form: str) -> Any:
    """Returns a finished model to sample from, as `Run.for_sampling` does.

    Never more than one piece of it is on the devices in float32, see `lm.pieces`. The
    host holds the largest array, and while it is unpacked up to twice its bytes.

    Args:
      folder: of the model, see `read` for errors.
      model: the decoder on the devices of sampling, without adapters.
      form: "full" or "int8", as search.weights says.

    Raises:
      ValueError: also when its parameters are not finite.
    """
    config = model.config
    shardings = sharding.param_shardings(model.mesh, lm.abstract_params(model))
    holders = pieces.holders(config, shardings, config.dtype, form)

    def load(path, digests):
        return checkpoint.load_pieces(path, holders, digests)

    (params, counts), _ = read(folder, load)
    weights.refuse(counts, config, "the model", _DIVERGED)
    return params


def check_finite(params: Any, config: lm.ModelConfig, origin: str) -> None:
    """Raises ValueError when parameters, or adapters beside them, are not finite.

    Args:
      params: of a decoder.
      config: of the decoder.
      origin: what has them, for people.
    """
    weights.check_finite(params, config, origin, _DIVERGED)
    lora.check_finite(params, origin, _DIVERGED)
