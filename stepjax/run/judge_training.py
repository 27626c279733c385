"""What step-DPO trains the judge on, beside the pairs of steps.

`with_replay` adds EFT rows to every update (`judge.keep`). `pairs_of_judgments` makes
preferences between explanations of a search (`judge.learn`), and `file` says where they
are.
"""

import pathlib
from collections.abc import Callable, Sequence

from stepjax import dpo
from stepjax.judgment_pairs import JudgmentPair, judgment_pairs
from stepjax.run.manifest import file_digest
from stepjax.run.run import Run
from stepjax.trajectory import State

NAME = "judgments"  # of the file, and of the input of a stage


def with_replay(
    run: Run, batches: dpo.Batches, seed: int
) -> tuple[dpo.Batches, Callable[[int], list[str]]]:
    """Returns the batches with EFT rows if `judge.keep` asks for them, and their names.

    Args:
      run: the run.
      batches: of the pairs.
      seed: of the draws.

    Returns:
      (batches, number of an update → names of its EFT rows).

    Raises:
      ValueError: when there are no EFT rows.
    """
    keep, size = run.settings.judge.keep, run.settings.dpo.batch_size
    if not keep:
        return batches, lambda step: []
    trees = run.sft_examples.trees["eft"]
    if not trees:
        raise ValueError(
            f"judge.keep={keep} with no EFT rows; expected at least one. Set it to 0, "
            "or give the run EFT rows."
        )
    drawn = dpo.replay_order(len(trees), size, seed=seed, updates=len(batches))
    mixed = dpo.with_replay(
        batches,
        trees,
        mesh=run.mesh,
        batch_size=size,
        row_length=run.settings.train.row_length,
        seed=seed,
    )
    return mixed, lambda step: [trees.id(place) for place in drawn[step].tolist()]


def pairs_of_judgments(
    run: Run, states: Sequence[State], most: int
) -> list[JudgmentPair] | None:
    """Returns preferences between judgments of a search; None without `judge.learn`.

    Args:
      run: the run.
      states: the closed searches.
      most: how many are kept at most; as many as there are pairs of steps, so that
        these stay half of what is trained on.
    """
    learn = run.settings.judge.learn
    if learn == "none":
        return None
    return judgment_pairs(
        states,
        run.codec,
        run.kind.judgments,
        learn=learn,
        is_right=run.kind.is_right,
        most=most,
        seed=run.settings.seed,
    )


def file(
    run: Run, number: int
) -> tuple[list[tuple[pathlib.Path, type]], dict[str, str]]:
    """Returns the preferences between judgments of M`number`, and their digest.

    Returns:
      (the file and the type of its rows, name → digest of the file); both are empty
      without `judge.learn`.
    """
    if run.settings.judge.learn == "none":
        return [], {}
    path = run.dir.model(number) / f"{NAME}.jsonl"
    return [(path, JudgmentPair)], {NAME: file_digest(path)}
