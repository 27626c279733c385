"""Rows of data, and short ways to read them, for several test files."""

from stepjax.initial_data.formats import sources
from stepjax.prompts import Templates
from stepjax.records import Solution

TEMPLATES = Templates()


def solutions(path):
    return sources.read(path, "gsm8k", "solution", TEMPLATES)


def questions(path):
    return sources.read(path, "gsm8k", "question", TEMPLATES)


def problems(path):
    return sources.read(path, "gsm8k", "problem", TEMPLATES)


def benchmark(path):
    return sources.read(path, "benchmark", "problem", TEMPLATES)


def numbered_solutions(count, prefix="s"):
    """Solutions s0, s1, ... of one step each."""
    return [
        Solution(f"{prefix}{n}", f"{prefix} {n}?", (f"Step 1: \\boxed{{{n}}}",), str(n))
        for n in range(count)
    ]
