"""The process reward model (PRM): is a step right, given the steps before it?

The paper (section 3.1) trains it on PRM800K in the format of OpenR (arXiv 2410.09671):
problem and steps, and after each step a label, "+" or "-". Here the labels are branches
of a forest row: each hangs from the newline that ends its step, so a label is never
part of the context of a later step, and one pass reads the whole solution.

One function, `context`, says where a label is read: right after the ids that it
returns. `tree` trains the label there with the loss of SFT, and `make_scorer` reads its
probability there behind cached contexts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stepjax import forest
from stepjax.codec import Codec
from stepjax.controls import IsRight
from stepjax.lm.sampler import Sampler
from stepjax.records import StepLabels

GOOD, BAD = "+", "-"
Ids = tuple[int, ...]


class Solving(NamedTuple):
    """A problem and the ids of the steps so far."""

    problem: str
    steps: tuple[Ids, ...]


# ({slot: steps so far}, {slot: candidates for the next step}) → {slot: probability of
# "+" after each candidate, float64}.
Scorer = Callable[
    [Mapping[int, Solving], Mapping[int, Sequence[Ids]]], dict[int, np.ndarray]
]


def context(codec: Codec, solving: Solving, prompt: str = "") -> Ids:
    """Returns the ids after which the label of the last step is read.

    Args:
      codec: tokenizer and templates.
      solving: the problem and its steps; the label of the last step follows.
      prompt: template with {problem}, ends with a newline; "" takes the solver's.
    """
    lines = (codec.as_line(step) for step in solving.steps)
    return sum(lines, codec.prompt(prompt or codec.templates.solve, solving.problem))


def label_ids(codec: Codec) -> tuple[Ids, Ids]:
    """Returns the ids of "+" and of "-" at the start of a line.

    Raises:
      ValueError: when the ids of one begin with the ids of the other.
    """
    good, bad = codec.line(GOOD), codec.line(BAD)
    short = min(len(good), len(bad))
    if good[:short] == bad[:short]:
        raise ValueError(
            f"the tokenizer writes {GOOD!r} as {good} and {BAD!r} as {bad}; expected "
            "ids that differ, so that neither text begins with the other. Use another "
            "tokenizer."
        )
    return good, bad


def tree(
    codec: Codec, row: StepLabels, prompt: str = "", language_weight: float = 0.0
) -> forest.Tree:
    """Returns a labelled solution as a tree: the solution, and labels as branches.

    A label p gives "+" the weight p and "-" the weight 1 - p, so that the loss of SFT
    is the cross-entropy of the label. A weight of 0 makes no branch.

    Args:
      codec: tokenizer and templates.
      row: the labelled solution; steps after its last label are left out.
      prompt: see `context`.
      language_weight: weight of each token of a step, times the label of the step, so
        that the PRM also learns to write right steps, as the verifiers of arXiv
        2110.14168 do. The labels alone teach one bit per step. 0: the labels alone.
    """
    labels = label_ids(codec)
    tokens: list[int] = []
    parent: list[int] = []
    position: list[int] = []
    end: list[int] = []
    scored: list[int] = []
    weights: list[float] = []

    def lay(ids: Sequence[int], after: int, weight: float = 0.0) -> range:
        """Lays a path of tokens behind token `after`; returns their indices."""
        path = range(len(tokens), len(tokens) + len(ids))
        depth = position[after] + 1 if after >= 0 else 0
        tokens.extend(ids)
        parent.extend((after, *path[:-1]))
        position.extend(range(depth, depth + len(ids)))
        end.extend([path.stop] * len(ids))
        if weight:
            scored.extend(path)
            weights.extend([weight] * len(ids))
        return path

    trunk = list(lay(context(codec, Solving(row.problem, ()), prompt), -1))
    last = max(n for n, label in enumerate(row.labels) if label is not None)
    for text, label in zip(row.steps[: last + 1], row.labels, strict=False):
        step = codec.as_line(codec.step(text))
        trunk += lay(step, trunk[-1], language_weight * (label or 0))
        if label is not None:
            for ids, weight in zip(labels, (label, 1 - label), strict=True):
                if weight:
                    lay(ids, trunk[-1], weight)
    ends = np.asarray(end, np.int32)
    ends[trunk] = len(tokens)
    return forest.Tree(
        np.asarray(tokens, np.int32),
        np.asarray(parent, np.int32),
        np.asarray(position, np.int32),
        ends,
        np.asarray(scored, np.int32),
        np.zeros(len(scored), np.int32),
        np.asarray(weights, np.float32),
    )


def make_scorer(
    sampler: Sampler, codec: Codec, *, width: int, prompt: str = ""
) -> Scorer:
    """Returns a function that reads the probability of "+" after candidate steps.

    Args:
      sampler: the PRM and its context caches.
      codec: tokenizer and templates.
      width: most candidates per problem.
      prompt: see `context`.

    Returns:
      A `Scorer`. The two labels share one reading of their candidate; the probability
      of "+" is that of the two labels alone, which sum to 1.
    """
    labels = label_ids(codec)

    def score(solving, candidates):
        sampler.hold({slot: context(codec, solving[slot], prompt) for slot in solving})
        slots = list(solving)
        sequences, scored = [], np.zeros((len(slots), 2 * width), np.int32)
        for group, slot in enumerate(slots):
            lines = [codec.as_line(ids) for ids in candidates[slot]]
            rows = [line + label for line in lines for label in labels]
            scored[group, : len(rows)] = [len(x) for _ in lines for x in labels]
            sequences.append(rows + [()] * (2 * width - len(rows)))
        logps = sampler.score(
            sequences,
            scored,
            vocab=codec.tokenizer.vocab_size,
            slots=slots,
            share=(2,),
        )
        odds = (logps[:, ::2] - logps[:, 1::2]).astype(np.float64)
        probabilities = 1 / (1 + np.exp(-odds))
        return {
            slot: probabilities[group, : len(candidates[slot])]
            for group, slot in enumerate(slots)
        }

    return score


def gold_scorer(is_right: IsRight, codec: Codec) -> Scorer:
    """Returns the gold in place of a PRM: 1 after a right step, 0 after a wrong one."""

    def score(solving, candidates):
        result = {}
        for slot, own in candidates.items():
            problem, so_far = solving[slot]
            steps = [codec.text(ids) for ids in so_far]
            right = [is_right(problem, steps, codec.text(ids)) for ids in own]
            result[slot] = np.array(right, bool).astype(np.float64)
        return result

    return score


def read(
    score: Scorer,
    codec: Codec,
    rows: Sequence[StepLabels],
    *,
    slots: int,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[list[float]]:
    """Returns the PRM's probability of every step of every row.

    Args:
      score: from `make_scorer`; its caches have room for every row.
      codec: tokenizer and templates.
      rows: solutions; their labels are not read.
      slots: rows that are read side by side.
      on_done: called with the number of rows that were finished.
    """
    result: list[list[float]] = []
    for at in range(0, len(rows), slots):
        batch = rows[at : at + slots]
        steps = [tuple(codec.step(text) for text in row.steps) for row in batch]
        found: list[list[float]] = [[] for _ in batch]
        for number in range(max(map(len, steps))):
            going = [n for n, own in enumerate(steps) if number < len(own)]
            solving = {n: Solving(batch[n].problem, steps[n][:number]) for n in going}
            answers = score(solving, {n: [steps[n][number]] for n in going})
            for n in going:
                found[n].append(float(answers[n][0]))
        result += found
        on_done(len(batch))
    return result


# What a PRM is worth.


def metrics(
    rows: Sequence[StepLabels], probabilities: Sequence[Sequence[float]]
) -> dict[str, float | int | None]:
    """Measures a PRM on labelled steps.

    Args:
      rows: the labels; one above 0.5 says right, any other number wrong.
      probabilities: the PRM's, from `read`.

    Returns:
      "steps" (with a label), "right" (share of them), "accuracy" (a probability above
      0.5 says right), and "auc", the area under the ROC curve: the chance that a right
      step has a higher probability than a wrong one, equal ones count half. None where
      there is no step, or, for the area, only one kind.
    """
    pairs = [
        (label > 0.5, p)
        for row, own in zip(rows, probabilities, strict=True)
        for label, p in zip(row.labels, own, strict=True)
        if label is not None
    ]
    right = np.array([label for label, _ in pairs], bool)
    scores = np.array([p for _, p in pairs], float)
    if not len(pairs):
        return {"steps": 0, "right": None, "accuracy": None, "auc": None}
    return {
        "steps": len(pairs),
        "right": float(right.mean()),
        "accuracy": float(((scores > 0.5) == right).mean()),
        "auc": auc(right, scores),
    }


def auc(right: np.ndarray, scores: np.ndarray) -> float | None:
    """Returns the area under the ROC curve, or None where only one kind is there.

    It is the Mann-Whitney U of the positive items, divided by the number of pairs of a
    positive and a negative item.

    Args:
      right: which items are positive, [n] bool.
      scores: higher says positive, [n].
    """
    from scipy import stats  # slow to import, and only needed here

    if right.all() or not right.any():
        return None
    above = stats.mannwhitneyu(scores[right], scores[~right], method="asymptotic")
    return float(above.statistic / (right.sum() * (~right).sum()))


def first_error_metrics(
    rows: Sequence[StepLabels],
    probabilities: Sequence[Sequence[float]],
    threshold: float = 0.5,
) -> dict[str, float | int | None]:
    """Measures how well a PRM finds the first wrong step (ProcessBench).

    The PRM names the first step whose probability is at most the threshold, or none.
    ProcessBench (arXiv 2412.06559) takes the accuracy on solutions with an error, that
    on solutions without one, and their harmonic mean, F1.

    Args:
      rows: solutions whose first label of at most 0.5 is at the first wrong step.
      probabilities: the PRM's, from `read`.
      threshold: see above.

    Returns:
      "wrong", "right" (numbers of solutions), "wrong_accuracy", "right_accuracy" and
      "f1"; None where there are no such solutions.
    """
    hits: dict[bool, list[bool]] = {True: [], False: []}
    for row, own in zip(rows, probabilities, strict=True):
        labels = [1.0 if label is None else label for label in row.labels]
        truth = _first(label <= 0.5 for label in labels)
        hits[truth is None].append(_first(p <= threshold for p in own) == truth)
    shares = {k: sum(v) / len(v) if v else None for k, v in hits.items()}
    wrong, right = shares[False], shares[True]
    f1 = None
    if wrong is not None and right is not None:
        f1 = 2 * wrong * right / (wrong + right) if wrong + right else 0.0
    return {
        "wrong": len(hits[False]),
        "right": len(hits[True]),
        "wrong_accuracy": wrong,
        "right_accuracy": right,
        "f1": f1,
    }


def _first(flags) -> int | None:
    """Returns the index of the first true flag, or None."""
    return next((n for n, flag in enumerate(flags) if flag), None)
