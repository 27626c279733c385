"""Why a loop gains or fails: quality of pairs, of judgments, and what training did.

Gold knowledge is used for reporting only; nothing here reaches a training stage.
"""

import collections
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from stepjax import dpo, judge
from stepjax.controls import IsRight
from stepjax.lm import model as lm
from stepjax.lm import train
from stepjax.pairs import Pair
from stepjax.trajectory import Expansion, State, Verdict, with_steps

Graded = Callable[[Sequence[Verdict], Sequence[bool]], list[bool]]
# (problem, steps so far, wrong candidate) → kind of its mistake.
Mistake = Callable[[str, Sequence[str], str], str | None]

COLLAPSE = 0.5  # nats per token that chosen steps may lose before we warn
RUNAWAY = 1.5  # times that steps may grow in one iteration before we warn


def pair_quality(
    pairs: Sequence[Pair], states: Mapping[str, State], is_right: IsRight
) -> dict[str, float]:
    """Returns what the preferences are worth.

    Args:
      pairs: preferences of one model.
      states: problem id → closed search that they came from.
      is_right: gold.

    Returns:
      Shares of the pairs: "pairs_right" (chosen right, rejected wrong),
      "pairs_reversed" (the other way round), "pairs_both_wrong", "pairs_both_right".
    """
    names = {
        (True, False): "pairs_right",
        (False, True): "pairs_reversed",
        (False, False): "pairs_both_wrong",
        (True, True): "pairs_both_right",
    }
    counts = dict.fromkeys(names.values(), 0)
    for pair in pairs:
        steps = [s.text for s in states[pair.problem_id].steps[: pair.step - 1]]
        sides = (is_right(pair.problem, steps, x) for x in (pair.chosen, pair.rejected))
        counts[names[tuple(sides)]] += 1
    return {name: count / len(pairs) for name, count in counts.items() if pairs}


def sampled_judgments(
    states: Sequence[State],
    is_right: IsRight,
    graded: Graded = judge.graded,
    mistake: Mistake | None = None,
) -> dict[str, float]:
    """Returns how often the judge is right about the model's own samples.

    With comparisons, every call with one right and one wrong candidate counts, so both
    orders count where both were asked. An unparsed verdict is wrong. Problems that the
    gold does not know are passed over.

    Args:
      states: closed searches.
      is_right: gold.
      graded: says which verdicts are right, see `judge.Judgments`.
      mistake: names the mistake of a wrong candidate; None gives no shares by mistake.

    Returns:
      "judge_sampled", the share that is right, which is absent where no call was
      graded, and "judge_sampled_count", the number of calls that were. With `mistake`,
      the same for the calls whose wrong candidate has a mistake KIND, as
      "judge_sampled_KIND" and "judge_sampled_KIND_count", and "sampled_KIND", the
      number of samples with it.
    """
    results: list[bool] = []
    by_kind: dict[str, list[bool]] = collections.defaultdict(list)
    samples: collections.Counter[str] = collections.Counter()
    for state, expansion, kept, right in graded_expansions(states, is_right):
        results += graded(expansion.verdicts, right)
        if mistake is None:
            continue
        for number, candidate in enumerate(expansion.candidates):
            if right[number]:
                samples["right"] += candidate.count
                continue
            kind = in_metrics(mistake(state.question.problem, kept, candidate.text))
            own = [v for v in expansion.verdicts if number in (v.a, v.b)]
            by_kind[kind] += graded(own, right)
            samples[kind] += candidate.count
    found = {"judge_sampled": results}
    found |= {f"judge_sampled_{kind}": by_kind[kind] for kind in sorted(by_kind)}
    metrics: dict[str, float] = {}
    for name, own in found.items():
        if own:
            metrics[name] = sum(own) / len(own)
        if own or name == "judge_sampled":
            metrics[f"{name}_count"] = len(own)
    return metrics | {f"sampled_{kind}": samples[kind] for kind in sorted(samples)}


def in_metrics(kind: str | None) -> str:
    """Returns the kind of a mistake as names of metrics have it: "ends_early"."""
    return str(kind).replace(" ", "_")


def expansions(states: Sequence[State], is_right: IsRight) -> dict[str, float]:
    """Returns how often a search had something to choose.

    Problems that the gold does not know are passed over.

    Args:
      states: closed searches.
      is_right: gold.

    Returns:
      Shares of the expansions: "expansions_right" (with a right candidate),
      "expansions_informative" (with a right and a wrong one). Shares of the problems:
      "problems_right_first" (the first expansion has a right candidate),
      "problems_right_last" (an expansion has a right candidate that ends the solution).
      Nothing where the gold knows none of the problems.
    """
    some, both = [], []
    first: dict[str, bool] = {}
    last: dict[str, bool] = {}
    for state, expansion, _, right in graded_expansions(states, is_right):
        name = state.question.id
        some.append(any(right))
        both.append(any(right) and not all(right))
        first.setdefault(name, any(right))
        ends = zip(expansion.candidates, right, strict=True)
        ended = any(good and candidate.finished for candidate, good in ends)
        last[name] = last.get(name, False) or ended
    if not some:
        return {}
    return {
        "expansions_right": sum(some) / len(some),
        "expansions_informative": sum(both) / len(both),
        "problems_right_first": sum(first.values()) / len(first),
        "problems_right_last": sum(last.values()) / len(last),
    }


