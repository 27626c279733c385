"""Pairs of whole trajectories in one tree against the same pairs laid out one by one.

    python benchmarks/trajectories.py --torch=PYTHON

Training steps on 4 problems of 8 steps with one pair per step (work.py): as trees, one
by one through the same code, and one by one through the hand-written torch step. Then
the gradients of the first two are compared. README.md has the last results.
"""

import argparse
import os
import pathlib
import sys
import tempfile

import compare
import work


def main() -> None:
    """Runs all programs in turns and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--torch", metavar="PYTHON")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    ours = "run_stepjax.py"
    programs = [
        compare.Program("trees", sys.executable, ours, "forest"),
        compare.Program("one by one", sys.executable, ours, "separate"),
        compare.Program(
            "torch, one by one",
            compare.python_with(options.torch, "torch"),
            "run_torch.py",
            "separate",
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        logs = pathlib.Path(folder)
        results = compare.run(
            programs, f"{folder}/model", logs, options.rounds, warm_up=1
        )
        program = compare.Program("check", sys.executable, ours, "check")
        same = compare.ask(program, f"{folder}/model", logs)
    pairs = work.PROBLEMS * work.STEPS
    trees = results["trees"]
    print(
        f"\nMedian of {options.rounds} steps of {pairs} pairs, load "
        f"{os.getloadavg()[0]:.1f}\n\n"
        "| layout | CPU s/pair | wall s/pair | trees are faster by | peak MB |\n"
        "|---|---|---|---|---|"
    )
    for name, result in results.items():
        print(
            f"| {name} | {result.cpu / pairs:.3f} | {result.wall / pairs:.3f} "
            f"| {result.cpu / trees.cpu:.2f} | {result.peak_mb} |"
        )
    for name, result in results.items():
        first = {k: round(v, 5) for k, v in result.steps[0].items() if k[0] in "lg"}
        print(f"{name}, first step: {first}")
    print(f"Trees against one by one, with a policy that is not the reference: {same}")


if __name__ == "__main__":
    main()
