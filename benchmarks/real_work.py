"""The work of real_model.py: its shapes and its tokens. Needs numpy only.

Token ids are random, because speed does not depend on them: the programs differ in
what they compute, and not in what the text says.
"""

import numpy as np

SPECIAL = 32  # the first ids are kept for padding, end of sequence and the like
SEQUENCES, SEQUENCE, SCORED = 8, 120, 60  # of a training step; the last 60 are learnt
LEARNING_RATE, CLIP_NORM = 1e-5, 1.0  # AdamW without weight decay
CONTEXTS, CONTEXT, CANDIDATES = 8, 160, 6  # of scoring and sampling
CONTINUATION, NEW = 25, 40  # tokens that are scored, and that are sampled
# Judgments: 12 ordered pairs of 4 steps for each of 8 problems.
PROBLEMS, JUDGE_CONTEXT, STEPS, STEP, EXPLANATION = 8, 100, 4, 25, 40

# name → tokens of one turn, which are what a program's speed is counted in.
TOKENS = {
    "gradient": SEQUENCES * SEQUENCE,
    "update": SEQUENCES * SEQUENCE,
    "score": CONTEXTS * CANDIDATES * CONTINUATION,
    "sample": CONTEXTS * CANDIDATES * NEW,
    "judge": PROBLEMS * STEPS * (STEPS - 1) * EXPLANATION,
}


def _draw(rng: np.random.Generator, vocab: int, *shape: int) -> np.ndarray:
    return rng.integers(SPECIAL, vocab, shape)


def sequences(number: int, vocab: int) -> np.ndarray:
    """Returns the sequences of training step `number`, [sequences, tokens]."""
    return _draw(np.random.default_rng([0, number]), vocab, SEQUENCES, SEQUENCE)


def contexts(number: int, vocab: int) -> np.ndarray:
    """Returns the contexts of call `number` of scoring or sampling."""
    return _draw(np.random.default_rng([1, number]), vocab, CONTEXTS, CONTEXT)


def continuations(number: int, vocab: int) -> np.ndarray:
    """Returns what is scored behind them, [contexts, candidates, tokens]."""
    rng = np.random.default_rng([2, number])
    return _draw(rng, vocab, CONTEXTS, CANDIDATES, CONTINUATION)


def judgments(number: int, vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns judges' contexts [problems, tokens], and questions behind each of them.

    A question is two different steps, [problems, ordered pairs, 2 * tokens of a step].
    Consecutive questions show the same step first.
    """
    rng = np.random.default_rng([3, number])
    before = _draw(rng, vocab, PROBLEMS, JUDGE_CONTEXT)
    steps = _draw(rng, vocab, PROBLEMS, STEPS, STEP)
    order = [(a, b) for a in range(STEPS) for b in range(STEPS) if a != b]
    return before, steps[:, order].reshape(PROBLEMS, len(order), 2 * STEP)
