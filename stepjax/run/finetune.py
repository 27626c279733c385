"""One phase of supervised fine-tuning on the devices of a run."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from stepjax import sft
from stepjax.row_trees import RowTrees, SharedTrees
from stepjax.run.run import Run


def fit_phase(
    run: Run,
    params: Any,
    phase: sft.Phase,
    trees: Mapping[str, RowTrees | SharedTrees],
    *,
    model: str,
    order: int,
    folder: pathlib.Path,
    keep_last: bool = False,
    plain: Mapping[str, np.ndarray] | None = None,
) -> tuple[Any, int]:
    """Trains a model for one phase, going on from the last saved state if any.

    Args:
      run: the run.
      params: where training starts; they are donated.
      phase: what the batches hold, and when the phase ends.
      trees: "ift" and "eft" → the rows to train on, see `sft.examples`.
      model: name of the model that is made.
      order: number of the phase, from which its shuffles are drawn.
      folder: where training states are kept.
      keep_last: also save the last state, because another phase follows.
      plain: see `sft.Examples`; with it, the metrics have a tree_token_ratio.

    Returns:
      (parameters, updates done).
    """
    options = run.settings.train
    sizes = {name: len(rows) for name, rows in trees.items()}
    rows = sft.rows_function(phase, order, sizes, run.settings.seed)

    def tokens_at(step: int) -> tuple[int, int]:
        places = rows(step)
        return (
            sum(int(plain[name][place]) for name, place in places),
            sum(int(trees[name].sizes[place, 0]) for name, place in places),
        )

    return run.fit(
        params,
        name=f"sft/{phase.name}",
        model=model,
        loss=functools.partial(sft.loss, model=run.model),
        batch_at=sft.batch_function(
            phase,
            order,
            trees,
            mesh=run.mesh,
            row_length=options.row_length,
            micro_batches=options.micro_batches,
            seed=run.settings.seed,
        ),
        steps=sft.phase_steps(phase, sizes),
        optimizer=phase.optimizer,
        folder=folder,
        rows_at=lambda step: [trees[name].id(place) for name, place in rows(step)],
        stop_loss=phase.stop_loss,
        keep_last=keep_last,
        tokens_at=tokens_at if plain else None,
    )
