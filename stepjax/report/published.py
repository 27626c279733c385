"""Figures of the paper, arXiv 2503.03746, in percent.

They are of other models, and mostly of other problems than those of a run: compare the
shape of a curve and not its height, unless a benchmark has the same name.
"""

import re

BENCHMARKS = ("GSM8K", "MATH", "Gaokao", "Olympiad", "AIME24", "AMC23")

# Model → accuracy with greedy decoding on `BENCHMARKS` and their mean; Table 1. The
# rows of SRLM are the baseline that rates whole solutions.
ACCURACY = {
    "7B M0": (70.1, 51.7, 51.2, 21.3, 0.0, 22.5, 36.1),
    "7B M1": (88.5, 69.5, 61.8, 36.0, 6.7, 45.0, 51.3),
    "7B M2": (88.8, 69.7, 63.9, 36.3, 16.7, 47.5, 53.8),
    "7B M3": (88.5, 72.2, 64.7, 39.9, 10.0, 50.0, 54.2),
    "7B M4": (88.8, 73.3, 65.2, 38.7, 13.3, 55.0, 55.7),
    "7B SRLM M1": (88.2, 69.0, 61.6, 37.6, 10.0, 45.0, 51.9),
    "7B SRLM M4": (88.3, 70.2, 63.9, 37.6, 13.3, 45.0, 53.1),
    "72B M0": (87.5, 69.7, 55.3, 28.9, 10.0, 40.0, 48.6),
    "72B M1": (92.6, 75.6, 67.3, 41.8, 13.3, 45.0, 55.9),
    "72B M4": (93.7, 76.6, 68.1, 44.1, 23.3, 57.5, 60.6),
    "72B M1, test-time search": (94.5, 79.1, 64.9, 41.6, 16.7, 52.5, 58.2),
    "72B M4, test-time search": (94.5, 79.3, 68.3, 43.7, 23.3, 65.0, 62.4),
}

# Size → judge accuracy of M0 (with three examples in its prompt), M1, ... on the 500
# held-out comparisons.
JUDGE = {
    "7B": (57.2, 92.8, 91.6, 92.0, 92.2),
    "72B": (73.4, 95.6, 95.8, 95.2, 95.6),
}

# 7B on MATH, over the iterations: steps per solution before and after, then tokens per
# step before and after.
LENGTHS = (9.35, 5.21, 61.6, 113.1)
STEPS = (
    "In the paper (7B, MATH) the number of steps falls from 9.35 to 5.21 over the "
    "iterations, and a step grows from 61.6 to 113.1 tokens."
)

# How a judge works → its consistency, and its agreement with people; shares.
AGREEMENT = {
    "pairs of steps": (0.84, 0.88),
    "whole solutions, scored": (0.72, 0.32),
}

# Rows of the data of M1. The paper has two numbers for EFT, one in its section 4 and
# one in its setup; 4,679 are made.
DATA = {"ift": "28,889", "eft": "4,167 to 4,179 pairs", "heldout": "500 pairs"}

# Number of the model → questions that it searches.
QUESTIONS = {1: 400, 2: 800, 3: 1200}

# Setting → its value in the paper.
SETTINGS = {
    "sft.phases.epochs": "3",
    "sft.phases.batch_size": "32",
    "sft.phases.optimizer.learning_rate": "1e-06",
    "search.width": "6",
    "search.temperature": "0.5",
    "search.top_p": "0.95",
    "search.max_expansions": "20",
    "dpo.epochs": "1",
    "dpo.batch_size": "32",
    "dpo.optimizer.learning_rate": "5e-07",
    "dpo.beta": "not stated",
    "prm.phase.epochs": "1",
    "prm.phase.batch_size": "128",
    "prm.phase.optimizer.learning_rate": "1e-05",
    "mcts.iterations": "100",
    "mcts.depth": "3",
    "mcts.temperature": "0.7",
    "mcts.top_p": "0.95",
}

# How files of the paper's benchmarks may be called, without signs and without "test".
_NAMES = {
    "gsm8k": "GSM8K",
    "math": "MATH",
    "gaokao": "Gaokao",
    "gaokao2023en": "Gaokao",
    "olympiad": "Olympiad",
    "olympiadbench": "Olympiad",
    "aime24": "AIME24",
    "aime2024": "AIME24",
    "amc23": "AMC23",
    "amc2023": "AMC23",
}


def curve(benchmark: str) -> tuple[str, list[tuple[int, float]]]:
    """Returns the paper's 7B curve that stands beside a curve of a run.

    Args:
      benchmark: its name, such as "gsm8k" or "GSM8K_test".

    Returns:
      What it is of: the benchmark of the paper that has this name, or else the mean of
      its six; and a point (number of the model, accuracy) for M0 to M4.
    """
    name = _NAMES.get(re.sub(r"[^a-z0-9]|test", "", benchmark.lower()))
    at = BENCHMARKS.index(name) if name else len(BENCHMARKS)
    points = [(n, ACCURACY[f"7B M{n}"][at]) for n in range(5)]
    return name or "mean of six benchmarks", points