def graded_expansions(
    states: Sequence[State], is_right: IsRight
) -> Iterator[tuple[State, Expansion, list[str], list[bool]]]:
    """Yields each expansion of known problems, with the steps before it, and its gold.

    The last item says whether each candidate is right.
    """
    for state in states:
        problem = state.question.problem
        if is_right(problem, (), "") is None:  # the gold does not know the problem
            continue
        for steps, expansion in with_steps(state):
            kept = [step.text for step in steps]
            right = [is_right(problem, kept, c.text) for c in expansion.candidates]
            yield state, expansion, kept, right


def drift(
    model: lm.Decoder, before: Any, after: Any, batches: Sequence[dpo.Batch], mesh: Mesh
) -> dict[str, float]:
    """Returns how far training on pairs moved a model.

    Args:
      model: the decoder.
      before: parameters that made the pairs, the reference.
      after: parameters trained on them.
      batches: the pairs, from `dpo.make_batches`.
      mesh: devices.

    Returns:
      "kl": exact KL(after || before) in nats per token, mean over the tokens of both
      steps; "chosen_logp_before", "chosen_logp_after", "rejected_logp_before",
      "rejected_logp_after": mean log-probability of a step in nats;
      "chosen_tokens", "rejected_tokens": mean length of a step.
    """

    @jax.jit
    def sums(before, after, batch):
        parts = jax.lax.map(lambda x: _drift_sums(model, before, after, x), batch)
        return jax.tree.map(lambda x: x.sum(0), parts)

    total = None
    for batch in batches:
        part = jax.device_get(sums(before, after, train.put_batch(mesh, batch)))
        total = part if total is None else jax.tree.map(np.add, total, part)
    kl, tokens, pairs = (float(total.pop(name)) for name in ("kl", "tokens", "pairs"))
    return {"kl": kl / tokens} | {k: float(v) / pairs for k, v in total.items()}


def _drift_sums(model, before, after, batch: dpo.Batch) -> dict[str, jax.Array]:
    rows, lengths = batch.rows, batch.lengths
    old, new = (train.parent_states(model, p, rows) for p in (before, after))

    def divergence(states):  # of one scored token per row
        old, new = states
        was = jax.nn.log_softmax(lm.logits(before, old), -1)
        now = jax.nn.log_softmax(lm.logits(after, new), -1)
        return (jnp.exp(now) * (now - was)).sum(-1)  # [R]

    kl = jax.lax.map(divergence, (old.swapaxes(0, 1), new.swapaxes(0, 1)))  # [S, R]
    real = (rows.weight > 0).T
    result = {
        "kl": jnp.where(real, kl, 0.0).sum(),
        "tokens": real.sum(),
        "pairs": (lengths[0::2] > 0).sum(),
    }
    for name, params, states in (("before", before, old), ("after", after, new)):
        tokens = train.state_logps(model, params, rows, states)
        logps = train.segment_sums(tokens, rows, lengths.shape[0])
        for side, offset in (("chosen", 0), ("rejected", 1)):
            result[f"{side}_logp_{name}"] = logps[offset::2].sum()
    for side, offset in (("chosen", 0), ("rejected", 1)):
        result[f"{side}_tokens"] = lengths[offset::2].sum()
    return result


def warnings(drifted: Mapping[str, float], lengths: tuple[float, float]) -> list[str]:
    """Returns what a person should look at before the next iteration.

    Args:
      drifted: from `drift`.
      lengths: tokens per step of greedy solutions, before and after; 0 if unknown.
    """
    messages = []
    fall = drifted["chosen_logp_before"] - drifted["chosen_logp_after"]
    fall /= max(drifted["chosen_tokens"], 1.0)
    if fall > COLLAPSE:
        messages.append(
            f"chosen steps lost {fall:.2f} nats per token (more than {COLLAPSE}): the "
            "model moves away from what it prefers. Lower dpo.optimizer.learning_rate, "
            "or raise dpo.beta or dpo.nll_weight."
        )
    short, long = lengths
    if short and long > RUNAWAY * short:
        messages.append(
            f"steps grew from {short:.1f} to {long:.1f} tokens (more than {RUNAWAY} "
            "times): the judge may prefer length. Look at the pairs."
        )
    return messages
