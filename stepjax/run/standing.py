"""Which finished stages were made from what is there now.

A stage names each of its inputs with a digest, see `stepjax.run.manifest`. When an
input was made again and came out otherwise, the stage no longer stands.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from stepjax.run import manifest as manifests
from stepjax.run import redo
from stepjax.run.redo import Made


def inputs_of(folder: pathlib.Path, manifest: dict[str, Any]) -> dict[str, str]:
    """Returns the inputs of a stage; name → digest.

    Earlier versions named a model by the digest of its manifest. As long as that file
    is there, such an input has the digest that the model has today.

    Args:
      folder: the run directory.
      manifest: of the stage.
    """
    inputs = dict(manifest["inputs"])
    for name, digest in inputs.items():
        path = _model(folder, name)
        if path.is_file() and manifests.file_digest(path) == digest:
            inputs[name] = manifests.model_digest(path)
    return inputs


def _model(folder: pathlib.Path, name: str) -> pathlib.Path:
    """Returns where the manifest of an input is, if the input is a model."""
    place = folder / "init" / name if name in ("policy", "prm") else folder / name
    return place / "manifest.json"


def _now(
    folder: pathlib.Path, name: str, manifest: pathlib.Path, made: dict[str, str]
) -> str | None:
    """Returns the present digest of an input of a stage; None when it is not there.

    Args:
      folder: the run directory.
      name: of the input.
      manifest: of the stage.
      made: file in the run directory → digest, of all finished stages. A file that no
        longer has that digest is damaged, and its own stage sees to that.
    """
    if name in ("policy", "prm") or name[:1] == "M" and name[1:].isdecimal():
        path = _model(folder, name)
        try:
            return manifests.model_digest(path) if path.is_file() else None
        except ValueError:
            return None  # it is damaged, and is made again
    if name not in ("pairs", "judgments"):
        return made.get(f"data/{name}.jsonl")
    if manifest.parent.name == "init":
        return made.get("init/pairs.jsonl")
    return made.get(f"M{int(manifest.parent.name[1:]) - 1}/{name}.jsonl")


def unlike(folder: pathlib.Path) -> tuple[list[Made], str]:
    """Returns the stages that were made from something else than what is there.

    Args:
      folder: the run directory.

    Returns:
      (the first of them and all stages after it, which input differs in words).
    """
    known = list(finished(folder))
    made = {
        os.path.normpath(stage.paths[0].parent.relative_to(folder) / name): digest
        for stage, manifest in known
        for name, digest in manifest["files"].items()
    }
    for stage, manifest in known:
        for name, digest in inputs_of(folder, manifest).items():
            now = _now(folder, name, stage.paths[0], made)
            if now is not None and now != digest:
                stages = redo.made(folder)
                rest = stages[stages.index(stage) :]
                return rest, f"{name} is not what {stage} was made from"
    return [], ""


def finished(folder: pathlib.Path) -> Iterator[tuple[Made, dict[str, Any]]]:
    """Yields the finished stages of a run and their manifests, in their order.

    Those whose manifests are damaged are passed over; they are done again.
    """
    for stage in redo.made(folder):
        path = stage.paths[0]
        if path.suffix == ".json" and ".damaged" not in path.name:
            with contextlib.suppress(ValueError):
                yield stage, manifests.read(path)


def refuse(folder: pathlib.Path, manifest: pathlib.Path, name: str) -> None:
    """Raises ValueError about a stage that was made from another input.

    Args:
      folder: the run directory.
      manifest: of the stage.
      name: of the input.
    """
    old, what = unlike(folder)
    if old:
        raise ValueError(refusal(folder, old, what))
    raise ValueError(
        f"{manifest}: {name} is not what this stage was made from; expected the input "
        f"that it names. Put that back, or delete {manifest} and run the same command "
        "again."
    )


def refusal(folder: pathlib.Path, old: Sequence[Made], what: str) -> str:
    """Returns which stages must go, why, and how.

    Args:
      folder: the run directory.
      old: from `unlike`, not empty.
      what: from `unlike`.
    """
    names, first = named(old), old[0]
    by = f"M{first.number}" if first.number else first.stage
    source = what.partition(" is not ")[0]
    kept = folder / source / "params.damaged"
    earlier = f", which is in {kept.parent}/*.damaged*" if kept.exists() else ""
    return (
        f"{folder}: {what}; expected the same {source}, bit for bit{earlier}. Put it "
        f"back, or add --redo={by} to delete {names} and make them again."
    )


def after(folder: pathlib.Path, manifest: pathlib.Path) -> list[Made]:
    """Returns the stages after one that have left files, in their order.

    Args:
      folder: the run directory.
      manifest: of the one stage.
    """
    order = [folder / own[0] for _, _, own in redo.places(folder)]
    if manifest not in order:
        return []  # it measures something
    place = order.index(manifest)
    keys = [(name, number) for name, number, _ in redo.places(folder)][place + 1 :]
    return [s for s in redo.made(folder) if (s.stage, s.number) in keys]


def named(stages: Sequence[Made]) -> str:
    """Returns the names of stages."""
    return ", ".join(map(str, stages))
