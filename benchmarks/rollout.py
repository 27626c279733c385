"""Sampling, scoring and judging steps against transformers and tunix.

    python benchmarks/rollout.py --torch=PYTHON --tunix=PYTHON

The shapes are in work.py: 6 candidates of 64 tokens for each of 8 contexts of 256
tokens are sampled (T = 0.5, top-p 0.95), or scored; and the 30 judgments of a step of 6
candidates, in both orders, are written behind a shared context of 200 tokens, or their
verdicts compared without an explanation (`judge.mode=logprob`). Each PYTHON is an
interpreter in which that peer is installed; a peer without one is skipped. The last
results are in README.md.
"""

import argparse
import os
import pathlib
import sys
import tempfile

import compare
import numpy as np
import work

# Rows of one turn and their least arithmetic, whether they are sampled or scored.
OF_CANDIDATES = work.CONTEXTS * work.CANDIDATES, work.candidates_flops()
# work → (programs of the peers, rows of one turn, least arithmetic of one turn)
WORK = {
    "sample": (
        [("torch", "sample"), ("torch", "sample, shared"), ("tunix", "sample")],
        *OF_CANDIDATES,
    ),
    "score": (
        [("torch", "score, whole"), ("torch", "score")],
        *OF_CANDIDATES,
    ),
    "judge": (
        [("torch", "judge")],
        work.CANDIDATES * (work.CANDIDATES - 1),
        work.judgments_flops(work.EXPLANATION),
    ),
    "verdict": (
        [("torch", "verdict")],
        work.CANDIDATES * (work.CANDIDATES - 1),
        work.judgments_flops(0),
    ),
}


def measure(name: str, options, folder: str) -> None:
    """Runs the programs of one kind of work in turns and prints their table."""
    peers, rows, flops = WORK[name]
    programs = [compare.Program("stepjax", sys.executable, "rollout_stepjax.py", name)]
    for peer, layout in peers:
        python = compare.python_with(getattr(options, peer), peer)
        title = f"{peer}: {layout}"
        script = f"rollout_{peer}.py"
        programs.append(compare.Program(title, python, script, layout))
    rate = compare.matmul_rate()
    results = compare.run(
        programs, f"{folder}/model", pathlib.Path(folder), options.rounds, warm_up=1
    )
    rate = max(rate, compare.matmul_rate())
    floor = flops / 1e9 / rate
    ours = results["stepjax"]
    print(
        f"\n{name}: median of {options.rounds} turns, load {os.getloadavg()[0]:.1f}; "
        f"least arithmetic {flops / 1e9:.0f} GFLOP, {floor:.2f} CPU s at the "
        f"{rate:.0f} GFLOP per CPU s of a matrix product here\n\n"
        "| program | CPU s | wall s | rows / s | stepjax takes | x limit | peak MB |\n"
        "|---|---|---|---|---|---|---|"
    )
    for title, result in results.items():
        print(
            f"| {title} | {result.cpu:.2f} | {result.wall:.2f} "
            f"| {rows / result.wall:.1f} | {ours.wall / result.wall:.2f} "
            f"| {result.cpu / floor:.2f} | {result.peak_mb} |"
        )
    for title, result in results.items():
        if title != "stepjax" and "rows" in result.steps[0]:
            pairs = zip(ours.steps, result.steps, strict=True)
            print(f"{title}: {agreement(name, list(pairs))}")
    print(flush=True)


def agreement(name: str, calls) -> str:
    """Says how far the results of all turns agree."""
    ours, theirs = (
        np.array([step["rows"] for step in side]) for side in zip(*calls, strict=True)
    )
    if name in ("score", "verdict"):
        return f"scores differ by at most {abs(ours - theirs).max():.1e}"
    same = (ours == theirs).all(-1)
    return f"{same.sum()} of {same.size} rows have the same tokens as stepjax's"


def main() -> None:
    """Runs all programs in turns and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for peer in ("torch", "tunix"):
        parser.add_argument(f"--{peer}", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", choices=tuple(WORK), action="append")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.work or WORK:
            measure(name, options, folder)


if __name__ == "__main__":
    main()
