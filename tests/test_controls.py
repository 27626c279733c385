"""Who takes the judge's place in controls: coins, and the gold."""

import math

import numpy as np

from stepjax import controls, judge
from stepjax.judge import Request
from stepjax.worlds import arithmetic

PROBLEM = "8*7+4*4+2*3+1"
STEPS = ("Step 1: 8*7+4=0", "Step 2: 0*4+2=2", "Step 3: 2*3+1=7; \\boxed{7}")


def request(codec, candidates, steps=(), number=0, slot=0):
    ids, made = map(codec.step, steps), map(codec.step, candidates)
    path = (1, number, len(steps) + 1, 0)
    return Request(slot, f"q-{number}", PROBLEM, tuple(ids), tuple(made), path)


# Coins.


def test_coins_are_fair_and_each_call_has_its_own(codec):
    texts = [f"Step 1: 8*7+4={digit}" for digit in range(4)]
    requests = [request(codec, texts, number=n) for n in range(100)]
    verdicts = controls.random_judge(judge.comparisons(), 5)(requests)
    for answers in verdicts:
        assert [v[:2] for v in answers] == judge.ordered_pairs(4, "sum", ())
    sides = [v.winner for answers in verdicts for v in answers]
    assert set(sides) == {"A", "B"}
    # 1,200 fair coins: within five standard deviations of a half.
    assert abs(sides.count("A") - 600) < 5 * math.sqrt(300)
    # The two orders of a pair are two coins: a half of them contradict each other.
    flips = [judge.position_flips(answers) for answers in verdicts]
    flipped, both = np.sum(flips, axis=0)
    assert both == 600 and abs(flipped - 300) < 5 * math.sqrt(150)
    assert (
        controls.random_judge(judge.comparisons(), 5)(requests[::-1]) == verdicts[::-1]
    )
    assert controls.random_judge(judge.comparisons(), 6)(requests) != verdicts
    named = controls.random_judge(judge.comparisons(), 5)(requests[:1], [[(2, 1)]])
    (same,) = [v for v in verdicts[0] if v[:2] == (2, 1)]
    assert named == [[same]]


# The gold.


def test_the_oracle_prefers_right_steps_only(codec):
    texts = ["Step 2: 0*4+2=5", STEPS[1], "Step 2: 1*4+2=6"]
    made = controls.oracle_judge(arithmetic.is_right, codec, judge.comparisons(), 0)
    (answers,) = made([request(codec, texts, STEPS[:1])])
    assert [v[:3] for v in answers] == [
        (0, 1, "B"),
        (0, 2, None),
        (1, 0, "A"),
        (1, 2, "A"),
        (2, 0, None),
        (2, 1, "B"),
    ]
    # After a wrong step, right is what follows from what it wrote.
    after = [request(codec, ["Step 2: 9*4+2=8", STEPS[1]], ["Step 1: 5*7+4=9"])]
    (answers,) = made(after)
    assert [v.winner for v in answers] == ["A", "B"]
