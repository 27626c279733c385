"""What a run says first: where it stands, its model, its data."""

import math
import pathlib

import jax

from stepjax.lm import files
from stepjax.lm import model as lm


def place_in(path: pathlib.Path, iterations: int, is_new: bool) -> str:
    """Returns "new", or with what a run goes on, e.g. "goes on at M2 search".

    Args:
      path: the run directory.
      iterations: rounds of search and step-DPO.
      is_new: whether the directory was made just now.
    """
    if is_new:
        return "new"
    stages = {"data": "data/manifest.json", "M1 sft": "M1/manifest.json"}
    for number in range(1, iterations + 1):
        if files.read_json(path / "config.json")["improve_by"] == "sft":
            stages[f"M{number + 1} sft"] = f"M{number + 1}/manifest.json"
            continue
        stages[f"M{number} search"] = f"M{number}/search.json"
        stages[f"M{number + 1} dpo"] = f"M{number + 1}/manifest.json"
    for name, manifest in stages.items():
        if not (path / manifest).exists():
            return f"goes on at {name}"
    last = f"M{iterations + 1}"
    measured = (path / "eval" / f"{last}_test_greedy.json").exists()
    return "finished" if measured else f"goes on at {last} eval"


def of_model(shape: lm.ModelConfig, model: lm.Decoder, init: str) -> list[str]:
    """Returns lines about the devices and the model.

    Args:
      shape: of the model.
      model: the decoder on the devices of training.
      init: where M0 comes from, `model.init`.
    """
    weights = jax.tree.leaves(lm.unboxed(lm.abstract_params(model)))
    count = sum(math.prod(x.shape) for x in weights)
    mesh = " × ".join(f"{size} {name}" for name, size in model.mesh.shape.items())
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    return [
        f"devices: {devices}, as a mesh of {mesh}; JAX {jax.__version__}",
        f"model: {init}, {count:,} parameters, {shape.num_layers} layers of "
        f"{shape.hidden_size}, computes in {shape.dtype}",
    ]


def of_data(path: pathlib.Path) -> str:
    """Returns a line about the data of a run that are prepared.

    Args:
      path: the run directory.
    """
    counts = files.read_json(path / "data" / "manifest.json")["counts"]
    parts = [f"{count} {name}" for name, count in counts.items()]
    return f"data: {', '.join(parts)} rows"
