"""What a run says first: where it stands, its devices, its model, its data."""

import pathlib

import jax

from stepjax.lm import files, lora
from stepjax.lm import model as lm
from stepjax.settings import Settings


def place_in(path: pathlib.Path, settings: Settings, is_new: bool) -> str:
    """Returns "new", or the last stage that was done, as "goes on after M2 search".

    Args:
      path: the run directory.
      settings: of the run.
      is_new: whether the directory was made just now.
    """
    if is_new:
        return "new"
    stages = {"M1 sft": "M1/manifest.json"}
    for number in range(1, settings.iterations + 1):
        made = f"M{number + 1}/manifest.json"
        if settings.improve_by == "sft":
            stages[f"M{number + 1} sft"] = made
        else:
            stages[f"M{number} search"] = f"M{number}/search.json"
            stages[f"M{number + 1} dpo"] = made
    done = ""
    for name, manifest in stages.items():
        if not (path / manifest).exists():
            return f"goes on after {done}" if done else "goes on, no model made yet"
        done = name
    return "all models are there"


def lines(path: pathlib.Path, place: str, model: lm.Decoder, init: str) -> list[str]:
    """Returns what a run says when it is ready, one fact per line.

    Args:
      path: the run directory, with its data.
      place: from `place_in`.
      model: the decoder on the devices of training.
      init: where M0 comes from, `model.init`.
    """
    shape = model.config
    fixed, count = lora.counts(lm.unboxed(lm.abstract_params(model)))
    adapters = ""
    if shape.adapters is not None:
        adapters = (
            f"; of these, {count:,} are trained, in adapters of rank "
            f"{shape.adapters.rank} (LoRA)"
        )
    mesh = " × ".join(f"{size} {name}" for name, size in model.mesh.shape.items())
    devices = f"{jax.device_count()} × {jax.devices()[0].device_kind}"
    counts = files.read_json(path / "data" / "manifest.json")["counts"]
    data = ", ".join(f"{count} {name}" for name, count in counts.items())
    return [
        f"run: {path}, {place}",
        f"devices: {devices}, as a mesh of {mesh}; JAX {jax.__version__}",
        f"model: {init}, {fixed + count:,} parameters, {shape.num_layers} layers of "
        f"{shape.hidden_size}, computed in {shape.dtype}{adapters}",
        f"data: {data} (rows)",
    ]
