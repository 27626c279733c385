"""Judges that take the model's place in control experiments: coins, and the gold."""

from collections.abc import Callable, Sequence

import numpy as np

from stepjax.codec import Codec
from stepjax.judge import Judge, Judgments, Request, all_calls
from stepjax.trajectory import Verdict

# The gold: (problem, texts of the steps so far, text of a candidate) → right or not, or
# None for a problem that it does not know.
IsRight = Callable[[str, Sequence[str], str], bool | None]
JUDGES = ("self", "random", "oracle")  # the model itself, and the two of this file


def random_judge(judgments: Judgments, seed: int) -> Judge:
    """Returns a judge whose verdicts are coins, each drawn from its own key path.

    A control experiment: what the loop gains with this judge is not due to judging.

    Args:
      judgments: what is asked.
      seed: base seed.
    """

    def verdict(request: Request, a: int, b: int) -> Verdict:
        coin = np.random.default_rng([seed, *request.path, a, b]).random()
        return Verdict(a, b, "A" if coin < 0.5 else "B")

    return _judge_by(verdict, judgments, seed)


def oracle_judge(
    is_right: IsRight,
    codec: Codec,
    judgments: Judgments,
    seed: int,
) -> Judge:
    """Returns a judge that knows the gold: an upper bound, not self-rewarding.

    It has no preference (None) between two right or two wrong steps. Of a step that is
    judged alone (call (i, i)), it says whether it is right.

    Args:
      is_right: the gold.
      codec: tokenizer and templates.
      judgments: what is asked.
      seed: base seed.
    """

    def verdict(request: Request, a: int, b: int) -> Verdict:
        steps = [codec.text(ids) for ids in request.steps]
        first, second = (
            is_right(request.problem, steps, codec.text(request.candidates[i]))
            for i in (a, b)
        )
        undecided = first == second and a != b
        return Verdict(a, b, None if undecided else "A" if first else "B")

    return _judge_by(verdict, judgments, seed)


def _judge_by(
    verdict: Callable[..., Verdict], judgments: Judgments, seed: int
) -> Judge:
    def judge(requests: Sequence[Request], calls=None) -> list[list[Verdict]]:
        if calls is None:
            calls = all_calls(requests, judgments, seed)
        return [
            [verdict(request, a, b) for a, b in pairs]
            for request, pairs in zip(requests, calls, strict=True)
        ]

    return judge
