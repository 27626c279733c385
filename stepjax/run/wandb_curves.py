"""The numbers of a run in Weights & Biases, beside TensorBoard (setting `wandb`)."""

import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

from stepjax import own_files
from stepjax.lm import files

_ID = "wandb.txt"  # in the run directory: the id of the run over there


def check(project: str) -> None:
    """Raises ValueError when numbers are to go there and the package is not installed.

    Args:
      project: the setting; "" for none.
    """
    try:
        if project:
            import wandb  # noqa: F401
    except ImportError as error:
        reason = own_files.missing_package(error) or f"cannot import wandb: {error}."
        raise ValueError(f"wandb={project!r} {reason} Or set wandb=''.") from error


class Curves:
    """A run in Weights & Biases; the same one when a stepjax run goes on."""

    def __init__(
        self, project: str, workdir: pathlib.Path, settings: Mapping[str, Any]
    ):
        """Begins or resumes it.

        Args:
          project: of the account whose key wandb knows (`wandb login`).
          workdir: the run directory, whose name it gets.
          settings: of the run, on one level.
        """
        import wandb

        path = workdir / _ID
        if not path.exists():
            with files.replacing(path) as file:
                file.write(uuid.uuid4().hex[:16] + "\n")
        self._run = wandb.init(
            project=project,
            name=workdir.resolve().name,
            id=path.read_text("utf-8").strip(),
            resume="allow",
            dir=str(workdir),
            config=dict(settings),
        )
        self._places: set[str] = set()

    def log(self, place: str, step: int, numbers: Mapping[str, float]) -> None:
        """Adds a point to each of some curves.

        Args:
          place: what their names begin with, e.g. "dpo/M2".
          step: where the points are; each place counts for itself.
          numbers: name → value.
        """
        if place not in self._places:
            self._places.add(place)
            self._run.define_metric(f"{place}/step", hidden=True)
            self._run.define_metric(f"{place}/*", step_metric=f"{place}/step")
        points = {f"{place}/{name}": value for name, value in numbers.items()}
        self._run.log(points | {f"{place}/step": step})

    def close(self) -> None:
        """Sends what has not been sent."""
        self._run.finish()
