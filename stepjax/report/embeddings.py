"""Prompts and responses of a run's data as vectors of one of its models.

A vector is the mean of the hidden states after the last layer that predict the tokens
of the text: of the prompt behind its first token, and of the response behind the whole
prompt. So the model itself says what is alike; no other model is needed.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from stepjax import forest, records
from stepjax.lm import sharding, train
from stepjax.pairs import Pair
from stepjax.run.run import Run

MOST = 200  # texts of each kind of data
_ROWS = 4  # of `train.row_length` tokens at once, at least


class Text(NamedTuple):
    """One row of data.

    Attributes:
      kind: "IFT", "EFT", or "pairs of M1" and so on.
      prompt: its ids; at least two.
      response: ids that follow: a solution, a judgment, or the chosen step of a pair.
    """

    kind: str
    prompt: tuple[int, ...]
    response: tuple[int, ...]


def texts(run: Run, number: int) -> list[Text]:
    """Returns texts of IFT, EFT and the pairs that M`number` and those before it made.

    At most `MOST` of each kind, drawn with the run's seed, in their order. Texts longer
    than `train.row_length`, which are not trained on either, are passed over.

    Args:
      run: the run.
      number: of the model.
    """
    codec, judgments = run.codec, run.kind.judgments
    kinds: dict[str, list[tuple]] = {"IFT": [], "EFT": []}
    for row in run.dir.read("ift", records.Solution):
        prompt, steps = codec.solution(row)
        kinds["IFT"].append((prompt, sum(steps, ())))
    for row in run.dir.read("eft", judgments.record):
        kinds["EFT"].append(judgments.example(codec, row)[:2])
    for model in range(1, number + 1):
        path = run.dir.model(model) / "pairs.jsonl"
        if path.exists():
            pairs = records.read_jsonl(path, Pair)
            kinds[f"pairs of M{model}"] = [(p.context_ids, p.chosen_ids) for p in pairs]
    found = []
    for place, (kind, rows) in enumerate(kinds.items()):
        fitting = [
            Text(kind, tuple(prompt), tuple(response))
            for prompt, response in rows
            if len(prompt) > 1 and response
            if len(prompt) + len(response) <= run.settings.train.row_length
        ]
        rng = np.random.default_rng([run.settings.seed, place])
        drawn = rng.permutation(len(fitting))[:MOST]
        found += [fitting[at] for at in sorted(drawn)]
    return found


def vectors(run: Run, params: Any, rows: Sequence[Text]) -> np.ndarray:
    """Returns the vectors of prompts and responses, [2, N, E] float32.

    Args:
      run: the run.
      params: of the model, from `Run.params`.
      rows: N texts.
    """

    @jax.jit
    def sums(params, batch):
        return _sums(run.model, params, batch, 2 * len(rows))

    length, multiple = run.settings.train.row_length, sharding.row_multiple(run.mesh)
    size = -(-_ROWS // multiple) * multiple
    trees = [_tree(row, 2 * at) for at, row in enumerate(rows)]
    count = forest.size(trees, length)[0]
    packed = forest.pack(trees, length, rows=-(-count // size) * size)
    found = np.zeros(())
    batches = range(0, len(packed.tokens), size)
    with run.monitor.progress("data map", len(batches), "batch") as advance:
        for at in batches:
            part = jax.tree.map(lambda x, at=at: x[None, at : at + size], packed)
            found = found + np.asarray(sums(params, train.put_batch(run.mesh, part)))
            advance(1, "")
    return found.reshape(len(rows), 2, -1).swapaxes(0, 1)


def _tree(row: Text, segment: int) -> forest.Tree:
    """Returns a text as a tree, whose weights take the mean of prompt and response."""
    counts = len(row.prompt) - 1, len(row.response)
    weights = [0.0, *(1 / count for count in counts for _ in range(count))]
    tree = forest.path_tree(row.prompt + row.response, weights)
    return tree._replace(segment=np.repeat(np.int32([segment, segment + 1]), counts))


def _sums(model, params, batch: forest.Rows, segments: int) -> jax.Array:
    """Returns the weighted sum of the states of each segment, [segments, E] float32."""
    rows = jax.tree.map(lambda x: x[0], batch)
    states = train.parent_states(model, params, rows).astype(jnp.float32)
    weight = rows.weight[..., None]
    weighed = jnp.where(weight > 0, states * weight, 0.0)
    return jax.ops.segment_sum(
        weighed.reshape(-1, states.shape[-1]),
        rows.segment.reshape(-1),
        num_segments=segments,
    )
