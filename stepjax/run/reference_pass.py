"""Log-probabilities of the reference model, for all batches before step-DPO begins."""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from stepjax import dpo, interrupts
from stepjax.run.journal import Row, of_rows
from stepjax.run.run import Run


def fill(
    run: Run,
    params: Any,
    batches: Sequence[dpo.Batch],
    model: str,
    origin: Mapping[str, str],
) -> dpo.Batches:
    """Returns the batches with the reference's log-probabilities filled in.

    They are kept as they come, so that the same command goes on after a kill.

    Args:
      run: the run.
      params: of the reference, which is the model before this one.
      batches: from `dpo.make_batches`.
      model: name of the model that is made, e.g. "M2".
      origin: what decides the batches, by name: digests of files, and settings. The
        first batch is also compared, so that other code for batches is seen.

    Raises:
      interrupts.Stopped: a signal asked to stop; what was computed is saved.
    """
    folder = run.dir.path / model / "train"
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(f"{run.model.config}".encode())
    for leaf in jax.tree.leaves(batches[0]):
        digest.update(np.ascontiguousarray(leaf))
    inputs = dict(origin) | {"first batch and model": digest.hexdigest()}
    journal = of_rows(folder / "reference.jsonl", inputs, run.monitor.say)
    done = next(n for n in itertools.count() if n not in journal.closed)
    found = [np.array(journal.closed[n].found, np.float32) for n in range(done)]
    name = f"{model} reference"
    with run.monitor.progress(name, len(batches), "batch", done) as advance:

        def on_batch(values: np.ndarray) -> None:
            nonlocal done
            journal.add([Row(done, values.tolist())], {})
            advance(1)
            done += 1
            if done < len(batches):
                interrupts.check(
                    f"{done} of {len(batches)} batches of the reference are saved"
                )

        return dpo.with_reference(run.model, params, batches, run.mesh, on_batch, found)
