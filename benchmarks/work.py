"""The work of the benchmarks: its shapes, its tokens, its arithmetic, and the clock.

Every program gets the same tokens, and the weights that the stepjax program wrote. A
program is a process: it prepares itself, calls `serve`, and then runs one training step
for every line that it reads. So the programs of one run take turns step by step, and a
busy machine is equally busy for all of them. Needs numpy only.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

# Qwen2 with 22.5 million parameters in the body and 16.4 million in the tied embedding.
MODEL = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "num_layers": 8,
    "num_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 64,
    "intermediate_size": 1408,
    "rope_theta": 1e6,
    "tie_embeddings": True,
}
BETA, LEARNING_RATE, CLIP_NORM = 0.1, 1e-6, 1.0  # AdamW without weight decay, float32
SPECIAL = 8  # the first ids are kept for padding, end of sequence and the like

PAIRS, CONTEXT, STEP = 4, 192, 64  # one step of dpo_step.py
PROBLEMS, STEPS, PROMPT, STEP_TOKENS = 4, 8, 170, 60  # one step of trajectories.py

# rollout.py: candidates of 8 problems sampled or scored, and the judgments of a step.
CONTEXTS, CONTEXT_TOKENS, CANDIDATES, CANDIDATE_TOKENS = 8, 256, 6, 64
TEMPERATURE, TOP_P = 0.5, 0.95
JUDGE_CONTEXT, JUDGE_STEP, EXPLANATION = 200, 62, 64
VERDICTS = SPECIAL, SPECIAL + 1  # ids of A and B
JUDGE_WORDS = 5, 5, 10  # tokens before, between and after the two steps of a question


class Pair(NamedTuple):
    """A preference as token ids."""

    context: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


def _draw(generator: np.random.Generator, count: int) -> tuple[int, ...]:
    return tuple(generator.integers(SPECIAL, MODEL["vocab_size"], count).tolist())


def single_pairs(number: int) -> list[Pair]:
    """Returns the pairs of training step `number`, all of one shape."""
    rng = np.random.default_rng([0, number])
    return [
        Pair(_draw(rng, CONTEXT), _draw(rng, STEP), _draw(rng, STEP))
        for _ in range(PAIRS)
    ]


def trajectories(number: int) -> list[list[Pair]]:
    """Returns the pairs of each problem: contexts grow by the chosen steps."""
    rng = np.random.default_rng([1, number])
    problems = []
    for _ in range(PROBLEMS):
        context, pairs = _draw(rng, PROMPT), []
        for _ in range(STEPS):
            chosen, rejected = _draw(rng, STEP_TOKENS), _draw(rng, STEP_TOKENS)
            pairs.append(Pair(context, chosen, rejected))
            context += chosen
        problems.append(pairs)
    return problems


def prompts(number: int) -> list[tuple[int, ...]]:
    """Returns the contexts of call `number` of sampling or scoring."""
    rng = np.random.default_rng([2, number])
    return [_draw(rng, CONTEXT_TOKENS) for _ in range(CONTEXTS)]


def candidates(number: int) -> list[list[tuple[int, ...]]]:
    """Returns the steps to score behind each of `prompts`."""
    rng = np.random.default_rng([3, number])
    return [
        [_draw(rng, CANDIDATE_TOKENS) for _ in range(CANDIDATES)]
        for _ in range(CONTEXTS)
    ]


def judgments(number: int) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    """Returns a judge's context, and the question of every ordered pair of candidates.

    A question is a few words, the first step, a few words, the second step, and a few
    words.
    """
    rng = np.random.default_rng([4, number])
    context = _draw(rng, JUDGE_CONTEXT)
    steps = [_draw(rng, JUDGE_STEP) for _ in range(CANDIDATES)]
    before, between, after = (_draw(rng, count) for count in JUDGE_WORDS)
    questions = [
        before + a + between + b + after for a in steps for b in steps if a != b
    ]
    return context, questions


def _per_token() -> tuple[float, float, float]:
    """Returns FLOPs of a token in the layers, of its logits, and of a key it sees."""
    width, heads = MODEL["hidden_size"], MODEL["num_heads"] * MODEL["head_dim"]
    kv = MODEL["num_kv_heads"] * MODEL["head_dim"]
    layer = 2 * width * heads + 2 * width * kv + 3 * width * MODEL["intermediate_size"]
    layers = MODEL["num_layers"]
    return 2 * layers * layer, 2 * width * MODEL["vocab_size"], 4 * layers * heads


def _row_flops(before: int, fed: int, made: int = 0) -> float:
    """Returns the least arithmetic of a row: attention to earlier tokens only.

    Args:
      before: tokens that it sees and that are computed elsewhere.
      fed: tokens that go through the layers.
      made: tokens that need logits.
    """
    body, head, key = _per_token()
    return body * fed + key * fed * (before + (fed + 1) / 2) + head * made


def candidates_flops() -> float:
    """Returns the least arithmetic of sampling, or scoring: each context once."""
    row = _row_flops(CONTEXT_TOKENS, CANDIDATE_TOKENS, CANDIDATE_TOKENS)
    return CONTEXTS * (_row_flops(0, CONTEXT_TOKENS) + CANDIDATES * row)


def judgments_flops(written: int) -> float:
    """Returns the least arithmetic of judging: the context and each first step once.

    Args:
      written: tokens of an explanation; 0 when the verdict follows the question.
    """
    lead = JUDGE_STEP + JUDGE_WORDS[0] + JUDGE_WORDS[1]
    rest = JUDGE_STEP + JUDGE_WORDS[2] + written
    row = _row_flops(JUDGE_CONTEXT + lead, rest, max(written, 1))
    first = _row_flops(JUDGE_CONTEXT, lead) + (CANDIDATES - 1) * row
    return _row_flops(0, JUDGE_CONTEXT) + CANDIDATES * first


def least_flops() -> float:
    """Returns the least arithmetic of one step of dpo_step.py.

    Policy forward and backward and reference forward, the context once per pair, logits
    of scored tokens only, attention to earlier tokens only.
    """
    each = _row_flops(0, CONTEXT) + 2 * _row_flops(CONTEXT, STEP, STEP)
    return 4 * PAIRS * each


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Turns:
    """One line in, one training step, one line of JSON out.

    Anything that a library prints goes to standard error.
    """

    def __init__(self):
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._begun = None

    def say(self, **facts) -> None:
        """Prints facts for the driver."""
        print(json.dumps(facts), file=self._out, flush=True)

    def wait(self) -> bool:
        """Waits for this program's turn and starts the clock; False if none is left."""
        if not sys.stdin.readline().strip():
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            self.say(peak_rss_mb=round(peak))
            return False
        self._begun = time.perf_counter(), _cpu_seconds()
        return True

    def done(self, **facts) -> None:
        """Stops the clock; the work must be finished, not only begun."""
        wall, cpu = self._begun
        wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
        self.say(wall=wall, cpu=cpu, **facts)


def serve(step: Callable[[int], dict]) -> None:
    """Runs ``step(number)`` at every turn; it returns facts of the finished step."""
    turns = Turns()
    turns.say(ready=True)
    for number in _count():
        if not turns.wait():
            return
        turns.done(**step(number))


def _count() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1
